"""getUpdates: persist first, acknowledge by the next offset. An update is never told received before it is on disk."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from telegram.error import Conflict, InvalidToken, RetryAfter, TelegramError

from kai.bot.api import POLL_TIMEOUT, Api, seconds
from kai.bot.gate import Sorter
from kai.bot.inbox import Inbox
from kai.bot.tables import InboxRow
from kai.lib.client import delays
from kai.lib.log import printable
from kai.lib.sparing import Sparing
from kai.lib.store import StoreError

REFUSED_PERIOD = 60.0
"""Seconds between two tries while Telegram refuses the token: nothing changes faster than an operator."""
REFUSED = (
    "Telegram refuses the token (401): put the right one into /etc/credstore/kai-telegram-token and restart kai-bot"
)
CONFLICT_PERIOD = 5.0
CONFLICT_BORNE = 60.0
"""Seconds of conflict that are normal: a program that was killed holds its poll for up to 50 s."""
HEADSTART = 0.02
"""Seconds that new turns get before the next poll takes the processor: the acknowledgement can wait, people can't."""
logger = logging.getLogger(__name__)


async def _nobody(since: float) -> None:
    pass


class Polling:
    """The loop. `take` gets the new rows, `say` what `systemctl status` is to show of Telegram.

    `alarm` is called when another program has taken the updates for a while, with the time since which it does.
    """

    def __init__(
        self,
        api: Api,
        inbox: Inbox,
        arrivals: Sorter,
        take: Callable[[list[InboxRow]], None],
        say: Callable[[str], None],
        alarm: Callable[[float], Awaitable[None]] = _nobody,
    ) -> None:
        self.api, self.inbox, self.arrivals, self.take, self.say = api, inbox, arrivals, take, say
        self.alarm = alarm
        self.sparing = Sparing(logger)
        self.trouble = ""
        self.conflict_since = self.last_conflict = 0.0
        self.alarmed = False
        self.offset = 0

    async def run(self) -> None:
        self.offset = await self.inbox.offset()
        waits = delays()
        patience = 0  # the first answer, and the first after trouble, tells at once whether all is well
        while True:
            try:
                updates = await self.api.updates(self.offset, patience)
                if updates:
                    offset = updates[-1]["update_id"] + 1
                    await self._receive(updates, offset)
                    await asyncio.sleep(HEADSTART)
                self._well()
                waits, patience = delays(), POLL_TIMEOUT
                continue
            except InvalidToken:
                await self._pause("token", REFUSED, REFUSED_PERIOD)
            except Conflict:
                await self._conflict()
            except RetryAfter as error:
                await self._pause("flood", "Telegram asks to wait", seconds(error))
            except TelegramError as error:
                await self._pause("network", f"Telegram can't be reached: {error}", next(waits))
            except StoreError as error:
                await self._pause("store", f"updates can't be stored and stay at Telegram: {error}", next(waits))
            patience = 0

    async def _receive(self, updates: list[dict[str, Any]], offset: int) -> None:
        """Store a batch. Of one that fails for an unforeseen reason, each update alone: one must not hold up all."""
        try:
            rows = await self.inbox.receive(self.arrivals.sort(self.api.parse(updates)), offset)
        except StoreError:
            raise
        except Exception:
            logger.exception("update %s could not be taken in", ", ".join(str(u["update_id"]) for u in updates))
            if len(updates) == 1:
                await self.inbox.receive([], offset)
                rows = []
            else:
                for update in updates:
                    await self._receive([update], update["update_id"] + 1)
                return
        self.offset = offset
        self.take(rows)

    async def _conflict(self) -> None:
        self.last_conflict = time.time()
        self.conflict_since = self.conflict_since or self.last_conflict
        if not self.alarmed and self.last_conflict - self.conflict_since >= CONFLICT_BORNE:
            try:
                await self.alarm(self.conflict_since)
            except StoreError as error:
                logger.error("admins can't be told of the conflict now: %s", error)
            else:
                self.alarmed = True
        await self._pause(
            "conflict",
            "another program polls with this bot's token (409), or a webhook is set; waiting for it to end",
            CONFLICT_PERIOD,
        )

    def _well(self) -> None:
        """Two programs that poll get an answer in turns: a conflict has ended when there was none for a while."""
        self.say("polling")
        if time.time() - self.last_conflict < CONFLICT_BORNE:
            return
        self.conflict_since, self.alarmed = 0.0, False
        if self.trouble:
            logger.info("updates come in again")
            self.sparing.over(self.trouble)
            self.trouble = ""

    async def _pause(self, kind: str, reason: str, seconds: float) -> None:
        if kind != self.trouble:
            self.sparing.over(kind)
        self.trouble, reason = kind, printable(reason, 500)
        self.sparing.log(kind, logging.WARNING, "%s", reason)
        self.say(reason)
        await asyncio.sleep(seconds)
