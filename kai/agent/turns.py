"""The supervisor's database: the journal of turns, and what a user's sessions, choices and costs have come to.

A turn's row is `running`, then `done`, `failed` or `interrupted`: asking twice never runs twice. While it runs, its
text so far is stored now and then, so that a turn that is cut off leaves what it had produced. Commits survive this
process but not a power cut: after one, the boot id differs and whoever asks treats an unknown turn as one that may have
begun (kai-queue(5)). That saves an fsync on every message's way.
"""

from __future__ import annotations

import sqlite3
import time
import uuid
from datetime import date
from pathlib import Path
from typing import Literal

import msgspec

from kai.interfaces import Event, Journal
from kai.lib.store import Store
from kai.lib.varlink import Busy

KEPT = 7 * 86400
"""Seconds for which an ended turn can still be joined: the inbox's dedup window."""

MOST_ALLOWED = 200
CUT = "the agent's supervisor ended in the middle of it."
Ended = Literal["done", "failed", "interrupted"]
_ENDED: dict[str, Ended] = {"ok": "done", "failed": "failed", "interrupted": "interrupted"}

_SINCE_2 = """
CREATE TABLE sessions (
    name TEXT NOT NULL,       -- 'chat', or 'job:7'
    workspace TEXT NOT NULL,  -- each has a session of its own to come back to
    id TEXT NOT NULL,
    turns INTEGER NOT NULL,
    cost_usd REAL NOT NULL,
    since REAL NOT NULL,
    warned_usd REAL NOT NULL DEFAULT 0,  -- the budget of which 80 % or all were told
    used REAL NOT NULL DEFAULT 0,
    PRIMARY KEY (name, workspace)
) WITHOUT ROWID;
CREATE TABLE allowed (  -- what "this session" allows
    name TEXT NOT NULL,
    workspace TEXT NOT NULL,
    pattern TEXT NOT NULL,
    PRIMARY KEY (name, workspace, pattern)
) WITHOUT ROWID;
CREATE TABLE choices (
    workspace TEXT NOT NULL,  -- '' for all
    field TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (workspace, field)
) WITHOUT ROWID;
CREATE TABLE costs (day TEXT PRIMARY KEY, turns INTEGER NOT NULL, usd REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID
"""

_NOTES = """
CREATE TABLE notes (  -- what reached the chat beside its turns, see kai.agent.notes
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    turn TEXT NOT NULL UNIQUE,
    what TEXT NOT NULL,
    text TEXT NOT NULL,  -- all of it until it is in the history, then its beginning
    at REAL NOT NULL,
    noted REAL NOT NULL,
    entered INTEGER NOT NULL DEFAULT 0,  -- whether it is in the history
    told INTEGER NOT NULL DEFAULT 0      -- whether a turn of the chat was told
)
"""

_SCHEMA = f"""
CREATE TABLE generation (id TEXT NOT NULL);
CREATE TABLE turns (
    id TEXT PRIMARY KEY,
    state TEXT NOT NULL CHECK (state IN ('running', 'done', 'failed', 'interrupted')),
    began REAL NOT NULL,
    ended REAL,
    answer TEXT,  -- the done event, with the turn's cost
    part TEXT NOT NULL DEFAULT ''  -- the text so far of what runs, or was cut off and isn't in the history yet
) WITHOUT ROWID;
{_SINCE_2};
{_NOTES}
"""

_UPGRADES = {
    1: f"""
ALTER TABLE sessions RENAME TO sessions_1;
{_SINCE_2};
INSERT INTO sessions (name, workspace, id, turns, cost_usd, since)
    SELECT name, '', id, turns, cost_usd, since FROM sessions_1;
DROP TABLE sessions_1
""",
    2: "ALTER TABLE turns ADD COLUMN part TEXT NOT NULL DEFAULT ''",
    3: _NOTES,
}


class Session(msgspec.Struct):
    """The agent's own memory of consecutive turns in one workspace.

    Money is US dollars, `since` and `used` seconds since the epoch. `warned_usd` is the budget of which it was told
    that 80 % or all are used.
    """

    workspace: str
    name: str = "chat"
    id: str = ""
    turns: int = 0
    cost_usd: float = 0.0
    since: float = msgspec.field(default_factory=time.time)
    warned_usd: float = 0.0
    used: float = 0.0


_COLUMNS = ", ".join(Session.__struct_fields__)


class Turns:
    """The database in one user's state directory."""

    def __init__(self, directory: Path) -> None:
        self.store = Store(directory / "turns.db", _SCHEMA, version=4, oldest=2, upgrades=_UPGRADES, durable=False)
        self.identity = Journal(generation="", boot=boot_id())

    async def open(self, home: str) -> None:
        """Read the generation; whatever still runs on paper was cut off with the supervisor before this one."""

        def work(db: sqlite3.Connection) -> str:
            row = db.execute("SELECT id FROM generation").fetchone()
            if row is None:
                row = (uuid.uuid4().hex,)
                db.execute("INSERT INTO generation VALUES (?)", row)
            for turn, began, part in db.execute("SELECT id, began, part FROM turns WHERE state = 'running'").fetchall():
                cut = Event(kind="done", outcome="interrupted", reason="cut", error=CUT, text=part, since=began)
                db.execute(
                    "UPDATE turns SET state = 'interrupted', ended = ?, answer = ? WHERE id = ?",
                    (time.time(), msgspec.json.encode(cut).decode(), turn),
                )
            db.execute("DELETE FROM turns WHERE ended < ?", (time.time() - KEPT,))
            db.execute("DELETE FROM notes WHERE told AND noted < ?", (time.time() - KEPT,))
            # Version 1 had no workspaces: its session was that of the home.
            db.execute("UPDATE OR IGNORE sessions SET workspace = ? WHERE workspace = ''", (home,))
            return str(row[0])

        self.identity.generation = await self.store.write(work)

    # ---- turns ----

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

    async def keep_part(self, turn: str, text: str) -> None:
        """Store the text so far of a running turn."""
        await self.store.write(
            lambda db: db.execute("UPDATE turns SET part = ? WHERE id = ? AND state = 'running'", (text, turn))
        )

    async def parts(self) -> dict[str, str]:
        """The texts of turns that were cut off, until `drop_part` tells that the history has them."""
        rows = await self.store.read(
            "SELECT id, part FROM turns WHERE state = 'interrupted' AND part != '' ORDER BY began"
        )
        return {row["id"]: row["part"] for row in rows}

    async def drop_part(self, turn: str) -> None:
        await self.store.write(lambda db: db.execute("UPDATE turns SET part = '' WHERE id = ?", (turn,)))

    async def end(self, turn: str, done: Event, session: Session | None, day: date, *, told: int = 0) -> None:
        """Store how a turn ended, where its session stands (None: it had none), the cost, and that the notes up to
        `told` were told, in one transaction."""

        def work(db: sqlite3.Connection) -> None:
            db.execute(
                "UPDATE turns SET state = ?, ended = ?, answer = ?, part = '' WHERE id = ?",
                (_ENDED[done.outcome], time.time(), msgspec.json.encode(done).decode(), turn),
            )
            if session:
                _store_session(db, session)
            _spend(db, day, done.cost_usd)
            if told:
                db.execute("UPDATE notes SET told = 1 WHERE id <= ?", (told,))

        await self.store.write(work)

    # ---- sessions ----

    async def session(self, workspace: str, name: str = "chat") -> Session:
        """The chat's or a job's session in this workspace; one without an id where there is none."""
        query = f"SELECT {_COLUMNS} FROM sessions WHERE name = ? AND workspace = ?"
        rows = await self.store.read(query, (name, workspace))
        return Session(**dict(rows[0])) if rows else Session(workspace, name=name)

    async def set_session(self, session: Session) -> None:
        await self.store.write(lambda db: _store_session(db, session))

    async def end_session(self, session: Session, day: date, cost_usd: float = 0.0) -> Session:
        """Put a fresh session in its place and forget what it allowed; `cost_usd` was spent on ending it."""
        fresh = Session(session.workspace, name=session.name, used=time.time())

        def work(db: sqlite3.Connection) -> None:
            _store_session(db, fresh)
            db.execute("DELETE FROM allowed WHERE name = ? AND workspace = ?", (session.name, session.workspace))
            if cost_usd:
                _spend(db, day, cost_usd, turns=0)

        await self.store.write(work)
        return fresh

    async def lose_session(self, session: Session) -> None:
        """The agent forgot it: a fresh one begins, but what was spent since /new stays spent."""
        session.id = ""

        def work(db: sqlite3.Connection) -> None:
            _store_session(db, session)
            db.execute("DELETE FROM allowed WHERE name = ? AND workspace = ?", (session.name, session.workspace))

        await self.store.write(work)

    async def forget(self, name: str) -> None:
        """Drop the sessions of this name, whatever their workspace."""

        def work(db: sqlite3.Connection) -> None:
            for table in ("sessions", "allowed"):
                db.execute(f"DELETE FROM {table} WHERE name = ?", (name,))

        await self.store.write(work)

    async def used_workspaces(self) -> dict[str, float]:
        """When each workspace was last used by the chat, in seconds since the epoch; the newest first."""
        rows = await self.store.read("SELECT workspace, used FROM sessions WHERE name = 'chat' ORDER BY used DESC")
        return {row["workspace"]: row["used"] for row in rows}

    async def allowed(self, session: Session) -> set[str]:
        """The patterns that the user allowed for this session."""
        query = "SELECT pattern FROM allowed WHERE name = ? AND workspace = ?"
        return {row["pattern"] for row in await self.store.read(query, (session.name, session.workspace))}

    async def allow(self, session: Session, patterns: list[str]) -> None:
        """Remember patterns; past MOST_ALLOWED of a session none is added."""
        if len(await self.allowed(session)) >= MOST_ALLOWED:
            return
        rows = [(session.name, session.workspace, pattern) for pattern in patterns]
        await self.store.write(lambda db: db.executemany("INSERT OR IGNORE INTO allowed VALUES (?, ?, ?)", rows))

    # ---- costs ----

    async def pay(self, session: Session, day: date, usd: float) -> None:
        """Store a cost that is no turn's; the session's sum has it already."""

        def work(db: sqlite3.Connection) -> None:
            _store_session(db, session)
            _spend(db, day, usd, turns=0)

        await self.store.write(work)

    async def cost(self, day: date) -> tuple[float, float]:
        """US dollars spent on this day and in its month."""
        rows = await self.store.read(
            "SELECT coalesce(sum(CASE WHEN day = ?1 THEN usd END), 0) AS today, coalesce(sum(usd), 0) AS month "
            "FROM costs WHERE day BETWEEN ?2 AND ?1",
            (day.isoformat(), day.replace(day=1).isoformat()),
        )
        return rows[0]["today"], rows[0]["month"]

    # ---- choices and facts ----

    async def choices(self) -> dict[tuple[str, str], str]:
        """What the user chose, by workspace ("" for all) and field."""
        rows = await self.store.read("SELECT workspace, field, value FROM choices")
        return {(row["workspace"], row["field"]): row["value"] for row in rows}

    async def choose(self, workspace: str, field: str, value: str) -> None:
        """Store a choice; "" takes it back, field "" all of this workspace."""

        def work(db: sqlite3.Connection) -> None:
            if value:
                db.execute("INSERT OR REPLACE INTO choices VALUES (?, ?, ?)", (workspace, field, value))
            else:
                db.execute("DELETE FROM choices WHERE workspace = ? AND ? IN (field, '')", (workspace, field))

        await self.store.write(work)

    async def fact(self, name: str) -> str:
        """A remembered text, "" when there is none."""
        rows = await self.store.read("SELECT value FROM facts WHERE name = ?", (name,))
        return str(rows[0]["value"]) if rows else ""

    async def set_fact(self, name: str, value: str) -> None:
        await self.store.write(lambda db: db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value)))


def _store_session(db: sqlite3.Connection, session: Session) -> None:
    values = msgspec.structs.astuple(session)
    db.execute(f"INSERT OR REPLACE INTO sessions ({_COLUMNS}) VALUES ({', '.join('?' * len(values))})", values)


def _spend(db: sqlite3.Connection, day: date, usd: float, turns: int = 1) -> None:
    db.execute(
        "INSERT INTO costs VALUES (?, ?, ?) ON CONFLICT (day) DO UPDATE SET turns = turns + excluded.turns, "
        "usd = usd + excluded.usd",
        (day.isoformat(), turns, usd),
    )


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
