"""Many chats on one set: each test of a module has a user of its own, and tests that mostly wait run side by side."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest

from kai.demo.botapi.server import BotApi
from kai.demo.botapi.views import MessageView
from kai.demo.launcher import Launcher
from kai.interfaces import AgentState, State
from kai.lib.client import Client
from kai.lib.varlink import Call

from .agents import running
from .conftest import TOKEN, Stage

R = TypeVar("R", bound=msgspec.Struct)
FIRST_ID = 2000


class Chat:
    """One user, what he is shown, and what runs for him."""

    def __init__(self, stage: Stage, mark: str, name: str, user: int) -> None:
        self.stage, self.mark, self.name, self.user = stage, mark, name, user
        self.launcher, self.unit = stage.launcher, f"kai-agent@{name}"
        self.base = self.launcher.directory / "state/users" / name
        self.last = 0

    # ---- the chat ----

    def say(self, text: str) -> None:
        self.last = self.stage.say(text, user=self.user)

    async def told(self, contains: str, *, timeout: float = 30) -> str:
        """All of the finished message, after what was said last, that has this text in it."""
        found = await self.stage.answer(contains, user=self.user, after=self.last, timeout=timeout)
        return found.text or ""

    async def ask(self, text: str, contains: str = "") -> str:
        """Say something; the finished message that answers it."""
        self.say(text)
        return await self.told(contains)

    async def growing(self, contains: str = "") -> MessageView:
        return await self.stage.growing(contains, user=self.user, timeout=30)

    async def stop(self, *, timeout: float = 30) -> tuple[str, float]:
        """What the stopped message says, and the seconds until it does."""
        began = time.monotonic()
        self.stage.say("/stop", user=self.user)
        return await self.told("⏹ Stopped", timeout=timeout), time.monotonic() - began

    # ---- the supervisor ----

    async def call(self, call: Call[R]) -> R:
        return await Client(self.launcher.runtime / f"agent/{self.name}.sock").call(call)

    async def state(self) -> AgentState:
        return await self.call(State())

    async def leave(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End the supervisor, and with it every process of the agent's."""
        if self.launcher.pid(self.unit):
            with suppress(ProcessLookupError):  # it was about to leave by itself
                self.launcher.kill(self.unit, number)
            await self.launcher.wait_exit(self.unit, within=30)
        await self.nothing_left()

    def memory(self, what: str = "VmRSS") -> float:
        """MiB of the supervisor; `VmHWM` is the most that it ever had."""
        status = Path(f"/proc/{self.launcher.pid(self.unit)}/status").read_text(encoding="ascii")
        return int(status.partition(f"{what}:")[2].split()[0]) / 1024

    def books(self, query: str) -> list[tuple[Any, ...]]:
        """Look into, or change, the database of a supervisor that isn't there."""
        assert self.launcher.pid(self.unit) is None
        with closing(sqlite3.connect(self.base / "state/turns.db")) as db, db:
            return db.execute(query).fetchall()

    # ---- the agent ----

    def processes(self) -> list[int]:
        """The agent's processes and their descendants, wherever they went: all have the mark and the workspace."""
        return [pid for pid in running(self.mark) if _directory(pid) == str(self.base / "work")]

    async def has_processes(self, count: int, within: float = 10.0) -> None:
        """Those that were left behind are there a moment after the agent said so."""
        async with asyncio.timeout(within):
            while len(self.processes()) != count:
                await asyncio.sleep(0.02)

    async def nothing_left(self, within: float = 5.0) -> None:
        async with asyncio.timeout(within):
            while self.processes():
                await asyncio.sleep(0.05)


def _directory(pid: int) -> str:
    try:
        return os.fspath(Path(f"/proc/{pid}/cwd").readlink())
    except OSError:
        return ""


class Chats:
    """All chats of a set: `fresh` gives one that nobody had yet, `[name]` that of a user who was named."""

    def __init__(self, stage: Stage, mark: str, users: dict[str, int], named: Sequence[str]) -> None:
        self._all = {name: Chat(stage, mark, name, user) for name, user in users.items()}
        self._fresh: Iterator[Chat] = iter([chat for name, chat in self._all.items() if name not in named])

    def fresh(self) -> Chat:
        return next(self._fresh)

    def __getitem__(self, name: str) -> Chat:
        return self._all[name]


@asynccontextmanager
async def open_chats(
    directory: Path,
    agent: list[str],
    *,
    count: int = 40,
    named: dict[str, dict[str, Any]] | None = None,
    settings: dict[str, Any] | None = None,
) -> AsyncIterator[Chats]:
    """A running set. `named` users have rows of their own; a word of the agent's command is `directory`/agent."""
    named = named or {}
    users = {name: FIRST_ID + n for n, name in enumerate([*named, *(f"u{n}" for n in range(count))])}
    async with AsyncExitStack() as stack:
        api = BotApi(token=TOKEN)
        await api.start()
        stack.push_async_callback(api.stop)
        for user in users.values():
            api.declare_user(user)
        launcher = Launcher(
            directory / "set",
            api_base=api.url,
            token=TOKEN,
            users=[{"telegram_id": user, "name": name, **named.get(name, {})} for name, user in users.items()],
            agent_command=agent,
            settings=settings,
            stop_patience=60.0,
        )
        stack.push_async_callback(launcher.stop)
        await launcher.start()
        await launcher.wait_ready("kai-bot")
        await api.wait_polling()
        yield Chats(Stage(api, launcher), str(directory / "agent"), users, list(named))


Scenario = Callable[..., Awaitable[None]]
Begun = dict[tuple[str, str], "asyncio.Task[None]"]


class Together:
    """Tests that run side by side from the module's beginning on; each only waits for its own and fails with it.

    The module has a fixture `begun` that gives what `begin` yields.
    """

    def __init__(self) -> None:
        self.scenarios: dict[tuple[str, str], Callable[[Chats], Awaitable[None]]] = {}

    def __call__(self, scenario: Scenario) -> Scenario:
        name = _name(scenario)
        self.scenarios[name, ""] = scenario

        async def test(begun: Begun) -> None:
            await begun[name, ""]

        test.__name__ = name
        return test

    def each(self, *cases: tuple[Any, ...]) -> Callable[[Scenario], Scenario]:
        """The scenario with each of these arguments, as tests of their own."""

        def decorate(scenario: Scenario) -> Scenario:
            name = _name(scenario)
            ids = [re.sub(r"\W+", "-", str(case[0])) for case in cases]
            for word, case in zip(ids, cases, strict=True):
                self.scenarios[name, word] = _with(scenario, case)

            async def test(begun: Begun, case: str) -> None:
                await begun[name, case]

            test.__name__ = name
            return pytest.mark.parametrize("case", ids)(test)

        return decorate

    @asynccontextmanager
    async def begin(self, chats: Chats, request: pytest.FixtureRequest) -> AsyncIterator[Begun]:
        """Start those that were asked for."""
        wanted = {item.name for item in request.session.items}
        begun = {
            (name, case): asyncio.ensure_future(scenario(chats))
            for (name, case), scenario in self.scenarios.items()
            if (f"{name}[{case}]" if case else name) in wanted
        }
        try:
            yield begun
        finally:
            for task in begun.values():
                task.cancel()
            await asyncio.gather(*begun.values(), return_exceptions=True)


def _name(scenario: Scenario) -> str:
    return str(scenario.__name__)


def _with(scenario: Scenario, case: tuple[Any, ...]) -> Scenario:
    return lambda chats: scenario(chats, *case)
