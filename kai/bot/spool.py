"""Files on their way to a chat, on disk before the outbox row that names them; who removes them is who ends the row.

A file that no row needs is left over from a crash between the two steps, and is swept at the next start.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import stat
import unicodedata
from pathlib import Path
from typing import Literal, NamedTuple

from kai.bot.text import clean

MOST, MOST_OF_PHOTO = 50 << 20, 10 << 20
"""Bytes that Telegram takes of a bot as a document, and as a photo."""
CHUNK = 1 << 18
LONGEST_NAME = 100
_FORBIDDEN = '/\\"'
logger = logging.getLogger(__name__)


class Unfit(Exception):
    """The file can't be sent; the message says why."""


class Taken(NamedTuple):
    """A file in the spool: its name there, its size in bytes, and as what it is to be shown."""

    spool: str
    size: int
    kind: Literal["document", "photo"]


class Spool:
    """One directory of the bot's own, made at its first use."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def path(self, name: str) -> Path:
        return self.directory / name

    async def take(self, descriptor: int) -> Taken:
        """Copy a file; it is on disk when this returns. Raises Unfit, and OSError when there is no room."""
        _check(descriptor)
        own = os.dup(descriptor)  # the sender's is closed when his call ends, whatever this thread does then
        return await asyncio.to_thread(self._copy, own)

    def _copy(self, descriptor: int) -> Taken:
        try:
            return self._copied(descriptor)
        finally:
            os.close(descriptor)

    def _copied(self, descriptor: int) -> Taken:
        if not self.directory.exists():
            self.directory.mkdir(mode=0o700, exist_ok=True)
            _sync(self.directory.parent)
        name = secrets.token_hex(16)
        target = os.open(self.path(name), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(target, "wb", buffering=0) as file:
                size, head = 0, b""
                while chunk := _read(descriptor, size):
                    head = head or chunk[:16]
                    size += len(chunk)
                    if size > MOST:  # it grows while it is read
                        raise Unfit(too_big(size))
                    file.write(chunk)
                if not size:
                    raise Unfit("it is empty, and Telegram takes no empty file")
                os.fsync(file.fileno())
            _sync(self.directory)
        except BaseException:
            self.remove(name)
            raise
        return Taken(name, size, "photo" if size <= MOST_OF_PHOTO and _is_picture(head) else "document")

    def remove(self, name: str) -> None:
        """Forget a file; it may be gone already."""
        try:
            self.path(name).unlink(missing_ok=True)
        except OSError as error:
            logger.error("spool: %s; it is tried again at the next start", error)

    def names(self) -> set[str]:
        """What is there now."""
        try:
            return {path.name for path in self.directory.iterdir()}
        except FileNotFoundError:
            return set()

    def sweep(self, found: set[str], needed: set[str]) -> int:
        """Remove those of the `found` that no row needs; returns how many. `found` is of before the first new file."""
        orphans = found - needed
        for name in orphans:
            self.remove(name)
        return len(orphans)


def display_name(name: str) -> str:
    """A file's name as one that does no harm where it is shown or saved: one part, one line, no hidden direction."""
    name = clean(name).replace("\\", "/").rpartition("/")[2]
    shown = "".join(c for c in name if c.isprintable() and c not in _FORBIDDEN and unicodedata.category(c) != "Cf")
    shown = shown.strip().lstrip(".").strip()
    if len(shown) > LONGEST_NAME:
        stem, dot, suffix = shown.rpartition(".")
        suffix = dot + suffix if dot and len(suffix) < 16 else ""
        shown = (stem if suffix else shown)[: LONGEST_NAME - len(suffix)] + suffix
    return shown or "file"


def too_big(size: int) -> str:
    return f"it has {size / (1 << 20):.1f} MB, and Telegram takes {MOST >> 20} MB of a bot"


def _check(descriptor: int) -> None:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise Unfit("it is not a regular file")
    if status.st_size > MOST:
        raise Unfit(too_big(status.st_size))


def _read(descriptor: int, offset: int) -> bytes:
    """From a place of our own: the sender's may be at the end, and is shared with him."""
    try:
        return os.pread(descriptor, CHUNK, offset)
    except OSError as error:
        raise Unfit(f"it can't be read: {error.strerror}") from None


def _is_picture(head: bytes) -> bool:
    """Whether a file's first bytes are those of what Telegram shows as a photo: PNG, JPEG, WebP."""
    return head.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


def _sync(path: Path) -> None:
    """The names in a directory are on disk too when this returns."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
