"""The journal of turns: what was begun, how it ended, and the answer, so that asking twice never runs twice.

A row is `running`, then `done`, `failed` or `interrupted`. Commits survive this process but not a power cut: after
one, the boot id differs and whoever asks treats an unknown turn as one that may have begun (kai-bot(8)). That
saves an fsync on every message's way.
"""

from __future__ import annotations

import sqlite3
import time
import uuid
from pathlib import Path
from typing import Literal

import msgspec

from kai.interfaces import Event, Journal
from kai.lib.store import Store
from kai.lib.varlink import Busy

KEPT = 7 * 86400
"""Seconds for which an ended turn can still be joined: the inbox's dedup window."""

Ended = Literal["done", "failed", "interrupted"]
_ENDED: dict[str, Ended] = {"ok": "done", "failed": "failed", "interrupted": "interrupted"}

_SCHEMA = """
CREATE TABLE generation (id TEXT NOT NULL);
CREATE TABLE turns (
    id TEXT PRIMARY KEY,
    state TEXT NOT NULL CHECK (state IN ('running', 'done', 'failed', 'interrupted')),
    began REAL NOT NULL,
    ended REAL,
    answer TEXT  -- the done event
) WITHOUT ROWID;
CREATE TABLE sessions (
    name TEXT PRIMARY KEY,  -- 'chat'
    id TEXT NOT NULL,
    turns INTEGER NOT NULL,
    cost_usd REAL NOT NULL,
    since REAL NOT NULL
) WITHOUT ROWID
"""


class Session(msgspec.Struct):
    """The agent's own memory of consecutive turns. Money is US dollars, `since` seconds since the epoch."""

    id: str = ""
    turns: int = 0
    cost_usd: float = 0.0
    since: float = 0.0


class Turns:
    """The journal in one user's state directory."""

    def __init__(self, directory: Path) -> None:
        self.store = Store(directory / "turns.db", _SCHEMA, durable=False)
        self.identity = Journal(generation="", boot=boot_id())

    async def open(self) -> None:
        """Read the generation; whatever still runs on paper was cut off with the supervisor before this one."""

        def work(db: sqlite3.Connection) -> str:
            row = db.execute("SELECT id FROM generation").fetchone()
            if row is None:
                row = (uuid.uuid4().hex,)
                db.execute("INSERT INTO generation VALUES (?)", row)
            cut = Event(kind="done", outcome="interrupted", error="the agent's supervisor was cut off in this turn")
            db.execute(
                "UPDATE turns SET state = 'interrupted', ended = ?, answer = ? WHERE state = 'running'",
                (time.time(), msgspec.json.encode(cut).decode()),
            )
            db.execute("DELETE FROM turns WHERE ended < ?", (time.time() - KEPT,))
            return str(row[0])

        self.identity.generation = await self.store.write(work)

    async def begin(self, turn: str) -> Event | None:
        """Enter a turn as running. Returns its stored answer instead when it was run before."""

        def work(db: sqlite3.Connection) -> str | None:
            row = db.execute("SELECT answer FROM turns WHERE id = ?", (turn,)).fetchone()
            if row is None:
                db.execute("INSERT INTO turns (id, state, began) VALUES (?, 'running', ?)", (turn, time.time()))
                return None
            if row[0] is None:
                raise Busy("the answer to this turn is being stored")
            return str(row[0])

        answer = await self.store.write(work)
        return None if answer is None else msgspec.json.decode(answer, type=Event)

    async def answer(self, turn: str) -> Event | None:
        """The stored answer of an ended turn, or None when the journal has no such turn."""
        rows = await self.store.read("SELECT answer FROM turns WHERE id = ? AND answer IS NOT NULL", (turn,))
        return msgspec.json.decode(rows[0]["answer"], type=Event) if rows else None

    async def end(self, turn: str, done: Event, session: Session) -> None:
        """Store how a turn ended and where the session stands, in one transaction."""

        def work(db: sqlite3.Connection) -> None:
            db.execute(
                "UPDATE turns SET state = ?, ended = ?, answer = ? WHERE id = ?",
                (_ENDED[done.outcome], time.time(), msgspec.json.encode(done).decode(), turn),
            )
            _store_session(db, session)

        await self.store.write(work)

    async def session(self) -> Session:
        rows = await self.store.read("SELECT id, turns, cost_usd, since FROM sessions WHERE name = 'chat'")
        return Session(**dict(rows[0])) if rows else Session(since=time.time())

    async def set_session(self, session: Session) -> None:
        await self.store.write(lambda db: _store_session(db, session))


def _store_session(db: sqlite3.Connection, session: Session) -> None:
    db.execute(
        "INSERT OR REPLACE INTO sessions VALUES ('chat', ?, ?, ?, ?)",
        (session.id, session.turns, session.cost_usd, session.since),
    )


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
