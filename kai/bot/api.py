"""The Bot API, as far as the bot uses it, through python-telegram-bot; and what its errors mean for a message."""

from __future__ import annotations

import logging
import ssl
import warnings
from datetime import timedelta
from typing import Any, Literal, cast

import httpx
import telegram
from telegram.error import BadRequest, Forbidden, InvalidToken, NetworkError, RetryAfter, TelegramError
from telegram.request import HTTPXRequest

from kai.bot.message import Body

POLL_TIMEOUT = 50
"""Seconds that Telegram holds a getUpdates open when there is nothing."""
ALLOWED_UPDATES = ["message", "edited_message", "callback_query"]
# It prefers get_updates(), where one update that can't be parsed stops all behind it.
warnings.filterwarnings("ignore", message="Please use 'Bot.getUpdates'")
logger = logging.getLogger(__name__)
Verdict = Literal["not sent", "refused", "unknown"]


class Api:
    """One bot. Nothing is asked of Telegram before the first call."""

    def __init__(self, token: str, base: str) -> None:
        context = ssl.create_default_context()  # one for both: each takes 0.4 MiB and 15 ms
        options = {"verify": context, "trust_env": True}
        self.bot = telegram.Bot(
            token,
            base_url=f"{base}/bot",
            base_file_url=f"{base}/file/bot",
            request=HTTPXRequest(connection_pool_size=32, pool_timeout=30, read_timeout=30, httpx_kwargs=options),
            get_updates_request=HTTPXRequest(connection_pool_size=1, httpx_kwargs=options),
        )
        self.id = int(token.partition(":")[0])

    async def updates(self, offset: int, patience: int) -> list[dict[str, Any]]:
        """Updates from this offset on, as they came; with none there, Telegram answers after `patience` seconds."""
        arguments = {"timeout": patience, "allowed_updates": ALLOWED_UPDATES, **({"offset": offset} if offset else {})}
        answer = await self.bot.do_api_request("getUpdates", arguments, read_timeout=patience + 10)
        return cast(list[dict[str, Any]], answer)

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

    async def send(self, chat: int, body: Body, *, silent: bool = False) -> int:
        """Send a message; returns its id."""
        message = await self.bot.send_message(
            chat,
            body.text,
            entities=_entities(body),
            reply_markup=_keyboard(body),
            disable_notification=silent,
            link_preview_options=telegram.LinkPreviewOptions(is_disabled=True),
        )
        return message.message_id

    async def edit(self, chat: int, message: int, body: Body) -> None:
        """Set a message's text. That it already is so is success."""
        try:
            await self.bot.edit_message_text(
                body.text,
                chat_id=chat,
                message_id=message,
                entities=_entities(body),
                reply_markup=_keyboard(body),
                link_preview_options=telegram.LinkPreviewOptions(is_disabled=True),
            )
        except BadRequest as error:
            if "not modified" not in error.message:
                raise

    async def delete(self, chat: int, message: int) -> None:
        await self.bot.delete_message(chat, message)

    async def react(self, chat: int, message: int, emoji: str | None) -> None:
        await self.bot.set_message_reaction(chat, message, emoji)

    async def typing(self, chat: int) -> None:
        await self.bot.send_chat_action(chat, "typing")

    async def answer_callback(self, callback: str, text: str) -> None:
        await self.bot.answer_callback_query(callback, text=text or None)

    async def close(self) -> None:
        for request in self.bot._request:  # Bot.shutdown() wants getMe to have been asked before
            await request.shutdown()


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
    """What an error says of the message: it surely was not taken, it was refused, or nobody knows."""
    if isinstance(error, RetryAfter | InvalidToken):  # a wrong token is repaired by the operator, and nothing is lost
        return "not sent"
    if isinstance(error, BadRequest | Forbidden):
        return "refused"
    if isinstance(error, NetworkError):
        unsent = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
        return "not sent" if isinstance(error.__cause__, unsent) else "unknown"
    return "refused"


def seconds(error: RetryAfter) -> float:
    """How long Telegram asks to wait; python-telegram-bot gives a number or a timedelta by its settings."""
    wait = error.retry_after
    return wait.total_seconds() if isinstance(wait, timedelta) else float(wait)
