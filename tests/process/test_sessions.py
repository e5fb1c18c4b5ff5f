"""One conversation that nothing interrupts by accident: what becomes of the agent's session and of what it cost."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from kai.demo.launcher import offline_agent
from kai.interfaces import Retire, Set, SwitchWorkspace

from .chats import Begun, Chat, Chats, Together, open_chats

pytestmark = pytest.mark.asyncio(loop_scope="module")
IDLE = 2
FRESH = "A fresh session begins with your next message."
SAVE = "[Kai] This session ends now"
TURN = 0.0001
"""US dollars of a turn of the offline agent that names no price."""
together = Together()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chats(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Chats]:
    directory = tmp_path_factory.mktemp("sessions")
    agent = offline_agent(directory / "agent", runs=directory / "runs")
    named = {"nomad": {"workspace_base": str(directory / "base")}}
    async with open_chats(directory, agent, named=named, settings={"agent": {"idle_timeout": IDLE}}) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def begun(chats: Chats, request: pytest.FixtureRequest) -> AsyncIterator[Begun]:
    async with together.begin(chats, request) as tasks:
        yield tasks


def prompts(chat: Chat, session: str) -> list[str]:
    """What the agent was really asked in this session, of all that it took up."""
    runs = (chat.launcher.directory.parent / "runs").read_text().splitlines()
    return [row["text"] for row in map(json.loads, runs) if row["session"] == session]


def agents_file(chat: Chat, session: str) -> Path:
    return Path(chat.mark) / f"{session}.jsonl"


async def remembers(chat: Chat, session: str) -> None:
    """The next message is in this session, and the agent knows what was said first."""
    assert "1. say remember-me" in await chat.ask("history", "1. ")
    assert (await chat.state()).session == session


async def begin(chat: Chat) -> str:
    """A conversation; its session."""
    await chat.ask("say remember-me", "remember-me")
    return (await chat.state()).session


# ---- what a session survives ----


async def _idle(chat: Chat) -> None:
    await chat.launcher.wait_exit(chat.unit, within=30)
    await chat.nothing_left()


async def _agent_killed(chat: Chat) -> None:
    (pid,) = chat.processes()
    os.kill(pid, signal.SIGKILL)
    await asyncio.sleep(0.5)  # a message in the very moment of the death would be told of it


async def _model(chat: Chat) -> None:
    await chat.call(Set("model", "offline-large"))
    assert "model offline-large" in await chat.ask("id", "model ")
    await chat.call(Set("model", ""))


async def _stopped(chat: Chat) -> None:
    chat.say("slow 100")
    await chat.growing("word2")
    said, seconds = await chat.stop()
    assert "word2" in said
    assert seconds < 5


async def _died(chat: Chat) -> None:
    assert "told to `die`" in await chat.ask("die", "⚠")


async def _drained(chat: Chat) -> None:
    chat.say("slow 10")
    await chat.growing("word2")
    chat.launcher.kill(chat.unit, signal.SIGTERM)
    assert "⏹" not in await chat.told("word10")
    await chat.launcher.wait_exit(chat.unit)


async def _supervisor_killed(chat: Chat) -> None:
    chat.say("slow 100")
    await chat.growing("word2")
    chat.launcher.kill(chat.unit, signal.SIGKILL)
    said = await chat.growing("cut off")
    assert "word1 word2" in (said.text or ""), "what was shown stays"


async def _retired(chat: Chat) -> None:
    chat.say("slow 10")
    await chat.growing("word2")
    await chat.call(Retire())
    assert (await chat.state()).state == "draining"
    assert "⏹" not in await chat.told("word10")
    await chat.launcher.wait_exit(chat.unit)


@together.each(
    ("idleness", _idle, 2),
    ("a restart", Chat.leave, 2),
    ("a killed supervisor", lambda chat: chat.leave(signal.SIGKILL), 2),
    ("a killed agent", _agent_killed, 1),
    ("another model", _model, 1),
    ("a stop", _stopped, 1),
    ("a death in a turn", _died, 2),
    ("a restart in a turn", _drained, 2),
    ("a supervisor killed in a turn", _supervisor_killed, 2),
    ("an upgrade in a turn", _retired, 2),
)
async def test_a_session_goes_on_after(
    chats: Chats, what: str, event: Callable[[Chat], Awaitable[None]], starts: int
) -> None:
    chat = chats.fresh()
    session = await begin(chat)
    await event(chat)
    await remembers(chat, session)
    assert chat.launcher.starts(chat.unit) == starts, what
    await chat.leave()
    assert chat.books("SELECT count(*) FROM turns WHERE state = 'running'") == [(0,)]


# ---- where a session ends ----


@together
async def test_a_session_that_the_agent_lost_is_told_and_what_it_cost_stays(chats: Chats) -> None:
    chat = chats.fresh()
    await chat.ask("cost 0.5", "costs")
    before = await chat.state()
    await chat.leave()
    agents_file(chat, before.session).unlink()
    answer = await chat.ask("say hello")
    assert answer == "(The agent no longer knows the session before this; a fresh one begins here.)\n\nhello"
    after = await chat.state()
    assert after.session != before.session
    assert after.cost_usd == pytest.approx(0.5 + TURN)
    assert after.turns == 2
    assert "say hello" in await chat.ask("history", "1. ")


@together
async def test_clear_begins_a_new_conversation_that_is_followed_and_paid_with_the_one_before(chats: Chats) -> None:
    chat = chats.fresh()
    session = await begin(chat)
    await chat.ask("/clear")
    cleared = (await chat.state()).session
    assert cleared != session
    await chat.leave()
    assert "remember-me" not in await chat.ask("history", "1. history")
    state = await chat.state()
    assert state.session == cleared
    assert state.turns == 3
    assert state.cost_usd == pytest.approx(2 * TURN), "the agent's own sum began anew"
    assert prompts(chat, cleared)[-1] == "history"


@together
async def test_new_gives_the_agent_one_turn_for_its_memory_that_the_day_pays(chats: Chats) -> None:
    chat = chats.fresh()
    session = await begin(chat)
    assert await chat.ask("/new", FRESH) == f"Memory is saved. {FRESH}"
    first, save = prompts(chat, session)
    assert first == "say remember-me"
    assert save.startswith(SAVE)
    assert f"session {session}" in (chat.base / "memory/MEMORY.md").read_text()
    state = await chat.state()
    assert (state.session, state.turns, state.cost_usd) == ("", 0, 0.0)
    assert state.cost_today_usd == pytest.approx(2 * TURN)
    assert "remember-me" not in await chat.ask("history", "1. history")
    assert SAVE not in chat.stage.shown(chat.user)[-1]


@together
async def test_new_asks_the_agent_nothing_where_nothing_was_said(chats: Chats) -> None:
    chat = chats.fresh()
    assert await chat.ask("/new", FRESH) == FRESH
    session = await begin(chat)
    await chat.ask("/new", FRESH)
    assert await chat.ask("/new", FRESH) == FRESH
    assert len(prompts(chat, session)) == 2
    assert not chat.processes()


@together
async def test_new_ends_the_session_though_the_agent_cannot_start(chats: Chats) -> None:
    chat = chats["nomad"]
    shop = chat.launcher.directory.parent / "base/shop"
    shop.mkdir(parents=True)
    await chat.call(SwitchWorkspace("shop"))
    session = await begin(chat)
    await chat.leave()
    shop.rmdir()
    said = await chat.ask("/new", FRESH)
    assert said.startswith(
        f"{FRESH} The agent could not save its memory: The agent can't be started: workspace {shop}:"
    )
    shop.mkdir()
    assert "remember-me" not in await chat.ask("history", "1. history")
    assert (await chat.state()).session != session
    assert len(prompts(chat, session)) == 1


@together
async def test_a_supervisor_that_ends_while_memory_is_saved_leaves_a_session_that_can_be_ended(chats: Chats) -> None:
    chat = chats.fresh()
    session = await begin(chat)
    (pid,) = chat.processes()
    os.kill(pid, signal.SIGSTOP)
    chat.say("/new")
    await chat.growing("memory is being saved")
    chat.launcher.kill(chat.unit, signal.SIGKILL)
    assert await chat.told(FRESH, timeout=40) == f"Memory is saved. {FRESH}"
    await chat.ask("say hello", "hello")
    assert (await chat.state()).session != session


# ---- costs ----


@together
async def test_costs_are_right_whatever_ends_in_between(chats: Chats) -> None:
    chat = chats.fresh()
    paid = 0.0

    async def pay(dollars: float) -> None:
        nonlocal paid
        await chat.ask(f"cost {dollars}", f"costs ${dollars}")
        paid += dollars
        state = await chat.state()
        assert state.cost_usd == pytest.approx(paid)
        assert state.cost_today_usd == state.cost_month_usd == pytest.approx(paid)

    await pay(0.5)
    await pay(0.25)
    await chat.leave()
    await pay(0.125)
    await chat.leave(signal.SIGKILL)
    await pay(0.0625)
    await _agent_killed(chat)
    await pay(1.5)
    await _stopped(chat)
    paid += TURN
    await chat.call(Set("model", "offline-large"))
    await pay(0.75)
    await chat.launcher.wait_exit(chat.unit, within=30)
    await pay(0.3)
    await chat.ask("/new", FRESH)
    state = await chat.state()
    assert state.cost_usd == 0.0
    assert state.cost_today_usd == pytest.approx(paid + TURN)
    await chat.leave()
    ((turns, usd),) = chat.books("SELECT turns, usd FROM costs")
    told = chat.books("SELECT sum(json_extract(answer, '$.cost_usd')) FROM turns")
    assert turns == 8
    assert usd == pytest.approx(paid + TURN)
    assert told == [(pytest.approx(paid),)]


@together
async def test_the_sums_of_a_day_and_a_month_begin_anew_and_the_sessions_does_not(chats: Chats) -> None:
    chat = chats.fresh()
    await chat.ask("cost 0.5", "costs")
    await chat.leave()
    chat.books("UPDATE costs SET day = '2020-01-31'")
    state = await chat.state()
    assert state.cost_usd == pytest.approx(0.5)
    assert state.cost_today_usd == state.cost_month_usd == 0.0
    await chat.ask("cost 0.25", "costs")
    state = await chat.state()
    assert state.cost_usd == pytest.approx(0.75)
    assert state.cost_today_usd == state.cost_month_usd == pytest.approx(0.25)
