"""What tests of backends share: a context for an agent that runs as this very account, and one turn of it."""

from __future__ import annotations

import os
from contextlib import aclosing
from pathlib import Path

import msgspec

from kai.agent.backend import AgentBackend, Context
from kai.demo.launcher import python
from kai.interfaces import Event, Part


def context(directory: Path, *command: str, **environment: str) -> Context:
    """A workspace and a home of its own below `directory`; the door without sudo."""
    interpreter, _ = python()
    for name in ("work", "home"):
        (directory / name).mkdir(exist_ok=True)
    given = {"HOME": os.fspath(directory / "home"), **environment}
    if os.geteuid() == 0:
        given["IS_SANDBOX"] = "1"  # without it the CLI refuses to work as root
    return Context(
        user="alice",
        door=(*interpreter, "-m", "kai.inner"),
        command=command,
        workspace=directory / "work",
        environment=tuple(given.items()),
    )


def changed(context: Context, **fields: object) -> Context:
    return msgspec.structs.replace(context, **fields)


async def talk(backend: AgentBackend, prompt: str) -> Event:
    """One turn; its done event."""
    return (await events(backend, prompt))[-1]


async def events(backend: AgentBackend, prompt: str, *, stop_at: str = "") -> list[Event]:
    """All events of one turn, interrupted when `stop_at` shows up in its text or tool."""
    found: list[Event] = []
    async with aclosing(backend.turn([Part(kind="text", text=prompt)])) as turn:  # type: ignore[type-var]
        async for event in turn:
            found.append(event)
            if stop_at and stop_at in event.text + event.summary:
                stop_at = ""
                await backend.interrupt()
    assert [event.kind for event in found].count("done") == 1
    return found


def alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def running(word: str) -> list[int]:
    """Processes that have this word in their command line."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            words = (directory / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if word.encode() in words and alive(int(directory.name)):
            found.append(int(directory.name))
    return found
