"""State that can't be read or written: the daemon says which file it is and what to do, loses nothing, and goes on once
it is repaired.

The limit on the size of files plays the full disk: what would make a database grow fails, as on a disk without room.
"""

import asyncio
import os
import resource
import shutil
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from kai.demo.launcher import Launcher
from kai.demo.service import Unit

from .conftest import ALICE, TOKEN, Stage, Stages
from .test_recovery import stop, warm

AGENT = "kai-agent@alice"
OVER_ALL = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--") if os.geteuid() == 0 else ()
"""In front of a daemon's command: root may write where nobody may, other accounts may not."""


def queue_of(stage: Stage) -> Path:
    return stage.launcher.directory / "state/bot/queue.db"


def journal_of(stage: Stage) -> Path:
    return stage.launcher.directory / "state/users/alice/state/turns.db"


def wal(database: Path) -> Path:
    return database.with_name(f"{database.name}-wal")


def runs(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


@contextmanager
def full(stage: Stage, unit: str) -> Iterator[None]:
    """There is no room for another word in this daemon's database; its log is shorter and goes on."""
    pid = stage.launcher.pid(unit)
    assert pid
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    size = wal(queue_of(stage) if unit == "kai-bot" else journal_of(stage)).stat().st_size
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        if stage.launcher.pid(unit) == pid:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


def overwritten(database: Path) -> None:
    """Something else has written over its beginning."""
    with database.open("r+b") as file:
        file.write(b"not a database at all " * 100)


def cut_off(database: Path) -> None:
    """As after a copy that broke off."""
    os.truncate(database, database.stat().st_size // 2)


def scribbled(database: Path) -> None:
    """A block of the disk came back as something else: the header is good, the pages behind it are not."""
    size = database.stat().st_size
    with database.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(size - 4096))


def fold(database: Path) -> None:
    """Bring everything into the one file, as its daemon does when it ends."""
    with closing(sqlite3.connect(database)) as db:
        db.execute("PRAGMA journal_mode=DELETE")


DAMAGES = pytest.mark.parametrize("damage", [overwritten, cut_off, scribbled])
Damage = Callable[[Path], None]


async def start(stage: Stage) -> None:
    """What `systemctl restart kai.target` does: a unit that had failed is started again too."""
    await stage.launcher.stop()
    await stage.launcher.start()
    await stage.launcher.wait_ready("kai-bot")


async def refuses(stage: Stage, *words: str) -> None:
    """The bot doesn't start, says why, and takes its socket down instead of looping."""
    stage.launcher.services["kai-bot"].start()
    assert await stage.launcher.wait_exit("kai-bot") == 78
    told = stage.launcher.end_of_log("kai-bot")
    for word in words:
        assert word in told
    assert stage.launcher.status()["kai-bot"].startswith("failed")
    assert TOKEN not in told


async def status_says(stage: Stage, words: str, unit: str = "kai-bot") -> None:
    async with asyncio.timeout(20):
        while words not in stage.status(unit):
            await asyncio.sleep(0.02)


async def log_says(stage: Stage, words: str, unit: str) -> None:
    async with asyncio.timeout(20):
        while words not in stage.launcher.logs(unit):
            await asyncio.sleep(0.02)


# ---- damaged ----


@DAMAGES
async def test_a_bot_with_a_damaged_queue_refuses_and_goes_on_with_the_restored_one(
    stages: Stages, tmp_path: Path, damage: Damage
) -> None:
    counter = tmp_path / "runs"
    stage: Stage = await stages(runs=counter)
    await warm(stage)
    await stop(stage)
    queue, backup = queue_of(stage), tmp_path / "backup"
    fold(queue)
    shutil.copy(queue, backup)
    damage(queue)
    damaged = queue.read_bytes()
    stage.say("! echo patient")
    await refuses(stage, "queue.db", "restore it from a backup or move it away")
    assert queue.read_bytes()[100:] == damaged[100:], "what is damaged is evidence: nobody writes to it"
    assert len(stage.api.pending()) == 1, "it stays at Telegram"
    shutil.copy(backup, queue)
    await start(stage)
    await stage.answer("patient")
    assert sum("warm" in text for text in stage.shown()) == 1
    assert runs(counter) == 2


async def test_a_damaged_queue_can_be_moved_away(stage: Stage) -> None:
    await warm(stage)
    await stop(stage)
    queue = queue_of(stage)
    overwritten(queue)
    stage.say("! echo anew")
    await refuses(stage, "queue.db")
    queue.rename(queue.with_name("queue.db.damaged"))
    await start(stage)
    await stage.answer("anew")
    assert sum("warm" in text for text in stage.shown()) == 1


@DAMAGES
async def test_a_damaged_journal_is_told_in_the_chat_and_the_message_waits_for_the_repair(
    stages: Stages, tmp_path: Path, damage: Damage
) -> None:
    counter = tmp_path / "runs"
    stage: Stage = await stages(runs=counter)
    await warm(stage)
    await stop(stage, AGENT)
    journal, backup = journal_of(stage), tmp_path / "backup"
    fold(journal)
    shutil.copy(journal, backup)
    damage(journal)
    stage.say("! echo patient")
    shown = await stage.growing("turns.db", timeout=30)
    assert "restore it from a backup or move it away" in (shown.text or "")
    stage.say("! echo from bob", user=1002)
    await stage.answer("from bob", user=1002)
    shutil.copy(backup, journal)
    await stage.answer("patient", timeout=30)
    assert runs(counter) == 3


async def test_a_journal_that_is_gone_with_a_running_turn_makes_it_interrupted_and_not_run_again(
    stages: Stages, tmp_path: Path
) -> None:
    counter = tmp_path / "runs"
    stage: Stage = await stages(runs=counter)
    stage.say("slow 200")
    await stage.growing("word3")
    await stop(stage, how=signal.SIGKILL)
    await stop(stage, AGENT, how=signal.SIGKILL)
    for path in (journal_of(stage), wal(journal_of(stage))):
        path.unlink(missing_ok=True)
    await stage.api.wait_for(lambda: any("was reset" in text for text in stage.shown()), timeout=30)
    stage.say("! echo after")
    await stage.answer("after")
    assert runs(counter) == 2


# ---- full ----


async def test_an_update_that_finds_the_disk_full_stays_at_telegram_and_is_answered_when_there_is_room(
    stages: Stages, tmp_path: Path
) -> None:
    counter = tmp_path / "runs"
    stage: Stage = await stages(runs=counter)
    await warm(stage)
    with full(stage, "kai-bot"):
        stage.say("! echo patient")
        await status_says(stage, "updates can't be stored and stay at Telegram")
        assert "queue.db" in stage.launcher.logs("kai-bot")
        assert [update.update["message"]["text"] for update in stage.api.pending()] == ["! echo patient"]
    await stage.answer("patient", timeout=30)
    assert runs(counter) == 2
    assert stage.launcher.starts("kai-bot") == 1, "it kept running"


async def test_an_answer_that_finds_the_disk_full_waits_and_arrives_once(stages: Stages, tmp_path: Path) -> None:
    counter = tmp_path / "runs"
    stage: Stage = await stages(runs=counter)
    await warm(stage)
    stage.say("slow 15")
    await stage.growing("word3")
    with full(stage, "kai-bot"):
        await log_says(stage, "the answer waits", "kai-bot")
        assert "queue.db" in stage.launcher.end_of_log("kai-bot", 40)
    await stage.answer("word15", timeout=30)
    assert runs(counter) == 2
    assert sum("word15" in text for text in stage.shown()) == 1


async def test_a_bot_killed_while_the_disk_is_full_loses_nothing(stages: Stages, tmp_path: Path) -> None:
    counter = tmp_path / "runs"
    stage: Stage = await stages(runs=counter)
    await warm(stage)
    stage.say("slow 15")
    await stage.growing("word3")
    with full(stage, "kai-bot"):
        await log_says(stage, "the answer waits", "kai-bot")
        stage.say("! echo later-message")
        await stop(stage, how=signal.SIGKILL)
    await stage.answer("word15", timeout=30)
    await stage.answer("later-message", timeout=30)
    assert runs(counter) == 3
    assert sum("word15" in text for text in stage.shown()) == 1


async def test_a_turn_that_finds_its_journal_full_does_not_begin_before_there_is_room(
    stages: Stages, tmp_path: Path
) -> None:
    counter = tmp_path / "runs"
    stage: Stage = await stages(runs=counter)
    await warm(stage)
    with full(stage, AGENT):
        stage.say("! echo patient")
        await stage.growing("turns.db", timeout=30)
        assert runs(counter) == 1
    await stage.answer("patient", timeout=30)
    assert runs(counter) == 2


async def test_an_answer_whose_journal_is_full_is_shown_when_it_is_stored(stages: Stages, tmp_path: Path) -> None:
    counter = tmp_path / "runs"
    stage: Stage = await stages(runs=counter)
    await warm(stage)
    stage.say("slow 15")
    await stage.growing("word3")
    with full(stage, AGENT):
        await log_says(stage, "the answer waits to be stored", AGENT)
        assert any(message.buttons for message in stage.api.messages(ALICE) if message.by_bot)
    await stage.answer("word15", timeout=30)
    assert runs(counter) == 2


# ---- read-only ----


class Bounded(Launcher):
    """A set whose daemons may write only where their account may."""

    def units(self) -> list[Unit]:
        return [
            Unit(each.name, (*OVER_ALL, *each.command), each.sockets, each.environment, each.resident)
            for each in super().units()
        ]


@contextmanager
def read_only(directory: Path) -> Iterator[None]:
    modes = {path: path.stat().st_mode for path in (directory, *directory.iterdir())}
    for path in modes:
        path.chmod(0o500 if path.is_dir() else 0o400)
    try:
        yield
    finally:
        for path, mode in modes.items():
            path.chmod(mode)


@pytest.fixture
async def bounded(stages: Stages, monkeypatch: pytest.MonkeyPatch) -> Stage:
    monkeypatch.setattr("tests.process.conftest.Launcher", Bounded)
    made: Stage = await stages()
    return made


async def test_a_bot_that_may_not_write_its_state_refuses_and_loses_nothing(bounded: Stage) -> None:
    stage = bounded
    await warm(stage)
    await stop(stage)
    stage.say("! echo patient")
    with read_only(queue_of(stage).parent):
        await refuses(stage, "queue.db", "the file's owner")
        assert len(stage.api.pending()) == 1
    await start(stage)
    await stage.answer("patient")
    assert sum("warm" in text for text in stage.shown()) == 1


async def test_a_supervisor_that_may_not_write_its_state_is_told_in_the_chat(bounded: Stage) -> None:
    stage = bounded
    await warm(stage)
    await stop(stage, AGENT)
    with read_only(journal_of(stage).parent):
        stage.say("! echo patient")
        shown = await stage.growing("turns.db", timeout=30)
        assert "the file's owner" in (shown.text or "")
    await stage.answer("patient", timeout=30)
