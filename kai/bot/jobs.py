"""/jobs and /job: a user's own jobs, as the scheduler has them, and the buttons that look at one, run or end it.

The scheduler is always told whose row or press it is, and answers for this user's jobs only: a number in a command or
in a button's data means nothing more than a number.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import msgspec
from telegram.error import TelegramError

from kai.bot.invocation import PATIENCE, Invocation, Misused, Refused
from kai.bot.joblist import ALL, PREFIX, controls, listed, whole
from kai.bot.lanes import Lanes
from kai.bot.message import Body, plain
from kai.bot.settings import two, zone
from kai.bot.tables import InboxRow
from kai.interfaces import (
    GetJob,
    JobDetails,
    ListJobs,
    NoSuchJob,
    PauseJob,
    PreviewJob,
    RemoveJob,
    ResumeJob,
    TriggerJob,
)
from kai.lib.client import delays
from kai.lib.varlink import Busy, Call, Empty, Fault, Misconfigured, Unavailable

R = TypeVar("R", bound=msgspec.Struct)
ANSWER = 10.0
"""Seconds for an answer of the scheduler: whoever pressed a button waits for it."""
MIDNIGHT = '{"times": ["00:00"]}'
STARTED, PAUSED, RESUMED, CANCELLED = "▶ Started.", "⏸ Paused.", "▶ It runs at its times again.", "✗ Cancelled."
_ID: Final = re.compile(r"[1-9][0-9]{0,17}", re.ASCII)
_DATA: Final = re.compile(rf"{PREFIX}:(0|[1-9][0-9]{{0,17}}):([a-z]{{1,10}})", re.ASCII)
logger = logging.getLogger(__name__)


async def jobs(asked: Invocation) -> list[Body]:
    return [await _all(asked)]


async def job(asked: Invocation) -> list[Body]:
    """/job VERB ID; a number alone is a look, and nothing at all is /jobs."""
    if not asked.arguments:
        return await jobs(asked)
    verb, rest = two(asked.arguments)
    if _ID.fullmatch(verb) and not rest:
        verb, rest = "info", verb
    if verb.lower() not in VERBS:
        raise Misused("What is to be done isn't said.")
    if not _ID.fullmatch(rest):
        raise Misused("A job is named by its number, which /jobs shows.")
    return [(await VERBS[verb.lower()](asked, int(rest)))[1]]


async def press(lanes: Lanes, row: InboxRow) -> str:
    """Do what a button is for, and have its message show what is in force then; returns the words for the presser."""
    found = _DATA.fullmatch(row.text)
    asked = Invocation(row, "", lanes)
    try:
        if found and found[1] == "0" and found[2] == "list":
            said, body = "", await _all(asked)
        elif found and found[1] != "0" and found[2] in VERBS:
            said, body = await VERBS[found[2]](asked, int(found[1]))
        else:
            return ""
    except Gone as refusal:
        said, body = str(refusal), plain(str(refusal), [ALL])
    except Refused as refusal:
        return f"⚠ {refusal}"
    lanes.sender.spawn(_show(lanes, row, body))
    return said


async def cancel(lanes: Lanes, user: str, number: int) -> None:
    """Remove a job of this user's. Raises Refused, or Gone where he has none of this number."""
    await ask(lanes, RemoveJob(id=number, user=user))


class Gone(Refused):
    """There is no such job, or it is somebody else's; nobody is told which."""


# ---- what can be done with one ----


async def _info(asked: Invocation, number: int) -> tuple[str, Body]:
    return "", await _one(asked, await _get(asked, number))


async def _run(asked: Invocation, number: int) -> tuple[str, Body]:
    """Have it run now. A row that is worked on once more after a crash of the bot has had its run."""
    found = await _get(asked, number)
    since = await asked.lanes.inbox.arrived(asked.row)
    if not any(run.began >= since for run in found.runs):
        call = TriggerJob(id=number, user=asked.row.user)
        try:
            await ask(asked.lanes, call, patience=0)
        except Busy as error:
            raise Refused(str(error) or f"Job {number} is running already.") from None
    found = await _get(asked, number)
    body = await _one(asked, found, done=STARTED, started=True)
    return STARTED, body


async def _pause(asked: Invocation, number: int) -> tuple[str, Body]:
    await ask(asked.lanes, PauseJob(id=number, user=asked.row.user))
    return PAUSED, await _one(asked, await _get(asked, number), done=PAUSED)


async def _resume(asked: Invocation, number: int) -> tuple[str, Body]:
    await ask(asked.lanes, ResumeJob(id=number, user=asked.row.user))
    return RESUMED, await _one(asked, await _get(asked, number), done=RESUMED)


async def _cancel(asked: Invocation, number: int) -> tuple[str, Body]:
    """What it was stays to be read: it may be wanted again."""
    found = await _get(asked, number)
    await cancel(asked.lanes, asked.row.user, number)
    ended = msgspec.structs.replace(found.job, state="ended", next=0.0, running=False)
    found = JobDetails(ended, [], found.runs)
    return CANCELLED, await _one(asked, found, done=CANCELLED)


Verb = Callable[[Invocation, int], Awaitable[tuple[str, Body]]]
VERBS: Final[dict[str, Verb]] = {
    "info": _info,
    "run": _run,
    "pause": _pause,
    "resume": _resume,
    "cancel": _cancel,
}


# ---- how it is asked for and shown ----


async def _all(asked: Invocation) -> Body:
    found = await ask(asked.lanes, ListJobs(user=asked.row.user))
    name = await _zone(asked) if found.jobs else ""
    return listed(found.jobs, zone(name), time.time(), more=found.more)


async def _get(asked: Invocation, number: int) -> JobDetails:
    return await ask(asked.lanes, GetJob(id=number, user=asked.row.user))


async def _one(asked: Invocation, found: JobDetails, *, done: str = "", started: bool = False) -> Body:
    buttons = controls(found.job, started=started)
    return whole(found, zone(await _zone(asked)), time.time(), done=done, buttons=buttons)


async def _zone(asked: Invocation) -> str:
    """The user's time zone as his jobs have it: his supervisor isn't woken for a look at a list."""
    call = PreviewJob(schedule_type="daily", schedule_data=MIDNIGHT, user=asked.row.user, count=1)
    try:
        return (await ask(asked.lanes, call)).timezone
    except (Refused, Busy) as error:
        logger.info("times are shown in the host's zone: %s", error)
        return ""


async def ask(lanes: Lanes, call: Call[R], *, patience: float = PATIENCE["control"]) -> R:
    """The scheduler's answer. Raises Gone, or Refused with what the user is told.

    A scheduler that restarts or is busy is asked again for `patience` seconds; without any, its Busy is the caller's.
    """
    deadline = time.monotonic() + patience
    doubtful = False
    waits = delays()
    while True:
        try:
            return await lanes.scheduler.call(call, timeout=ANSWER)
        except NoSuchJob:
            if doubtful and isinstance(call, RemoveJob):
                return Empty()  # type: ignore[return-value]  # an earlier try removed it
            raise Gone(f"There is no job {getattr(call, 'id', '')} of yours.") from None
        except (Unavailable, Busy) as error:
            logger.warning("%s: %s", call.NAME, error)
            if isinstance(error, Busy) and not patience:
                raise
            doubtful = doubtful or isinstance(error, Unavailable)
            delay = next(waits)
            if time.monotonic() + delay > deadline:
                what = "is busy" if isinstance(error, Busy) else "does not answer"
                raise Refused(f"The scheduler {what}: {error}") from None
        except Misconfigured as fault:
            raise Refused(f"The scheduler can't start: {fault}") from None
        except Fault as fault:
            raise Refused(str(fault)) from None
        await asyncio.sleep(delay)


async def _show(lanes: Lanes, row: InboxRow, body: Body) -> None:
    """Decoration, whose faults cost nothing."""
    try:
        await lanes.api.edit(row.chat, row.message, body)
    except TelegramError as error:
        logger.info("a job's message is not renewed: %s", error)
