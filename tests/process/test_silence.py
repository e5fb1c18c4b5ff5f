"""Agents that say nothing, or nothing that counts. The supervisor runs in here, with limits lower than can be set."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import pytest

from kai.agent import oom
from kai.agent.backend import AgentBackend, Ending
from kai.agent.claude import ClaudeBackend
from kai.agent.seat import Seat
from kai.agent.setup import Setup
from kai.agent.supervisor import Supervisor
from kai.agent.turns import Turns
from kai.interfaces import Event, JobSeat, NewSession, Part, Start, Stop
from kai.lib.daemon import Daemon
from kai.lib.peers import BOT, SCHEDULER, Peer
from kai.lib.varlink import Busy

from .agents import running

AGENT = Path(__file__).with_name("misbehaving.py")
PEER = Peer(os.geteuid(), os.getpid(), frozenset({BOT, SCHEDULER}))
TIMEOUT = 1
SILENT = f"The agent said nothing for {TIMEOUT} s (timeout) and was interrupted."
Make = Callable[..., Awaitable["Here"]]
RESUMES = "It did not obey, so its process was ended; your next message resumes the session."


class Here:
    """A supervisor as its daemon has it, but for the socket; `restart` makes the next one."""

    def __init__(self, directory: Path, **user: object) -> None:
        self.directory, self.turn = directory, 0
        self.make_backend: Callable[[], AgentBackend] = ClaudeBackend
        self.supervisor: Supervisor
        for name in ("etc", "alice/state", "alice/history", "alice/memory", "alice/work"):
            (directory / name).mkdir(parents=True)
        agent = {"command": [sys.executable, "-I", "-S", str(AGENT), "--state", str(directory / "agent")]}
        (directory / "etc/kai.yaml").write_text(json.dumps({"agent": agent}))
        users = [{"telegram_id": 1, "name": "alice", **user}]
        (directory / "etc/users.yaml").write_text(json.dumps({"users": users}))

    @property
    def seat(self) -> Seat:
        return self.supervisor.seat

    @property
    def leaves(self) -> bool:
        return self.supervisor.retiring

    async def open(self) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("CONFIGURATION_DIRECTORY", str(self.directory / "etc"))
            patch.setenv("STATE_DIRECTORY", str(self.directory / "alice/state"))
            patch.setenv("KAI_RUNTIME_DIRECTORY", str(self.directory / "run"))
            self.daemon = Daemon("kai-agent", {}, instance="alice", one_uid=True)
            self.turns = Turns(self.daemon.state_dir)
            self.setup = setup = Setup(self.daemon, self.turns)
        agent = msgspec.structs.replace(setup.config.kai.agent, timeout=TIMEOUT)
        kai = msgspec.structs.replace(setup.config.kai, agent=agent)
        setup.config = msgspec.structs.replace(setup.config, kai=kai)
        base = self.directory / "alice"
        self.supervisor = Supervisor(self.daemon, base, setup, self.turns, lambda _: self.make_backend())
        await self.supervisor.open()

    async def close(self) -> None:
        await self.supervisor.drain()
        self.turns.store.close()
        for pid in self.processes():  # the control group's part
            os.kill(pid, signal.SIGKILL)

    async def restart(self) -> None:
        await self.close()
        await self.open()

    def begin(self, text: str) -> asyncio.Task[Event]:
        self.turn += 1
        call = Start(f"1.{self.turn}", [Part(kind="text", text=text)])
        return asyncio.create_task(self.supervisor.start(PEER, call, [], _ignore))

    async def say(self, text: str) -> Event:
        return await self.begin(text)

    def begin_job(self, run: int, text: str) -> asyncio.Task[Event]:
        call = Start(f"job:7:{run}", [Part(kind="text", text=text)], JobSeat(7, "backups"))
        return asyncio.create_task(self.supervisor.start(PEER, call, [], _ignore))

    async def job_over(self) -> None:
        async with asyncio.timeout(10):
            while self.supervisor.jobs:
                await asyncio.sleep(0.01)

    async def stop(self) -> None:
        assert (await self.supervisor.stop(PEER, Stop(f"1.{self.turn}"))).stopping

    async def until(self, state: str) -> None:
        async with asyncio.timeout(10):
            while self.seat.state != state:
                await asyncio.sleep(0.01)

    def processes(self) -> list[int]:
        return running(str(self.directory / "agent"))


async def _ignore(event: Event) -> None:
    pass


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    async with AsyncExitStack() as stack:

        async def open_one(name: str = "one", **user: object) -> Here:
            made = Here(tmp_path / name, **user)
            await made.open()
            stack.push_async_callback(made.close)
            return made

        yield open_one


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who doesn't obey is given up after a second, and not after ten or more."""
    monkeypatch.setattr("kai.agent.seat.INTERRUPT_PATIENCE", 1.0)
    monkeypatch.setattr("kai.agent.process.PATIENCE", (0.5, 0.5, 0.5))
    monkeypatch.setattr("kai.agent.chat.SAVE_PATIENCE", 1.0)
    monkeypatch.setattr("kai.agent.chat.INTERRUPT_PATIENCE", 1.0)


# ---- silence ----


async def test_who_says_nothing_that_counts_is_interrupted_and_it_is_told(make: Make) -> None:
    async def scenario(way: str, shown: str) -> None:
        here = await make(way)
        began = time.monotonic()
        done = await here.say(way)
        assert (done.outcome, done.text, done.error) == ("failed", shown, SILENT)
        assert TIMEOUT < time.monotonic() - began < TIMEOUT + 8
        assert not here.leaves
        assert (await here.say("hello")).text == "this is turn 2"

    ways = {"silent": "", "half": "so far", "trickle": "so far", "flood garbage": "", "flood long": ""}
    await asyncio.gather(*(scenario(way, shown) for way, shown in ways.items()))


async def test_who_says_nothing_and_does_not_obey_is_ended(make: Make, impatient: None) -> None:
    async def scenario(way: str, killed: bool) -> None:
        here = await make(way)
        done = await here.say(way)
        assert (done.outcome, done.text, done.error) == ("failed", "so far", f"{SILENT} {RESUMES}")
        assert not here.processes()
        assert here.leaves == killed
        if killed:
            with pytest.raises(Busy, match="about to leave"):
                await here.say("hello")
            await here.restart()
        assert (await here.say("hello")).text == "this is turn 2"

    await asyncio.gather(scenario("deaf", False), scenario("immortal", True))


async def test_a_quiet_tool_call_is_no_silence(make: Make) -> None:
    here = await make()
    done = await here.say(f"tool {TIMEOUT + 1.5}")
    assert (done.outcome, done.text, done.error) == ("ok", "this is turn 1", "")


async def test_an_open_question_is_no_silence_and_no_answer_is_a_no(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kai.agent.approvals.PATIENCE", TIMEOUT + 1.5)
    here = await make(approvals="ask")
    done = await here.say("ask")
    assert (done.outcome, done.text) == (
        "ok",
        "deny: The user did not answer within 10 minutes, so this is denied.",
    )


async def test_a_question_ends_with_its_turn(make: Make) -> None:
    here = await make(approvals="ask")
    turn = here.begin("ask")
    await here.until("working")
    while not (here.supervisor.current and here.supervisor.current.approvals):
        await asyncio.sleep(0.01)
    await here.stop()
    assert (await turn).outcome == "interrupted"
    assert not here.seat.approvals.timers
    assert (await here.say("hello")).text == "this is turn 2"


async def test_results_without_end_are_one_answer_that_fills_no_journal_and_the_next_turn_can_be_stopped(
    make: Make, impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    here = await make()
    done = await here.say("flood results")
    assert (done.outcome, done.text) == ("ok", "a ghost")
    turn = here.begin("hello")
    await here.until("working")
    await asyncio.sleep(0.3)
    await here.stop()
    done = await turn
    assert (done.outcome, done.error) == ("interrupted", RESUMES)
    assert not here.processes()
    assert len(caplog.records) < 20


# ---- the turn in which memory is saved ----


@pytest.mark.parametrize(
    ("way", "note"),
    [
        ("silent", "The agent took too long for it."),
        ("immortal", "The agent took too long for it."),
        ("exit 3", "The agent could not save its memory: The agent ended in the middle of the turn (exit status 3)."),
    ],
)
async def test_a_session_ends_though_its_memory_is_not_saved(make: Make, impatient: None, way: str, note: str) -> None:
    here = await make()
    (here.directory / "alice/work/saving").write_text(way)
    assert (await here.say("hello")).text == "this is turn 1"
    ended = await here.supervisor.new_session(PEER, NewSession("1.new"))
    assert not ended.saved
    assert ended.note.startswith(note)
    again = here.begin("hello")
    while not again.done():
        assert len(here.processes()) <= 1
        await asyncio.sleep(0.01)
    if way == "exit 3":
        assert isinstance(again.exception(), Busy)
        await here.restart()
        again = here.begin("hello")
    assert (await again).text == "this is turn 1"


async def test_saving_memory_is_stopped_like_a_turn_and_nothing_else_begins_meanwhile(make: Make) -> None:
    here = await make()
    (here.directory / "alice/work/saving").write_text("silent")
    await here.say("hello")
    ending = asyncio.create_task(here.supervisor.new_session(PEER, NewSession("1.new")))
    await here.until("working")
    with pytest.raises(Busy):
        await here.say("hello")
    with pytest.raises(Busy):
        await here.supervisor.new_session(PEER, NewSession("1.newer"))
    assert (await here.supervisor.stop(PEER, Stop("1.new"))).stopping
    ended = await ending
    assert (ended.saved, ended.note) == (False, "Stopped while the agent saved its memory.")
    assert (await here.say("hello")).text == "this is turn 1"


# ---- a start that is stopped, an end that fails ----


async def test_a_stop_does_not_wait_for_an_agent_that_never_begins_but_the_next_start_does(make: Make) -> None:
    here = await make()
    await here.say("next never")
    await here.restart()
    turn = here.begin("hello")
    while not here.processes():
        await asyncio.sleep(0.01)
    began = time.monotonic()
    await here.stop()
    done = await turn
    assert time.monotonic() - began < 20, "a start may take 30 s"
    assert (done.outcome, done.error) == ("interrupted", "")
    (old,) = here.processes()
    again = here.begin("hello")
    while old in here.processes():
        assert here.processes() == [old], "two processes must never write one session"
        await asyncio.sleep(0.01)
    assert (await again).text == "this is turn 2"


class Stuck(ClaudeBackend):
    """Its process can't be ended, as behind a sudo that died over it."""

    async def close(self) -> Ending:
        await super().close()
        return "stuck"


@pytest.mark.parametrize("ended", ["for another model", "because it was idle"])
async def test_beside_a_process_that_cannot_be_ended_no_second_one_is_started(make: Make, ended: str) -> None:
    here = await make()
    here.make_backend = Stuck
    assert (await here.say("hello")).text == "this is turn 1"
    if ended == "for another model":
        here.setup.chosen = {("", "model"): "another"}
    else:
        here.seat._evict()
    done = await here.say("hello")
    assert done.error == "The agent's old process can't be ended; Kai starts anew, send your message again."
    assert not here.processes()
    assert here.leaves
    here.make_backend = ClaudeBackend
    await here.restart()
    assert (await here.say("hello")).text == "this is turn 2"


async def test_the_kernels_kill_for_want_of_memory_is_told_with_the_limit(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    kills = iter([0, 1, 1])
    monkeypatch.setattr(oom, "kills", lambda: next(kills))
    here = await make(limits={"memory": "2G"})
    done = await here.say("kill 9")
    assert done.error == (
        "The agent ended in the middle of the turn (ended by SIGKILL). The kernel ended it for want of memory "
        "(limits.memory is 2G); your next message resumes the session."
    )
    await here.restart()
    assert (await here.say("hello")).text == "this is turn 2"


async def test_a_supervisor_that_is_told_to_stop_waits_for_the_agent_that_it_is_ending(make: Make) -> None:
    here = await make()
    await here.say("lingering")
    here.seat._evict()
    await asyncio.sleep(0.05)
    await here.supervisor.drain()
    assert not here.processes()


# ---- jobs ----


async def test_a_job_that_says_nothing_is_interrupted_like_a_turn_of_the_chat(make: Make, impatient: None) -> None:
    async def scenario(way: str, error: str) -> None:
        here = await make(way)
        done = await here.begin_job(1, way)
        assert (done.outcome, done.error) == ("failed", error)
        await here.job_over()
        assert not here.processes()
        assert not here.leaves
        assert (await here.begin_job(2, "hello")).text == "this is turn 2"

    forced = "It did not obey, so its process was ended; the job's next run resumes the session."
    await asyncio.gather(scenario("silent", SILENT), scenario("deaf", f"{SILENT} {forced}"))


async def test_a_job_whose_process_had_to_be_killed_ends_the_supervisor_when_the_chats_turn_is_over(
    make: Make, impatient: None
) -> None:
    here = await make()
    chat = here.begin("tool 8")
    await here.until("working")
    assert (await here.begin_job(1, "immortal")).outcome == "failed"
    await here.job_over()
    assert here.leaves
    assert not chat.done()
    assert not here.daemon.stopping.is_set()
    with pytest.raises(Busy, match="about to leave"):
        await here.begin_job(2, "hello")
    assert (await chat).text == "this is turn 1"
    await asyncio.wait_for(here.daemon.stopping.wait(), 5)
    await here.restart()
    assert (await here.begin_job(2, "hello")).text == "this is turn 2"


async def test_a_lost_session_is_not_told_in_the_answer_of_a_job_whose_first_line_may_mean_something(
    make: Make,
) -> None:
    here = await make()
    await here.begin_job(1, "hello")
    await here.job_over()
    for path in (here.directory / "agent").iterdir():
        path.unlink()
    done = await here.begin_job(2, "hello")
    assert (done.outcome, done.text) == ("ok", "this is turn 1")


async def test_a_job_that_is_stopped_while_its_agent_starts_ends_at_once(make: Make) -> None:
    here = await make()
    await here.begin_job(1, "next never")
    await here.job_over()
    await here.restart()
    job = here.begin_job(2, "hello")
    while not here.processes():
        await asyncio.sleep(0.01)
    assert (await here.supervisor.stop(PEER, Stop("job:7:2"))).stopping
    assert (await asyncio.wait_for(job, 20)).outcome == "interrupted"
    with pytest.raises(Busy, match="last run of job 7"):
        await here.begin_job(3, "hello")
    await here.job_over()
    assert not here.processes()
