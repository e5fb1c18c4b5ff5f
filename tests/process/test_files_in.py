"""Files that a person sends: fetched, stored where only his agent reads them, and never a reason to lose a message."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from pathlib import Path

import pytest

from kai.demo.botapi.faults import Fault

from .conftest import ALICE, BOB, Stage
from .test_recovery import stop, warm

MIB = 1 << 20


def files(stage: Stage, user: str = "alice") -> list[Path]:
    base = stage.launcher.directory / f"state/users/{user}/files"
    return sorted(path for path in base.rglob("*") if path.is_file())


def send(stage: Stage, data: bytes, text: str | None = None, *, name: str = "a.txt", user: int = ALICE) -> int:
    file = stage.api.put_file(data, name=name, mime="text/plain")
    return stage.api.say(user, text, document=file).message_id


async def test_a_document_is_a_path_that_the_agent_can_read(stage: Stage) -> None:
    after = send(stage, b"twelve bytes", "what is in it?")
    told = (await stage.answer("I can read", after=after)).text or ""
    assert "12 bytes" in told
    (stored,) = files(stage)
    assert os.fspath(stored) in told
    assert stored.read_bytes() == b"twelve bytes"
    assert stored.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    "name",
    [
        "../../../../etc/passwd",
        "a\nb\n! touch owned",
        "..",
        "-rf",
        ".bashrc",
        "x" * 400 + ".txt",
        "\u202etxt.exe",
        "a] (b",
    ],
)
async def test_no_name_of_a_file_does_harm(stage: Stage, name: str) -> None:
    after = send(stage, b"content", name=name)
    told = (await stage.answer("I can read", after=after)).text or ""
    (stored,) = files(stage)
    assert os.fspath(stored) in told
    assert stored.read_bytes() == b"content"
    assert re.fullmatch(r"[^\x00-\x1f/]{1,255}", stored.name)
    assert not stored.name.startswith((".", "-"))
    assert not list(stage.launcher.directory.rglob("owned"))


async def test_a_file_that_telegram_does_not_give_is_told_and_nothing_else_is_lost(stage: Stage) -> None:
    big = stage.api.put_file(b"", name="movie.mkv", declared_size=34 * MIB)
    after = stage.api.say(ALICE, "watch this", document=big).message_id
    stage.say("say still here")
    told = (await stage.answer("20 MB", after=after)).text or ""
    assert "movie.mkv has 34 MB" in told
    await stage.answer("still here", after=after)
    assert files(stage) == []


async def test_a_file_that_is_gone_at_telegram_ends_its_turn_with_words(stage: Stage, tmp_path: Path) -> None:
    await warm(stage)
    gone = stage.api.put_file(b"", name="gone.txt", declared_size=100)
    after = stage.api.say(ALICE, "! touch it-ran", document=gone).message_id
    stage.say("say still here")
    told = (await stage.answer("gone.txt", after=after)).text or ""
    assert "temporarily unavailable" in told
    await stage.answer("still here", after=after)
    assert not list(stage.launcher.directory.rglob("it-ran"))
    assert files(stage) == []


async def test_a_part_of_an_album_that_is_too_big_does_not_cost_the_others(stage: Stage) -> None:
    sizes = (None, 34 * MIB, None)
    kept = [stage.api.put_file(b"12345", name=f"{n}.txt", declared_size=size) for n, size in enumerate(sizes)]
    for number, file in enumerate(kept):
        stage.api.say(ALICE, "all" if not number else None, document=file, media_group_id="9")
    told = (await stage.answer("I can read")).text or ""
    assert told.count("5 bytes") == 2
    await stage.answer("1.txt has 34 MB")
    assert len(files(stage)) == 2
    assert len([text for text in stage.shown() if "I can read" in text]) == 1


async def test_an_album_that_a_crash_of_the_bot_parted_is_one_turn(stage: Stage) -> None:
    await warm(stage)
    first, second = (stage.api.put_file(b"12345", name=f"{n}.txt") for n in range(2))
    stage.api.say(ALICE, "both", document=first, media_group_id="9")
    await stage.api.wait_for(lambda: stage.api.updates.polling and not stage.api.pending())
    await stop(stage, how=signal.SIGKILL)
    stage.api.say(ALICE, document=second, media_group_id="9")
    stage.api.add_fault(Fault(kind="hold", method="getUpdates", seconds=1.2, count=1))  # longer than parts take
    told = (await stage.answer("I can read", timeout=20)).text or ""
    assert told.count("5 bytes") == 2


async def test_a_file_is_fetched_again_until_it_comes(stage: Stage) -> None:
    await warm(stage)
    stage.api.add_fault(Fault(kind="status", method="getFile", count=3, code=502))
    after = send(stage, b"late")
    await stage.answer("4 bytes", after=after, timeout=30)
    assert len(files(stage)) == 1


async def test_stop_ends_a_turn_whose_file_does_not_come(stage: Stage) -> None:
    await warm(stage)
    stage.api.add_fault(Fault(kind="status", method="getFile", count=None, code=502))
    send(stage, b"never")
    await asyncio.sleep(1)
    stage.say("/stop")
    await stage.answer("⏹", timeout=20)
    stage.api.faults.clear()
    stage.say("say it goes on")
    await stage.answer("it goes on")
    assert files(stage) == []


async def test_a_file_of_a_bot_that_was_killed_is_fetched_after_it_and_run_once(stage: Stage, tmp_path: Path) -> None:
    await warm(stage)
    stage.api.add_fault(Fault(kind="status", method="getFile", count=None, code=502))
    after = send(stage, b"patient")
    await asyncio.sleep(1)
    await stop(stage, how=signal.SIGKILL)
    stage.api.faults.clear()
    await stage.answer("7 bytes", after=after, timeout=30)
    assert len(files(stage)) == 1


async def test_a_big_file_is_never_whole_in_the_memory_of_a_daemon(stage: Stage) -> None:
    await warm(stage)

    def peak(unit: str) -> int:
        status = Path(f"/proc/{stage.launcher.pid(unit)}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) // 1024  # type: ignore[index]

    before = {unit: peak(unit) for unit in ("kai-bot", "kai-agent@alice")}
    after = send(stage, os.urandom(19 * MIB), name="big.bin")
    await stage.answer(f"{19 * MIB} bytes", after=after, timeout=60)
    grown = {unit: peak(unit) - before[unit] for unit in before}
    assert max(grown.values()) < 10, grown


async def test_one_users_file_is_not_below_another_users_directory(stage: Stage) -> None:
    await asyncio.sleep(0)
    after = send(stage, b"alices")
    stage.api.say(BOB, "say bob is there")
    await stage.answer("6 bytes", after=after)
    await stage.answer("bob is there", user=BOB)
    assert len(files(stage, "alice")) == 1
    assert files(stage, "bob") == []


async def test_nothing_of_a_fetched_file_or_of_its_address_is_left_in_the_bots_directory_or_log(stage: Stage) -> None:
    await warm(stage)
    stage.api.add_fault(Fault(kind="status", method="getFile", count=1, code=502))
    after = send(stage, b"gone")
    await stage.answer("4 bytes", after=after, timeout=30)
    left = {path.name for path in (stage.launcher.directory / "state/bot").iterdir()}
    assert left <= {"queue.db", "queue.db-wal", "queue.db-shm", "spool"}
    assert stage.api.token.partition(":")[2] not in stage.launcher.logs("kai-bot")
