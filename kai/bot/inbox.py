"""The inbox: what users sent, on disk before Telegram is told that it was received.

Every function here is one transaction. The order of a user's rows is their order of arrival.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence

import msgspec

from kai.bot import cut
from kai.bot.content import keys
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
    others_than,
)
from kai.bot.text import length
from kai.interfaces import MOST_FILES, Journal
from kai.lib.store import Store

SETTLE = 1.0
"""Seconds after one part of a bundle for which the next is waited for: Telegram sends them within a few tenths."""
RESTART = 2.0
"""The same after a start of the bot: what Telegram hands out first may be the rest of a bundle."""
LONG = 4000
"""UTF-16 code units from which on a text may be a part of one that an app cut at 4096."""
MOST_TOGETHER = MOST_FILES - 2
TOO_LATE = "The agent has this message already as it was before your edit. Send a new one."
NOT_TAKEN = "This message was given up or not taken before your edit. Send a new one."
LOCKED = "🔒 Locked: send your code first."
CODE = "code"
"""The bundle of a row that was a code: its text was never stored."""
NOT_EDITED = "A command is not given again by editing it: send it anew."


class Arrival(msgspec.Struct):
    """An admitted update before it is stored. `journal` is set where the turn may start at once.

    `bundle` says what others it may form one turn with, `refused` why it can't be taken, for the user. `locked` is what
    the gate holds back (`kai.bot.gate`).
    """

    update_id: int
    user: str
    chat: int
    message: int
    kind: Kind
    text: str
    callback: str = ""
    journal: Journal | None = None
    thread: int | None = None
    content: str = ""
    bundle: str = ""
    refused: str = ""
    locked: bool = False


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
        stored: list[InboxRow] = []
        for number, arrival in enumerate(arrivals):
            known = "SELECT 1 FROM inbox WHERE bot = ? AND update_id = ?"
            if db.execute(known, (self.bot, arrival.update_id)).fetchone():
                continue
            if arrival.kind == "edit":
                row = self._edit(db, arrival, {one.id for one in stored})
            elif arrival.callback and not arrival.locked and (turn := cut.parse(arrival.text)):
                row = self._decide(db, arrival, turn)
            else:
                row = self._take(db, arrival, arrivals[number + 1 :])
            if row is not None:
                stored.append(row)
        db.execute("INSERT OR REPLACE INTO offsets VALUES (?, ?)", (self.bot, next_offset))
        return stored

    def _take(self, db: sqlite3.Connection, arrival: Arrival, behind: Sequence[Arrival]) -> InboxRow:
        """A message, a command or a button."""
        if arrival.locked and not arrival.refused:
            return self._hold(db, arrival, behind)
        if arrival.kind == "control" or arrival.refused:
            oldest = db.execute(
                f"SELECT id {_OPEN} AND kind = 'turn' AND state IN ('queued', 'running') "
                "ORDER BY state = 'queued', changed, id LIMIT 1",
                (self.bot, arrival.user),
            ).fetchone()
            return self._insert(db, arrival, "received", target=oldest["id"] if oldest else None)
        if arrival.kind == "turn" and (part := self._part(db, arrival, behind)):
            return part
        at_once = arrival.kind == "turn" and not arrival.bundle and self._is_free(db, arrival)
        settles = now() + SETTLE if arrival.bundle else 0.0
        return self._insert(db, arrival, "running" if at_once else "queued", settles=settles)

    def _part(self, db: sqlite3.Connection, arrival: Arrival, behind: Sequence[Arrival]) -> InboxRow | None:
        """The row of a message that is a part of what another one leads, where there is such a one."""
        after = next((each for each in behind if each.user == arrival.user), None)
        if not arrival.bundle and after and after.bundle == "forward":
            arrival.bundle = "forward"  # a comment comes just before what it is about
        leader = self._leader(db, arrival)
        if leader is None:
            return None
        settles = now() + (0 if leader.bundle == "long" and length(arrival.text) < LONG else SETTLE)
        db.execute("UPDATE inbox SET settles = ? WHERE id = ?", (settles, leader.id))
        return self._insert(db, arrival, "grouped", leader=leader.id, settles=settles)

    def _hold(self, db: sqlite3.Connection, arrival: Arrival, behind: Sequence[Arrival]) -> InboxRow:
        """What came before a code: one message is held with all its parts, another one is not taken."""
        if arrival.kind == "turn" and (part := self._part(db, arrival, behind)):
            return part
        if db.execute(f"SELECT 1 {_HELD} AND user = ?", (self.bot, arrival.user)).fetchone():
            arrival.text = arrival.content = ""
            arrival.refused = LOCKED
            return self._insert(db, arrival, "refused")
        return self._insert(db, arrival, "held", settles=now() + SETTLE if arrival.bundle else 0.0)

    def _is_free(self, db: sqlite3.Connection, arrival: Arrival) -> bool:
        """Whether its turn may run at once: its agent's journal is known, and nothing of its user's is before it."""
        before = db.execute(
            f"SELECT 1 {_OPEN} AND kind != 'control' AND state IN ('queued', 'running') LIMIT 1",
            (self.bot, arrival.user),
        ).fetchone()
        return arrival.journal is not None and before is None

    def _leader(self, db: sqlite3.Connection, arrival: Arrival) -> InboxRow | None:
        """The row that leads the bundle which this one belongs to, as long as its turn has not begun."""
        album = arrival.bundle.startswith("album:")
        # A command in between ends a bundle: what comes after a /stop or a /new is not a part of what came before it.
        other = "AND bundle = ?" if album else "OR kind IN ('command', 'control') AND callback = '' AND error = ''"
        last = db.execute(
            f"{_OF_USER} AND (kind = 'turn' AND state NOT IN ('received', 'refused') {other}) ORDER BY id DESC LIMIT 1",
            (self.bot, arrival.user, arrival.chat, *([arrival.bundle] if album else [])),
        ).fetchone()
        if last is None:
            return None
        last_row = InboxRow(*last)
        if last_row.kind != "turn":
            return None
        leader = _row(db, last_row.leader) if last_row.leader else last_row
        if leader.state != ("held" if arrival.locked else "queued"):
            return None  # what came before a code and what came behind it are never one
        (parts,) = db.execute("SELECT count(*) FROM inbox WHERE leader = ?", (leader.id,)).fetchone()
        if parts >= MOST_TOGETHER:
            return None
        if album and leader.state != "held":  # however late: an album is one thing
            return leader
        if leader.settles < now():
            return None
        if album:
            return leader
        if leader.bundle == "long":
            plain = arrival.bundle in ("", "long") and not arrival.content
            return leader if plain and length(last_row.text) >= LONG else None
        return leader if arrival.bundle and arrival.bundle == leader.bundle else None

    def _edit(self, db: sqlite3.Connection, arrival: Arrival, fresh: set[int]) -> InboxRow | None:
        """Of a message that waits, the text is replaced; of one that the agent has, that can't be done any more.

        `fresh` rows came with the same batch: what runs of them has not been handed on yet.
        """
        found = db.execute(
            f"{_OF_USER} AND message = ? AND kind != 'edit' AND callback = '' ORDER BY id DESC LIMIT 1",
            (self.bot, arrival.user, arrival.chat, arrival.message),
        ).fetchone()
        if found is None:
            return None
        row = InboxRow(*found)
        if _as_seen(db, row) == (arrival.text, keys(arrival.content)):
            return None  # a preview was added, or it was told of already
        leader = _row(db, row.leader) if row.leader else row
        if row.kind != "turn":
            arrival.refused = NOT_EDITED
        elif not arrival.refused and leader.state != "queued" and leader.id not in fresh:
            arrival.refused = TOO_LATE if leader.state not in _NOT_TAKEN else NOT_TAKEN
        if arrival.refused:
            return self._insert(db, arrival, "received", target=row.id)
        db.execute("UPDATE inbox SET text = ?, content = ? WHERE id = ?", (arrival.text, arrival.content, row.id))
        return self._insert(db, arrival, "replaced", target=row.id)

    def _decide(self, db: sqlite3.Connection, arrival: Arrival, turn: str) -> InboxRow:
        """Continue or Drop of an interrupted turn: the first press decides, any other is only answered."""
        bot, _, update_id = turn.partition(".")
        found = db.execute(
            f"SELECT {INBOX_COLUMNS} FROM inbox WHERE bot = ? AND update_id = ? AND user = ? AND chat = ? "
            "AND state = 'interrupted'",
            (int(bot), int(update_id), arrival.user, arrival.chat),
        ).fetchone()
        if found is None or int(bot) != self.bot:
            arrival.kind = "control"
            return self._insert(db, arrival, "received")
        row = InboxRow(*found)
        goes_on = arrival.text.startswith(cut.CONTINUE)
        state = "continued" if goes_on else "dropped"
        db.execute("UPDATE inbox SET state = ?, changed = ? WHERE id = ?", (state, now(), row.id))
        arrival.kind = "turn" if goes_on else "control"
        if not goes_on:
            return self._insert(db, arrival, "received", target=row.id)
        arrival.thread = row.thread
        return self._insert(db, arrival, "running" if self._is_free(db, arrival) else "queued", target=row.id)

    def _insert(
        self,
        db: sqlite3.Connection,
        arrival: Arrival,
        state: InboxState,
        *,
        target: int | None = None,
        leader: int | None = None,
        settles: float = 0.0,
    ) -> InboxRow:
        journal = arrival.journal if state == "running" else None
        values = {
            "bot": self.bot, "update_id": arrival.update_id, "user": arrival.user, "chat": arrival.chat,
            "message": arrival.message, "kind": arrival.kind, "text": arrival.text, "callback": arrival.callback,
            "target": target, "state": state, "generation": journal.generation if journal else "",
            "boot": journal.boot if journal else "", "changed": now(), "arrived": now(), "thread": arrival.thread,
            "content": arrival.content, "bundle": arrival.bundle, "settles": settles, "leader": leader,
            "error": arrival.refused,
        }  # fmt: skip
        cursor = db.execute(
            f"INSERT INTO inbox ({', '.join(values)}) VALUES ({', '.join('?' * len(values))})", tuple(values.values())
        )
        assert cursor.lastrowid is not None
        row = _row(db, cursor.lastrowid)
        if journal and journal.streaming == "edit":
            add_placeholder(db, row)
        return row

    async def find(self, row_id: int) -> InboxRow | None:
        """A row by its number."""
        rows = await self.store.read(f"SELECT {INBOX_COLUMNS} FROM inbox WHERE id = ?", (row_id,))
        return InboxRow(*rows[0]) if rows else None

    async def arrived(self, row: InboxRow) -> float:
        """When a row was stored, in seconds since the epoch."""
        (found,) = await self.store.read("SELECT arrived FROM inbox WHERE id = ?", (row.id,))
        return float(found["arrived"])

    async def held(self) -> list[InboxRow]:
        """What waits for a code."""
        return [InboxRow(*row) for row in await self.store.read(f"SELECT {INBOX_COLUMNS} {_HELD}", (self.bot,))]

    async def codes(self, since: float) -> list[InboxRow]:
        """The messages that were codes and have been judged since a moment, in seconds since the epoch."""
        query = (
            f"SELECT {INBOX_COLUMNS} FROM inbox WHERE bot = ? AND bundle = '{CODE}' AND state != 'received' "
            "AND changed > ?"
        )
        return [InboxRow(*row) for row in await self.store.read(query, (self.bot, since))]

    async def settling(self, row: InboxRow) -> float:
        """Seconds for which a part of this bundle may still come."""
        rows = await self.store.read("SELECT settles FROM inbox WHERE id = ?", (row.id,))
        return float(rows[0]["settles"]) - now() if rows else 0.0

    async def settle(self, row: InboxRow) -> list[InboxRow]:
        """Close a bundle that is held; returns its parts beside this one, in order of arrival."""
        if not row.bundle:
            return []

        def work(db: sqlite3.Connection) -> list[InboxRow]:
            db.execute("UPDATE inbox SET settles = 0 WHERE id = ? AND state = 'held'", (row.id,))
            return [InboxRow(*each) for each in db.execute(_MEMBERS, (row.id,))]

        return await self.store.write(work)

    async def release(self, user: str, chat: int, since: float) -> InboxRow | None:
        """A code came: what was held of this account waits like any other message now. None when nothing is held that
        came since a moment, in seconds since the epoch.
        """

        def work(db: sqlite3.Connection) -> InboxRow | None:
            found = db.execute(
                f"SELECT id {_HELD} AND user = ? AND chat = ? AND arrived >= ?", (self.bot, user, chat, since)
            ).fetchone()
            if found is None:
                return None
            db.execute(
                "UPDATE inbox SET state = iif(kind = 'control', 'received', 'queued'), changed = ?, "
                "settles = iif(bundle = '', 0, ?) WHERE id = ?",
                (now(), now() + SETTLE, found["id"]),
            )
            return _row(db, found["id"])

        return await self.store.write(work)

    async def members(self, row: InboxRow) -> list[InboxRow]:
        """The rows that are part of this row's turn, in order of arrival."""
        if not row.bundle:
            return []
        return [InboxRow(*each) for each in await self.store.read(_MEMBERS, (row.id,))]

    async def unfinished(self) -> list[InboxRow]:
        """What the bot has to take up again after a start, in order of arrival. Bundles wait for their rest anew."""

        def work(db: sqlite3.Connection) -> list[InboxRow]:
            again = "UPDATE inbox SET settles = ? WHERE bot = ? AND state = 'queued' AND bundle != ''"
            db.execute(again, (now() + RESTART, self.bot))
            query = f"SELECT {INBOX_COLUMNS} FROM inbox WHERE bot = ? AND state IN {UNFINISHED} ORDER BY id"
            return [InboxRow(*row) for row in db.execute(query, (self.bot,))]

        return await self.store.write(work)

    async def foreign(self) -> int:
        """How many rows wait for the token of another bot."""
        query = f"SELECT count(*) AS n FROM inbox WHERE state IN {UNFINISHED} AND bot != ?"
        return int((await self.store.read(query, (self.bot,)))[0]["n"])

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
            if changed and journal.streaming == "edit":
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

    async def dropped_for(self, row: InboxRow) -> set[int]:
        """What was dropped of this user since `row`, a /stop, arrived, and had come before it."""
        rows = await self.store.read(
            "SELECT id FROM inbox INDEXED BY inbox_of_user WHERE user = ?1 AND id < ?2 AND bot = ?3 "
            "AND state = 'dropped' AND changed >= (SELECT arrived FROM inbox WHERE id = ?2)",
            (row.user, row.id, self.bot),
        )
        return {one["id"] for one in rows}

    async def bury(self, users: Mapping[str, int]) -> int:
        """What waits of users who are no longer in the configuration becomes dead letters; returns how many.

        `users` gives the Telegram account of each name: one that has another account now is another person. What was
        answered stays so: its answer is the outbox's to bury.
        """
        others, values = others_than(users.items())

        def work(db: sqlite3.Connection) -> int:
            # Not a dead letter: that could be worked on again without a code.
            held = "UPDATE inbox SET state = 'expired', changed = ?, error = 'its user is gone' WHERE state = 'held'"
            db.execute(f"{held} AND {others}", (now(), *values))
            return db.execute(
                "UPDATE inbox SET state = 'dead', changed = ?, error = 'its user is gone' "
                f"WHERE state IN {UNFINISHED} AND state != 'answered' AND {others}",
                (now(), *values),
            ).rowcount

        return await self.store.write(work)

    async def prune(self) -> None:
        """Forget finished rows after the dedup window; dead letters are kept."""

        def work(db: sqlite3.Connection) -> None:
            old = now() - DEDUP_WINDOW
            db.execute(
                f"DELETE FROM inbox WHERE changed < ? AND state IN {FINISHED} AND NOT EXISTS (SELECT 1 FROM inbox AS "
                f"leading WHERE leading.id = inbox.leader AND leading.state NOT IN {FINISHED})",
                (old,),
            )
            db.execute("DELETE FROM outbox WHERE changed < ? AND state IN ('sent', 'dropped')", (old,))

        await self.store.write(work)


# Without these indexes each message would cost a look at all rows; SQLite doesn't find the partial one by itself.
_OPEN = f"FROM inbox INDEXED BY inbox_unfinished WHERE state IN {UNFINISHED} AND bot = ? AND user = ?"
_HELD = "FROM inbox INDEXED BY inbox_held WHERE state = 'held' AND bot = ?"
_NOT_TAKEN = ("received", "refused", "dropped", "dead", "held", "expired")
_OF_USER = f"SELECT {INBOX_COLUMNS} FROM inbox INDEXED BY inbox_of_user WHERE bot = ? AND user = ? AND chat = ?"
_MEMBERS = f"SELECT {INBOX_COLUMNS} FROM inbox WHERE leader = ? ORDER BY id"


def _row(db: sqlite3.Connection, row_id: int) -> InboxRow:
    return InboxRow(*db.execute(f"SELECT {INBOX_COLUMNS} FROM inbox WHERE id = ?", (row_id,)).fetchone())


def _as_seen(db: sqlite3.Connection, row: InboxRow) -> tuple[str, list[str]]:
    """A message as its newest update had it, which an edit that was refused had too."""
    newest = db.execute(
        "SELECT text, content FROM inbox WHERE kind = 'edit' AND target = ? ORDER BY id DESC LIMIT 1", (row.id,)
    ).fetchone()
    text, content = newest or (row.text, row.content)
    return text, keys(content)


def add_placeholder(db: sqlite3.Connection, row: InboxRow, words: Body | None = None) -> OutboxRow:
    """The outbox row of a turn's first message precedes the message; the final text comes into it by edit."""
    body = words or Body("⏳", buttons=[stop_button(row.turn)])
    db.execute(
        "INSERT OR IGNORE INTO outbox (bot, caller, key, inbox, user, chat, kind, body, state, changed, arrived, "
        "thread) VALUES (?, 'kai-bot', ?, ?, ?, ?, 'placeholder', ?, 'stored', ?, ?, ?)",
        (row.bot, f"{row.turn}/placeholder", row.id, row.user, row.chat, body.encode(), now(), now(), row.thread),
    )
    query = f"SELECT {OUTBOX_COLUMNS} FROM outbox WHERE inbox = ? AND kind = 'placeholder'"
    return OutboxRow(*db.execute(query, (row.id,)).fetchone())
