"""The spool: what was accepted and isn't delivered yet, one file each.

A body is written to a file without a name, which vanishes with this process. Only when it is found right it gets its
name, and counts as accepted when body and name are on disk, in this order. A file is a line of JSON (`Head`) and the
body, byte for byte; its name is the time of its arrival and its id, so that names sort as things came. What can't be
delivered moves to `failed`. Source: open(2), linkat(2), fsync(2).
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import re
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import msgspec

MOST_FILES, MOST_BYTES = 100_000, 1 << 30
"""What the spool holds at the most; more is refused until something is delivered."""
IN_MEMORY = 64 << 10
"""Bytes of a body from which on it is written to a file as it comes."""
AT_ONCE = 8
"""Files that are made durable at a time: the file system commits them together."""
KEPT_FAILED = 30 * 86400
"""Seconds for which what couldn't be delivered is kept."""
ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_NAME = re.compile(r"[0-9]{20}-(" + ID.pattern + ")")
logger = logging.getLogger(__name__)


class Full(OSError):
    """The spool takes nothing more now; the message says why."""


class Head(msgspec.Struct):
    """What is known of a delivery besides its body. `received` is in seconds since the epoch."""

    id: str
    endpoint: str
    event: str
    received: float


class Incoming:
    """A body that is coming in. Close it, whatever became of it.

    A small one waits in memory: what turns out to be wrong never touches the disk. A larger one is in a file without a
    name from then on.
    """

    def __init__(self, head: Head, directory: Path) -> None:
        self.head, self.directory = head, directory
        self.name = f"{int(head.received * 1e9):020d}-{head.id}"
        self.pieces = [msgspec.json.encode(head), b"\n"]
        self.size, self.fd = 0, -1

    def write(self, data: bytes) -> None:
        """Raises OSError."""
        self.pieces.append(data)
        self.size += len(data)
        if self.size > IN_MEMORY:
            self.flush()

    def flush(self) -> None:
        """Into the file. Raises OSError."""
        if self.fd < 0:
            self.fd = os.open(self.directory, os.O_TMPFILE | os.O_WRONLY, 0o600)
        left = memoryview(b"".join(self.pieces))
        self.pieces.clear()
        while left:
            left = left[os.write(self.fd, left) :]

    def close(self) -> None:
        self.pieces.clear()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Spool:
    """The directory `path`, with `failed` beside it; one process at a time.

    `names` has what is stored, the oldest first, with the bytes of each. Raises OSError where the directories can't be
    made or read.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.failed = path, path.with_name("failed")
        for directory in (self.path, self.failed):
            directory.mkdir(mode=0o700, exist_ok=True)
        self.directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        self.names = dict(sorted(_found(path)))
        self.bytes = sum(self.names.values())
        self._threads = ThreadPoolExecutor(AT_ONCE, "spool")

    def begin(self, head: Head) -> Incoming:
        """Room for a body. Raises Full."""
        self.check()
        return Incoming(head, self.path)

    def check(self) -> None:
        """Raises Full."""
        if len(self.names) >= MOST_FILES:
            raise Full(f"{len(self.names)} deliveries wait already")
        if self.bytes >= MOST_BYTES:
            raise Full(f"{self.bytes >> 20} MiB wait already")

    async def store(self, incoming: Incoming) -> None:
        """Give it its name; returns when it is on disk. Raises OSError, and then it isn't accepted."""
        await asyncio.get_running_loop().run_in_executor(self._threads, self._name, incoming)
        self.names[incoming.name] = incoming.size
        self.bytes += incoming.size

    def read(self, name: str) -> tuple[Head, bytes]:
        """Raises OSError, and ValueError for what isn't a delivery of this program's."""
        head, _, body = (self.path / name).read_bytes().partition(b"\n")
        return msgspec.json.decode(head, type=Head), body

    def remove(self, name: str) -> None:
        """It is delivered, and noted as such."""
        self._forget(name)
        with suppress(FileNotFoundError):
            (self.path / name).unlink()

    def fail(self, name: str) -> None:
        """It is kept aside: nothing delivers it by itself any more. Raises OSError."""
        (self.path / name).replace(self.failed / name)
        self._forget(name)

    def retry(self) -> int:
        """Take back all that was kept aside; returns how many that are. Raises OSError."""
        back = dict(sorted(_found(self.failed)))
        for name, size in back.items():
            (self.failed / name).replace(self.path / name)
            self.names[name] = size
            self.bytes += size
        return len(back)

    def given_up(self) -> list[str]:
        """The names of what is kept aside."""
        return sorted(name for name, _ in _found(self.failed))

    def sweep(self) -> None:
        """Remove what was kept aside long enough."""
        for name in self.given_up():
            if received_at(name) < time.time() - KEPT_FAILED:
                logger.warning("%s: is removed, %d days after it came", self.failed / name, KEPT_FAILED // 86400)
                (self.failed / name).unlink(missing_ok=True)

    def close(self) -> None:
        """What is being stored ends first."""
        self._threads.shutdown()
        os.close(self.directory)

    def _forget(self, name: str) -> None:
        self.bytes -= self.names.pop(name, 0)

    def _name(self, incoming: Incoming) -> None:
        """In a thread. The body first: a name without all of it must never be found."""
        incoming.flush()
        os.fsync(incoming.fd)
        os.link(f"/proc/self/fd/{incoming.fd}", incoming.name, dst_dir_fd=self.directory, follow_symlinks=True)
        os.fsync(self.directory)


def id_of(name: str) -> str:
    return name[21:]


def received_at(name: str) -> float:
    """Seconds since the epoch."""
    return int(name[:20]) / 1e9


def explain(error: OSError) -> str:
    """What the operator is told of a spool that can't be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "there is no space left: make some below /var/lib/kai"
    return error.strerror or str(error)


def _found(path: Path) -> list[tuple[str, int]]:
    found = []
    with os.scandir(path) as entries:
        for entry in entries:
            about = entry.stat(follow_symlinks=False)
            if _NAME.fullmatch(entry.name) and stat.S_ISREG(about.st_mode):
                found.append((entry.name, about.st_size))
            else:
                logger.warning("%s: is not a delivery and is left alone", entry.path)
    return found
