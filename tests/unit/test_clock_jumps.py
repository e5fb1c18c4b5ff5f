"""The host's clock is set: what the store says, and with it systemd's timers, stays right.

A container can't set its clock without setting that of its host, so the clock is played here, and PID 1's own part
(timers follow the wall clock) is systemd's promise.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from kai.interfaces import ListTimers, RemoveTimers, SetTimers, StartJobs, Timer, TimerList, TimersSet, TimerState
from kai.lib.varlink import Empty
from kai.scheduler import jobs as jobs_module
from kai.scheduler import reconcile
from kai.scheduler.jobs import JobRow, JobStore, NewJob, end, open_tables
from kai.scheduler.reconcile import Reconciler
from kai.scheduler.runs import RunStore

HOUR, YEAR = 3600.0, 365 * 86400.0


class Systemd:
    """kai-timers: what it has, and what it was asked to start."""

    def __init__(self) -> None:
        self.timers: dict[int, Timer] = {}
        self.started: list[int] = []

    async def call(self, call: Any, *, timeout: float = 0) -> Any:
        if isinstance(call, ListTimers):
            return TimerList([TimerState(one.job, one.revision) for one in self.timers.values()], [])
        if isinstance(call, SetTimers):
            self.timers |= {one.job: one for one in call.timers}
        elif isinstance(call, RemoveTimers):
            for job in call.jobs:
                self.timers.pop(job, None)
        elif isinstance(call, StartJobs):
            self.started += call.jobs
            return Empty()
        return TimersSet([], [])


class World:
    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead, real = 0.0, time.time
        for module in (jobs_module, reconcile):
            monkeypatch.setattr(module, "now", lambda: real() + self.ahead)
        self.store = open_tables(directory)
        self.jobs, self.systemd = JobStore(self.store), Systemd()
        self.runner = SimpleNamespace(asked=set(), missed={}, running=lambda job: False, settled=None)
        config = SimpleNamespace(users=[SimpleNamespace(name="alice")])
        daemon = SimpleNamespace(runtime_dir=directory, busy=_nothing)
        self.reconciler = Reconciler(
            cast(Any, daemon), lambda: cast(Any, config), self.jobs, RunStore(self.store), cast(Any, self.runner)
        )
        self.reconciler.timers = cast(Any, self.systemd)

    async def add(self, kind: Any, due: float, *, calendar: list[str] | None = None, every: int = 0) -> JobRow:
        row = await self.jobs.add(
            NewJob(
                user="alice", name="n", job_type="reminder", prompt="p", schedule_type=kind, schedule_data="{}",
                auto_remove=False, notify_on_check=False, timezone="", workspace="", model="", budget_usd=0,
                zone="UTC", calendar=calendar or [], every=every, due=due,
            ),
            limit=9,
        )  # fmt: skip
        await self.reconciler.changed([row.id])
        return row


@contextmanager
def _nothing() -> Any:
    yield


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    made = World(tmp_path, monkeypatch)
    yield made
    made.store.close()


async def test_a_once_job_that_a_clock_set_forward_jumped_over_is_started(world: World) -> None:
    row = await world.add("once", time.time() + HOUR, calendar=["2099-01-01 00:00:00 UTC"])
    world.ahead = 2 * HOUR
    await world.reconciler.changed()
    assert world.systemd.started == [row.id]
    assert world.systemd.timers == {}, "a one-shot in the past never fires"


async def test_a_once_job_that_has_run_is_not_run_again_when_the_clock_is_set_back(world: World) -> None:
    row = await world.add("once", time.time() + 1, calendar=["2099-01-01 00:00:00 UTC"])
    await world.store.write(lambda db: end(db, row.id))
    world.ahead = -HOUR
    await world.reconciler.changed()
    assert world.systemd.timers == {}
    assert world.systemd.started == []


async def test_a_clock_set_back_leaves_timers_that_are_there_alone(world: World) -> None:
    row = await world.add("daily", time.time() + HOUR, calendar=["*-*-* 09:00:00 UTC"])
    world.ahead = -YEAR
    await world.reconciler.changed()
    assert list(world.systemd.timers) == [row.id]
    assert world.systemd.started == []


@pytest.mark.parametrize("ahead", [-YEAR, -HOUR, 0, HOUR, YEAR])
async def test_an_interval_after_a_boot_is_never_longer_than_it_is(world: World, ahead: float) -> None:
    row = await world.add("interval", time.time() + HOUR, every=3600)
    world.ahead = ahead
    world.systemd.timers.clear()
    await world.reconciler.changed()
    timer = world.systemd.timers[row.id]
    assert 1 <= timer.first <= timer.every == 3600
