"""`kai jobs` for an agent: the jobs of its own user."""

from __future__ import annotations

import argparse
import json
from typing import Any

from kai.cli import agentapi
from kai.cli.fail import Failure
from kai.lib.log import printable

LONGEST_CELL, LONGEST_LINE = 80, 2000
FIELDS = ("name", "timezone", "auto_remove", "notify_on_check", "workspace", "model")


def body(arguments: argparse.Namespace, schedule: tuple[str, str] | None, prompt: str | None) -> dict[str, Any]:
    """What was given of a job, as the API takes it."""
    given: dict[str, Any] = {name: getattr(arguments, name) for name in FIELDS}
    given |= {"prompt": prompt, "job_type": arguments.kind, "budget_usd": arguments.budget}
    if schedule:
        given |= {"schedule_type": schedule[0], "schedule_data": json.loads(schedule[1])}
    given["user"] = getattr(arguments, "user", None) or None
    return {name: value for name, value in given.items() if value is not None}


def add(arguments: argparse.Namespace, job: dict[str, Any]) -> int:
    made = agentapi.ask("POST", "/api/schedule", job)
    following = f", next {made['next_run_at']}" if made.get("next_run_at") else ""
    return agentapi.tell(arguments, made, printable(f"job {made['job_id']}: {made['name']}{following}", LONGEST_LINE))


def edit(arguments: argparse.Namespace, change: dict[str, Any]) -> int:
    return _changed(arguments, "changed", change)


def pause(arguments: argparse.Namespace) -> int:
    return _changed(arguments, "paused", {"paused": True})


def resume(arguments: argparse.Namespace) -> int:
    return _changed(arguments, "resumed", {"paused": False})


def _changed(arguments: argparse.Namespace, what: str, change: dict[str, Any]) -> int:
    answer = agentapi.ask("PATCH", f"/api/jobs/{arguments.id}", change)
    return agentapi.tell(arguments, answer, f"job {arguments.id}: {what}")


def remove(arguments: argparse.Namespace) -> int:
    return agentapi.tell(arguments, agentapi.ask("DELETE", f"/api/jobs/{arguments.id}"), f"job {arguments.id}: removed")


def show(arguments: argparse.Namespace) -> int:
    job = agentapi.ask("GET", f"/api/jobs/{arguments.id}")
    facts = {name: value for name, value in job.items() if name not in ("prompt", "times", "runs")}
    lines = [f"{name:16}{_shown(value)}" for name, value in facts.items() if value not in ("", None, False, 0, 0.0)]
    lines += [f"{'next' if not number else '':16}{_shown(at)}" for number, at in enumerate(job["times"])]
    for number, run in enumerate(job["runs"]):
        error = f": {run['error']}" if run["error"] else ""
        lines.append(
            f"{'last runs' if not number else '':16}{_shown(run['began'])}  {run['outcome'] or 'runs'}{_shown(error)}"
        )
    lines += ["", *(printable(line, LONGEST_LINE) for line in job["prompt"].split("\n"))]
    return agentapi.tell(arguments, job, "\n".join(lines))


def list_(arguments: argparse.Namespace) -> int:
    if arguments.user:
        raise Failure("--user is root's: an agent has the jobs of its own user")
    jobs = agentapi.ask("GET", f"/api/jobs?all={'true' if arguments.all else 'false'}")
    rows = [("ID", "STATE", "NEXT", "KIND", "NAME")]
    rows += [(str(job["id"]), job["state"], job["next_run_at"] or "-", job["job_type"], job["name"]) for job in jobs]
    cells = [[printable(cell, LONGEST_CELL) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(4)]
    table = ["  ".join([*(f"{c:{w}}" for c, w in zip(row[:4], widths, strict=True)), row[4]]).rstrip() for row in cells]
    return agentapi.tell(arguments, jobs, "\n".join(table) if jobs else "There is no job.")


def _shown(value: object) -> str:
    return printable(value if isinstance(value, str) else json.dumps(value), LONGEST_LINE)
