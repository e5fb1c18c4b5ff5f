"""The buttons of an agent's question: a press becomes the user's answer, and says what holds (S17)."""

from __future__ import annotations

import asyncio
import logging

from telegram.error import TelegramError

from kai.bot.lanes import Lanes
from kai.bot.message import decode
from kai.bot.question import DECISIONS, OVER, parse
from kai.bot.tables import InboxRow, OutboxRow
from kai.interfaces import Answer, Answered
from kai.lib.client import delays
from kai.lib.varlink import Fault, Unavailable

TRIES = 4
BEFORE = "This was decided already."
UNREACHABLE = "The agent can't be reached now; press again."
logger = logging.getLogger(__name__)


async def press(lanes: Lanes, row: InboxRow) -> str:
    """Answer the question of a pressed button; returns the words for the one who pressed.

    It is looked up among the presser's own questions: a button's data that another user sends does and tells nothing.
    """
    named = parse(row.text)
    asked = await lanes.outbox.question(row.user, *named[:2]) if named else None
    if named is None or asked is None:
        return ""
    turn, approval, answer = named
    target = lanes.of(row.user).find(turn=turn)
    answered = Answered(taken=False)
    if target and target.state == "running":
        call = Answer(turn=turn, approval=approval, answer=answer)  # type: ignore[arg-type]
        made = await _ask(lanes, row.user, call)
        if made is None:
            return UNREACHABLE
        answered = made
    decision = DECISIONS.get(answered.answer, OVER)
    lanes.sender.put(*await lanes.outbox.decide(asked, decision))
    await _show_on_copy(lanes, row, asked)
    if answered.answer == answer:
        return decision
    return f"{BEFORE} {decision}" if answered.answer else BEFORE


async def _ask(lanes: Lanes, user: str, call: Answer) -> Answered | None:
    """What holds now. Asked again after a break: the first answer wins, whoever gave it."""
    waits = delays()
    for _ in range(TRIES):
        try:
            return await lanes.of(user).agent.call(call, timeout=5)
        except (Unavailable, Fault) as error:
            logger.warning("approval: %s", error)
            await asyncio.sleep(next(waits))
    return None


async def _show_on_copy(lanes: Lanes, row: InboxRow, asked: OutboxRow) -> None:
    """A question whose confirmation by Telegram was lost stands in the chat twice; the outbox knows one of them."""
    decision = await lanes.outbox.decision(asked)
    if asked.message in (None, row.message) or decision is None:
        return
    try:
        await lanes.api.edit(row.chat, row.message, decode(decision.body))
    except TelegramError as error:
        logger.info("copy of a question: %s", error)
