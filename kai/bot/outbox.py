"""The outbox: what is to reach a chat, on disk before it is sent.

kai-queue(5) lists the states of a row. The final text of a turn goes into its placeholder by an edit, and an edit may
be repeated. So may the answer to a command, and a question, which is decided once however often it is shown. Other
messages can't be repeated safely once Telegram may have taken them: such a row becomes `unknown`, its user is asked
with a button, and only a person's hand makes it `stored` again.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

from kai.bot import notices
from kai.bot.message import Body, decode
from kai.bot.notices import Notice
from kai.bot.question import OVER, settled
from kai.bot.tables import OUTBOX_COLUMNS, UNSENT, InboxRow, InboxState, OutboxRow, OutboxState, now, others_than
from kai.lib.store import Store

NewKind = Literal["control", "final", "message"]
ENDED = ("sent", "unknown", "dead", "dropped")


class Outbox:
    """Rows of one bot, of all its chats. Every function is one transaction."""

    def __init__(self, store: Store, bot: int) -> None:
        self.store, self.bot = store, bot

    async def recover(self) -> list[OutboxRow]:
        """Rows to send after a start, in order. What was on its way and can't be repeated becomes unknown.

        A turn that goes on sends its placeholder by itself. A chat that had closed itself and from which something has
        come since is open.
        """

        def work(db: sqlite3.Connection) -> list[OutboxRow]:
            doubtful = f"bot = ? AND state IN {UNSENT} AND state = 'sending' AND kind NOT IN ('control', 'placeholder')"
            for row in _rows(db, doubtful, self.bot):
                _set(db, row.id, "unknown", error="kai-bot ended while Telegram was answering")
                _note(db, self.bot, row, notices.may_be_missing(row))
            db.execute(
                "UPDATE inbox SET state = 'delivered', changed = ? WHERE bot = ? AND state = 'answered' AND NOT EXISTS "
                "(SELECT 1 FROM outbox WHERE outbox.inbox = inbox.id AND outbox.kind != 'placeholder' "
                f"AND outbox.state IN {UNSENT})",
                (now(), self.bot),
            )
            db.execute(
                f"UPDATE outbox SET state = 'dropped', changed = ? WHERE bot = ? AND state IN {UNSENT} AND kind = "
                "'placeholder' AND NOT EXISTS (SELECT 1 FROM inbox WHERE inbox.id = outbox.inbox "
                "AND inbox.state IN ('queued', 'running'))",
                (now(), self.bot),
            )
            db.execute(
                "DELETE FROM blocked WHERE bot = ? AND EXISTS (SELECT 1 FROM inbox WHERE inbox.bot = blocked.bot "
                "AND inbox.chat = blocked.chat AND inbox.arrived > blocked.since)",
                (self.bot,),
            )
            return _rows(db, f"bot = ? AND state IN {UNSENT} AND kind != 'placeholder'", self.bot)

        return await self.store.write(work)

    async def answer(
        self, row: InboxRow, state: InboxState, messages: Sequence[Body], *, afresh: Body | None = None
    ) -> list[OutboxRow]:
        """Store a turn's answer and, in the same transaction, the state that its inbox row reaches with it.

        The first message goes into the placeholder, the others follow it. With `afresh`, all are new messages, and
        that is what the placeholder becomes. Where there is no placeholder, all are new messages anyhow. Questions
        that are still open are closed.
        """

        def work(db: sqlite3.Connection) -> list[OutboxRow]:
            alive = "UPDATE inbox SET state = ?, changed = ? WHERE id = ? AND state != 'dead'"
            if not db.execute(alive, (state, now(), row.id)).rowcount:
                return []  # its user is gone; the journal keeps the answer for kai queue retry
            asked = _rows(db, "inbox = ? AND key GLOB ?", row.id, f"{row.turn}/approval/*")
            stored = [_decide(db, self.bot, one, OVER) for one in asked]
            placeholder = _rows(db, "inbox = ? AND kind = 'placeholder'", row.id)
            grown = bool(placeholder) and afresh is None
            for number, message in enumerate(messages):
                kind: NewKind = "message" if number or not grown else "final"
                stored.append(_answer(db, self.bot, f"{row.turn}/{number}", row, kind, message))
            if placeholder and afresh is not None:
                stored.append(
                    _answer(db, self.bot, f"{row.turn}/summary", row, "message", afresh, edits=placeholder[0].id)
                )
            return [one for one in stored if one is not None]

        return await self.store.write(work)

    async def reply(self, row: InboxRow, messages: Sequence[Body]) -> list[OutboxRow]:
        """Store the answer to a command, whose inbox row is done with it; its placeholder becomes the answer."""

        def work(db: sqlite3.Connection) -> list[OutboxRow]:
            state: InboxState = "refused" if row.error else "delivered"
            done = "UPDATE inbox SET state = ?, changed = ?, error = ? WHERE id = ?"
            db.execute(done, (state, now(), row.error, row.id))
            query = "SELECT 1 FROM outbox WHERE inbox = ? AND kind = 'placeholder'"
            shown = db.execute(query, (row.id,)).fetchone()
            stored = []
            for number, message in enumerate(messages):
                key = f"{row.turn}/reply/{number}" if number else f"{row.turn}/reply"
                kind: NewKind = "final" if shown and not number else "control"
                stored.append(_answer(db, self.bot, key, row, kind, message))
            return [one for one in stored if one is not None]

        return await self.store.write(work)

    async def note(self, row: InboxRow, name: str, message: Body) -> list[OutboxRow]:
        """Store a message about a row, which stays as it is. The same one again stores nothing."""
        stored = await self.store.write(lambda db: _answer(db, self.bot, f"{row.turn}/{name}", row, "control", message))
        return [stored] if stored else []

    async def expire(self, row: InboxRow, message: Body) -> list[OutboxRow]:
        """No code came for what was held; nothing is stored when it isn't held any more."""

        def work(db: sqlite3.Connection) -> list[OutboxRow]:
            given_up = "UPDATE inbox SET state = 'expired', changed = ? WHERE id = ? AND state = 'held'"
            if not db.execute(given_up, (now(), row.id)).rowcount:
                return []
            stored = _answer(db, self.bot, f"{row.turn}/expired", row, "control", message)
            return [stored] if stored else []

        return await self.store.write(work)

    async def ask(self, row: InboxRow, approval: str, question: Body) -> list[OutboxRow]:
        """Store a question of a running turn. The same one again stores nothing."""

        def work(db: sqlite3.Connection) -> OutboxRow | None:
            return _answer(db, self.bot, f"{row.turn}/approval/{approval}", row, "control", question)

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

        def work(db: sqlite3.Connection) -> list[OutboxRow]:
            (bot,) = db.execute("SELECT bot FROM outbox WHERE id = ?", (asked.id,)).fetchone()
            stored = _decide(db, bot, asked, decision)
            return [stored] if stored and bot == self.bot else []

        return await self.store.write(work)

    async def decision(self, asked: OutboxRow) -> OutboxRow | None:
        """What was decided of a question, None while it is open."""
        query = f"SELECT {OUTBOX_COLUMNS} FROM outbox WHERE caller = 'kai-bot' AND key = ?"
        rows = await self.store.read(query, (f"decided/{asked.id}",))
        return OutboxRow(*rows[0]) if rows else None

    async def last(self, user: str, turn: str) -> OutboxRow | None:
        """The last message of the answer to a turn of this user's: its buttons are there."""
        query = (
            f"SELECT {OUTBOX_COLUMNS} FROM outbox WHERE caller = 'kai-bot' AND key GLOB ? AND user = ? "
            "ORDER BY id DESC LIMIT 1"
        )
        rows = await self.store.read(query, (f"{turn}/[0-9]*", user))
        return OutboxRow(*rows[0]) if rows else None

    async def shown(self, user: str, message: int) -> OutboxRow | None:
        """The row that a message of this user's chat was sent for; None where that isn't known or is forgotten."""
        query = (
            f"SELECT {OUTBOX_COLUMNS} FROM outbox WHERE bot = ? AND user = ? AND message = ? AND edits IS NULL "
            "ORDER BY id DESC LIMIT 1"
        )
        rows = await self.store.read(query, (self.bot, user, message))
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
                one = _insert(db, self.bot, caller, f"{key}/{number}", user, chat, "message", message)
                if one is not None:
                    stored.append(one)
            (first,) = db.execute("SELECT id FROM outbox WHERE caller = ? AND key = ?", (caller, f"{key}/0")).fetchone()
            return first, stored

        return await self.store.write(work)

    async def mark(
        self, row: OutboxRow, state: OutboxState, *, message: int | None = None, error: str = ""
    ) -> list[OutboxRow]:
        """Move a row on; returns what its user is to be told of that.

        When the last row of an answered turn is sent, or ends in another way, its inbox row is delivered.
        """

        def work(db: sqlite3.Connection) -> list[OutboxRow]:
            if state == "stored" and not _rows(db, "id = ? AND state = 'sending'", row.id):
                return []  # it was given up meanwhile
            _set(db, row.id, state, message=message, error=error)
            if state in ENDED:
                _delivered(db, row)
            note = None
            if state == "unknown":
                note = _note(db, self.bot, row, notices.may_be_missing(row))
            elif state == "dead" and _is_told(row):
                words = notices.is_refused(row, error)
                note = _insert(db, self.bot, "kai-bot", f"dead/{row.id}", row.user, row.chat, "control", words)
            return [note] if note else []

        told = await self.store.write(work)
        row.state, row.message = state, message or row.message
        return told

    async def again(self, row_id: int, press: InboxRow | None = None) -> list[OutboxRow]:
        """Have sent once more what may not have arrived: `stored`, for the one caller who is first.

        A user may do that with his own rows by the `press` of a button, which is done with in the same transaction:
        worked on once more after a crash, it would send once more. Without one, the operator asks, and it may be a
        dead letter too. Returns the row and the edit of the message that asked; nothing where it was decided before.
        """
        states = "('unknown')" if press else "('unknown', 'dead')"

        def work(db: sqlite3.Connection) -> list[OutboxRow]:
            found = _rows(db, f"id = ? AND bot = ? AND state IN {states}", row_id, self.bot)
            if not found or (press and (found[0].user, found[0].chat) != (press.user, press.chat)):
                return []
            row = found[0]
            if press:
                done = "UPDATE inbox SET state = 'delivered', changed = ? WHERE id = ? AND state = 'received'"
                if not db.execute(done, (now(), press.id)).rowcount:
                    return []
            _set(db, row.id, "stored")
            row.state = "stored"
            return [row, *_settle(db, self.bot, row, notices.SENT_AGAIN)]

        return await self.store.write(work)

    async def drop(self, row_id: int) -> list[OutboxRow] | None:
        """Give up what waits, is dead or may not have arrived, of whichever bot; None for any other state.

        Returns the edit of the message that asked, where there is one.
        """

        def work(db: sqlite3.Connection) -> list[OutboxRow] | None:
            found = _rows(db, "id = ? AND state IN ('stored', 'unknown', 'dead')", row_id)
            if not found:
                return None
            _set(db, row_id, "dropped", error="given up by the operator")
            _delivered(db, found[0])
            (bot,) = db.execute("SELECT bot FROM outbox WHERE id = ?", (row_id,)).fetchone()
            stored = _settle(db, bot, found[0], notices.GIVEN_UP)
            return stored if bot == self.bot else []  # the edit waits for that bot's token, as its message does

        return await self.store.write(work)

    async def bury(self, users: Mapping[str, int], chats: Iterable[tuple[str, int]] = ()) -> list[OutboxRow]:
        """What is unsent of users who are no longer in the configuration becomes dead letters.

        `users` gives the Telegram account of each name: what is for another account is another person's. `chats` are
        users with other chats that their notices may go to.
        """
        others, values = others_than({*users.items(), *chats})

        def work(db: sqlite3.Connection) -> list[OutboxRow]:
            rows = _rows(db, f"state IN {UNSENT} AND {others}", *values)
            for row in rows:
                _set(db, row.id, "dead", error="its user is gone")
                _delivered(db, row)
            return rows

        return await self.store.write(work)

    async def row(self, row_id: int) -> OutboxRow | None:
        found = await self.store.write(lambda db: _rows(db, "id = ?", row_id))
        return found[0] if found else None

    async def asking(self, user: str, row_id: int) -> tuple[OutboxRow | None, OutboxRow | None]:
        """The message that asked this user whether to send a row again, and its newest state."""
        found = [one for one in await self.store.write(lambda db: _notes(db, row_id)) if one.user == user]
        return (found[0], found[-1]) if found else (None, None)

    async def tell(self, told: Sequence[Notice]) -> list[OutboxRow]:
        """Store notices to admins; those that were stored before are not stored again."""
        return await self.store.write(lambda db: _tell(db, self.bot, told))

    async def block(
        self, row: OutboxRow | None, chat: int, told: Callable[[float], Sequence[Notice]]
    ) -> list[OutboxRow]:
        """A chat takes nothing any more: remember that, keep the `row` that was tried, and tell of it once."""

        def work(db: sqlite3.Connection) -> list[OutboxRow]:
            if row is not None and row.state == "sending":
                _set(db, row.id, "stored")
            since = now()
            new = db.execute("INSERT OR IGNORE INTO blocked VALUES (?, ?, ?)", (self.bot, chat, since)).rowcount
            return _tell(db, self.bot, told(since)) if new else []

        stored = await self.store.write(work)
        if row is not None and row.state == "sending":
            row.state = "stored"
        return stored

    async def unblock(self, chat: int) -> None:
        query = "DELETE FROM blocked WHERE bot = ? AND chat = ?"
        await self.store.write(lambda db: db.execute(query, (self.bot, chat)))

    async def blocked(self) -> set[int]:
        """The chats that take nothing at present."""
        return {row["chat"] for row in await self.store.read("SELECT chat FROM blocked WHERE bot = ?", (self.bot,))}

    async def spooled(self) -> set[str]:
        """The files in the spool that rows need, those of other bots too."""
        rows = await self.store.read(
            "SELECT json_extract(body, '$.file.spool') AS name FROM outbox WHERE state NOT IN ('sent', 'dropped') "
            "AND name IS NOT NULL"
        )
        return {row["name"] for row in rows}

    async def of_others(self) -> int:
        """How many rows wait for the token of another bot."""
        query = f"SELECT count(*) AS n FROM outbox WHERE state IN {UNSENT} AND bot != ? AND kind != 'placeholder'"
        return int((await self.store.read(query, (self.bot,)))[0]["n"])

    async def placeholder(self, inbox: int) -> OutboxRow | None:
        """The placeholder of a turn, sent or not."""
        rows = await self.store.read(
            f"SELECT {OUTBOX_COLUMNS} FROM outbox WHERE inbox = ? AND kind = 'placeholder'", (inbox,)
        )
        return OutboxRow(*rows[0]) if rows else None

    async def counts(self) -> dict[str, int]:
        query = "SELECT state, count(*) AS n FROM outbox WHERE bot = ? AND kind != 'placeholder' GROUP BY state"
        rows = await self.store.read(query, (self.bot,))
        return {row["state"]: row["n"] for row in rows}


def _rows(db: sqlite3.Connection, where: str, *parameters: object) -> list[OutboxRow]:
    rows = db.execute(f"SELECT {OUTBOX_COLUMNS} FROM outbox WHERE {where} ORDER BY id", parameters).fetchall()
    return [OutboxRow(*row) for row in rows]


def _insert(
    db: sqlite3.Connection,
    bot: int,
    caller: str,
    key: str,
    user: str,
    chat: int,
    kind: NewKind,
    message: Body,
    *,
    inbox: int | None = None,
    edits: int | None = None,
    thread: int | None = None,
) -> OutboxRow | None:
    body, time = message.encode(), now()
    cursor = db.execute(
        "INSERT OR IGNORE INTO outbox (bot, caller, key, inbox, user, chat, kind, body, state, changed, edits, thread, "
        "arrived) VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'stored', ?, ?, ?, ?)",
        (bot, caller, key, inbox, user, chat, kind, body, time, edits, thread, time),
    )
    if not cursor.rowcount:
        return None
    assert cursor.lastrowid is not None
    return OutboxRow(cursor.lastrowid, inbox, user, chat, kind, body, "stored", None, edits, thread)


def _answer(
    db: sqlite3.Connection, bot: int, key: str, row: InboxRow, kind: NewKind, message: Body, *, edits: int | None = None
) -> OutboxRow | None:
    """A message that belongs to an inbox row, in its topic."""
    return _insert(
        db, bot, "kai-bot", key, row.user, row.chat, kind, message, inbox=row.id, edits=edits, thread=row.thread
    )


def _decide(db: sqlite3.Connection, bot: int, asked: OutboxRow, decision: str) -> OutboxRow | None:
    return _edit(db, bot, f"decided/{asked.id}", asked, settled(decode(asked.body), decision), inbox=asked.inbox)


def _edit(
    db: sqlite3.Connection, bot: int, key: str, shown: OutboxRow, body: Body, *, inbox: int | None = None
) -> OutboxRow | None:
    """A new state of a message that is there."""
    return _insert(
        db, bot, "kai-bot", key, shown.user, shown.chat, "control", body, inbox=inbox, edits=shown.id,
        thread=shown.thread,
    )  # fmt: skip


def _notes(db: sqlite3.Connection, row_id: int) -> list[OutboxRow]:
    """The message that asks whether a row is to be sent again, and behind it its later states."""
    key = f"unknown/{row_id}"
    return _rows(db, "caller = 'kai-bot' AND (key = ? OR key GLOB ?)", key, f"{key}/*")


def _note(db: sqlite3.Connection, bot: int, row: OutboxRow, words: Body) -> OutboxRow | None:
    """Ask about a row, in the one message that there ever is of it."""
    notes = _notes(db, row.id)
    if notes:
        return _edit(db, bot, f"unknown/{row.id}/{len(notes)}", notes[0], words)
    return _insert(db, bot, "kai-bot", f"unknown/{row.id}", row.user, row.chat, "control", words, thread=row.thread)


def _is_told(row: OutboxRow) -> bool:
    """Whether a user misses this row: a notice to him, or what grows until the answer comes, he doesn't."""
    return row.edits is None and (row.kind in ("final", "message") or (row.kind == "control" and row.inbox is not None))


def _settle(db: sqlite3.Connection, bot: int, row: OutboxRow, words: str) -> list[OutboxRow]:
    note = _note(db, bot, row, notices.settled(row, words)) if _notes(db, row.id) else None
    return [note] if note else []


def _tell(db: sqlite3.Connection, bot: int, told: Sequence[Notice]) -> list[OutboxRow]:
    made = [_insert(db, bot, "kai-bot", one.key, one.user, one.chat, "control", one.body) for one in told]
    return [one for one in made if one is not None]


def _set(
    db: sqlite3.Connection, row_id: int, state: OutboxState, *, message: int | None = None, error: str = ""
) -> None:
    db.execute(
        "UPDATE outbox SET state = ?, message = coalesce(?, message), error = ?, changed = ? WHERE id = ?",
        (state, message, error, now(), row_id),
    )


def _delivered(db: sqlite3.Connection, row: OutboxRow) -> None:
    if row.inbox is not None:
        db.execute(
            "UPDATE inbox SET state = 'delivered', changed = ? WHERE id = ? AND state = 'answered' AND NOT "
            f"EXISTS (SELECT 1 FROM outbox WHERE inbox = ? AND state IN {UNSENT} AND kind != 'placeholder')",
            (now(), row.inbox, row.inbox),
        )
