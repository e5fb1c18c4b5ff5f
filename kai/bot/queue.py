"""What the operator sees of inbox and outbox, and what he may decide: kai queue (kai-queue(5))."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from typing import Any

from kai.bot import cut
from kai.bot.inbox import Inbox
from kai.bot.lanes import Lanes
from kai.bot.message import decode
from kai.bot.outbox import Outbox
from kai.bot.sender import Sender
from kai.bot.tables import INBOX_COLUMNS, UNFINISHED, UNSENT, InboxRow, now
from kai.config import Config
from kai.interfaces import Details, Drop, Entries, Entry, Queue, Retry, Show
from kai.lib.peers import Peer
from kai.lib.server import Handlers
from kai.lib.varlink import InvalidParameter

MOST = 1000
"""Entries of one answer, the newest ones; an answer of Varlink's has a limit in bytes."""
LONGEST_TEXT = 100
LONGEST_WHOLE = 100_000
_ID = re.compile(r"([io])([0-9]{1,18})")
_INBOX = """\
SELECT 'i' || inbox.id AS id, inbox.user, inbox.state, inbox.kind, inbox.changed, inbox.bot, inbox.error,
       substr(inbox.text, 1, :longest) AS text, inbox.content != '' AS more, NULL AS file, inbox.arrived,
       coalesce(leader.bot || '.' || leader.update_id, inbox.bot || '.' || inbox.update_id) AS turn
FROM inbox LEFT JOIN inbox AS leader ON leader.id = inbox.leader"""
_OUTBOX = """\
SELECT 'o' || outbox.id AS id, outbox.user, outbox.state, outbox.kind, outbox.changed, outbox.bot, outbox.error,
       substr(coalesce(iif(:whole, json_extract(outbox.body, '$.file.text'), NULL),
                       json_extract(outbox.body, '$.text')), 1, :longest) AS text, 0 AS more,
       json_extract(outbox.body, '$.file.name') AS file, outbox.arrived,
       coalesce(inbox.bot || '.' || inbox.update_id, '') AS turn
FROM outbox LEFT JOIN inbox ON inbox.id = outbox.inbox"""
_OPEN_INBOX = f"(inbox.state IN {UNFINISHED} OR inbox.state IN ('held', 'dead'))"
_OPEN_OUTBOX = f"(outbox.state IN {UNSENT} OR outbox.state IN ('unknown', 'dead')) AND outbox.kind != 'placeholder'"


class QueueDesk:
    """kai.Bot's methods for the operator. What is decided of a row goes the same way as if a user had decided it."""

    def __init__(
        self, config: Callable[[], Config], inbox: Inbox, outbox: Outbox, lanes: Lanes, sender: Sender
    ) -> None:
        self.config, self.inbox, self.outbox, self.lanes, self.sender = config, inbox, outbox, lanes, sender
        self.store = outbox.store

    def handlers(self) -> Handlers:
        return {Queue: self.queue, Show: self.show, Retry: self.retry, Drop: self.drop}

    # ---- looking ----

    async def queue(self, peer: Peer, call: Queue) -> Entries:
        """The rows of both places in order of arrival, those of other bots too."""
        incoming, outgoing = ("1", "1") if call.everything else (_OPEN_INBOX, _OPEN_OUTBOX)
        which = ":user = '' OR user = :user"
        rows = f"SELECT * FROM ({_INBOX} WHERE {incoming} UNION ALL {_OUTBOX} WHERE {outgoing}) WHERE {which}"
        values = {"user": call.user, "longest": LONGEST_TEXT, "whole": False, "most": MOST}

        def work(db: sqlite3.Connection) -> Entries:
            found = db.execute(f"{rows} ORDER BY arrived DESC, id DESC LIMIT :most", values).fetchall()
            (count,) = db.execute(f"SELECT count(*) FROM ({rows})", values).fetchone()
            return Entries([_entry(row, LONGEST_TEXT) for row in reversed(found)], count - len(found))

        return await self.store.write(work)

    async def show(self, peer: Peer, call: Show) -> Details:
        """A row, the rows of its turn, and what was sent for it."""
        place, number = _parse(call.id)
        return await self.store.write(lambda db: _details(db, place, number))

    async def _chat(self, place: str, number: int) -> int:
        table = "inbox" if place == "i" else "outbox"
        return int((await self.store.read(f"SELECT chat FROM {table} WHERE id = ?", (number,)))[0]["chat"])

    async def _look(self, place: str, number: int) -> Entry:
        return (await self.store.write(lambda db: _details(db, place, number))).entry

    # ---- deciding ----

    async def retry(self, peer: Peer, call: Retry) -> Entry:
        """A dead letter is worked on or sent again; of a row in doubt, the operator decides as its user could."""
        place, number = _parse(call.id)
        entry = await self._look(place, number)
        if entry.bot != self.outbox.bot:
            raise InvalidParameter(f"id: {call.id} is of bot {entry.bot}, whose token isn't in use: put it back first")
        user = self.config().user(entry.user)
        if user is None:
            raise InvalidParameter(f"id: {call.id} is of {entry.user}, who is no user any more: add him first")
        if await self._chat(place, number) != user.telegram_id:
            raise InvalidParameter(
                f"id: {call.id} is for an account of Telegram that isn't {entry.user}'s any more: only drop is possible"
            )
        if place == "o":
            await self._send_again(number, entry)
        else:
            await self._work_again(number, entry)
        return await self._look(place, number)

    async def _send_again(self, number: int, entry: Entry) -> None:
        stored = await self.outbox.again(number)
        if not stored:
            raise InvalidParameter(f"id: {entry.id} is {entry.state}: only what is dead or unknown is sent again")
        self.sender.put(*stored)

    async def _work_again(self, number: int, entry: Entry) -> None:
        row = await self.store.write(lambda db: _revive(db, number))
        if row is None:
            raise InvalidParameter(
                f"id: {entry.id} is a {entry.kind}, {entry.state}: only a dead turn or command is worked on again"
            )
        self.lanes.of(row.user).put(row, rejoin=row.state == "running")

    async def drop(self, peer: Peer, call: Drop) -> Entry:
        """Give up a row; its file goes with it."""
        place, number = _parse(call.id)
        entry = await self._look(place, number)
        given_up = await (self._give_up_sending(number) if place == "o" else self._give_up_work(number, entry))
        if not given_up:
            raise InvalidParameter(f"id: {entry.id} is {entry.state}: it can't be given up; a running turn is stopped")
        return await self._look(place, number)

    async def _give_up_sending(self, number: int) -> bool:
        row = await self.outbox.row(number)
        if row is None or self.sender.is_sending(row):
            return False
        withdrawn = self.sender.withdraw(row)
        stored = None
        try:
            stored = await self.outbox.drop(number)
        finally:
            if stored is None and withdrawn:
                self.sender.put(withdrawn)
        if stored is None:
            return False
        self.sender.put(*stored)
        self.sender.forget_file(row)
        return True

    async def _give_up_work(self, number: int, entry: Entry) -> bool:
        waiting = self.lanes.of(entry.user).find(row_id=number) if entry.bot == self.outbox.bot else None
        if entry.state == "queued" and waiting:
            return bool(await self.lanes.drop(entry.user, row=waiting))
        others = ", 'queued'" if entry.bot != self.outbox.bot else ""
        states = f"'dead', 'interrupted', 'held'{others}"
        query = f"UPDATE inbox SET state = 'dropped', changed = ? WHERE id = ? AND state IN ({states})"
        if not await self.store.write(lambda db: db.execute(query, (now(), number)).rowcount):
            return False
        asked = await self.outbox.last(entry.user, entry.turn) if entry.state == "interrupted" else None
        if asked and decode(asked.body).buttons:
            self.sender.put(*await self.outbox.decide(asked, cut.DROPPED))
        return True


def _parse(text: str) -> tuple[str, int]:
    found = _ID.fullmatch(text)
    if found is None:
        raise InvalidParameter(f"id: {text[:40]!r} is none: expected i or o and a number, as kai queue lists them")
    return found[1], int(found[2])


def _entry(row: Any, longest: int = LONGEST_WHOLE) -> Entry:
    return Entry(
        id=row["id"],
        user=row["user"],
        state=row["state"],
        kind=row["kind"],
        when=row["changed"],
        turn=row["turn"],
        text=_text(row)[:LONGEST_WHOLE],
        error=row["error"][:longest],
        bot=row["bot"],
    )


def _text(row: Any) -> str:
    text = str(row["text"] or ("(no text)" if row["more"] else ""))
    return f"📎 {row['file']} {text}".rstrip() if row["file"] else text


def _details(db: sqlite3.Connection, place: str, number: int) -> Details:
    """Raises InvalidParameter where there is no such row."""
    longest = {"longest": LONGEST_WHOLE, "whole": True, "number": number}
    table, columns = ("inbox", _INBOX) if place == "i" else ("outbox", _OUTBOX)
    found = db.execute(f"{columns} WHERE {table}.id = :number", longest).fetchone()
    if found is None:
        raise InvalidParameter(f"id: there is no row {place}{number}; kai queue lists them")
    column = "coalesce(leader, id)" if place == "i" else "inbox"
    (turn,) = db.execute(f"SELECT {column} FROM {table} WHERE id = ?", (number,)).fetchone()
    values = {"longest": LONGEST_TEXT, "whole": False, "turn": turn, "self": found["id"], "most": MOST}
    related = db.execute(
        f"SELECT * FROM ({_INBOX} WHERE inbox.id = :turn OR inbox.leader = :turn "
        f"UNION ALL {_OUTBOX} WHERE outbox.inbox = :turn) WHERE id != :self ORDER BY arrived, id LIMIT :most",
        values,
    ).fetchall()
    return Details(_entry(found), [_entry(row, LONGEST_TEXT) for row in related])


def _revive(db: sqlite3.Connection, number: int) -> InboxRow | None:
    """A dead letter waits again; one that may have begun is only joined, so that it doesn't run twice."""
    changed = db.execute(
        "UPDATE inbox SET state = iif(generation = '', 'queued', 'running'), error = '', changed = ? "
        "WHERE id = ? AND state = 'dead' AND kind IN ('turn', 'command')",
        (now(), number),
    ).rowcount
    if not changed:
        return None
    return InboxRow(*db.execute(f"SELECT {INBOX_COLUMNS} FROM inbox WHERE id = ?", (number,)).fetchone())
