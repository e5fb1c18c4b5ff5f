"""What a challenge shows, what a code lets through, and what becomes of both when the disk or the verifier fails."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any, cast

import pytest

from kai.bot.gate import Gate
from kai.bot.inbox import Arrival, Inbox
from kai.bot.outbox import Outbox
from kai.bot.tables import InboxRow, open_tables
from kai.bot.unlock import Unlock
from kai.config import Config, User
from kai.config.kaiyaml import Kai, Totp
from kai.interfaces import Verdict, Verify
from kai.lib.store import StoreError

ALICE = User(telegram_id=1001, name="alice")
CODE = "123456"


class Verifier:
    """Every code is right."""

    fault: Exception | None = None

    async def call(self, call: Verify, timeout: float) -> Verdict:
        if self.fault:
            raise self.fault
        return Verdict("ok") if call.code else Verdict("bad", remaining=3)


class Chat:
    """Stands for Telegram: what was said, and which messages were deleted."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.deleted: list[int] = []

    def put(self, *rows: Any) -> None:
        self.said += [json.loads(row.body)["text"] for row in rows]

    async def delete(self, chat: int, message: int) -> None:
        self.deleted.append(message)


class Scene:
    """Alice is enrolled; the tables are real."""

    def __init__(self, directory: Path) -> None:
        markers = directory / "enrolled"
        markers.mkdir()
        (markers / "alice").write_text("{}")
        self.config = self.within(60)
        self.store = open_tables(directory)
        self.inbox, self.outbox = Inbox(self.store, 7), Outbox(self.store, 7)
        self.gate, self.chat = Gate(lambda: self.config, cast(Any, None), markers), Chat()
        self.taken: list[InboxRow] = []
        self.tasks: set[asyncio.Task[Any]] = set()
        self.verifier, self.update = Verifier(), 0
        self.unlock = self.started()

    def within(self, seconds: int) -> Config:
        """A configuration that gives so many seconds for a code."""
        return Config(Kai(totp=Totp(idle=600, challenge=seconds)), (ALICE,))

    def started(self) -> Unlock:
        chat: Any = self.chat
        made = Unlock(
            self.gate, lambda: self.config, chat, self.inbox, self.outbox, chat, Path("/nowhere"),
            take=self.taken.extend, spawn=self.spawn,
        )  # fmt: skip
        made.totp = cast(Any, self.verifier)
        return made

    def spawn(self, work: Coroutine[Any, Any, object]) -> None:
        self.tasks.add(asyncio.create_task(work))

    async def say(self, text: str, bundle: str = "") -> InboxRow:
        self.update += 1
        arrival = Arrival(self.update, "alice", 1001, 100 + self.update, "turn", text, bundle=bundle)
        self.gate.judge([arrival])
        (row,) = await self.inbox.receive([arrival], self.update + 1)
        if not self.unlock.takes(row):
            self.taken.append(row)
        return row

    async def told(self, contains: str) -> str:
        async with asyncio.timeout(20):
            while not (found := [text for text in self.chat.said if contains in text]):
                await asyncio.sleep(0.01)
        return found[-1]

    async def state(self, row: InboxRow) -> str:
        found = await self.inbox.find(row.id)
        assert found
        return found.state


class Full:
    """A function of the outbox while the disk is full; `over` puts the real one back."""

    def __init__(self, outbox: Outbox, name: str) -> None:
        self.outbox, self.name, self.refused = outbox, name, 0
        setattr(outbox, name, self.refuse)

    async def refuse(self, *_: object) -> list[Any]:
        self.refused += 1
        raise StoreError("queue.db: database or disk is full")

    def over(self) -> None:
        delattr(self.outbox, self.name)


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    made = Scene(tmp_path)
    yield made
    await ended(made)


async def ended(scene: Scene) -> None:
    for task in scene.tasks:
        task.cancel()
    await asyncio.gather(*scene.tasks, return_exceptions=True)
    scene.store.close()


# ---- what is shown is what goes through ----


async def test_a_challenge_shows_all_parts_of_what_it_holds(scene: Scene) -> None:
    await scene.say("holiday", "album:5")
    await scene.say("and curl example.org | sh", "album:5")
    shown = await scene.told("Held until then")
    assert "“holiday”\n“and curl example.org | sh”" in shown


async def test_what_comes_after_the_challenge_joins_nothing_that_is_held(scene: Scene) -> None:
    held = await scene.say("holiday", "album:5")
    await scene.told("Held until then")
    late = await scene.say("curl example.org | sh", "album:5")
    assert (late.state, late.leader, late.text) == ("refused", None, "")
    await scene.say(CODE)
    await scene.told("Let in")
    assert [row.id for row in scene.taken] == [held.id]
    assert await scene.inbox.members(held) == []


async def test_a_challenge_says_how_much_of_a_long_text_it_doesnt_show(scene: Scene) -> None:
    await scene.say("a" * 2000 + "evil")
    shown = await scene.told("Held until then")
    assert "a" * 1000 in shown
    assert "504 more characters of it don't fit here" in shown
    assert len(shown) < 4096


# ---- what goes wrong ----


@pytest.mark.parametrize("name", ["expire", "note"])
async def test_what_no_code_came_for_is_given_up_though_the_disk_was_full(scene: Scene, name: str) -> None:
    scene.config = scene.within(1)
    full = Full(scene.outbox, name)
    row = await scene.say("echo old")
    async with asyncio.timeout(20):
        while not full.refused:
            await asyncio.sleep(0.01)
    full.over()
    await scene.told("No code came in time")
    assert await scene.state(row) == "expired"


async def test_a_code_lets_nothing_through_that_should_be_given_up_by_now(scene: Scene) -> None:
    old = await scene.say("echo old")
    await scene.told("Held until then")
    await scene.store.write(lambda db: db.execute("UPDATE inbox SET arrived = arrived - 100"))
    await scene.say(CODE)
    await scene.told("Let in")
    await scene.told("No code came in time. This was not taken, send it again: “echo old”")
    assert scene.taken == []
    assert await scene.state(old) == "expired"


async def test_a_verifier_that_cant_even_be_called_denies_and_gives_up_what_was_held(scene: Scene) -> None:
    scene.verifier.fault = OSError(24, "Too many open files")
    row = await scene.say("echo x")
    await scene.told("can't be checked now")
    assert await scene.state(row) == "expired"
    scene.verifier.fault = None
    await scene.say(CODE)
    await scene.told("Let in")
    assert scene.taken == []


async def test_what_a_code_let_through_runs_though_its_answer_cant_be_stored(scene: Scene) -> None:
    row = await scene.say("echo mine")
    await scene.told("Held until then")
    full = Full(scene.outbox, "reply")
    await scene.say(CODE)
    async with asyncio.timeout(20):
        while not scene.taken:
            await asyncio.sleep(0.01)
    full.over()
    assert [(one.id, one.state) for one in scene.taken] == [(row.id, "queued")]


# ---- codes ----


async def test_a_second_code_of_somebody_impatient_is_deleted_and_no_message(scene: Scene) -> None:
    await scene.say(CODE)
    await scene.told("Let in")
    second = await scene.say("654321")
    await scene.told("let in already")
    assert scene.taken == []
    assert second.text == ""
    assert scene.chat.deleted == [101, 102]


async def test_the_message_of_a_code_is_deleted_by_the_next_process_too(scene: Scene) -> None:
    await scene.say("echo x")
    code = await scene.say(CODE)
    await scene.told("Let in")
    scene.chat.deleted.clear()
    await scene.started().resume()
    async with asyncio.timeout(20):
        while scene.chat.deleted != [code.message]:
            await asyncio.sleep(0.01)
    await scene.store.write(lambda db: db.execute("UPDATE inbox SET changed = changed - 700"))
    scene.chat.deleted.clear()
    await scene.started().resume()
    await asyncio.sleep(0.1)
    assert scene.chat.deleted == [], "an old one was deleted long ago"
