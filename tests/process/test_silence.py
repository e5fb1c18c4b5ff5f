"""Agents that say nothing, or nothing that counts. The supervisor runs in here: its limits are lower than can be set."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import pytest

from kai.agent import oom, seat
from kai.agent.backend import AgentBackend, Ending
from kai.agent.claude import ClaudeBackend
from kai.agent.setup import Setup
from kai.agent.supervisor import Supervisor
from kai.agent.turns import Turns
from kai.config.users import Limits
from kai.interfaces import Event, Part, Start, Stop
from kai.lib.daemon import Daemon
from kai.lib.peers import BOT, Peer
from kai.lib.varlink import Busy

from .agents import running

AGENT = Path(__file__).with_name("misbehaving.py")
PEER = Peer(os.geteuid(), os.getpid(), frozenset({BOT}))
TIMEOUT = 2
SILENT = f"The agent said nothing for {TIMEOUT} s (timeout) and was interrupted."
RESUMES = "It did not obey, so its process was ended; your next message resumes the session."


class Here:
    """A supervisor as its daemon has it, but for the socket; `restart` is the next one."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.turn = directory, 0
        self.make_backend: Callable[[], AgentBackend] = ClaudeBackend
        self.supervisor: Supervisor

    @property
    def seat(self) -> seat.Seat:
        return self.supervisor.seat

    @property
    def leaves(self) -> bool:
        return self.supervisor.retiring

    async def open(self) -> None:
        self.turns = Turns(self.directory / "alice/state")
        self.daemon = Daemon("kai-agent", {}, instance="alice", one_uid=True)
        setup = Setup(self.daemon, self.turns)
        agent = msgspec.structs.replace(setup.config.kai.agent, timeout=TIMEOUT)
        kai = msgspec.structs.replace(setup.config.kai, agent=agent)
        setup.config = msgspec.structs.replace(setup.config, kai=kai)
        base = self.directory / "alice"
        self.supervisor = Supervisor(self.daemon, base, setup, self.turns, lambda _: self.make_backend())
        await self.supervisor.open()

    async def close(self) -> None:
        await self.supervisor.drain()
        self.turns.store.close()

    async def restart(self) -> None:
        await self.close()
        await self.open()

    def begin(self, text: str) -> asyncio.Task[Event]:
        self.turn += 1
        call = Start(f"1.{self.turn}", [Part(kind="text", text=text)])
        return asyncio.create_task(self.supervisor.start(PEER, call, _ignore))

    async def say(self, text: str) -> Event:
        return await self.begin(text)

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
async def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Here]:
    for name in ("etc", "alice/state", "alice/history", "alice/memory", "alice/work"):
        (tmp_path / name).mkdir(parents=True)
    agent = {"command": [sys.executable, "-I", "-S", str(AGENT), "--state", str(tmp_path / "agent")]}
    (tmp_path / "etc/kai.yaml").write_text(json.dumps({"agent": agent}))
    (tmp_path / "etc/users.yaml").write_text(json.dumps({"users": [{"telegram_id": 1, "name": "alice"}]}))
    monkeypatch.setenv("CONFIGURATION_DIRECTORY", str(tmp_path / "etc"))
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "alice/state"))
    monkeypatch.setenv("KAI_RUNTIME_DIRECTORY", str(tmp_path / "run"))
    made = Here(tmp_path)
    async with AsyncExitStack() as stack:
        await made.open()
        stack.push_async_callback(made.close)
        yield made


@pytest.mark.parametrize(
    ("way", "shown"),
    [("silent", ""), ("half", "so far"), ("trickle", "so far"), ("flood garbage", ""), ("flood long", "")],
)
async def test_who_says_nothing_that_counts_is_interrupted_and_it_is_told(here: Here, way: str, shown: str) -> None:
    began = time.monotonic()
    done = await here.say(way)
    assert (done.outcome, done.text, done.error) == ("failed", shown, SILENT)
    assert TIMEOUT < time.monotonic() - began < TIMEOUT + 3
    assert not here.leaves
    assert (await here.say("hello")).text == "this is turn 2"
