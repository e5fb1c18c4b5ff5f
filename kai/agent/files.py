"""The files that a user sends: descriptors from the bot, copied below his `files`, where his agent may read them.

Only the supervisor writes there. What a sender said of a file, its name and type, is worth nothing before it was looked
at; and a file is there whole or not at all.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import logging
import os
import re
import stat
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import date, timedelta
from pathlib import Path

from kai.agent.images import HEAD, IMAGE_LIMIT, image_type
from kai.interfaces import Part
from kai.lib.log import printable
from kai.lib.varlink import Busy, InvalidParameter
from kai.lib.wire import close_all

MOST_IN = 21 << 20
"""Bytes of a file that is stored. Telegram gives bots 20 MB at the most; the rest is slack."""
LONGEST_NAME = 200
"""Bytes of a stored file's name."""
LONGEST_TURN, LONGEST_ENDING = 48, 16
STEP = 1 << 18
logger = logging.getLogger(__name__)
_MIME = re.compile(r"[a-z0-9][a-z0-9.+-]{0,60}/[a-z0-9][a-z0-9.+-]{0,60}", re.IGNORECASE)


async def store(directory: Path, prompt: Sequence[Part], descriptors: list[int], *, turn: str, day: date) -> list[Part]:
    """Copy the files of a prompt to DIRECTORY/YYYY-MM-DD/, and close the descriptors. The same turn again overwrites.

    In the prompt that comes back a file's `name` is where it is now, its `text` says so to the agent, and `mime` is
    set for an image that can be shown. Raises InvalidParameter for what is no file or too big, Busy when it can't be
    stored; then nothing of it is left.
    """
    taken = descriptors[:]
    descriptors.clear()  # theirs who asked no longer: he may go away while they are copied
    return await asyncio.to_thread(_store, directory, list(prompt), taken, turn, day)


def _store(directory: Path, prompt: list[Part], descriptors: list[int], turn: str, day: date) -> list[Part]:
    names = _names(turn, [part.name for part in prompt if part.kind == "file"])
    made: list[str] = []
    place = -1
    try:
        chosen, place = _day(directory, day, names[0])
        stored = []
        for part in prompt:
            if part.kind == "file":
                name = names[len(made)]
                made.append(name)
                size, head = _copy(place, name, _given(part, descriptors), part.name)
                stored.append(_told(part, directory / chosen / name, size, head))
            else:
                stored.append(part)
        os.fsync(place)  # the turn that names them is on disk next
    except BaseException as error:
        for name in made:
            with suppress(OSError):
                os.unlink(name, dir_fd=place)
        if isinstance(error, OSError):
            logger.error("files of turn %s: %s", turn, error)
            raise Busy(f"the files can't be stored in {directory}: {error.strerror}") from None
        raise
    else:
        return stored
    finally:
        close_all(descriptors)
        if place >= 0:
            os.close(place)


def _day(directory: Path, day: date, first: str) -> tuple[str, int]:
    """The day's directory and a descriptor of it. A turn that was begun yesterday and comes again is yesterday's."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    above = os.open(directory, flags)
    try:
        before = str(day - timedelta(days=1))
        with suppress(OSError):
            os.stat(f"{before}/{first}", dir_fd=above, follow_symlinks=False)
            return before, os.open(before, flags, dir_fd=above)
        with suppress(FileExistsError):
            os.mkdir(str(day), 0o750, dir_fd=above)  # the group that may read comes from the directory above
            os.fsync(above)
        return str(day), os.open(str(day), flags, dir_fd=above)
    finally:
        os.close(above)


def _given(part: Part, descriptors: list[int]) -> int:
    """The descriptor of a part, once it is one of a file that can be read and isn't too big."""
    shown = printable(part.name, 100) or "a file"
    if not 0 <= part.descriptor < len(descriptors):
        raise InvalidParameter(f"prompt: {shown}: there is no descriptor {part.descriptor}")
    given = descriptors[part.descriptor]
    about = os.fstat(given)
    if not stat.S_ISREG(about.st_mode) or fcntl.fcntl(given, fcntl.F_GETFL) & (os.O_WRONLY | os.O_PATH):
        raise InvalidParameter(f"prompt: {shown}: descriptor {part.descriptor} is no file that can be read")
    return given


def _copy(place: int, name: str, given: int, called: str) -> tuple[int, bytes]:
    """Copy what a descriptor has, from its beginning, to a file that appears whole. Returns its size and first bytes.

    An offset of our own: the sender shares that of the descriptor, and could move it.
    """
    draft = f".{hashlib.sha256(name.encode()).hexdigest()[:32]}"
    with suppress(FileNotFoundError):
        os.unlink(draft, dir_fd=place)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    new = os.open(draft, flags, 0o600, dir_fd=place)
    try:
        at, head = 0, b""
        while piece := os.pread(given, STEP, at):
            at += len(piece)
            if at > MOST_IN:
                shown = printable(called, 100) or "a file"
                raise InvalidParameter(f"prompt: {shown}: more than the {MOST_IN >> 20} MiB that are stored")
            head = head or piece[:HEAD]
            _write(new, piece)
        os.fchmod(new, 0o640)
        os.fsync(new)
        os.rename(draft, name, src_dir_fd=place, dst_dir_fd=place)
    except BaseException:
        with suppress(OSError):
            os.unlink(draft, dir_fd=place)
        raise
    finally:
        os.close(new)
    return at, head


def _write(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _told(part: Part, path: Path, size: int, head: bytes) -> Part:
    """A stored file as the agent is told of it."""
    image = image_type(head)
    mime = image or (part.mime if _MIME.fullmatch(part.mime) else "")
    about = ", ".join(each for each in (mime, readable_size(size)) if each)
    return Part(
        kind="file", text=f"[File: {path} ({about})]", name=str(path), mime=image if size <= IMAGE_LIMIT else ""
    )


def _names(turn: str, called: Iterable[str]) -> list[str]:
    """Names for the files of a turn: safe, each another one, and the same whenever they are asked for."""
    prefix = re.sub(r"[^A-Za-z0-9._-]", "_", turn).lstrip(".-")
    if len(prefix) > LONGEST_TURN or not prefix:
        prefix = hashlib.sha256(turn.encode()).hexdigest()[:16]
    names: list[str] = []
    for name in called:
        made = safe_name(name, f"{prefix}-")
        number = 1
        while made in names:
            number += 1
            made = safe_name(name, f"{prefix}-{number}-")
        names.append(made)
    return names


def safe_name(name: str, prefix: str = "") -> str:
    """A name for a file, whatever its sender called it: printable, in one piece, at most LONGEST_NAME bytes of UTF-8,
    and neither hidden nor like an option. The ending stays."""
    name = name.encode("utf-8", "replace").decode("utf-8")
    name = "".join(char if char.isprintable() and char not in '/\\[]"' else "_" for char in name)
    name = name.strip().lstrip(".- ") or "file"
    stem, dot, ending = name.rpartition(".")
    if not stem or len(ending.encode()) > LONGEST_ENDING:
        stem, dot, ending = name, "", ""
    room = LONGEST_NAME - len(f"{prefix}{dot}{ending}".encode())
    return f"{prefix}{stem.encode()[:room].decode('utf-8', 'ignore').rstrip()}{dot}{ending}"


def readable_size(size: int) -> str:
    """A size in bytes, kB or MB, as a person reads it."""
    if size < 1000:
        return f"{size} bytes"
    return f"{size / 1000:.0f} kB" if size < 999_500 else f"{size / 1e6:.1f} MB"
