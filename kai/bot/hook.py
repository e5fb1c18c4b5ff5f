"""Webhook mode: Telegram posts updates to the reverse proxy, kai-webhook hands them on, and they are stored here.

The same promise as with polling: Telegram is told that an update came when it is on disk. kai-webhook answers 200 only
after `take`; what isn't answered Telegram repeats, and an update that is stored already is known by its id. Telegram is
asked for one connection, so that messages come one after another, in their order.

The bot makes the secret token itself and tells it to Telegram alone: kai-webhook passes on what a request brought, and
here it is compared. So nobody has to be given a secret, and none lies about.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import os
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
from telegram.error import BadRequest, InvalidToken, RetryAfter, TelegramError

from kai.bot.api import Api, seconds
from kai.bot.gate import Sorter
from kai.bot.inbox import Inbox
from kai.bot.polling import REFUSED, REFUSED_PERIOD
from kai.bot.tables import InboxRow
from kai.interfaces import Taken, TakeUpdate
from kai.lib import log
from kai.lib.client import delays
from kai.lib.log import printable
from kai.lib.peers import Peer
from kai.lib.sparing import Sparing
from kai.lib.store import StoreError
from kai.lib.varlink import Busy

CHECK_PERIOD = 60.0
"""Seconds between two looks at what Telegram says of the webhook."""
OPENING = 10.0
"""Seconds that an update waits while the bot starts."""
STATE = "telegram-webhook.json"
logger = logging.getLogger(__name__)


class Registered(msgspec.Struct):
    """What this bot told Telegram: it is written before Telegram hears of it."""

    secret: str
    url: str = ""


class Record:
    """The file that remembers it. Raises OSError where it can't be written."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / STATE

    def read(self) -> Registered | None:
        try:
            found = msgspec.json.decode(self.path.read_bytes(), type=Registered)
        except FileNotFoundError:
            return None
        except ValueError as error:
            logger.warning("%s: %s: a new secret is made", self.path, error)
            return None
        log.secret(found.secret)
        return found

    def write(self, registered: Registered) -> None:
        log.secret(registered.secret)
        beside = self.path.with_suffix(".new")
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(msgspec.json.encode(registered))
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self.path)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


class Hook:
    """`run` keeps the webhook registered; `take` answers kai-webhook once `open` was called."""

    def __init__(
        self,
        api: Api,
        inbox: Inbox,
        arrivals: Sorter,
        take: Callable[[list[InboxRow]], None],
        say: Callable[[str], None],
        record: Record,
    ) -> None:
        self.api, self.inbox, self.arrivals, self.taken, self.say, self.record = (
            api, inbox, arrivals, take, say, record,
        )  # fmt: skip
        self.sparing = Sparing(logger)
        self.registered: Registered | None = None
        self.opened = asyncio.Event()
        self.lock = asyncio.Lock()
        self.trouble = ""

    # ---- towards Telegram ----

    async def run(self, url: str) -> None:
        known = self.record.read()
        self.registered = Registered(known.secret if known else secrets.token_urlsafe(32), url)
        await self._remember(self.registered)
        self.opened.set()
        waits = delays()
        since, set_up = time.time(), False
        while True:
            try:
                if not set_up:
                    await self.api.set_webhook(url, self.registered.secret)
                    logger.info("Telegram posts updates to %s", url)
                    since, set_up = time.time(), True
                set_up, pause = await self._check(url, since)
                waits = delays()
            except InvalidToken:
                pause = self._wait("token", REFUSED, REFUSED_PERIOD)
            except RetryAfter as error:
                pause = self._wait("flood", "Telegram asks to wait", seconds(error))
            except BadRequest as error:
                reason = f"Telegram refuses the webhook: {error}: is telegram.webhook_url right?"
                pause = self._wait("refused", reason, REFUSED_PERIOD)
            except TelegramError as error:
                pause = self._wait("network", f"Telegram can't be reached: {error}", next(waits))
            await asyncio.sleep(pause)

    async def _remember(self, registered: Registered) -> None:
        """However long that takes: Telegram isn't told what would be forgotten."""
        for delay in delays():
            try:
                self.record.write(registered)
            except OSError as error:
                self._wait("record", f"{self.record.path}: {error.strerror or error}", 0)
                await asyncio.sleep(delay)
            else:
                return

    async def _check(self, url: str, since: float) -> tuple[bool, float]:
        """Whether all is as it was set up at `since`, and in how many seconds to go on. Raises TelegramError.

        Where Telegram couldn't deliver, the webhook is set up again: its pauses between tries begin anew with that.
        """
        info = await self.api.webhook_info()
        if info.url != url:
            logger.warning("somebody has set another webhook, or none: this one is registered again")
            return False, 0.0
        waiting = f", {info.pending_update_count} updates wait there" if info.pending_update_count else ""
        if info.last_error_date and info.last_error_date.timestamp() > since - 1:
            reason = f"Telegram can't deliver: {info.last_error_message}{waiting}"
            return False, self._wait("delivery", reason, CHECK_PERIOD)
        self._well("webhook")
        return True, CHECK_PERIOD

    def _well(self, state: str) -> None:
        self.say(state)
        if self.trouble:
            logger.info("updates come in again")
            self.sparing.over(self.trouble)
            self.trouble = ""

    def _wait(self, kind: str, reason: str, pause: float) -> float:
        if kind != self.trouble:
            self.sparing.over(kind)
        self.trouble, reason = kind, printable(reason, 500)
        self.sparing.log(kind, logging.WARNING, "%s", reason)
        self.say(reason)
        return pause

    # ---- towards kai-webhook ----

    async def take(self, peer: Peer, call: TakeUpdate) -> Taken:
        """On disk when this returns."""
        try:
            await asyncio.wait_for(self.opened.wait(), OPENING)
        except TimeoutError:
            raise Busy("updates are polled for: telegram.mode isn't webhook") from None
        assert self.registered
        if not hmac.compare_digest(self.registered.secret.encode(), call.secret.encode("utf-8", "replace")):
            return Taken(False)
        update = _decoded(call.update) if call.update else None
        if update is not None:
            # Whoever called may go away: what is on disk must be worked on all the same.
            await asyncio.shield(self._in_turn(update))
        return Taken(True)

    async def _in_turn(self, update: dict[str, Any]) -> None:
        """In the order in which they came. Raises Busy."""
        async with self.lock:
            await self._receive(update)

    async def _receive(self, update: dict[str, Any]) -> None:
        """Raises Busy. One that fails for an unforeseen reason is left out: Telegram would repeat it for ever."""
        try:
            # Offset 0: polling, when it comes back, asks for all that Telegram has. What is stored is known by its id.
            rows = await self.inbox.receive(self.arrivals.sort(self.api.parse([update])), 0)
        except StoreError as error:
            raise Busy(f"updates can't be stored and stay at Telegram: {error}") from None
        except Exception:
            logger.exception("update %s could not be taken in", update.get("update_id"))
            return
        self.taken(rows)


async def unhook(api: Api, record: Record, say: Callable[[str], None]) -> None:
    """Before polling: take back the webhook that this bot had set. What waits at Telegram stays there for polling.

    One that somebody else has set is left alone: polling says that it is in the way.
    """
    registered = record.read()
    if registered is None:
        return
    for delay in delays():
        try:
            if registered.url and (await api.webhook_info()).url == registered.url:
                await api.delete_webhook()
                logger.info("Telegram posts no more updates to %s: they are polled for", registered.url)
        except InvalidToken:
            say(REFUSED)
            await asyncio.sleep(REFUSED_PERIOD)
        except TelegramError as error:
            say(f"Telegram can't be reached: {error}")
            await asyncio.sleep(delay)
        else:
            break
    with suppress(OSError):
        record.remove()


def _decoded(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, dict) and isinstance(found.get("update_id"), int):
        return found
    logger.error("Telegram posted something that is no update; it is left out")
    return None
