"""getUpdates: persist first, acknowledge by the next offset. An update is never told received before it is on disk."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from telegram.error import Conflict, InvalidToken, RetryAfter, TelegramError

from kai.bot.api import POLL_TIMEOUT, Api, seconds
from kai.bot.inbox import Inbox
from kai.bot.intake import Intake
from kai.bot.tables import InboxRow
from kai.lib.client import delays
from kai.lib.store import StoreError

REFUSED_PERIOD = 60.0
"""Seconds between two tries while Telegram refuses the token: nothing changes faster than an operator."""
CONFLICT_PERIOD = 5.0
HEADSTART = 0.02
"""Seconds that new turns get before the next poll takes the processor: the acknowledgement can wait, people can't."""
logger = logging.getLogger(__name__)


class Polling:
    """The loop. `take` gets the new rows, `say` what `systemctl status` is to show of Telegram."""

    def __init__(
        self, api: Api, inbox: Inbox, intake: Intake, take: Callable[[list[InboxRow]], None], say: Callable[[str], None]
    ) -> None:
        self.api, self.inbox, self.intake, self.take, self.say = api, inbox, intake, take, say
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
                self.say("polling")
                waits, patience = delays(), POLL_TIMEOUT
                continue
            except InvalidToken:
                await self._pause(
                    "Telegram refuses the token (401): put the right one into /etc/credstore/kai-telegram-token "
                    "and restart kai-bot",
                    REFUSED_PERIOD,
                )
            except Conflict:
                await self._pause(
                    "another program polls with this bot's token (409), or a webhook is set; waiting for it to end",
                    CONFLICT_PERIOD,
                )
            except RetryAfter as error:
                await self._pause("Telegram asks to wait", seconds(error))
            except TelegramError as error:
                await self._pause(f"Telegram can't be reached: {error}", next(waits))
            except StoreError as error:
                await self._pause(f"updates can't be stored and stay at Telegram: {error}", next(waits))
            patience = 0

    async def _receive(self, updates: list[dict[str, Any]], offset: int) -> None:
        """Store a batch. Of one that fails for an unforeseen reason, each update alone: one must not hold up all."""
        try:
            rows = await self.inbox.receive(self.intake.sort(self.api.parse(updates)), offset)
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

    async def _pause(self, reason: str, seconds: float) -> None:
        logger.warning("%s", reason)
        self.say(reason)
        await asyncio.sleep(seconds)
