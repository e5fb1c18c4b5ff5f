"""The budget counts since /new: told at 80 % and at the cap, enforced, raised in the same session up to the ceiling."""

from __future__ import annotations

import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from kai.demo.launcher import offline_agent
from kai.interfaces import Set, SwitchWorkspace
from kai.lib.varlink import InvalidParameter

from .chats import Begun, Chat, Chats, Together, open_chats

pytestmark = pytest.mark.asyncio(loop_scope="module")
BUDGET, CEILING = 1.0, 4.0
FRESH = "/new starts a fresh session with a full one."
RAISE = f"/settings budget 2 goes on in this one (up to $4.00); {FRESH}"
SPENT = f"This session has used its budget: $1.00 of $1.00. {RAISE}"
together = Together()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chats(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Chats]:
    directory = tmp_path_factory.mktemp("budget")
    agent = offline_agent(directory / "agent", runs=directory / "runs")
    base = directory / "base"
    for name in ("dear", "other"):
        (base / name).mkdir(parents=True)
    (directory / "set/etc").mkdir(parents=True)
    workspaces = {"workspaces": {str(base / "dear"): {"budget": 0.5}}}
    (directory / "set/etc/workspaces.yaml").write_text(json.dumps(workspaces))
    users = [f"u{n}" for n in range(12)]
    named = {name: {"max_budget": CEILING, "workspace_base": str(base)} for name in users}
    settings = {"budget": BUDGET, "agent": {"idle_timeout": 60}}
    async with open_chats(directory, agent, count=0, named=named, settings=settings) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def begun(chats: Chats, request: pytest.FixtureRequest) -> AsyncIterator[Begun]:
    async with together.begin(chats, request) as tasks:
        yield tasks


async def pay(chat: Chat, dollars: float) -> str:
    """A turn that costs so much; what is told under its answer."""
    answer = await chat.ask(f"cost {dollars}")
    head = f"This turn costs ${dollars}."
    assert answer.startswith(head), answer
    return answer.removeprefix(head).strip().removeprefix("⚠ ")


def prompts(chat: Chat, session: str) -> list[str]:
    """What the agent was really asked in this session."""
    runs = (chat.launcher.directory.parent / "runs").read_text().splitlines()
    return [row["text"] for row in map(json.loads, runs) if row["session"] == session]


@together
async def test_four_fifths_are_told_once_even_by_the_next_supervisor(chats: Chats) -> None:
    chat = chats["u0"]
    assert await pay(chat, 0.5) == ""
    assert await pay(chat, 0.35) == "This session has used 85% of its budget: $0.85 of $1.00."
    assert await pay(chat, 0.05) == ""
    await chat.leave(signal.SIGKILL)
    assert await pay(chat, 0.05) == ""
    await chat.call(Set("budget", "1.1"))
    assert await pay(chat, 0.05) == "This session has used 91% of its budget: $1.00 of $1.10."


@together
async def test_the_cap_is_told_under_the_answer_and_nothing_runs_until_the_budget_is_raised(chats: Chats) -> None:
    chat = chats["u1"]
    assert await pay(chat, 0.5) == ""
    session = (await chat.state()).session
    assert await pay(chat, 0.5) == SPENT
    assert await chat.ask("say more") == f"⚠ {SPENT}"
    await chat.leave()
    assert await chat.ask("say more again") == f"⚠ {SPENT}"
    assert prompts(chat, session) == ["cost 0.5", "cost 0.5"]
    state = await chat.state()
    assert state.cost_usd == pytest.approx(1.0)
    assert state.budget_usd == 1.0
    assert "budget: 2.00 USD (your choice" in await chat.ask("/settings budget 2", "budget")
    assert await chat.ask("say on we go") == "on we go"
    assert (await chat.state()).session == session
    assert prompts(chat, session)[2:] == ["say on we go"]


@together
async def test_no_choice_goes_past_the_ceiling_and_at_it_only_the_operator_helps(chats: Chats) -> None:
    chat = chats["u2"]
    with pytest.raises(InvalidParameter, match=r"at most your ceiling of \$4\.00"):
        await chat.call(Set("budget", "4.01"))
    await chat.call(Set("budget", "4"))
    assert await pay(chat, 3.0) == ""
    told = await pay(chat, 1.0)
    assert told == (
        f"This session has used its budget: $4.00 of $4.00. {FRESH} "
        "More than $4.00 is the operator's to give (max_budget in users.yaml)."
    )


@together
async def test_a_ceiling_that_is_lowered_later_holds_for_a_choice_made_before(chats: Chats) -> None:
    chat = chats["u3"]
    await chat.call(Set("budget", "4"))
    assert await pay(chat, 0.9) == ""
    users = chat.launcher.directory / "etc/users.yaml"
    rows = json.loads(users.read_text())["users"]
    lowered = [{**row, "max_budget": 1.0} if row["name"] == chat.name else row for row in rows]
    users.write_text(json.dumps({"users": lowered}))
    await chat.leave()
    assert (await chat.state()).budget_usd == 1.0
    assert "operator's to give" in await pay(chat, 0.2)


@together
async def test_the_agent_itself_is_told_what_is_left_and_stops_the_turn_that_spends_more(chats: Chats) -> None:
    chat = chats["u4"]
    assert await pay(chat, 0.3) == ""
    await chat.leave()
    assert await pay(chat, 0.1) == ""
    (pid,) = chat.processes()
    words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    assert float(words[words.index("--max-budget-usd") + 1]) == pytest.approx(0.7)
    assert await pay(chat, 5.0) == f"This session has used its budget: $5.40 of $1.00. {RAISE}"
    state = await chat.state()
    assert state.cost_usd == pytest.approx(5.4)
    assert state.turns == 3
    assert "$5.40 of $1.00" in await chat.ask("say no more")


@together
async def test_new_gives_a_full_budget_and_asks_nothing_of_an_agent_that_has_none(chats: Chats) -> None:
    chat = chats["u5"]
    assert await pay(chat, 1.0) == SPENT
    session = (await chat.state()).session
    said = await chat.ask("/new", "fresh session")
    assert said == (
        "A fresh session begins with your next message. "
        "Its budget was used up, so the agent had no turn to save its memory."
    )
    assert prompts(chat, session) == ["cost 1.0"]
    assert await pay(chat, 0.5) == ""
    state = await chat.state()
    assert state.cost_usd == pytest.approx(0.5)
    assert state.cost_today_usd == pytest.approx(1.5)


@together
async def test_a_workspaces_own_budget_holds_there_only(chats: Chats) -> None:
    chat = chats["u6"]
    assert await pay(chat, 0.6) == ""
    await chat.call(SwitchWorkspace("dear"))
    assert await pay(chat, 0.45) == "This session has used 90% of its budget: $0.45 of $0.50."
    told = await pay(chat, 0.05)
    assert told.startswith("This session has used its budget: $0.50 of $0.50. /workspace set budget 1 goes on")
    await chat.call(SwitchWorkspace("home"))
    assert await pay(chat, 0.1) == ""
    await chat.call(SwitchWorkspace("other"))
    assert await pay(chat, 0.7) == ""
    state = await chat.state()
    assert state.cost_usd == pytest.approx(0.7)
    assert state.budget_usd == 1.0
    assert state.cost_today_usd == pytest.approx(0.6 + 0.45 + 0.05 + 0.1 + 0.7)


@together
async def test_what_is_told_at_the_cap_of_a_workspace_is_what_goes_on_there(chats: Chats) -> None:
    chat = chats["u7"]
    await chat.call(SwitchWorkspace("dear"))
    told = await pay(chat, 0.5)
    command = told.partition("/")[2].partition(" goes on")[0]
    await chat.ask(f"/{command}", "budget")
    assert await pay(chat, 0.1) == ""
