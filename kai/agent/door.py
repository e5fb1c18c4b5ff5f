"""The door to the user's account: sudo and kai-inner, which takes its request as the first line of its input."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import msgspec

import kai
from kai.config import User
from kai.lib.log import printable

INNER = "/opt/kai/current/bin/kai-inner"
COMMAND = "/opt/kai/current/bin/kai"
SLOWEST, SLOWEST_COPY = 10.0, 60.0
"""Seconds that a request may take, and that the copy of a big file may."""
LAST_MOMENT = 1.0
HEAD = 64 * 1024
"""Most bytes of an answer's first line, and of what is said on standard error."""
REFUSED, NOT_THERE, EXISTS, TOO_LARGE, NO_BASE = 403, 404, 409, 413, 424
T = TypeVar("T")


class DoorError(Exception):
    """kai-inner refused or could not be run; the message is its reason."""


class FileRefused(DoorError):
    """kai-inner doesn't give that file out."""


class Answer(msgspec.Struct):
    """The first line that kai-inner answers with; `code` is one of those above, 0 when it did what was asked.

    What stands in it is the account's word: an agent could write it too.
    """

    size: int = 0
    git: bool = False
    names: list[str] = []
    error: str = ""
    code: int = 0


def command(user: User, *, one_uid: bool) -> tuple[str, ...]:
    """The command that runs kai-inner as the user's work account; without sudo in the demo, where all are one."""
    if one_uid:
        here = os.fspath(Path(kai.__file__).parents[1])  # a checkout isn't on the path of an isolated interpreter
        start = "import sys; sys.path.append(sys.argv.pop(1)); from kai.inner import main; main()"
        return (sys.executable, "-I", "-c", start, here)
    return ("sudo", "-n", "-H", "-u", user.work_account, "--", INNER)


def tools_command(*, one_uid: bool) -> tuple[str, ...]:
    """The command of the MCP server with Kai's own tools, which the inner agent starts."""
    if one_uid:
        start = "import sys; sys.path.append(sys.argv.pop(1)); from kai.mcp import main; main()"
        return (sys.executable, "-I", "-c", start, os.fspath(Path(kai.__file__).parents[1]))
    return (COMMAND, "mcp")


async def read(door: tuple[str, ...], root: Path, path: str, limit: int) -> bytes | None:
    """A file beneath `root`, read with the agent's own rights; None when there is none.

    Raises FileRefused when it is reached over a link, not a regular file, or longer than `limit` bytes, and DoorError
    when the door itself doesn't open.
    """
    request = {"verb": "read", "root": str(root), "path": path, "limit": limit}
    answer, data = await ask(door, request, most=limit)
    if answer.code == NOT_THERE:
        return None
    if answer.error:
        raise FileRefused(printable(answer.error, 300))
    if len(data) != answer.size:
        raise DoorError(f"{root / path} changed while it was read")
    return data


async def copy(door: tuple[str, ...], request: Mapping[str, object], into: int, *, most: int) -> Answer:
    """Have kai-inner give out a file, and write it to a descriptor as it comes, at most `most` bytes.

    Raises DoorError when there is no answer, or what came is not what the answer promised.
    """
    (head, size), err = await _run(door, request, lambda out: _into(out, into, most), SLOWEST_COPY)
    answer = _answer(door, head, err)
    if not answer.error and size != answer.size:
        raise DoorError("the file changed while it was read")
    return answer


async def ask(door: tuple[str, ...], request: Mapping[str, object], *, most: int = 0) -> tuple[Answer, bytes]:
    """Have kai-inner carry out a request. Returns its answer and what follows that, at most `most` bytes.

    Raises DoorError when there is no answer. An answer with a `code` is returned: it is the caller's to tell.
    """
    out, err = await _run(door, request, lambda out: _at_most(out, HEAD + most), SLOWEST)
    head, _, data = out.partition(b"\n")
    return _answer(door, head, err), data


def _answer(door: tuple[str, ...], head: bytes, err: bytes) -> Answer:
    try:
        return msgspec.json.decode(head, type=Answer)
    except (msgspec.DecodeError, RecursionError):
        reason = err.decode(errors="replace").strip().splitlines()[-1:] or ["it gave no answer"]
        raise DoorError(f"{' '.join(door)}: {printable(reason[0], 300)}") from None


async def _run(
    door: tuple[str, ...],
    request: Mapping[str, object],
    take: Callable[[asyncio.StreamReader], Awaitable[T]],
    seconds: float,
) -> tuple[T, bytes]:
    """Open the door with a request; what `take` made of the output, and the beginning of standard error."""
    try:
        process = await asyncio.create_subprocess_exec(
            *door, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
    except OSError as error:
        raise DoorError(f"{door[0]}: {error.strerror}") from None
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        async with asyncio.timeout(seconds):
            process.stdin.write(msgspec.json.encode(request) + b"\n")
            process.stdin.close()
            # what opens the door is the account's, and hostile
            out, err = await asyncio.gather(take(process.stdout), _at_most(process.stderr, HEAD))
    except TimeoutError:
        _kill(process)
        await _end(process)
        raise DoorError(f"{request['verb']} took longer than {seconds:g} s") from None
    except BaseException:
        _kill(process)
        raise
    await _end(process)
    return out, err


async def _end(process: asyncio.subprocess.Process) -> None:
    """Wait a moment for the end of what opens the door, then end it. Under sudo it is root's and can't be killed."""
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        async with asyncio.timeout(LAST_MOMENT):
            await asyncio.gather(_at_most(process.stdout, 0), _at_most(process.stderr, 0), process.wait())
    except TimeoutError:
        _kill(process)


def _kill(process: asyncio.subprocess.Process) -> None:
    with suppress(PermissionError, ProcessLookupError):
        process.kill()


async def _at_most(reader: asyncio.StreamReader, limit: int) -> bytes:
    """The first `limit` bytes of what comes until the end; the rest is thrown away."""
    data = bytearray()
    while piece := await reader.read(HEAD):
        data += piece[: limit - len(data)]
    return bytes(data)


async def _into(reader: asyncio.StreamReader, descriptor: int, limit: int) -> tuple[bytes, int]:
    """The first line; and how many bytes came after it, of which the first `limit` are written."""
    head, size = bytearray(), 0
    while b"\n" not in head and len(head) < HEAD and (piece := await reader.read(HEAD)):
        head += piece
    line, _, first = head.partition(b"\n")
    piece = bytes(first) or await reader.read(HEAD)
    while piece:
        rest = memoryview(piece)[: max(limit - size, 0)]
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        size += len(piece)
        piece = await reader.read(HEAD)
    return bytes(line), size
