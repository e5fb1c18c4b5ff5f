"""What a job says: to its agent before the prompt, and to its user in the chat. Times are told in the job's zone."""

from __future__ import annotations

from kai.lib import schedules
from kai.lib.log import printable
from kai.scheduler.announce import plain
from kai.scheduler.condition import PROTOCOL
from kai.scheduler.jobs import JobRow
from kai.scheduler.runs import MOST_FAILURES, Run

LATE = 60.0
"""Seconds after its time from which a run says that it is late."""
LONGEST_REASON = 1000
LONGEST_ANSWER = 100_000
"""Characters: escaped as JSON they still fit into one message to the bot."""


def is_late(run: Run) -> bool:
    return run.due > 0 and run.began - run.due > LATE


def when(job: JobRow, at: float, now: float) -> str:
    return schedules.when(at, schedules.zone(job.zone), now)


def prompt(job: JobRow, run: Run) -> str:
    """The job's prompt, below what the agent has to know of its place."""
    due = schedules.stamp(run.due, job.zone) if run.due else ""
    asked = f"It was due on {due}{', and runs late' if is_late(run) else ''}." if due else "It was started by hand."
    told = (
        f'[Kai] This is the scheduled job {job.id} "{printable(job.name, 200)}", run {run.run}. {asked} Nobody is '
        "there to answer questions. Your final answer is sent to the user."
    )
    return f"{told}{f' {PROTOCOL}' if job.auto_remove else ''}\n\n{job.prompt}"


def reminder(job: JobRow, run: Run) -> str:
    """A reminder as it comes into the chat. Its name is told where the text doesn't begin with it."""
    named = job.prompt.strip().startswith(job.name.rstrip("…"))
    title = "" if named else f"{plain(job.name)}\n\n"
    return f"⏰ {title}{job.prompt.strip()}{_late(job, run)}"


def result(job: JobRow, run: Run, text: str) -> str:
    """An agent's answer as it comes into the chat."""
    said = text.strip() or "(The agent said nothing.)"
    if len(said) > LONGEST_ANSWER:
        said = f"{said[:LONGEST_ANSWER]}…\n\n(The answer was longer than {LONGEST_ANSWER} characters; the rest is cut.)"
    return f"⏰ {plain(job.name)}{_late(job, run)}\n\n{said}"


def failure(job: JobRow, run: Run, reason: str, *, due: float, over: bool, now: float) -> str:
    """Why a run failed, and what comes next."""
    if over:
        after = "It was to run once, and isn't repeated."
    elif job.failures + 1 >= MOST_FAILURES:
        after = f"It failed {job.failures + 1} times in a row and is paused: /job resume {job.id} goes on."
    elif job.state == "active" and due:
        after = f"Next run: {when(job, due, now)}."
    else:
        after = f"/job run {job.id} tries again."
    said = plain(printable(" ".join(reason.split()), LONGEST_REASON)).rstrip(". ")
    return f"⚠ Job {job.id}, “{plain(job.name)}”, failed: {said}. {after}{_late(job, run)}"


def called(job: JobRow) -> str:
    """How its supervisor calls what was delivered."""
    return f"{'reminder' if job.job_type == 'reminder' else 'job'} {job.id} “{printable(job.name, 100)}”"


def _late(job: JobRow, run: Run) -> str:
    return f"\n\n(late: it was due {when(job, run.due, run.began)})" if is_late(run) else ""
