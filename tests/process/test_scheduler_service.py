"""kai.Scheduler on its socket: who may do what to whose job, and what is stored. Runs and timers are played."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest

from kai.config.kaiyaml import Jobs as JobsConfig
from kai.config.kaiyaml import Kai
from kai.interfaces import (
    Add,
    EditJob,
    GetJob,
    Job,
    ListJobs,
    NoSuchJob,
    PauseJob,
    PreviewJob,
    RemoveJob,
    ResumeJob,
    SetTimezone,
    Times,
    TriggerJob,
)
from kai.lib.client import Client
from kai.lib.peers import BOT, GITHUB, OPERATOR, PROXY, SCHEDULER, SUPERVISOR, Peer
from kai.lib.varlink import MAX_MESSAGE, Busy, Call, InvalidParameter, PermissionDenied, Unavailable
from kai.scheduler.jobs import AT_REST, JobRow
from kai.scheduler.service import PLAN_AGE
from tests.process.schedulerbench import ALICE, BOB, DAILY, ROOT, THE_BOT, Bench, local, once


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.stop()
    for each in made.sockets:
        asyncio.get_running_loop().remove_reader(each)
        each.close()


# ---- making one ----


async def test_a_job_comes_back_as_it_was_given(bench: Bench) -> None:
    made = await bench.add(
        job_type="claude", auto_remove=True, notify_on_check=True, workspace="acme", model="opus", budget_usd=2.5,
        timezone="America/New_York",
    )  # fmt: skip
    assert (made.id, made.user, made.name, made.job_type) == (1, "alice", "backups", "agent")
    assert (made.auto_remove, made.notify_on_check, made.workspace, made.model) == (True, True, "acme", "opus")
    assert (made.budget_usd, made.timezone, made.state, made.note) == (2.5, "America/New_York", "active", "")
    assert json.loads(made.schedule_data) == {"times": ["09:00"]}
    next_ = datetime.fromtimestamp(made.next, ZoneInfo("America/New_York"))
    assert f"{next_:%H:%M}" == "09:00"
    assert 0 < made.next - time.time() <= 25 * 3600
    assert bench.reconciler.told == [1]
    row = await bench.row(1)
    assert row.calendar == ["*-*-* 09:00:00 America/New_York"]


async def test_without_a_zone_it_is_the_users(bench: Bench) -> None:
    assert (await bench.add(ALICE)).timezone == "Europe/Berlin"
    assert (await bench.add(BOB)).timezone == "Asia/Tokyo"
    await bench.say(BOB, SetTimezone("Pacific/Auckland"))
    assert (await bench.add(BOB)).timezone == "Pacific/Auckland"
    assert (await bench.say(ALICE, PreviewJob(**DAILY))).timezone == "Europe/Berlin"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"prompt": ""}, "prompt: empty"),
        ({"prompt": "x" * 16385}, "prompt: 16385 bytes"),
        ({"name": "x" * 101}, "name: 101 characters"),
        ({"job_type": "shell"}, "job_type: expected"),
        ({"auto_remove": True}, "auto_remove: only a job of job_type agent"),
        ({"notify_on_check": True}, "notify_on_check: only"),
        ({"workspace": "home"}, "workspace: only"),
        ({"model": "opus"}, "model: only"),
        ({"budget_usd": 1.0}, "budget_usd: only"),
        ({"job_type": "agent", "budget_usd": 10.5}, "budget_usd: expected at most $10"),
        ({"job_type": "agent", "workspace": "../x"}, "workspace: expected"),
        ({"timezone": "Mars/Olympus"}, "timezone: expected"),
        ({"schedule_type": "cron"}, "schedule_type: expected"),
        ({"schedule_data": "{}"}, "schedule_data.times: missing"),
        ({"schedule_type": "calendar", "schedule_data": '{"calendar": "x"}'}, "schedule_data.calendar: systemd says"),
        ({"schedule_type": "calendar", "schedule_data": '{"calendar": "*:*:*"}'}, "schedule_data.calendar: elapses"),
        (once(-1), "schedule_data.run_at: "),
        ({"user": "bob"}, None),
    ],
)
async def test_what_is_refused_leaves_nothing(bench: Bench, values: dict[str, Any], said: str | None) -> None:
    with pytest.raises(InvalidParameter if said else PermissionDenied) as fault:
        await bench.add(**values)
    assert fault.value.message.startswith(said or "user: ")
    assert await bench.jobs.listed(ended=True) == []
    assert bench.reconciler.told == []


async def test_wrong_types_on_the_wire_name_the_field(bench: Bench) -> None:
    wire: list[tuple[dict[str, Any], str]] = [
        ({"name": 5}, "name"), ({"prompt": None}, "prompt"), ({"schedule_data": {"times": "09:00"}}, "schedule_data"),
        ({"auto_remove": "yes"}, "auto_remove"), ({"budget_usd": "5"}, "budget_usd"), ({"timezone": 1}, "timezone"),
    ]  # fmt: skip
    for values, field in wire:
        given: dict[str, Any] = {"name": "x", "prompt": "x", **DAILY, **values}
        with pytest.raises(InvalidParameter, match=rf"\$\.{field}"):
            await bench.say(ALICE, Add(**given))
    assert await bench.jobs.listed() == []


async def test_a_user_has_so_many_active_jobs_and_no_more(bench: Bench) -> None:
    for _ in range(5):
        await bench.add(**once(5))
    with pytest.raises(InvalidParameter, match=r"^user: alice has 5 active jobs, as many as jobs\.limit"):
        await bench.add(**once(5))
    await bench.add(BOB, **once(5, "Asia/Tokyo"))
    await bench.say(ALICE, PauseJob(2))
    await bench.add(**once(5))
    with pytest.raises(InvalidParameter, match=r"^user: alice has 5 active jobs"):
        await bench.say(ALICE, ResumeJob(2))
    await asyncio.gather(*(bench.say(ALICE, RemoveJob(job)) for job in (1, 3)))
    together = await asyncio.gather(*(bench.add(**once(5)) for _ in range(4)), return_exceptions=True)
    assert sum(isinstance(each, Job) for each in together) == 2


async def test_a_job_whose_timer_cannot_be_made_now_is_kept_and_says_so(bench: Bench) -> None:
    bench.reconciler.fault = "kai-timers: no answer"
    made = await bench.add()
    assert (made.state, made.note) == ("active", "its timer isn't made yet: kai-timers: no answer")
    for call in (EditJob(made.id, timezone="Asia/Tokyo"), PauseJob(made.id), ResumeJob(made.id)):
        changed = await bench.say(ALICE, call)
    assert (changed.state, changed.note) == ("active", made.note)
    await bench.jobs.told({}, {made.id: "kai-timers: no answer"})  # as the true one does
    (listed,) = (await bench.say(ALICE, ListJobs())).jobs
    assert listed.note == "its timer isn't made yet: kai-timers: no answer"
    await bench.jobs.told({1: 9e9}, {})
    (listed,) = (await bench.say(ALICE, ListJobs())).jobs
    assert (listed.note, listed.next) == ("", 9e9)


async def test_a_timer_that_systemd_refuses_leaves_no_job(bench: Bench) -> None:
    bench.reconciler.fault = "InvalidArgs: no such thing"
    with pytest.raises(InvalidParameter, match=r"^schedule_data: systemd refuses the timer: InvalidArgs"):
        await bench.add()
    assert await bench.jobs.listed(ended=True) == []
    assert [row.id for row in bench.reconciler.gone] == [1]


# ---- whose it is ----


async def test_a_foreign_job_looks_like_none(bench: Bench) -> None:
    job = (await bench.add(BOB)).id
    calls: list[Call[Any]] = [
        GetJob(job), EditJob(job, name="x"), RemoveJob(job), PauseJob(job), ResumeJob(job), TriggerJob(job),
    ]  # fmt: skip
    for call in calls:
        for number in (job, 99, 0, -1, 1 << 53, 1 << 70):
            with pytest.raises(NoSuchJob, match=f"^id: there is no job {number}$"):
                await bench.say(ALICE, msgspec.structs.replace(call, id=number))
        with pytest.raises(PermissionDenied, match=r"^user: .* may name its own user only"):
            await bench.say(ALICE, msgspec.structs.replace(call, user="bob"))
        if BOT in call.CALLERS:
            with pytest.raises(NoSuchJob):
                await bench.say(THE_BOT, msgspec.structs.replace(call, user="alice"))
    assert (await bench.row(job)).state == "active"
    assert bench.reconciler.started == []
    assert bench.reconciler.gone == []
    assert (await bench.say(ALICE, ListJobs())).jobs == []


async def test_the_bot_names_its_user_and_the_operator_need_not(bench: Bench) -> None:
    alices, bobs = (await bench.add(ALICE)).id, (await bench.add(BOB)).id
    for call in (ListJobs(), GetJob(alices), RemoveJob(alices), PreviewJob(**DAILY)):
        with pytest.raises(InvalidParameter, match=r"^user: missing"):
            await bench.say(THE_BOT, call)
    assert [job.id for job in (await bench.say(THE_BOT, ListJobs(user="bob"))).jobs] == [bobs]
    assert {job.id for job in (await bench.say(ROOT, ListJobs())).jobs} == {alices, bobs}
    assert [job.id for job in (await bench.say(ROOT, ListJobs(user="alice"))).jobs] == [alices]
    assert (await bench.say(ROOT, GetJob(bobs))).job.id == bobs
    with pytest.raises(NoSuchJob):
        await bench.say(ROOT, GetJob(bobs, user="alice"))
    with pytest.raises(InvalidParameter, match=r"^user: missing"):
        await bench.add(ROOT)
    with pytest.raises(InvalidParameter, match=r"^user: nobody is named dora"):
        await bench.add(ROOT, user="dora")
    assert (await bench.add(ROOT, user="bob")).user == "bob"


async def test_others_get_nothing(bench: Bench) -> None:
    job = (await bench.add()).id
    everything: list[Call[Any]] = [
        Add(name="x", prompt="x", user="alice", **DAILY), ListJobs(user="alice"), GetJob(job, user="alice"),
        EditJob(job, user="alice"), RemoveJob(job, user="alice"), PauseJob(job, user="alice"),
        ResumeJob(job, user="alice"), TriggerJob(job, user="alice"), PreviewJob(user="alice", **DAILY),
        SetTimezone("UTC", user="alice"),
    ]  # fmt: skip
    for role in (PROXY, GITHUB, SCHEDULER, BOT, OPERATOR, SUPERVISOR):
        peer = Peer(5, 1, frozenset({role}), "alice" if role == SUPERVISOR else "")
        for call in everything:
            try:
                await bench.say(peer, call)
                refused = False
            except PermissionDenied:
                refused = True
            except NoSuchJob:
                refused = False  # the removal was before it
            assert refused == (role not in call.CALLERS), (role, call)


async def test_a_user_who_is_gone_keeps_his_jobs_and_gets_no_new_one(bench: Bench) -> None:
    job = (await bench.add(BOB)).id
    bench.config = msgspec.structs.replace(bench.config, users=bench.config.users[:1])
    (listed,) = (await bench.say(ROOT, ListJobs())).jobs
    assert (listed.id, listed.note) == (job, "no such user")
    for call in (Add(name="x", prompt="x", **DAILY), SetTimezone("UTC"), PreviewJob(**DAILY)):
        with pytest.raises(InvalidParameter, match=r"^user: nobody is named bob"):
            await bench.say(BOB, call)


# ---- looking ----


async def test_a_list_cuts_prompts_and_a_look_at_one_does_not(bench: Bench) -> None:
    job = (await bench.add(prompt="ü" * 8000)).id
    (listed,) = (await bench.say(ALICE, ListJobs())).jobs
    assert len(listed.prompt) == 200
    found = await bench.say(ALICE, GetJob(job))
    assert found.job.prompt == "ü" * 8000
    assert len(found.times) == 5
    assert found.times[0] == found.job.next
    assert all(datetime.fromtimestamp(each, ZoneInfo("Europe/Berlin")).hour == 9 for each in found.times)


async def test_a_list_that_is_too_long_for_an_answer_says_how_many_are_left_off(bench: Bench) -> None:
    bench.config = msgspec.structs.replace(bench.config, kai=Kai(jobs=JobsConfig(limit=10000)))
    first = await bench.row((await bench.add(prompt="\\" * 1000, name="n")).id)
    columns = [name for name in JobRow.__struct_fields__ if name != "id"]
    names = ", ".join(columns)
    await bench.store.write(
        lambda db: db.execute(
            f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000) "
            f"INSERT INTO jobs ({names}) SELECT {names} FROM jobs, n WHERE id = ?",
            (first.id,),
        )
    )
    found = await bench.say(ALICE, ListJobs())
    assert found.more + len(found.jobs) == 3001
    assert 500 < len(found.jobs) < 3000
    assert len(msgspec.json.encode(found)) < MAX_MESSAGE


async def test_times_of_every_kind_are_shown(bench: Bench) -> None:
    interval = await bench.add(schedule_type="interval", schedule_data='{"seconds": 60}')
    times = (await bench.say(ALICE, GetJob(interval.id))).times
    assert [round(b - a) for a, b in pairwise(times)] == [60] * 4
    moment = await bench.add(**once(2))
    assert (await bench.say(ALICE, GetJob(moment.id))).times == [moment.next]
    await bench.say(ALICE, PauseJob(interval.id))
    assert (await bench.say(ALICE, GetJob(interval.id))).times == []


async def test_a_preview_stores_nothing_and_is_systemds(bench: Bench) -> None:
    call = PreviewJob("calendar", '{"calendar": "Mon..Fri 09:00"}', timezone="America/New_York", count=20)
    found = await bench.say(ALICE, call)
    assert found.calendar == ["Mon..Fri *-*-* 09:00:00 America/New_York"]
    assert found.timezone == "America/New_York"
    assert len(found.times) == 20
    assert all(datetime.fromtimestamp(each, ZoneInfo(found.timezone)).hour == 9 for each in found.times)
    for count in (0, -1, 21):
        with pytest.raises(InvalidParameter, match=r"^count: expected 1 to 20"):
            await bench.say(ALICE, msgspec.structs.replace(call, count=count))
    assert (await bench.say(ROOT, PreviewJob(**DAILY))).timezone == "Europe/Berlin"
    assert (await bench.say(ROOT, PreviewJob(user="bob", **DAILY))).timezone == "Asia/Tokyo"
    with pytest.raises(InvalidParameter, match=r"^schedule_data\.calendar: systemd says"):
        await bench.say(ALICE, PreviewJob("calendar", '{"calendar": "x"}'))
    assert await bench.jobs.listed() == []


async def test_the_last_run_is_shown(bench: Bench) -> None:
    job = (await bench.add()).id
    insert = "INSERT INTO runs (job, run, revision, state, due, began, ended, outcome, cost) VALUES (?, ?, 1, 'ended', "
    for run in (1, 2):
        await bench.store.read(f"{insert} 10, 11, 12, 'delivered', 0.5)", (job, run))
    bench.reconciler.going_on = {job}
    found = await bench.say(ALICE, GetJob(job))
    assert [run.run for run in found.runs] == [2, 1]
    assert found.job.last == found.runs[0]
    assert found.job.running
    (listed,) = (await bench.say(ALICE, ListJobs())).jobs
    assert listed.last == found.runs[0]


# ---- changing ----


async def test_a_change_of_words_leaves_the_timer_alone(bench: Bench) -> None:
    job = (await bench.add()).id
    changed = await bench.say(ALICE, EditJob(job, name="disks", prompt="check the disks"))
    assert (changed.name, changed.prompt, changed.schedule_type) == ("disks", "check the disks", "daily")
    assert (await bench.row(job)).revision == 1
    assert bench.reconciler.told == [job]


async def test_a_new_schedule_is_another_timer(bench: Bench) -> None:
    job = (await bench.add()).id
    changed = await bench.say(ALICE, EditJob(job, schedule_type="interval", schedule_data='{"seconds": 60}'))
    assert changed.schedule_type == "interval"
    assert abs(changed.next - time.time() - 60) < 5
    row = await bench.row(job)
    assert (row.revision, row.every, row.calendar) == (2, 60, [])
    assert bench.reconciler.told == [job, job]
    changed = await bench.say(ALICE, EditJob(job, **once(3)))
    assert (changed.schedule_type, (await bench.row(job)).every) == ("once", 0)
    changed = await bench.say(ALICE, EditJob(job, schedule_type="daily", schedule_data='{"times": "10:00"}'))
    changed = await bench.say(ALICE, EditJob(job, timezone="Asia/Tokyo"))
    assert (await bench.row(job)).calendar == ["*-*-* 10:00:00 Asia/Tokyo"]
    changed = await bench.say(ALICE, EditJob(job, timezone=""))
    assert changed.timezone == "Europe/Berlin"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"schedule_type": "interval"}, "schedule_data: missing"),
        ({"schedule_data": '{"times": "09:00"}'}, "schedule_type: missing"),
        ({"schedule_type": "interval", "schedule_data": '{"seconds": 1}'}, "schedule_data.seconds: expected"),
        ({"prompt": " "}, "prompt: empty"),
        ({"name": "a\nb"}, "name: has a control character"),
        ({"job_type": "x"}, "job_type: expected"),
        ({"job_type": "reminder"}, "auto_remove: only"),
        ({"budget_usd": 1e9}, "budget_usd: expected"),
        ({"timezone": "x"}, "timezone: expected"),
        ({**once(-1)}, "schedule_data.run_at: "),
    ],
)
async def test_a_change_that_is_refused_changes_nothing(bench: Bench, values: dict[str, Any], said: str) -> None:
    job = (await bench.add(job_type="agent", auto_remove=True)).id
    before = await bench.row(job)
    with pytest.raises(InvalidParameter) as fault:
        await bench.say(ALICE, EditJob(job, **values))
    assert fault.value.message.startswith(said)
    after = await bench.row(job)
    after.announce = before.announce
    assert after == before


async def test_a_change_that_systemd_refuses_is_undone(bench: Bench) -> None:
    job = (await bench.add()).id
    bench.reconciler.fault = "InvalidArgs: no"
    with pytest.raises(InvalidParameter, match=r"^schedule_data: systemd refuses"):
        await bench.say(ALICE, EditJob(job, schedule_type="interval", schedule_data='{"seconds": 60}'))
    row = await bench.row(job)
    assert (row.schedule_type, row.calendar, row.every) == ("daily", ["*-*-* 09:00:00 Europe/Berlin"], 0)
    assert row.revision == 3


async def test_a_removed_job_is_gone_and_what_runs_it_is_told(bench: Bench) -> None:
    job = (await bench.add()).id
    await bench.say(ALICE, RemoveJob(job))
    assert [(row.id, row.user) for row in bench.reconciler.gone] == [(job, "alice")]
    with pytest.raises(NoSuchJob):
        await bench.say(ALICE, GetJob(job))
    with pytest.raises(NoSuchJob):
        await bench.say(ALICE, RemoveJob(job))


async def test_a_pause_takes_the_timer_and_a_resume_gives_it_back(bench: Bench) -> None:
    job = (await bench.add()).id
    for peer, who in ((ALICE, "the agent"), (THE_BOT, "the user"), (ROOT, "the operator")):
        paused = await bench.say(peer, PauseJob(job, user="alice"))
        assert (paused.state, paused.note, paused.next) == ("paused", f"paused by {who}", 0.0)
        assert await bench.say(peer, PauseJob(job, user="alice")) == paused
        assert await bench.jobs.active() == []
        active = await bench.say(peer, ResumeJob(job, user="alice"))
        assert (active.state, active.note) == ("active", "")
        assert active.next > time.time()
        assert await bench.say(peer, ResumeJob(job, user="alice")) == active
    assert (await bench.row(job)).revision == 4
    assert bench.reconciler.told == [job] * 7


async def test_a_once_job_whose_time_has_passed_is_not_resumed(bench: Bench) -> None:
    job = (await bench.add(**once(5))).id
    await bench.say(ALICE, PauseJob(job))
    assert (await bench.say(ALICE, ResumeJob(job))).state == "active"
    await bench.say(ALICE, PauseJob(job))
    await bench.jobs.update(job, schedule_data=json.dumps({"run_at": local(-1)}))
    with pytest.raises(InvalidParameter, match=r"^id: job 1 has no time to come.*has passed"):
        await bench.say(ALICE, ResumeJob(job))
    assert (await bench.row(job)).state == "paused"
    await bench.say(ALICE, EditJob(job, **once(5)))
    assert (await bench.say(ALICE, ResumeJob(job))).state == "active"


async def test_what_has_ended_can_be_looked_up_and_removed_and_nothing_else(bench: Bench) -> None:
    job = (await bench.add()).id
    await bench.jobs.update(job, state="ended")
    assert (await bench.say(ALICE, ListJobs())).jobs == []
    assert [each.id for each in (await bench.say(ALICE, ListJobs(ended=True))).jobs] == [job]
    assert (await bench.say(ALICE, GetJob(job))).times == []
    for call in (EditJob(job, name="x"), PauseJob(job), ResumeJob(job), TriggerJob(job)):
        with pytest.raises(InvalidParameter, match=r"^id: job 1 has ended"):
            await bench.say(ALICE, call)
    await bench.say(ALICE, RemoveJob(job))


async def test_a_job_is_triggered_unless_it_runs(bench: Bench) -> None:
    job = (await bench.add()).id
    await bench.say(THE_BOT, TriggerJob(job, user="alice"))
    assert bench.reconciler.started == [job]
    bench.reconciler.going_on = {job}
    with pytest.raises(Busy, match="is running already"):
        await bench.say(ALICE, TriggerJob(job))
    bench.reconciler.going_on = set()
    bench.reconciler.start_fault = Unavailable("no timers")
    with pytest.raises(Busy, match="no timers"):
        await bench.say(ALICE, TriggerJob(job))


async def test_changes_of_one_job_at_once_come_one_after_another(bench: Bench) -> None:
    job = (await bench.add()).id
    calls: list[Call[Any]] = [PauseJob(job), ResumeJob(job), EditJob(job, **once(4)), EditJob(job, name="y")] * 5
    await asyncio.gather(*(bench.say(ALICE, call) for call in calls))
    row = await bench.row(job)
    assert row.state in ("active", "paused")
    assert (row.name, row.schedule_type) == ("y", "once")
    assert bool(row.due) == (row.state == "active")


# ---- zones ----


async def test_recurring_jobs_follow_the_users_zone_and_a_moment_stays(bench: Bench) -> None:
    daily, moment = await bench.add(), await bench.add(**once(30))
    own, others = await bench.add(timezone="Europe/Paris"), await bench.add(BOB)
    bench.reconciler.told.clear()
    await bench.say(ALICE, SetTimezone("America/New_York"))
    await bench.wait(lambda: bench.reconciler.told)
    assert bench.reconciler.told == [daily.id]
    assert (await bench.row(daily.id)).calendar == ["*-*-* 09:00:00 America/New_York"]
    after = await bench.row(moment.id)
    assert (after.due, after.zone) == (moment.next, "America/New_York")
    assert (await bench.row(own.id)).zone == "Europe/Paris"
    assert (await bench.row(others.id)).zone == "Asia/Tokyo"
    bench.reconciler.told.clear()
    await bench.say(ALICE, SetTimezone(""))
    await bench.wait(lambda: bench.reconciler.told)
    assert (await bench.row(daily.id)).calendar == ["*-*-* 09:00:00 Europe/Berlin"]


async def test_only_a_supervisor_tells_a_zone_and_only_its_own_users(bench: Bench) -> None:
    with pytest.raises(PermissionDenied):
        await bench.say(ROOT, SetTimezone("UTC", user="alice"))
    with pytest.raises(PermissionDenied):
        await bench.say(ALICE, SetTimezone("UTC", user="bob"))
    with pytest.raises(InvalidParameter, match=r"^timezone: expected"):
        await bench.say(ALICE, SetTimezone("Mars"))
    assert await bench.jobs.zone("alice") == await bench.jobs.zone("bob") == ""


async def test_what_was_planned_long_ago_is_planned_anew_at_a_start(bench: Bench) -> None:
    old, new = await bench.add(timezone="Europe/Paris"), await bench.add()
    stale = ["*-*-* 09:00:00 Europe/Paris", "2020-03-29 01:00:00 UTC"]
    await bench.jobs.update(old.id, planned=time.time() - PLAN_AGE - 60, calendar=stale)
    await bench.jobs.update(new.id, calendar=stale)
    bench.reconciler.told.clear()
    bench.stop()
    bench.start()
    await bench.service.open()
    await bench.wait(lambda: bench.reconciler.told)
    assert bench.reconciler.told == [old.id]
    assert (await bench.row(old.id)).calendar == ["*-*-* 09:00:00 Europe/Paris"]
    assert (await bench.row(new.id)).calendar == stale


async def test_an_expression_that_has_had_its_last_time_is_left_alone_at_a_start(bench: Bench) -> None:
    job = (await bench.add()).id
    over = {"schedule_type": "calendar", "schedule_data": '{"calendar": "2020-01-01"}', "calendar": ["2020-01-01 UTC"]}
    await bench.jobs.update(job, planned=1.0, **over)
    await bench.service.open()
    await bench.wait(lambda: not bench.service._tasks)
    row = await bench.row(job)
    assert row.planned > 1.0
    assert row.calendar == ["2020-01-01 UTC"]


# ---- telling the user ----


async def test_a_job_that_the_agent_made_for_itself_is_told_to_its_user_with_a_way_to_cancel_it(bench: Bench) -> None:
    bench.bot()
    made = await bench.add(job_type="agent", name="all*", prompt="look [here](http://x)\nand *there*")
    await bench.wait(lambda: bench.delivered)
    (call,) = bench.delivered.values()
    assert (call.key, call.user, call.job) == (f"job:{made.id}:made", "alice", made.id)
    assert f"Your agent scheduled job {made.id}, “all\\*”: daily at 09:00, next" in call.text
    assert "> look \\[here\\]\\(http://x\\)\n> and \\*there\\*" in call.text
    await bench.wait(lambda: not bench.service.announcer.tasks)
    assert not (await bench.row(made.id)).announce


async def test_reminders_and_what_the_operator_made_are_not_told(bench: Bench) -> None:
    bench.bot()
    await bench.add()
    await bench.add(ROOT, user="alice", job_type="agent")
    assert bench.service.announcer.tasks == {}
    assert await bench.jobs.unannounced() == []


async def test_a_bot_that_is_down_holds_up_nobody_and_is_told_when_it_is_back(bench: Bench) -> None:
    began = time.monotonic()
    made = await bench.add(job_type="agent")
    assert time.monotonic() - began < 5
    await asyncio.sleep(0.2)
    assert bench.daemon._busy > 0, "the scheduler doesn't leave meanwhile"
    bench.stop()
    bench.start()
    bench.deliver_fault = Busy("not now")
    bench.bot()
    await bench.service.open()
    await asyncio.sleep(0.3)
    bench.deliver_fault = None
    await bench.wait(lambda: bench.delivered)
    await bench.wait(lambda: not bench.service.announcer.tasks)
    assert list(bench.delivered) == [f"job:{made.id}:made"]
    assert await bench.jobs.unannounced() == []


async def test_a_job_that_is_removed_before_it_was_told_is_not_told(bench: Bench) -> None:
    job = (await bench.add(job_type="agent")).id
    await bench.say(ALICE, RemoveJob(job))
    bench.bot()
    await bench.wait(lambda: not bench.service.announcer.tasks)
    assert bench.delivered == {}


async def test_what_the_bot_refuses_is_not_tried_for_ever(bench: Bench) -> None:
    bench.bot()
    bench.deliver_fault = InvalidParameter("user: nobody is named alice")
    await bench.add(job_type="agent")
    await bench.wait(lambda: not bench.service.announcer.tasks)
    assert await bench.jobs.unannounced() == []


async def test_what_the_agent_makes_of_a_job_later_is_told_to_its_user_too(bench: Bench) -> None:
    bench.bot()
    job = (await bench.add(prompt="drink water")).id
    await bench.say(ALICE, EditJob(id=job, job_type="agent"))
    await bench.wait(lambda: len(bench.delivered) == 1)
    await bench.say(ALICE, EditJob(id=job, name="a better name"))
    await bench.say(ALICE, EditJob(id=job, prompt="delete everything"))
    await bench.wait(lambda: len(bench.delivered) == 2)
    await bench.say(ROOT, EditJob(id=job, prompt="delete nothing", user="alice"))
    await bench.wait(lambda: not bench.service.announcer.tasks)
    first, second = bench.delivered.values()
    assert f"Your agent changed job {job}" in first.text
    assert "> drink water" in first.text
    assert "> delete everything" in second.text
    assert await bench.jobs.unannounced() == []


async def test_changes_that_come_while_the_bot_is_down_are_told_as_what_they_led_to(bench: Bench) -> None:
    job = (await bench.add(job_type="agent", prompt="one")).id
    for prompt in ("two", "three"):
        await bench.say(ALICE, EditJob(id=job, prompt=prompt))
    bench.bot()
    await bench.wait(lambda: not bench.service.announcer.tasks)
    assert ["> three" in call.text for call in bench.delivered.values()] == [True]


async def test_paused_jobs_count_too_and_of_the_ended_ones_the_last_are_kept(bench: Bench) -> None:
    limit = bench.config.kai.jobs.limit
    jobs = [(await bench.add()).id]
    for _ in range(AT_REST * limit - 1):
        await bench.say(ALICE, PauseJob(id=jobs[-1]))
        jobs.append((await bench.add()).id)
    await bench.say(ALICE, PauseJob(id=jobs[-1]))
    with pytest.raises(InvalidParameter, match=f"user: alice has {AT_REST * limit} active and paused jobs"):
        await bench.add()
    for job in jobs:
        await bench.jobs.update(job, state="ended")
    kept = (await bench.add()).id
    await bench.jobs.update(kept, state="ended")
    last = (await bench.add()).id
    ended = [row.id for row in await bench.jobs.listed("alice", ended=True) if row.state == "ended"]
    assert sorted(ended) == [*jobs[1:], kept]
    assert (await bench.row(last)).state == "active"


async def test_a_job_too_big_for_a_list_hides_no_other(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    big = (await bench.add(name="n" * 100, prompt="p" * 1000)).id
    small = (await bench.add(name="s", prompt="s")).id
    monkeypatch.setattr("kai.scheduler.service.ROOM", 500)
    found = await bench.say(ALICE, ListJobs())
    assert [job.id for job in found.jobs] == [small]
    assert found.more == 1
    assert big


async def test_a_user_who_asks_for_many_previews_at_once_is_told_to_wait(bench: Bench) -> None:
    asked = [Client(bench.directory / "scheduler.sock").call(PreviewJob(**DAILY, user="alice")) for _ in range(30)]
    found = await asyncio.gather(*asked, return_exceptions=True)
    assert {type(each) for each in found} == {Times, Busy}


async def test_a_zone_set_again_and_again_plans_a_users_jobs_a_few_times(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.add()
    planned: list[int] = []
    once = bench.service._replan_all

    async def counted(jobs: list[int]) -> None:
        planned.append(len(jobs))
        await once(jobs)

    monkeypatch.setattr(bench.service, "_replan_all", counted)
    for zone in ["Asia/Tokyo", "Europe/Paris"] * 20:
        await bench.say(ALICE, SetTimezone(timezone=zone))
    await bench.wait(lambda: not bench.service._planning)
    assert (await bench.jobs.listed("alice"))[0].zone == "Europe/Paris"
    assert 0 < len(planned) < 40


async def test_the_journal_says_which_field_was_wrong_and_nothing_of_what_was_in_it(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(InvalidParameter, match="my secret date"):
        await bench.add(schedule_type="once", schedule_data='{"run_at": "my secret date"}')
    assert "its schedule_data.run_at isn't valid" in caplog.text
    assert "secret" not in caplog.text
