"""From updates to inbox rows: admission by numeric id, in private chats only, and before anything is stored."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import telegram

from kai.bot.commands import kind_of, parse, pressed
from kai.bot.content import is_service, read, sound, too_big
from kai.bot.inbox import LONG, Arrival
from kai.bot.text import length
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
        journal = self.journal(user.name)
        if update.callback_query:
            return _press(update.update_id, update.callback_query, user.name, chat.id, journal)
        if update.edited_message:
            return _edit(update.update_id, update.edited_message, user.name, chat.id)
        if update.message and not is_service(update.message):
            return _message(update.update_id, update.message, user.name, chat.id, journal)
        return None

    def _stranger(self) -> None:
        self.strangers += 1
        if time.monotonic() - self.last_line >= STRANGERS_PERIOD:
            self.last_line = time.monotonic()
            logger.warning("ignored %d update(s) of accounts or chats that are not admitted", self.strangers)
            self.strangers = 0


def _press(update: int, query: telegram.CallbackQuery, user: str, chat: int, journal: Journal | None) -> Arrival | None:
    if query.message is None:
        return None
    data = sound(query.data or "")
    button = pressed(data)
    return Arrival(
        update_id=update,
        user=user,
        chat=chat,
        message=query.message.message_id,
        kind=kind_of(*button) if button else "control",
        text=data,
        callback=query.id,
        journal=journal,
        thread=_thread(query.message),
    )


def _message(update: int, message: telegram.Message, user: str, chat: int, journal: Journal | None) -> Arrival:
    arrival = Arrival(update, user, chat, message.message_id, "control", "", thread=_thread(message))
    found = read(message)
    if found is None:
        arrival.refused = "This kind of message can't be taken: send text, a photo or a file."
        return arrival
    text, content = found
    arrival.text, arrival.content = text[:MOST_TEXT], content.encode()
    command = parse(message.text) if message.text and not message.forward_origin else None
    if command:
        arrival.kind, arrival.content = kind_of(*command), ""
        return arrival
    arrival.kind, arrival.bundle = "turn", _bundle(message)
    arrival.refused = too_big(content)
    if not arrival.refused and not arrival.bundle:
        arrival.journal = journal
    return arrival


def _edit(update: int, message: telegram.Message, user: str, chat: int) -> Arrival | None:
    found = read(message)
    if found is None or is_service(message):
        return None
    text, content = found
    if not (message.text or message.caption or content.files):
        return None  # a place that moves, a poll that is voted in
    arrival = Arrival(update, user, chat, message.message_id, "edit", text[:MOST_TEXT], content=content.encode())
    arrival.thread = _thread(message)
    if message.text and parse(message.text):
        arrival.refused = "A message can't be made a command by editing it: send the command."
    return arrival


def _bundle(message: telegram.Message) -> str:
    """What the message may be a part of."""
    if message.forward_origin:
        return "forward"
    if message.media_group_id:
        return f"album:{message.media_group_id}"
    return "long" if message.text and length(sound(message.text)) >= LONG else ""


def _thread(message: object) -> int | None:
    """The topic that it was written in, where the chat has some."""
    topic = isinstance(message, telegram.Message) and message.is_topic_message
    return message.message_thread_id if topic and isinstance(message, telegram.Message) else None
