"""`kai jobs`: the operator's view of all jobs, and his hand on them. Asks the scheduler; for an agent, its API."""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
from collections.abc import Iterable
from typing import Any, NoReturn, TypeVar

import msgspec

from kai.cli import agentapi, agentjobs
from kai.cli.fail import Failure, need_root
from kai.cli.paths import runtime_dir
from kai.interfaces import (
    Add,
    EditJob,
    GetJob,
    Job,
    JobDetails,
    ListJobs,
    NoSuchJob,
    PauseJob,
    PreviewJob,
    Reconcile,
    RemoveJob,
    ResumeJob,
    RunRecord,
    TriggerJob,
)
from kai.lib.client import Client
from kai.lib.log import printable
from kai.lib.schedules import span, stamp, words
from kai.lib.varlink import Call, Fault, Unavailable

SECONDS = 60.0
"""For an answer: with a thousand jobs, to compare or make all timers takes a while."""
LONGEST_CELL, LONGEST_LINE = 80, 2000
MOST_TIMES = 20
NOTHING = "nothing to change is given"
UNITS = {"s": 1, "sec": 1, "min": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_SPAN = re.compile(r"(?:\s*(\d{1,9})\s*(s|sec|min|h|d|w))+\s*|\s*\d{1,9}\s*", re.ASCII)
R = TypeVar("R", bound=msgspec.Struct)
Parser = argparse.ArgumentParser


def register(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser("jobs", help="scheduled jobs: look, make, change, run")
    _list_options(parser)
    below = parser.add_subparsers(metavar="list | show | add | edit | remove | run | pause | resume | preview | check")
    _list_options(below.add_parser("list", help="the jobs, the next to run first"), suppress=True)
    add = below.add_parser("add", help="make a job for a user")
    add.add_argument("--user", default="", help="whose job it is; root has to say it")
    _job_options(add, new=True)
    add.set_defaults(run=_add, parser=add)
    edit = below.add_parser("edit", help="change what is given of a job")
    edit.add_argument("id", type=number)
    _job_options(edit, new=False)
    edit.set_defaults(run=_edit, parser=edit)
    for name, help_, run in (
        ("show", "one job whole, its next times and its last runs", _show),
        ("remove", "remove a job and its timer", _remove),
        ("run", "run a job now, once", _run),
        ("pause", "keep a job from running", _pause),
        ("resume", "let a paused job run again", _resume),
    ):
        one = below.add_parser(name, help=help_)
        one.add_argument("id", type=number, help="its number, as the list shows it")
        if name != "run":
            agentapi.json_option(one)
        one.set_defaults(run=run)
    preview = below.add_parser("preview", help="the next times of a schedule, by systemd's own calculation")
    _schedule_options(preview, required=True)
    preview.add_argument("--user", default="", help="whose time zone is meant")
    preview.add_argument("--timezone", default="", help="the time zone of its local times")
    preview.add_argument("--count", type=int, choices=range(1, MOST_TIMES + 1), default=5, metavar="N")
    preview.set_defaults(run=_preview)
    check = below.add_parser("check", help="compare systemd's timers with the jobs")
    check.add_argument("--repair", action="store_true", help="put right what differs")
    check.set_defaults(run=_check)


def _list_options(parser: Parser, *, suppress: bool = False) -> None:
    """For the command with and without its word; what the word doesn't say, it leaves as it was said before it."""
    nothing = argparse.SUPPRESS if suppress else None
    parser.add_argument("--user", default=nothing or "", help="only this user's")
    parser.add_argument("--all", action="store_true", default=nothing or False, help="those that have ended too")
    parser.add_argument("--json", action="store_true", default=nothing or False, help="an agent's: print JSON")
    parser.set_defaults(run=_list)


def _job_options(parser: Parser, *, new: bool) -> None:
    """What makes a job. In a change, what isn't given stays as it is."""
    parser.add_argument(
        "--prompt", required=new, metavar="TEXT", help="what is said, or asked of the agent; - reads it"
    )
    parser.add_argument("--name", help="by default the beginning of the prompt")
    _schedule_options(parser, required=new)
    parser.add_argument("--timezone", help="the time zone of its local times, by default the user's")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--agent", dest="kind", action="store_const", const="agent", help="the prompt is for the agent")
    flag: Any = "store_true" if new else argparse.BooleanOptionalAction
    if not new:
        kind.add_argument(
            "--reminder", dest="kind", action="store_const", const="reminder", help="the prompt is for the user"
        )
    parser.add_argument("--auto-remove", action=flag, default=None, help="the job ends when its condition is met")
    parser.add_argument("--notify-on-check", action=flag, default=None, help="tell, too, when it isn't met")
    parser.add_argument("--workspace", help="where the agent works")
    parser.add_argument("--model", help="what it works with")
    parser.add_argument("--budget", type=usd, metavar="USD", help="what a run may cost")
    agentapi.json_option(parser)


def _schedule_options(parser: Parser, *, required: bool) -> None:
    group = parser.add_mutually_exclusive_group(required=required)
    group.add_argument("--at", metavar="TIME", help="once, such as 2026-12-24T18:00")
    group.add_argument("--daily", metavar="TIMES", help="such as 09:00 or 09:00,18:30")
    group.add_argument("--every", type=seconds, metavar="SPAN", help="such as 90s, 10min or 1h30min")
    group.add_argument("--calendar", metavar="EXPR", help="an expression of systemd.time(7), such as 'Mon..Fri 09:00'")


# ---- what the words mean ----


def number(text: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,17}", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"expected a job's number, got {printable(text, 40)!r}")
    return int(text)


def usd(text: str) -> float:
    if not re.fullmatch(r"\d{1,6}(\.\d{1,6})?", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"expected US dollars such as 2.50, got {printable(text, 40)!r}")
    return float(text)


def seconds(text: str) -> int:
    """`90`, `90s`, `10min`, `1h 30min`, `1d`."""
    if not _SPAN.fullmatch(text):
        expected = f"expected a time span such as 90s, 10min or 1h30min, units {', '.join(UNITS)}"
        raise argparse.ArgumentTypeError(f"{expected}; got {printable(text, 40)!r}")
    found = re.findall(r"(\d+)\s*([a-z]*)", text)
    return sum(int(count) * UNITS[unit or "s"] for count, unit in found)


def schedule(arguments: argparse.Namespace) -> tuple[str, str] | None:
    """The schedule's type and data; None where none was given. What is wrong with it, the scheduler says."""
    if arguments.at is not None:
        return "once", json.dumps({"run_at": arguments.at})
    if arguments.daily is not None:
        return "daily", json.dumps({"times": re.split(r"[\s,]+", arguments.daily.strip())})
    if arguments.every is not None:
        return "interval", json.dumps({"seconds": arguments.every})
    if arguments.calendar is not None:
        return "calendar", json.dumps({"calendar": arguments.calendar})
    return None


def _prompt(given: str | None) -> str | None:
    if given != "-":
        return given
    try:
        return sys.stdin.read().rstrip("\n")
    except UnicodeDecodeError as error:
        raise Failure(f"standard input isn't UTF-8: {error.reason} at byte {error.start}") from None


# ---- the commands ----


def _list(arguments: argparse.Namespace) -> int:
    if agentapi.wanted():
        return agentjobs.list_(arguments)
    found = _ask(ListJobs(user=arguments.user, ended=arguments.all))
    whose = f" of {printable(arguments.user, 40)}" if arguments.user else ""
    print(table(found.jobs) if found.jobs else f"There is no job{whose}.")
    if found.more:
        print(f"({found.more} later ones are left off: --user shows those of one user)")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    if agentapi.wanted():
        return agentjobs.show(arguments)
    print(whole(_ask(GetJob(id=arguments.id))))
    return 0


def _add(arguments: argparse.Namespace) -> int:
    if agentapi.wanted():
        agentapi.there()
        return agentjobs.add(arguments, agentjobs.body(arguments, schedule(arguments), _prompt(arguments.prompt)))
    if not arguments.user:
        _wrong(arguments, "the following arguments are required: --user")
    kind, data = schedule(arguments) or ("", "")
    call = Add(
        name=arguments.name or "",
        prompt=_prompt(arguments.prompt) or "",
        schedule_type=kind,
        schedule_data=data,
        job_type=arguments.kind or "reminder",
        auto_remove=bool(arguments.auto_remove),
        notify_on_check=bool(arguments.notify_on_check),
        user=arguments.user,
        timezone=arguments.timezone or "",
        workspace=arguments.workspace or "",
        model=arguments.model or "",
        budget_usd=arguments.budget or 0.0,
    )
    return _told(_ask(call))


def _edit(arguments: argparse.Namespace) -> int:
    if agentapi.wanted():
        agentapi.there()
        change = agentjobs.body(arguments, schedule(arguments), _prompt(arguments.prompt))
        if not change:
            _wrong(arguments, NOTHING)
        return agentjobs.edit(arguments, change)
    kind, data = schedule(arguments) or (None, None)
    call = EditJob(
        id=arguments.id,
        name=arguments.name,
        prompt=_prompt(arguments.prompt),
        schedule_type=kind,
        schedule_data=data,
        job_type=arguments.kind,
        auto_remove=arguments.auto_remove,
        notify_on_check=arguments.notify_on_check,
        timezone=arguments.timezone,
        workspace=arguments.workspace,
        model=arguments.model,
        budget_usd=arguments.budget,
    )
    if call == EditJob(id=arguments.id):
        _wrong(arguments, NOTHING)
    return _told(_ask(call))


def _wrong(arguments: argparse.Namespace, what: str) -> NoReturn:
    parser: Parser = arguments.parser
    parser.error(what)


def _remove(arguments: argparse.Namespace) -> int:
    if agentapi.wanted():
        return agentjobs.remove(arguments)
    _ask(RemoveJob(id=arguments.id))
    print(f"job {arguments.id}: removed")
    return 0


def _run(arguments: argparse.Namespace) -> int:
    _ask(TriggerJob(id=arguments.id))
    print(f"job {arguments.id}: started; `journalctl -u kai-job@{arguments.id}` tells how it goes")
    return 0


def _pause(arguments: argparse.Namespace) -> int:
    if agentapi.wanted():
        return agentjobs.pause(arguments)
    return _told(_ask(PauseJob(id=arguments.id)))


def _resume(arguments: argparse.Namespace) -> int:
    if agentapi.wanted():
        return agentjobs.resume(arguments)
    return _told(_ask(ResumeJob(id=arguments.id)))


def _told(job: Job) -> int:
    following = f", next {stamp(job.next, job.timezone)}" if job.next else ""
    print(printable(f"job {job.id}: {job.state}{following}{f' ({job.note})' if job.note else ''}", LONGEST_LINE))
    return 0


def _preview(arguments: argparse.Namespace) -> int:
    kind, data = schedule(arguments) or ("", "")
    found = _ask(
        PreviewJob(
            schedule_type=kind,
            schedule_data=data,
            user=arguments.user,
            timezone=arguments.timezone,
            count=arguments.count,
        )
    )
    for expression in found.calendar:
        print(printable(f"systemd: {expression}", LONGEST_LINE))
    for at in found.times:
        print(printable(stamp(at, found.timezone), LONGEST_CELL))
    return 0


def _check(arguments: argparse.Namespace) -> int:
    found = differences(repair=arguments.repair)
    for each in found:
        print(each)
    if not found:
        print("systemd's timers are those of the jobs")
    elif arguments.repair:
        print("put right")
    else:
        print("`kai jobs check --repair` puts that right")
    return 1 if found and not arguments.repair else 0


def differences(*, repair: bool = False) -> list[str]:
    """What systemd has otherwise than the scheduler, in words. Raises Failure."""
    return [printable(each, LONGEST_LINE) for each in _ask(Reconcile(look=not repair)).found]


# ---- how they look ----


def table(jobs: Iterable[Job]) -> str:
    """A line for each. What others wrote can't paint here."""
    rows = [("ID", "USER", "STATE", "NEXT", "KIND", "LAST", "NAME")]
    for job in jobs:
        state = f"{job.state}, runs" if job.running else job.state
        last = (job.last.outcome or "runs") if job.last else "-"
        following = stamp(job.next, job.timezone) if job.next else "-"
        why = job.note or (job.last.error if job.last else "")
        name = f"[{why}] {job.name}" if why else job.name
        cells = (str(job.id), job.user, state, following, job.job_type, last, name)
        rows.append(tuple(printable(cell, LONGEST_CELL) for cell in cells))  # type: ignore[arg-type]
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    lines = ((*(f"{cell:{width}}" for cell, width in zip(row[:6], widths, strict=True)), row[6]) for row in rows)
    return "\n".join("  ".join(line).rstrip() for line in lines)


def whole(found: JobDetails) -> str:
    """One job, a line for each thing that is known of it; then its next times, its last runs and its prompt."""
    job = found.job
    condition = "ends when it is met" + (", a check is told of" if job.notify_on_check else "")
    facts = {
        "id": str(job.id),
        "user": job.user,
        "name": job.name,
        "kind": job.job_type,
        "state": f"{job.state}{', runs' if job.running else ''}{f': {job.note}' if job.note else ''}",
        "schedule": words(job.schedule_type, job.schedule_data),
        "zone": job.timezone,
        "condition": condition if job.auto_remove else "",
        "workspace": job.workspace,
        "model": job.model,
        "budget": f"${job.budget_usd:.2f}" if job.budget_usd else "",
        "made": stamp(job.created_at, job.timezone),
        "failures": f"{job.failures} in a row" if job.failures else "",
        "unit": f"kai-job@{job.id}.timer",
    }
    lines = [f"{name:11}{printable(value, LONGEST_LINE)}" for name, value in facts.items() if value]
    lines += [f"{'next' if not n else '':11}{stamp(at, job.timezone)}" for n, at in enumerate(found.times)]
    runs = [printable(_ran(run, job.timezone), LONGEST_LINE) for run in found.runs]
    lines += [f"{'last runs' if not n else '':11}{run}" for n, run in enumerate(runs)]
    return "\n".join([*lines, "", *(printable(line, LONGEST_LINE) for line in job.prompt.split("\n"))])


def _ran(run: RunRecord, zone: str) -> str:
    took = f", took {span(run.ended - run.began)}" if run.ended and run.began else ""
    cost = f", ${run.cost_usd:.4f}" if run.cost_usd else ""
    error = f": {run.error}" if run.error else ""
    return f"{stamp(run.began or run.due, zone)}  {run.outcome or 'runs'}{took}{cost}{error}"


def _ask(call: Call[R]) -> R:
    need_root("kai jobs")
    try:
        return asyncio.run(Client(runtime_dir() / "scheduler.sock").call(call, timeout=SECONDS))
    except NoSuchJob:
        raise Failure(f"there is no job {getattr(call, 'id', '')}: `kai jobs list --all` shows all") from None
    except Fault as error:
        raise Failure(printable(str(error), 500)) from None
    except Unavailable as error:
        raise Failure(f"{printable(str(error))}: see `systemctl status kai-scheduler.socket kai-scheduler`") from None
