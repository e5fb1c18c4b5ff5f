"""One connection: messages that end with NUL, and the descriptors that come with them. asyncio's streams have no room
for those.

Received descriptors belong to the wire until `collect` hands them over, and end with it: a peer that sends what nobody
asked for, or goes away in the middle, leaves none behind. Source: unix(7), recvmsg(2).
"""

from __future__ import annotations

import asyncio
import os
import socket
from array import array
from collections.abc import Iterator, Sequence

from kai.lib.varlink import MAX_MESSAGE

CHUNK = 1 << 16
"""Bytes that are read at once."""
INT = array("i").itemsize


def close_all(descriptors: list[int]) -> None:
    """Close and forget them; who let go of some before has nothing closed twice."""
    while descriptors:
        os.close(descriptors.pop())


class Wire:
    """A connected Unix stream socket, which ends with `close`.

    With a message, at most `most` descriptors are taken. With `expecting`, the first message is probably there already.
    One task at a time may receive.
    """

    def __init__(self, connection: socket.socket, *, most: int = 0, expecting: bool = False) -> None:
        connection.setblocking(False)
        self._socket, self._fd, self._most = connection, connection.fileno(), most
        self._room = socket.CMSG_LEN(most * INT) if most else 0
        self._loop = asyncio.get_running_loop()
        self._expecting = expecting
        self._received = bytearray()
        self._searched = 0
        self._position = 0  # of the first byte in _received, counted from the beginning of the connection
        self._carried: list[tuple[int, list[int] | None]] = []  # last position they came with; None: too many
        self._waiting: asyncio.Future[None] | None = None
        self._watched = self._ended = False
        self._unsent = bytearray()
        self._flushed: asyncio.Future[None] | None = None
        self._broken: OSError | None = None

    @property
    def buffered(self) -> bool:
        """Whether something of the next message is here already."""
        return bool(self._received)

    async def receive(self) -> bytes | None:
        """The next message without its NUL, or None at the end of the connection.

        Raises ValueError when the peer sends more than MAX_MESSAGE without a NUL. Descriptors of the message before
        that nobody collected are closed.
        """
        if self._carried:
            close_all(self.collect()[0])
        while (end := self._received.find(0, self._searched)) < 0:
            self._searched = len(self._received)
            if self._searched > MAX_MESSAGE:
                break
            if self._ended:
                return None
            await self._more()
        if not 0 <= end <= MAX_MESSAGE:
            raise ValueError(f"message longer than {MAX_MESSAGE} bytes")
        message = bytes(memoryview(self._received)[:end])
        del self._received[: end + 1]
        self._searched, self._position = 0, self._position + end + 1
        return message

    def collect(self) -> tuple[list[int], bool]:
        """The descriptors that came with the last message, to be closed by the caller; and whether there were too many
        of them, all closed by now."""
        found: list[int] = []
        too_many = False
        while self._carried and self._carried[0][0] < self._position:
            _, descriptors = self._carried.pop(0)
            too_many = too_many or descriptors is None
            found += descriptors or ()
        return found, too_many

    async def send(self, message: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send a message whole, the descriptors with its first byte; they stay the caller's.

        Returns when the kernel has all of it: who reads slowly is written to slowly. Cancelled, it is sent none the
        less. Raises ConnectionError when the peer is gone.
        """
        if self._broken:
            raise self._broken
        rest = memoryview(message)
        if not self._unsent:
            rest = rest[self._send(message, descriptors) :]
            if not rest:
                return
        if descriptors and len(rest) == len(message):  # never on a new connection, which has room
            raise ConnectionError("the peer has not read what it was sent before these descriptors")
        self._unsent += rest
        if self._flushed is None:
            self._flushed = self._loop.create_future()
            self._loop.add_writer(self._fd, self._flush)
        await asyncio.shield(self._flushed)
        if self._broken:
            raise self._broken

    def close(self) -> None:
        """End the connection, and all descriptors that were not collected. Safe to call twice."""
        if self._fd < 0:
            return
        self._ended = True
        self._pause()
        if self._waiting and not self._waiting.done():
            self._waiting.set_result(None)
        self._broken = self._broken or ConnectionAbortedError("the connection is closed")
        self._end_flush()
        self._fd = -1
        self._socket.close()
        for _, descriptors in self._carried:
            close_all(descriptors or [])
        self._carried.clear()

    # ---- reading ----

    async def _more(self) -> None:
        """Wait until something was read, or nothing more will come."""
        if self._expecting:
            self._expecting = False
            if self._read():
                return
        self._waiting = self._loop.create_future()
        if not self._watched:
            self._watched = True
            self._loop.add_reader(self._fd, self._readable)
        try:
            await self._waiting
        finally:
            self._waiting = None

    def _readable(self) -> None:
        if self._waiting is None or self._waiting.done():
            self._pause()  # nobody asks for more yet, so it stays with the kernel, and the sender waits
        elif self._read():
            self._waiting.set_result(None)

    def _pause(self) -> None:
        if self._watched:
            self._watched = False
            self._loop.remove_reader(self._fd)

    def _read(self) -> bool:
        """Read once; False when there is nothing now."""
        try:
            chunk, ancillary, flags, _ = self._socket.recvmsg(CHUNK, self._room, socket.MSG_CMSG_CLOEXEC)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            self._ended = True
            return True
        if ancillary or flags & socket.MSG_CTRUNC:
            self._carry(chunk, list(_descriptors(ancillary)), cut=bool(flags & socket.MSG_CTRUNC))
        self._received += chunk
        self._ended = not chunk
        return True

    def _carry(self, chunk: bytes, descriptors: list[int], *, cut: bool) -> None:
        """Keep what came with this chunk. The kernel ends a read after the bytes that descriptors were sent with, so
        they belong to the message of the chunk's last byte."""
        last = self._position + len(self._received) + len(chunk) - 1
        kept: list[int] | None = descriptors
        if self._carried and 0 not in memoryview(chunk)[:-1]:  # more of the message that had some already
            before = self._carried.pop()[1]
            kept = None if before is None else before + descriptors
            descriptors = descriptors if kept is None else kept
        if cut or (kept is not None and len(kept) > self._most):
            kept = None
        if kept is None:
            close_all(descriptors)
        self._carried.append((last, kept))

    # ---- writing ----

    def _send(self, message: bytes, descriptors: Sequence[int]) -> int:
        """How many bytes the kernel took."""
        try:
            if not descriptors:
                return self._socket.send(message)
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", descriptors))
            return self._socket.sendmsg((message,), (rights,))
        except (BlockingIOError, InterruptedError):
            return 0

    def _flush(self) -> None:
        try:
            with memoryview(self._unsent) as unsent:
                sent = self._socket.send(unsent)
            del self._unsent[:sent]
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._broken = error
        if self._broken or not self._unsent:
            self._end_flush()

    def _end_flush(self) -> None:
        if self._flushed:
            self._loop.remove_writer(self._fd)
            if not self._flushed.done():
                self._flushed.set_result(None)
            self._flushed = None
        self._unsent.clear()


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> Iterator[int]:
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            yield from array("i", data[: len(data) - len(data) % INT])
