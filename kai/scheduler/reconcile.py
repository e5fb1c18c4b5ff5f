"""Makes systemd's timers those of the store: at each start, and after each change.

The store says what is to be, PID 1 has what is; what differs is removed and made anew. A timer is this job's when it
has its number and its revision. What systemd can't do for a job that has missed its time is done here: a one-shot in
the past never fires (measured), so its job is started, and so is one whose run was cut off.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Sequence
from itertools import islice

from kai.config import Config
from kai.interfaces import (
    Differences,
    ForgetJob,
    ListTimers,
    RemoveTimers,
    SetTimers,
    StartJobs,
    Timer,
    TimerList,
)
from kai.interfaces import Reconcile as ReconcileCall
from kai.lib import schedules
from kai.lib.client import Client, delays
from kai.lib.daemon import Daemon
from kai.lib.peers import Peer
from kai.lib.store import StoreError
from kai.lib.varlink import Busy, Fault, Unavailable
from kai.scheduler.jobs import JobRow, JobStore, now
from kai.scheduler.run import Runner
from kai.scheduler.runs import RunStore

BATCH = 500
"""Timers of one call: its message stays well below Varlink's limit."""
SECONDS = 60.0
MOST_LINES = 20
"""Differences that the journal gets one by one."""
LOST = 90.0
"""Seconds after its time from which a job of a calendar counts as missed: longer than kai-job's patience."""
FORGOTTEN = 30.0
"""Seconds for which a supervisor is asked to forget a job that is gone."""
logger = logging.getLogger(__name__)


class Reconciler:
    """`changed` is all there is to it; a fault is tried again in the background, with back-off."""

    def __init__(
        self, daemon: Daemon, config: Callable[[], Config], jobs: JobStore, runs: RunStore, runner: Runner
    ) -> None:
        self.daemon, self.config, self.jobs, self.runs, self.runner = daemon, config, jobs, runs, runner
        self.timers = Client(daemon.runtime_dir / "timers.sock")
        self.lock = asyncio.Lock()
        self.again: asyncio.Task[None] | None = None
        self.tasks: set[asyncio.Task[None]] = set()
        self.unmade: set[int] = set()
        runner.settled, runner.elapsed = self._settled, self._elapsed

    # ---- what the service asks ----

    async def changed(self, job_ids: Iterable[int] = ()) -> dict[int, str]:
        """Make the timers what the store says. Why a job of these has none, where that is so."""
        wanted = set(job_ids)
        async with self.lock:
            try:
                faults = await self._reconcile()
            except (Unavailable, Fault, StoreError) as error:
                logger.error("the timers are not what they should be: %s", error)
                await self._note_faults(wanted, str(error))
                self._try_again()
                return dict.fromkeys(wanted, str(error))
        return {job: fault for job, fault in faults.items() if job in wanted}

    async def start(self, job: int) -> None:
        """Start kai-job@ID now. Raises Busy and Unavailable."""
        self.runner.asked.add(job)
        try:
            await self.timers.call(StartJobs(jobs=[job]), timeout=SECONDS)
        except (Unavailable, Fault) as error:
            self.runner.asked.discard(job)
            if isinstance(error, Unavailable | Busy):
                raise
            raise Unavailable(str(error)) from None

    async def removed(self, job: JobRow) -> None:
        """Its timer goes at once, its session when its supervisor can be reached."""
        await self.changed()
        if job.job_type == "agent":
            self._spawn(self._forget(job))

    def renew(self) -> None:
        """The configuration is another one: users came or went."""
        self._spawn(self._renew())

    async def _renew(self) -> None:
        with self.daemon.busy():
            await self.changed()

    def running(self, job: int) -> bool:
        return self.runner.running(job)

    def close(self) -> None:
        for task in (*self.tasks, *([self.again] if self.again else [])):
            task.cancel()

    # ---- what the operator asks ----

    async def answer(self, peer: Peer, call: ReconcileCall) -> Differences:
        try:
            async with self.lock:
                have, wanted = await self._look()
        except (Unavailable, StoreError) as error:
            raise Busy(str(error)) from None
        found = _differences(have, wanted)
        if found and not call.look:
            faults = await self.changed(wanted)
            if faults:
                told = "; ".join(f"job {job}: {fault}" for job, fault in list(faults.items())[:5])
                raise Busy(f"not all could be put right: {told}")
        return Differences(found=found)

    # ---- the work ----

    async def _look(self) -> tuple[TimerList, dict[int, JobRow]]:
        """What systemd has, and the jobs that are to have a timer."""
        have = await self.timers.call(ListTimers(), timeout=SECONDS)
        time, users = now(), {user.name for user in self.config().users}
        jobs = [job for job in await self.jobs.active() if job.user in users]
        return have, {job.id: job for job in jobs if job.schedule_type != "once" or job.due > time}

    async def _reconcile(self) -> dict[int, str]:
        """Returns why a job's timer is not as it should be; 0 is for timers that are no job's."""
        have, wanted = await self._look()
        there = {timer.job: timer.revision for timer in have.timers}
        over = [job for job in there if job not in wanted]
        missing = [job for job in wanted.values() if there.get(job.id) != job.revision]
        await self.jobs.made([job.id for job in wanted.values() if job.fault and there.get(job.id) == job.revision])
        found = _differences(have, wanted)
        for line in found[:MOST_LINES]:
            logger.info("%s", line)
        if len(found) > MOST_LINES:
            logger.info("and %d more timers", len(found) - MOST_LINES)
        faults: dict[int, str] = {}
        strangers = bool(have.strangers)
        while over or strangers:
            batch, over = over[:BATCH], over[BATCH:]
            call = RemoveTimers(jobs=batch, forget=True, strangers=strangers)
            answer = await self.timers.call(call, timeout=SECONDS)
            faults |= {fault.job: fault.error for fault in answer.faults}
            strangers = False
        faults |= await self._make(missing)
        if any(_may_pass(fault) for fault in faults.values()):
            self._try_again()
        await self.jobs.settled(faults)
        await self._start_missed()
        return faults

    async def _make(self, missing: Sequence[JobRow]) -> dict[int, str]:
        began = await self.runs.began() if any(job.every for job in missing) else {}
        time = now()
        for job in missing:
            if 0 < job.due < time:  # systemd makes up for it at once, and the run is told when it was due
                self.runner.missed[job.id] = job.due
        left = (job.timer(now=time, last=began.get(job.id, 0.0)) for job in missing)
        faults: dict[int, str] = {}
        while timers := list(islice(left, BATCH)):
            faults |= await self._set(timers)
        return faults

    async def _set(self, timers: list[Timer]) -> dict[int, str]:
        answer = await self.timers.call(SetTimers(timers=timers), timeout=SECONDS)
        faults = {fault.job: fault.error for fault in answer.faults}
        due = {timer.job: timer.next for timer in answer.timers if timer.next}
        await self.jobs.told(due, faults, {timer.job: timer.revision for timer in timers})
        self.unmade |= {job for job, next_ in due.items() if next_ > now() and job in self.runner.missed}
        return faults

    async def _start_missed(self) -> None:
        """Once-jobs whose time has passed, and jobs whose run was cut off."""
        time, users = now(), {user.name for user in self.config().users}
        late = [
            job
            for job in await self.jobs.active()
            if not job.every and 0 < job.due <= time - (0 if job.schedule_type == "once" else LOST)
        ]
        jobs = {job.id for job in late if job.user in users} | set(await self.runs.unfinished()) | self.unmade
        waiting = sorted(job for job in jobs if not self.runner.running(job))
        if waiting:
            logger.info("starts what was missed or cut off: %s", ", ".join(map(str, waiting[:20])))
        self.runner.asked.update(waiting)
        for start in range(0, len(waiting), BATCH):
            await self.timers.call(StartJobs(jobs=waiting[start : start + BATCH]), timeout=SECONDS)
        self.unmade.clear()

    async def _note_faults(self, jobs: set[int], error: str) -> None:
        try:
            await self.jobs.told({}, dict.fromkeys(jobs, error))
        except StoreError as fault:
            logger.error("%s", fault)

    def _try_again(self) -> None:
        if self.again is None or self.again.done():
            self.again = asyncio.create_task(self._again())

    async def _again(self) -> None:
        with self.daemon.busy():
            for delay in delays():
                await asyncio.sleep(delay)
                try:
                    async with self.lock:
                        faults = await self._reconcile()
                except (Unavailable, Fault, StoreError) as error:
                    logger.warning("the timers are not what they should be yet: %s", error)
                else:
                    if not any(_may_pass(fault) for fault in faults.values()):
                        return

    async def _elapsed(self, job: JobRow) -> bool:
        """Whether the timer of a once-job has elapsed, whatever the clock says now: then it isn't there any more."""
        try:
            have = await self.timers.call(ListTimers(), timeout=SECONDS)
        except (Unavailable, Fault) as error:
            logger.warning("job %d: whether its timer has elapsed isn't known: %s", job.id, error)
            return False
        return not job.fault and all(timer.job != job.id for timer in have.timers)

    async def _settled(self, job: int) -> None:
        await self.changed()
        row = await self.jobs.get(job)
        if row is not None and row.state == "ended" and row.job_type == "agent":
            self._spawn(self._forget(row))

    async def _forget(self, job: JobRow) -> None:
        """The job's session is of no use any more. A supervisor that can't be reached keeps it, which costs a row."""
        if self.config().user(job.user) is None:
            return
        agent = Client(self.daemon.runtime_dir / "agent" / f"{job.user}.sock")
        with self.daemon.busy():
            try:
                async with asyncio.timeout(FORGOTTEN):
                    for delay in delays():
                        try:
                            await agent.call(ForgetJob(job=job.id))
                        except (Unavailable, Busy):
                            await asyncio.sleep(delay)
                        else:
                            return
            except (TimeoutError, Fault) as error:
                logger.warning("job %d: its session at %s stays: %s", job.id, job.user, error or "no answer")

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)


def _may_pass(fault: str) -> bool:
    """Whether another try may help: systemd takes what it calls invalid at no time."""
    return not fault.startswith("InvalidArgs")


def _differences(have: TimerList, wanted: dict[int, JobRow]) -> list[str]:
    """What systemd has otherwise than the store, in words."""
    there = {timer.job: timer.revision for timer in have.timers}
    found = [f"{name}: Kai didn't make it" for name in have.strangers]
    found += [f"kai-job@{job}.timer: no such job is active" for job in there if job not in wanted]
    for job in wanted.values():
        if job.id not in there:
            when = f", due {schedules.stamp(job.due, job.zone)}" if job.due else ""
            found.append(f"kai-job@{job.id}.timer: is missing{when}")
        elif there[job.id] != job.revision:
            found.append(f"kai-job@{job.id}.timer: is of revision {there[job.id]}, not {job.revision}")
    return found
