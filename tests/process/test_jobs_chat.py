"""/jobs, /job, their buttons, and messages that cancel a job, against a scheduler that does as the test says."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kai.bot.message import Body, Button
from kai.bot.outbox import Outbox
from kai.bot.service import Service
from kai.bot.tables import open_tables
from kai.config import load
from kai.demo.botapi.views import MessageView
from kai.interfaces import (
    Attachment,
    Deliver,
    GetJob,
    ListJobs,
    PauseJob,
    RemoveJob,
    ResumeJob,
    RunRecord,
    TriggerJob,
)
from kai.lib.client import Client
from kai.lib.peers import SCHEDULER, SUPERVISOR, Peer
from kai.lib.varlink import InvalidParameter, PermissionDenied

from .conftest import ALICE, BOB, Stage
from .scheduling import Scheduler, job, scheduler
from .scripted import supervisor

Scene = tuple[Stage, Scheduler]


@pytest.fixture
async def scene(stage: Stage) -> AsyncIterator[Scene]:
    async with scheduler(stage.launcher.runtime / "scheduler.sock") as made:
        made.jobs = {each.id: each for each in (job(7, name="backups", job_type="agent"), job(9, "bob"))}
        yield stage, made


async def shown(stage: Stage, contains: str, *, user: int = ALICE, after: int = 0) -> MessageView:
    """A message with this text, with buttons or without."""

    def look() -> MessageView | None:
        found = (m for m in stage.api.messages(user) if m.by_bot and m.message_id > after)
        return next((m for m in found if contains in (m.text or "")), None)

    return await stage.api.wait_for(look)


async def press(stage: Stage, message: int, *, user: int = ALICE, **which: Any) -> str:
    """Press a button; what the answer to its query says."""
    callback = stage.api.press(user, message, **which).callback_id
    await stage.api.wait_for(lambda: stage.api.callback(callback).answered)
    return stage.api.callback(callback).text


async def becomes(stage: Stage, message: int, contains: str) -> MessageView:
    def look() -> MessageView | None:
        found = stage.api.message_view(ALICE, message)
        return found if contains in (found.text or "") else None

    return await stage.api.wait_for(look)


def data(message: MessageView) -> list[str]:
    rows = (message.reply_markup or {}).get("inline_keyboard", [])
    return [button["callback_data"] for row in rows for button in row]


async def deliver(stage: Stage, text: str, number: int, *, key: str = "k", **more: Any) -> None:
    bot = Client(stage.launcher.runtime / "bot.sock")
    await bot.call(Deliver(key=key, user="alice", text=text, job=number), **more)


# ---- what is shown ----


async def test_a_user_sees_his_own_jobs_and_is_named_to_the_scheduler(scene: Scene) -> None:
    stage, made = scene
    stage.say("/jobs")
    message = await shown(stage, "7 backups – agent, daily at 09:00")
    assert "job9" not in (message.text or "")
    assert data(message) == ["job:7:info"]
    assert {entity["type"] for entity in message.entities} == {"code"}
    assert made.calls[0] == ListJobs(user="alice")
    stage.say("/jobs", user=BOB)
    assert "backups" not in ((await shown(stage, "9 job9", user=BOB)).text or "")
    assert {call.user for call in made.calls} == {"alice", "bob"}


async def test_nobody_has_a_job_says_so(scene: Scene) -> None:
    stage, made = scene
    made.jobs.clear()
    stage.say("/jobs")
    assert (await stage.answer("You have no jobs.")).buttons == []


@pytest.mark.parametrize("text", ["/job info 7", "/job 7", "/JOB Info 7"])
async def test_a_job_is_shown_whole_with_what_can_be_done(scene: Scene, text: str) -> None:
    stage, made = scene
    now = time.time()
    made.runs[7] = [RunRecord(2, now - 60, now - 60, now - 50, "failed", "the agent died"), RunRecord(1, 0, now, now)]
    made.jobs[7].prompt = "check *all* of <b>them</b>\n/stop @bob https://example.org"
    stage.say(text)
    message = await shown(stage, "the agent died")
    assert message.buttons == ["▶ Run now", "⏸ Pause", "✗ Cancel", "◀ All jobs"]
    assert "check *all* of <b>them</b>\n/stop @bob https://example.org" in (message.text or "")
    assert sorted(entity["type"] for entity in message.entities) == ["code", "pre"], "nothing of it is a link"
    assert (message.text or "").count("; ") == 3, "five times in all"
    assert made.changes == []


# ---- commands and presses ----


@pytest.mark.parametrize(
    ("verb", "call", "said", "buttons"),
    [
        ("run", TriggerJob, "▶ Started.", ["↻ Look again", "⏸ Pause", "✗ Cancel", "◀ All jobs"]),
        ("pause", PauseJob, "⏸ Paused.", ["▶ Run now", "Resume", "✗ Cancel", "◀ All jobs"]),
        ("cancel", RemoveJob, "✗ Cancelled.", ["◀ All jobs"]),
    ],
)
async def test_a_press_does_what_the_command_does_and_its_message_shows_what_is_in_force(
    scene: Scene, verb: str, call: Any, said: str, buttons: list[str]
) -> None:
    stage, made = scene
    stage.say("/jobs")
    message = (await shown(stage, "7 backups")).message_id
    assert await press(stage, message, label="7 backups") == ""
    await becomes(stage, message, "no run yet")
    assert await press(stage, message, data=f"job:7:{verb}") == said
    assert (await becomes(stage, message, said)).buttons == buttons
    assert made.changes == [call(id=7, user="alice")]
    made.jobs[7], made.calls = job(7), []
    made.runs.clear()
    stage.say(f"/job {verb} 7")
    assert (await shown(stage, said, after=message)).buttons == buttons
    assert made.changes == [call(id=7, user="alice")]
    assert await press(stage, message, label="◀ All jobs") == ""
    await becomes(stage, message, "Your jobs" if verb != "cancel" else "You have no jobs.")


async def test_a_paused_job_is_resumed_by_a_press(scene: Scene) -> None:
    stage, made = scene
    stage.say("/job pause 7")
    message = await shown(stage, "state: paused: paused by its user")
    assert await press(stage, message.message_id, label="Resume") == "▶ It runs at its times again."
    assert "⏸ Pause" in (await becomes(stage, message.message_id, "state: next ")).buttons
    assert made.changes == [PauseJob(7, "alice"), ResumeJob(7, "alice")]


@pytest.mark.parametrize("verb", ["info", "run", "pause", "resume", "cancel"])
async def test_anothers_job_and_one_that_is_gone_are_no_jobs(scene: Scene, verb: str) -> None:
    stage, made = scene
    stage.say("/jobs")
    message = (await shown(stage, "7 backups")).message_id
    for number in (9, 4711):
        stage.say(f"/job {verb} {number}")
        await stage.answer(f"⚠ There is no job {number} of yours.")
        assert await press(stage, message, data=f"job:{number}:{verb}") == f"There is no job {number} of yours."
        assert (await becomes(stage, message, f"no job {number}")).buttons == ["◀ All jobs"]
    assert 9 in made.jobs
    assert made.jobs[9].state == "active"
    assert made.runs == {}
    assert {call.user for call in made.calls} == {"alice"}


@pytest.mark.parametrize(
    "word",
    ["job:7", "job:7:", "job:07:run", "job:-7:cancel", "job:0:cancel", "job:7:list", "job:7:cancel:bob",
     "job:٧:cancel", "job:" + "9" * 30 + ":cancel", "jobnote:7", "jobnote:7:run", "jobnote:0:cancel", "jobs:7:run",
     "do:/job cancel 7", "do:/jobs"],
)  # fmt: skip
async def test_other_data_asks_the_scheduler_for_nothing(scene: Scene, word: str) -> None:
    stage, made = scene
    stage.say("/help")
    message = await stage.answer("/jobs")
    await press(stage, message.message_id, data=word)
    assert made.calls == []
    assert stage.api.message_view(ALICE, message.message_id).text == message.text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("/job remove 7", "What is to be done isn't said. Expected: /job info|cancel|run|pause|resume ID, for example"),
        ("/job cancel", "A job is named by its number, which /jobs shows."),
        ("/job cancel backups", "A job is named by its number"),
        ("/job cancel 7 9", "A job is named by its number"),
        ("/job cancel ٧", "A job is named by its number"),
    ],
)
async def test_a_command_that_is_written_wrongly_changes_nothing(scene: Scene, text: str, said: str) -> None:
    stage, made = scene
    stage.say(text)
    await stage.answer(said)
    assert made.calls == []


async def test_jobs_are_answered_at_once_while_a_turn_runs(scene: Scene) -> None:
    stage, made = scene
    async with supervisor(stage.launcher.runtime / "agent/alice.sock") as agent:
        stage.say("wait")
        await stage.api.wait_for(lambda: agent.turns)
        stage.say("/jobs")
        message = await shown(stage, "7 backups")
        assert await press(stage, message.message_id, data="job:7:run") == "▶ Started."
        stage.say("/job cancel 7")
        await shown(stage, "✗ Cancelled.")
        assert [type(call) for call in made.changes] == [TriggerJob, RemoveJob]
        assert agent.calls == []


# ---- when the scheduler can't, or won't ----


async def test_what_the_scheduler_refuses_is_told_in_its_words_and_the_message_stays(scene: Scene) -> None:
    stage, made = scene
    stage.say("/job 7")
    message = await shown(stage, "no run yet")
    made.refuses = "schedule_data.run_at: that has passed"
    assert await press(stage, message.message_id, label="⏸ Pause") == "⚠ schedule_data.run_at: that has passed"
    assert stage.api.message_view(ALICE, message.message_id).text == message.text
    stage.say("/job resume 7")
    await stage.answer("⚠ schedule_data.run_at: that has passed")
    made.refuses, made.jobs[7].running = "", True
    stage.say("/job run 7")
    await stage.answer("⚠ job 7 is running")
    assert sum(isinstance(call, TriggerJob) for call in made.calls) == 1, "it is not run afterwards"


async def test_a_scheduler_that_is_not_there_is_told_and_one_that_comes_back_is_asked_again(scene: Scene) -> None:
    stage, made = scene
    path = stage.launcher.runtime / "scheduler.sock"
    away = path.with_name("away")
    path.rename(away)
    stage.say("/jobs")
    await stage.answer("⚠ The scheduler does not answer: ")
    stage.say("/job cancel 7")
    await asyncio.sleep(0.3)
    away.rename(path)
    await shown(stage, "✗ Cancelled.")
    made.busy = True
    stage.say("/jobs")
    await stage.answer("⚠ The scheduler is busy: all timers are being made")


async def test_a_cancel_whose_answer_was_lost_is_a_cancel(scene: Scene) -> None:
    stage, made = scene
    made.lost = 1
    stage.say("/job cancel 7")
    await shown(stage, "✗ Cancelled.")
    assert made.changes == [RemoveJob(7, "alice")] * 2


async def test_a_run_that_was_asked_for_before_a_crash_is_not_run_twice(scene: Scene) -> None:
    stage, made = scene
    made.held = asyncio.Event()
    stage.say("/job run 7")
    await stage.api.wait_for(lambda: made.runs.get(7))
    stage.launcher.kill("kai-bot", signal.SIGKILL)
    await shown(stage, "▶ Started.")
    assert len(made.runs[7]) == 1
    made.held.set()


# ---- messages of the scheduler that cancel a job ----


async def test_a_message_of_a_job_has_a_button_that_removes_it_and_keeps_its_text(scene: Scene) -> None:
    stage, made = scene
    await deliver(stage, "Your agent scheduled job 7: **backups**", 7)
    await deliver(stage, "Your agent scheduled job 7: **backups**", 7)
    message = await shown(stage, "Your agent scheduled")
    assert message.buttons == ["Cancel job 7"]
    assert await press(stage, message.message_id, label="Cancel job 7") == "✗ Job 7 is cancelled."
    settled = await becomes(stage, message.message_id, "✗ Job 7 is cancelled.")
    assert settled.text == "Your agent scheduled job 7: backups\n\n✗ Job 7 is cancelled."
    assert settled.buttons == []
    assert [entity["type"] for entity in settled.entities] == ["bold"]
    assert made.calls == [RemoveJob(7, "alice")]
    assert await press(stage, message.message_id, data="jobnote:7:cancel") == "There is no job 7 of yours."
    assert len([m for m in stage.api.messages(ALICE) if m.by_bot]) == 1


async def test_a_pressed_cancel_of_anothers_job_changes_neither_the_job_nor_a_message(scene: Scene) -> None:
    stage, made = scene
    await deliver(stage, "scheduled", 7)
    message = await shown(stage, "scheduled")
    assert await press(stage, message.message_id, data="jobnote:9:cancel") == "There is no job 9 of yours."
    await asyncio.sleep(0.3)
    assert stage.api.message_view(ALICE, message.message_id).text == "scheduled"
    assert made.calls == [RemoveJob(9, "alice")]
    assert 9 in made.jobs


async def test_a_press_while_the_scheduler_is_away_leaves_the_button(scene: Scene) -> None:
    stage, _ = scene
    await deliver(stage, "scheduled", 7)
    message = await shown(stage, "scheduled")
    (stage.launcher.runtime / "scheduler.sock").unlink()
    said = await press(stage, message.message_id, label="Cancel job 7")
    assert said.startswith("⚠ The scheduler does not answer: ")
    assert stage.api.message_view(ALICE, message.message_id).buttons == ["Cancel job 7"]


async def test_a_long_message_and_a_file_have_the_button_below_them(scene: Scene, tmp_path: Path) -> None:
    stage, _ = scene
    await deliver(stage, "x" * 4090, 7)
    await shown(stage, "This is of job 7.")
    (tmp_path / "a.txt").write_text("hello")
    with (tmp_path / "a.txt").open("rb") as file:
        call = Deliver(key="f", user="alice", text="see", job=8, file=Attachment("a.txt", 0))
        await Client(stage.launcher.runtime / "bot.sock").call(call, descriptors=[file.fileno()])
    message = await shown(stage, "This is of job 8.")
    assert message.buttons == ["Cancel job 8"]
    assert await press(stage, message.message_id, label="Cancel job 8") == "There is no job 8 of yours."
    await becomes(stage, message.message_id, "This is of job 8.\n\nThere is no job 8 of yours.")


@pytest.mark.parametrize("number", [-1, 10**18])
async def test_a_number_that_is_no_jobs_is_refused(stage: Stage, number: int) -> None:
    with pytest.raises(InvalidParameter, match="job: expected a job's number"):
        await deliver(stage, "x", number)


@pytest.mark.parametrize(
    ("peer", "may"),
    [(Peer(1, 1, frozenset({SUPERVISOR}), "alice"), False), (Peer(1, 1, frozenset({SCHEDULER})), True)],
    ids=["supervisor", "scheduler"],
)
async def test_a_job_is_the_schedulers_to_name(tmp_path: Path, peer: Peer, may: bool) -> None:
    (tmp_path / "users.yaml").write_text("users: [{telegram_id: 1001, name: alice}]\n")
    config, store = load(tmp_path), open_tables(tmp_path)
    outbox, sent = Outbox(store, 1), list[Any]()
    sender: Any = SimpleNamespace(put=lambda *rows: sent.extend(rows))
    unused: Any = None
    service = Service(lambda: config, unused, outbox, unused, sender, unused, lambda: "", list, unused)
    try:
        await service.deliver(peer, Deliver("k", "alice", "hello", job=7), [])
    except PermissionDenied as refusal:
        assert "may not name a job" in str(refusal)
    shown = Body("hello", [], [Button("Cancel job 7", "jobnote:7:cancel")]).encode()
    assert [row.body for row in sent] == ([shown] if may else [])
    store.close()


async def test_a_button_whose_message_is_forgotten_goes_all_the_same(scene: Scene) -> None:
    stage, made = scene
    stage.say("/job 7")
    message = await shown(stage, "no run yet")  # its row has no such button
    assert await press(stage, message.message_id, data="jobnote:7:cancel") == "✗ Job 7 is cancelled."

    def bare() -> bool:
        return stage.api.message_view(ALICE, message.message_id).buttons == []

    await stage.api.wait_for(bare)
    assert stage.api.message_view(ALICE, message.message_id).text == message.text
    assert made.changes == [RemoveJob(7, "alice")]
    assert GetJob(7, "alice") in made.calls
