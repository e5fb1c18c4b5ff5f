"""What helps when Telegram refuses something about a message: leave just that out, once, and keep the rest."""

from __future__ import annotations

from typing import Literal

import msgspec
from telegram.error import BadRequest, TelegramError

from kai.bot.message import Body
from kai.bot.tables import OutboxRow

Remedy = Literal["without entities", "without its topic", "as a document"]


class Remedies:
    """Of one chat's rows on their way. A restart forgets them, and Telegram then refuses once more."""

    def __init__(self) -> None:
        self.taken: dict[int, set[Remedy]] = {}

    def find(self, row: OutboxRow, body: Body, error: TelegramError) -> Remedy | None:
        """A way that was not tried yet, taken from now on; None when there is no other."""
        remedy = _remedy(error, body) if isinstance(error, BadRequest) or _is_too_large(error) else None
        taken = self.taken.get(row.id, set())
        if remedy is None or remedy in taken or (remedy == "without its topic" and row.thread is None):
            return None
        self.taken[row.id] = taken | {remedy}
        return remedy

    def body(self, row: OutboxRow, body: Body) -> Body:
        """The message as it is to be tried now."""
        taken = self.taken.get(row.id, ())
        if "without entities" in taken:
            body = msgspec.structs.replace(body, entities=[])
        if "as a document" in taken and body.file:
            body = msgspec.structs.replace(body, file=msgspec.structs.replace(body.file, kind="document"))
        return body

    def thread(self, row: OutboxRow) -> int | None:
        return None if "without its topic" in self.taken.get(row.id, ()) else row.thread

    def forget(self, row: OutboxRow) -> None:
        self.taken.pop(row.id, None)


def is_of_entities(error: TelegramError) -> bool:
    return "entit" in error.message.lower() and not _is_too_large(error)


def _remedy(error: TelegramError, body: Body) -> Remedy | None:
    """`body` as it was tried."""
    if body.entities and is_of_entities(error):
        return "without entities"
    if any(words in error.message.lower() for words in ("thread not found", "topic_", "topic is closed")):
        return "without its topic"
    if body.file and body.file.kind == "photo":
        return "as a document"
    return None


def _is_too_large(error: TelegramError) -> bool:
    return "entity too large" in error.message.lower()
