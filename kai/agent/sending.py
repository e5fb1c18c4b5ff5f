"""The files that an agent sends to its user: read with its own rights, sealed, and handed to the bot.

kai-inner opens the file, since only the agent's account may know what lies there; what it gives out is copied into
memory that nobody can change any more, the sender of the path included.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import time
import uuid
from pathlib import Path

from kai.agent import door as the_door
from kai.agent.files import safe_name
from kai.interfaces import Attachment, Deliver, FileSent, Stored
from kai.lib.client import Client, delays
from kai.lib.log import printable
from kai.lib.varlink import Busy, Unavailable

MOST = 50 << 20
"""Bytes of a file: what Telegram takes of bots."""
NEVER = ("history", "memory", "state")
"""Directories of the user's that no file is sent from."""
PATIENCE, SLOWEST = 20.0, 60.0
"""Seconds for which the bot is asked again when it can't be reached, and that it may take to store a file."""
SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


class Unsendable(Exception):
    """That file isn't sent: `status` is HTTP's (400, 403, 404, 413), the message begins with `path:`."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"path: {message}")
        self.status = status


async def send(
    bot: Path, user: str, path: str, caption: str, *, door: tuple[str, ...], base: Path, workspace: Path
) -> FileSent:
    """Have a file of the agent's sent to the user; it is in the outbox of the bot, behind the socket `bot`, then.

    Raises what `take` raises, and the bot's own refusal.
    """
    name, size, copy = await take(door, base, workspace, path)
    try:
        stored = await deliver_file(bot, user, name, caption, copy)
    finally:
        os.close(copy)
    return FileSent(name=name, size=size, id=stored.id)


async def deliver_file(bot: Path, user: str, name: str, caption: str, copy: int) -> Stored:
    """Have the bot store a sealed file. Raises what `deliver` raises."""
    call = Deliver(key=f"file:{uuid.uuid4().hex}", user=user, text=caption, file=Attachment(name, 0))
    return await deliver(bot, call, copy)


async def deliver(bot: Path, call: Deliver, *descriptors: int) -> Stored:
    """Have the bot store something, with the same key as often as it takes: it stores it once.

    Raises the bot's refusal, and Busy when it can't be reached for a while.
    """
    end = time.monotonic() + PATIENCE
    for delay in delays():
        try:
            return await Client(bot).call(call, descriptors=descriptors, timeout=SLOWEST)
        except Unavailable as error:
            if time.monotonic() + delay > end:
                what = "file" if call.file else "message"
                raise Busy(f"kai-bot doesn't answer, so the {what} was probably not sent: {error}") from None
        await asyncio.sleep(delay)
    raise AssertionError("delays never end")


async def take(door: tuple[str, ...], base: Path, workspace: Path, path: str) -> tuple[str, int, int]:
    """A file of the agent's: its name, its size in bytes, and a descriptor of a sealed copy, the caller's to close.

    `path` is relative to the workspace, or absolute and in it or below the user's `files` (`base` is his directory).
    Raises Unsendable with what is wrong with the path, and Busy when nothing can be read now.
    """
    root = _root(base, workspace, path)
    copy = os.memfd_create("kai-file", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        never = [str(base / name) for name in NEVER]
        request = {"verb": "read", "root": str(root), "path": path, "limit": MOST, "never": never}
        answer = await the_door.copy(door, request, copy, most=MOST)
        status, fault = _fault(answer, root)
        if fault:
            raise Unsendable(status, f"{printable(path, 200)}: {fault}")
        seal(copy)
    except BaseException as error:
        os.close(copy)
        if isinstance(error, the_door.DoorError):
            raise Busy(f"{printable(path, 200)} can't be read with the agent's rights: {error}") from None
        if isinstance(error, OSError):
            full = error.errno in (errno.ENOMEM, errno.ENOSPC)
            raise Busy(f"{printable(path, 200)}: {'no memory for it now' if full else error.strerror}") from None
        raise
    return safe_name(path.rpartition("/")[2]), answer.size, copy


def seal(copy: int) -> None:
    """Nobody changes this memory any more."""
    fcntl.fcntl(copy, fcntl.F_ADD_SEALS, SEALS)


def _fault(answer: the_door.Answer, root: Path) -> tuple[int, str]:
    """Why a file isn't sent, "" when it can be; and HTTP's status for that."""
    if answer.code == the_door.NOT_THERE:
        return 404, f"there is no such file in {root}"
    if answer.code == the_door.TOO_LARGE or (not answer.error and answer.size > MOST):
        return 413, f"it has more than the {MOST >> 20} MB that Telegram takes of bots"
    if answer.error:
        return 403, printable(answer.error.partition(": ")[2] or answer.error, 200)
    return 400, "" if answer.size else "it is empty, and Telegram takes no empty files"


def _root(base: Path, workspace: Path, path: str) -> Path:
    """The directory that a path must lie in: the workspace or the user's `files`."""
    if not path or "\0" in path or path.endswith("/"):
        raise Unsendable(400, "expected that of a file")
    for root in (base / "files", workspace):
        if path.startswith(f"{os.fspath(root).rstrip('/')}/"):
            return root
    if path.startswith("/"):
        raise Unsendable(
            403,
            f"{printable(path, 200)}: files are sent from the current workspace, {workspace}, and from "
            f"{base / 'files'}; copy it there first",
        )
    return workspace
