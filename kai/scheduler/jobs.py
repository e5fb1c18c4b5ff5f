"""The scheduler's database: the tables, and what is done with jobs. Runs have `runs.py`.

A job is `active` (a timer stands for it), `paused` (none does, `note` says why) or `ended` (kept for a while, so that
its last result can be looked up). `revision` goes up with every change of what its timer is, and when a paused one
becomes active again: a timer of another revision is not this job's. Ids are never given out again.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from kai.interfaces import LISTED_PROMPT, RunRecord, Timer
from kai.lib.store import Store

State = Literal["active", "paused", "ended"]
JobType = Literal["reminder", "agent"]
ScheduleType = Literal["once", "daily", "interval", "calendar"]
T = TypeVar("T")

KEPT = 7 * 86400
"""Seconds for which what has ended is kept."""
AT_REST = 4
"""How many times as many jobs as may be active a user may have in all, and how many ended ones are kept of him."""
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
    announce INTEGER NOT NULL DEFAULT 0,       -- its user is still to be told that his agent made or changed it
    edits INTEGER NOT NULL DEFAULT 0,          -- changes that he is told of: each has a message of its own
    stale REAL NOT NULL DEFAULT 0              -- when a timer that it had elapses: systemd may have it still; 0 none
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
    edits: int
    stale: float

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
_LISTED = COLUMNS.replace(
    "prompt", "CASE WHEN length(prompt) > ? THEN substr(prompt, 1, ?) || '…' ELSE prompt END AS prompt", 1
)
_FLAGS = ("auto_remove", "notify_on_check", "announce")
_TIMER = ("calendar", "every", "schedule_type")
"""A change of one of these is another timer; so is becoming active again."""


class TooMany(Exception):
    """The user has as many jobs as he may: active ones, or with `paused` those and paused ones."""

    def __init__(self, *, paused: bool = False) -> None:
        super().__init__()
        self.paused = paused


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
    if before.state == "active" and before.due and ("revision" in changed or "state" in changed):
        changed["stale"] = min(before.stale or before.due, before.due)  # until systemd has been told
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
            if _count(db, new.user, "active") >= limit:
                raise TooMany
            if _count(db, new.user, "active", "paused") >= AT_REST * limit:
                raise TooMany(paused=True)
            _forget_ended(db, new.user, AT_REST * limit)
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

    async def ids(self, user: str = "") -> list[int]:
        """The jobs of a user, or of all, that haven't ended."""
        of_user, parameters = ("AND user = ?", (user,)) if user else ("", ())
        query = f"SELECT id FROM jobs WHERE state != 'ended' {of_user} ORDER BY id"
        return [record["id"] for record in await self.store.read(query, parameters)]

    async def listed(self, user: str = "", *, ended: bool = False, shown: int = LISTED_PROMPT) -> list[JobRow]:
        """Jobs of a user, or of all: the next to run first, then those that don't. Prompts are cut after `shown`."""
        where, parameters = ["1"], []
        if user:
            where.append("user = ?")
            parameters.append(user)
        if not ended:
            where.append("state != 'ended'")
        query = f"SELECT {_LISTED} FROM jobs WHERE {' AND '.join(where)} ORDER BY due = 0, due, id"
        return [row(record) for record in await self.store.read(query, (shown, shown - 1, *parameters))]

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
            if _count(db, found.user, "active") >= limit:
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

    async def settled(self, but: Iterable[int]) -> None:
        """systemd has no timer any more that isn't a job's own, except those of `but`."""
        left = set(but)

        def work(db: sqlite3.Connection) -> None:
            found = [job for (job,) in db.execute("SELECT id FROM jobs WHERE stale") if job not in left]
            db.executemany("UPDATE jobs SET stale = 0 WHERE id = ?", [(job,) for job in found])

        await self.store.write(work)

    async def announced(self, told: JobRow) -> None:
        """The user knows of this job as it was when he was told."""
        query = "UPDATE jobs SET announce = 0 WHERE id = ? AND edits = ?"
        await self.store.write(lambda db: db.execute(query, (told.id, told.edits)))

    async def unannounced(self) -> list[JobRow]:
        """Jobs whose users are still to be told that their agents made or changed them."""
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


def _count(db: sqlite3.Connection, user: str, *states: State) -> int:
    marks = ", ".join("?" * len(states))
    query = f"SELECT count(*) FROM jobs WHERE user = ? AND state IN ({marks})"
    (count,) = db.execute(query, (user, *states)).fetchone()
    return int(count)


def _forget_ended(db: sqlite3.Connection, user: str, kept: int) -> None:
    """Whoever makes jobs without end that end soon fills no disk."""
    over = "SELECT id FROM jobs WHERE user = ? AND state = 'ended' AND id NOT IN (SELECT job FROM runs WHERE "
    over += "state != 'ended') ORDER BY changed DESC, id DESC LIMIT -1 OFFSET ?"
    db.execute(f"DELETE FROM runs WHERE job IN ({over})", (user, kept))
    db.execute(f"DELETE FROM jobs WHERE id IN ({over})", (user, kept))


def _found(job: JobRow | None) -> JobRow:
    assert job is not None
    return job
