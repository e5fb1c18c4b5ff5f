"""Sends what the outbox holds: each chat by itself, command answers first, growing text last (see `kai.bot.chat`).

A chat that Telegram has closed to the bot, because its user blocked it, keeps its rows until something comes from it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from telegram.error import TelegramError

from kai.bot.api import Api
from kai.bot.chat import Chat, Mode
from kai.bot.message import Body, decode
from kai.bot.notices import Notice
from kai.bot.outbox import Outbox
from kai.bot.spool import Spool
from kai.bot.tables import OutboxRow, OutboxState
from kai.lib.sparing import Sparing
from kai.lib.store import StoreError

CLOSE_PATIENCE = 5.0
"""Seconds that a send gets to end when the bot is told to stop: cut off, nobody would know whether it arrived."""
logger = logging.getLogger(__name__)
Told = Callable[[int, float, str], Sequence[Notice]]


def _nobody(chat: int, since: float, reason: str) -> Sequence[Notice]:
    return ()


class Sender:
    """All chats. `put` takes rows that are stored; `show` takes growing text.

    `told` gives what admins are told of a chat that is closed since a time, for a reason.
    """

    def __init__(self, api: Api, outbox: Outbox, *, spool: Spool | None = None, told: Told = _nobody) -> None:
        self.api, self.outbox, self.spool, self.told = api, outbox, spool, told
        self.chats: dict[int, Chat] = {}
        self.placeholders: dict[int, int] = {}
        self.tasks: set[asyncio.Task[None]] = set()
        self.sparing = Sparing(logger)
        self.closing = False
        self.held: list[OutboxRow] | None = None

    def hold(self) -> None:
        """Send nothing before `open`."""
        self.held = []

    async def open(self) -> None:
        """Learn which chats are closed, and begin. After Outbox.recover, which mustn't meet what is being sent."""
        self.api.gates.closed |= await self.outbox.blocked()
        held, self.held = self.held or [], None
        self.put(*held)

    def put(self, *rows: OutboxRow) -> None:
        if self.held is not None:
            self.held += rows
            return
        for row in rows:
            self._chat(row.chat).put(row)

    def show(
        self, chat: int, inbox: int, growing: Callable[[], Body], mode: Mode = "edit", *, thread: int | None = None
    ) -> None:
        """A message has grown. What it shows is asked for when its turn to be shown comes, not at every word.

        It goes into the turn's placeholder by an edit, or is a draft of the same number as the inbox row.
        """
        self._chat(chat).show(inbox, growing, mode, thread)

    def finished(self, chat: int, inbox: int) -> None:
        """No growing text of this turn may be shown from now on."""
        self._chat(chat).finished(inbox)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something beside the sending; the reference keeps it alive."""
        task = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def is_sending(self, row: OutboxRow) -> bool:
        """Whether Telegram is being asked for this very row at this moment."""
        return row.chat in self.chats and row.id in self.chats[row.chat].sending

    def withdraw(self, row: OutboxRow) -> OutboxRow | None:
        """Take back a row that waits here; None where it doesn't."""
        return self.chats[row.chat].withdraw(row.id) if row.chat in self.chats else None

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

    async def mark(self, row: OutboxRow, state: OutboxState, *, message: int | None = None, error: str = "") -> None:
        """Note where a row is now, and see to what follows from that. A fault of the disk costs the note only."""
        try:
            self.put(*await self.outbox.mark(row, state, message=message, error=error))
        except StoreError as fault:
            self.sparing.log("note", logging.ERROR, "a row is %s, but could not be noted as such: %s", state, fault)
            return
        if state == "sent":
            self.forget_file(row)

    def forget_file(self, row: OutboxRow) -> None:
        """Remove the file of a row that has ended."""
        file = decode(row.body).file if '"spool"' in row.body else None
        if file and file.spool and self.spool:
            self.spool.remove(file.spool)

    # ---- closed chats ----

    async def block(self, chat: int, row: OutboxRow | None, error: TelegramError) -> None:
        """Telegram takes nothing for this chat: keep what is to go there, and have admins told."""
        logger.warning("Telegram takes no messages to chat %d: %s; what is to go there is kept", chat, error)
        self.api.gates.closed.add(chat)
        reason = error.message
        try:
            self.put(*await self.outbox.block(row, chat, lambda since: self.told(chat, since, reason)))
        except StoreError as fault:
            logger.error("that is not noted, and will be learnt again: %s", fault)

    def unblock(self, chat: int) -> None:
        """Something came from this chat: what was kept for it goes out now."""
        if chat not in self.api.gates.closed:
            return
        logger.info("chat %d takes messages again", chat)
        self.api.gates.closed.discard(chat)
        self.spawn(self._unblock(chat))
        self._chat(chat).wake()

    async def _unblock(self, chat: int) -> None:
        try:
            await self.outbox.unblock(chat)
        except StoreError as fault:
            logger.error("that is not noted, and will be found at the next start: %s", fault)

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
