"""Runs jobs: what kai-job@ID asks for when its time has come.

A run goes on whoever asked for it, and whoever asks meanwhile joins it. When this process ends in the middle, the run
stays unfinished in the store and goes on in the next one: a reminder is delivered under the same key, a turn is joined.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from kai.config import Config
from kai.interfaces import Deliver, JobSeat, RunJob, RunStep
from kai.lib import log
from kai.lib.client import Client, delays
from kai.lib.daemon import Daemon
from kai.lib.peers import Peer
from kai.lib.server import Emit
from kai.lib.store import StoreError
from kai.lib.varlink import Busy, Fault, InvalidParameter, Unavailable
from kai.scheduler import condition, texts
from kai.scheduler.calendar import BadExpression, Calendar, Unusable
from kai.scheduler.jobs import JobRow, JobStore, now
from kai.scheduler.notes import Notes
from kai.scheduler.runs import Outcome, Run, RunStore
from kai.scheduler.turns import follow

EARLY = 1.0
"""Seconds before its time at which a run still counts as the one that is due then: clocks differ by their accuracy."""
logger = logging.getLogger(__name__)


class Runner:
    """`settled` is awaited when a run has ended its job, paused it, or met one that isn't there. `elapsed` says whether
    the timer of a once-job has elapsed. `asked` are the jobs that somebody has asked to have run now."""

    def __init__(
        self,
        daemon: Daemon,
        config: Callable[[], Config],
        jobs: JobStore,
        runs: RunStore,
        notes: Notes,
        calendar: Calendar,
    ) -> None:
        self.daemon, self.config, self.jobs, self.runs, self.notes = daemon, config, jobs, runs, notes
        self.calendar = calendar
        self.bot = Client(daemon.runtime_dir / "bot.sock")
        self.active: dict[int, asyncio.Task[RunStep]] = {}
        self.missed: dict[int, float] = {}
        self.asked: set[int] = set()
        self.places: dict[str, tuple[int, asyncio.Semaphore]] = {}
        self.settled: Callable[[int], Awaitable[None]] | None = None
        self.elapsed: Callable[[JobRow], Awaitable[bool]] | None = None
        self.since = now()

    def running(self, job: int) -> bool:
        return job in self.active

    async def run(self, peer: Peer, call: RunJob, emit: Emit) -> RunStep:
        """Begin the run of a job, or join the one that goes on."""
        try:
            row = await self.jobs.get(call.id) if call.id > 0 else None
            ended = await self.runs.ended(call.id, call.start) if row and call.start else None
        except StoreError as error:
            raise Busy(str(error)) from None
        if ended and call.id not in self.active:  # its answer was lost on the way
            return RunStep(line=f"run {ended.run} had ended", failed=ended.outcome == "failed")
        if row is None or (row.state == "ended" and call.id not in self.active):
            await self._settle(call.id)
            gone = "has ended" if row else "isn't there"
            return RunStep(line=f"job {call.id} {gone}", failed=True)
        asked = call.id in self.asked
        self.asked.discard(call.id)
        if call.id not in self.active and not asked and 0 < row.stale <= now() + EARLY:
            return RunStep(line=f"job {call.id} has another timer now, or none; `kai jobs run` runs it all the same")
        if call.id not in self.active:
            self.daemon.hold()
            self.active[call.id] = task = asyncio.create_task(self._work(row, call.start, asked=asked))
            task.add_done_callback(lambda task: self._done(call.id, task))
        task = self.active[call.id]
        try:
            await emit(RunStep(line=f"job {row.id}, a {row.job_type} of {row.user}"))
            return await asyncio.shield(task)
        except StoreError as error:
            raise Busy(str(error)) from None

    def _done(self, job: int, task: asyncio.Task[RunStep]) -> None:
        del self.active[job]
        self.daemon.release()
        if not task.cancelled() and (error := task.exception()):
            logger.error("the run of job %d stays unfinished: %s", job, error)

    async def close(self) -> None:
        """Let go of what runs: it goes on after the next start."""
        for task in self.active.values():
            task.cancel()
        await asyncio.gather(*self.active.values(), return_exceptions=True)

    async def _work(self, row: JobRow, start: str, *, asked: bool) -> RunStep:
        if self.config().user(row.user) is None:
            return RunStep(line=f"there is no user {row.user} any more", failed=True)
        due = self.missed.pop(row.id, row.due)
        early = max(EARLY, row.every / 2)  # systemd counts an interval from the start of kai-job@, `due` from its run
        timed = 0 < due <= now() + early
        if row.schedule_type == "once" and row.state == "active" and not timed and not asked and self.elapsed:
            timed = await self.elapsed(row)  # the clock was set back between the elapse and this
        run = await self.runs.begin(row, due if timed else 0.0, start)
        if run is None:
            return RunStep(line=f"job {row.id} isn't there any more", failed=True)
        with log.fields(KAI_USER=row.user, KAI_TURN=run.turn):
            logger.info("run %d of job %d begins%s", run.run, run.job, ", late" if texts.is_late(run) else "")
            if row.job_type == "reminder":
                run.text = texts.reminder(row, run)
            elif run.state == "running":
                await self._ask(row, run)
            step = await self._end(row, run, by_timer=run.due > 0 and not asked)
            logger.info("run %d of job %d ended: %s", run.run, run.job, step.line)
        return step

    # ---- an agent's turn ----

    async def _ask(self, row: JobRow, run: Run) -> None:
        """Have the agent work, at most so many at once for each user, and store what it answered."""
        most = self.config().kai.agent.jobs_parallel
        most_then, place = self.places.get(row.user, (0, asyncio.Semaphore(most)))
        if most_then != most:  # those that hold a place of the former number end soon
            place = asyncio.Semaphore(most)
            self.places[row.user] = most, place
        agent = Client(self.daemon.runtime_dir / "agent" / f"{row.user}.sock")
        seat = JobSeat(row.id, row.name, row.workspace, row.model, row.budget_usd)
        async with place:
            done = await follow(agent, self.runs, run, texts.prompt(row, run), seat)
        if done.outcome != "ok":
            reason = done.error or ("its budget is used up" if done.reason == "budget" else "it was stopped")
            reason = reason[: texts.LONGEST_REASON]
            await self.runs.answered(run, text="", error=reason, cost=done.cost_usd)
            return
        answer = condition.parse(done.text) if row.auto_remove else condition.Answer("", done.text)
        quiet = answer.verdict == "not met" and not row.notify_on_check
        if answer.verdict == "not met" and not answer.text:
            answer = condition.Answer("not met", "Checked: the condition isn't met.")
        text = "" if quiet else texts.result(row, run, answer.text)
        await self.runs.answered(run, text=text, verdict=answer.verdict, cost=done.cost_usd)

    # ---- the end ----

    async def _end(self, before: JobRow, run: Run, *, by_timer: bool) -> RunStep:
        """Deliver what there is, and store the end. Raises StoreError."""
        row = await self.jobs.get(before.id)
        if row is None:
            return RunStep(line="the job was removed meanwhile", failed=True)
        # Before systemd is asked for the next time: somebody waits.
        refused = "" if run.error or not run.text else await self._deliver(row, run)
        due = await self._next(row, run, by_timer=by_timer)
        once = row.schedule_type == "once" and (run.due > 0 or 0 < row.due <= now())  # its timer is used up
        last = row.schedule_type == "calendar" and row.state == "active" and due == 0
        over = row.revision == run.revision and (once or last or run.verdict == "met")
        if run.error:
            run.text = texts.failure(row, run, run.error, due=due or 0.0, over=over, now=time.time())
            await self._deliver(row, run)
        run.error = run.error or refused
        outcome: Outcome = "failed" if run.error else "delivered" if run.text else "quiet"
        after = await self.runs.end(run, outcome, due=due or 0.0, over=over, what=texts.called(row))
        self.notes.wake()
        if after is None or after.state != "active":
            await self._settle(row.id)
        took = f"after {now() - run.began:.1f} s"
        if run.error:
            return RunStep(line=f"failed {took}: its user was told why", failed=True)
        return RunStep(line=f"{'delivered' if run.text else 'nothing to tell'} {took}")

    async def _deliver(self, row: JobRow, run: Run) -> str:
        """Give it to the bot, however long that takes. Why it refuses the message for good, "" when it took it."""
        for delay in delays():
            try:
                await self.bot.call(Deliver(key=run.turn, user=row.user, text=run.text))
            except InvalidParameter as fault:
                logger.error("job %d: the bot refuses its message: %s", row.id, fault)
                return f"the bot refuses its message: {fault}"
            except (Unavailable, Fault) as error:
                logger.info("job %d waits for the bot: %s", row.id, error)
                await asyncio.sleep(delay)
                if await self.jobs.get(row.id) is None:
                    return "the job was removed meanwhile"
            else:
                break
        return ""

    async def _next(self, row: JobRow, run: Run, *, by_timer: bool) -> float | None:
        """When the job elapses next, in seconds since the epoch; 0 for never, None where that can't be told.

        A time that passed during a run which a timer began is the next one: systemd makes up for it at once (measured).
        One that passed during a run which a hand began, or this scheduler for a time that was missed, is taken by that
        run.
        """
        time = now()
        timed = by_timer and run.began > self.since
        if row.state != "active":
            return 0.0
        if row.schedule_type == "once":
            return row.due  # a run by hand takes nothing of it
        if row.every:
            return max(run.began + row.every, time)
        try:
            after = max(run.began if timed else time, run.due)
            found = await self.calendar.elapses(row.calendar, after=after)
        except (BadExpression, Unusable) as error:
            logger.warning("job %d: when it runs next isn't known: %s", row.id, error)
            return None
        return min((elapse.times[0] for elapse in found if elapse.times), default=0.0)

    async def _settle(self, job: int) -> None:
        if self.settled:
            await self.settled(job)
