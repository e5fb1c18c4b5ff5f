"""What is Claude Code's own, with the real CLI and a scripted model; what all promise is in backend_contract.py."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from kai.agent.backend import Context
from kai.agent.claude import ClaudeBackend
from kai.demo.launcher import python
from kai.interfaces import Event, Part
from tests import claude_cli
from tests.messages_api import MessagesAPI, Reply, Text, Tool, Tools, Turn
from tests.process.agents import changed, context, events, running, talk
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


async def test_closing_ends_a_tool_with_its_processes(claude: Context, start: Start) -> None:
    backend = await start(claude)
    turn = asyncio.create_task(talk(backend, "run: echo begin; exec sleep 87654"))
    async with asyncio.timeout(10):
        while not running("87654"):
            await asyncio.sleep(0.05)
    began = time.monotonic()
    await backend.close()
    assert time.monotonic() - began < 6
    assert (await turn).outcome == "failed"
    assert not running("87654")


# ---- approvals ----


def scripted(api: MessagesAPI, **replies: Reply) -> None:
    """What the model calls when the user's text is that name."""

    def rule(turn: Turn) -> Reply | None:
        return replies.get(turn.user) if turn.tool_result is None else None

    api.rules.append(rule)


async def asked(backend: ClaudeBackend, prompt: str, *, allow: bool = False, remember: bool = False) -> list[Event]:
    """The questions of one turn, each answered at once; then its end."""
    found = []
    async for event in backend.turn([Part(kind="text", text=prompt)]):
        if event.kind == "approval" and event.running:
            await backend.answer(event.approval, allow=allow, remember=remember, message="not today")
        if event.kind in ("approval", "done"):
            found.append(event)
    return found


async def test_an_edit_is_shown_as_a_difference_and_a_notebook_as_its_cell(
    claude: Context, start: Start, api: MessagesAPI
) -> None:
    poem, book = claude.workspace / "poem", claude.workspace / "book.ipynb"
    poem.write_text("roses\nare\nred\n")
    cell: dict[str, object] = {
        "cell_type": "code",
        "id": "c1",
        "source": "x",
        "metadata": {},
        "outputs": [],
        "execution_count": None,
    }
    book.write_text(json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    edit = {"file_path": str(poem), "old_string": "are\nred", "new_string": "are\nblue", "replace_all": True}
    scripted(
        api,
        look=Tools((Tool("Read", {"file_path": str(poem)}), Tool("Read", {"file_path": str(book)}))),
        edit=Tool("Edit", edit),
        cell=Tool("NotebookEdit", {"notebook_path": str(book), "cell_id": "c1", "new_source": "y"}),
    )
    backend = await start(changed(claude, ask=True))
    assert (await asked(backend, "look"))[0].kind == "done"
    question, _ = await asked(backend, "edit", allow=True)
    assert question.detail.splitlines() == [str(poem), " are", "-red", "+blue", "replace_all: true"]
    assert poem.read_text() == "roses\nare\nblue\n"
    question, _ = await asked(backend, "cell")
    assert question.detail.splitlines()[:2] == [str(book), "+y"]
    assert "cell_id: c1" in question.detail


async def test_a_directory_or_a_host_is_remembered_as_the_cli_proposes_it(
    claude: Context, start: Start, api: MessagesAPI
) -> None:
    scripted(
        api,
        passwd=Tool("Read", {"file_path": "/etc/passwd"}),
        hosts=Tool("Read", {"file_path": "/etc/hosts"}),
        root=Tool("Read", {"file_path": "/var/lib/dpkg/status"}),
        web=Tool("WebFetch", {"url": "http://127.0.0.1:9/", "prompt": "p"}),
        search=Tool("WebSearch", {"query": "kai"}),
    )
    given = changed(claude, ask=True)
    backend = await start(given)
    question, _ = await asked(backend, "passwd", allow=True, remember=True)
    assert question.patterns == ["Read(//etc/**)"]
    assert [event.kind for event in await asked(backend, "hosts")] == ["done"]
    assert (await asked(backend, "web"))[0].patterns == ["WebFetch(domain:127.0.0.1)"]
    assert (await asked(backend, "search"))[0].patterns == ["WebSearch: kai"]  # `WebSearch` would be any search
    again = await start(changed(given, allowed=tuple(question.patterns)))
    assert [event.kind for event in await asked(again, "hosts")] == ["done"]
    assert len(await asked(again, "root")) == 2


async def test_characters_that_hide_are_shown_and_never_part_of_a_rule(claude: Context, start: Start) -> None:
    backend = await start(changed(claude, ask=True))
    question, _ = await asked(backend, "run: touch a\u202etxt.exe")
    assert question.detail == "touch a⟨U+202E⟩txt.exe"
    (pattern,) = question.patterns
    assert pattern.startswith("Bash: touch a⟨U+202E⟩txt.exe #")


async def test_tools_called_at_once_are_each_asked_for_and_taken_back_together(
    claude: Context, start: Start, api: MessagesAPI
) -> None:
    files = [Tool("Read", {"file_path": f"/etc/{name}"}) for name in ("passwd", "group", "hosts")]
    shells = [Tool("Bash", {"command": f"touch {name}", "description": "d"}) for name in ("a", "b")]
    scripted(api, all=Tools((*files, *shells)))
    backend = await start(changed(claude, ask=True))
    *questions, done = await asked(backend, "all", allow=True)
    assert [question.tool for question in questions] == ["Read", "Read", "Read", "Bash", "Bash"]
    assert (len({question.approval for question in questions}), done.outcome) == (5, "ok")
    open_now: set[str] = set()
    async for event in backend.turn([Part(kind="text", text="all")]):
        if event.kind == "approval" and event.running:
            open_now.add(event.approval)
            asyncio.get_running_loop().call_later(0.3, lambda: asyncio.ensure_future(backend.interrupt()))
        elif event.kind == "approval":
            open_now.remove(event.approval)
    assert (event.kind, event.outcome, open_now) == ("done", "interrupted", set())


async def test_a_list_to_choose_from_comes_back_to_the_agent_as_to_be_asked_in_words(
    claude: Context, start: Start, api: MessagesAPI
) -> None:
    options = [{"label": "a", "description": "A"}, {"label": "b", "description": "B"}]
    choice = {"question": "Which?", "header": "h", "multiSelect": False, "options": options}
    scripted(api, choose=Tool("AskUserQuestion", {"questions": [choice]}))
    backend = await start(changed(claude, ask=True))
    (done,) = await asked(backend, "choose")
    assert "end your turn with the question" in done.text


# ---- turns of its own ----


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
