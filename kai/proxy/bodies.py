"""The two descriptors of a call: the request's body is read from one, the answer's is written to the other.

Both must be files in memory (memfd_create(2), or a file of a tmpfs): reading and writing these never waits for
anybody, so no caller can hold up the others with a pipe, a terminal or a file system of his own.
"""

from __future__ import annotations

import fcntl
import os
import stat
from contextlib import suppress

import msgspec

from kai.interfaces import ServiceRefused
from kai.lib.varlink import InvalidParameter

LARGEST_REQUEST = 256 << 10
"""Bytes."""


def check(descriptors: list[int]) -> tuple[int, int]:
    """The two, if they are what they must be. Raises InvalidParameter."""
    if len(descriptors) != 2:
        raise InvalidParameter("descriptors: expected two, for the request's body and for the answer's")
    for descriptor, fit, what in (
        (descriptors[0], (os.O_RDONLY, os.O_RDWR), "to read the request's body from"),
        (descriptors[1], (os.O_WRONLY, os.O_RDWR), "to write the answer to"),
    ):
        access = fcntl.fcntl(descriptor, fcntl.F_GETFL) & (os.O_ACCMODE | os.O_PATH)
        if access not in fit or not _in_memory(descriptor):
            raise InvalidParameter(f"descriptors: expected a memfd {what}")
    return descriptors[0], descriptors[1]


def _in_memory(descriptor: int) -> bool:
    try:
        fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)  # the kernel has seals for files in memory only
    except OSError:
        return False
    return stat.S_ISREG(os.fstat(descriptor).st_mode)


def read(descriptor: int, method: str) -> bytes:
    """The request's body, from the file's beginning: JSON, or nothing. Raises InvalidParameter or ServiceRefused."""
    body = bytearray()
    while len(body) <= LARGEST_REQUEST and (piece := os.pread(descriptor, LARGEST_REQUEST + 1 - len(body), len(body))):
        body += piece
    if len(body) > LARGEST_REQUEST:
        raise ServiceRefused(f"body: larger than {LARGEST_REQUEST >> 10} KiB")
    if not body:
        return b""
    if method not in ("POST", "PUT", "PATCH"):
        raise InvalidParameter(f"body: a call by {method} takes none")
    try:
        msgspec.json.decode(body)
    except (ValueError, RecursionError):
        raise InvalidParameter("body: expected JSON in UTF-8") from None
    return bytes(body)


class Written:
    """Writes the answer from the file's beginning; with `undo` nothing of it is left."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor, self.size = descriptor, 0
        self._cut()

    def take(self, data: bytes) -> None:
        """Raises InvalidParameter when the file doesn't take it (a seal, no memory left)."""
        rest = memoryview(data)
        while rest:
            try:
                count = os.pwrite(self.descriptor, rest, self.size)
            except OSError as error:
                raise InvalidParameter(f"descriptors: the answer can't be written: {error.strerror}") from None
            self.size, rest = self.size + count, rest[count:]

    def undo(self) -> None:
        self._cut()
        self.size = 0

    def _cut(self) -> None:
        with suppress(OSError):  # sealed: what counts is the size that is told
            os.ftruncate(self.descriptor, 0)
