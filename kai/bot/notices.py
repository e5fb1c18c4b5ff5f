"""What people are told of the fate of messages: a user of one that may be missing, admins of what only they can mend.

A notice is an outbox row of its own, stored in the same transaction as what it tells of, under a key that makes it one.
"""

from __future__ import annotations

import time
import zlib
from datetime import UTC
from typing import Final, NamedTuple

from kai.bot.message import Body, Button, decode, plain
from kai.bot.tables import OutboxRow
from kai.bot.tools import shorten
from kai.config import Config
from kai.lib import log
from kai.lib.schedules import when

AGAIN: Final = "again"
"""The first word of the data of the button Show again; the outbox row's id follows."""
SENT_AGAIN: Final = "It is sent again."
GIVEN_UP: Final = "It was given up."
LONGEST_REASON: Final = 200
LONGEST_NAME: Final = 60


class Notice(NamedTuple):
    """A message to one admin; the same key again stores nothing new."""

    user: str
    chat: int
    key: str
    body: Body


def may_be_missing(row: OutboxRow) -> Body:
    """Asks the user whether what Telegram may or may not have taken is to be sent again."""
    return plain(f"⚠ {_missing(row)}.", [Button("Show again", f"{AGAIN}:{row.id}")])


def settled(row: OutboxRow, words: str) -> Body:
    """The same message once that is decided."""
    return plain(f"⚠ {_missing(row)}. {words}")


def is_refused(row: OutboxRow, error: str) -> Body:
    """Tells the user of a dead letter, in one line."""
    reason = shorten(log.redact(error), LONGEST_REASON)
    what = "A part of the answer" if _is_of_answer(row) else _file(row) or "A message"
    return plain(f"⚠ {what} could not be sent and is kept for the operator (kai queue): {reason}")


def parse(data: str) -> int | None:
    """The outbox row that a pressed button means, or None: anyone can send any data."""
    word, _, number = data.partition(":")
    return int(number) if word == AGAIN and number.isascii() and number.isdigit() and len(number) < 19 else None


def of_blocked(config: Config, chat: int, since: float, reason: str) -> list[Notice]:
    """To all admins but the one whose chat it is."""
    user = config.by_telegram_id(chat)
    who = user.name if user else f"chat {chat}"
    body = plain(
        f"⚠ Telegram takes no messages to {who}: {shorten(log.redact(reason), LONGEST_REASON)}. What is to go there is "
        f"kept, and sent when {who} writes to the bot again."
    )
    return [
        Notice(admin.name, admin.telegram_id, f"blocked/{chat}/{since:.3f}/{admin.name}", body)
        for admin in config.users
        if admin.admin and admin.telegram_id != chat
    ]


def of_buried(config: Config, count: int) -> list[Notice]:
    """To all admins: what users who are gone had waiting, or was on its way to them, is kept."""
    body = plain(
        f"⚠ {count} message(s) of users who are no longer in the configuration, or have another Telegram account now, "
        "are dead letters: kai queue lists them; retry and drop decide them."
    )
    stamp = f"{time.time():.3f}"
    return [
        Notice(admin.name, admin.telegram_id, f"buried/{stamp}/{admin.name}", body)
        for admin in config.users
        if admin.admin
    ]


def of_lock(config: Config, user: str, until: float) -> list[Notice]:
    """To all admins: somebody has sent wrong codes in this user's chat."""
    body = plain(
        f"⚠ {user} is locked out until {when(until, UTC, time.time())} UTC: too many wrong codes. If it wasn't {user}, "
        f"somebody else has that Telegram account. `kai totp unlock {user}` lets {user} try again."
    )
    return [
        Notice(admin.name, admin.telegram_id, f"totp/locked/{user}/{until:.0f}/{admin.name}", body)
        for admin in config.users
        if admin.admin
    ]


def of_doubt(config: Config, user: str, reason: str) -> list[Notice]:
    """To all admins, once an hour for each reason, its details aside: a gate that can't be asked stays closed."""
    body = plain(f"⚠ Nothing of {user} is let in: {shorten(log.redact(reason), LONGEST_REASON)}")
    stamp = f"{time.time() // 3600:.0f}/{zlib.crc32(reason.partition(':')[0].encode()):08x}"
    return [
        Notice(admin.name, admin.telegram_id, f"totp/doubt/{user}/{stamp}/{admin.name}", body)
        for admin in config.users
        if admin.admin
    ]


def of_conflict(config: Config, since: float) -> list[Notice]:
    """To all admins: somebody else takes the bot's updates."""
    began = time.strftime("%H:%M", time.localtime(since))
    body = plain(
        f"⚠ Since {began} another program polls with this bot's token, or a webhook is set (409): what is written to "
        "the bot goes there. Kai goes on by itself when it ends. If nobody knows of it, revoke the token at @BotFather."
    )
    return [
        Notice(admin.name, admin.telegram_id, f"conflict/{since:.0f}/{admin.name}", body)
        for admin in config.users
        if admin.admin
    ]


def _missing(row: OutboxRow) -> str:
    if _is_of_answer(row):
        return "A part of the answer may not have arrived"
    return f"{_file(row) or 'A message'} may not have arrived"


def _is_of_answer(row: OutboxRow) -> bool:
    return row.inbox is not None and row.kind != "control"


def _file(row: OutboxRow) -> str:
    file = decode(row.body).file
    return f"The file {shorten(file.name, LONGEST_NAME)}" if file else ""
