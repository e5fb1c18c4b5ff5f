"""What supervisors are told of deliveries: nobody waits for another's, and what piles up has an end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from kai.config import Config, User
from kai.config.kaiyaml import Kai
from kai.lib.daemon import Daemon
from kai.scheduler import runs
from kai.scheduler.jobs import open_tables
from kai.scheduler.notes import Notes
from kai.scheduler.runs import Note, RunStore

CONFIG = Config(Kai(), (User(telegram_id=1, name="alice"), User(telegram_id=2, name="bob")))


class Told:
    """Notes whose supervisors are played: `away` are those that don't answer."""

    def __init__(self, directory: Path) -> None:
        self.store = open_tables(directory)
        daemon = Daemon("kai-scheduler", {}, instance="", one_uid=True)
        self.runs, self.told, self.away = RunStore(self.store), list[tuple[str, str]](), set[str]()
        self.notes = Notes(daemon, lambda: CONFIG, self.runs)
        cast(Any, self.notes)._tell = self.tell

    async def tell(self, note: Note) -> bool:
        while note.user in self.away:
            await asyncio.sleep(0.01)
        self.told.append((note.user, note.turn))
        return True

    async def put(self, user: str, *numbers: int) -> None:
        rows = [(f"job:{user}:{number}", user, "job", "text", float(number)) for number in numbers]
        await self.store.write(lambda db: db.executemany("INSERT INTO notes VALUES (?, ?, ?, ?, ?)", rows))

    async def done(self) -> None:
        async with asyncio.timeout(10):
            while self.notes.tasks or (self.notes.looking and not self.notes.looking.done()):
                await asyncio.sleep(0.01)


@pytest.fixture
async def told(tmp_path: Path) -> AsyncIterator[Told]:
    made = Told(tmp_path)
    yield made
    made.notes.close()
    made.store.close()


async def test_nobody_waits_for_the_supervisor_of_somebody_else(told: Told) -> None:
    told.away.add("alice")
    await told.put("alice", 1)
    await told.put("bob", 1, 2)
    told.notes.wake()
    async with asyncio.timeout(10):
        while len(told.told) < 2:
            await asyncio.sleep(0.01)
    assert told.told == [("bob", "job:bob:1"), ("bob", "job:bob:2")]
    told.away.clear()
    await told.done()
    assert ("alice", "job:alice:1") in told.told


async def test_many_notes_are_told_in_order_and_a_few_at_a_time(told: Told) -> None:
    await told.put("alice", *range(50))
    asked: list[int] = []
    notes = told.runs.notes

    async def counted(user: str, most: int) -> list[Note]:
        found = await notes(user, most)
        asked.append(len(found))
        return found

    cast(Any, told.runs).notes = counted
    told.notes.wake()
    await told.done()
    assert [turn for _, turn in told.told] == [f"job:alice:{number}" for number in range(50)]
    assert max(asked) == 20


async def test_what_piles_up_for_a_supervisor_that_is_away_has_an_end(
    told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "MOST_NOTES", 3)
    monkeypatch.setattr(runs, "LONGEST_NOTE", 10)
    await told.store.write(
        lambda db: db.execute(
            "INSERT INTO jobs (id, user, name, job_type, prompt, schedule_type, schedule_data, created, changed, zone, "
            "planned, anchor) VALUES (7, 'alice', 'n', 'reminder', 'p', 'interval', '{}', 0, 0, 'UTC', 0, 0)"
        )
    )
    row = cast(Any, SimpleNamespace(id=7, revision=1))
    for _ in range(5):
        run = await told.runs.begin(row, 0.0)
        assert run
        run.text = "a text that is long"
        await told.runs.end(run, "delivered", due=0.0, over=False, what="reminder 7")
    found = await told.runs.notes("alice", 99)
    assert [note.turn for note in found] == ["job:7:3", "job:7:4", "job:7:5"]
    assert {note.text for note in found} == {"a text tha"}
