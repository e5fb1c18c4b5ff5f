"""A delivered message about a job, and the button below it that cancels the job: its message keeps what it says."""

from __future__ import annotations

import logging
import re
from typing import Final

import msgspec
from telegram.error import TelegramError

from kai.bot import jobs
from kai.bot.invocation import Refused
from kai.bot.lanes import Lanes
from kai.bot.message import Body, Button, Buttons, decode, plain
from kai.bot.split import LIMIT
from kai.bot.tables import InboxRow, OutboxRow
from kai.bot.text import length

PREFIX: Final = "jobnote"
"""The first word of the button's data; the job's number and `cancel` follow."""
_DATA: Final = re.compile(rf"{PREFIX}:([1-9][0-9]{{0,17}}):cancel", re.ASCII)
_ROOM: Final = 64
"""UTF-16 code units for what stands there once the button was pressed."""
logger = logging.getLogger(__name__)


def cancellable(messages: list[Body], job: int) -> list[Body]:
    """These messages with the button below the last, or below a line of its own: a caption can't be edited as a text
    is, and what has become of the job must fit."""
    buttons: Buttons = [Button(f"Cancel job {job}", f"{PREFIX}:{job}:cancel")]
    *first, last = messages
    if last.file or length(last.text) + _ROOM > LIMIT:
        return [*messages, plain(f"This is of job {job}.", buttons)]
    return [*first, msgspec.structs.replace(last, buttons=buttons)]


async def press(lanes: Lanes, row: InboxRow) -> str:
    """Remove the job and take the button away; returns the words for the one who pressed."""
    found = _DATA.fullmatch(row.text)
    if found is None:
        return ""
    number = int(found[1])
    said = f"✗ Job {number} is cancelled."
    try:
        await jobs.cancel(lanes, row.user, number)
    except jobs.Gone as refusal:
        said = str(refusal)
    except Refused as refusal:
        return f"⚠ {refusal}"
    shown = await lanes.outbox.shown(row.user, row.message)
    if shown and _has(shown, row.text):
        stored = await lanes.outbox.decide(shown, said)
        lanes.sender.put(*stored)
        if stored:
            return said
    lanes.sender.spawn(_unbutton(lanes, row))
    return said


def _has(shown: OutboxRow, data: str) -> bool:
    """Whether this button is that message's own: anyone can send any data, and the message must stay what it is."""
    return any(button.data == data for line in decode(shown.body).rows() for button in line)


async def _unbutton(lanes: Lanes, row: InboxRow) -> None:
    """A copy that the outbox doesn't know, or a message that it has forgotten, loses the button at least."""
    try:
        await lanes.api.unbutton(row.chat, row.message)
    except TelegramError as error:
        logger.info("the button of a cancelled job: %s", error)
