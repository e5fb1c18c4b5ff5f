"""The edges of the delivery contract: bundles and commands, users who are gone, namesakes, forgotten turns, faults."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from kai.agent.turns import Session, Turns
from kai.bot import decision, lanes, session
from kai.bot.bot import Bot
from kai.bot.commands import Commands
from kai.bot.inbox import Arrival, Inbox
from kai.bot.lanes import Lanes
from kai.bot.message import Body, Button, bodies, plain
from kai.bot.outbox import Outbox
from kai.bot.queue import QueueDesk, _revive
from kai.bot.tables import InboxRow, OutboxRow, open_tables
from kai.bot.turn import Turn
from kai.config import User
from kai.interfaces import Drop, Event, Join, Journal, Queue, Retry, Show, Start, UnknownTurn
from kai.lib.store import Store, StoreError
from kai.lib.varlink import MAX_MESSAGE, InvalidParameter

LONG = "x" * 4050
JOURNAL = Journal("g", "b", "edit")
WEEK = 7 * 86400


@dataclass
class FakeSender:
    """Remembers what it is given."""

    rows: list[OutboxRow] = field(default_factory=list)

    def put(self, *rows: OutboxRow) -> None:
        self.rows += rows

    def withdraw(self, row: OutboxRow) -> None:
        return None

    def show(self, *arguments: object, **more: object) -> None:
        return None

    def finished(self, *arguments: object) -> None:
        return None

    def unblock(self, chat: int) -> None:
        return None


class FakePlaces:
    def waits(self, *arguments: object) -> None:
        return None

    def moves(self, *arguments: object) -> None:
        return None


class World:
    """The tables of bot 7 and what works on them, without Telegram and agents."""

    def __init__(self, directory: Path) -> None:
        self.store = open_tables(directory)
        self.inbox, self.outbox, self.sender = Inbox(self.store, 7), Outbox(self.store, 7), FakeSender()
        self.locked_out: set[str] = set()
        self.lanes = Lanes(
            cast(Any, None),
            self.inbox,
            self.outbox,
            cast(Any, self.sender),
            cast(Any, FakePlaces()),
            directory,
            cast(Any, None),
            lambda: None,
        )

    async def take(self, *arrivals: Arrival) -> list[InboxRow]:
        rows = await self.inbox.receive(list(arrivals), arrivals[-1].update_id + 1)
        for row in rows:
            if row.state == "queued":
                self.lanes.of(row.user).put(row)
            elif row.state != "received":
                self.lanes.of(row.user).changed(row)
        return rows

    async def states(self) -> dict[int, str]:
        return {row["update_id"]: row["state"] for row in await self.store.read("SELECT * FROM inbox ORDER BY id")}

    async def stop(self, row: InboxRow, arguments: str = "") -> None:
        asked = SimpleNamespace(lanes=self.lanes, row=row, lane=self.lanes.of(row.user), arguments=arguments)
        await session.stop(cast(Any, asked))

    async def bury(self, *users: User, before: dict[str, int]) -> None:
        """A reload of the configuration that has these users."""
        bot = SimpleNamespace(
            config=SimpleNamespace(users=users), accounts=before, lanes=self.lanes,
            inbox=self.inbox, outbox=self.outbox, sender=self.sender, unlock=SimpleNamespace(forget=lambda user: None),
            gate=SimpleNamespace(forget=self.locked_out.add),
        )  # fmt: skip
        bot._gone = lambda: Bot._gone(cast(Any, bot))
        await Bot._bury(cast(Any, bot))

    def desk(self, telegram_id: int = 1001) -> QueueDesk:
        config = SimpleNamespace(user=lambda name: SimpleNamespace(name=name, telegram_id=telegram_id))
        return QueueDesk(lambda: cast(Any, config), self.inbox, self.outbox, self.lanes, cast(Any, self.sender))


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
    yield made
    await made.lanes.close()
    made.store.close()


def said(number: int, text: str, kind: Any = "turn", **more: Any) -> Arrival:
    return Arrival(number, "alice", 1001, number, kind, text, **more)


# ---- bundles end where a command stands ----


@pytest.mark.parametrize(("bundle", "last"), [("long", ""), ("forward", "forward")])
async def test_what_is_written_after_a_stop_all_is_not_dropped_by_it(world: World, bundle: str, last: str) -> None:
    _, stop, _ = await world.take(
        said(1, LONG, bundle=bundle), said(2, "/stop all", "control"), said(3, "do this instead", bundle=last)
    )
    await world.stop(stop, "all")
    assert (await world.states())[3] == "queued"


async def test_what_is_written_after_a_stop_is_not_dropped_by_it(world: World) -> None:
    _, stop, _ = await world.take(said(1, LONG, bundle="long"), said(2, "/stop", "control"), said(3, "do this instead"))
    await world.stop(stop)
    assert (await world.states())[3] == "queued"


async def test_a_message_behind_new_is_not_run_before_it(world: World) -> None:
    await world.inbox.receive([said(1, LONG, bundle="long"), said(2, "/new", "command"), said(3, "fresh")], 4)
    rows = await world.store.read("SELECT leader FROM inbox WHERE update_id = 3")
    assert rows[0]["leader"] is None


async def test_stop_means_the_turn_that_runs_though_an_older_one_was_revived(world: World) -> None:
    (old,) = await world.inbox.receive([said(1, "old", journal=JOURNAL)], 2)
    await world.inbox.bury({})
    (runs,) = await world.inbox.receive([said(2, "runs", journal=JOURNAL)], 3)
    await world.store.write(lambda db: _revive(db, old.id))
    (stop,) = await world.inbox.receive([said(3, "/stop", "control")], 4)
    assert stop.target == runs.id


# ---- users who are gone ----


async def test_what_waits_of_a_user_taken_out_at_a_reload_is_a_dead_letter_and_admins_are_told(world: World) -> None:
    await world.take(said(1, "one"), said(2, "two"))
    await world.bury(User(telegram_id=9, name="ada", role="admin"), before={"alice": 1001, "ada": 9})
    assert list((await world.states()).values()) == ["dead", "dead"]
    [notice] = world.sender.rows
    assert notice.user == "ada"
    assert "2 message(s)" in notice.body


@pytest.mark.parametrize("users", [(), (User(telegram_id=2002, name="alice"),)])
async def test_a_reload_ends_the_work_for_a_user_who_is_gone_or_has_another_account(
    world: World, users: tuple[User, ...]
) -> None:
    await world.take(said(1, "one"), said(2, "two"))
    lane = world.lanes.of("alice")
    await until_true(lambda: lane.running is not None)
    work = [task for task in (lane.task, lane.running_task) if task]
    await world.bury(*users, before={"alice": 1001})
    assert world.locked_out == {"alice"}
    assert world.lanes.counts() == (0, 0)
    await until_true(lambda: all(task.done() for task in work))


async def test_a_turn_whose_user_was_taken_out_meanwhile_sends_him_nothing(world: World) -> None:
    (row,) = await world.inbox.receive([said(1, "one", journal=JOURNAL)], 2)
    await world.bury(before={"alice": 1001})
    assert await world.outbox.answer(row, "answered", [Body("the secret answer")]) == []
    assert (await world.states())[1] == "dead"


async def test_what_is_for_an_account_that_isnt_the_users_any_more_is_a_dead_letter(world: World) -> None:
    _, (row,) = await world.outbox.deliver("job", "k", "alice", 1001, [Body("private")])
    assert [one.id for one in await world.outbox.bury({"alice": 2002})] == [row.id]
    with pytest.raises(InvalidParameter, match="isn't alice's any more"):
        await world.desk(telegram_id=2002).retry(cast(Any, None), Retry(id=f"o{row.id}"))
    assert world.sender.rows == []


async def test_a_namesake_with_another_account_cant_continue_a_turn(world: World) -> None:
    (row,) = await world.inbox.receive([said(100, "the first alice's secret")], 101)
    await world.outbox.answer(row, "interrupted", [])
    forged = Arrival(101, "alice", 2002, 6, "control", "continue:7.100", callback="c")
    (press,) = await world.inbox.receive([forged], 102)
    assert press.kind == "control"


async def test_a_namesake_with_another_account_cant_have_rows_sent_again(world: World) -> None:
    _, (row,) = await world.outbox.deliver("job", "k", "alice", 1001, [plain("secret")])
    await world.outbox.mark(row, "unknown")
    forged = Arrival(101, "alice", 2002, 6, "control", f"again:{row.id}", callback="c")
    (press,) = await world.inbox.receive([forged], 102)
    assert await world.outbox.again(row.id, press) == []


async def test_what_was_given_up_is_not_taken_back(world: World) -> None:
    _, (row,) = await world.outbox.deliver("job", "k", "alice", 1001, [plain("x")])
    await world.outbox.mark(row, "sending")
    await world.outbox.bury({})
    await world.outbox.mark(row, "stored")
    assert (await world.store.read("SELECT state FROM outbox"))[0]["state"] == "dead"


# ---- turns that the journal forgot ----


class Stream:
    def __init__(self, event: Event) -> None:
        self.events = [event]

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Event:
        if self.events:
            return self.events.pop()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        return None


class Agent:
    """A supervisor's Start and Join over the real journal; counts runs."""

    def __init__(self, turns: Turns) -> None:
        self.turns, self.runs = turns, 0

    async def open(self, call: Any, *, descriptors: Any = ()) -> Stream:
        if isinstance(call, Join):
            stored = await self.turns.answer(call.turn)
            if stored is None:
                raise UnknownTurn(f"{self.turns.identity.generation} {self.turns.identity.boot}")
            return Stream(stored)
        stored = await self.turns.begin(call.turn)
        if stored:
            return Stream(stored)
        self.runs += 1
        done = Event(kind="done", outcome="ok", text="did it")
        await self.turns.end(call.turn, done, Session("/home"), date.today())
        return Stream(done)


@pytest.mark.parametrize("revived", [False, True])
async def test_a_turn_that_the_journal_forgot_is_not_run_again(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revived: bool
) -> None:
    real, ahead = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: real() + ahead[0])
    (tmp_path / "agent").mkdir()
    turns = Turns(tmp_path / "agent")
    await turns.open("/home")
    agent = Agent(turns)
    journal = Journal(turns.identity.generation, turns.identity.boot, "edit")
    (row,) = await world.inbox.receive([said(1, "pay the bill", journal=journal)], 2)
    await agent.open(Start(turn=row.turn, prompt=[]))
    if revived:
        await world.inbox.bury({})
    ahead[0] = WEEK + 86400
    turns.store.close()
    agent.turns = Turns(tmp_path / "agent")
    await agent.turns.open("/home")
    left = await world.store.write(lambda db: _revive(db, row.id)) if revived else (await world.inbox.unfinished())[0]
    assert left is not None
    turn = Turn(
        left, cast(Any, agent), cast(Any, SimpleNamespace(typing=None)), world.inbox, world.outbox,
        cast(Any, world.sender), cast(Any, None),
    )  # fmt: skip
    await turn.run(rejoin=True)
    agent.turns.store.close()
    assert agent.runs == 1


async def test_who_presses_continue_too_late_is_told_so(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    real, ahead = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: real() + ahead[0])
    (row,) = await world.inbox.receive([said(1, "x", journal=JOURNAL)], 2)
    question = plain("cut off", [Button("Continue", "continue:7.1")])
    (asked,) = await world.outbox.answer(row, "interrupted", [question])
    await world.outbox.mark(asked, "sent", message=5)
    ahead[0] = WEEK + 86400
    await world.inbox.prune()
    late = Arrival(2, "alice", 1001, 5, "control", "continue:7.1", callback="q")
    (press,) = await world.inbox.receive([late], 3)
    assert await decision.press(cast(Any, SimpleNamespace(outbox=world.outbox)), press) == decision.TOO_LATE


# ---- a disk that refuses ----


def failing_once(real: Any) -> Any:
    """The same, but the first call meets a full disk."""
    faults = [StoreError("disk full")]

    async def call(*arguments: Any, **more: Any) -> Any:
        if faults:
            raise faults.pop()
        return await real(*arguments, **more)

    return call


async def until(world: World, state: str) -> None:
    async with asyncio.timeout(10):
        while (await world.store.read("SELECT state FROM inbox"))[0]["state"] != state:
            await asyncio.sleep(0.01)


async def until_true(look: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not look():
            await asyncio.sleep(0.01)


async def test_a_control_row_is_worked_on_once_the_disk_takes_it_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    (row,) = await world.inbox.receive([said(1, "", "control", refused="too big")], 2)
    monkeypatch.setattr(world.outbox, "reply", failing_once(world.outbox.reply))
    spawned: list[Any] = []
    bot = SimpleNamespace(
        sender=world.sender,
        commands=Commands(world.lanes),
        lanes=world.lanes,
        _spawn=spawned.append,
        show=lambda: None,
        unlock=SimpleNamespace(takes=lambda row, rejoin: False),
    )
    Bot.take(cast(Any, bot), [row])
    await asyncio.gather(*spawned)
    assert await world.states() == {1: "refused"}
    assert world.sender.rows


async def test_a_fault_while_giving_up_leaves_no_row_running_for_ever(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "delays", lambda: iter([0.01] * 50))
    (row,) = await world.inbox.receive([said(1, "x")], 2)

    async def attempt(row: InboxRow, *, rejoin: bool) -> None:
        raise RuntimeError("a fault in Kai")

    lane = world.lanes.of("alice")
    monkeypatch.setattr(lane, "_attempt", attempt)
    monkeypatch.setattr(world.outbox, "answer", failing_once(world.outbox.answer))
    lane.put(row)
    await until(world, "interrupted")


async def test_a_full_disk_once_does_not_end_the_pruning(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    class Pruned:
        async def prune(self) -> None:
            calls.append(1)
            if len(calls) == 1:
                raise StoreError("disk full")

    monkeypatch.setattr("kai.bot.bot.PRUNE_PERIOD", 0.01)
    task = asyncio.create_task(Bot._prune(cast(Any, SimpleNamespace(inbox=Pruned()))))
    async with asyncio.timeout(5):
        while len(calls) < 3:
            await asyncio.sleep(0.01)
    task.cancel()


async def test_the_store_survives_a_rollback_that_fails(tmp_path: Path) -> None:
    import sqlite3

    store = Store(tmp_path / "a.db", "CREATE TABLE t (x)")
    real: Any = store._connection

    class Broken:
        """A disk in trouble: COMMIT fails, and so does the ROLLBACK after it, once."""

        failed: tuple[str, ...] = ()

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        def execute(self, sql: str, *more: Any) -> Any:
            if sql in ("COMMIT", "ROLLBACK") and sql not in self.failed:
                self.failed += (sql,)
                if sql == "ROLLBACK":
                    real.execute(sql)
                raise sqlite3.OperationalError("disk I/O error")
            return real.execute(sql, *more)

    store._connection = cast(Any, Broken())
    async with asyncio.timeout(5):
        with pytest.raises(StoreError):
            await store.write(lambda db: db.execute("INSERT INTO t VALUES (1)"))
        await store.write(lambda db: db.execute("INSERT INTO t VALUES (2)"))
        assert [row["x"] for row in await store.read("SELECT x FROM t")] == [2]
    store._connection = real
    store.close()


# ---- other tokens, and what kai queue shows ----


async def test_giving_up_a_row_of_another_token_edits_no_message_of_this_bot(world: World) -> None:
    first = Outbox(world.store, 8)
    _, (lost,) = await first.deliver("job", "k", "alice", 1001, [Body("part")])
    (asked,) = await first.mark(lost, "unknown")
    await first.mark(asked, "sent", message=5)
    assert await world.outbox.drop(lost.id) == []
    rows = await world.store.read("SELECT bot FROM outbox WHERE edits IS NOT NULL")
    assert [row["bot"] for row in rows] == [8]


async def test_giving_up_a_turn_of_another_token_edits_no_message_of_this_bot(world: World) -> None:
    inbox, outbox = Inbox(world.store, 8), Outbox(world.store, 8)
    (row,) = await inbox.receive([said(1, "x", journal=JOURNAL)], 2)
    question = plain("cut off", [Button("Continue", "continue:8.1")])
    (asked,) = await outbox.answer(row, "interrupted", [question])
    await outbox.mark(asked, "sent", message=5)
    assert (await world.desk().drop(cast(Any, None), Drop(id=f"i{row.id}"))).state == "dropped"
    assert world.sender.rows == []
    rows = await world.store.read("SELECT bot FROM outbox WHERE edits IS NOT NULL")
    assert [row["bot"] for row in rows] == [8]


async def test_long_reasons_leave_kai_queue_an_answer(world: World) -> None:
    _, rows = await world.outbox.deliver("job", "k", "alice", 1001, [plain("x") for _ in range(12)])
    for row in rows:
        await world.outbox.mark(row, "dead", error="y" * 100_000)
    found = await world.desk().queue(cast(Any, None), Queue())
    assert len(msgspec.json.encode(found)) < MAX_MESSAGE


async def test_kai_queue_show_gives_the_whole_of_a_document(world: World) -> None:
    _, rows = await world.outbox.deliver("job", "k", "alice", 1001, bodies("word " * 8000 + "THE END"))
    for row in rows:
        await world.outbox.mark(row, "dead", error="refused")
    shown = [(await world.desk().show(cast(Any, None), Show(id=f"o{row.id}"))).entry.text for row in rows]
    assert any("THE END" in text for text in shown)
