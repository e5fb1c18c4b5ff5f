"""kai.Timers: timers of jobs from a fixed schema, and nothing else.

Whoever may make a transient unit is root: it can name any command and any account. So nothing of a caller's becomes a
unit's name or a property but a job's number, a revision, numbers of seconds, and calendar expressions of plain
characters. What starts is always kai-job@ID.service, which root has installed.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import TypeVar

from kai.interfaces import (
    ListTimers,
    RemoveTimers,
    SetTimers,
    StartJobs,
    Timer,
    TimerFault,
    TimerList,
    TimersSet,
    TimerState,
)
from kai.lib import log
from kai.lib.peers import Peer
from kai.lib.server import Handlers
from kai.lib.varlink import Busy, Empty, Internal, InvalidParameter
from kai.timers.systemd import (
    INVALID,
    NEVER,
    NO_SUCH_UNIT,
    UNIT_EXISTS,
    Clock,
    Loaded,
    Property,
    Refused,
    Systemd,
    Unreachable,
)

T = TypeVar("T")
MOST = 1 << 53
"""The greatest job or revision: every JSON reader knows it exactly."""
LONGEST = 366 * 86400
"""Seconds between two runs."""
MOST_AT_ONCE = 1000
"""Timers or jobs of one call."""
MOST_CALENDARS = 64
"""Expressions of one timer: 24 times of a day, and the hours that a change of the clocks leaves out."""
CALENDAR = re.compile(r"[A-Za-z0-9*.,:/~@+_ -]{1,256}")
"""What systemd.time(7) needs, zones included: no specifier, no quote, no line break."""
INSTANCE = re.compile(r"kai-job@([1-9][0-9]{0,15})\.timer")
DESCRIPTION = re.compile(r"Kai job ([1-9][0-9]{0,15}), revision (0|[1-9][0-9]{0,15})")
PATTERN = "kai-job@*.timer"
AT_ONCE = 32
"""Questions to systemd that are under way at a time: the bus daemon allows a connection 128."""
REPLACING = 3.0
"""Seconds until a timer that was stopped must be gone: systemd forgets it a moment later than it says."""
FIRST_WAIT, LONGEST_WAIT = 0.005, 0.2
ACCURACY = 100_000
"""Microseconds: systemd may put off a timer's elapse by as much, to do several at once."""
logger = logging.getLogger(__name__)


def timer_unit(job: int) -> str:
    return f"kai-job@{job}.timer"


def service_unit(job: int) -> str:
    return f"kai-job@{job}.service"


def fault_in(timer: Timer) -> str:
    """Why this can't be a timer; "" when it can."""
    if not 0 < timer.job < MOST:
        return f"job: expected a number from 1 to {MOST - 1}"
    if not 0 <= timer.revision < MOST:
        return f"revision: expected a number from 0 to {MOST - 1}"
    if bool(timer.calendar) == bool(timer.every):
        return "expected either `calendar` or `every`"
    if timer.calendar:
        if len(timer.calendar) > MOST_CALENDARS:
            return f"calendar: more than {MOST_CALENDARS} expressions"
        if not all(CALENDAR.fullmatch(expression) for expression in timer.calendar):
            return "calendar: an expression is empty, longer than 256, or has a character that is in no expression"
        return "first: only with `every`" if timer.first else ""
    if timer.persistent:
        return "persistent: only with `calendar`"
    for name, value in (("every", timer.every), ("first", timer.first)):
        if not 1 <= value <= LONGEST:
            return f"{name}: expected seconds from 1 to {LONGEST}"
    return ""


def properties(timer: Timer) -> list[Property]:
    """The transient unit; what it starts is the service of its own name. Raises ValueError with what is wrong."""
    if fault := fault_in(timer):
        raise ValueError(fault)
    made: list[Property] = [
        ("Description", ("s", f"Kai job {timer.job}, revision {timer.revision}")),
        ("PartOf", ("as", ["kai.target"])),
        ("AccuracyUSec", ("t", ACCURACY)),
        ("RandomizedDelayUSec", ("t", 0)),
        ("RemainAfterElapse", ("b", False)),
    ]
    if timer.calendar:
        made.append(("TimersCalendar", ("a(ss)", [("OnCalendar", expression) for expression in timer.calendar])))
        made.append(("Persistent", ("b", timer.persistent)))
    else:
        first, every = timer.first * 1_000_000, timer.every * 1_000_000
        made.append(("TimersMonotonic", ("a(st)", [("OnActiveSec", first), ("OnUnitActiveSec", every)])))
    return made


def recognised(unit: Loaded) -> TimerState | None:
    """The job and the revision of a timer that Kai made; None for any other."""
    named, described = INSTANCE.fullmatch(unit.name), DESCRIPTION.fullmatch(unit.description)
    if not named or not described or named[1] != described[1]:
        return None
    return TimerState(job=int(named[1]), revision=int(described[2]))


def when(elapse: int, clock: Clock) -> float:
    """Seconds since the epoch; 0 for never, which it is too while its service runs: systemd plans again at the end."""
    if not 0 < elapse < NEVER:
        return 0.0
    return elapse / 1e6 + (time.time() - time.monotonic() if clock == "Monotonic" else 0.0)


class Timers:
    """The handlers. `stamps` is where systemd notes when a persistent timer last elapsed."""

    def __init__(self, systemd: Systemd, stamps: Path) -> None:
        self.systemd, self.stamps = systemd, stamps
        self.changing = asyncio.Lock()

    def handlers(self) -> Handlers:
        return {
            ListTimers: self.list_timers,
            SetTimers: self.set_timers,
            RemoveTimers: self.remove_timers,
            StartJobs: self.start_jobs,
        }

    async def list_timers(self, peer: Peer, call: ListTimers) -> TimerList:
        wanted = set(_numbers(call.jobs))
        made, strangers = await _reached(self._loaded())

        async def next_of(timer: TimerState) -> None:
            timer.next = await self._next(timer.job, "Realtime") or await self._next(timer.job, "Monotonic")

        await _reached(_each(next_of, [timer for timer in made if timer.job in wanted]))
        return TimerList(timers=made, strangers=[log.printable(name, 100) for name in strangers])

    async def set_timers(self, peer: Peer, call: SetTimers) -> TimersSet:
        if len(call.timers) > MOST_AT_ONCE:
            raise InvalidParameter(f"timers: expected at most {MOST_AT_ONCE}, got {len(call.timers)}")
        if len({timer.job for timer in call.timers}) < len(call.timers):
            raise InvalidParameter("timers: a job has more than one")
        answer = TimersSet(timers=[], faults=[])

        async def make(timer: Timer) -> None:
            try:
                await self._make(timer)
                found = await self._next(timer.job, "Realtime" if timer.calendar else "Monotonic")
                answer.timers.append(TimerState(job=timer.job, revision=timer.revision, next=found))
            except Refused as error:
                answer.faults.append(_fault(timer.job, str(error)))
            except ValueError as error:
                answer.faults.append(_fault(timer.job, f"{INVALID}: {error}"))

        async with self.changing:
            await _reached(_each(make, call.timers))
        _tell(f"{len(answer.timers)} timers made", answer.faults)
        return answer

    async def remove_timers(self, peer: Peer, call: RemoveTimers) -> TimersSet:
        answer = TimersSet(timers=[], faults=[])
        jobs = _numbers(call.jobs)

        async def remove(job: int) -> None:
            try:
                await self._gone(timer_unit(job))
                if call.forget:
                    await self._known(self.systemd.reset_failed(service_unit(job)))
                    self._forget(job)
            except Refused as error:
                answer.faults.append(_fault(job, str(error)))

        async def dismiss(name: str) -> None:
            try:
                await self._gone(name)
                logger.warning("stopped %s, which isn't a timer of a job", log.printable(name, 100))
            except Refused as error:
                answer.faults.append(_fault(0, f"{log.printable(name, 100)}: {error}"))

        async with self.changing:
            await _reached(_each(remove, jobs))
            if call.strangers:
                _, strangers = await _reached(self._loaded())
                await _reached(_each(dismiss, strangers))
        if jobs:
            _tell(f"{len(jobs)} timers removed", answer.faults)
        return answer

    async def start_jobs(self, peer: Peer, call: StartJobs) -> Empty:
        refused: list[str] = []

        async def start(job: int) -> None:
            try:
                await self.systemd.start(service_unit(job))
            except Refused as error:
                refused.append(f"{service_unit(job)}: {error}")

        await _reached(_each(start, _numbers(call.jobs)))
        if refused:
            logger.error("systemd refused to start %s", log.printable("; ".join(refused)))
            raise Internal(log.printable(f"systemd refused to start {'; '.join(refused)}", 500))
        return Empty()

    async def _loaded(self) -> tuple[list[TimerState], list[str]]:
        """Kai's timers, and the names of all others that are called like them."""
        units = [unit for unit in await self.systemd.units(PATTERN) if unit.active not in ("inactive", "failed")]
        found = [(unit.name, recognised(unit)) for unit in units]
        return [timer for _, timer in found if timer], [name for name, timer in found if not timer]

    async def _next(self, job: int, clock: Clock) -> float:
        return when(await self.systemd.elapse(timer_unit(job), clock), clock)

    async def _make(self, timer: Timer) -> None:
        """Make it, or make it anew: systemd changes no unit that it has."""
        wanted, unit = properties(timer), timer_unit(timer.job)
        wait, until = FIRST_WAIT, time.monotonic() + REPLACING
        while True:
            try:
                await self.systemd.make(unit, wanted)
                return
            except Refused as error:
                if error.name != UNIT_EXISTS or time.monotonic() > until:
                    raise
            if wait == FIRST_WAIT:
                await self._gone(unit)
                self._forget(timer.job)  # or times of the new one that had passed when it came count as missed
            await asyncio.sleep(wait)
            wait = min(wait * 2, LONGEST_WAIT)

    async def _gone(self, unit: str) -> None:
        await self._known(self.systemd.stop(unit))
        await self._known(self.systemd.reset_failed(unit))

    async def _known(self, asked: Awaitable[None]) -> None:
        """What must be done to a unit if systemd has it."""
        try:
            await asked
        except Refused as error:
            if error.name != NO_SUCH_UNIT:
                raise

    def _forget(self, job: int) -> None:
        try:
            (self.stamps / f"stamp-{timer_unit(job)}").unlink(missing_ok=True)
        except OSError as error:
            logger.warning("the stamp of job %d stays: %s", job, error)


def _numbers(jobs: Iterable[int]) -> list[int]:
    """Each once. Raises InvalidParameter for what can't be a job."""
    found = list(dict.fromkeys(jobs))
    if len(found) > MOST_AT_ONCE:
        raise InvalidParameter(f"jobs: expected at most {MOST_AT_ONCE}, got {len(found)}")
    if not all(0 < job < MOST for job in found):
        raise InvalidParameter(f"jobs: expected numbers from 1 to {MOST - 1}")
    return found


def _fault(job: int, error: str) -> TimerFault:
    return TimerFault(job=job, error=log.printable(error, 500))


def _tell(done: str, faults: list[TimerFault]) -> None:
    """One line for the journal, however many timers it were."""
    logger.info("%s, %d refused", done, len(faults))
    for fault in faults[:10]:
        logger.warning("job %d: %s", fault.job, fault.error)


async def _each(work: Callable[[T], Awaitable[None]], items: Iterable[T]) -> None:
    """Do it for all, some at a time; the first error ends the others."""
    waiting = iter(items)

    async def worker() -> None:
        for item in waiting:
            await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(worker())
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def _reached(asked: Awaitable[T]) -> T:
    try:
        return await asked
    except Unreachable as error:
        logger.warning("%s", error)
        raise Busy(str(error)) from None
