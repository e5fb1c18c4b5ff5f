"""What several things at once, a full disk or a caller that goes away could do to a supervisor. It runs in here."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kai.agent.backend import AgentBackend, AgentDied, Context, Ending, SessionUnknown
from kai.agent.live import LiveTurn
from kai.agent.patience import Limits, overdue
from kai.agent.seat import Seat
from kai.agent.setup import Setup
from kai.agent.supervisor import Supervisor
from kai.agent.turns import Turns
from kai.interfaces import (
    Event,
    ForgetJob,
    JobSeat,
    Join,
    Model,
    Models,
    NewSession,
    Part,
    Set,
    Start,
    Stop,
    SwitchWorkspace,
)
from kai.lib.daemon import Daemon
from kai.lib.peers import BOT, SCHEDULER, Peer
from kai.lib.store import StoreError
from kai.lib.varlink import Busy

PEER = Peer(os.geteuid(), os.getpid(), frozenset({BOT}))
TIMER = Peer(os.geteuid(), os.getpid(), frozenset({SCHEDULER}))


class Scripted(AgentBackend):
    """An agent without a process. `gates` hold it at its start, in a turn, at its end."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.context: Context | None = None
        self._alive, self._session = False, ""
        self.closed = False
        self.turns = 0
        self.stopped = asyncio.Event()
        world.made.append(self)

    async def start(self, context: Context) -> None:
        self.context = context
        await self.world.pass_gate("start")
        if self.world.refuses_start:
            raise AgentDied("The agent can't start.")
        if context.session and (context.session, context.workspace) not in self.world.sessions:
            raise SessionUnknown("no such session")
        self._session = context.session or f"s{len(self.world.sessions) + 1}"
        self.world.sessions.add((self._session, context.workspace))
        self._alive = True

    async def turn(self, prompt: list[Part]) -> AsyncGenerator[Event, None]:
        self.turns += 1
        self.stopped.clear()
        yield Event(kind="started", session=self._session)
        gate = asyncio.create_task(self.world.pass_gate("turn"))
        stop = asyncio.create_task(self.stopped.wait())
        await asyncio.wait({gate, stop}, return_when=asyncio.FIRST_COMPLETED)
        gate.cancel()
        stop.cancel()
        outcome: Any = "interrupted" if self.stopped.is_set() else "ok"
        if not self._alive:
            yield Event(kind="done", outcome="failed", error="The agent's process was ended.")
            return
        yield Event(kind="done", outcome=outcome, text="answer", cost_usd=self.world.cost)

    async def interrupt(self) -> None:
        self.stopped.set()

    async def ignore(self) -> None: ...

    async def answer(self, approval: str, *, allow: bool, remember: bool = False, message: str = "") -> None: ...

    async def close(self) -> Ending:
        self._alive = False
        self.stopped.set()
        await self.world.pass_gate("close")
        self.closed = True
        return "left"

    alive = property(lambda self: self._alive)
    heard = property(lambda self: time.monotonic())
    models = property(lambda self: [Model("opus")])
    commands = property(lambda self: ["compact"])
    session = property(lambda self: self._session)
    cost_usd = property(lambda self: self.turns * self.world.cost)


class World:
    """A supervisor as its daemon has it, but for the socket and the agent."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.number = directory, 0
        self.sessions: set[tuple[str, Path]] = set()
        self.made: list[Scripted] = []
        self.gates: dict[str, asyncio.Event] = {}
        self.reached: dict[str, asyncio.Event] = {}
        self.refuses_start = False
        self.cost = 0.0
        for name in ("etc", "base/a", "base/b", "alice/state", "alice/history", "alice/memory", "alice/work"):
            (directory / name).mkdir(parents=True)
        (directory / "etc/kai.yaml").write_text(json.dumps({"workspace_base": str(directory / "base")}))
        (directory / "etc/users.yaml").write_text(json.dumps({"users": [{"telegram_id": 1, "name": "alice"}]}))

    async def open(self) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("CONFIGURATION_DIRECTORY", str(self.directory / "etc"))
            patch.setenv("STATE_DIRECTORY", str(self.directory / "alice/state"))
            patch.setenv("KAI_RUNTIME_DIRECTORY", str(self.directory / "run"))
            self.daemon = Daemon("kai-agent", {}, instance="alice", one_uid=True)
            self.turns = Turns(self.daemon.state_dir)
            self.setup = Setup(self.daemon, self.turns)
        self.supervisor = Supervisor(
            self.daemon, self.directory / "alice", self.setup, self.turns, lambda _: Scripted(self)
        )
        await self.supervisor.open()

    def set_idle(self, seconds: float) -> None:
        agent = msgspec.structs.replace(self.setup.config.kai.agent, idle_timeout=seconds)
        kai = msgspec.structs.replace(self.setup.config.kai, agent=agent)
        self.setup.config = msgspec.structs.replace(self.setup.config, kai=kai)

    @property
    def seat(self) -> Seat:
        return self.supervisor.seat

    def hold(self, where: str) -> None:
        self.gates[where], self.reached[where] = asyncio.Event(), asyncio.Event()

    def let(self, where: str) -> None:
        self.gates.pop(where).set()

    async def pass_gate(self, where: str) -> None:
        if where in self.gates:
            self.reached[where].set()
            await self.gates[where].wait()

    async def at(self, where: str) -> None:
        await asyncio.wait_for(self.reached[where].wait(), 10)

    async def say(self, text: str = "hello", *, turn: str = "") -> Event:
        self.number += 1
        return await asyncio.wait_for(self.start(turn or f"1.{self.number}", text), 10)

    async def start(self, turn: str, text: str = "hello") -> Event:
        return await self.supervisor.start(PEER, Start(turn=turn, prompt=[Part(kind="text", text=text)]), [], nowhere)

    async def run_job(self, run: int) -> Event:
        call = Start(turn=f"job:7:{run}", prompt=[Part(kind="text", text="hello")], job=JobSeat(7, "backups"))
        return await asyncio.wait_for(self.supervisor.start(TIMER, call, [], nowhere), 10)

    async def job_over(self) -> None:
        async with asyncio.timeout(10):
            while self.supervisor.jobs:
                await asyncio.sleep(0)

    async def switch(self, name: str) -> None:
        await self.supervisor.switch_workspace(PEER, SwitchWorkspace(name=name))


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
    await made.open()
    yield made
    for where in list(made.gates):
        made.let(where)
    await made.supervisor.drain()
    made.turns.store.close()


async def nowhere(event: Event) -> None:
    """Nobody looks at the events on the way."""


def failing(original: Callable[..., Any], times: int = 1) -> Callable[..., Any]:
    """The same, but the first few calls meet a full disk."""
    left = times

    async def method(*arguments: Any, **named: Any) -> Any:
        nonlocal left
        left -= 1
        if left >= 0:
            raise StoreError("turns.db: the disk is full")
        return await original(*arguments, **named)

    return method


async def test_the_idle_clock_of_an_earlier_turn_does_not_end_a_running_one(world: World) -> None:
    world.set_idle(0.6)
    await world.say()
    await world.supervisor.set(PEER, Set(field="budget", value="1"))
    world.seat.session.cost_usd = 1.0
    assert (await world.say()).reason == "budget"
    await world.supervisor.set(PEER, Set(field="budget", value=""))
    await asyncio.sleep(0.3)
    world.hold("turn")
    turn = asyncio.create_task(world.say())
    await world.at("turn")
    await asyncio.sleep(0.6)
    assert not turn.done()
    world.let("turn")
    assert (await turn).outcome == "ok"


async def test_a_stop_that_meets_a_failed_start_while_it_is_stored_leaves_the_supervisor_free(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.refuses_start = True
    monkeypatch.setattr(world.turns, "end", failing(world.turns.end, 2))
    asked = asyncio.create_task(world.say(turn="1.77"))
    while not (world.supervisor.current and world.supervisor.seat.session.turns):
        await asyncio.sleep(0)
    await world.supervisor.stop(PEER, Stop(turn="1.77"))
    assert (await asyncio.wait_for(asked, 10)).outcome == "failed"
    world.refuses_start = False
    assert (await world.say()).outcome == "ok"


async def test_a_turn_whose_caller_goes_away_while_it_is_entered_still_runs(world: World) -> None:
    asked = asyncio.create_task(world.start("1.50"))
    await asyncio.sleep(0)  # it is at the database
    asked.cancel()
    with suppress(asyncio.CancelledError):
        await asked
    assert (await world.say(turn="1.50")).outcome == "ok"


async def test_a_second_caller_of_a_turn_that_is_over_gets_its_answer_too(world: World) -> None:
    await world.say(turn="1.50")
    first, second = await asyncio.wait_for(asyncio.gather(world.start("1.50"), world.start("1.50")), 20)
    assert first.text == second.text == "answer"


async def test_a_switch_that_the_disk_refuses_leaves_workspace_and_session_together(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.switch("a")
    await world.say()
    session = world.seat.session.id
    for method in ("set_fact", "session"):
        with monkeypatch.context() as patch:
            patch.setattr(world.turns, method, failing(getattr(world.turns, method)))
            with pytest.raises(StoreError):
                await world.switch("b")
        assert str(world.setup.path) == world.seat.session.workspace
    await world.switch("a")
    await world.say()
    assert world.seat.session.id == session


async def test_a_switch_while_the_models_are_asked_for_costs_no_session(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.switch("b")
    await world.say()
    in_b = world.seat.session.id
    await world.turns.set_fact("models", "")
    await world.switch("a")
    await world.say()
    in_a = world.seat.session.id
    await world.turns.set_fact("models", "")
    await world.supervisor.set(PEER, Set(field="model", value="opus"))
    world.hold("prompt")

    async def slowly(**_: Any) -> str:
        await world.pass_gate("prompt")
        return ""

    monkeypatch.setattr("kai.agent.setup.system_prompt", slowly)
    asked = asyncio.create_task(world.supervisor.models(PEER, Models()))
    await world.at("prompt")
    switch = asyncio.create_task(world.switch("b"))
    await asyncio.wait({switch}, timeout=1)
    world.let("prompt")
    await asyncio.gather(asked, switch)
    await world.say()
    assert (world.seat.session.workspace, world.seat.session.id) == (str(world.directory / "base/b"), in_b)
    assert world.made[-1].context and world.made[-1].context.workspace == world.directory / "base/b"
    await world.switch("a")
    await world.say()
    assert world.seat.session.id == in_a


async def test_a_full_disk_in_the_middle_of_a_turn_does_not_part_it_from_its_agent(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world.turns, "set_session", failing(world.turns.set_session))
    assert (await world.say()).outcome == "ok"


async def test_a_stop_while_the_old_process_ends_waits_for_no_end_and_breaks_none(world: World) -> None:
    await world.say()
    await world.supervisor.set(PEER, Set(field="model", value="opus"))
    world.hold("close")
    asked = asyncio.create_task(world.say(turn="1.60"))
    await world.at("close")
    await world.supervisor.stop(PEER, Stop(turn="1.60"))
    assert (await asyncio.wait_for(asked, 20)).outcome == "interrupted"
    world.let("close")
    assert (await world.say()).outcome == "ok"
    assert not world.supervisor.retiring
    assert world.made[0].closed


async def test_no_session_is_ended_by_a_supervisor_that_is_about_to_leave(world: World) -> None:
    await world.say()
    world.supervisor.leave("of a test")
    with pytest.raises(Busy):
        await world.supervisor.new_session(PEER, NewSession(turn="1.70"))


async def test_a_session_that_is_lost_in_a_look_at_the_models_is_told_with_the_next_answer(world: World) -> None:
    await world.say()
    await world.seat.close()
    world.sessions.clear()
    await world.turns.set_fact("models", "")
    await world.supervisor.models(PEER, Models())
    assert "no longer knows the session" in (await world.say()).text
    assert "no longer knows the session" not in (await world.say()).text


async def test_a_stop_reaches_a_turn_that_waits_for_the_end_of_the_one_before(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kai.agent.seat.INTERRUPT_PATIENCE", 0.1)
    monkeypatch.setattr(Scripted, "interrupt", Scripted.ignore)
    world.hold("turn")
    world.hold("close")
    first = asyncio.create_task(world.say(turn="1.80"))
    await world.at("turn")
    await world.supervisor.stop(PEER, Stop(turn="1.80"))
    assert (await first).outcome == "interrupted"
    second = asyncio.create_task(world.say(turn="1.81"))
    while world.seat.state != "starting":
        await asyncio.sleep(0)
    await world.supervisor.stop(PEER, Stop(turn="1.81"))
    assert (await asyncio.wait_for(second, 20)).outcome == "interrupted"


async def test_a_clock_that_is_set_ends_no_tool_call(monkeypatch: pytest.MonkeyPatch) -> None:
    live, limits = LiveTurn("1.90"), Limits(timeout=60, tool_timeout=0.2)
    live.apply(Event(kind="tool", call="c", tool="Bash", running=True))
    wall = time.time
    monkeypatch.setattr(time, "time", lambda: wall() + 86400)  # a host without a clock of its own asked another
    assert overdue(limits, live, heard=0) == ""
    await asyncio.sleep(0.3)
    assert overdue(limits, live, heard=0).startswith("Bash took longer")


async def test_a_full_disk_makes_a_turn_wait_and_loses_no_answer(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world.turns, "begin", failing(world.turns.begin))
    with pytest.raises(Busy, match="the disk is full"):
        await world.say(turn="1.95")
    assert (await world.say(turn="1.95")).outcome == "ok"
    monkeypatch.setattr(world.turns, "answer", failing(world.turns.answer))
    with pytest.raises(Busy, match="the disk is full"):
        await world.supervisor.join(PEER, Join(turn="1.95"), nowhere)
    assert (await world.supervisor.join(PEER, Join(turn="1.95"), nowhere)).text == "answer"


async def test_a_session_that_ends_when_the_supervisor_is_told_to_stop_has_ended_then(world: World) -> None:
    world.cost = 0.25
    await world.say()
    world.hold("close")
    ending = asyncio.create_task(world.supervisor.new_session(PEER, NewSession(turn="1.96")))
    await world.at("close")
    asyncio.get_running_loop().call_later(0.5, world.let, "close")
    await world.supervisor.drain()
    assert (await world.turns.session(str(world.setup.home))).id == ""
    assert (await world.turns.cost(world.setup.today()))[0] == 0.5
    assert (await ending).saved


async def test_what_the_end_of_a_jobs_process_stores_is_forgotten_with_the_job(world: World) -> None:
    world.cost = 0.25
    world.hold("turn")
    run = asyncio.create_task(world.run_job(1))
    await world.at("turn")
    world.hold("close")
    await world.supervisor.forget_job(TIMER, ForgetJob(job=7))
    assert (await run).outcome == "interrupted"
    await world.at("close")
    world.cost = 1.0  # it spends more on its way out
    world.let("close")
    await world.job_over()
    assert await world.turns.store.read("SELECT * FROM sessions WHERE name != 'chat'") == []
    assert (await world.turns.cost(world.setup.today()))[0] == 1.0


async def test_what_a_jobs_process_spends_on_its_way_out_is_no_debt_of_the_chats(world: World) -> None:
    await world.say()
    world.cost = 0.25
    world.hold("close")
    assert (await world.run_job(1)).cost_usd == 0.25
    await world.at("close")
    world.cost = 1.0
    world.let("close")
    await world.job_over()
    assert world.seat.session.cost_usd == 0.0
    assert (await world.turns.session(str(world.setup.home))).cost_usd == 0.0
    assert (await world.turns.cost(world.setup.today()))[0] == 1.0


async def test_a_full_disk_makes_a_job_wait_and_loses_no_answer(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world.turns, "begin", failing(world.turns.begin))
    with pytest.raises(Busy, match="the disk is full"):
        await world.run_job(1)
    monkeypatch.setattr(world.turns, "end", failing(world.turns.end, 2))
    assert (await world.run_job(1)).text == "answer"
    await world.job_over()
    assert (await world.run_job(1)).text == "answer"
    await world.job_over()
    assert [backend.closed for backend in world.made] == [True]


async def test_a_job_whose_session_cannot_be_read_fails_and_takes_none_from_the_chat(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.say()
    session = world.seat.session.id
    monkeypatch.setattr(world.turns, "session", failing(world.turns.session))
    assert (await world.run_job(1)).outcome == "failed"
    await world.job_over()
    assert (await world.turns.session(str(world.setup.home))).id == session
    assert (await world.run_job(2)).outcome == "ok"
