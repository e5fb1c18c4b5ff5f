"""One turn of the bot's, beside a clock that can be set: what becomes of a long one, and of one with files."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kai.bot import turn as turns
from kai.bot.inbox import Arrival, Inbox
from kai.bot.message import Body, decode
from kai.bot.outbox import Outbox
from kai.bot.prompt import NotFetched
from kai.bot.tables import InboxRow, OutboxRow, open_tables
from kai.bot.turn import Turn
from kai.interfaces import Event, Hello, Join, Journal, Part, Ran, Start, Streaming
from kai.lib.varlink import Busy, Unavailable

BOT = 9
TEXT = Part(kind="text", text="look at this")


class Clock:
    """Takes the place of time.time()."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead, real = 0.0, time.time
        monkeypatch.setattr(time, "time", lambda: real() + self.ahead)


class Sender:
    """Remembers what it is given."""

    def __init__(self) -> None:
        self.rows: list[OutboxRow] = []
        self.shown: list[tuple[str, str]] = []

    def put(self, *rows: OutboxRow) -> None:
        self.rows += rows

    def show(
        self, chat: int, inbox: int, growing: Callable[[], Body], mode: str = "edit", *, thread: int | None = None
    ) -> None:
        self.shown.append((mode, growing().text))

    def finished(self, chat: int, inbox: int) -> None:
        """Nothing is shown late here."""


class Api:
    """Telegram as far as a turn itself speaks to it."""

    async def typing(self, chat: int, *, thread: int | None = None) -> None:
        await asyncio.sleep(0)


class Stream:
    """What comes back on one connection: events, or the fault that breaks it."""

    def __init__(self, *events: Event | Exception | Callable[[], None]) -> None:
        self.events = list(events)

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Event:
        while self.events:
            event = self.events.pop(0)
            if isinstance(event, Exception):
                raise event
            if isinstance(event, Event):
                return event
            event()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        self.events.clear()


class Agent:
    """A supervisor that answers what is laid out for it, one stream for each Start or Join."""

    def __init__(self, *streams: Stream, streaming: Streaming = "edit") -> None:
        self.streams, self.journal = list(streams), Journal("g", "b", streaming)
        self.asked: list[Start | Join] = []
        self.files: list[list[bytes]] = []

    async def call(self, call: Hello) -> Journal:
        return self.journal

    async def open(self, call: Start | Join, *, descriptors: Sequence[int] = ()) -> Stream:
        self.asked.append(call)
        self.files.append([os.pread(each, 100, 0) for each in descriptors])
        return self.streams.pop(0)


class Prompt:
    """Files that come when they are let come."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.ready = directory, asyncio.Event()
        self.ready.set()
        self.opened: list[int] = []
        self.fault: Exception | None = None
        self.fetched = 0

    async def parts(self, row: InboxRow) -> tuple[list[Part], list[int]]:
        self.fetched += 1
        await self.ready.wait()
        if self.fault:
            raise self.fault
        path = self.directory / "file"
        path.write_bytes(b"content")
        self.opened.append(os.open(path, os.O_RDONLY))
        return [TEXT, Part(kind="file", name="a.txt", descriptor=0)], [self.opened[-1]]

    def is_closed(self) -> bool:
        return not any(Path(f"/proc/self/fd/{each}").exists() for each in self.opened)


class World:
    """A bot's database, and one turn at a time."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store = open_tables(directory)
        self.inbox, self.outbox = Inbox(self.store, BOT), Outbox(self.store, BOT)
        self.sender, self.prompt, self.clock = Sender(), Prompt(directory), Clock(monkeypatch)
        self.updates = 0

    async def turn(self, agent: Agent, **arrival: Any) -> Turn:
        self.updates += 1
        given = Arrival(self.updates, "alice", 1001, 5, "turn", "hi", **arrival)
        (row,) = await self.inbox.receive([given], self.updates + 1)
        fakes: dict[str, Any] = {"agent": agent, "api": Api(), "sender": self.sender, "prompt": self.prompt}
        return Turn(row, inbox=self.inbox, outbox=self.outbox, journal=arrival.get("journal"), **fakes)

    async def stored(self) -> list[tuple[str, str, bool]]:
        """Kind and text of each outbox row, and whether it changes another one's message."""
        rows = await self.store.read("SELECT kind, body, edits FROM outbox ORDER BY id")
        return [(row["kind"], decode(row["body"]).text, row["edits"] is not None) for row in rows]


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    made = World(tmp_path, monkeypatch)
    yield made
    made.store.close()


def started(streaming: Streaming = "edit") -> Event:
    return Event(kind="started", session="s", since=time.time(), streaming=streaming)


def done(text: str = "So it is.", **more: Any) -> Event:
    return Event(kind="done", **{"outcome": "ok", "text": text, **more})


async def until(look: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not look():
            await asyncio.sleep(0.01)


# ---- long work ----


@pytest.mark.parametrize(
    ("end", "said", "sign"),
    [
        (done(), "So it is.", "✓"),
        (done("", outcome="failed", error="it died"), "⚠ it died", "⚠"),
        (done("A part", outcome="interrupted"), "A part\n\n⏹ Stopped.", "⏹"),
    ],
)
async def test_after_more_than_a_minute_the_end_is_a_new_message_and_the_growing_one_a_line(
    world: World, end: Event, said: str, sign: str
) -> None:
    def passes() -> None:
        world.clock.ahead += 75

    ran = Event(kind="tool", ran=[Ran("Bash", 3)])
    turn = await world.turn(Agent(Stream(started(), ran, passes, end)))
    await turn.run(rejoin=False)
    assert await world.stored() == [
        ("placeholder", "⏳", False),
        ("message", said, False),
        ("message", f"{sign} 1:15 · 3 Bash", True),
    ]


async def test_up_to_a_minute_the_answer_goes_into_the_growing_message(world: World) -> None:
    def passes() -> None:
        world.clock.ahead += 55

    await (await world.turn(Agent(Stream(started(), passes, done())))).run(rejoin=False)
    assert await world.stored() == [("placeholder", "⏳", False), ("final", "So it is.", False)]


async def test_how_long_a_turn_took_is_known_when_only_its_stored_answer_is_found(world: World) -> None:
    turn = await world.turn(Agent(Stream(done(since=time.time() - 300))), journal=Journal("g", "b"))
    await turn.run(rejoin=True)
    assert [kind for kind, _, _ in await world.stored()] == ["placeholder", "message", "message"]


@pytest.mark.parametrize("streaming", ["draft", "off"])
async def test_without_a_growing_message_there_is_no_line_of_a_long_turn(world: World, streaming: Streaming) -> None:
    def passes() -> None:
        world.clock.ahead += 75

    agent = Agent(Stream(started(streaming), passes, done()), streaming=streaming)
    journal = await (await world.turn(agent)).run(rejoin=False)
    assert await world.stored() == [("message", "So it is.", False)]
    assert {mode for mode, _ in world.sender.shown} == ({"draft"} if streaming == "draft" else set())
    assert journal == Journal("g", "b", streaming)


# ---- what is shown ----


async def test_what_the_supervisor_says_of_streaming_is_known_to_the_next_turn(world: World) -> None:
    agent = Agent(Stream(started("off"), done()))
    turn = await world.turn(agent, journal=Journal("g", "b", "edit"))
    assert await turn.run(rejoin=False) == Journal("g", "b", "off")
    assert [kind for kind, _, _ in await world.stored()] == ["placeholder", "final"], "what was there is used"


async def test_a_growing_message_that_is_wanted_after_all_comes(world: World) -> None:
    agent = Agent(Stream(started("edit"), done()))
    turn = await world.turn(agent, journal=Journal("g", "b", "off"))
    assert await world.stored() == []
    await turn.run(rejoin=False)
    assert [kind for kind, _, _ in await world.stored()] == ["placeholder", "final"]


# ---- files ----


async def test_a_turn_begins_with_its_files_and_they_are_closed_when_it_runs(world: World) -> None:
    closed: list[bool] = []
    agent = Agent(Stream(started(), lambda: closed.append(world.prompt.is_closed()), done()))
    await (await world.turn(agent, content='{"files":[]}')).run(rejoin=False)
    (start,) = agent.asked
    assert isinstance(start, Start)
    assert [part.kind for part in start.prompt] == ["text", "file"]
    assert agent.files == [[b"content"]]
    assert closed == [True]


async def test_a_text_alone_is_not_fetched(world: World) -> None:
    agent = Agent(Stream(done()))
    await (await world.turn(agent)).run(rejoin=False)
    assert agent.asked == [Start(turn="9.1", prompt=[Part(kind="text", text="hi")])]
    assert world.prompt.fetched == 0


async def test_a_busy_supervisor_is_given_the_same_files_again(world: World) -> None:
    agent = Agent(Stream(Busy("no space")), Stream(started(), done()))
    await (await world.turn(agent, content='{"files":[]}')).run(rejoin=False)
    assert agent.files == [[b"content"], [b"content"]]
    assert world.prompt.fetched == 1
    assert world.prompt.is_closed()


async def test_a_turn_that_is_joined_needs_no_files(world: World) -> None:
    agent = Agent(Stream(Unavailable("gone")), Stream(started(), done()))
    await (await world.turn(agent, content='{"files":[]}')).run(rejoin=False)
    assert [type(each) for each in agent.asked] == [Start, Join]
    assert agent.files == [[b"content"], []]
    assert world.prompt.is_closed()


async def test_files_that_take_long_are_told_and_a_stop_meanwhile_ends_the_turn(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "QUIET_FETCH", 0.05)
    world.prompt.ready.clear()
    agent = Agent()
    turn = await world.turn(agent, content='{"files":[]}')
    running = asyncio.create_task(turn.run(rejoin=False))
    await until(lambda: ("edit", "📎 fetching files…") in world.sender.shown)
    turn.stop_asked.set()
    await running
    assert agent.asked == []
    assert (await world.stored())[-1] == ("final", "⏹ Stopped.", False)
    assert turn.row.state == "interrupted"


async def test_files_that_come_at_last_let_the_turn_begin(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "QUIET_FETCH", 0.05)
    world.prompt.ready.clear()
    agent = Agent(Stream(started(), done()))
    running = asyncio.create_task((await world.turn(agent, content='{"files":[]}')).run(rejoin=False))
    await until(lambda: bool(world.sender.shown))
    world.prompt.ready.set()
    await running
    assert world.sender.shown[:2] == [("edit", "📎 fetching files…"), ("edit", "⏳")]
    assert agent.files == [[b"content"]]


async def test_a_file_that_cannot_be_had_is_the_answer_and_nothing_runs(world: World) -> None:
    world.prompt.fault = NotFetched("a.txt: Telegram doesn't give it")
    agent = Agent()
    turn = await world.turn(agent, content='{"files":[]}')
    await turn.run(rejoin=False)
    assert agent.asked == []
    assert (await world.stored())[-1] == ("final", "⚠ a.txt: Telegram doesn't give it", False)
    assert turn.row.state == "answered"


async def test_a_bot_that_ends_while_files_come_leaves_the_turn_for_the_next_one(world: World) -> None:
    world.prompt.ready.clear()
    agent = Agent()
    turn = await world.turn(agent, content='{"files":[]}')
    running = asyncio.create_task(turn.run(rejoin=False))
    await until(lambda: world.prompt.fetched == 1)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert agent.asked == []
    (row,) = await world.inbox.unfinished()
    assert row.state == "running"
    assert msgspec.structs.replace(row, state="running") == turn.row
