"""What the chat shows of jobs: a list, and one of them whole. Names and prompts are users' words, shown as code."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import tzinfo

from kai.bot import picker
from kai.bot.message import Body, Button, Buttons, Code, body, compose, plain
from kai.bot.settings import Pieces
from kai.bot.split import LIMIT
from kai.bot.stats import money
from kai.bot.text import Span, assemble, clean, length
from kai.bot.tools import shorten
from kai.interfaces import Job, JobDetails, RunRecord
from kai.lib.schedules import span, when, words

PREFIX = "job"
"""The first word of the data of a job's buttons; id and verb follow."""
MOST_BUTTONS = 10
MOST_LISTED = 25
MOST_RUNS = 5
LONGEST_LIST = 3600
"""UTF-16 code units of the jobs in a list, so that the rest of it fits into the same message."""
LONGEST_NAME, LONGEST_SCHEDULE, LONGEST_REASON, LONGEST_IDS = 60, 100, 120, 200
OUTCOMES = {"": "began", "delivered": "delivered", "quiet": "nothing to tell", "failed": "failed"}
ALL = Button("◀ All jobs", f"{PREFIX}:0:list")
DAY = 86400


def listed(jobs: Sequence[Job], where: tzinfo, now: float, *, more: int = 0) -> Body:
    """All jobs in one message, as they come, with buttons for the first; those that don't fit by their numbers.

    `more` is how many there are besides.
    """
    if not jobs:
        return plain("You have no jobs.")
    pieces: Pieces = ["Your jobs, the next one first:"]
    shown = used = 0
    for job in jobs[:MOST_LISTED]:
        entry = _entry(job, where, now)
        used += sum(length(piece if isinstance(piece, str) else piece.text) for piece in entry)
        if used > LONGEST_LIST:
            break
        pieces += entry
        shown += 1
    if left := [str(job.id) for job in jobs[shown:]]:
        pieces.append(f"\n\nAnd {len(left) + more} more: {shorten(', '.join(left), LONGEST_IDS)}")
    pieces.append("\n\nMore of one: /job info ID")
    made = [Button(picker.label_of(f"{job.id} {job.name}"), f"{PREFIX}:{job.id}:info") for job in jobs[:MOST_BUTTONS]]
    (message,) = compose(*pieces, buttons=picker.rows(made))
    return message


def _entry(job: Job, where: tzinfo, now: float) -> Pieces:
    """Two lines: what it is, and when it runs next and how it went last."""
    lines: Pieces = [f"\n\n{job.id} ", _name(job, LONGEST_NAME), f" – {job.job_type}, {_schedule(job)}\n"]
    lines += [f"{_state(job, where, now)}", f" · last: {_run(job.last, where, now)}" if job.last else ""]
    return lines


def whole(found: JobDetails, where: tzinfo, now: float, *, done: str = "", buttons: Buttons | None = None) -> Body:
    """One job in one message, its prompt cut where it must be. `done` is what was just done with it."""
    job = found.job
    text, spans = "", []

    def add(said: str, kind: str = "") -> None:
        nonlocal text
        shown = clean(said)
        if kind:
            spans.append(Span(kind, len(text), len(text) + len(shown)))
        text += shown

    if done:
        add(f"{done}\n\n")
    add(f"Job {job.id} ")
    add(_name(job, LONGEST_NAME * 2).text, "code")
    add("\n" + "\n".join(shorten(line, 2 * LONGEST_REASON) for line in _facts(found, where, now)))
    add("\n\n")
    add(_prompt(job.prompt, LIMIT - length(text)), "pre")
    return body(assemble(text, spans), buttons)


def controls(job: Job, *, started: bool = False) -> Buttons:
    """What can be done with a job in this state."""
    if job.state == "ended":
        return [ALL]
    runs = started or job.running
    first = ("↻ Look again", "info") if runs else ("▶ Run now", "run")
    second = ("Resume", "resume") if job.state == "paused" else ("⏸ Pause", "pause")
    made = [Button(label, f"{PREFIX}:{job.id}:{verb}") for label, verb in (first, second, ("✗ Cancel", "cancel"))]
    return [made[:2], [made[2], ALL]]


def _facts(found: JobDetails, where: tzinfo, now: float) -> list[str]:
    job = found.job
    there = "" if job.timezone in ("", str(where)) else f" ({job.timezone})"
    lines = [f"{job.job_type}, {_schedule(job)}{there}"]
    lines.append(f"state: {_state(job, where, now)}")
    if len(found.times) > 1:
        lines.append(f"then: {'; '.join(when(at, where, now) for at in found.times[1:5])}")
    if job.auto_remove:
        quiet = "told too" if job.notify_on_check else "not told"
        lines.append(f"ends when its condition is met; a check that finds it isn't is {quiet}")
    own = [
        f"workspace {shorten(job.workspace, LONGEST_NAME)}" if job.workspace else "",
        f"model {shorten(job.model, LONGEST_NAME)}" if job.model else "",
        f"budget {money(job.budget_usd)}" if job.budget_usd else "",
    ]
    if any(own):
        lines.append(", ".join(word for word in own if word))
    runs = found.runs[:MOST_RUNS]
    return [*lines, "last runs:" if runs else "no run yet", *(f"– {_run(run, where, now)}" for run in runs)]


def _schedule(job: Job) -> str:
    """When a job runs once is what it runs next, as long as it hasn't run."""
    if job.schedule_type == "once" and job.next:
        return "once"
    return shorten(words(job.schedule_type, job.schedule_data), LONGEST_SCHEDULE)


def _state(job: Job, where: tzinfo, now: float) -> str:
    note = f": {shorten(job.note, LONGEST_REASON)}" if job.note else ""
    if job.state != "active":
        return f"{job.state}{note}{', running now' if job.running else ''}"
    if not job.next:
        return f"{'running now' if job.running else 'active'}{note}"
    left = job.next - now
    soon = f" (in {span(left if left < 3600 else left // 60 * 60)})" if 0 < left < DAY else ""
    running = "running now, then " if job.running else "next "
    return f"{running}{when(job.next, where, now)}{soon}{note}"


def _run(run: RunRecord, where: tzinfo, now: float) -> str:
    """`delivered today 09:00, $0.0123`."""
    said = OUTCOMES.get(run.outcome, run.outcome)
    if not run.outcome and not run.began:
        said = "is about to begin"
    cost = f", {money(run.cost_usd)}" if run.cost_usd else ""
    error = f": {shorten(run.error, LONGEST_REASON)}" if run.error else ""
    at = run.ended or run.began or run.due
    return f"{said} {when(at // 60 * 60, where, now)}{cost}{error}"


def _name(job: Job, longest: int) -> Code:
    return Code(shorten(job.name, longest) or "(no name)")


def _prompt(text: str, room: int) -> str:
    """The beginning of a prompt that fits into so many UTF-16 code units."""
    shown = clean(text).strip()
    if length(shown) <= room:
        return shown
    mark = f"\n… ({len(shown)} characters in all)"
    most = room - len(mark)
    kept = shown[: most if shown.isascii() else most // 2]  # a character is two code units at the most
    return kept + mark
