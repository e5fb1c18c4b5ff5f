"""The chat and `kai jobs` with the scheduler's own service and store behind them; only systemd's timers are played."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from kai.cli import jobs as command
from kai.cli import main
from kai.config import load
from kai.lib.daemon import Daemon
from kai.lib.peers import Peers
from kai.lib.server import Server
from kai.scheduler.jobs import JobRow, JobStore, open_tables
from kai.scheduler.service import Service

from .conftest import ALICE, BOB, Stage, Stages
from .test_jobs_chat import becomes, press, shown


class Timers:
    """Makes none, and remembers which jobs were to run and which are gone."""

    def __init__(self) -> None:
        self.started: list[int] = []
        self.gone: list[int] = []

    async def changed(self, job_ids: Iterable[int] = ()) -> dict[int, str]:
        return {}

    async def start(self, job: int) -> None:
        self.started.append(job)

    async def removed(self, job: JobRow) -> None:
        self.gone.append(job.id)

    def running(self, job: int) -> bool:
        return False


@asynccontextmanager
async def service(directory: Path, runtime: Path, etc: Path) -> AsyncIterator[Timers]:
    config, timers = load(etc), Timers()
    with socket.socket(socket.AF_UNIX) as listening:
        (runtime / "scheduler.sock").unlink(missing_ok=True)
        listening.bind(os.fspath(runtime / "scheduler.sock"))
        listening.listen(128)
        listening.setblocking(False)
        daemon = Daemon("kai-scheduler", {"scheduler": listening}, instance="", one_uid=True)
        daemon.runtime_dir = runtime
        store = open_tables(directory)
        made = Service(daemon, lambda: config, JobStore(store), timers)
        server = Server(daemon, "scheduler", Peers(one_uid=True), made.handlers())
        yield timers
        made.close()
        server.listener.let_go()
        store.close()


@pytest.fixture
async def scene(stages: Stages, tmp_path: Path) -> AsyncIterator[tuple[Stage, Timers]]:
    zoned = {"telegram_id": ALICE, "name": "alice", "timezone": "Asia/Tokyo"}
    stage: Stage = await stages(users=[zoned, {"telegram_id": BOB, "name": "bob"}])
    (tmp_path / "jobs").mkdir()
    async with service(tmp_path / "jobs", stage.launcher.runtime, stage.launcher.directory / "etc") as timers:
        yield stage, timers


async def kai(stage: Stage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    def run() -> None:
        monkeypatch.setattr(sys, "argv", ["kai", "jobs", *words])
        with pytest.raises(SystemExit):
            main.main()

    monkeypatch.setenv("KAI_RUNTIME_DIRECTORY", os.fspath(stage.launcher.runtime))
    monkeypatch.setattr(command, "need_root", lambda _: None)
    await asyncio.to_thread(run)
    return capsys.readouterr().out


async def test_a_job_that_the_operator_makes_is_the_users_in_his_chat_and_nobody_elses(
    scene: tuple[Stage, Timers], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stage, timers = scene

    async def run(*words: str) -> str:
        return await kai(stage, monkeypatch, capsys, *words)

    said = await run("add", "--user", "alice", "--prompt", "water", "--name", "plants", "--daily", "09:00,18:30")
    assert said.startswith("job 1: active, next ")
    assert said.endswith("Asia/Tokyo\n")
    assert (await run("list")).splitlines()[1].endswith("  reminder  -     plants")
    stage.say("/jobs")
    message = await shown(stage, "1 plants – reminder, daily at 09:00 and 18:30")
    stage.say("/jobs", user=BOB)
    await stage.answer("You have no jobs.", user=BOB)
    stage.say("/job cancel 1", user=BOB)
    await stage.answer("⚠ There is no job 1 of yours.", user=BOB)

    await press(stage, message.message_id, label="1 plants")
    assert "Asia/Tokyo" not in ((await becomes(stage, message.message_id, "no run yet")).text or ""), "his own zone"
    assert await press(stage, message.message_id, label="⏸ Pause") == "⏸ Paused."
    await becomes(stage, message.message_id, "state: paused")
    assert "paused" in await run("show", "1")
    await run("edit", "1", "--timezone", "Europe/Berlin", "--calendar", "Mon..Fri 09:00")
    assert await press(stage, message.message_id, label="Resume") == "▶ It runs at its times again."
    await becomes(stage, message.message_id, "reminder, at Mon..Fri 09:00 (Europe/Berlin)\nstate: next ")
    assert await press(stage, message.message_id, label="▶ Run now") == "▶ Started."
    assert timers.started == [1]
    assert await press(stage, message.message_id, label="✗ Cancel") == "✗ Cancelled."
    assert timers.gone == [1]
    assert await run("list") == "There is no job.\n"


async def test_a_preview_and_a_schedule_that_is_wrong_are_the_schedulers_word(
    scene: tuple[Stage, Timers], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stage, _ = scene
    lines = (await kai(stage, monkeypatch, capsys, "preview", "--daily", "09:00", "--user", "alice")).splitlines()
    assert lines[0] == "systemd: *-*-* 09:00:00 Asia/Tokyo"
    assert len(lines) == 6
    assert all(line.endswith(" 09:00:00 Asia/Tokyo") for line in lines[1:])
    monkeypatch.setattr(sys, "argv", ["kai", "jobs", "preview", "--every", "5s"])
    with pytest.raises(SystemExit) as ended:
        await asyncio.to_thread(main.main)
    assert str(ended.value.code).startswith("kai: schedule_data.seconds: ")
