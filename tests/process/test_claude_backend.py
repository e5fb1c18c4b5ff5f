"""The backend drives the real Claude Code CLI, and a scripted model answers it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from kai.agent.backend import Context, SessionUnknown
from kai.agent.claude import ClaudeBackend
from kai.demo.launcher import python
from tests import claude_cli
from tests.messages_api import MessagesAPI, Reply, Text, Tool, Turn
from tests.process.agents import alive, changed, context, events, running, talk
from tests.process.door import KEY, Door

Start = Callable[[Context], Awaitable[ClaudeBackend]]
pytestmark = pytest.mark.timeout(900)  # the first run fetches the CLI


@pytest.fixture
def api() -> Iterator[MessagesAPI]:
    with MessagesAPI(key=KEY) as standing:
        yield standing


@pytest.fixture
def claude(tmp_path: Path, api: MessagesAPI, monkeypatch: pytest.MonkeyPatch) -> Context:
    for name, value in python()[1].items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("KAI_TEST_MARK", "of the supervisor")
    program = os.fspath(claude_cli.path())
    return context(tmp_path, program, ANTHROPIC_BASE_URL=api.address, ANTHROPIC_API_KEY=KEY)


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    made: list[ClaudeBackend] = []

    async def one(given: Context) -> ClaudeBackend:
        backend = ClaudeBackend()
        made.append(backend)
        await backend.start(given)
        return backend

    yield one
    for backend in made:
        await backend.close()


async def test_an_answer_streams_and_costs(claude: Context, start: Start) -> None:
    backend = await start(claude)
    assert (backend.alive, backend.session, backend.cost_usd) == (True, "", 0.0)
    first = await events(backend, "say: one two three four five six seven")
    assert first[0].kind == "started"
    assert not first[0].resumed
    pieces = [event.text for event in first if event.kind == "text"]
    assert len(pieces) > 1
    assert "".join(pieces) == first[-1].text == "one two three four five six seven"
    second = await talk(backend, "say: again")
    assert (second.outcome, second.session) == ("ok", backend.session)
    assert backend.cost_usd == pytest.approx(first[-1].cost_usd + second.cost_usd)
    assert first[-1].cost_usd > 0 < second.cost_usd


async def test_a_tool_really_runs_and_sees_nothing_of_the_supervisor(claude: Context, start: Start) -> None:
    backend = await start(claude)
    found = await events(backend, "run: pwd; env; ls /proc/self/fd | wc -l")
    command = "pwd; env; ls /proc/self/fd | wc -l"
    tools = [(event.tool, event.summary, event.running) for event in found if event.kind == "tool"]
    assert tools == [("Bash", command, True), ("Bash", command, False)]
    assert str(claude.workspace) in found[-1].text
    assert "of the supervisor" not in found[-1].text
    assert "PYTHON" not in found[-1].text
    assert f"PATH={dict(claude.environment)['HOME']}/.local/bin:/usr/local/bin:/usr/bin:/bin" in found[-1].text


async def test_a_session_goes_on_in_a_new_process_with_new_instructions(claude: Context, start: Start) -> None:
    first = await start(changed(claude, system_prompt="Instructions of the first start."))
    assert "of the first start" in (await talk(first, "echo-system")).text
    before = (await talk(first, "say: remembered")).cost_usd
    commands = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in running(claude.command[0])]
    assert commands
    assert not any(b"Instructions" in command for command in commands)
    await first.close()
    again = changed(claude, session=first.session, system_prompt="Instructions of the second start.")
    second = await start(again)
    found = await events(second, "echo-system")
    assert found[0].resumed
    assert "of the second start" in found[-1].text
    assert "of the first start" not in found[-1].text
    assert second.session == first.session
    assert found[-1].cost_usd < 2 * before
    assert "say: remembered" in (await talk(second, "echo-history")).text


async def test_an_interrupt_ends_the_answer_and_the_same_process_goes_on(claude: Context, start: Start) -> None:
    backend = await start(claude)
    began = time.monotonic()
    stopped = (await events(backend, "slow: 20 " + "word " * 100, stop_at="word"))[-1]
    assert time.monotonic() - began < 5
    assert (stopped.outcome, stopped.error) == ("interrupted", "")
    assert stopped.text.startswith("word")
    assert (await talk(backend, "say: still here")).text == "still here"
    await backend.interrupt()  # nothing runs: nothing happens
    assert (await talk(backend, "say: and here")).text == "and here"


async def test_an_interrupt_in_the_first_instant_counts(claude: Context, start: Start) -> None:
    backend = await start(claude)
    turn = asyncio.create_task(talk(backend, "slow: 20 " + "word " * 100))
    await asyncio.sleep(0)
    await backend.interrupt()
    assert (await asyncio.wait_for(turn, 5)).outcome == "interrupted"


async def test_an_interrupt_ends_a_tool_with_its_processes(claude: Context, start: Start) -> None:
    backend = await start(claude)
    found = await events(backend, "run: echo begin; exec sleep 98765", stop_at="sleep 98765")
    assert found[-1].outcome == "interrupted"
    async with asyncio.timeout(5):
        while running("98765"):
            await asyncio.sleep(0.05)


async def test_a_refused_key_is_told_within_seconds_and_names_the_remedy(claude: Context, start: Start) -> None:
    given = dict(claude.environment) | {"ANTHROPIC_API_KEY": "wrong"}
    backend = await start(changed(claude, environment=tuple(given.items())))
    began = time.monotonic()
    done = await talk(backend, "hello")
    assert (done.outcome, done.text) == ("failed", "")
    assert "refused the key (401)" in done.error
    assert "`sudo kai login alice`" in done.error
    assert time.monotonic() - began < 20


async def test_an_agent_without_any_login_says_so(claude: Context, start: Start) -> None:
    given = {name: value for name, value in claude.environment if name != "ANTHROPIC_API_KEY"}
    backend = await start(changed(claude, environment=tuple(given.items())))
    assert "not logged in to a model: the operator can run `sudo kai login alice`" in (await talk(backend, "hi")).error


async def test_a_session_that_is_gone_is_told_apart(claude: Context, start: Start) -> None:
    for session in ("11111111-1111-4111-8111-111111111111", "nonsense"):
        with pytest.raises(SessionUnknown):
            await start(changed(claude, session=session))


async def test_an_agent_that_is_killed_fails_its_turn_and_its_session_goes_on(claude: Context, start: Start) -> None:
    backend = await start(claude)
    await talk(backend, "say: before")
    turn = asyncio.create_task(talk(backend, "hang"))
    await asyncio.sleep(0.3)
    (pid,) = running(claude.command[0])
    os.kill(pid, signal.SIGKILL)
    done = await turn
    assert done.outcome == "failed"
    assert "ended in the middle of the turn (ended by SIGKILL)" in done.error
    assert not backend.alive
    again = await start(changed(claude, session=backend.session))
    assert "say: before" in (await talk(again, "echo-history")).text


async def test_closing_ends_the_agent_whatever_it_does(claude: Context, start: Start) -> None:
    idle = await start(claude)
    await talk(idle, "say: x")
    (pid,) = running(claude.command[0])
    began = time.monotonic()
    await idle.close()
    assert time.monotonic() - began < 1.5
    assert not alive(pid)
    busy = await start(claude)
    turn = asyncio.create_task(talk(busy, "run: echo begin; exec sleep 87654"))
    async with asyncio.timeout(10):
        while not running("87654"):
            await asyncio.sleep(0.05)
    began = time.monotonic()
    await busy.close()
    assert time.monotonic() - began < 6
    assert (await turn).outcome == "failed"
    assert not running("87654")
    await busy.close()


async def test_a_repository_has_no_say_unless_it_is_trusted(claude: Context, start: Start) -> None:
    settings = claude.workspace / ".claude/settings.json"
    settings.parent.mkdir()
    mark = claude.workspace / "ran"
    hook = {"hooks": [{"type": "command", "command": f"touch {mark}"}]}
    settings.write_text(
        json.dumps({"hooks": {"UserPromptSubmit": [hook]}, "env": {"ANTHROPIC_BASE_URL": "http://127.0.0.1:9"}})
    )
    backend = await start(claude)
    assert (await talk(backend, "say: safe")).text == "safe"
    assert not mark.exists()
    await backend.close()
    trusting = await start(
        changed(claude, trust_settings=True, environment=(*claude.environment, ("CLAUDE_CODE_MAX_RETRIES", "0")))
    )
    await talk(trusting, "say: trusted")
    assert mark.exists()


@pytest.mark.parametrize("busy", ["talking", "in a tool"])
async def test_a_turn_of_the_agents_own_is_not_taken_for_the_users(
    claude: Context, start: Start, api: MessagesAPI, busy: str
) -> None:
    def rule(turn: Turn) -> Reply | None:
        last = json.dumps(turn.body["messages"][-1])
        if turn.user == "behind" and turn.tool_result is None:
            return Tool("Bash", {"command": "sleep 1", "run_in_background": True, "description": "x"})
        if "say: mine" in last:
            return Text("mine")
        if "SYSTEM NOTIFICATION" in last and busy == "talking":
            return Text("about the command " * 8, seconds=2)
        if "SYSTEM NOTIFICATION" in last:
            return Tool("Bash", {"command": "echo begin; sleep 2", "description": "y"})
        return None

    api.rules.append(rule)
    backend = await start(claude)
    await talk(backend, "behind")
    async with asyncio.timeout(10):
        while "SYSTEM NOTIFICATION" not in json.dumps(api.requests[-1].body):
            await asyncio.sleep(0.05)
    mine = await events(backend, "say: mine")
    assert (mine[0].kind, mine[-1].outcome, mine[-1].text) == ("started", "ok", "mine")
    assert (await talk(backend, "say: and this")).text == "and this"


# ---- through kai-proxy's model door ----


@pytest.fixture
async def door(tmp_path: Path, api: MessagesAPI) -> AsyncIterator[Door]:
    made = Door(tmp_path / "proxy")
    made.directory.mkdir()
    made.configure(api.address)
    made.listen("--one-uid")
    yield made
    await made.service.close()


def through(door: Door, claude: Context) -> Context:
    """The same agent without a key, at the door."""
    login = ("ANTHROPIC_BASE_URL", "ANTHROPIC_API_KEY")
    kept = tuple((name, value) for name, value in claude.environment if name not in login)
    return changed(claude, environment=kept, model_door=os.fspath(door.socket))


async def test_the_model_sees_the_true_key_and_the_agent_never_does(
    claude: Context, start: Start, door: Door, api: MessagesAPI
) -> None:
    backend = await start(through(door, claude))
    found = await events(backend, "run: env")
    assert found[-1].outcome == "ok"
    assert "ANTHROPIC_API_KEY=dummy" in found[-1].text
    assert KEY not in found[-1].text
    asked = [request for request in api.requests if request.path.startswith("/v1/messages")]
    assert len(asked) >= 2
    assert {request.headers["x-api-key"] for request in asked} == {KEY}
    log = await door.logged("POST /v1/messages -> 200")
    assert KEY not in log


async def test_a_bad_key_of_the_door_names_where_it_is(
    claude: Context, start: Start, door: Door, api: MessagesAPI
) -> None:
    door.configure(api.address, key="not-the-key")
    backend = await start(through(door, claude))
    began = time.monotonic()
    done = await talk(backend, "hello")
    assert time.monotonic() - began < 5  # the door says that trying again is useless
    assert "refused the key (401)" in done.error
    assert "/etc/credstore/kai-model-key" in done.error


async def test_a_door_without_a_key_says_so_at_once(claude: Context, start: Start, door: Door) -> None:
    (door.directory / "credentials/kai-model-key").unlink()
    backend = await start(through(door, claude))
    began = time.monotonic()
    done = await talk(backend, "hello")
    assert done.outcome == "failed"
    assert "/etc/credstore/kai-model-key" in done.error
    assert time.monotonic() - began < 15


async def test_the_accounts_own_key_goes_before_the_door(
    claude: Context, start: Start, door: Door, api: MessagesAPI
) -> None:
    given = through(door, claude)
    own = Path(dict(given.environment)["HOME"]) / ".config/kai/model-key"
    own.parent.mkdir(parents=True)
    own.write_text(f"{KEY}\n")
    own.chmod(0o600)
    given = changed(given, environment=(*given.environment, ("ANTHROPIC_BASE_URL", api.address)))
    assert (await talk(await start(given), "say: mine")).text == "mine"
    assert not door.log.exists() or "POST" not in door.log.read_text()


async def test_a_proxy_that_dies_in_the_middle_of_an_answer_loses_nothing(
    claude: Context, start: Start, door: Door
) -> None:
    backend = await start(through(door, claude))
    turn = asyncio.create_task(talk(backend, "slow: 3 one two three four five six"))
    async with asyncio.timeout(10):
        while not door.service.pid:
            await asyncio.sleep(0.05)
    await asyncio.sleep(1.5)
    os.kill(door.service.pid, signal.SIGKILL)
    done = await turn
    assert done.outcome == "ok"
    assert done.text.endswith("one two three four five six")  # what was shown before stays above it
