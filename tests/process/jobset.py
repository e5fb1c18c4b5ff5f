"""A set with the scheduler in it: real daemons, and kai-timers above a systemd that is played (`timers.py`)."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec

from kai.demo.launcher import Launcher, python
from kai.demo.service import Unit
from kai.interfaces import Add, GetJob, Job, JobDetails, ListTimers, NoSuchJob, Reconcile, RunRecord
from kai.lib.client import Client
from kai.lib.varlink import Call

from . import timers
from .conftest import ALICE, Stage

R = TypeVar("R", bound=msgspec.Struct)


def unit(launcher: Launcher) -> Unit:
    interpreter, _ = python()
    return Unit(
        "kai-scheduler",
        (*interpreter, "-m", "kai.scheduler.main", "--one-uid"),
        (("scheduler", launcher.runtime / "scheduler.sock"),),
        launcher._environment("scheduler"),
    )


class JobSet:
    """A stage with jobs: `add` makes one of Alice's, `delivered` waits for what reaches her."""

    def __init__(self, stage: Stage) -> None:
        self.stage, self.launcher, self.api = stage, stage.launcher, stage.api
        self.launcher.add(timers.unit(self.launcher))
        self.launcher.add(unit(self.launcher))
        self.client = Client(self.launcher.runtime / "scheduler.sock")
        self.timers = Client(self.launcher.runtime / "timers.sock")

    async def call(self, call: Call[R]) -> R:
        return await self.client.call(call)

    async def add(self, prompt: str, schedule: dict[str, Any] | float, **more: Any) -> Job:
        """A job; its schedule is data of that kind, or in how many seconds it is to run once."""
        if not isinstance(schedule, dict):
            schedule = {"run_at": at(schedule)}
        kinds = {"run_at": "once", "times": "daily", "seconds": "interval", "calendar": "calendar"}
        kind = next(kinds[name] for name in schedule)
        more = {"user": "alice", "name": "", **more}
        return await self.call(Add(prompt=prompt, schedule_type=kind, schedule_data=json.dumps(schedule), **more))

    async def get(self, job: int) -> JobDetails:
        return await self.call(GetJob(id=job))

    async def ended(self, job: int, count: int = 1, within: float = 30) -> list[RunRecord]:
        """The runs of a job, the newest first, once so many have ended."""
        async with asyncio.timeout(within):
            while True:
                runs = (await self.get(job)).runs
                if sum(run.ended > 0 for run in runs) >= count:
                    return runs
                await asyncio.sleep(0.05)

    async def gone(self, job: int, within: float = 30) -> None:
        async with asyncio.timeout(within):
            while True:
                try:
                    if (await self.get(job)).job.state == "ended":
                        return
                except NoSuchJob:
                    return
                await asyncio.sleep(0.05)

    async def known(self) -> set[int]:
        """The jobs that systemd has a timer for."""
        return {timer.job for timer in (await self.timers.call(ListTimers())).timers}

    async def has_no_timers(self, within: float = 10) -> None:
        """They go a moment after the job that they were for."""
        async with asyncio.timeout(within):
            while await self.known():
                await asyncio.sleep(0.02)

    async def differences(self, *, look: bool = True) -> list[str]:
        return (await self.call(Reconcile(look=look))).found

    async def delivered(self, contains: str, *, user: int = ALICE, timeout: float = 30) -> str:
        return (await self.stage.answer(contains, user=user, timeout=timeout)).text or ""

    def count(self, contains: str, *, user: int = ALICE) -> int:
        return sum(contains in text for text in self.stage.shown(user))

    async def until(self, condition: Callable[[], bool], within: float = 30) -> None:
        async with asyncio.timeout(within):
            while not condition():
                await asyncio.sleep(0.02)

    def starts(self, job: int) -> list[timers.Start]:
        return timers.starts(self.launcher, job)


def at(seconds: float) -> str:
    """So many seconds from now, in UTC, to the next whole one."""
    moment = datetime.fromtimestamp(int(time.time() + seconds) + 1, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
