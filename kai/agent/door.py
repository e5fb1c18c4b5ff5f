"""The door to the user's account: sudo and kai-inner, which takes its request as the first line of its input."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import suppress
from pathlib import Path

import msgspec

import kai
from kai.config import User
from kai.lib.log import printable

INNER = "/opt/kai/current/bin/kai-inner"
SLOWEST = 10.0


HEAD = 64 * 1024


class DoorError(Exception):
    """kai-inner refused or could not be run; the message is its reason."""


class _Answer(msgspec.Struct):
    size: int = 0
    error: str = ""
    code: int = 0


def command(user: User, *, one_uid: bool) -> tuple[str, ...]:
    """The command that runs kai-inner as the user's work account; without sudo in the demo, where all are one."""
    if one_uid:
        here = os.fspath(Path(kai.__file__).parents[1])  # a checkout isn't on the path of an isolated interpreter
        start = "import sys; sys.path.append(sys.argv.pop(1)); from kai.inner import main; main()"
        return (sys.executable, "-I", "-c", start, here)
    return ("sudo", "-n", "-H", "-u", user.work_account, "--", INNER)


async def read(door: tuple[str, ...], root: Path, path: str, limit: int) -> bytes | None:
    """A file beneath `root`, read with the agent's own rights; None when there is none.

    Raises DoorError when it is a link that leads out, not a regular file, longer than `limit` bytes, or when the
    door itself doesn't open.
    """
    request = {"verb": "read", "root": str(root), "path": path, "limit": limit}
    process = await asyncio.create_subprocess_exec(
        *door, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(SLOWEST):
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdin.write(msgspec.json.encode(request) + b"\n")
            process.stdin.close()
            out = await _at_most(process.stdout, limit + HEAD)  # what opens the door is the account's, and hostile
            err = await _at_most(process.stderr, HEAD)
    except TimeoutError:
        with suppress(PermissionError, ProcessLookupError):
            process.kill()
        raise DoorError(f"reading {root / path} took longer than {SLOWEST:g} s") from None
    head, _, data = out.partition(b"\n")
    try:
        answer = msgspec.json.decode(head, type=_Answer)
    except msgspec.DecodeError:
        reason = err.decode(errors="replace").strip().splitlines()[-1:] or ["it gave no answer"]
        raise DoorError(f"{' '.join(door)}: {printable(reason[0], 300)}") from None
    if answer.code == 404:
        return None
    if answer.error:
        raise DoorError(answer.error)
    if len(data) != answer.size:
        raise DoorError(f"{root / path} changed while it was read")
    return data


async def _at_most(reader: asyncio.StreamReader, limit: int) -> bytes:
    """What comes until the end, or `limit` bytes of it."""
    data = bytearray()
    while len(data) < limit and (piece := await reader.read(limit - len(data))):
        data += piece
    return bytes(data)
