"""Sends what the outbox holds: per chat one after another, command answers first, growing text last.

Growing text is not in the outbox: only its newest state counts, and it yields to everything else. Telegram's flood
limits (`retry_after`) hold a chat up and cost no message. Messages have other limits than edits, and each goes on while
the other has to wait: a flood of messages must not hide that a turn was stopped.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Literal

from telegram.error import BadRequest, RetryAfter, TelegramError

from kai.bot.api import Api, seconds, verdict
from kai.bot.message import Body, decode
from kai.bot.outbox import Outbox
from kai.bot.tables import OutboxRow, OutboxState
from kai.lib import log
from kai.lib.client import delays
from kai.lib.store import StoreError

EDIT_PERIOD, LONGEST_PERIOD = 1.5, 12.0
"""Seconds between two edits of a growing message in one chat (S3), and what flood limits make of it at the most."""
BACK_OFF, RELAXATION, FORGIVEN = 3.0, 0.99, 60.0
"""By what the period is multiplied when Telegram asks to wait, and at each edit that it takes; after so many seconds
without an edit all is forgotten. So a long turn's edits come just below the limit, not at it, and there is room for
the one that matters: with 20 edits a minute the answer, or "stopped", has to wait in one case of a hundred."""
FAULT_PAUSE = 1.0
CLOSE_PATIENCE = 5.0
"""Seconds that a send gets to end when the bot is told to stop: cut off, nobody would know whether it arrived."""
_PRIORITY = {"control": 0, "placeholder": 1, "final": 1, "message": 1}
Way = Literal["send", "edit"]
logger = logging.getLogger(__name__)


class Sender:
    """All chats. `put` takes rows that are stored; `show` takes growing text."""

    def __init__(self, api: Api, outbox: Outbox) -> None:
        self.api, self.outbox = api, outbox
        self.chats: dict[int, Chat] = {}
        self.placeholders: dict[int, int] = {}
        self.tasks: set[asyncio.Task[None]] = set()
        self.closing = False

    def put(self, *rows: OutboxRow) -> None:
        for row in rows:
            self._chat(row.chat).put(row)

    def show(self, chat: int, inbox: int, growing: Callable[[], Body]) -> None:
        """A message has grown. What it shows is asked for when its turn to be edited comes, not at every word."""
        self._chat(chat).show(inbox, growing)

    def finished(self, chat: int, inbox: int) -> None:
        """No growing text of this turn may be shown from now on."""
        self._chat(chat).growing.pop(inbox, None)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something beside the sending; the reference keeps it alive."""
        task = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def _chat(self, chat: int) -> Chat:
        if chat not in self.chats:
            self.chats[chat] = Chat(self, chat)
        return self.chats[chat]

    async def placeholder(self, inbox: int) -> int | None:
        """Telegram's id of a turn's placeholder; None when it was not sent."""
        if inbox not in self.placeholders:
            row = await self.outbox.placeholder(inbox)
            if row is None or row.message is None:
                return None
            self.placeholders[inbox] = row.message
        return self.placeholders[inbox]

    async def close(self) -> None:
        """Stop. What is on its way may arrive and is noted; the rest goes out after the next start."""
        self.closing = True
        for chat in self.chats.values():
            chat.news.set()
        sending = [chat.task for chat in self.chats.values() if chat.task]
        if sending:
            await asyncio.wait(sending, timeout=CLOSE_PATIENCE)
        if self.tasks:
            await asyncio.wait(self.tasks, timeout=CLOSE_PATIENCE)
        for task in (*sending, *self.tasks):
            task.cancel()
        await asyncio.gather(*sending, *self.tasks, return_exceptions=True)


class Growing:
    """A message that grows: what it is to show, and whether that may have changed."""

    def __init__(self, body: Callable[[], Body]) -> None:
        self.body = body
        self.waits = True


class Chat:
    """One chat's sends, in order of priority and age. Its task lives for as long as there is something to do."""

    def __init__(self, sender: Sender, chat: int) -> None:
        self.sender, self.api, self.outbox, self.id = sender, sender.api, sender.outbox, chat
        self.rows: list[tuple[int, int, OutboxRow]] = []
        self.known: set[int] = set()
        self.bare: set[int] = set()
        """Rows whose entities Telegram refused: they go out as plain text."""
        self.growing: dict[int, Growing] = {}
        self.shown: dict[int, Body] = {}
        self.period, self.next_edit = EDIT_PERIOD, 0.0
        self.not_before: dict[Way, float] = {"send": 0.0, "edit": 0.0}
        self.waits = {way: delays() for way in self.not_before}
        self.news = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    def put(self, row: OutboxRow) -> None:
        """Queue a row; one that is queued or being sent already is left alone."""
        if row.id not in self.known:
            self.known.add(row.id)
            bisect.insort(self.rows, (_PRIORITY[row.kind], row.id, row))
            self._wake()

    def show(self, inbox: int, growing: Callable[[], Body]) -> None:
        self.growing.setdefault(inbox, Growing(growing)).waits = True
        self._wake()

    def _wake(self) -> None:
        self.news.set()
        if self.task is None:
            self.task = asyncio.ensure_future(self._work())

    async def _work(self) -> None:
        try:
            while (self.rows or self._grown()) and not self.sender.closing:
                self.news.clear()
                try:
                    await self._step()
                except Exception:  # whatever it is, it must not stop what comes after it
                    logger.exception("a message of this chat could not be sent now; it is tried again")
                    await asyncio.sleep(FAULT_PAUSE)
        finally:
            self.task = None

    async def _step(self) -> None:
        """Send the first row that may go now, else show what has grown, else wait until one of them may."""
        time = asyncio.get_running_loop().time()
        moments = []
        for entry in self.rows:
            row = entry[2]
            moments.append(self.not_before[self._way(row)])
            if moments[-1] <= time:
                with log.fields(KAI_USER=row.user):
                    if await self._send(row):
                        self.rows.remove(entry)
                        self._forget(row)
                return
        if self._grown():
            moments.append(max(self.next_edit, self.not_before["edit"]))
            if moments[-1] <= time:
                await self._show_one()
                return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.news.wait(), min(moments) - time)

    def _forget(self, row: OutboxRow) -> None:
        self.known.discard(row.id)
        self.bare.discard(row.id)
        if row.kind == "final" and row.inbox is not None:
            self.sender.placeholders.pop(row.inbox, None)
            self.shown.pop(row.inbox, None)

    def _way(self, row: OutboxRow) -> Way:
        """What a row needs of Telegram, as far as is known before it is tried."""
        edits = row.edits is not None or (row.kind == "final" and row.inbox in self.sender.placeholders)
        return "edit" if edits else "send"

    def _pause(self, way: Way, duration: float) -> None:
        self.not_before[way] = asyncio.get_running_loop().time() + duration

    # ---- growing text ----

    def _grown(self) -> bool:
        return any(growing.waits for growing in self.growing.values())

    async def _show_one(self) -> None:
        """One edit of growing text, unless it would change nothing."""
        inbox, growing = next(item for item in self.growing.items() if item[1].waits)
        growing.waits = False
        message = await self.sender.placeholder(inbox)
        if message is None or inbox not in self.growing:
            return
        body = growing.body()
        if body == self.shown.get(inbox):
            return
        time = asyncio.get_running_loop().time()
        if time - self.next_edit > FORGIVEN:
            self.period = EDIT_PERIOD
        self.next_edit = time + self.period
        try:
            await self.api.edit(self.id, message, body)
        except RetryAfter as error:
            growing.waits = True
            self._flooded("edit", error)
            self.period = min(BACK_OFF * self.period, LONGEST_PERIOD)
            self.next_edit = self.not_before["edit"] + self.period
        except TelegramError as error:
            logger.info("growing text not shown: %s", error)
        else:
            self.shown[inbox] = body
            self.period = max(EDIT_PERIOD, RELAXATION * self.period)

    # ---- rows ----

    async def _send(self, row: OutboxRow) -> bool:
        """Try a row once; True when it reached a final state. Else it waits, and what can go meanwhile goes."""
        body = decode(row.body)
        if row.id in self.bare:
            body = Body(body.text, [], body.buttons)
        try:
            message = await self._attempt(row, body)
        except RetryAfter as error:
            self._flooded(self._way(row), error)
            return False
        except TelegramError as error:
            return self._failed(row, body, error)
        except StoreError as error:
            self._later(row, error)
            return False
        self.waits[self._way(row)] = delays()
        if row.kind == "placeholder" and row.inbox is not None and message:
            self.sender.placeholders[row.inbox] = message
            self.shown[row.inbox] = body
        if row.kind == "control" and body.buttons:  # its edit may come next, and needs to know the message
            await self._mark(row, "sent", message=message)
        else:
            self.sender.spawn(self._mark(row, "sent", message=message))
        return True

    def _flooded(self, way: Way, error: RetryAfter) -> None:
        logger.warning("Telegram asks to wait %s s", seconds(error))
        self._pause(way, seconds(error))

    def _later(self, row: OutboxRow, error: Exception) -> None:
        logger.log(logging.ERROR if isinstance(error, StoreError) else logging.INFO, "not sent yet: %s", error)
        way = self._way(row)
        self._pause(way, next(self.waits[way]))

    def _failed(self, row: OutboxRow, body: Body, error: TelegramError) -> bool:
        """Whether this error is the end of the row."""
        outcome = verdict(error)
        if outcome == "refused" and isinstance(error, BadRequest) and body.entities and _of_entities(error):
            logger.warning("Telegram refused the entities: %s; sent as plain text", error)
            self.bare.add(row.id)
            return False
        if outcome == "refused":
            logger.error("Telegram refused a message: %s; it is kept as a dead letter", error)
            self.sender.spawn(self._mark(row, "dead", error=str(error)))
            return True
        if outcome == "unknown" and row.kind != "control" and row.state == "sending":
            logger.warning("a part of an answer may or may not have arrived: %s", error)
            self.sender.spawn(self._mark(row, "unknown", error=str(error)))
            return True
        self._later(row, error)
        return False

    async def _attempt(self, row: OutboxRow, body: Body) -> int | None:
        message = await self._edited(row)
        if message is not None:
            try:
                await self.api.edit(self.id, message, body)
            except BadRequest as error:
                if _of_entities(error):
                    raise
                logger.info("the message to be edited is gone: %s", error)
                if row.inbox is not None:
                    self.sender.placeholders.pop(row.inbox, None)
            else:
                return message
        if row.edits is not None:
            return message
        if row.kind != "placeholder" and row.state != "sending":
            await self.outbox.mark(row, "sending")
        return await self.api.send(self.id, body)

    async def _edited(self, row: OutboxRow) -> int | None:
        """The message that shows this row, where it is one that is there already."""
        if row.edits is not None:
            return await self.outbox.message(row.edits)
        return await self.sender.placeholder(row.inbox) if row.kind == "final" and row.inbox is not None else None

    async def _mark(self, row: OutboxRow, state: OutboxState, *, message: int | None = None, error: str = "") -> None:
        """Mostly stored beside the sending: the next message of the chat need not wait for the disk."""
        try:
            await self.outbox.mark(row, state, message=message, error=error)
        except StoreError as fault:
            logger.error("sent, but not noted as such: %s", fault)


def _of_entities(error: TelegramError) -> bool:
    return "entit" in error.message.lower()
