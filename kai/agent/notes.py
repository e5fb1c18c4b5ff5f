"""What reached the user's chat that no turn of the chat said: reminders and results of jobs.

Each enters the history once, and the next turn of the chat begins with a line for each, so that the agent knows what
its user is talking about.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Sequence
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any

from kai.agent import history
from kai.agent.turns import Turns
from kai.interfaces import Note
from kai.lib.log import printable
from kai.lib.varlink import InvalidParameter

HEAD = "[Kai] Delivered to this chat since your last turn:"
MOST_LINES, LONGEST_LINE, LONGEST_WHAT = 20, 200, 150
MOST_KEPT = 1000
"""Notes that wait for a turn: the older ones are in the history and nowhere else."""
LATEST = 1e11
"""Seconds since the epoch that are still a date."""


class Notes:
    """The table `notes` of the supervisor's database; `directory` is the history's."""

    def __init__(self, turns: Turns, directory: Path) -> None:
        self.store, self.directory = turns.store, directory
        self.lock = asyncio.Lock()

    async def open(self) -> None:
        """Enter into the history what an earlier supervisor came not to."""
        await self._enter()

    async def add(self, note: Note) -> None:
        """Note a delivery, once for each turn id. Raises InvalidParameter."""
        if not note.turn:
            raise InvalidParameter("turn: expected the id under which it was delivered")
        if not 0 <= note.at <= LATEST:
            raise InvalidParameter(f"at: expected seconds since the epoch, got {note.at:g}")

        def work(db: sqlite3.Connection) -> None:
            db.execute(
                "INSERT OR IGNORE INTO notes (turn, what, text, at, noted) VALUES (?, ?, ?, ?, ?)",
                (note.turn, note.what, note.text, note.at, time.time()),
            )
            db.execute("UPDATE notes SET told = 1 WHERE id <= (SELECT max(id) FROM notes) - ?", (MOST_KEPT,))

        await self.store.write(work)
        await self._enter()

    async def _enter(self) -> None:
        async with self.lock:
            for row in await self.store.read("SELECT id, turn, text FROM notes WHERE NOT entered ORDER BY id"):
                if not history.has_answer(self.directory, row["turn"]):
                    history.append(self.directory, dir="assistant", turn=row["turn"], text=row["text"])
                await self._entered(row["id"], shortened(row["text"], LONGEST_LINE))

    async def _entered(self, number: int, begins: str) -> None:
        query = "UPDATE notes SET entered = 1, text = ? WHERE id = ?"
        await self.store.write(lambda db: db.execute(query, (begins, number)))

    async def pending(self, zone: tzinfo) -> tuple[str, int]:
        """What the next turn is to be told, "" for nothing, and up to which note that reaches. Times are of `zone`."""
        rows = await self.store.read("SELECT id, what, text, at FROM notes WHERE NOT told ORDER BY id")
        return (lines(rows, zone), rows[-1]["id"]) if rows else ("", 0)


def lines(rows: Sequence[Any], zone: tzinfo) -> str:
    """A line for each of the newest MOST_LINES; those before are counted."""
    shown = [HEAD]
    if len(rows) > MOST_LINES:
        shown.append(f"- {len(rows) - MOST_LINES} more before these; the history has them")
    for row in rows[-MOST_LINES:]:
        when = datetime.fromtimestamp(row["at"], zone)
        what, text = shortened(row["what"], LONGEST_WHAT), shortened(row["text"], LONGEST_LINE)
        shown.append(f"- {when:%Y-%m-%d %H:%M} {what}: {text}")
    return "\n".join((*shown, "", ""))


def shortened(text: str, most: int) -> str:
    """The beginning of a text as one line without control characters."""
    return printable(" ".join(printable(text[: 4 * most], 4 * most).split()), most)
