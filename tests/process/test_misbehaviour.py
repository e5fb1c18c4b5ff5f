"""Agents that misbehave, in the whole set: the user knows what happened, the next message works, nothing is left."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from .chats import Begun, Chat, Chats, Together, open_chats
from .misbehaving import COST

pytestmark = pytest.mark.asyncio(loop_scope="module")
AGENT = Path(__file__).with_name("misbehaving.py")
RESUMES = "It did not obey, so its process was ended; your next message resumes the session."
MAX_TURN, TOOL_TIMEOUT = 4, 2
FLAT = 24
"""MiB by which a supervisor may grow, at its highest, while its agent floods it."""
MOST_MEMORY = 80
"""MiB that a supervisor ever has, whatever its agent does."""
together = Together()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chats(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Chats]:
    directory = tmp_path_factory.mktemp("misbehaviour")
    agent = [sys.executable, "-I", "-S", str(AGENT), "--state", str(directory / "agent")]
    named: dict[str, dict[str, Any]] = {"limited": {"max_turn": MAX_TURN}, "asked": {"approvals": "ask"}}
    settings = {"agent": {"tool_timeout": TOOL_TIMEOUT}}
    async with open_chats(directory, agent, named=named, settings=settings) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def begun(chats: Chats, request: pytest.FixtureRequest) -> AsyncIterator[Begun]:
    async with together.begin(chats, request) as tasks:
        yield tasks


async def goes_on(chat: Chat, turn: int) -> None:
    """The next message is answered, in the same session."""
    assert await chat.ask("hello", "this is") == f"this is turn {turn}"


async def end(chat: Chat, *, turns: int, failed: int = 0, interrupted: int = 0) -> None:
    """The supervisor stayed small; with it goes every process, and its books are in order."""
    if chat.launcher.pid(chat.unit):
        assert chat.memory("VmHWM") < MOST_MEMORY
    await chat.leave()
    states = [state for (state,) in chat.books("SELECT state FROM turns")]
    ((counted, cost),) = chat.books("SELECT turns, cost_usd FROM sessions")
    ((spent,),) = chat.books("SELECT sum(usd) FROM costs")
    assert len(states) == counted == turns
    assert states.count("running") == 0
    assert (states.count("failed"), states.count("interrupted")) == (failed, interrupted)
    assert spent == pytest.approx(cost)


# ---- it dies ----


@together.each(
    ("exit 0", "The agent ended in the middle of the turn (exit status 0).\nmy last words"),
    ("exit 3", "The agent ended in the middle of the turn (exit status 3).\nmy last words"),
    ("kill 11", "The agent ended in the middle of the turn (ended by SIGSEGV)."),
    (
        "kill 9",
        "The agent ended in the middle of the turn (ended by SIGKILL). "
        "Somebody or the kernel killed it; `journalctl -k` says whether memory ran out.",
    ),
    ("children exit 3", "The agent ended in the middle of the turn (exit status 3).\nmy last words"),
    ("mute", "The agent ended in the middle of the turn (it still runs, but its output is closed)."),
)
async def test_a_death_in_a_turn_is_told_and_costs_neither_text_nor_session(chats: Chats, way: str, told: str) -> None:
    chat = chats.fresh()
    assert await chat.ask(way, "⚠") == f"so far\n\n⚠ {told}"
    await chat.nothing_left()
    await goes_on(chat, turn=2)
    await end(chat, turns=2, failed=1)


@together
async def test_children_that_ignore_sigterm_stay_after_a_good_turn_and_go_with_the_supervisor(chats: Chats) -> None:
    chat = chats.fresh()
    await chat.ask("children", "turn 1")
    await chat.has_processes(4)
    await goes_on(chat, turn=2)
    await end(chat, turns=2)


@together
async def test_an_agent_that_cannot_start_is_told_with_its_reason(chats: Chats) -> None:
    chat = chats.fresh()
    await chat.ask("next exit", "⚠")
    said = await chat.ask("hello", "⚠")
    assert said == "⚠ The agent ended while it started (exit status 1).\nno licence for this machine"
    await goes_on(chat, turn=2)
    await end(chat, turns=3, failed=2)


@together
async def test_an_agent_that_never_begins_is_stopped_at_once(chats: Chats) -> None:
    chat = chats.fresh()
    await chat.ask("next never", "⚠")
    await chat.leave()
    chat.say("hello")
    while not chat.processes():
        await asyncio.sleep(0.05)
    said, seconds = await chat.stop()
    assert said == "⏹ Stopped."
    assert seconds < 5
    await goes_on(chat, turn=2)
    await end(chat, turns=3, failed=1, interrupted=1)


# ---- it says what it shouldn't ----


@together
async def test_invalid_utf_8_costs_a_character(chats: Chats) -> None:
    chat = chats.fresh()
    assert await chat.ask("garble") == "fi\ufffdne"
    await goes_on(chat, turn=2)
    await end(chat, turns=2)


@together.each(("twice",), ("unasked",))
async def test_a_result_without_a_turn_is_nobodys_answer_but_is_paid(chats: Chats, way: str) -> None:
    chat = chats.fresh()
    assert await chat.ask(way, "this is") == "this is turn 1"
    await asyncio.sleep(1)
    await goes_on(chat, turn=2)
    await goes_on(chat, turn=3)
    assert not any("ghost" in text for text in chat.stage.shown(chat.user))
    assert (await chat.state()).cost_usd == pytest.approx(4 * COST)
    await end(chat, turns=3)


@together
async def test_what_the_agent_did_after_its_last_turn_is_paid_too(chats: Chats) -> None:
    chat = chats.fresh()
    assert await chat.ask("unasked") == "this is turn 1"
    await asyncio.sleep(1)
    await chat.leave()
    assert (await chat.state()).cost_usd == pytest.approx(2 * COST)
    await end(chat, turns=1)


# ---- it doesn't obey ----


@together
async def test_an_agent_that_ignores_the_interrupt_is_ended_after_10_seconds(chats: Chats) -> None:
    chat = chats.fresh()
    chat.say("deaf")
    await chat.growing("so far")
    said, seconds = await chat.stop()
    assert said == f"so far\n\n⏹ Stopped. {RESUMES}"
    assert 10 < seconds < 20
    await chat.nothing_left()
    await goes_on(chat, turn=2)
    assert chat.launcher.starts(chat.unit) == 1, "the agent left by itself, so its supervisor can stay"
    await end(chat, turns=2, interrupted=1)


@together
async def test_an_agent_that_ignores_interrupt_end_of_input_and_sigterm_is_killed_with_all_its_children(
    chats: Chats,
) -> None:
    chat = chats.fresh()
    chat.say("children immortal")
    await chat.growing("so far")
    await chat.has_processes(4)
    said, seconds = await chat.stop()
    assert said == f"so far\n\n⏹ Stopped. {RESUMES}"
    assert 17 < seconds < 30
    await chat.nothing_left()
    await goes_on(chat, turn=2)
    assert chat.launcher.starts(chat.unit) == 2
    await end(chat, turns=2, interrupted=1)


@together
async def test_a_turn_is_interrupted_at_its_max_turn(chats: Chats) -> None:
    chat = chats["limited"]
    said = await chat.ask("silent", "⚠")
    assert said == f"⚠ The turn took longer than {MAX_TURN} s (max_turn) and was interrupted."
    await goes_on(chat, turn=2)
    await end(chat, turns=2, failed=1)


@together
async def test_a_tool_call_is_interrupted_at_the_tool_timeout(chats: Chats) -> None:
    chat = chats.fresh()
    said = await chat.ask("tool", "⚠")
    assert said == f"⚠ Bash took longer than {TOOL_TIMEOUT} s (tool_timeout) and was interrupted."
    await goes_on(chat, turn=2)
    await end(chat, turns=2, failed=1)


# ---- it floods; these come last and alone, because they take the processor from the others ----


@pytest.mark.parametrize(
    "kind", ["text", "blocks", "tools", "garbage", "endless", "long", "stderr", "requests", "questions"]
)
async def test_a_flood_costs_no_memory_and_is_stopped_at_once(chats: Chats, kind: str) -> None:
    chat = chats["asked"] if kind == "questions" else chats.fresh()
    await chat.ask("hello", "turn 1")
    before = chat.memory()
    chat.say(f"flood {kind}")
    await chat.growing()
    await asyncio.sleep(1)
    _, stopped = await chat.stop()
    grown = chat.memory("VmHWM") - before
    print(f"{kind}: stopped after {stopped:.2f} s, grew by {grown:.1f} MiB")
    assert grown < FLAT
    assert stopped < 1.5
    await goes_on(chat, turn=3)
    await end(chat, turns=3, interrupted=1)
