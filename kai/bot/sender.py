"""Sends what the outbox holds: per chat one after another, command answers first, growing text last.

Growing text is not in the outbox: only its newest state counts, and it yields to everything else. Telegram's flood
limits (`retry_after`) hold a chat up and cost no message.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from telegram.error import BadRequest, RetryAfter, TelegramError

from kai.bot.api import Api, seconds, verdict
from kai.bot.message import Body, decode
from kai.bot.outbox import Outbox
from kai.bot.tables import OutboxRow
from kai.lib import log
from kai.lib.client import delays
from kai.lib.store import StoreError

EDIT_PERIOD = 1.5
"""Seconds between two edits of a growing message in one chat (S3)."""
FAULT_PAUSE = 1.0
CLOSE_PATIENCE = 5.0
"""Seconds that a send gets to end when the bot is told to stop: cut off, nobody would know whether it arrived."""
_PRIORITY = {"control": 0, "placeholder": 1, "final": 1, "message": 1}
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
        sending = [chat.task for chat in self.chats.values() if chat.task]
        if sending:
            await asyncio.wait(sending, timeout=CLOSE_PATIENCE)
        if self.tasks:
            await asyncio.wait(self.tasks, timeout=CLOSE_PATIENCE)
        for task in (*sending, *self.tasks):
            task.cancel()
        await asyncio.gather(*sending, *self.tasks, return_exceptions=True)


class Chat:
    """One chat's sends, in order of priority and age. Its task lives for as long as there is something to do."""

    def __init__(self, sender: Sender, chat: int) -> None:
        self.sender, self.api, self.outbox, self.id = sender, sender.api, sender.outbox, chat
        self.rows: list[tuple[int, int, OutboxRow]] = []
        self.known: set[int] = set()
        self.growing: dict[int, Callable[[], Body]] = {}
        self.next_edit = 0.0
        self.news = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    def put(self, row: OutboxRow) -> None:
        """Queue a row; one that is queued or being sent already is left alone."""
        if row.id not in self.known:
            self.known.add(row.id)
            heapq.heappush(self.rows, (_PRIORITY[row.kind], row.id, row))
            self._wake()

    def show(self, inbox: int, growing: Callable[[], Body]) -> None:
        self.growing[inbox] = growing
        self._wake()

    def _wake(self) -> None:
        self.news.set()
        if self.task is None:
            self.task = asyncio.ensure_future(self._work())

    async def _work(self) -> None:
        try:
            while (self.rows or self.growing) and not self.sender.closing:
                self.news.clear()
                try:
                    if self.rows:
                        row = self.rows[0][2]
                        with log.fields(KAI_USER=row.user):
                            await self._send(row)
                        self.rows = [one for one in self.rows if one[2] is not row]
                        heapq.heapify(self.rows)
                        self.known.discard(row.id)
                    else:
                        await self._show_one()
                except Exception:  # whatever it is, it must not stop what comes after it
                    logger.exception("a message of this chat could not be sent now; it is tried again")
                    await asyncio.sleep(FAULT_PAUSE)
        finally:
            self.task = None

    async def _show_one(self) -> None:
        """One edit of growing text when its time has come, unless something more important comes first."""
        loop = asyncio.get_running_loop()
        wait = self.next_edit - loop.time()
        if wait > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.news.wait(), wait)
            if self.rows or self.next_edit > loop.time():
                return
        inbox = next(iter(self.growing))
        message = await self.sender.placeholder(inbox)
        growing = self.growing.pop(inbox, None)
        if message is None or growing is None:
            return
        self.next_edit = loop.time() + EDIT_PERIOD
        try:
            await self.api.edit(self.id, message, growing())
        except RetryAfter as error:
            self.next_edit = loop.time() + seconds(error)
        except TelegramError as error:
            logger.info("growing text not shown: %s", error)

    async def _send(self, row: OutboxRow) -> None:
        """See one row through to a final state, however long Telegram is away."""
        body = decode(row.body)
        for delay in delays():
            if self.sender.closing:
                return
            try:
                message = await self._attempt(row, body)
                if row.kind == "placeholder" and row.inbox is not None and message:
                    self.sender.placeholders[row.inbox] = message
                if row.kind == "final" and row.inbox is not None:
                    self.sender.placeholders.pop(row.inbox, None)
                self._mark(row, "sent", message=message)
                return
            except RetryAfter as error:
                logger.warning("Telegram asks to wait %s s", seconds(error))
                await asyncio.sleep(seconds(error))
            except TelegramError as error:
                outcome = verdict(error)
                if outcome == "refused":
                    if isinstance(error, BadRequest) and body.entities and "entit" in error.message.lower():
                        logger.warning("Telegram refused the entities: %s; sent as plain text", error)
                        body = Body(body.text, [], body.buttons)
                        continue
                    logger.error("Telegram refused a message: %s; it is kept as a dead letter", error)
                    self._mark(row, "dead", error=str(error))
                    return
                if outcome == "unknown" and row.kind != "control" and row.state == "sending":
                    logger.warning("a part of an answer may or may not have arrived: %s", error)
                    self._mark(row, "unknown", error=str(error))
                    return
                logger.info("not sent yet: %s", error)
                await asyncio.sleep(delay)
            except StoreError as error:
                logger.error("not sent yet: %s", error)
                await asyncio.sleep(delay)

    async def _attempt(self, row: OutboxRow, body: Body) -> int | None:
        if row.kind == "final" and row.inbox is not None:
            message = await self.sender.placeholder(row.inbox)
            if message is not None:
                try:
                    await self.api.edit(self.id, message, body)
                    return message
                except BadRequest as error:
                    if "entit" in error.message.lower():
                        raise
                    logger.info("the growing message is gone (%s); the answer goes out as a new one", error)
        if row.kind != "placeholder" and row.state != "sending":
            await self.outbox.mark(row, "sending")
        return await self.api.send(self.id, body)

    def _mark(self, row: OutboxRow, state: Any, *, message: int | None = None, error: str = "") -> None:
        """Stored beside the sending: the next message of the chat need not wait for the disk."""

        async def store() -> None:
            try:
                await self.outbox.mark(row, state, message=message, error=error)
            except StoreError as fault:
                logger.error("sent, but not noted as such: %s", fault)

        self.sender.spawn(store())
