"""What the intake remembers: the ids of deliveries that are done with, and what users chose to hear of.

An id is remembered longer than GitHub repeats a delivery, so that a repeated one is told from a new one, restarts or
not. What a user chose goes by his Telegram account: a name that somebody else takes over brings nothing with it.
"""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import msgspec

from kai.lib.store import Store

REMEMBERED = 30 * 86400
"""Seconds."""
MOST_REPOSITORIES = 200
"""Repositories that a user may add."""
_SCHEMA = """\
CREATE TABLE seen (
    id TEXT PRIMARY KEY,                -- X-GitHub-Delivery
    endpoint TEXT NOT NULL,
    event TEXT NOT NULL,
    received REAL NOT NULL              -- seconds since the epoch
) WITHOUT ROWID;
CREATE INDEX seen_received ON seen (received);
CREATE TABLE choices (
    account INTEGER PRIMARY KEY,        -- the user's Telegram id
    chat INTEGER NOT NULL DEFAULT 0,    -- where his notices go, 0 for his own chat
    reviews INTEGER,                    -- NULL: what the configuration says
    triage INTEGER
);
CREATE TABLE repositories (
    account INTEGER NOT NULL,
    name TEXT NOT NULL,                 -- owner/name, in small letters
    PRIMARY KEY (account, name)
) WITHOUT ROWID
"""


class Choices(msgspec.Struct):
    """What one user chose. `chat` 0 is his own; None is what the configuration says."""

    chat: int = 0
    reviews: bool | None = None
    triage: bool | None = None
    repositories: frozenset[str] = frozenset()


class TooMany(Exception):
    """A user wants more repositories than he may have."""


class Seen(msgspec.Struct):
    """The delivery that was done with last."""

    event: str = ""
    received: float = 0.0


class Records:
    """The tables, on disk and in memory. Raises StoreError."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.choices: dict[int, Choices] = {}
        self.seen: set[str] = set()

    async def open(self) -> None:
        """Read all of it into memory, without the ids that nobody will repeat."""
        oldest = time.time() - REMEMBERED

        def work(db: sqlite3.Connection) -> tuple[dict[int, Choices], set[str]]:
            db.execute("DELETE FROM seen WHERE received < ?", (oldest,))
            return _read(db), {delivery for (delivery,) in db.execute("SELECT id FROM seen")}

        self.choices, self.seen = await self.store.write(work)

    def of(self, account: int) -> Choices:
        return self.choices.get(account, Choices())

    async def done(self, delivery: str, endpoint: str, event: str, received: float) -> None:
        """Remember it; on disk when this returns."""
        query = "INSERT OR IGNORE INTO seen (id, endpoint, event, received) VALUES (?, ?, ?, ?)"
        await self.store.write(lambda db: db.execute(query, (delivery, endpoint, event, received)))
        self.seen.add(delivery)

    async def last(self) -> Seen:
        rows = await self.store.read("SELECT event, received FROM seen ORDER BY received DESC LIMIT 1")
        return Seen(rows[0]["event"], rows[0]["received"]) if rows else Seen()

    async def choose(
        self,
        account: int,
        *,
        add: str = "",
        remove: str = "",
        chat: int | None = None,
        reviews: bool | None = None,
        triage: bool | None = None,
    ) -> None:
        """What is None or "" stays as it is. Raises TooMany."""

        def work(db: sqlite3.Connection) -> dict[int, Choices]:
            db.execute("INSERT OR IGNORE INTO choices (account) VALUES (?)", (account,))
            for column, value in (("chat", chat), ("reviews", reviews), ("triage", triage)):
                if value is not None:
                    db.execute(f"UPDATE choices SET {column} = ? WHERE account = ?", (value, account))
            if remove:
                db.execute("DELETE FROM repositories WHERE account = ? AND name = ?", (account, remove))
            if add:
                db.execute("INSERT OR IGNORE INTO repositories (account, name) VALUES (?, ?)", (account, add))
                (count,) = db.execute("SELECT count(*) FROM repositories WHERE account = ?", (account,)).fetchone()
                if count > MOST_REPOSITORIES:
                    raise TooMany
            return _read(db)

        self.choices = await self.store.write(work)


def open_store(directory: Path) -> Store:
    """Raises StoreError."""
    return Store(directory / "intake.db", _SCHEMA)


def _read(db: sqlite3.Connection) -> dict[int, Choices]:
    found = {
        row["account"]: Choices(
            row["chat"],
            None if row["reviews"] is None else bool(row["reviews"]),
            None if row["triage"] is None else bool(row["triage"]),
        )
        for row in db.execute("SELECT * FROM choices")
    }
    for account, name in db.execute("SELECT account, name FROM repositories").fetchall():
        choices = found.setdefault(account, Choices())
        choices.repositories = choices.repositories | {name}
    return found
