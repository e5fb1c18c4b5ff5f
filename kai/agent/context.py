"""What the agent is told at every start of its process: identity, memory, workspace, history (S6).

It goes in through the agent's system prompt, so it is never mixed with the user's words and is always fresh.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from pathlib import Path

from kai.agent import door as the_door
from kai.agent import history
from kai.interfaces import MemoryText
from kai.lib import hostile

logger = logging.getLogger(__name__)
MEMORY = "MEMORY.md"
MEMORY_LIMIT = 64 * 1024
IDENTITY_LIMIT = 256 * 1024
WORKSPACE_FILES = (".claude/CLAUDE.md", "CLAUDE.md")


TOOLS = """\
# What you can do through Kai

Kai is what connects you to the user's chat. Use its tools, whose names begin with `mcp__kai__`, or in a shell the \
command `kai` (`kai jobs --help`, `kai send-file PATH`, `kai service list`):

- A reminder, or something to be done later or again and again, becomes a job: `schedule_job`, `list_jobs`, \
`update_job`, `delete_job`. Don't wait or sleep for it yourself, and don't use cron. Times are the user's own.
- A file reaches the user by `send_file` alone; your answer is text. `send_message` is for what he is to see before \
your answer is complete.
- Web services that the operator has set up, with keys that you don't see: `list_services`, `call_service`.\
"""


async def system_prompt(
    *,
    config_dir: Path,
    user: str,
    base: Path,
    home: Path,
    workspace: Path,
    door: tuple[str, ...],
    fresh: bool,
    name: str = "",
    instructions: str = "",
    native: Collection[Path] = (),
    tools: bool = False,
) -> str:
    """The whole text. `base` is the user's directory; `fresh` sessions get the last messages of the history.

    `name` is the workspace's, `instructions` what workspaces.yaml says of it. `native` are files that the agent reads
    by itself: those are not given twice. With `tools` it can call Kai.
    """
    places = dict.fromkeys((home, workspace))
    sections = [
        _identity(config_dir, user),
        _memory(base / "memory"),
        _workspace(workspace, name, instructions),
        TOOLS if tools else "",
        *await asyncio.gather(*(_workspace_file(door, place, native) for place in places)),
        _history(base / "history", fresh=fresh),
    ]
    return "\n\n".join(section for section in sections if section)


def read_by_claude(workspace: Path, account_home: Path, *, trusted: bool) -> set[Path]:
    """Of the files that Kai would give, those that Claude Code reads by itself.

    Measured with 2.1.330: always the account's own `.claude/CLAUDE.md`; and where it takes settings from the workspace
    (`trust_settings`), both files of the workspace and of each directory above it.
    """
    directories = (workspace, *workspace.parents) if trusted else ()
    return {account_home / WORKSPACE_FILES[0], *(each / name for each in directories for name in WORKSPACE_FILES)}


def memory_text(directory: Path) -> MemoryText:
    """The memory file in a user's memory directory, at most MEMORY_LIMIT bytes of it.

    Whatever stands in the file's place (a link, a pipe, a huge file), this doesn't wait and doesn't grow.
    """
    path = directory / MEMORY
    try:
        found = hostile.read(directory, MEMORY, MEMORY_LIMIT)
    except hostile.Refused as error:
        logger.warning("memory: %s", error)
        return MemoryText(str(path), note=f"It can't be read: {error}.")
    if found is None:
        return MemoryText(str(path), note="It does not exist yet.")
    data, more = found
    text = data.decode("utf-8", errors="replace")
    if more:
        return MemoryText(
            str(path), text, f"Only its first {MEMORY_LIMIT // 1024} KiB are given; it should be shorter."
        )
    return MemoryText(str(path), text, note="" if text.strip() else "It is empty.")


def _identity(config_dir: Path, user: str) -> str:
    texts = []
    for path in (config_dir / "identity.md", config_dir / "identity.d" / f"{user}.md"):
        try:
            with path.open("rb") as file:
                texts.append(file.read(IDENTITY_LIMIT).decode("utf-8", errors="replace").strip())
        except FileNotFoundError:
            continue
        except OSError as error:
            logger.warning("identity: %s: %s; it is left out", path, error.strerror)
    return "\n\n".join(texts)


def _memory(directory: Path) -> str:
    memory = memory_text(directory)
    head = (
        f"# Your memory\n\nThe file {memory.path} is yours to keep current, a regular file that its group can read; "
        "it is given to you at each start."
    )
    note = f" {memory.note}" if memory.note else ""
    return f"{head}{note} It says:\n\n{memory.text}" if memory.text.strip() else f"{head}{note}"


def _workspace(workspace: Path, name: str, instructions: str) -> str:
    called = f', the workspace that the user calls "{name}"' if name else ""
    head = f"# Your workspace\n\nYou work in {workspace}{called}."
    return f"{head}\n\n{instructions}" if instructions else head


async def _workspace_file(door: tuple[str, ...], workspace: Path, native: Collection[Path]) -> str:
    """The first of a workspace's files, "" when there is none or the agent reads it by itself."""
    for name in WORKSPACE_FILES:
        path = workspace / name
        try:
            data = await the_door.read(door, workspace, name, IDENTITY_LIMIT)
        except the_door.FileRefused as error:
            logger.info("workspace instructions: %s", error)
            text = f"(They are not given here: {error}. Read the file before you begin.)"
        except the_door.DoorError as error:
            logger.warning("workspace instructions: %s; they are left out", error)
            return ""
        else:
            text = (data or b"").decode("utf-8", errors="replace").strip()
        if text:
            return "" if path in native else f"# Instructions from {path}\n\n{text}"
    return ""


def _history(directory: Path, *, fresh: bool) -> str:
    text = (
        f"# History\n\nAll messages with this user are in {directory}, one JSON object a line, one file a day "
        "(YYYY-MM-DD.jsonl). You can read and search it, not write it."
    )
    lines = history.recent(directory) if fresh else []
    if not lines:
        return text
    shown = "\n".join(f"- {line.ts} {line.dir}: {line.text}" for line in lines)
    return f"{text} This is a fresh session; the last messages before it were:\n\n{shown}"
