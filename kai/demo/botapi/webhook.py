"""The other way of updates: posted to the bot's webhook, as Telegram does it.

Each chat's updates go in order, the next one when the one before was answered with a 2xx; several chats go side by side
up to max_connections. What is answered otherwise, or not at all, is tried again with growing delays, and getWebhookInfo
tells of it. `lead` is where the public address really leads: a Unix socket, by plain HTTP, for tests without a reverse
proxy; without it the address itself is used, over TLS. Sources: core.telegram.org/bots/webhooks, tdlib's Bot API
server.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from pathlib import Path
from typing import Any

from tornado.httpclient import HTTPError, HTTPRequest
from tornado.netutil import Resolver
from tornado.simple_httpclient import SimpleAsyncHTTPClient

from kai.demo.botapi.answers import JsonDict
from kai.demo.botapi.updates import Queued
from kai.demo.botapi.world import World

PATIENCE = 30.0
"""Seconds that an answer may take."""
TICK, IDLE = 0.1, 60.0
"""Seconds between two looks, where nothing happens in between."""
FIRST_DELAY, LONGEST_DELAY = 0.2, 5.0
"""Seconds before another try; Telegram's own delays grow to a minute and more."""


class Webhook:
    """Posts what waits while a webhook is set."""

    def __init__(self, world: World, lead: Path | None) -> None:
        self.world = world
        options: dict[str, Any] = {"resolver": _Socket(path=lead)} if lead else {}
        self.lead = lead
        self.client = SimpleAsyncHTTPClient(force_instance=True, max_clients=100, **options)
        self.under_way: dict[int, asyncio.Task[None]] = {}
        self.delays: dict[int, tuple[float, float]] = {}
        self.task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        tasks = [self.task, *self.under_way.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.client.close()

    async def _run(self) -> None:
        while True:
            await self.world.journal.wait_for(self._start, TICK if self.world.webhook else IDLE)

    def _start(self) -> bool:
        """Begin what can begin. False: look again later."""
        hook, busy = self.world.webhook, set(self.under_way)
        for one in self.world.updates.waiting() if hook else ():
            chat = _chat(one.update)
            if chat in busy:
                continue
            busy.add(chat)  # what is behind it waits for it
            if self.delays.get(chat, (0.0, 0.0))[1] <= time.monotonic():
                if len(self.under_way) >= hook["max_connections"]:
                    break
                self.under_way[chat] = asyncio.create_task(self._post(chat, one, dict(hook)))
        return False

    async def _post(self, chat: int, one: Queued, hook: JsonDict) -> None:
        one.handed_out += 1
        try:
            trouble = await self._try(one, hook)
        finally:
            self.under_way.pop(chat, None)
        if not trouble:
            self.delays.pop(chat, None)
            self.world.updates.remove(one)
            return
        delay, _ = self.delays.get(chat, (FIRST_DELAY / 2, 0.0))
        delay = min(delay * 2, LONGEST_DELAY)
        self.delays[chat] = delay, time.monotonic() + delay
        if self.world.webhook.get("url") == hook["url"]:
            self.world.webhook |= {"last_error_date": int(time.time()), "last_error_message": trouble}
            self.world.journal.wake()

    async def _try(self, one: Queued, hook: JsonDict) -> str:
        """What went wrong, "" for nothing."""
        headers = {"Content-Type": "application/json"}
        if hook["secret_token"]:
            headers["X-Telegram-Bot-Api-Secret-Token"] = hook["secret_token"]
        url = hook["url"].replace("https://", "http://", 1) if self.lead else hook["url"]
        request = HTTPRequest(
            url, method="POST", headers=headers, body=one.encoded, request_timeout=PATIENCE, follow_redirects=False
        )
        try:
            await self.client.fetch(request)
        except HTTPError as error:
            return f"Wrong response from the webhook: {error.code} {error.message}" if error.code < 599 else "Timed out"
        except OSError as error:
            return f"Connection failed: {error.strerror or error}"
        return ""


class _Socket(Resolver):
    """Every name leads to one Unix socket."""

    def initialize(self, path: Path) -> None:
        self.path = path

    async def resolve(
        self, host: str, port: int, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[tuple[int, Any]]:
        return [(socket.AF_UNIX, os.fspath(self.path))]


def _chat(update: JsonDict) -> int:
    """Whose updates keep their order."""
    for part in update.values():
        if isinstance(part, dict):
            message = part.get("message", part)
            for place in (message.get("chat"), part.get("from")):
                if isinstance(place, dict):
                    return int(place["id"])
    return 0
