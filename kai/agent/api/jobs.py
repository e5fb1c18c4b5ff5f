"""Jobs over the API: S10's fields in JSON, passed to kai-scheduler, which knows whose they are from the kernel."""

from __future__ import annotations

from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import msgspec

from kai.agent.api.fields import Body, read
from kai.agent.api.http import Refused, Request
from kai.agent.setup import Setup
from kai.interfaces import Add, EditJob, GetJob, Job, ListJobs, PauseJob, RemoveJob, ResumeJob
from kai.lib.client import Client

SECONDS = 30.0
"""For an answer of the scheduler."""


_NOTHING = msgspec.Raw(b"")


class NewJob(Body):
    """POST /api/schedule. `schedule_data` is an object, or a text that holds one as JSON."""

    prompt: str
    schedule_type: str
    schedule_data: msgspec.Raw
    name: str = ""
    job_type: str = "reminder"
    auto_remove: bool = False
    notify_on_check: bool = False
    timezone: str = ""
    workspace: str = ""
    model: str = ""
    budget_usd: float = 0.0


class Change(Body):
    """PATCH /api/jobs/ID: what isn't given stays."""

    name: str | None = None
    prompt: str | None = None
    schedule_type: str | None = None
    schedule_data: msgspec.Raw = _NOTHING
    job_type: str | None = None
    auto_remove: bool | None = None
    notify_on_check: bool | None = None
    timezone: str | None = None
    workspace: str | None = None
    model: str | None = None
    budget_usd: float | None = None
    paused: bool | None = None


class Jobs:
    """One user's."""

    def __init__(self, scheduler: Path, setup: Setup) -> None:
        self.scheduler, self.setup = Client(scheduler), setup

    async def add(self, request: Request) -> Any:
        new = await read(request, NewJob, self.setup.user)
        job = await self.scheduler.call(
            Add(
                name=new.name,
                prompt=new.prompt,
                schedule_type=new.schedule_type,
                schedule_data=_text(new.schedule_data),
                job_type=new.job_type,
                auto_remove=new.auto_remove,
                notify_on_check=new.notify_on_check,
                user=self.setup.user.name,
                timezone=new.timezone,
                workspace=new.workspace,
                model=new.model,
                budget_usd=new.budget_usd,
            ),
            timeout=SECONDS,
        )
        return {"job_id": job.id, "name": job.name, "next_run_at": moment(job.next, job.timezone)}

    async def list(self, request: Request) -> Any:
        ended = request.query.get("all", "false")
        if ended not in ("true", "false", "1", "0"):
            raise Refused(400, "all: expected true or false")
        found = await self.scheduler.call(ListJobs(self.setup.user.name, ended in ("true", "1")), timeout=SECONDS)
        return [shape(job) for job in found.jobs]

    async def get(self, request: Request, number: int) -> Any:
        found = await self.scheduler.call(GetJob(number, self.setup.user.name), timeout=SECONDS)
        zone = found.job.timezone
        return {
            **shape(found.job),
            "times": [moment(at, zone) for at in found.times],
            "runs": [
                {"began": moment(run.began or run.due, zone), "ended": moment(run.ended, zone), "outcome": run.outcome,
                 "error": run.error}
                for run in found.runs
            ],
        }  # fmt: skip

    async def change(self, request: Request, number: int) -> Any:
        change = await read(request, Change, self.setup.user)
        edit = EditJob(
            id=number,
            user=self.setup.user.name,
            name=change.name,
            prompt=change.prompt,
            schedule_type=change.schedule_type,
            schedule_data=None if bytes(change.schedule_data) in (b"", b"null") else _text(change.schedule_data),
            job_type=change.job_type,
            auto_remove=change.auto_remove,
            notify_on_check=change.notify_on_check,
            timezone=change.timezone,
            workspace=change.workspace,
            model=change.model,
            budget_usd=change.budget_usd,
        )
        nothing = edit == EditJob(id=number, user=self.setup.user.name)
        if nothing and change.paused is None:
            raise Refused(400, "body: expected something to change")
        if not nothing:
            await self.scheduler.call(edit, timeout=SECONDS)
        if change.paused is not None:
            turn = PauseJob if change.paused else ResumeJob
            await self.scheduler.call(turn(number, self.setup.user.name), timeout=SECONDS)
        return {"updated": number}

    async def remove(self, request: Request, number: int) -> Any:
        await self.scheduler.call(RemoveJob(number, self.setup.user.name), timeout=SECONDS)
        return {"deleted": number}


def shape(job: Job) -> dict[str, Any]:
    """A job as kai-api(7) has it."""
    return {
        "id": job.id,
        "name": job.name,
        "job_type": job.job_type,
        "prompt": job.prompt,
        "schedule_type": job.schedule_type,
        "schedule_data": msgspec.Raw(job.schedule_data.encode()),
        "auto_remove": job.auto_remove,
        "notify_on_check": job.notify_on_check,
        "created_at": moment(job.created_at, job.timezone),
        "state": job.state,
        "next_run_at": moment(job.next, job.timezone),
        "timezone": job.timezone,
        "workspace": job.workspace,
        "model": job.model,
        "budget_usd": job.budget_usd,
        "note": job.note,
    }


def moment(at: float, zone: str) -> str | None:
    """ISO 8601 in a time zone; None for never."""
    if not at:
        return None
    try:
        there: tzinfo = ZoneInfo(zone)
    except (OSError, ValueError, KeyError):
        there = UTC
    return datetime.fromtimestamp(at, there).isoformat(timespec="seconds")


def _text(data: msgspec.Raw) -> str:
    """The JSON text of an object that came as itself or in a string."""
    raw = bytes(data)
    try:
        return msgspec.json.decode(raw, type=str) if raw.startswith(b'"') else raw.decode()
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Refused(400, "schedule_data: expected an object, or a text that holds one as JSON") from None
