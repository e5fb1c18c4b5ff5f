"""What systemd has is what the store says: at each start, after each change, and after each accident."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing

import pytest

from kai.interfaces import EditJob, PauseJob, RemoveJob, RemoveTimers, SetTimers, Timer, TriggerJob
from kai.lib.varlink import Busy

from . import timers
from .conftest import Stage
from .jobset import JobSet

DAILY = {"times": ["03:33"]}


@pytest.fixture
async def here(stage: Stage) -> AsyncIterator[JobSet]:
    yield JobSet(stage)


async def test_an_idle_scheduler_leaves_and_comes_back_with_the_next_call(here: JobSet) -> None:
    job = await here.add("x", DAILY)
    await here.launcher.wait_exit("kai-scheduler", within=40)
    assert (await here.get(job.id)).job.state == "active"
    assert here.launcher.starts("kai-scheduler") == 2


async def test_a_timer_stopped_by_hand_is_shown_and_made_again(here: JobSet) -> None:
    job = await here.add("x", DAILY)
    await here.timers.call(RemoveTimers(jobs=[job.id]))
    [found] = await here.differences()
    assert found.startswith(f"kai-job@{job.id}.timer: is missing")
    assert await here.known() == set(), "looking changes nothing"
    assert await here.differences(look=False) == [found]
    assert await here.known() == {job.id}
    assert await here.differences() == []


async def test_strangers_are_shown_and_removed(here: JobSet) -> None:
    await here.add("x", DAILY)
    (timers.directory(here.launcher) / "strangers").write_text("kai-job@evil.timer\n")
    await here.timers.call(SetTimers([Timer(job=4711, revision=1, calendar=["2099-01-01 00:00:00 UTC"])]))
    found = "\n".join(await here.differences())
    assert "kai-job@evil.timer: Kai didn't make it" in found
    assert "kai-job@4711.timer: no such job is active" in found
    await here.differences(look=False)
    assert await here.differences() == []


async def test_a_kill_between_store_and_timer_is_put_right_at_the_next_start(here: JobSet) -> None:
    kept = await here.add("x", DAILY)
    lost = await here.add("y", DAILY)
    here.launcher.kill("kai-scheduler", signal.SIGKILL)
    with closing(sqlite3.connect(here.launcher.directory / "state/scheduler/jobs.db")) as db, db:
        db.execute("UPDATE jobs SET revision = revision + 1 WHERE id = ?", (kept.id,))  # changed, but not yet told
        db.execute("DELETE FROM jobs WHERE id = ?", (lost.id,))
    await here.launcher.wait_ready("kai-scheduler", within=20)
    assert await here.differences() == []
    assert await here.known() == {kept.id}


async def test_a_boot_brings_all_timers_back(here: JobSet) -> None:
    jobs = {(await here.add(f"job {number}", DAILY)).id for number in range(5)}
    for unit in ("kai-scheduler", "kai-timers"):
        here.launcher.kill(unit, signal.SIGKILL)
    await asyncio.sleep(0.2)
    await here.launcher.restart("kai-scheduler")
    assert await here.known() == jobs


async def test_a_paused_removed_or_changed_job_has_the_timer_that_it_should(here: JobSet) -> None:
    job = await here.add("x", DAILY)
    await here.call(PauseJob(id=job.id))
    assert await here.known() == set()
    other = await here.add("y", DAILY)
    changed = await here.call(EditJob(id=other.id, schedule_type="interval", schedule_data='{"seconds": 600}'))
    assert changed.schedule_type == "interval"
    assert await here.differences() == []
    await here.call(RemoveJob(id=other.id))
    assert await here.known() == set()


async def test_a_job_is_kept_while_systemd_cant_be_asked_and_gets_its_timer_later(here: JobSet) -> None:
    await here.add("first", DAILY)
    broken = timers.directory(here.launcher) / "unreachable"
    broken.touch()
    job = await here.add("second", DAILY)
    assert "its timer isn't made yet" in job.note
    with pytest.raises(Busy):
        await here.call(TriggerJob(id=job.id))
    broken.unlink()
    async with asyncio.timeout(30):
        while job.id not in await here.known():
            await asyncio.sleep(0.1)
    async with asyncio.timeout(10):  # the store is told a moment after the timer is made
        while (await here.get(job.id)).job.note:
            await asyncio.sleep(0.05)


async def test_a_start_of_a_job_that_isnt_there_fails_with_words_and_its_timer_goes(here: JobSet) -> None:
    await here.add("x", DAILY)
    await here.timers.call(SetTimers([Timer(job=99, revision=1, every=3600, first=1)]))
    async with asyncio.timeout(20):
        while not [one for one in here.starts(99) if one.ended]:
            await asyncio.sleep(0.05)
    assert here.starts(99)[0].status == 1
    assert "job 99 isn't there" in timers.log_of(here.launcher, 99)
    assert 99 not in await here.known()
