"""Agents that misbehave, through the whole set: the user knows what happened, the next message works, nothing is left.

One set serves the module; each test has a user of its own. Where an agent has to be waited for, the scenarios run
beside each other, and their tests only look at how they ended.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, closing
from pathlib import Path

import pytest
import pytest_asyncio

from kai.demo.botapi.server import BotApi
from kai.demo.botapi.views import MessageView
from kai.demo.launcher import Launcher

from .agents import running
from .conftest import TOKEN, Stage

pytestmark = pytest.mark.asyncio(loop_scope="module")
AGENT = Path(__file__).with_name("misbehaving.py")
PEOPLE = {f"u{number}": 2000 + number for number in range(40)}
RESUMES = "It did not obey, so its process was ended; your next message resumes the session."
MAX_TURN, TOOL_TIMEOUT = 4, 2
FLAT = 24
"""MiB by which a supervisor may grow, at its highest, while its agent floods it."""
Scenario = Callable[["Chat"], Awaitable[None]]
MEANWHILE: dict[str, Scenario] = {}


class Chat:
    """One user and what runs for him."""

    def __init__(self, stage: Stage, mark: str, name: str) -> None:
        self.stage, self.mark, self.name, self.user = stage, mark, name, PEOPLE[name]
        self.unit = f"kai-agent@{name}"
        self.last = 0

    def say(self, text: str) -> None:
        self.last = self.stage.say(text, user=self.user)

    async def stop(self, *, timeout: float = 20) -> tuple[str, float]:
        """What the stopped message says, and the seconds until it does."""
        began = time.monotonic()
        self.stage.say("/stop", user=self.user)
        return await self.told("⏹ Stopped", timeout=timeout), time.monotonic() - began

    async def told(self, contains: str, *, timeout: float = 20) -> str:
        """All of the finished message, after what was said last, that has this text in it."""
        found = await self.stage.answer(contains, user=self.user, after=self.last, timeout=timeout)
        return found.text or ""

    async def growing(self, contains: str = "") -> MessageView:
        return await self.stage.growing(contains, user=self.user)

    async def goes_on(self, turn: int) -> None:
        """The next message is answered, in the same session."""
        self.say("hello")
        assert await self.told("this is") == f"this is turn {turn}"

    def processes(self) -> list[int]:
        """The agent's processes and their descendants, wherever they went: all have the mark and the workspace."""
        work = self.stage.launcher.directory / f"state/users/{self.name}/work"
        return [pid for pid in running(self.mark) if _directory(pid) == str(work)]

    async def nothing_left(self, within: float = 5.0) -> None:
        async with asyncio.timeout(within):
            while self.processes():
                await asyncio.sleep(0.05)

    async def end(self, *, turns: int, failed: int = 0, interrupted: int = 0) -> None:
        """The supervisor leaves; with it goes every process, and its books are in order."""
        launcher = self.stage.launcher
        if launcher.pid(self.unit):
            launcher.kill(self.unit, signal.SIGTERM)
            await launcher.wait_exit(self.unit, within=20)
        await self.nothing_left()
        with closing(sqlite3.connect(launcher.directory / f"state/users/{self.name}/state/turns.db")) as db:
            states = [state for (state,) in db.execute("SELECT state FROM turns")]
            ((counted, cost),) = db.execute("SELECT turns, cost_usd FROM sessions")
            ((spent,),) = db.execute("SELECT sum(usd) FROM costs")
        assert len(states) == counted == turns
        assert (states.count("failed"), states.count("interrupted")) == (failed, interrupted)
        assert states.count("running") == 0
        assert spent == pytest.approx(cost)

    def memory(self, what: str = "VmRSS") -> float:
        """MiB of the supervisor; `VmHWM` is the most that it ever had."""
        status = Path(f"/proc/{self.stage.launcher.pid(self.unit)}/status").read_text(encoding="ascii")
        return int(status.partition(f"{what}:")[2].split()[0]) / 1024


def _directory(pid: int) -> str:
    try:
        return os.fspath(Path(f"/proc/{pid}/cwd").readlink())
    except OSError:
        return ""


def meanwhile(scenario: Scenario) -> Callable[[dict[str, asyncio.Task[None]]], Awaitable[None]]:
    """Runs beside the other tests of this module: most of its time is patience."""
    MEANWHILE[scenario.__name__] = scenario

    async def test(begun: dict[str, asyncio.Task[None]]) -> None:
        await begun[scenario.__name__]

    test.__name__ = scenario.__name__
    return test


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    directory = tmp_path_factory.mktemp("misbehaviour")
    async with AsyncExitStack() as stack:
        api = BotApi(token=TOKEN)
        await api.start()
        stack.push_async_callback(api.stop)
        for user in PEOPLE.values():
            api.declare_user(user)
        launcher = Launcher(
            directory / "set",
            api_base=api.url,
            token=TOKEN,
            users=[{"telegram_id": user, "name": name, "max_turn": max_turn(name)} for name, user in PEOPLE.items()],
            agent_command=[sys.executable, "-I", "-S", str(AGENT), "--state", str(directory / "agent")],
            settings={"agent": {"tool_timeout": TOOL_TIMEOUT}},
        )
        stack.push_async_callback(launcher.stop)
        await launcher.start()
        await launcher.wait_ready("kai-bot")
        await api.wait_polling()
        yield Stage(api, launcher)


def max_turn(name: str) -> int:
    return MAX_TURN if name == "u0" else 0


@pytest.fixture(scope="module")
def chats(stage: Stage) -> Iterator[Chat]:
    """A chat for everyone who asks; the first is that of the user with a `max_turn`."""
    mark = str(stage.launcher.directory.parent / "agent")
    return (Chat(stage, mark, name) for name in PEOPLE)


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def begun(request: pytest.FixtureRequest, chats: Iterator[Chat]) -> AsyncIterator[dict[str, asyncio.Task[None]]]:
    limited = next(chats)
    wanted = {
        item.name for item in request.session.items if item.parent and item.parent.name.endswith(Path(__file__).name)
    }
    tasks = {
        name: asyncio.create_task(_run(scenario, limited if "max_turn" in name else next(chats)))
        for name, scenario in MEANWHILE.items()
        if name in wanted
    }
    yield tasks
    for task in tasks.values():
        task.cancel()
    await asyncio.gather(*tasks.values(), return_exceptions=True)


async def _run(scenario: Scenario, chat: Chat) -> None:
    await scenario(chat)


@pytest.fixture
def chat(chats: Iterator[Chat]) -> Chat:
    return next(chats)


# ---- it dies ----


@pytest.mark.parametrize(
    ("way", "told"),
    [
        ("exit 0", "The agent ended in the middle of the turn (exit status 0).\nmy last words"),
        ("exit 3", "The agent ended in the middle of the turn (exit status 3).\nmy last words"),
        ("kill 11", "The agent ended in the middle of the turn (ended by SIGSEGV)."),
        (
            "kill 9",
            "The agent ended in the middle of the turn (ended by SIGKILL). "
            "Somebody or the kernel killed it; `journalctl -k` says whether memory ran out.",
        ),
        ("mute", "The agent closed its output in the middle of the turn."),
    ],
)
async def test_a_death_in_a_turn_is_told_with_its_last_words_and_costs_neither_text_nor_session(
    chat: Chat, way: str, told: str
) -> None:
    chat.say(way)
    assert await chat.told("⚠") == f"so far\n\n⚠ {told}"
    await chat.nothing_left()
    await chat.goes_on(turn=2)
    await chat.end(turns=2, failed=1)


async def test_children_that_ignore_sigterm_in_sessions_of_their_own_go_when_the_agent_dies(chat: Chat) -> None:
    chat.say("children exit 3")
    assert (await chat.told("⚠")).startswith("so far\n\n⚠ The agent ended")
    await chat.nothing_left()
    await chat.goes_on(turn=2)
    await chat.end(turns=2, failed=1)


async def test_children_of_a_good_turn_stay_until_the_supervisor_leaves(chat: Chat) -> None:
    chat.say("children")
    await chat.told("turn 1")
    assert len(chat.processes()) == 4
    await chat.goes_on(turn=2)
    await chat.end(turns=2)


async def test_an_agent_that_cannot_start_is_told_with_its_reason(chat: Chat) -> None:
    chat.say("next exit")
    await chat.told("⚠")
    chat.say("hello")
    said = "⚠ The agent ended while it started (exit status 1).\nno licence for this machine"
    assert await chat.told("⚠") == said
    await chat.goes_on(turn=2)
    await chat.end(turns=3, failed=2)


async def test_an_agent_that_never_begins_is_stopped_at_once(chat: Chat) -> None:
    chat.say("next never")
    await chat.told("⚠")
    chat.say("hello")
    while not chat.processes():
        await asyncio.sleep(0.05)
    said, seconds = await chat.stop()
    assert said == "⏹ Stopped."
    assert seconds < 1.0
    await chat.goes_on(turn=2)
    await chat.end(turns=3, failed=1, interrupted=1)


# ---- it says what it shouldn't ----


async def test_invalid_utf_8_costs_a_character(chat: Chat) -> None:
    chat.say("garble")
    assert await chat.told("fi") == "fi\ufffdne"
    await chat.goes_on(turn=2)
    await chat.end(turns=2)


@pytest.mark.parametrize("way", ["twice", "unasked"])
async def test_a_result_without_a_turn_is_nobodys_answer_but_is_paid(chat: Chat, way: str) -> None:
    chat.say(way)
    assert await chat.told("this is") == "this is turn 1"
    await asyncio.sleep(0.6)
    await chat.goes_on(turn=2)
    await chat.goes_on(turn=3)
    assert not any("ghost" in text for text in chat.stage.shown(chat.user))
    chat.say("/stats")
    assert "Cost: $1.00 of $10.00 in this session" in await chat.told("Session:")
    await chat.end(turns=3)


# ---- it doesn't obey ----


@meanwhile
async def test_an_agent_that_ignores_the_interrupt_is_ended_after_10_seconds(chat: Chat) -> None:
    chat.say("deaf")
    await chat.growing("so far")
    said, seconds = await chat.stop()
    assert said == f"so far\n\n⏹ Stopped. {RESUMES}"
    assert 10 < seconds < 14
    await chat.nothing_left()
    await chat.goes_on(turn=2)
    assert chat.stage.launcher.starts(chat.unit) == 1, "it left by itself, so its supervisor can stay"
    await chat.end(turns=2, interrupted=1)


@meanwhile
async def test_an_agent_that_ignores_interrupt_end_of_input_and_sigterm_is_killed_with_all_its_children(
    chat: Chat,
) -> None:
    chat.say("children immortal")
    await chat.growing("so far")
    said, seconds = await chat.stop(timeout=25)
    assert said == f"so far\n\n⏹ Stopped. {RESUMES}"
    assert 17 < seconds < 20
    await chat.nothing_left()
    await chat.goes_on(turn=2)
    assert chat.stage.launcher.starts(chat.unit) == 2
    await chat.end(turns=2, interrupted=1)


@meanwhile
async def test_a_turn_is_interrupted_at_its_max_turn(chat: Chat) -> None:
    chat.say("silent")
    assert await chat.told("⚠") == f"⚠ The turn took longer than {MAX_TURN} s (max_turn) and was interrupted."
    await chat.goes_on(turn=2)
    await chat.end(turns=2, failed=1)


@meanwhile
async def test_a_tool_call_is_interrupted_at_the_tool_timeout(chat: Chat) -> None:
    chat.say("tool")
    assert await chat.told("⚠") == f"⚠ Bash took longer than {TOOL_TIMEOUT} s (tool_timeout) and was interrupted."
    await chat.goes_on(turn=2)
    await chat.end(turns=2, failed=1)


@meanwhile
async def test_results_without_end_can_be_stopped_too(chat: Chat) -> None:
    chat.say("flood results")
    assert await chat.told("ghost") == "a ghost"
    chat.say("hello")
    await chat.growing()
    before = chat.memory()
    assert (await chat.stop(timeout=30))[0] == f"⏹ Stopped. {RESUMES}"
    assert chat.memory("VmHWM") - before < FLAT
    await chat.nothing_left()


# ---- it floods; these come last, because they take the processor from the others ----


@pytest.mark.parametrize("kind", ["text", "blocks", "tools", "garbage", "endless", "long", "stderr", "requests"])
async def test_a_flood_costs_no_memory_and_is_stopped_at_once(chat: Chat, kind: str) -> None:
    chat.say("hello")
    await chat.told("turn 1")
    before = chat.memory()
    chat.say(f"flood {kind}")
    await chat.growing()
    await asyncio.sleep(1.5)
    _, stopped = await chat.stop()
    grown = chat.memory("VmHWM") - before
    print(f"{kind}: stopped after {stopped:.2f} s, grew by {grown:.1f} MiB")
    assert grown < FLAT
    assert stopped < 1.5
    await chat.goes_on(turn=3)
    await chat.end(turns=3, interrupted=1)
