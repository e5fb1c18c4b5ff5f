"""The outbox: what is to reach a chat, on disk before it is sent.

A row is `stored`, then `sending`, then `sent`. The final text of a turn goes into its placeholder by an edit, and an
edit may be repeated. So may the answer to a command, and a question, which is decided once however often it is shown.
Other messages can't be repeated safely once Telegram may have
taken them: such a row found as `sending` after a crash becomes `unknown`, never sent again on its own.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Literal

from kai.bot.message import Body, decode
from kai.bot.question import OVER, settled
from kai.bot.tables import OUTBOX_COLUMNS, InboxRow, InboxState, OutboxRow, OutboxState, now
from kai.lib.store import Store

UNSENT = "('stored', 'sending')"


class Outbox:
    """Rows of one bot, of all its chats. Every function is one transaction."""

    def __init__(self, store: Store, bot: int) -> None:
        self.store, self.bot = store, bot

    async def recover(self) -> list[OutboxRow]:
        """Rows to send after a start, in order. What was on its way and can't be repeated becomes unknown.

        A turn that goes on sends its placeholder by itself.
        """

        def work(db: sqlite3.Connection) -> list[OutboxRow]:
            db.execute(
                "UPDATE outbox SET state = 'unknown', error = 'kai-bot ended while Telegram was answering', changed = ?"
                " WHERE bot = ? AND state = 'sending' AND kind != 'control'",
                (now(), self.bot),
            )
            db.execute(
                "UPDATE inbox SET state = 'delivered', changed = ? WHERE bot = ? AND state = 'answered' AND NOT EXISTS "
                "(SELECT 1 FROM outbox WHERE outbox.inbox = inbox.id AND outbox.kind != 'placeholder' "
                f"AND outbox.state IN {UNSENT})",
                (now(), self.bot),
            )
            rows = db.execute(
                f"SELECT {OUTBOX_COLUMNS} FROM outbox WHERE bot = ? AND state IN {UNSENT} AND kind != 'placeholder' "
                "ORDER BY id",
                (self.bot,),
            ).fetchall()
            return [OutboxRow(*row) for row in rows]

        return await self.store.write(work)

    async def answer(self, row: InboxRow, state: InboxState, messages: Sequence[Body]) -> list[OutboxRow]:
        """Store a turn's answer and, in the same transaction, the state that its inbox row reaches with it.

        The first message goes into the placeholder, the others follow it. Questions that are still open are closed.
        """

        def work(db: sqlite3.Connection) -> list[OutboxRow]:
            db.execute("UPDATE inbox SET state = ?, changed = ? WHERE id = ?", (state, now(), row.id))
            query = f"SELECT {OUTBOX_COLUMNS} FROM outbox WHERE inbox = ? AND key GLOB ?"
            asked = db.execute(query, (row.id, f"{row.turn}/approval/*")).fetchall()
            stored = [_decide(db, self.bot, OutboxRow(*one), OVER) for one in asked]
            for number, message in enumerate(messages):
                kind: Literal["final", "message"] = "message" if number else "final"
                key = f"{row.turn}/{number}"
                stored.append(_insert(db, self.bot, "kai-bot", key, row.id, row.user, row.chat, kind, message))
            return [one for one in stored if one is not None]

        return await self.store.write(work)

    async def reply(self, row: InboxRow, messages: Sequence[Body]) -> list[OutboxRow]:
        """Store the answer to a command, whose inbox row is done with it; its placeholder becomes the answer."""

        def work(db: sqlite3.Connection) -> list[OutboxRow]:
            db.execute("UPDATE inbox SET state = 'delivered', changed = ? WHERE id = ?", (now(), row.id))
            query = "SELECT 1 FROM outbox WHERE inbox = ? AND kind = 'placeholder'"
            shown = db.execute(query, (row.id,)).fetchone()
            stored = []
            for number, message in enumerate(messages):
                key = f"{row.turn}/reply/{number}" if number else f"{row.turn}/reply"
                kind: Literal["control", "final"] = "final" if shown and not number else "control"
                stored.append(_insert(db, self.bot, "kai-bot", key, row.id, row.user, row.chat, kind, message))
            return [one for one in stored if one is not None]

        return await self.store.write(work)

    async def ask(self, row: InboxRow, approval: str, question: Body) -> list[OutboxRow]:
        """Store a question of a running turn. The same one again stores nothing."""

        def work(db: sqlite3.Connection) -> OutboxRow | None:
            key = f"{row.turn}/approval/{approval}"
            return _insert(db, self.bot, "kai-bot", key, row.id, row.user, row.chat, "control", question)

        stored = await self.store.write(work)
        return [stored] if stored else []

    async def question(self, user: str, turn: str, approval: str) -> OutboxRow | None:
        """A question that was put to this user."""
        rows = await self.store.read(
            f"SELECT {OUTBOX_COLUMNS} FROM outbox WHERE caller = 'kai-bot' AND key = ? AND user = ?",
            (f"{turn}/approval/{approval}", user),
        )
        return OutboxRow(*rows[0]) if rows else None

    async def decide(self, asked: OutboxRow, decision: str) -> list[OutboxRow]:
        """Store how a question ended, to be shown in its message. Only the first decision counts."""
        stored = await self.store.write(lambda db: _decide(db, self.bot, asked, decision))
        return [stored] if stored else []

    async def decision(self, asked: OutboxRow) -> OutboxRow | None:
        """What was decided of a question, None while it is open."""
        query = f"SELECT {OUTBOX_COLUMNS} FROM outbox WHERE caller = 'kai-bot' AND key = ?"
        rows = await self.store.read(query, (f"decided/{asked.id}",))
        return OutboxRow(*rows[0]) if rows else None

    async def message(self, row_id: int) -> int | None:
        """Telegram's id of a row's message, None when it was not sent or that is not known."""
        rows = await self.store.read("SELECT message FROM outbox WHERE id = ?", (row_id,))
        return rows[0]["message"] if rows else None

    async def deliver(
        self, caller: str, key: str, user: str, chat: int, messages: Sequence[Body]
    ) -> tuple[int, list[OutboxRow]]:
        """Store what another unit sends. The same caller and key again store nothing and give the first row's id."""

        def work(db: sqlite3.Connection) -> tuple[int, list[OutboxRow]]:
            stored = []
            for number, message in enumerate(messages):
                one = _insert(db, self.bot, caller, f"{key}/{number}", None, user, chat, "message", message)
                if one is not None:
                    stored.append(one)
            (first,) = db.execute("SELECT id FROM outbox WHERE caller = ? AND key = ?", (caller, f"{key}/0")).fetchone()
            return first, stored

        return await self.store.write(work)

    async def mark(self, row: OutboxRow, state: OutboxState, *, message: int | None = None, error: str = "") -> None:
        """Move a row on. When the last row of an answered turn is sent, its inbox row is delivered."""

        def work(db: sqlite3.Connection) -> None:
            db.execute(
                "UPDATE outbox SET state = ?, message = coalesce(?, message), error = ?, changed = ? WHERE id = ?",
                (state, message, error, now(), row.id),
            )
            if state in ("sent", "unknown", "dead") and row.inbox is not None:
                db.execute(
                    "UPDATE inbox SET state = 'delivered', changed = ? WHERE id = ? AND state = 'answered' AND NOT "
                    f"EXISTS (SELECT 1 FROM outbox WHERE inbox = ? AND state IN {UNSENT} AND kind != 'placeholder')",
                    (now(), row.inbox, row.inbox),
                )

        await self.store.write(work)
        row.state, row.message = state, message or row.message

    async def placeholder(self, inbox: int) -> OutboxRow | None:
        """The placeholder of a turn, sent or not."""
        rows = await self.store.read(
            f"SELECT {OUTBOX_COLUMNS} FROM outbox WHERE inbox = ? AND kind = 'placeholder'", (inbox,)
        )
        return OutboxRow(*rows[0]) if rows else None

    async def counts(self) -> dict[str, int]:
        query = "SELECT state, count(*) AS n FROM outbox WHERE bot = ? GROUP BY state"
        rows = await self.store.read(query, (self.bot,))
        return {row["state"]: row["n"] for row in rows}


def _insert(
    db: sqlite3.Connection,
    bot: int,
    caller: str,
    key: str,
    inbox: int | None,
    user: str,
    chat: int,
    kind: Literal["control", "final", "message"],
    message: Body,
    edits: int | None = None,
) -> OutboxRow | None:
    cursor = db.execute(
        "INSERT OR IGNORE INTO outbox (bot, caller, key, inbox, user, chat, kind, body, state, changed, edits) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'stored', ?, ?)",
        (bot, caller, key, inbox, user, chat, kind, message.encode(), now(), edits),
    )
    if not cursor.rowcount:
        return None
    assert cursor.lastrowid is not None
    return OutboxRow(cursor.lastrowid, inbox, user, chat, kind, message.encode(), "stored", None, edits)


def _decide(db: sqlite3.Connection, bot: int, asked: OutboxRow, decision: str) -> OutboxRow | None:
    key, body = f"decided/{asked.id}", settled(decode(asked.body), decision)
    return _insert(db, bot, "kai-bot", key, asked.inbox, asked.user, asked.chat, "control", body, asked.id)
