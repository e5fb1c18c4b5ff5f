"""From updates to inbox rows: admission by numeric id, in private chats only, and before anything is stored."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import telegram

from kai.bot.commands import kind_of, parse, pressed
from kai.bot.inbox import Arrival
from kai.bot.tables import Kind
from kai.config import Config
from kai.interfaces import Journal

STRANGERS_PERIOD = 60.0
"""Seconds between two journal lines about strangers."""
MOST_TEXT = 64 * 1024
logger = logging.getLogger(__name__)


class Intake:
    """Knows who is admitted. A stranger's update is acknowledged and forgotten: no answer, no trace but a count."""

    def __init__(self, config: Callable[[], Config], journal: Callable[[str], Journal | None]) -> None:
        self.config, self.journal = config, journal
        self.strangers = 0
        self.last_line = 0.0

    def sort(self, updates: list[telegram.Update]) -> list[Arrival]:
        return [arrival for update in updates if (arrival := self._admit(update)) is not None]

    def _admit(self, update: telegram.Update) -> Arrival | None:
        person, chat = update.effective_user, update.effective_chat
        user = self.config().by_telegram_id(person.id) if person else None
        if user is None or chat is None or chat.type != telegram.Chat.PRIVATE or chat.id != user.telegram_id:
            self._stranger()
            return None
        query, message = update.callback_query, update.message
        if query and query.message:
            data = _sound(query.data or "")
            button = pressed(data)
            return Arrival(
                update_id=update.update_id,
                user=user.name,
                chat=chat.id,
                message=query.message.message_id,
                kind=kind_of(*button) if button else "control",
                text=data,
                callback=query.id,
            )
        if message is None or not message.text:
            return self._other(update, user.name, chat.id)
        command = parse(message.text)
        kind: Kind = kind_of(*command) if command else "turn"
        return Arrival(
            update_id=update.update_id,
            user=user.name,
            chat=chat.id,
            message=message.message_id,
            kind=kind,
            text=_sound(message.text[:MOST_TEXT]),
            journal=self.journal(user.name) if kind == "turn" else None,
        )

    def _other(self, update: telegram.Update, user: str, chat: int) -> Arrival | None:
        """What this version can't take is answered, not ignored: as a control row with its own text."""
        message = update.message
        if message is None:
            return None  # an edit of a message that was already taken
        return Arrival(
            update_id=update.update_id, user=user, chat=chat, message=message.message_id, kind="control", text=""
        )

    def _stranger(self) -> None:
        self.strangers += 1
        if time.monotonic() - self.last_line >= STRANGERS_PERIOD:
            self.last_line = time.monotonic()
            logger.warning("ignored %d update(s) of accounts or chats that are not admitted", self.strangers)
            self.strangers = 0


def _sound(text: str) -> str:
    """Half a surrogate pair is no character: neither the database nor a socket takes it."""
    return text.encode("utf-8", "replace").decode("utf-8")
