"""The stand-in as one object: start it, drive its people, read what the bot did, stop it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from tornado.httpserver import HTTPServer

from kai.demo.botapi.faults import Fault
from kai.demo.botapi.front import MAX_BODY, Front
from kai.demo.botapi.people import People
from kai.demo.botapi.views import CallView, Changes, MessageView, UpdateView
from kai.demo.botapi.webhook import Webhook

T = TypeVar("T")


class BotApi(People):
    """A Bot API server for one bot, run by the event loop that starts it.

    With python-telegram-bot: `Bot(token, base_url=api.base_url, base_file_url=api.base_file_url)`.
    """

    _server: HTTPServer | None = None
    _front: Front | None = None
    _webhook: Webhook | None = None
    lead: Path | None = None
    """Where the webhook's public address really leads: a Unix socket, by plain HTTP. None: to that address, by TLS."""
    _host = "127.0.0.1"
    port = 0

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> int:
        """Listen; returns the port. OSError when the address is taken."""
        if self._server:
            raise RuntimeError("this Bot API stand-in runs already; stop it first")
        listener = socket.create_server((host, port))
        listener.setblocking(False)
        front = Front(self)
        server = HTTPServer(front, max_body_size=MAX_BODY)
        server.add_socket(listener)
        self._front, self._server, self._host = front, server, host
        self._webhook = Webhook(self, self.lead)
        self.port = int(listener.getsockname()[1])
        return self.port

    async def stop(self) -> None:
        """Close the port and every connection. What was said stays readable; `start` may follow."""
        server, self._server = self._server, None
        front, self._front = self._front, None
        webhook, self._webhook = self._webhook, None
        if webhook:
            await webhook.stop()
        if server and front:
            server.stop()
            front.stop()
            await server.close_all_connections()

    @property
    def url(self) -> str:
        """The address of the server, without a path: what ControlClient takes."""
        return f"http://{self._host}:{self.port}"

    @property
    def base_url(self) -> str:
        """python-telegram-bot's base_url (the token follows)."""
        return f"{self.url}/bot"

    @property
    def base_file_url(self) -> str:
        """python-telegram-bot's base_file_url (the token follows)."""
        return f"{self.url}/file/bot"

    # what the log says

    def calls(self, method: str | None = None, *, since: int = 0) -> list[CallView]:
        """API calls so far, oldest first: all, or those of one method."""
        return self.journal.calls(method=method, since=since)

    def changes(self, since: int = 0, kinds: Iterable[str] = ()) -> Changes:
        """What changed after a version."""
        return self.journal.changes(since, kinds)

    def pending(self) -> list[UpdateView]:
        """Updates that the bot hasn't acknowledged."""
        return self.updates.pending()

    def add_fault(self, fault: Fault) -> int:
        """Set a fault; `faults.remove` takes the number."""
        return self.faults.add(fault)

    # waiting

    async def wait_for(self, look: Callable[[], T | None], *, timeout: float = 10.0) -> T:
        """Look after every call and change until `look` returns something truthy, and return that.

        TimeoutError after `timeout` seconds names the bot's last calls.
        """
        found = await self.journal.wait_for(look, timeout)
        if not found:
            last = [
                f"{call.method} {call.status} {str(call.params.get('text', ''))[:60]!r}".removesuffix(" ''")
                for call in self.journal.calls(limit=8)
            ]
            raise TimeoutError(f"not seen within {timeout} s; the bot's last calls: {', '.join(last) or 'none'}")
        return found

    async def wait_message(
        self, chat_id: int, *, contains: str = "", after: int = 0, timeout: float = 10.0
    ) -> MessageView:
        """Wait for a message of the bot in a chat that says `contains`, with an id above `after`."""
        return await self.wait_for(lambda: self._find(chat_id, contains, after), timeout=timeout)

    async def wait_polling(self, *, timeout: float = 10.0) -> None:
        """Wait until a getUpdates waits at the server."""
        await self.wait_for(lambda: self.updates.polling, timeout=timeout)

    def _find(self, chat_id: int, contains: str, after: int) -> MessageView | None:
        chat = self.chats.get(chat_id)
        for message_id, message in chat.messages.items() if chat else ():
            if message.by_bot and not message.deleted and message_id > after and contains in (message.text() or ""):
                return message.view(history=True)
        return None
