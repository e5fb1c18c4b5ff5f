"""The pipes to an inner agent: start it through the door, read its lines, keep the end of its stderr, end it.

The child is sudo or, with one uid, kai-inner itself, which becomes the agent. What it writes is read as fast as the
caller takes it and no faster: an agent that floods waits in its own write. A line longer than MAX_LINE is thrown away
while it is read. When SIGKILL has to end the child, processes below it live on until the unit's control group ends.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import IO, Any

from kai.agent.backend import Ending
from kai.lib.log import printable

MAX_LINE = 16 << 20
"""Longest line in bytes that is kept."""
CHUNK = 1 << 16
TAIL_LINES, TAIL_WIDTH = 5, 300
"""How much of stderr is kept: lines, and bytes of each."""
PATIENCE = (2.0, 5.0, 1.0)
"""Seconds to wait after the end of input, after SIGTERM, after SIGKILL."""
LAST_WORDS = 1.0
"""Seconds that output may still come after the exit: a process that the agent left behind can hold the pipe."""


class LineSplitter:
    """Cuts a stream of bytes into lines and never holds more than one of them."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.rest = bytearray()
        self.skipping = False

    def feed(self, chunk: bytes) -> list[bytes | None]:
        """The lines that are complete now, without their newline; None stands for one that was too long."""
        *ends, rest = chunk.split(b"\n")
        lines = [self._end(piece) for piece in ends]
        self._add(rest)
        return lines

    def _end(self, piece: bytes) -> bytes | None:
        self._add(piece)
        line = None if self.skipping else bytes(self.rest)
        self.skipping = False
        self.rest.clear()
        return line

    def _add(self, piece: bytes) -> None:
        if len(self.rest) + len(piece) > self.limit:
            self.skipping = True
            self.rest.clear()
        elif not self.skipping:
            self.rest += piece


class _Input(asyncio.BaseProtocol):
    """Knows when the pipe is closed: closing it a second time is an error in asyncio."""

    lost = False

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True


class AgentProcess:
    """One child with its three pipes. `spawn` makes it, `close` ends it."""

    _in: asyncio.WriteTransport
    _input: _Input
    _out: asyncio.ReadTransport
    _err: asyncio.ReadTransport
    _reader: asyncio.StreamReader
    _keeping: asyncio.Task[None]
    ending: Ending | None = None

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self.child = child
        self.gone = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._pidfd = os.pidfd_open(child.pid)
        self._loop.add_reader(self._pidfd, self._exited)

    @classmethod
    async def spawn(cls, command: Sequence[str]) -> AgentProcess:
        """Start the door. Raises OSError when it isn't there or may not be run."""
        child = subprocess.Popen(  # noqa: ASYNC220 - a fork; nothing is waited for
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            cwd="/",
            start_new_session=True,  # a Ctrl-C at the demo's terminal is not meant for the agent
        )
        assert child.stdin
        assert child.stdout
        assert child.stderr
        self = cls(child)
        self._in, self._input = await self._loop.connect_write_pipe(_Input, child.stdin)
        self._out, self._reader = await self._connect(child.stdout)
        self._err, reader = await self._connect(child.stderr)
        self._keeping = asyncio.create_task(self._keep_tail(reader))
        return self

    async def _connect(self, pipe: IO[Any]) -> tuple[asyncio.ReadTransport, asyncio.StreamReader]:
        reader = asyncio.StreamReader(limit=CHUNK)
        transport, _ = await self._loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
        return transport, reader

    def write(self, data: bytes) -> None:
        """Send to the child's input. What a slow child hasn't read yet waits here."""
        if not self._in.is_closing():
            self._in.write(data)

    async def lines(self) -> AsyncIterator[bytes | None]:
        """What the child prints, line by line, until its end; None stands for a line that was too long."""
        splitter = LineSplitter(MAX_LINE)
        while chunk := await self._reader.read(CHUNK):
            for line in splitter.feed(chunk):
                yield line
        if splitter.rest:
            yield bytes(splitter.rest)

    async def _keep_tail(self, reader: asyncio.StreamReader) -> None:
        splitter = LineSplitter(MAX_LINE)
        while chunk := await reader.read(CHUNK):
            for line in splitter.feed(chunk):
                self._keep(line or b"")
            del splitter.rest[TAIL_WIDTH:]
        self._keep(bytes(splitter.rest))

    def _keep(self, line: bytes) -> None:
        if line.strip():
            self._tail.append(printable(line[: 4 * TAIL_WIDTH].decode("utf-8", "replace").strip(), TAIL_WIDTH))

    async def last_words(self) -> list[str]:
        """The last lines of stderr. Asked after the end, it waits a moment for those on their way."""
        if self.gone.is_set():
            await asyncio.wait({self._keeping}, timeout=LAST_WORDS)
        return list(self._tail)

    def _exited(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self.child.wait()
        self.gone.set()
        self._loop.call_later(LAST_WORDS, self._hang_up)

    def _hang_up(self) -> None:
        if not self._input.lost:
            self._in.abort()
        self._out.close()
        self._err.close()

    @property
    def status(self) -> str:
        """How the child ended, in words."""
        code = self.child.returncode
        if code is None:
            return "it still runs, but its output is closed"
        with suppress(ValueError):
            if code < 0 or code > 128:
                return f"ended by {signal.Signals(-code if code < 0 else code - 128).name}"
        return f"exit status {code}"

    async def close(self) -> Ending:
        """End the child: end of input, then SIGTERM (sudo passes it on), then SIGKILL; 8 s at the most."""
        patience = iter(PATIENCE)
        if not self.ending:
            self.ending = "killed" if self.gone.is_set() else "left"
        self._in.close()
        if not await self._leaves(next(patience)):
            self.ending = "killed"
            self._signal(signal.SIGTERM)
            if not await self._leaves(next(patience)):
                self._signal(signal.SIGKILL)
                await self._leaves(next(patience))
        self._hang_up()
        self._keeping.cancel()
        return self.ending if self.gone.is_set() else "stuck"

    async def _leaves(self, seconds: float) -> bool:
        with suppress(TimeoutError):
            await asyncio.wait_for(self.gone.wait(), seconds)
        return self.gone.is_set()

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):  # not ours to end: the control group's end is
            os.kill(self.child.pid, number)
