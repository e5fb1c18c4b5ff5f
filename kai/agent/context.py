"""What the agent is told at every start of its process: identity, memory, workspace, history (S6).

It goes in through the agent's system prompt, so it is never mixed with the user's words and is always fresh.
"""

from __future__ import annotations

import logging
from pathlib import Path

from kai.agent import door as the_door
from kai.agent import history
from kai.lib import hostile

logger = logging.getLogger(__name__)
MEMORY_LIMIT = 64 * 1024
IDENTITY_LIMIT = 256 * 1024
WORKSPACE_FILES = (".claude/CLAUDE.md", "CLAUDE.md")


async def system_prompt(
    *, config_dir: Path, user: str, base: Path, home: Path, workspace: Path, door: tuple[str, ...], fresh: bool
) -> str:
    """The whole text. `base` is the user's directory; `fresh` sessions get the last messages of the history."""
    sections = [_identity(config_dir, user), _memory(base / "memory")]
    for place in dict.fromkeys((home, workspace)):
        sections.append(await _workspace_file(door, place))
    sections.append(_history(base / "history", fresh=fresh))
    return "\n\n".join(section for section in sections if section)


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
    path = directory / "MEMORY.md"
    head = f"# Your memory\n\nThe file {path} is yours to keep current; it is given to you at each start."
    try:
        found = hostile.read(directory, "MEMORY.md", MEMORY_LIMIT)
    except hostile.Refused as error:
        logger.warning("memory: %s", error)
        return f"{head} It could not be read this time: {error}."
    if found is None:
        return f"{head} It does not exist yet."
    data, more = found
    note = f"\n\n(Only its first {MEMORY_LIMIT // 1024} KiB are given here: shorten it.)" if more else ""
    return f"{head} It says:\n\n{data.decode('utf-8', errors='replace')}{note}"


async def _workspace_file(door: tuple[str, ...], workspace: Path) -> str:
    for name in WORKSPACE_FILES:
        try:
            data = await the_door.read(door, workspace, name, IDENTITY_LIMIT)
        except the_door.DoorError as error:
            logger.warning("workspace instructions: %s; they are left out", error)
            continue
        if data:
            return f"# Instructions from {workspace / name}\n\n{data.decode('utf-8', errors='replace').strip()}"
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
