"""/new and /stop: a session ends, a turn is interrupted."""

from __future__ import annotations

import asyncio
import logging

from kai.bot.invocation import Invocation
from kai.bot.lanes import Lanes
from kai.bot.message import Body, plain, stop_button
from kai.bot.tables import InboxRow
from kai.interfaces import NewSession, Stop
from kai.lib.client import delays
from kai.lib.varlink import Fault, Unavailable

SAVING = 90.0
"""Seconds for a session to end: the agent's 30 for its memory, its start and its end."""
QUIET = 0.7
"""Seconds that pass without a word: most sessions end faster."""
STOP_TRIES = 4
ENDED = "That turn has already ended."
DROPPED = "⏹ Dropped before it began."
STOPPING = "⏹ Stopping."
logger = logging.getLogger(__name__)


async def new(asked: Invocation) -> list[Body]:
    """The message that tells that memory is being saved has a Stop button, and becomes the answer."""
    # The patience, too, is for a bot that was restarted meanwhile: what it asked before is still being done.
    ending = asyncio.create_task(asked.ask(NewSession(turn=asked.row.turn), timeout=SAVING, patience=SAVING))
    asked.lane.interruptible = asked.row
    try:
        if not (await asyncio.wait({ending}, timeout=QUIET))[0]:
            await _say_so(asked)
        ended = await ending
    finally:
        ending.cancel()
        asked.lane.interruptible = None
    said = "A fresh session begins with your next message."
    if ended.saved:
        said = f"Memory is saved. {said}"
    elif ended.note:
        said = f"{said} {ended.note}"
    return [plain(said)]


async def _say_so(asked: Invocation) -> None:
    lanes, row = asked.lanes, asked.row
    words = plain("💾 The session ends; its memory is being saved…", [stop_button(row.turn)])
    placeholder = await lanes.outbox.placeholder(row.id) or await lanes.inbox.placeholder(row, words)
    if placeholder.message is None:
        lanes.sender.put(placeholder)


async def stop(asked: Invocation) -> list[Body]:
    """Whatever else is said: the brake never asks for another spelling.

    The target was stored with the row, so that a stop that comes late can't hit a later turn.
    """
    lanes, row = asked.lanes, asked.row
    target = asked.lane.interruptible
    if target is None or target.id > row.id:
        target = asked.lane.find(row_id=row.target) if row.target else None
    said = await stop_turn(lanes, target) if target else ""
    if asked.arguments.lower() == "all":
        await lanes.drop(row.user, before=row.id)
    # Asked of the disk: a bot that was restarted since must say what was dropped before.
    gone = await lanes.inbox.dropped_for(row)
    if row.target in gone and not said:
        said = DROPPED
    dropped = len(gone - {row.target}) if said == DROPPED else len(gone)
    if dropped:
        said = f"{said} {dropped} waiting dropped.".strip()
    return [plain(said or ("Nothing is running." if row.target is None else ENDED))]


async def stop_turn(lanes: Lanes, row: InboxRow) -> str:
    """Drop a turn that waits, interrupt one that runs, and keep one that is about to begin from beginning."""
    lane = lanes.of(row.user)
    if row.state == "queued" and await lanes.drop(row.user, row=row):
        return DROPPED
    if lane.running is not row:
        return ENDED
    lane.ask_to_stop(row)
    said = STOPPING
    for _, delay in zip(range(STOP_TRIES), delays(), strict=False):
        try:
            stopped = await lane.agent.call(Stop(turn=row.turn), timeout=5)
        except Unavailable as error:
            logger.warning("stop: %s", error)
            said = "The agent's supervisor does not answer; `systemctl status` of its unit tells more."
        except Fault as fault:
            logger.warning("stop: %s", fault)
            return STOPPING  # it can't begin any more, see ask_to_stop
        else:
            said = STOPPING
            if stopped.stopping or lane.running is not row:
                break
        await asyncio.sleep(delay)  # a Start that is on its way may come after this Stop
    return said
