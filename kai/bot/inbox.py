"""The inbox: what users sent, on disk before Telegram is told that it was received.

Every function here is one transaction. The order of a user's rows is their order of arrival.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

import msgspec

from kai.bot.message import Body, stop_button
from kai.bot.tables import (
    DEDUP_WINDOW,
    FINISHED,
    INBOX_COLUMNS,
    OUTBOX_COLUMNS,
    UNFINISHED,
    InboxRow,
    InboxState,
    Kind,
    OutboxRow,
    now,
)
from kai.interfaces import Journal
from kai.lib.store import Store


class Arrival(msgspec.Struct):
    """An admitted update before it is stored. `journal` is set where the turn may start at once."""

    update_id: int
    user: str
    chat: int
    message: int
    kind: Kind
    text: str
    callback: str = ""
    journal: Journal | None = None


class Inbox:
    """Rows of one bot; those of another token in the same file stay as they are."""

    def __init__(self, store: Store, bot: int) -> None:
        self.store, self.bot = store, bot

    async def offset(self) -> int:
        """The first update id that Telegram has not yet been told about."""
        rows = await self.store.read("SELECT next FROM offsets WHERE bot = ?", (self.bot,))
        return rows[0]["next"] if rows else 0

    async def receive(self, arrivals: Sequence[Arrival], next_offset: int) -> list[InboxRow]:
        """Store a batch of updates and the offset; returns the rows that are new.

        A turn whose user has nothing unfinished becomes running in the same transaction when its agent's journal is
        known (one fsync less on its way); its placeholder's outbox row then goes with it.
        """
        return await self.store.write(lambda db: self._receive(db, arrivals, next_offset))

    def _receive(self, db: sqlite3.Connection, arrivals: Sequence[Arrival], next_offset: int) -> list[InboxRow]:
        stored = []
        for arrival in arrivals:
            oldest = db.execute(
                "SELECT id FROM inbox WHERE bot = ? AND user = ? AND kind = 'turn' AND state IN ('queued', 'running') "
                "ORDER BY id LIMIT 1",
                (self.bot, arrival.user),
            ).fetchone()
            waiting = db.execute(
                "SELECT 1 FROM inbox WHERE bot = ? AND user = ? AND kind != 'control' "
                "AND state IN ('queued', 'running') LIMIT 1",
                (self.bot, arrival.user),
            ).fetchone()
            state: InboxState = "received" if arrival.kind == "control" else "queued"
            journal = arrival.journal
            if arrival.kind == "turn" and journal and not waiting:
                state = "running"
            cursor = db.execute(
                "INSERT OR IGNORE INTO inbox (bot, update_id, user, chat, message, kind, text, callback, target, "
                "state, generation, boot, changed) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    self.bot, arrival.update_id, arrival.user, arrival.chat, arrival.message, arrival.kind,
                    arrival.text, arrival.callback,
                    oldest["id"] if arrival.kind == "control" and oldest else None,
                    state,
                    journal.generation if journal and state == "running" else "",
                    journal.boot if journal and state == "running" else "",
                    now(),
                ),
            )  # fmt: skip
            if cursor.rowcount:
                assert cursor.lastrowid is not None
                row = _row(db, cursor.lastrowid)
                if row.state == "running":
                    add_placeholder(db, row)
                stored.append(row)
        db.execute("INSERT OR REPLACE INTO offsets VALUES (?, ?)", (self.bot, next_offset))
        return stored

    async def unfinished(self) -> list[InboxRow]:
        """What the bot has to take up again after a start, in order of arrival."""
        rows = await self.store.read(
            f"SELECT {INBOX_COLUMNS} FROM inbox WHERE bot = ? AND state IN {UNFINISHED} ORDER BY id", (self.bot,)
        )
        return [InboxRow(*row) for row in rows]

    async def run(self, row: InboxRow, journal: Journal) -> bool:
        """Mark a queued turn as running under this journal, with its placeholder's outbox row.

        False when it was dropped a moment before: then it must not run.
        """

        def work(db: sqlite3.Connection) -> bool:
            changed = db.execute(
                "UPDATE inbox SET state = 'running', generation = ?, boot = ?, changed = ? "
                "WHERE id = ? AND state = 'queued'",
                (journal.generation, journal.boot, now(), row.id),
            ).rowcount
            if changed:
                add_placeholder(db, row)
            return bool(changed)

        if not await self.store.write(work):
            return False
        row.state, row.generation, row.boot = "running", journal.generation, journal.boot
        return True

    async def begin(self, row: InboxRow) -> bool:
        """Mark a queued command as running; False when it was dropped a moment before."""
        begun = await self.store.write(
            lambda db: (
                db.execute(
                    "UPDATE inbox SET state = 'running', changed = ? WHERE id = ? AND state = 'queued'", (now(), row.id)
                ).rowcount
            )
        )
        if begun:
            row.state = "running"
        return bool(begun)

    async def placeholder(self, row: InboxRow, words: Body | None = None) -> OutboxRow:
        """Give a row that has no answer yet its placeholder's outbox row, to show what it waits for."""
        return await self.store.write(lambda db: add_placeholder(db, row, words))

    async def drop(self, rows: Sequence[InboxRow]) -> set[int]:
        """Drop what still waits; returns the ids of those that hadn't begun."""

        def work(db: sqlite3.Connection) -> set[int]:
            query = "UPDATE inbox SET state = 'dropped', changed = ? WHERE id = ? AND state = 'queued'"
            return {row.id for row in rows if db.execute(query, (now(), row.id)).rowcount}

        return await self.store.write(work)

    async def bury(self, users: set[str]) -> int:
        """What waits of users who are no longer in the configuration becomes dead letters; returns how many."""
        others = f"user NOT IN ({', '.join('?' * len(users))})"
        return await self.store.write(
            lambda db: (
                db.execute(
                    f"UPDATE inbox SET state = 'dead', changed = ? WHERE state IN {UNFINISHED} AND {others}",
                    (now(), *sorted(users)),
                ).rowcount
            )
        )

    async def prune(self) -> None:
        """Forget finished rows after the dedup window; dead letters are kept."""

        def work(db: sqlite3.Connection) -> None:
            old = now() - DEDUP_WINDOW
            db.execute(f"DELETE FROM inbox WHERE changed < ? AND state IN {FINISHED}", (old,))
            db.execute("DELETE FROM outbox WHERE changed < ? AND state = 'sent'", (old,))

        await self.store.write(work)


def _row(db: sqlite3.Connection, row_id: int) -> InboxRow:
    return InboxRow(*db.execute(f"SELECT {INBOX_COLUMNS} FROM inbox WHERE id = ?", (row_id,)).fetchone())


def add_placeholder(db: sqlite3.Connection, row: InboxRow, words: Body | None = None) -> OutboxRow:
    """The outbox row of a turn's first message precedes the message; the final text comes into it by edit."""
    body = words or Body("⏳", buttons=[stop_button(row.turn)])
    db.execute(
        "INSERT OR IGNORE INTO outbox (bot, caller, key, inbox, user, chat, kind, body, state, changed) "
        "VALUES (?, 'kai-bot', ?, ?, ?, ?, 'placeholder', ?, 'stored', ?)",
        (row.bot, f"{row.turn}/placeholder", row.id, row.user, row.chat, body.encode(), now()),
    )
    query = f"SELECT {OUTBOX_COLUMNS} FROM outbox WHERE inbox = ? AND kind = 'placeholder'"
    return OutboxRow(*db.execute(query, (row.id,)).fetchone())
