"""What a job does when its time has come: real scheduler, bot, supervisor and kai-job; PID 1 is played."""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import pytest

from kai.interfaces import (
    EditJob,
    ListJobs,
    PauseJob,
    RemoveJob,
    RemoveTimers,
    ResumeJob,
    RunJob,
    StartJobs,
    TriggerJob,
)
from kai.lib.varlink import Busy

from . import timers
from .conftest import ALICE, BOB, Stage, Stages
from .jobset import JobSet, at

HOURLY = {"seconds": 3600}


@pytest.fixture
async def here(stage: Stage) -> AsyncIterator[JobSet]:
    yield JobSet(stage)


async def start(here: JobSet, job: int) -> None:
    """`systemctl start --no-block kai-job@ID`, once the unit is free: a start of one that runs is none."""
    await here.until(lambda: all(one.ended for one in here.starts(job)))
    await here.timers.call(StartJobs(jobs=[job]))


def kill(here: JobSet, unit: str) -> None:
    """SIGKILL, if there is a process: it may have ended just now."""
    with suppress(ProcessLookupError):
        if here.launcher.pid(unit):
            here.launcher.kill(unit, signal.SIGKILL)


# ---- reminders ----


async def test_a_reminder_comes_once_and_at_its_time(here: JobSet) -> None:
    job = await here.add("water the plants", 4)
    assert await here.known() == {job.id}
    await here.delivered("water the plants")
    assert abs(time.time() - job.next) < 3
    await here.gone(job.id)
    [run] = (await here.get(job.id)).runs
    assert (run.outcome, run.due) == ("delivered", job.next)
    assert here.count("water the plants") == 1
    await here.has_no_timers()
    await here.until(lambda: "delivered" in timers.log_of(here.launcher, job.id))


async def test_a_reminder_enters_the_history_and_the_next_chat_turn_knows_of_it(here: JobSet) -> None:
    job = await here.add("water the plants", 1)
    await here.gone(job.id)
    history = here.launcher.directory / "state/users/alice/history"

    def entered() -> bool:
        return any("water the plants" in path.read_text() for path in history.glob("*.jsonl"))

    await here.until(entered)
    here.stage.say("history")
    assert "water the plants" in (await here.stage.answer("[Kai] Delivered")).text  # type: ignore[operator]


async def test_a_job_says_nothing_to_anybody_else(here: JobSet) -> None:
    job = await here.add("for bob alone", 1, user="bob")
    await here.delivered("for bob alone", user=BOB)
    assert here.count("for bob alone", user=ALICE) == 0
    assert not (await here.call(ListJobs(user="alice", ended=True))).jobs
    await here.gone(job.id)


@pytest.mark.parametrize("unit", ["kai-scheduler", "kai-bot", "kai-timers"])
async def test_a_reminder_survives_the_kill_of_a_daemon_when_it_is_due(here: JobSet, unit: str) -> None:
    job = await here.add("through the kill", 1)
    await here.until(lambda: time.time() >= job.next)
    for _ in range(3):
        kill(here, unit)
        await asyncio.sleep(0.1)
    if unit == "kai-timers":  # PID 1 is played by it: this was a boot
        await here.launcher.restart("kai-scheduler")
        await here.differences(look=False)
    await here.delivered("through the kill", timeout=60)
    await here.gone(job.id)
    assert here.count("through the kill") == 1


async def test_a_reminder_that_was_missed_while_all_was_off_says_that_it_is_late(here: JobSet, tmp_path: Path) -> None:
    job = await here.add("late words", 30)
    for unit in ("kai-scheduler", "kai-timers"):
        here.launcher.kill(unit, signal.SIGTERM)
        await here.launcher.wait_exit(unit)
    database = here.launcher.directory / "state/scheduler/jobs.db"
    await asyncio.to_thread(_move_due, database, job.id, time.time() - 3600)
    await here.launcher.restart("kai-scheduler")
    assert "late: it was due" in await here.delivered("late words")
    await here.gone(job.id)
    assert here.count("late words") == 1


def _move_due(database: Path, job: int, due: float) -> None:
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(database)) as db, db:
        db.execute("UPDATE jobs SET due = ? WHERE id = ?", (due, job))


async def test_a_reminder_that_is_due_while_the_bot_is_down_comes_later_and_once(here: JobSet) -> None:
    here.launcher.kill("kai-bot", signal.SIGSTOP)
    job = await here.add("after the outage", 1)
    await asyncio.sleep(4)
    assert here.count("after the outage") == 0
    here.launcher.kill("kai-bot", signal.SIGCONT)
    await here.delivered("after the outage")
    await here.gone(job.id)
    assert here.count("after the outage") == 1


# ---- agents' jobs ----


async def test_an_agents_job_runs_once_in_a_session_of_its_own(stages: Stages, tmp_path: Path) -> None:
    here = JobSet(await stages(runs=tmp_path / "runs"))
    here.stage.say("say words of the chat")
    await here.stage.answer("words of the chat")
    job = await here.add("history", HOURLY, job_type="agent")
    await start(here, job.id)
    said = await here.delivered("history")
    assert "words of the chat" not in said
    [run] = await here.ended(job.id)
    assert run.outcome == "delivered"
    assert run.cost_usd > 0
    lines = [json.loads(line) for line in (tmp_path / "runs").read_text().splitlines()]
    assert len(lines) == 2


@pytest.mark.parametrize("unit", ["kai-scheduler", "kai-bot"])
async def test_an_agents_job_runs_once_whatever_is_killed_meanwhile(stages: Stages, tmp_path: Path, unit: str) -> None:
    here = JobSet(await stages(runs=tmp_path / "runs"))
    job = await here.add("slow 15", HOURLY, job_type="agent")
    await start(here, job.id)
    await here.until((tmp_path / "runs").exists)
    for _ in range(3):
        await asyncio.sleep(0.4)
        kill(here, unit)
    [run] = await here.ended(job.id, within=60)
    assert run.outcome == "delivered"
    await here.delivered("⏰")
    assert here.count("⏰") == 1
    assert len((tmp_path / "runs").read_text().splitlines()) == 1


async def test_a_run_that_was_cut_off_with_its_supervisor_is_told_and_not_repeated(
    stages: Stages, tmp_path: Path
) -> None:
    here = JobSet(await stages(runs=tmp_path / "runs"))
    job = await here.add("slow 60", HOURLY, job_type="agent")
    await start(here, job.id)
    await here.until((tmp_path / "runs").exists)
    here.launcher.kill("kai-agent@alice", signal.SIGKILL)
    said = await here.delivered("failed", timeout=60)
    assert "Next run: " in said
    [run] = await here.ended(job.id)
    assert run.outcome == "failed"
    assert len((tmp_path / "runs").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("said", "notify", "shown", "state"),
    [
        ("CONDITION_MET: the disk is full", False, "the disk is full", "ended"),
        ("CONDITION_NOT_MET all is well", False, "", "active"),
        ("CONDITION_NOT_MET all is well", True, "all is well", "active"),
        ("neither of the two", False, "neither of the two", "active"),
    ],
)
async def test_a_conditional_job_says_what_its_condition_lets_it(
    here: JobSet, said: str, notify: bool, shown: str, state: str
) -> None:
    job = await here.add(f"say {said}", HOURLY, name="d", job_type="agent", auto_remove=True, notify_on_check=notify)
    await start(here, job.id)
    [run] = await here.ended(job.id)
    assert run.outcome == ("delivered" if shown else "quiet")
    if shown:
        assert "CONDITION" not in await here.delivered(shown)
    else:
        assert here.count("well") == 0
    assert (await here.get(job.id)).job.state == state
    if state == "active":
        assert await here.known() == {job.id}
    else:
        await here.has_no_timers()


async def test_a_job_that_fails_five_times_in_a_row_is_paused_and_says_so(here: JobSet) -> None:
    job = await here.add("die", HOURLY, job_type="agent")
    for number in range(1, 6):
        await start(here, job.id)
        await here.ended(job.id, number, within=60)
    assert "failed 5 times in a row and is paused" in await here.delivered("paused")
    shown = (await here.get(job.id)).job
    assert (shown.state, shown.failures) == ("paused", 5)
    assert here.count("failed") == 5
    await here.has_no_timers()
    resumed = await here.call(ResumeJob(id=job.id))
    assert (resumed.state, resumed.failures) == ("active", 0)
    assert await here.known() == {job.id}


async def test_a_once_job_of_an_agent_that_fails_ends_and_says_so(here: JobSet) -> None:
    job = await here.add("die", 1, job_type="agent")
    assert "to run once" in await here.delivered("failed", timeout=60)
    await here.gone(job.id)


async def test_no_more_agents_jobs_run_at_once_than_may(stages: Stages, tmp_path: Path) -> None:
    here = JobSet(await stages(runs=tmp_path / "runs", settings={"agent": {"jobs_parallel": 1}}))
    first = await here.add("slow 10", HOURLY, job_type="agent")
    second = await here.add("say the second", HOURLY, job_type="agent")
    await start(here, first.id)
    await here.until((tmp_path / "runs").exists)
    await start(here, second.id)
    await asyncio.sleep(0.7)
    assert len((tmp_path / "runs").read_text().splitlines()) == 1
    await here.delivered("the second", timeout=60)
    [one], [two] = await here.ended(first.id), await here.ended(second.id)
    assert two.ended >= one.ended


@pytest.mark.parametrize("schedule", [{"seconds": 10}, {"calendar": "*:*:0/10"}], ids=["interval", "calendar"])
async def test_a_run_longer_than_its_interval_is_not_doubled_and_the_missed_time_is_made_up_for(
    stages: Stages, tmp_path: Path, schedule: dict[str, Any]
) -> None:
    here = JobSet(await stages(runs=tmp_path / "runs"))
    await asyncio.sleep(-(time.time() - 2) % 10)  # away from the whole ten seconds, at which the timer is being made
    job = await here.add("slow 60", schedule, job_type="agent")
    await here.ended(job.id, 2, within=90)
    begun = sorted((run.began, run.ended) for run in (await here.get(job.id)).runs if run.ended)
    assert all(ended <= began for (_, ended), (began, _) in itertools.pairwise(begun))
    second = next(run for run in (await here.get(job.id)).runs if run.run == 2)
    assert 0 < second.due <= second.began, "its time is the one that had passed"
    assert second.began - begun[0][1] < 5.5
    await here.call(RemoveJob(id=job.id))


async def test_a_removed_jobs_turn_is_stopped_and_nothing_is_delivered(stages: Stages, tmp_path: Path) -> None:
    here = JobSet(await stages(runs=tmp_path / "runs"))
    job = await here.add("slow 100", HOURLY, job_type="agent")
    await start(here, job.id)
    await here.until((tmp_path / "runs").exists)
    await here.call(RemoveJob(id=job.id))
    await here.until(lambda: any(one.ended for one in here.starts(job.id)))
    assert here.count("⏰") == here.count("⚠") == 0
    assert await here.known() == set()


async def test_a_job_that_runs_is_not_triggered_once_more(stages: Stages, tmp_path: Path) -> None:
    here = JobSet(await stages(runs=tmp_path / "runs"))
    job = await here.add("slow 15", HOURLY, job_type="agent")
    await here.call(TriggerJob(id=job.id))
    await here.until((tmp_path / "runs").exists)
    with pytest.raises(Busy):
        await here.call(TriggerJob(id=job.id))
    await here.ended(job.id, within=60)
    await here.call(PauseJob(id=job.id))
    assert await here.known() == set()


# ---- what must not be lost or doubled between two processes ----


async def test_a_once_job_that_is_run_by_hand_keeps_its_time(here: JobSet) -> None:
    job = await here.add("both times", 5)
    await here.call(TriggerJob(id=job.id))
    await here.ended(job.id)
    assert (await here.get(job.id)).job.next == job.next
    await here.gone(job.id)
    await here.until(lambda: here.count("both times") == 2)
    assert [run.due for run in (await here.get(job.id)).runs] == [job.next, 0]


async def test_a_run_whose_answer_was_lost_is_not_repeated_when_it_is_asked_for_again(here: JobSet) -> None:
    job = await here.add("once is enough", HOURLY)
    for _ in range(2):
        async with aclosing(here.client.stream(RunJob(id=job.id, start="the-same-start"))) as steps:
            last = [step async for step in steps][-1]
        assert not last.failed
    assert len((await here.get(job.id)).runs) == 1
    await here.delivered("once is enough")
    assert here.count("once is enough") == 1


async def test_a_time_of_a_calendar_that_kai_job_gave_up_on_is_made_up_for(here: JobSet) -> None:
    job = await here.add("made up for", {"times": ["03:33"]})
    here.launcher.kill("kai-scheduler", signal.SIGTERM)
    await here.launcher.wait_exit("kai-scheduler")
    database = here.launcher.directory / "state/scheduler/jobs.db"
    await asyncio.to_thread(_move_due, database, job.id, time.time() - 3600)
    await here.launcher.restart("kai-scheduler")
    assert "late: it was due" in await here.delivered("made up for")
    await here.ended(job.id)
    assert (await here.get(job.id)).job.next > time.time()


# ---- what an old timer must not start ----


async def test_a_job_paused_while_systemd_cant_be_asked_does_not_run_from_its_old_timer(here: JobSet) -> None:
    job = await here.add("not now", 3)
    (timers.directory(here.launcher) / "unreachable").touch()
    await here.call(PauseJob(id=job.id))
    await here.until(lambda: any(one.ended for one in here.starts(job.id)))
    assert "has another timer now, or none" in timers.log_of(here.launcher, job.id)
    assert [one.status for one in here.starts(job.id)] == [0]
    assert (await here.get(job.id)).runs == []
    assert here.count("not now") == 0


async def test_a_job_moved_while_systemd_cant_be_asked_runs_at_its_new_time_alone(here: JobSet) -> None:
    job = await here.add("later", 3)
    unreachable = timers.directory(here.launcher) / "unreachable"
    unreachable.touch()
    moved = await here.call(EditJob(id=job.id, schedule_type="once", schedule_data=json.dumps({"run_at": at(8)})))
    await here.until(lambda: any(one.ended for one in here.starts(job.id)))
    assert (await here.get(job.id)).runs == []
    unreachable.unlink()
    await here.delivered("later")
    [run] = await here.ended(job.id)
    assert run.due == moved.next
    assert here.count("later") == 1


async def test_once_systemd_has_been_told_a_start_by_hand_runs_a_paused_job(here: JobSet) -> None:
    job = await here.add("by hand", HOURLY)
    await here.call(PauseJob(id=job.id))
    await start(here, job.id)
    await here.delivered("by hand")


async def test_a_once_job_whose_timer_elapsed_before_the_clock_was_set_back_runs_once(here: JobSet) -> None:
    job = await here.add("one time", 60)
    await here.timers.call(RemoveTimers(jobs=[job.id]))  # as after its elapse
    async with aclosing(here.client.stream(RunJob(id=job.id, start="its timer"))) as steps:
        assert not [step async for step in steps][-1].failed
    await here.gone(job.id)
    assert [run.due for run in (await here.get(job.id)).runs] == [job.next]
    await here.has_no_timers()
