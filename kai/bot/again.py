"""The button Show again: a message that may not have arrived is sent once more, because its user says so (S4)."""

from __future__ import annotations

import logging

from telegram.error import TelegramError

from kai.bot import notices
from kai.bot.lanes import Lanes
from kai.bot.message import decode
from kai.bot.tables import InboxRow

DECIDED = "This was decided already."
logger = logging.getLogger(__name__)


async def press(lanes: Lanes, row: InboxRow) -> str:
    """Send it; returns the words for the one who pressed. Of a button's data only the own rows count."""
    meant = notices.parse(row.text)
    if meant is None:
        return ""
    stored = await lanes.outbox.again(meant, row)
    lanes.sender.put(*stored)
    await _show_on_copy(lanes, row, meant)
    return notices.SENT_AGAIN if stored else DECIDED


async def _show_on_copy(lanes: Lanes, row: InboxRow, meant: int) -> None:
    """A question whose confirmation by Telegram was lost stands in the chat twice; the outbox knows one of them."""
    first, newest = await lanes.outbox.asking(row.user, meant)
    if first is None or newest is None or first.message in (None, row.message):
        return
    try:
        await lanes.api.edit(row.chat, row.message, decode(newest.body))
    except TelegramError as error:
        logger.info("copy of a question: %s", error)
