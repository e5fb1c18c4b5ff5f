"""The stand-in for kai-timers keeps the rules that were measured on the real systemd."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from kai.demo.launcher import Launcher
from kai.interfaces import ListTimers, RemoveTimers, SetTimers, StartJobs, Timer, TimersSet
from kai.lib.client import Client
from kai.lib.varlink import Busy, InvalidParameter

from . import timers
from .conftest import TOKEN

SLOW = "import sys, time; print('job', sys.argv[1], flush=True); time.sleep(float(sys.argv[2])); sys.exit(3)"


class Set:
    """A set whose only daemon is the stand-in; its jobs take `seconds`."""

    def __init__(self, launcher: Launcher) -> None:
        self.launcher = launcher
        self.client = Client(launcher.runtime / "timers.sock")

    async def set(self, *wanted: Timer) -> TimersSet:
        return await self.client.call(SetTimers(list(wanted)))

    async def known(self) -> list[int]:
        return sorted(timer.job for timer in (await self.client.call(ListTimers())).timers)

    async def started(self, job: int, count: int = 1, within: float = 10) -> list[timers.Start]:
        return await self._wait(job, count, within, lambda found: len(found) >= count)

    async def ended(self, job: int, count: int = 1, within: float = 10) -> list[timers.Start]:
        return await self._wait(job, count, within, lambda found: sum(start.ended > 0 for start in found) >= count)

    async def _wait(
        self, job: int, count: int, within: float, enough: Callable[[list[timers.Start]], bool]
    ) -> list[timers.Start]:
        async with asyncio.timeout(within):
            while not enough(found := timers.starts(self.launcher, job)):
                await asyncio.sleep(0.02)
        return found

    def file(self, name: str) -> Path:
        return timers.directory(self.launcher) / name


@pytest.fixture
async def sets(tmp_path: Path) -> AsyncIterator[Callable[[float], Set]]:
    launcher = Launcher(tmp_path / "set", api_base="http://127.0.0.1:9", token=TOKEN, users=[])
    launcher.units = list  # type: ignore[method-assign]
    await launcher.start()

    def make(seconds: float = 0) -> Set:
        launcher.add(timers.unit(launcher, sys.executable, "-I", "-S", "-c", SLOW, "%i", str(seconds)))
        return Set(launcher)

    yield make
    await launcher.stop()


def at(seconds: float) -> str:
    """So many seconds from now, to the next whole one, as a one-shot has it."""
    return datetime.fromtimestamp(int(time.time() + seconds) + 1, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


async def test_a_one_shot_starts_its_job_at_its_time_and_is_gone(sets: Callable[..., Set]) -> None:
    here = sets()
    due = at(1)
    answer = await here.set(Timer(job=7, revision=1, calendar=[due]))
    [timer] = answer.timers
    assert datetime.fromtimestamp(timer.next, UTC).strftime("%Y-%m-%d %H:%M:%S UTC") == due
    [start] = await here.ended(7)
    assert 0 <= start.began - timer.next < 1
    assert (start.by, start.status) == ("timer", 3)
    assert timers.log_of(here.launcher, 7) == "job 7\n"
    await asyncio.sleep(0.1)
    assert await here.known() == []


async def test_a_one_shot_in_the_past_never_fires(sets: Callable[..., Set]) -> None:
    here = sets()
    answer = await here.set(Timer(job=7, revision=1, calendar=[at(-10)]))
    assert not answer.faults
    assert [timer.next for timer in answer.timers] == [0]
    await asyncio.sleep(0.3)
    assert not timers.starts(here.launcher)
    assert await here.known() == []


async def test_what_is_no_calendar_is_refused_and_the_others_are_made(sets: Callable[..., Set]) -> None:
    here = sets()
    answer = await here.set(
        Timer(job=1, revision=1, calendar=["gibberish"]),
        Timer(job=2, revision=1, calendar=["*-*-* 09:00:00 Europe/Berlin"]),
        Timer(job=3, revision=1, calendar=["daily\nUnit=evil.service"]),
        Timer(job=4, revision=1, every=60, first=5),
    )
    assert sorted(timer.job for timer in answer.timers) == await here.known() == [2, 4]
    assert sorted((fault.job, fault.error.split(":")[0]) for fault in answer.faults) == [
        (1, "InvalidArgs"),
        (3, "InvalidArgs"),
    ]
    told = {timer.job: timer.next for timer in answer.timers}
    assert 3 < told[4] - time.time() <= 5
    with pytest.raises(InvalidParameter):
        await here.set(Timer(job=5, revision=1, every=60, first=1), Timer(job=5, revision=2, every=60, first=1))


async def test_an_interval_goes_on_and_a_start_by_hand_shifts_it(sets: Callable[..., Set]) -> None:
    here = sets()
    await here.set(Timer(job=7, revision=1, every=2, first=1))
    found = await here.started(7, 2)
    assert 1.9 < found[1].began - found[0].began < 2.5
    await asyncio.sleep(1)
    await here.client.call(StartJobs([7]))
    found = await here.started(7, 4)
    assert [start.by for start in found] == ["timer", "timer", "hand", "timer"]
    assert 1.9 < found[3].began - found[2].began < 2.5


async def test_a_job_runs_once_at_a_time_and_what_was_missed_comes_after(sets: Callable[..., Set]) -> None:
    here = sets(1.5)
    await here.set(Timer(job=7, revision=1, calendar=["*:*:0/1"]))
    await here.started(7)
    await here.client.call(StartJobs([7]))
    one, two = (await here.started(7, 2))[:2]
    assert one.ended <= two.began < one.ended + 0.5
    assert {start.by for start in timers.starts(here.launcher)} == {"timer"}


async def test_a_timer_is_replaced_while_its_job_runs(sets: Callable[..., Set]) -> None:
    here = sets(30)
    await here.set(*[Timer(job=job, revision=1, every=60, first=1) for job in range(1, 21)])
    await here.started(20)
    for revision in (2, 3):
        answer = await here.set(*[Timer(job=job, revision=revision, every=90, first=80) for job in range(1, 21)])
        assert not answer.faults
    listed = await here.client.call(ListTimers(jobs=[20]))
    assert {timer.revision for timer in listed.timers} == {3}
    assert [timer.job for timer in listed.timers if timer.next] == [20]


async def test_after_a_boot_a_persistent_timer_makes_up_for_what_was_missed(sets: Callable[..., Set]) -> None:
    here = sets()
    kept, plain = (
        Timer(job=1, revision=1, calendar=["*:*:0/2"], persistent=True),
        Timer(job=2, revision=1, calendar=["*:*:0/2"]),
    )
    await here.set(kept, plain)
    await here.started(1)
    here.launcher.kill("kai-timers")
    await asyncio.sleep(3)
    assert await here.known() == []
    while time.time() % 2 > 1:  # well before the next elapse
        await asyncio.sleep(0.05)
    before = time.time()
    seen = len(timers.starts(here.launcher, 1))
    await here.set(kept, plain)
    [*_, made_up] = await here.started(1, seen + 1)
    assert made_up.began // 2 == before // 2
    assert not [start for start in timers.starts(here.launcher, 2) if start.began // 2 == before // 2]
    await here.client.call(RemoveTimers(jobs=[1, 2], forget=True))
    assert not list(here.file("stamps").iterdir())


async def test_a_test_can_make_it_fail(sets: Callable[..., Set]) -> None:
    here = sets()
    assert await here.known() == []
    wanted = Timer(job=7, revision=1, calendar=["daily"])
    here.file("refuse").write_text("InvalidArgs")
    assert [fault.job for fault in (await here.set(wanted)).faults] == [7]
    here.file("refuse").unlink()
    here.file("unreachable").touch()
    with pytest.raises(Busy):
        await here.set(wanted)
    here.file("unreachable").unlink()
    here.file("strangers").write_text("kai-job@evil.timer\nkai-job@0.timer\n")
    await here.set(wanted)
    listed = await here.client.call(ListTimers())
    assert ([timer.job for timer in listed.timers], len(listed.strangers)) == ([7], 2)
    await here.client.call(RemoveTimers(strangers=True))
    listed = await here.client.call(ListTimers())
    assert ([timer.job for timer in listed.timers], listed.strangers) == ([7], [])
