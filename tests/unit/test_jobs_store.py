"""The table of jobs: ids, revisions, limits, what is forgotten when."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kai.interfaces import Timer
from kai.scheduler import jobs
from kai.scheduler.jobs import KEPT, MOST_RUNS, JobRow, JobStore, NewJob, TooMany, open_tables


def new(user: str = "alice", **values: Any) -> NewJob:
    daily: dict[str, Any] = {
        "name": "backups", "job_type": "agent", "prompt": "check", "schedule_type": "daily",
        "schedule_data": '{"times": ["09:00"]}', "auto_remove": True, "notify_on_check": False, "timezone": "",
        "workspace": "home", "model": "opus", "budget_usd": 1.5, "zone": "UTC", "calendar": ["*-*-* 09:00:00 UTC"],
        "every": 0, "due": 2e9,
    }  # fmt: skip
    return NewJob(user=user, **(daily | values))


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[JobStore]:
    made = open_tables(tmp_path)
    yield JobStore(made)
    made.close()


async def add(store: JobStore, user: str = "alice", limit: int = 100, **values: Any) -> JobRow:
    return await store.add(new(user, **values), limit=limit)


async def ran(store: JobStore, job: int, run: int, *, state: str = "ended", ended: float | None = None) -> None:
    await store.store.write(
        lambda db: db.execute(
            "INSERT INTO runs (job, run, revision, state, due, began, ended, outcome) VALUES (?, ?, 1, ?, 1, 2, ?, ?)",
            (job, run, state, time.time() if ended is None else ended, "delivered" if state == "ended" else ""),
        )
    )


async def aged(store: JobStore, job: int, seconds: float) -> None:
    await store.store.write(lambda db: db.execute("UPDATE jobs SET changed = changed - ? WHERE id = ?", (seconds, job)))


async def test_what_is_stored_comes_back(store: JobStore, tmp_path: Path) -> None:
    made = await add(store, calendar=["a", "b"], announce=True)
    assert await store.get(made.id) == made
    assert (
        msgspec.structs.asdict(new(calendar=["a", "b"], announce=True)).items() <= msgspec.structs.asdict(made).items()
    )
    assert (made.state, made.revision, made.failures, made.note, made.fault) == ("active", 1, 0, "", "")
    assert made.auto_remove is True
    assert made.notify_on_check is False
    assert made.created == made.changed == made.planned == made.anchor
    assert abs(made.created - time.time()) < 5
    store.store.close()
    again = open_tables(tmp_path)
    assert await JobStore(again).get(made.id) == made
    again.close()
    store.store = open_tables(tmp_path)


async def test_an_id_is_never_given_again(store: JobStore) -> None:
    first = await add(store)
    await store.remove(first.id)
    assert (await add(store)).id == first.id + 1


async def test_the_limit_counts_active_jobs_of_the_user_only(store: JobStore) -> None:
    first, _ = await add(store, limit=2), await add(store, limit=2)
    await add(store, "bob", limit=2)
    with pytest.raises(TooMany):
        await add(store, limit=2)
    await store.pause(first.id, "by hand")
    second = await add(store, limit=2)
    with pytest.raises(TooMany):
        await store.resume(first.id, limit=2)
    paused = await store.get(first.id)
    assert paused and paused.state == "paused"
    await store.remove(second.id)
    resumed = await store.resume(first.id, limit=2, due=5.0)
    assert resumed and (resumed.state, resumed.note, resumed.due) == ("active", "", 5.0)


async def test_another_timer_is_another_revision_and_another_name_is_not(store: JobStore) -> None:
    job = (await add(store)).id

    async def revision(**values: Any) -> int:
        row = await store.update(job, **values)
        assert row
        return row.revision

    assert await revision(name="x", prompt="y", due=7.0, fault="z", zone="Europe/Berlin") == 1
    assert await revision(calendar=["*-*-* 09:00:00 UTC"]) == 1
    assert await revision(calendar=["*-*-* 10:00:00 UTC"]) == 2
    assert await revision(calendar=[], every=60, schedule_type="interval") == 3
    assert await revision(state="paused") == 3
    assert await revision(state="active") == 4


async def test_a_job_that_is_gone_is_nobody(store: JobStore) -> None:
    assert await store.get(1) is None
    assert await store.update(1, name="x") is None
    assert await store.edit(1, name="x") is None
    assert await store.pause(1, "") is None
    assert await store.resume(1, limit=1) is None
    assert await store.remove(1) is None


async def test_a_pause_takes_the_due_time_and_keeps_the_first_reason(store: JobStore) -> None:
    job = (await add(store)).id
    first = await store.pause(job, "failed 5 times in a row")
    assert first and (first.state, first.note, first.due) == ("paused", "failed 5 times in a row", 0.0)
    second = await store.pause(job, "by hand")
    assert second == first


async def test_a_job_that_ended_is_neither_paused_nor_edited_nor_resumed(store: JobStore) -> None:
    job = (await add(store, announce=True)).id
    await store.store.write(lambda db: jobs.end(db, job, note="done"))
    ended = await store.get(job)
    assert ended and (ended.state, ended.note, ended.due, ended.announce) == ("ended", "done", 0.0, False)
    assert await store.edit(job, name="x") is None
    assert await store.pause(job, "x") == ended
    assert await store.resume(job, limit=9) == ended
    assert await store.get(job) == ended


async def test_a_job_that_was_planned_anew_during_a_run_does_not_end_with_it(store: JobStore) -> None:
    row = await add(store)
    await store.update(row.id, calendar=["x"])
    await store.store.write(lambda db: jobs.end(db, row.id, revision=row.revision))
    assert [each.id for each in await store.active()] == [row.id]
    await store.store.write(lambda db: jobs.end(db, row.id, revision=row.revision + 1))
    assert await store.active() == []


async def test_failures_count_until_one_succeeds(store: JobStore) -> None:
    job = (await add(store)).id
    counts = [await store.store.write(lambda db: jobs.failed(db, job)) for _ in range(3)]
    assert counts == [1, 2, 3]
    await store.store.write(lambda db: jobs.succeeded(db, job))
    assert await store.store.write(lambda db: jobs.failed(db, job)) == 1
    assert await store.store.write(lambda db: jobs.failed(db, 99)) == 0
    await store.pause(job, "x")
    resumed = await store.resume(job, limit=9)
    assert resumed and resumed.failures == 0


async def test_lists_have_the_next_first_and_only_whose_they_are(store: JobStore) -> None:
    late, soon, never = [(await add(store, due=due)).id for due in (300.0, 100.0, 0.0)]
    other = (await add(store, "bob", due=200.0)).id
    await store.store.write(lambda db: jobs.end(db, never))
    assert [row.id for row in await store.listed("alice")] == [soon, late]
    assert [row.id for row in await store.listed("alice", ended=True)] == [soon, late, never]
    assert [row.id for row in await store.listed()] == [soon, other, late]
    assert await store.listed("nobody") == []


async def test_what_kai_timers_said_is_kept_for_active_jobs(store: JobStore) -> None:
    made, failed, paused = [(await add(store)).id for _ in range(3)]
    await store.pause(paused, "x")
    await store.told({made: 50.0, paused: 60.0, 99: 70.0}, {failed: "no bus", paused: "no bus"})
    rows = {row.id: (row.due, row.fault) for row in await store.listed()}
    assert rows == {made: (50.0, ""), failed: (2e9, "no bus"), paused: (0.0, "")}
    await store.told({failed: 80.0}, {})
    row = await store.get(failed)
    assert row and (row.due, row.fault) == (80.0, "")


async def test_the_timer_of_a_calendar_is_persistent_and_that_of_a_moment_is_not(store: JobStore) -> None:
    daily = await add(store)
    once = await add(store, schedule_type="once", calendar=["2030-01-01 00:00:00 UTC"])
    assert daily.timer(now=0) == Timer(daily.id, 1, calendar=daily.calendar, persistent=True)
    assert once.timer(now=0) == Timer(once.id, 1, calendar=once.calendar)


async def test_the_timer_of_an_interval_goes_on_from_the_last_run(store: JobStore) -> None:
    row = await add(store, schedule_type="interval", calendar=[], every=60)
    row.anchor = 1000.0
    assert row.timer(now=1000.0) == Timer(row.id, 1, every=60, first=60)
    assert row.timer(now=1090.0, last=1070.0).first == 40
    assert row.timer(now=1090.0).first == 1
    assert row.timer(now=99999.0, last=1070.0).first == 1


async def test_records_of_runs_are_the_newest_first(store: JobStore) -> None:
    first, second, fresh = [(await add(store)).id for _ in range(3)]
    foreign = (await add(store, "bob")).id
    for job, count in ((first, 3), (second, 1), (foreign, 2)):
        for run in range(1, count + 1):
            await ran(store, job, run)
    assert [each.run for each in await store.runs(first, 2)] == [3, 2]
    assert await store.runs(fresh, 2) == []
    assert {job: each.run for job, each in (await store.last_runs("alice")).items()} == {first: 3, second: 1}
    assert {job: each.run for job, each in (await store.last_runs()).items()} == {first: 3, second: 1, foreign: 2}


async def test_removing_a_job_removes_its_runs(store: JobStore) -> None:
    job = (await add(store)).id
    await ran(store, job, 1)
    assert (await store.remove(job)) is not None
    assert await store.store.read("SELECT 1 FROM runs") == []


async def test_what_ended_is_forgotten_after_a_week_and_not_before(store: JobStore) -> None:
    active, old, young, unfinished = [(await add(store)).id for _ in range(4)]
    for job in (old, young, unfinished):
        await store.store.write(partial(jobs.end, job=job))
        await aged(store, job, KEPT + 60 if job != young else KEPT - 60)
    await aged(store, active, KEPT * 9)
    await ran(store, old, 1)
    await ran(store, unfinished, 1, state="answered", ended=0)
    await store.prune()
    assert {row.id for row in await store.listed(ended=True)} == {active, young, unfinished}
    assert [row["job"] for row in await store.store.read("SELECT job FROM runs")] == [unfinished]


async def test_of_many_runs_the_last_stay(store: JobStore) -> None:
    job = (await add(store)).id
    for run in range(1, MOST_RUNS + 11):
        await ran(store, job, run)
    await store.prune()
    assert [each.run for each in await store.runs(job, 999)] == list(range(MOST_RUNS + 10, 10, -1))
    await store.store.write(lambda db: db.execute("UPDATE runs SET ended = 5 WHERE job = ?", (job,)))
    await store.prune()
    assert [each.run for each in await store.runs(job, 999)] == [MOST_RUNS + 10]


async def test_a_zone_is_the_users_choice_until_he_takes_it_back(store: JobStore) -> None:
    assert await store.zone("alice") == ""
    for zone in ("Europe/Berlin", "Asia/Tokyo", ""):
        await store.set_zone("alice", zone)
        assert await store.zone("alice") == zone
    assert await store.zone("bob") == ""


async def test_who_is_still_to_be_told_outlives_the_daemon(store: JobStore) -> None:
    told, untold = await add(store, announce=True), await add(store, announce=True)
    await add(store)
    await store.update(told.id, announce=False)
    assert [row.id for row in await store.unannounced()] == [untold.id]


async def test_the_tables_refuse_what_is_no_state(store: JobStore) -> None:
    job = (await add(store)).id
    for name, value in (("state", "lost"), ("job_type", "script"), ("schedule_type", "cron")):
        with pytest.raises(sqlite3.IntegrityError):
            await store.update(job, **{name: value})
