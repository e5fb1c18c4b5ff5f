"""The Bot API, as far as the bot uses it, through python-telegram-bot; and what its errors mean for a message."""

from __future__ import annotations

import logging
import ssl
import time
import urllib.parse
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, cast

import telegram
from telegram.error import BadRequest, Forbidden, InvalidToken, NetworkError, RetryAfter, TelegramError

from kai.bot.message import Body, File
from kai.bot.spool import display_name
from kai.bot.transport import NotSent, Transport

POLL_TIMEOUT = 50
"""Seconds that Telegram holds a getUpdates open when there is nothing."""
ALLOWED_UPDATES = ["message", "edited_message", "callback_query"]
# It prefers its own methods. But one update that get_updates() can't parse would stop all behind it, and of a message
# that is sent or edited only the number is wanted: to build all that comes back costs more than everything else here.
warnings.filterwarnings("ignore", message="Please use 'Bot")
_NO_PREVIEW = {"is_disabled": True}
logger = logging.getLogger(__name__)
Verdict = Literal["not sent", "refused", "unknown", "closed"]
UPLOAD_PATIENCE = 120.0
"""Seconds that Telegram gets for its answer to a file, counted from the file's end."""
_NO_CHAT = ("chat not found", "peer_id_invalid")
_TOO_LARGE = "request entity too large"


class Gates:
    """Chats that are to be left alone: closed ones by everything, flooded ones for a while by what is decoration."""

    def __init__(self) -> None:
        self.closed: set[int] = set()
        self.flooded: dict[int, float] = {}

    def flood(self, chat: int, wait: float) -> None:
        self.flooded[chat] = max(self.flooded.get(chat, 0.0), time.monotonic() + wait)

    def check(self, chat: int, *, decoration: bool) -> None:
        """Raises what Telegram would answer, without asking it."""
        if chat in self.closed:
            raise Forbidden("Forbidden: messages to this chat are held back")
        left = self.flooded.get(chat, 0.0) - time.monotonic()
        if left <= 0:
            self.flooded.pop(chat, None)
        elif decoration:
            raise RetryAfter(max(1, round(left)))


class Api:
    """One bot. Nothing is asked of Telegram before the first call. `spool` holds the files that messages name."""

    def __init__(self, token: str, base: str, spool: Path | None = None) -> None:
        self.spool, self.gates = spool, Gates()
        self.context = context = ssl.create_default_context()  # one for all: each takes 0.4 MiB and 15 ms
        self.bot = telegram.Bot(
            token,
            base_url=f"{base}/bot",
            base_file_url=f"{base}/file/bot",
            request=Transport(base, context, connections=32),
            get_updates_request=Transport(base, context, connections=1),
        )
        self.id = int(token.partition(":")[0])

    async def updates(self, offset: int, patience: int) -> list[dict[str, Any]]:
        """Updates from this offset on, as they came; with none there, Telegram answers after `patience` seconds."""
        arguments = {"timeout": patience, "allowed_updates": ALLOWED_UPDATES, **({"offset": offset} if offset else {})}
        answer = await self.bot.do_api_request("getUpdates", arguments, read_timeout=patience + 10)
        return cast(list[dict[str, Any]], answer)

    async def set_webhook(self, url: str, secret: str) -> None:
        """Have updates posted there, one after another."""
        await self.bot.set_webhook(url, allowed_updates=ALLOWED_UPDATES, max_connections=1, secret_token=secret)

    async def webhook_info(self) -> telegram.WebhookInfo:
        return await self.bot.get_webhook_info()

    async def delete_webhook(self) -> None:
        """What waits at Telegram stays there."""
        await self.bot.delete_webhook(drop_pending_updates=False)

    def parse(self, updates: list[dict[str, Any]]) -> list[telegram.Update]:
        """The updates that this version understands: one that it doesn't must not hold up those behind it."""
        parsed = []
        for update in updates:
            try:
                parsed.append(telegram.Update.de_json(update, self.bot))
            except Exception:
                logger.exception("update %s is not understood and left out", update.get("update_id"))
        return parsed

    async def username(self) -> str:
        return (await self.bot.get_me()).username or str(self.id)

    async def set_commands(self, commands: list[tuple[str, str]]) -> None:
        await self.bot.set_my_commands(commands)

    async def send(self, chat: int, body: Body, *, thread: int | None = None, silent: bool = False) -> int:
        """Send a message or a file; returns its id. A silent one is decoration. Raises OSError without its file."""
        with self._asking(chat, decoration=silent):
            if body.file:
                return await self._send_file(chat, body, body.file, thread)
            arguments: dict[str, Any] = {"chat_id": chat, "disable_notification": silent, **_shown(body)}
            if thread is not None:
                arguments["message_thread_id"] = thread
            message = cast(dict[str, Any], await self.bot.do_api_request("sendMessage", arguments))
            return int(message["message_id"])

    async def _send_file(self, chat: int, body: Body, file: File, thread: int | None) -> int:
        arguments: dict[str, Any] = {
            "caption": body.text or None,
            "caption_entities": _entities(body),
            "reply_markup": _keyboard(body),
            "message_thread_id": thread,
            "read_timeout": UPLOAD_PATIENCE,
        }
        async with self._content(file) as content:
            if file.kind == "photo":
                return (await self.bot.send_photo(chat, content, **arguments)).message_id
            return (await self.bot.send_document(chat, content, **arguments)).message_id

    @asynccontextmanager
    async def _content(self, file: File) -> AsyncIterator[telegram.InputFile]:
        """What a file holds: read from the spool while it is sent, never whole in memory."""
        name = display_name(file.name)
        if not file.spool:
            yield telegram.InputFile(file.text.encode("utf-8", "replace"), filename=name)
            return
        if self.spool is None:
            raise FileNotFoundError(f"no spool for {file.spool}")
        with (self.spool / file.spool).open("rb") as handle:
            yield telegram.InputFile(handle, filename=name, read_file_handle=False)

    async def edit(self, chat: int, message: int, body: Body) -> None:
        """Set a message's text. That it already is so is success."""
        with self._asking(chat):
            try:
                await self.bot.do_api_request(
                    "editMessageText", {"chat_id": chat, "message_id": message, **_shown(body)}
                )
            except BadRequest as error:
                if "not modified" not in error.message:
                    raise

    async def unbutton(self, chat: int, message: int) -> None:
        """Take a message's buttons away and leave it as it is. That it has none is success."""
        with self._asking(chat):
            try:
                await self.bot.do_api_request("editMessageReplyMarkup", {"chat_id": chat, "message_id": message})
            except BadRequest as error:
                if "not modified" not in error.message:
                    raise

    async def draft(self, chat: int, draft_id: int, body: Body, *, thread: int | None = None) -> None:
        """Show a text that is not sent yet, for 30 s, in place of what this draft showed before. It has no buttons."""
        with self._asking(chat):
            await self.bot.send_message_draft(
                chat, draft_id, body.text, message_thread_id=thread, entities=_entities(body)
            )

    async def delete(self, chat: int, message: int) -> None:
        with self._asking(chat):
            await self.bot.delete_message(chat, message)

    async def react(self, chat: int, message: int, emoji: str | None) -> None:
        with self._asking(chat, decoration=True):
            await self.bot.set_message_reaction(chat, message, emoji)

    async def typing(self, chat: int, *, thread: int | None = None) -> None:
        with self._asking(chat, decoration=True):
            await self.bot.send_chat_action(chat, "typing", message_thread_id=thread)

    @contextmanager
    def _asking(self, chat: int, *, decoration: bool = False) -> Iterator[None]:
        """Decoration that Telegram would only count against the answers isn't even asked for."""
        self.gates.check(chat, decoration=decoration)
        try:
            yield
        except RetryAfter as error:
            self.gates.flood(chat, seconds(error))
            raise

    async def file_address(self, file: str) -> str:
        """Where a file that was sent to the bot can be had for an hour. The token is in it.

        Raises LookupError where that is a place on the host of a Bot API server of one's own.
        """
        path = (await self.bot.get_file(file)).file_path or ""
        path = path.removeprefix(f"{self.bot.base_file_url}/")
        if path.startswith("/"):
            raise LookupError("the Bot API server keeps it on its own host: run that server without --local")
        return f"{self.bot.base_file_url}/{urllib.parse.quote(path)}"

    async def answer_callback(self, callback: str, text: str) -> None:
        await self.bot.answer_callback_query(callback, text=text or None)

    async def close(self) -> None:
        for request in self.bot._request:  # Bot.shutdown() wants getMe to have been asked before
            await request.shutdown()


def _shown(body: Body) -> dict[str, Any]:
    """A text with what belongs to it, as Telegram takes it."""
    arguments: dict[str, Any] = {"text": body.text, "link_preview_options": _NO_PREVIEW}
    if body.entities:
        arguments["entities"] = body.entities
    if keyboard := _keyboard(body):
        arguments["reply_markup"] = keyboard.to_dict()
    return arguments


def _entities(body: Body) -> list[telegram.MessageEntity] | None:
    return [telegram.MessageEntity(**entity) for entity in body.entities] or None


def _keyboard(body: Body) -> telegram.InlineKeyboardMarkup | None:
    if not body.buttons:
        return None
    return telegram.InlineKeyboardMarkup(
        [
            [telegram.InlineKeyboardButton(button.text, callback_data=button.data) for button in row]
            for row in body.rows()
        ]
    )


def verdict(error: TelegramError) -> Verdict:
    """What an error says of the message: it surely was not taken, it was refused, nobody knows, or the whole chat is
    closed to the bot."""
    if isinstance(error, RetryAfter | InvalidToken):  # a wrong token is repaired by the operator, and nothing is lost
        return "not sent"
    if isinstance(error, Forbidden):  # without Telegram's JSON it is a proxy's word, not Telegram's
        return "closed" if error.__cause__ is None else "not sent"
    if isinstance(error, BadRequest):
        return "closed" if any(words in error.message.lower() for words in _NO_CHAT) else "refused"
    if isinstance(error, NetworkError) and _TOO_LARGE not in error.message.lower():
        return "not sent" if isinstance(error.__cause__, NotSent) else "unknown"
    return "refused"


def seconds(error: RetryAfter) -> float:
    """How long Telegram asks to wait; python-telegram-bot gives a number or a timedelta by its settings."""
    wait = error.retry_after
    return wait.total_seconds() if isinstance(wait, timedelta) else float(wait)
