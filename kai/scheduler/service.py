"""kai.Scheduler: what may be asked of the jobs, and by whom for whom. What runs them is behind `Reconciler`.

A supervisor sees and touches its own user's jobs, whatever it names. The bot asks for the user whose message it works
on, and must name him. The operator may name a user or leave him out. A job of somebody else isn't told apart from none.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, Protocol, TypeVar, cast
from weakref import WeakValueDictionary

import msgspec

from kai.config import Config, User
from kai.interfaces import (
    Add,
    EditJob,
    GetJob,
    Job,
    JobDetails,
    Jobs,
    ListJobs,
    NoSuchJob,
    PauseJob,
    PreviewJob,
    RemoveJob,
    ResumeJob,
    RunRecord,
    SetTimezone,
    Times,
    TriggerJob,
)
from kai.lib.daemon import Daemon
from kai.lib.log import printable
from kai.lib.peers import BOT, OPERATOR, SUPERVISOR, Peer
from kai.lib.server import Handlers
from kai.lib.store import StoreError
from kai.lib.varlink import MAX_MESSAGE, Busy, Empty, InvalidParameter, PermissionDenied, Unavailable
from kai.scheduler import fields
from kai.scheduler.announce import Announcer
from kai.scheduler.calendar import BadExpression, Calendar, Unusable
from kai.scheduler.jobs import AT_REST, JobRow, JobStore, NewJob, ScheduleType, TooMany
from kai.scheduler.schedule import next_times, parse, plan, zone_of

REFUSED = "InvalidArgs"
"""What a fault begins with that no repetition mends: systemd doesn't take the timer."""
LARGEST_ID = (1 << 53) - 1
MOST_PREVIEWED = 20
MOST_ASKED = 4
"""Previews of one user that are worked on at a time: each is a process of systemd's."""
SHOWN_TIMES, SHOWN_RUNS = 5, 10
ROOM = MAX_MESSAGE - 4096
"""Bytes of a list's jobs."""
PLAN_AGE = 30 * 86400
"""Seconds after which the gaps of a job's zone are looked at anew."""
T = TypeVar("T")
logger = logging.getLogger(__name__)


class Reconciler(Protocol):
    """What makes timers be those of the store, and runs jobs. Only `start` raises."""

    async def changed(self, job_ids: Iterable[int] = ()) -> dict[int, str]:
        """Make systemd's timers those of the store; these jobs are new or changed. Returns why one has none."""
        ...

    async def start(self, job: int) -> None:
        """Start kai-job@ID now. Raises Busy or Unavailable."""
        ...

    async def removed(self, job: JobRow) -> None:
        """A job is gone: its timer, what is remembered of it, its running turn and its session go too."""
        ...

    def running(self, job: int) -> bool:
        """Whether a run of this job goes on."""
        ...


class Service:
    """Answers on scheduler.sock, all but Run and Reconcile."""

    def __init__(
        self,
        daemon: Daemon,
        config: Callable[[], Config],
        jobs: JobStore,
        reconciler: Reconciler,
        *,
        calendar: Calendar | None = None,
    ) -> None:
        self.daemon, self.config, self.jobs, self.reconciler = daemon, config, jobs, reconciler
        self.calendar = calendar or Calendar()
        self.announcer = Announcer(daemon, jobs)
        self._locks: WeakValueDictionary[int, asyncio.Lock] = WeakValueDictionary()
        self._tasks: set[asyncio.Task[None]] = set()
        self._planning: dict[str, bool] = {}
        self._asked: Counter[str] = Counter()

    def handlers(self) -> Handlers:
        return {
            Add: self.add,
            ListJobs: self.listed,
            GetJob: self.get,
            EditJob: self.edit,
            RemoveJob: self.remove,
            PauseJob: self.pause,
            ResumeJob: self.resume,
            TriggerJob: self.trigger,
            PreviewJob: self.preview,
            SetTimezone: self.set_timezone,
        }

    async def open(self) -> None:
        """After a start: forget what is old; announcements and new plans go on behind it. Raises StoreError."""
        await self.jobs.prune()
        self.announcer.put(*await self.jobs.unannounced())
        self.replan()

    def close(self) -> None:
        self.announcer.close()
        for task in self._tasks:
            task.cancel()

    def replan(self, user: str = "") -> None:
        """Begin to plan jobs anew whose zone is another one now, or whose last planning is long ago; returns at once.

        What is interrupted goes on after the next start. Asked for while it is done, it is done once more.
        """
        if user in self._planning:
            self._planning[user] = True
            return
        self._planning[user] = False
        task = asyncio.create_task(self._replan(user))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _replan(self, user: str) -> None:
        with self.daemon.busy():
            try:
                again = True
                while again:
                    self._planning[user] = False
                    await self._replan_all(await self.jobs.ids(user))
                    again = self._planning[user]
            except (StoreError, Busy) as error:
                logger.error("not all jobs are planned anew before the next start: %s", error)
            finally:
                del self._planning[user]

    async def _replan_all(self, jobs: list[int]) -> None:
        changed: list[int] = []
        try:
            for job in jobs:
                if await self._planned_anew(job):
                    changed.append(job)
        finally:  # what is planned anew gets its timer, though another one can't be planned now
            if changed:
                logger.info("%d jobs were planned anew", len(changed))
                await self.reconciler.changed(changed)

    async def _planned_anew(self, job: int) -> bool:
        """Whether it has another timer now. A once-job keeps its moment: where it is told from is all that changes."""
        async with self._locked(job):
            row, now = await self.jobs.get(job), time.time()
            person = self.config().user(row.user) if row else None
            if row is None or person is None or row.state == "ended":
                return False
            zone = row.timezone or await self._zone(person)
            if row.zone == zone and (row.planned > now - PLAN_AGE or row.schedule_type in ("once", "interval")):
                return False
            if row.schedule_type == "once":
                await self.jobs.update(job, zone=zone)
                return False
            try:
                planned = await plan(parse(row.schedule_type, row.schedule_data, zone, now), zone, now, self.calendar)
            except InvalidParameter as fault:  # with years in it, an expression has a last time
                logger.warning("job %d keeps its timer: %s", job, fault)
                await self.jobs.update(job, planned=now)
                return False
            due = {"due": planned.times[0]} if row.state == "active" and not planned.every else {}
            after = await self.jobs.update(job, zone=zone, planned=now, calendar=planned.calendar, **due)
            return after is not None and after.state == "active" and after.revision != row.revision

    # ---- the calls ----

    async def add(self, peer: Peer, call: Add) -> Job:
        user = self._owner(peer, call.user)
        if not user:
            raise InvalidParameter("user: missing, expected the one whose job it is")
        person = self._person(user)
        kind, prompt = fields.job_type(call.job_type), fields.prompt(call.prompt)
        values: dict[str, Any] = {
            "name": fields.name(call.name, prompt),
            "auto_remove": call.auto_remove,
            "notify_on_check": call.notify_on_check,
            "workspace": fields.workspace(call.workspace),
            "model": fields.model(call.model),
            "budget_usd": fields.budget_usd(call.budget_usd, self.config().ceiling(person)),
        }
        fields.together(kind, **values)
        own = zone_of(call.timezone) if call.timezone else ""
        zone, now = own or await self._zone(person), time.time()
        schedule = parse(call.schedule_type, call.schedule_data, zone, now)
        planned = await plan(schedule, zone, now, self.calendar)
        announce = kind == "agent" and _is_agents(peer)
        new = NewJob(
            user=user, job_type=kind, prompt=prompt, schedule_type=cast(ScheduleType, call.schedule_type),
            schedule_data=planned.data, timezone=own, zone=zone, calendar=planned.calendar, every=planned.every,
            due=planned.times[0], announce=announce, **values,
        )  # fmt: skip
        try:
            row = await self.jobs.add(new, limit=self._limit)
        except TooMany as most:
            raise self._too_many(user, most) from None
        except StoreError as error:
            raise Busy(str(error)) from None
        fault = (await self.reconciler.changed([row.id])).get(row.id, "")
        if fault.startswith(REFUSED):
            await self.jobs.remove(row.id)
            await self.reconciler.removed(row)
            raise InvalidParameter(f"schedule_data: systemd refuses the timer: {fault}")
        if announce:
            self.announcer.put(row)
        logger.info("job %d of %s was made by %s", row.id, row.user, peer)
        return await self._shown(row.id, fault)

    async def listed(self, peer: Peer, call: ListJobs) -> Jobs:
        owner = self._owner(peer, call.user)
        rows = await self._stored(self.jobs.listed(owner, ended=call.ended))
        last = await self._stored(self.jobs.last_runs(owner))
        found: list[Job] = []
        room = ROOM
        for row in rows:
            job = self._job(row, last.get(row.id))
            size = len(msgspec.json.encode(job)) + 1
            if size <= room:  # one that is too big hides no other
                room -= size
                found.append(job)
        return Jobs(jobs=found, more=len(rows) - len(found))

    async def get(self, peer: Peer, call: GetJob) -> JobDetails:
        row = await self._found(peer, call.id, call.user)
        runs = await self._stored(self.jobs.runs(row.id, SHOWN_RUNS))
        return JobDetails(job=self._job(row, runs[0] if runs else None), times=await self._times(row), runs=runs)

    async def edit(self, peer: Peer, call: EditJob) -> Job:
        async with self._locked(call.id):
            before = await self._found(peer, call.id, call.user)
            if before.state == "ended":
                raise InvalidParameter(f"id: job {before.id} has ended, expected one that hasn't: make a new one")
            values = self._edited(before, call)
            values |= await self._rescheduled(before, call)
            announce = _is_agents(peer) and _costs_otherwise(before, values)
            if announce:
                values |= {"announce": True, "edits": before.edits + 1}
            row = await self._stored(self.jobs.edit(before.id, **values))
            if row is None:
                raise self._none(call.id)
            fault = ""
            if row.revision != before.revision and row.state == "active":
                fault = await self._timed(before, row)
        if announce:
            self.announcer.put(row)
        logger.info("job %d of %s was changed by %s", row.id, row.user, peer)
        return await self._shown(row.id, fault)

    async def remove(self, peer: Peer, call: RemoveJob) -> Empty:
        async with self._locked(call.id):
            row = await self._found(peer, call.id, call.user)
            await self._stored(self.jobs.remove(row.id))
            await self.reconciler.removed(row)
        logger.info("job %d of %s was removed by %s", row.id, row.user, peer)
        return Empty()

    async def pause(self, peer: Peer, call: PauseJob) -> Job:
        async with self._locked(call.id):
            row = await self._found(peer, call.id, call.user)
            if row.state == "ended":
                raise InvalidParameter(f"id: job {row.id} has ended, expected an active one")
            if row.state == "active":
                note = f"paused by {_who(peer)}"
                await self._stored(self.jobs.pause(row.id, note))
                await self.reconciler.changed([row.id])
                logger.info("job %d of %s was paused by %s", row.id, row.user, peer)
        return await self._shown(row.id)

    async def resume(self, peer: Peer, call: ResumeJob) -> Job:
        fault = ""
        async with self._locked(call.id):
            row = await self._found(peer, call.id, call.user)
            if row.state == "ended":
                raise InvalidParameter(f"id: job {row.id} has ended, expected a paused one")
            if row.state == "paused":
                fault = await self._resume(row)
                logger.info("job %d of %s was resumed by %s", row.id, row.user, peer)
        return await self._shown(row.id, fault)

    async def trigger(self, peer: Peer, call: TriggerJob) -> Empty:
        row = await self._found(peer, call.id, call.user)
        if row.state == "ended":
            raise InvalidParameter(f"id: job {row.id} has ended, expected one that hasn't")
        if self.reconciler.running(row.id):
            raise Busy(f"job {row.id} is running already")
        try:
            await self.reconciler.start(row.id)
        except Unavailable as error:
            raise Busy(f"job {row.id} can't be started now: {error}") from None
        logger.info("job %d of %s was started by %s", row.id, row.user, peer)
        return Empty()

    async def preview(self, peer: Peer, call: PreviewJob) -> Times:
        if not 1 <= call.count <= MOST_PREVIEWED:
            raise InvalidParameter(f"count: expected 1 to {MOST_PREVIEWED}, got {call.count}")
        user = self._owner(peer, call.user)
        if call.timezone:
            zone = zone_of(call.timezone)
        else:  # the operator may leave out the user: the host's zone then, or kai.yaml's
            zone = await self._zone(self._person(user)) if user else self._default_zone()
        now = time.time()
        schedule = parse(call.schedule_type, call.schedule_data, zone, now)
        if self._asked[user] >= MOST_ASKED:
            raise Busy(f"{MOST_ASKED} previews are being worked on: ask again when they are done")
        self._asked[user] += 1
        try:
            planned = await plan(schedule, zone, now, self.calendar, count=call.count)
        finally:
            self._asked[user] -= 1
        return Times(times=planned.times, timezone=zone, calendar=planned.read)

    async def set_timezone(self, peer: Peer, call: SetTimezone) -> Empty:
        user = self._owner(peer, call.user)
        if not user:  # one uid is every role: only where there is one user it is clear whose zone it is
            users = self.config().users
            if len(users) != 1:
                raise InvalidParameter("user: missing, expected the one whose zone it is")
            user = users[0].name
        self._person(user)
        zone = zone_of(call.timezone) if call.timezone else ""
        if zone != await self._stored(self.jobs.zone(user)):
            await self._stored(self.jobs.set_zone(user, zone))
            logger.info("the time zone of %s is %s", user, zone or "that of the configuration")
            self.replan(user)
        return Empty()

    # ---- what they share ----

    def _owner(self, peer: Peer, user: str) -> str:
        """The user whose jobs this caller means; "" are all."""
        if peer.user:
            if user and user != peer.user:
                raise PermissionDenied(f"user: {peer} may name its own user only, not {printable(user, 60)}")
            return peer.user
        if not user and OPERATOR not in peer.roles:
            raise InvalidParameter("user: missing, expected the one whose jobs are meant")
        return user

    async def _found(self, peer: Peer, job: int, user: str) -> JobRow:
        owner = self._owner(peer, user)
        row = await self._stored(self.jobs.get(job)) if 0 < job <= LARGEST_ID else None
        if row is None or (owner and row.user != owner):
            raise self._none(job)
        return row

    def _none(self, job: int) -> NoSuchJob:
        return NoSuchJob(f"id: there is no job {job}")

    def _person(self, user: str) -> User:
        person = self.config().user(user)
        if person is None:
            raise InvalidParameter(f"user: nobody is named {printable(user, 60)}")
        return person

    async def _zone(self, user: User) -> str:
        """The user's time zone: his own choice, else the configuration's, else the host's."""
        chosen = await self._stored(self.jobs.zone(user.name))
        return _usable(chosen or str(self.config().effective(user, "timezone")[0]))

    def _default_zone(self) -> str:
        nobody = User(telegram_id=1, name="nobody")
        return _usable(str(self.config().effective(nobody, "timezone")[0]))

    @property
    def _limit(self) -> int:
        return self.config().kai.jobs.limit

    def _too_many(self, user: str, most: TooMany) -> InvalidParameter:
        if most.paused:
            return InvalidParameter(
                f"user: {user} has {AT_REST * self._limit} active and paused jobs, {AT_REST} times as many as "
                "jobs.limit in kai.yaml allows active ones: remove some"
            )
        return InvalidParameter(
            f"user: {user} has {self._limit} active jobs, as many as jobs.limit in kai.yaml allows: remove or pause one"
        )

    async def _stored(self, work: Awaitable[T]) -> T:
        """Raises Busy where the store can't be used now."""
        try:
            return await work
        except StoreError as error:
            raise Busy(str(error)) from None

    @asynccontextmanager
    async def _locked(self, job: int) -> AsyncIterator[None]:
        """One change of a job at a time: between a look and its change systemd is asked."""
        lock = self._locks.setdefault(job, asyncio.Lock())
        async with lock:
            yield

    def _edited(self, before: JobRow, call: EditJob) -> dict[str, Any]:
        """The values of all fields but the schedule, as they are then."""
        prompt = before.prompt if call.prompt is None else fields.prompt(call.prompt)
        values: dict[str, Any] = {
            "job_type": before.job_type if call.job_type is None else fields.job_type(call.job_type),
            "prompt": prompt,
            "name": before.name if call.name is None else fields.name(call.name, prompt),
            "auto_remove": before.auto_remove if call.auto_remove is None else call.auto_remove,
            "notify_on_check": before.notify_on_check if call.notify_on_check is None else call.notify_on_check,
            "workspace": before.workspace if call.workspace is None else fields.workspace(call.workspace),
            "model": before.model if call.model is None else fields.model(call.model),
            "budget_usd": before.budget_usd,
        }
        if call.budget_usd is not None:
            ceiling = self.config().ceiling(self._person(before.user))
            values["budget_usd"] = fields.budget_usd(call.budget_usd, ceiling)
        fields.together(values["job_type"], **{name: values[name] for name in fields.AGENTS_ONLY})
        return values

    async def _rescheduled(self, before: JobRow, call: EditJob) -> dict[str, Any]:
        """The columns of another schedule or zone, none when both stay."""
        if (call.schedule_type is None) != (call.schedule_data is None):
            missing = "schedule_type" if call.schedule_type is None else "schedule_data"
            raise InvalidParameter(f"{missing}: missing, a new schedule needs its type and its data")
        if call.schedule_type is None and call.timezone is None:
            return {}
        own = before.timezone if call.timezone is None else call.timezone and zone_of(call.timezone)
        zone, now = own or await self._zone(self._person(before.user)), time.time()
        if call.schedule_type is None and before.schedule_type == "once":
            return {"timezone": own, "zone": zone}
        kind, data = call.schedule_type or before.schedule_type, call.schedule_data or before.schedule_data
        schedule = parse(kind, data, zone, now)
        planned = await plan(schedule, zone, now, self.calendar)
        values = {
            "timezone": own,
            "zone": zone,
            "schedule_type": kind,
            "schedule_data": planned.data,
            "calendar": planned.calendar,
            "every": planned.every,
            "planned": now,
        }
        if (planned.calendar, planned.every) != (before.calendar, before.every):
            values |= {"anchor": now, "due": planned.times[0] if before.state == "active" else 0.0}
        return values

    async def _timed(self, before: JobRow, row: JobRow) -> str:
        """Have the timer of a changed job made; what systemd doesn't take is undone. Returns why there is none yet."""
        fault = (await self.reconciler.changed([row.id])).get(row.id, "")
        if not fault.startswith(REFUSED):
            return fault
        kept = ("timezone", "zone", "schedule_type", "schedule_data", "calendar", "every", "planned", "due")
        await self._stored(self.jobs.update(row.id, **{name: getattr(before, name) for name in kept}))
        await self.reconciler.changed([row.id])
        raise InvalidParameter(f"schedule_data: systemd refuses the timer: {fault}")

    async def _resume(self, row: JobRow) -> str:
        """Returns why there is no timer yet."""
        now = time.time()
        zone = row.timezone or await self._zone(self._person(row.user))
        try:
            planned = await plan(parse(row.schedule_type, row.schedule_data, zone, now), zone, now, self.calendar)
        except InvalidParameter as fault:
            raise InvalidParameter(f"id: job {row.id} has no time to come, give it another schedule: {fault}") from None
        values = {"zone": zone, "calendar": planned.calendar, "planned": now, "due": planned.times[0]}
        try:
            await self._stored(self.jobs.resume(row.id, limit=self._limit, **values))
        except TooMany as most:
            raise self._too_many(row.user, most) from None
        return (await self.reconciler.changed([row.id])).get(row.id, "")

    async def _times(self, row: JobRow) -> list[float]:
        """When a job runs next, and then."""
        now = time.time()
        if row.state != "active":
            return []
        if row.every:
            first = row.due if row.due > now else now + row.every
            return [first + number * row.every for number in range(SHOWN_TIMES)]
        try:
            found = await self.calendar.elapses(row.calendar, count=SHOWN_TIMES, after=now)
        except (BadExpression, Unusable) as error:
            logger.warning("job %d: %s", row.id, error)
            return [row.due] if row.due else []
        return next_times(found, SHOWN_TIMES)

    async def _shown(self, job: int, fault: str = "") -> Job:
        """A job as it is now. `fault` is why its timer couldn't be made just now."""
        row = await self._stored(self.jobs.get(job))
        if row is None:
            raise self._none(job)
        row.fault = row.fault or fault
        runs = await self._stored(self.jobs.runs(job, 1))
        return self._job(row, runs[0] if runs else None)

    def _job(self, row: JobRow, last: RunRecord | None) -> Job:
        note = row.note
        if row.state == "active" and row.fault:
            note = f"its timer isn't made yet: {row.fault}"
        if self.config().user(row.user) is None:
            note = "no such user"
        return Job(
            id=row.id, user=row.user, name=row.name, job_type=row.job_type, prompt=row.prompt,
            schedule_type=row.schedule_type, schedule_data=row.schedule_data, auto_remove=row.auto_remove,
            notify_on_check=row.notify_on_check, created_at=row.created, state=row.state, timezone=row.zone,
            workspace=row.workspace, model=row.model, budget_usd=row.budget_usd, next=row.due, failures=row.failures,
            running=self.reconciler.running(row.id), note=note, last=last,
        )  # fmt: skip


def _is_agents(peer: Peer) -> bool:
    """Whether an agent asks. Root is the operator, and nobody's agent; in the one-uid mode every caller is that too."""
    return SUPERVISOR in peer.roles and OPERATOR not in peer.roles


def _costs_otherwise(before: JobRow, values: dict[str, Any]) -> bool:
    """Whether a change makes an agent job another one than its user was told of."""
    told = ("job_type", "prompt", "workspace", "model", "budget_usd", "schedule_type", "schedule_data")
    changed = any(name in values and values[name] != getattr(before, name) for name in told)
    return changed and values["job_type"] == "agent"


def _who(peer: Peer) -> str:
    """Whose hand it was, for a note that the user reads."""
    if OPERATOR in peer.roles:
        return "the operator"
    return "the user" if BOT in peer.roles else "the agent"


def _usable(zone: str) -> str:
    """A zone of the configuration or a former choice; where systemd couldn't be told it, UTC."""
    try:
        return zone_of(zone)
    except InvalidParameter as fault:
        logger.warning("%s: UTC is used", fault)
        return "UTC"
