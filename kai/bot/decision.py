"""The buttons Continue and Drop of a turn that was cut off: the first press counts, whatever is restarted meanwhile.

What it leads to is decided where the press is stored (`kai.bot.inbox`); here it is shown, as often as it takes.
"""

from __future__ import annotations

import logging

from telegram.error import TelegramError

from kai.bot import cut
from kai.bot.lanes import Lanes
from kai.bot.message import decode
from kai.bot.tables import InboxRow, OutboxRow

TOO_LATE = "This is too old to be decided: send your message again."
BEFORE = "This was decided already."
logger = logging.getLogger(__name__)


async def press(lanes: Lanes, row: InboxRow) -> str:
    """Take the buttons away; returns the words for the one who pressed. Of a button's data only his own turns count.

    A row with a target is the press that decided, to drop: one that continued is a turn.
    """
    turn = cut.parse(row.text)
    asked = await lanes.outbox.last(row.user, turn) if turn else None
    if asked is None:
        return TOO_LATE if turn else ""
    if row.target is not None:
        lanes.sender.put(*await lanes.outbox.decide(asked, cut.DROPPED))
    await _show(lanes, row, asked)
    return BEFORE if row.target is None else cut.DROPPED


async def continued(lanes: Lanes, row: InboxRow) -> str:
    """The same for the press that is a turn now."""
    target = await lanes.inbox.find(row.target) if row.target is not None else None
    asked = await lanes.outbox.last(row.user, target.turn) if target else None
    if asked:
        lanes.sender.put(*await lanes.outbox.decide(asked, cut.CONTINUED))
        await _show(lanes, row, asked)
    return cut.CONTINUED


async def _show(lanes: Lanes, row: InboxRow, asked: OutboxRow) -> None:
    """Buttons on a message that the outbox doesn't know as theirs: an edit was repeated, or a confirmation lost."""
    decision = await lanes.outbox.decision(asked)
    if decision is None or (asked.message == row.message and decision.state != "sent"):
        return
    try:
        await lanes.api.edit(row.chat, row.message, decode(decision.body))
    except TelegramError as error:
        logger.info("the buttons of a decided turn: %s", error)
