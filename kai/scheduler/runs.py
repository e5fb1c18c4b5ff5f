"""What is done with the runs of jobs, and with the notes that go to supervisors. The tables are in `jobs.py`.

A run is `running` until its result is known, `answered` until that is safely with the bot, then `ended`. Each step is
on disk before the next is taken; whoever comes after a crash goes on where the row says.
"""

from __future__ import annotations

import sqlite3
from typing import Literal

import msgspec

from kai.interfaces import Journal
from kai.lib.store import Store
from kai.scheduler import jobs
from kai.scheduler.condition import Verdict
from kai.scheduler.jobs import JobRow, now

MOST_FAILURES = 5
"""In a row; then the job is paused."""
MOST_NOTES, LONGEST_NOTE = 1000, 65536
"""What a supervisor that is away for long is told when it comes back: so many, of so many characters."""
Outcome = Literal["delivered", "quiet", "failed"]


class Run(msgspec.Struct):
    """A run as it stands in the table. Times are seconds since the epoch; `due` 0 is a run that was asked for."""

    job: int
    run: int
    revision: int
    state: Literal["running", "answered", "ended"]
    due: float
    began: float
    error: str = ""
    text: str = ""
    verdict: Verdict = ""
    cost: float = 0.0
    generation: str = ""
    boot: str = ""

    @property
    def turn(self) -> str:
        return f"job:{self.job}:{self.run}"


class Ended(msgspec.Struct):
    """How a run ended."""

    run: int
    outcome: str


class Note(msgspec.Struct):
    """What a supervisor is still to be told."""

    turn: str
    user: str
    what: str
    text: str
    at: float


_COLUMNS = ", ".join(Run.__struct_fields__)
_NOTE = ", ".join(Note.__struct_fields__)


class RunStore:
    """The runs of all jobs. Every function is one transaction."""

    def __init__(self, store: Store) -> None:
        self.store = store

    async def begin(self, job: JobRow, due: float, start: str = "") -> Run | None:
        """The unfinished run of a job, or a new one; on disk when this returns."""

        def work(db: sqlite3.Connection) -> Run | None:
            if jobs.find(db, job.id) is None:
                return None  # removed meanwhile
            found = db.execute(f"SELECT {_COLUMNS} FROM runs WHERE job = ? AND state != 'ended'", (job.id,)).fetchone()
            if found:
                db.execute("UPDATE runs SET start = ? WHERE job = ? AND state != 'ended'", (start, job.id))
                return Run(**dict(found))
            (last,) = db.execute("SELECT coalesce(max(run), 0) FROM runs WHERE job = ?", (job.id,)).fetchone()
            run = Run(job.id, last + 1, job.revision, "running", due, now())
            db.execute(
                "INSERT INTO runs (job, run, revision, state, due, began, start) VALUES (?, ?, ?, 'running', ?, ?, ?)",
                (run.job, run.run, run.revision, run.due, run.began, start),
            )
            return run

        return await self.store.write(work)

    async def ended(self, job: int, start: str) -> Ended | None:
        """The run that this start of kai-job@ began, where it has ended."""
        query = "SELECT run, outcome FROM runs WHERE job = ? AND start = ? AND state = 'ended'"
        return next(
            (Ended(found["run"], found["outcome"]) for found in await self.store.read(query, (job, start))), None
        )

    async def unfinished(self) -> list[int]:
        """The jobs that have an unfinished run."""
        return [found["job"] for found in await self.store.read("SELECT job FROM runs WHERE state != 'ended'")]

    async def began(self) -> dict[int, float]:
        """When the last run of each job with an interval began."""
        query = "SELECT job, max(began) AS began FROM runs JOIN jobs ON id = job AND every > 0 GROUP BY job"
        return {found["job"]: found["began"] for found in await self.store.read(query)}

    async def given(self, run: Run, journal: Journal) -> None:
        """The turn is about to be given to the agent whose journal this is."""
        run.generation, run.boot = journal.generation, journal.boot
        await self.store.write(
            lambda db: db.execute(
                "UPDATE runs SET generation = ?, boot = ? WHERE job = ? AND run = ?",
                (run.generation, run.boot, run.job, run.run),
            )
        )

    async def answered(self, run: Run, *, text: str, error: str = "", verdict: Verdict = "", cost: float = 0.0) -> None:
        """The result is known: `text` is to be delivered, "" nothing; `error` says why it failed."""
        run.state, run.text, run.error, run.verdict, run.cost = "answered", text, error, verdict, cost
        await self.store.write(
            lambda db: db.execute(
                "UPDATE runs SET state = 'answered', text = ?, error = ?, verdict = ?, cost = ? "
                "WHERE job = ? AND run = ?",
                (text, error, verdict, cost, run.job, run.run),
            )
        )

    async def end(self, run: Run, outcome: Outcome, *, due: float, over: bool, what: str) -> JobRow | None:
        """The result is with the bot, or there is none to deliver: run, job and note in one transaction.

        `due` is when the job elapses next. `over` ends it, unless it was planned anew meanwhile. `what` is how a
        delivered text is called in the note to the supervisor. Gives the job as it is then, None when it is gone.
        """

        def work(db: sqlite3.Connection) -> JobRow | None:
            time = now()
            changed = db.execute(
                "UPDATE runs SET state = 'ended', outcome = ?, error = ?, ended = ?, text = '' "
                "WHERE job = ? AND run = ? AND state != 'ended'",
                (outcome, run.error, time, run.job, run.run),
            ).rowcount
            row = jobs.find(db, run.job)
            if not changed or row is None:
                return row
            if run.text:
                db.execute(
                    f"INSERT OR IGNORE INTO notes ({_NOTE}) VALUES (?, ?, ?, ?, ?)",
                    (run.turn, row.user, what, run.text[:LONGEST_NOTE], time),
                )
                old = "SELECT turn FROM notes WHERE user = ? ORDER BY at DESC, turn LIMIT -1 OFFSET ?"
                db.execute(f"DELETE FROM notes WHERE turn IN ({old})", (row.user, MOST_NOTES))
            failures = jobs.failed(db, run.job) if outcome == "failed" else 0
            if outcome != "failed":
                jobs.succeeded(db, run.job)
            if row.state == "active" and row.revision == run.revision:
                jobs.update(db, run.job, due=due)
            if over:
                jobs.end(db, run.job, revision=run.revision)
            elif failures >= MOST_FAILURES:
                jobs.pause(db, run.job, f"it failed {failures} times in a row")
            return jobs.find(db, run.job)

        return await self.store.write(work)

    # ---- notes ----

    async def unnoted(self) -> list[str]:
        """The users whose supervisors are still to be told something."""
        return [found["user"] for found in await self.store.read("SELECT DISTINCT user FROM notes")]

    async def notes(self, user: str, most: int) -> list[Note]:
        """What a supervisor is still to be told, the oldest first."""
        query = f"SELECT {_NOTE} FROM notes WHERE user = ? ORDER BY at, turn LIMIT ?"
        return [Note(**dict(found)) for found in await self.store.read(query, (user, most))]

    async def noted(self, turn: str) -> None:
        await self.store.write(lambda db: db.execute("DELETE FROM notes WHERE turn = ?", (turn,)))
