"""The scheduler's database: the tables, and what is done with jobs. Runs have `runs.py`.

A job is `active` (a timer stands for it), `paused` (none does, `note` says why) or `ended` (kept for a while, so that
its last result can be looked up). `revision` goes up with every change of what its timer is, and when a paused one
becomes active again: a timer of another revision is not this job's. Ids are never given out again.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from kai.interfaces import RunRecord, Timer
from kai.lib.store import Store

State = Literal["active", "paused", "ended"]
JobType = Literal["reminder", "agent"]
ScheduleType = Literal["once", "daily", "interval", "calendar"]
T = TypeVar("T")

KEPT = 7 * 86400
"""Seconds for which what has ended is kept."""
MOST_RUNS = 100
"""Ended runs of one job that are kept."""

_SCHEMA = """\
CREATE TABLE jobs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,      -- the ID of kai-job@ID
    user TEXT NOT NULL,
    name TEXT NOT NULL,
    job_type TEXT NOT NULL CHECK (job_type IN ('reminder', 'agent')),
    prompt TEXT NOT NULL,
    schedule_type TEXT NOT NULL CHECK (schedule_type IN ('once', 'daily', 'interval', 'calendar')),
    schedule_data TEXT NOT NULL,               -- JSON, as it was given and found right
    auto_remove INTEGER NOT NULL DEFAULT 0,
    notify_on_check INTEGER NOT NULL DEFAULT 0,
    timezone TEXT NOT NULL DEFAULT '',         -- its own; '' follows the user's
    workspace TEXT NOT NULL DEFAULT '',
    model TEXT NOT NULL DEFAULT '',
    budget_usd REAL NOT NULL DEFAULT 0,
    created REAL NOT NULL,
    state TEXT NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'paused', 'ended')),
    changed REAL NOT NULL,                     -- when it came to its state
    note TEXT NOT NULL DEFAULT '',             -- why it is paused, or how it ended
    failures INTEGER NOT NULL DEFAULT 0,       -- in a row
    revision INTEGER NOT NULL DEFAULT 1,
    zone TEXT NOT NULL,                        -- the zone that the timer was planned in
    calendar TEXT NOT NULL DEFAULT '[]',       -- JSON list: the timer's OnCalendar=, gaps of the zone included
    every INTEGER NOT NULL DEFAULT 0,          -- seconds: the timer's OnUnitActiveSec=
    planned REAL NOT NULL,                     -- when zone and calendar were worked out
    anchor REAL NOT NULL,                      -- from when an interval counts: made, changed or resumed
    due REAL NOT NULL DEFAULT 0,               -- when it elapses next: systemd's word once the timer is made; 0 never
    fault TEXT NOT NULL DEFAULT '',            -- why there is no timer yet though there should be
    announce INTEGER NOT NULL DEFAULT 0        -- its user is still to be told that his agent made it
);
CREATE INDEX jobs_of_user ON jobs (user, state);
CREATE INDEX jobs_active ON jobs (id) WHERE state = 'active';
CREATE TABLE runs (
    job INTEGER NOT NULL,
    run INTEGER NOT NULL,                      -- 1, 2, … in each job; the turn is job:JOB:RUN
    revision INTEGER NOT NULL,                 -- the job's when this began: one that was changed since doesn't end
    state TEXT NOT NULL CHECK (state IN ('running', 'answered', 'ended')),
    due REAL NOT NULL,                         -- 0: triggered by hand
    began REAL NOT NULL,
    ended REAL NOT NULL DEFAULT 0,
    outcome TEXT NOT NULL DEFAULT '' CHECK (outcome IN ('', 'delivered', 'quiet', 'failed')),
    error TEXT NOT NULL DEFAULT '',
    text TEXT NOT NULL DEFAULT '',             -- what is to be delivered, from `answered` on
    verdict TEXT NOT NULL DEFAULT '' CHECK (verdict IN ('', 'met', 'not met')),
    cost REAL NOT NULL DEFAULT 0,              -- US dollars
    generation TEXT NOT NULL DEFAULT '',       -- the agent's journal when the turn was given to it, '' before
    boot TEXT NOT NULL DEFAULT '',
    start TEXT NOT NULL DEFAULT '',            -- of kai-job@ID that began it or joined it last
    PRIMARY KEY (job, run)
) WITHOUT ROWID;
CREATE INDEX runs_open ON runs (job) WHERE state != 'ended';
CREATE INDEX runs_ended ON runs (ended) WHERE state = 'ended';
CREATE TABLE notes (                           -- what supervisors are still to be told: kai.Agent.Note
    turn TEXT PRIMARY KEY,
    user TEXT NOT NULL,
    what TEXT NOT NULL,
    text TEXT NOT NULL,
    at REAL NOT NULL                           -- when it was delivered
);
CREATE TABLE zones (                           -- time zones that users chose: kai.Scheduler.SetTimezone
    user TEXT PRIMARY KEY,
    timezone TEXT NOT NULL,
    changed REAL NOT NULL
)
"""


class NewJob(msgspec.Struct):
    """What a job is when it is made: everything is checked."""

    user: str
    name: str
    job_type: JobType
    prompt: str
    schedule_type: ScheduleType
    schedule_data: str
    auto_remove: bool
    notify_on_check: bool
    timezone: str
    workspace: str
    model: str
    budget_usd: float
    zone: str
    calendar: list[str]
    every: int
    due: float
    announce: bool = False


class JobRow(msgspec.Struct):
    """A job as it stands in the table. Times are seconds since the epoch."""

    id: int
    user: str
    name: str
    job_type: JobType
    prompt: str
    schedule_type: ScheduleType
    schedule_data: str
    auto_remove: bool
    notify_on_check: bool
    timezone: str
    workspace: str
    model: str
    budget_usd: float
    created: float
    state: State
    changed: float
    note: str
    failures: int
    revision: int
    zone: str
    calendar: list[str]
    every: int
    planned: float
    anchor: float
    due: float
    fault: str
    announce: bool

    def timer(self, *, now: float, last: float = 0.0) -> Timer:
        """What kai-timers is to make. `last` is when its last run began: an interval goes on from there."""
        # At most the whole interval: a clock that was set back puts the last run into the future.
        first = min(self.every, max(1, round(max(self.anchor, last) + self.every - now))) if self.every else 0
        return Timer(
            job=self.id,
            revision=self.revision,
            calendar=self.calendar,
            every=self.every,
            first=first,
            persistent=self.schedule_type in ("daily", "calendar"),
        )


COLUMNS = ", ".join(JobRow.__struct_fields__)
_FLAGS = ("auto_remove", "notify_on_check", "announce")
_TIMER = ("calendar", "every", "schedule_type")
"""A change of one of these is another timer; so is becoming active again."""


class TooMany(Exception):
    """The user has as many active jobs as he may."""


def open_tables(directory: Path) -> Store:
    """The database in the scheduler's state directory. Raises StoreError."""
    return Store(directory / "jobs.db", _SCHEMA, version=1)


def now() -> float:
    return time.time()


# ---- in a transaction of the caller's ------------------------------------------------------------------------


def row(record: sqlite3.Row) -> JobRow:
    """The struct of a record that has all COLUMNS."""
    values = {name: record[name] for name in JobRow.__struct_fields__}
    for name in _FLAGS:
        values[name] = bool(values[name])
    values["calendar"] = msgspec.json.decode(values["calendar"], type=list[str])
    return JobRow(**values)


def find(db: sqlite3.Connection, job: int) -> JobRow | None:
    record = db.execute(f"SELECT {COLUMNS} FROM jobs WHERE id = ?", (job,)).fetchone()
    return row(record) if record else None


def update(db: sqlite3.Connection, job: int, **values: Any) -> JobRow | None:
    """Set columns of a job; gives it as it is then, or None when it is gone. Another timer is another revision."""
    before = find(db, job)
    if before is None:
        return None
    changed = {name: value for name, value in values.items() if value != getattr(before, name)}
    if not changed:
        return before
    if changed.get("state") == "active" or any(name in changed for name in _TIMER):
        changed["revision"] = before.revision + 1
    if "state" in changed:
        changed["changed"] = now()
    stored = [msgspec.json.encode(value).decode() if isinstance(value, list) else value for value in changed.values()]
    names = ", ".join(f"{name} = ?" for name in changed)
    db.execute(f"UPDATE jobs SET {names} WHERE id = ?", (*stored, job))
    return find(db, job)


def end(db: sqlite3.Connection, job: int, *, revision: int | None = None, note: str = "") -> JobRow | None:
    """A job is over. With `revision`, only if it was not planned anew since it had that one."""
    found = find(db, job)
    if found is None or found.state == "ended" or (revision is not None and found.revision != revision):
        return found
    return update(db, job, state="ended", note=note, due=0.0, fault="", announce=False)


def pause(db: sqlite3.Connection, job: int, note: str) -> JobRow | None:
    """Take an active job's timer away."""
    found = find(db, job)
    if found is None or found.state != "active":
        return found
    return update(db, job, state="paused", note=note, due=0.0, fault="")


def failed(db: sqlite3.Connection, job: int) -> int:
    """A run of this job failed: how many in a row these are, 0 when the job is gone."""
    db.execute("UPDATE jobs SET failures = failures + 1 WHERE id = ?", (job,))
    record = db.execute("SELECT failures FROM jobs WHERE id = ?", (job,)).fetchone()
    return int(record[0]) if record else 0


def succeeded(db: sqlite3.Connection, job: int) -> None:
    db.execute("UPDATE jobs SET failures = 0 WHERE id = ? AND failures != 0", (job,))


# ---- one transaction each ------------------------------------------------------------------------------------


class JobStore:
    """The jobs of all users. Every function is one transaction."""

    def __init__(self, store: Store) -> None:
        self.store = store

    async def add(self, new: NewJob, *, limit: int) -> JobRow:
        """Store a job; on disk when this returns. Raises TooMany when the user has `limit` active ones."""

        def work(db: sqlite3.Connection) -> JobRow:
            if _count_active(db, new.user) >= limit:
                raise TooMany
            time = now()
            values = {
                **msgspec.structs.asdict(new),
                "calendar": msgspec.json.encode(new.calendar).decode(),
                "created": time,
                "changed": time,
                "planned": time,
                "anchor": time,
            }
            marks = ", ".join("?" * len(values))
            cursor = db.execute(f"INSERT INTO jobs ({', '.join(values)}) VALUES ({marks})", tuple(values.values()))
            assert cursor.lastrowid is not None
            return _found(find(db, cursor.lastrowid))

        return await self.store.write(work)

    async def get(self, job: int) -> JobRow | None:
        return await self.store.write(lambda db: find(db, job))

    async def listed(self, user: str = "", *, ended: bool = False) -> list[JobRow]:
        """Jobs of a user, or of all: the next to run first, then those that don't run."""
        where, parameters = ["1"], []
        if user:
            where.append("user = ?")
            parameters.append(user)
        if not ended:
            where.append("state != 'ended'")
        query = f"SELECT {COLUMNS} FROM jobs WHERE {' AND '.join(where)} ORDER BY due = 0, due, id"
        return [row(record) for record in await self.store.read(query, tuple(parameters))]

    async def active(self) -> list[JobRow]:
        """The jobs that are to have a timer."""
        query = f"SELECT {COLUMNS} FROM jobs INDEXED BY jobs_active WHERE state = 'active' ORDER BY id"
        return [row(record) for record in await self.store.read(query)]

    async def update(self, job: int, **values: Any) -> JobRow | None:
        """Set columns of a job, see `update` above."""
        return await self.store.write(lambda db: update(db, job, **values))

    async def change(self, job: int, work: Callable[[sqlite3.Connection, JobRow], T]) -> T | None:
        """Run `work` on a job as it is in the same transaction; None when the job is gone."""

        def inside(db: sqlite3.Connection) -> T | None:
            found = find(db, job)
            return None if found is None else work(db, found)

        return await self.store.write(inside)

    async def edit(self, job: int, **values: Any) -> JobRow | None:
        """`update`, but not of a job that has ended: then None."""
        return await self.change(job, lambda db, found: None if found.state == "ended" else update(db, job, **values))

    async def pause(self, job: int, note: str) -> JobRow | None:
        """Take an active job's timer away; gives the job as it is then."""
        return await self.store.write(lambda db: pause(db, job, note))

    async def resume(self, job: int, *, limit: int, **values: Any) -> JobRow | None:
        """Make a paused job active. Raises TooMany when its user has `limit` active ones."""

        def work(db: sqlite3.Connection, found: JobRow) -> JobRow | None:
            if found.state != "paused":
                return found
            if _count_active(db, found.user) >= limit:
                raise TooMany
            return update(db, job, state="active", note="", failures=0, anchor=now(), **values)

        return await self.change(job, work)

    async def remove(self, job: int) -> JobRow | None:
        """Remove a job and its runs; gives what it was."""

        def work(db: sqlite3.Connection, found: JobRow) -> JobRow:
            db.execute("DELETE FROM runs WHERE job = ?", (job,))
            db.execute("DELETE FROM jobs WHERE id = ?", (job,))
            return found

        return await self.change(job, work)

    async def runs(self, job: int, most: int) -> list[RunRecord]:
        """The last runs of a job, the newest first."""
        query = f"SELECT {_RECORD} FROM runs WHERE job = ? ORDER BY run DESC LIMIT ?"
        return [_record(found) for found in await self.store.read(query, (job, most))]

    async def last_runs(self, user: str = "") -> dict[int, RunRecord]:
        """The last run of each job of a user, or of all jobs."""
        newest = "run = (SELECT max(run) FROM runs WHERE job = id)"
        query = f"SELECT job, {_RECORD} FROM jobs JOIN runs ON job = id AND {newest}{' WHERE user = ?' if user else ''}"
        found = await self.store.read(query, (user,) if user else ())
        return {each["job"]: _record(each) for each in found}

    async def told(
        self, due: Mapping[int, float], faults: Mapping[int, str], revisions: Mapping[int, int] | None = None
    ) -> None:
        """What kai-timers said: when jobs elapse next (that there is a timer ends a fault), and which have no timer.

        A job that has another revision by now was changed meanwhile, and is told of by what follows.
        """
        asked = revisions or {}

        def work(db: sqlite3.Connection) -> None:
            db.executemany(
                "UPDATE jobs SET due = ?, fault = '' "
                "WHERE id = ? AND state = 'active' AND revision = coalesce(?, revision)",
                [(time, job, asked.get(job)) for job, time in due.items()],
            )
            db.executemany(
                "UPDATE jobs SET fault = ? WHERE id = ? AND state = 'active'",
                [(fault, job) for job, fault in faults.items()],
            )

        if due or faults:
            await self.store.write(work)

    async def made(self, there: list[int]) -> None:
        """These have their timer: what kept it from being made is over."""
        if there:
            await self.store.write(
                lambda db: db.executemany("UPDATE jobs SET fault = '' WHERE id = ?", [(job,) for job in there])
            )

    async def unannounced(self) -> list[JobRow]:
        """Jobs whose users are still to be told that their agents made them."""
        query = f"SELECT {COLUMNS} FROM jobs WHERE announce AND state != 'ended' ORDER BY id"
        return [row(record) for record in await self.store.read(query)]

    async def zone(self, user: str) -> str:
        """The time zone that a user chose, "" when he chose none."""
        found = await self.store.read("SELECT timezone FROM zones WHERE user = ?", (user,))
        return str(found[0]["timezone"]) if found else ""

    async def set_zone(self, user: str, timezone: str) -> None:
        def work(db: sqlite3.Connection) -> None:
            if timezone:
                db.execute(
                    "INSERT INTO zones VALUES (?, ?, ?) ON CONFLICT (user) DO UPDATE SET timezone = excluded.timezone, "
                    "changed = excluded.changed",
                    (user, timezone, now()),
                )
            else:
                db.execute("DELETE FROM zones WHERE user = ?", (user,))

        await self.store.write(work)

    async def prune(self) -> None:
        """Forget what ended long ago. The last run of a job that is there is kept: run numbers go on from it."""

        def work(db: sqlite3.Connection) -> None:
            old = now() - KEPT
            over = "SELECT id FROM jobs WHERE state = 'ended' AND changed < ? AND id NOT IN (SELECT job FROM runs "
            over += "WHERE state != 'ended')"
            db.execute(f"DELETE FROM runs WHERE job IN ({over})", (old,))
            db.execute(f"DELETE FROM jobs WHERE id IN ({over})", (old,))
            last = "(SELECT max(run) FROM runs AS other WHERE other.job = runs.job)"
            db.execute(
                f"DELETE FROM runs WHERE state = 'ended' AND run < {last} AND (ended < ? OR run <= {last} - ?)",
                (old, MOST_RUNS),
            )

        await self.store.write(work)


_RECORD = "run, runs.due AS due, began, ended, outcome, error, cost"


def _record(found: sqlite3.Row) -> RunRecord:
    return RunRecord(
        run=found["run"],
        due=found["due"],
        began=found["began"],
        ended=found["ended"],
        outcome=found["outcome"],
        error=found["error"],
        cost_usd=found["cost"],
    )


def _count_active(db: sqlite3.Connection, user: str) -> int:
    (count,) = db.execute("SELECT count(*) FROM jobs WHERE user = ? AND state = 'active'", (user,)).fetchone()
    return int(count)


def _found(job: JobRow | None) -> JobRow:
    assert job is not None
    return job
