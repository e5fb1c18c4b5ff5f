"""What the real Claude Code printed, read by the backend: recordings in captures/, played into it without a process.

A recording has `in` lines (what was sent) and `out` lines (what came); the player answers as the CLI did then.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from kai.agent import claude, stream
from kai.agent.backend import AgentDied, Context, SessionUnknown
from kai.agent.claude import ClaudeBackend
from kai.agent.process import AgentProcess
from kai.agent.stream import MOST_TEXT
from kai.interfaces import Event, Part

CAPTURES = Path(__file__).parent / "captures"
CONTEXT = Context(user="alice", door=("door",), command=("claude",), workspace=Path("/srv/demo"))


class Player:
    """Stands where the process would: plays the recording's next lines when it is written to."""

    def __init__(self, script: Sequence[dict[str, Any]]) -> None:
        self.script = list(script)
        self.dies = len(self.script) > 1 and "err" in self.script[1]  # at the first thing it hears
        self.sent: list[dict[str, Any]] = []
        self.output: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.gone = asyncio.Event()
        self.status = "still running"
        self.errors: list[str] = []
        self.uuids: dict[str, str] = {}

    def write(self, data: bytes) -> None:
        message = json.loads(data)
        self.sent.append(message)
        if message.get("request", {}).get("subtype") == "initialize" and not self.dies:
            answer = {"subtype": "success", "request_id": message["request_id"]}
            self.say({"type": "control_response", "response": answer})
        elif message.get("type") in ("user", "control_request"):
            self._advance(message)

    def say(self, message: dict[str, Any] | bytes) -> None:
        self.output.put_nowait(message if isinstance(message, bytes) else json.dumps(message).encode())

    def end(self, status: str) -> None:
        self.status = status
        self.gone.set()
        self.output.put_nowait(None)

    def _advance(self, message: dict[str, Any]) -> None:
        if self.script:
            recorded = self.script.pop(0)["in"]
            assert self.dies or recorded["type"] == message["type"], (recorded, message)
            if "uuid" in recorded:
                self.uuids[recorded["uuid"]] = message["uuid"]
        while self.script and "in" not in self.script[0]:
            step = self.script.pop(0)
            if "out" in step:
                said = dict(step["out"])
                if "command_uuid" in said:
                    said["command_uuid"] = self.uuids[said["command_uuid"]]
                self.say(said)
            elif "err" in step:
                self.errors.append(step["err"])
            else:
                self.end(f"exit status {step['exit']}")

    async def lines(self) -> AsyncIterator[bytes | None]:
        while (line := await self.output.get()) is not None:
            yield None if line == b"too long" else line

    async def last_words(self) -> list[str]:
        return self.errors

    async def close(self) -> None:
        self.end("exit status 0")


def recording(name: str) -> list[dict[str, Any]]:
    (path,) = CAPTURES.glob(f"{name}-*.jsonl")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def without_partials(script: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [step for step in script if step.get("out", {}).get("type") != "stream_event"]


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Start a backend on a recording."""

    async def start(script: Sequence[dict[str, Any]], context: Context = CONTEXT) -> tuple[ClaudeBackend, Player]:
        player = Player(script)

        async def spawn(command: Sequence[str]) -> Player:
            assert tuple(command) == context.door
            return player

        monkeypatch.setattr(AgentProcess, "spawn", spawn)
        backend = ClaudeBackend()
        await backend.start(context)
        return backend, player

    return start


async def turn(backend: ClaudeBackend, prompt: str = "hello", *, stop_at: str = "") -> list[Event]:
    """All events of a turn; it is interrupted when `stop_at` shows up in its text or tool."""
    events: list[Event] = []
    async for event in backend.turn([Part(kind="text", text=prompt)]):
        events.append(event)
        if stop_at and stop_at in event.text + event.summary:
            stop_at = ""
            await backend.interrupt()
    kinds = [event.kind for event in events]
    assert kinds.count("done") == 1
    assert kinds[-1] == "done"
    assert kinds.count("started") <= 1
    length = 0
    for event in events:
        if event.kind == "text":
            assert event.offset == length
            length += len(event.text)
    assert "".join(event.text for event in events if event.kind == "text") == events[-1].text
    return events


def tools(events: list[Event]) -> list[tuple[str, str, bool]]:
    return [(event.tool, event.summary, event.running) for event in events if event.kind == "tool"]


async def test_two_turns_stream_their_text_and_cost_their_own_share(play: Any) -> None:
    backend, _ = await play(recording("01"))
    first = await turn(backend, "hello there")
    assert [event.text for event in first if event.kind == "text"] == ["Echo[2 ", "msgs]: ", "hello ", "there"]
    assert first[0] == Event(kind="started", session="845f2e5b-c50c-463a-a1ea-a361140cd476")
    assert (first[-1].outcome, first[-1].text, first[-1].cost_usd) == ("ok", "Echo[2 msgs]: hello there", 0.048332)
    second = await turn(backend, "second turn please")
    assert second[-1].cost_usd == pytest.approx(0.048484)
    assert backend.cost_usd == pytest.approx(0.096816)
    assert backend.session == "845f2e5b-c50c-463a-a1ea-a361140cd476"


@pytest.mark.parametrize("partials", [True, False])
async def test_blocks_of_a_turn_come_once_and_are_set_apart_by_a_blank_line(play: Any, partials: bool) -> None:
    script = recording("02")
    backend, _ = await play(script if partials else without_partials(script))
    events = await turn(backend)
    command = "echo hi-from-bash; id -un; pwd; env | cut -d= -f1 | sort | tr '\\n' ' '"
    assert tools(events) == [("Bash", command, True), ("Bash", command, False)]
    assert len({event.call for event in events if event.kind == "tool"} - {""}) == 1
    assert events[-1].text.startswith("I'll run that.\n\nTool said: ")
    assert events[-1].text.count("I'll run that.") == 1
    order = [event.kind for event in events]
    assert order.index("tool") > order.index("text")


async def test_thinking_is_no_text(play: Any) -> None:
    backend, _ = await play(recording("07"))
    assert (await turn(backend))[-1].text == "Thought about it."


async def test_a_resumed_session_costs_only_what_the_new_turn_cost(play: Any) -> None:
    backend, player = await play(recording("03"), replace(session="73c544ff-d9cb-45e0-9723-4bcc6331ce6d"))
    events = await turn(backend)
    assert events[0].resumed
    assert events[-1].cost_usd == pytest.approx(0.04966)
    words = player.sent[0]["command"]
    assert words[words.index("--resume") + 1] == "73c544ff-d9cb-45e0-9723-4bcc6331ce6d"


async def test_an_interrupt_keeps_what_was_said_and_the_process_takes_the_next_turn(play: Any) -> None:
    backend, _ = await play(recording("04"))
    stopped = await turn(backend, stop_at="word4")
    assert (stopped[-1].outcome, stopped[-1].error) == ("interrupted", "")
    assert stopped[-1].text == "word0 word1 word2 word3 word4 "
    assert backend.alive
    assert (await turn(backend))[-1].outcome == "ok"


async def test_an_interrupt_ends_a_tool(play: Any) -> None:
    backend, _ = await play(recording("20"))
    events = await turn(backend, stop_at="sleep 47")
    assert events[-1].outcome == "interrupted"
    assert [running for _, _, running in tools(events)] == [True, False]


async def test_an_interrupt_while_nothing_runs_is_not_sent(play: Any) -> None:
    backend, player = await play(recording("01"))
    await backend.interrupt()
    assert len(player.sent) == 2  # the request to kai-inner and initialize


async def test_a_budget_that_is_used_up_fails_the_turn_in_the_agents_words(play: Any) -> None:
    backend, _ = await play(recording("06"))
    assert (await turn(backend))[-1].outcome == "ok"
    crossing = (await turn(backend))[-1]
    assert (crossing.outcome, crossing.text) == ("failed", "Echo[5 msgs]: two")
    assert crossing.error == "Reached maximum budget ($0.06)"
    assert crossing.reason == "budget"
    assert crossing.cost_usd == pytest.approx(0.048532)
    refused = (await turn(backend))[-1]
    assert (refused.outcome, refused.reason, refused.text, refused.cost_usd) == ("failed", "budget", "", 0.0)


async def test_a_refused_key_names_the_command_that_helps(play: Any) -> None:
    backend, _ = await play(recording("15"))
    done = (await turn(backend))[-1]
    assert (done.outcome, done.text) == ("failed", "")
    assert done.error == (
        "The model refused the key (401): Invalid API key · Fix external API key; "
        "the operator can run `sudo kai login alice`."
    )


async def test_a_refused_key_of_the_door_names_the_doors_credential(play: Any) -> None:
    backend, _ = await play(recording("15"), replace(model_door="/run/kai/model.sock"))
    assert "/etc/credstore/kai-model-key" in (await turn(backend))[-1].error


async def test_an_agent_without_login_names_the_command_that_helps(play: Any) -> None:
    backend, _ = await play(recording("29"))
    done = (await turn(backend))[-1]
    assert "sudo kai login alice" in done.error
    assert done.text == ""


async def test_a_model_out_of_reach_fails_the_turn_in_the_agents_words(play: Any) -> None:
    backend, _ = await play(recording("30"))
    assert "ECONNREFUSED" in (await turn(backend))[-1].error


async def test_the_agents_own_commands_answer_and_clear_follows_to_the_new_session(play: Any) -> None:
    backend, _ = await play(recording("24"))
    await turn(backend)
    before = backend.session
    assert "Context Usage" in (await turn(backend, "/context"))[-1].text
    assert "Estimated cost" in (await turn(backend, "/usage"))[-1].text
    assert backend.session == before
    compact = (await turn(backend, "/compact"))[-1]
    assert (compact.outcome, compact.text) == ("ok", "")
    assert compact.cost_usd == pytest.approx(0.11838)
    clear = await turn(backend, "/clear")
    assert backend.session == clear[-1].session == "2e66ba35-5cfd-4f1b-b627-c43724dc413a"
    await turn(backend, "/model claude-haiku-4-5")
    assert (await turn(backend, "/nonsense"))[-1].cost_usd == pytest.approx(0.022455)
    assert (await turn(backend))[-1].cost_usd == pytest.approx(0.022419)
    assert backend.cost_usd == pytest.approx(0.1679 + 0.044874)


async def test_an_older_cli_is_read_by_differences_of_its_total(play: Any) -> None:
    backend, _ = await play(recording("41"))
    events = await turn(backend)
    assert events[-1].cost_usd == pytest.approx(0.19222)
    assert tools(events)[0] == ("Bash", "echo old", True)


async def test_a_turn_of_the_agents_own_is_not_taken_for_ours(play: Any) -> None:
    backend, _ = await play(recording("42"))
    await turn(backend)
    asked = await turn(backend)
    assert asked[-1].outcome == "ok"
    mine = await turn(backend, "mine")  # sent while the agent works on a background command that ended
    assert mine[-1].text == "Echo: mine"
    assert backend.cost_usd == pytest.approx(sum(event[-1].cost_usd for event in (asked, mine)) + 0.0044)


async def test_an_interrupt_of_a_waiting_turn_is_sent_again_when_it_begins(
    play: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claude, "LAST_WORDS", 0.01)
    script = recording("42")
    third = [index for index, step in enumerate(script) if "in" in step][2]
    backend, player = await play(script[:third])
    await turn(backend)
    await turn(backend)
    await asyncio.sleep(0)
    events = asyncio.create_task(turn(backend, "mine"))
    await asyncio.sleep(0)
    await backend.interrupt()
    ours = player.sent[-2]["uuid"]
    assert player.sent[-1]["request"] == {"subtype": "interrupt"}
    player.say({"type": "result", "subtype": "error_during_execution", "is_error": True})
    player.say({"type": "command_lifecycle", "command_uuid": ours, "state": "started"})
    await asyncio.sleep(0.01)
    assert len([message for message in player.sent if message.get("request") == {"subtype": "interrupt"}]) == 2
    player.say({"type": "command_lifecycle", "command_uuid": ours, "state": "cancelled"})
    assert (await events)[-1].outcome == "interrupted"


@pytest.mark.parametrize("result", [True, False])
async def test_a_message_that_the_agent_takes_into_its_own_turn_ends_with_that_turn(
    play: Any, monkeypatch: pytest.MonkeyPatch, result: bool
) -> None:
    monkeypatch.setattr(claude, "LAST_WORDS", 0.05)
    backend, player = await play([])
    player.say({"type": "system", "subtype": "init", "session_id": "s"})
    player.say(whole("of its own"))
    await asyncio.sleep(0.01)
    events = asyncio.create_task(turn(backend))
    await asyncio.sleep(0)
    step = {"type": "command_lifecycle", "command_uuid": player.sent[-1]["uuid"]}
    player.say(step | {"state": "started"})
    player.say(whole("ours"))
    player.say(step | {"state": "completed"})
    if result:
        player.say(GOOD)
    found = await events
    assert found[0].kind == "started"
    assert (found[-1].text, found[-1].outcome) == ("ours", "ok" if result else "failed")


async def test_a_turn_that_nobody_listens_to_any_more_does_not_mix_with_the_next(play: Any) -> None:
    backend, player = await play([])
    async with aclosing(backend.turn([Part(kind="text", text="x")])) as left:
        player.say({"type": "system", "subtype": "init", "session_id": "s"})
        assert (await anext(left)).kind == "started"
    events = asyncio.create_task(turn(backend))
    await asyncio.sleep(0)
    player.say(whole("of the turn before"))
    player.say({"type": "result", "subtype": "success", "is_error": False, "result": "of the turn before"})
    player.say(whole("ours"))
    player.say({"type": "result", "subtype": "success", "is_error": False, "result": "ours"})
    assert (await events)[-1].text == "ours"


async def talk(backend: ClaudeBackend, player: Player, *answers: dict[str, Any] | bytes) -> AsyncIterator[Event]:
    """A turn that the player answers with these lines."""
    events = backend.turn([Part(kind="text", text="x")])
    waiting = asyncio.ensure_future(anext(events))
    await asyncio.sleep(0)
    for answer in answers:
        player.say(answer)
    yield await waiting
    async for event in events:
        yield event
    await events.aclose()


def whole(text: str, **more: Any) -> dict[str, Any]:
    content = [{"type": "text", "text": text}]
    return {"type": "assistant", "message": {"id": "m", "content": content}, "parent_tool_use_id": None, **more}


GOOD = {"type": "result", "subtype": "success", "is_error": False, "result": "answer", "total_cost_usd": 0.5}


@pytest.mark.parametrize(
    "noise",
    [
        b"",
        b"Segmentation fault",
        b"{",
        b"[1, 2]",
        b'"text"',
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b'{"type":"from the future","message":7}',
        b'{"type":"assistant","message":"none"}',
        b'{"type":"assistant","message":{"content":[7,null,{"type":"text","text":8},{"type":"tool_use"}]}}',
        b'{"type":"stream_event","event":{"type":"content_block_delta","delta":[]}}',
        b'{"type":"user","message":{"content":"plain"}}',
        b'{"type":"system","subtype":"api_retry","attempt":1}',
        b'{"type":["result"]}',
        b'{"type":"control_response","response":{"request_id":"kai-1","subtype":"error"}}',
    ],
)
async def test_what_the_agent_prints_besides_does_not_disturb_a_turn(play: Any, noise: bytes) -> None:
    backend, player = await play([])
    done = [event async for event in talk(backend, player, noise, whole("answer"), noise, GOOD)][-1]
    assert (done.outcome, done.text, done.cost_usd) == ("ok", "answer", 0.5)


async def test_broken_utf8_and_half_surrogates_survive(play: Any) -> None:
    backend, player = await play([])
    line = b'{"type":"assistant","message":{"id":"m","content":[{"type":"text","text":"a\xffb\\ud83dc"}]}}'
    done = [event async for event in talk(backend, player, line, GOOD)][-1]
    assert done.text == "a\ufffdb?c"


async def test_a_sub_agents_text_and_tools_are_not_the_turns(play: Any) -> None:
    backend, player = await play([])
    inner = whole("from below", parent_tool_use_id="toolu_1")
    piece = {"type": "stream_event", "event": {"type": "content_block_delta", "delta": {"type": "text_delta"}}}
    piece["event"]["delta"]["text"] = "from below"  # type: ignore[index]
    events = [event async for event in talk(backend, player, inner, piece | {"parent_tool_use_id": "t"}, GOOD)]
    assert events[-1].text == "answer"


async def test_a_turn_that_printed_only_a_result_has_its_text(play: Any) -> None:
    backend, player = await play([])
    events = [event async for event in talk(backend, player, GOOD)]
    assert [event.kind for event in events] == ["started", "text", "done"]


async def test_is_error_decides_whatever_the_subtype_says(play: Any) -> None:
    backend, player = await play([])
    bad = {"type": "result", "subtype": "success", "is_error": True, "result": "API Error: 529 Overloaded."}
    done = [event async for event in talk(backend, player, bad)][-1]
    assert (done.outcome, done.error, done.text) == ("failed", "API Error: 529 Overloaded.", "")


async def test_a_request_of_the_agent_is_refused_and_does_not_hang(play: Any) -> None:
    backend, player = await play([])
    ask = {"type": "control_request", "request_id": "theirs", "request": {"subtype": "can_use_tool"}}
    assert [event async for event in talk(backend, player, ask, GOOD)][-1].outcome == "ok"
    assert player.sent[-1]["response"]["request_id"] == "theirs"
    assert player.sent[-1]["response"]["subtype"] == "error"


ASK = {"subtype": "can_use_tool", "tool_name": "Bash", "input": {"command": "ls"}}


def question(name: str = "theirs") -> dict[str, Any]:
    return {"type": "control_request", "request_id": name, "request": ASK}


async def test_a_question_waits_for_its_answer_and_is_no_end_of_the_turn(play: Any) -> None:
    backend, player = await play([], replace(ask=True))
    events = backend.turn([Part(kind="text", text="x")])
    waiting = asyncio.ensure_future(anext(events))
    await asyncio.sleep(0)
    player.say(question())
    asked = await waiting
    assert (asked.kind, asked.tool, asked.detail, asked.running) == ("approval", "Bash", "ls", True)
    await backend.answer(asked.approval, allow=False, message="no")
    assert player.sent[-1]["response"]["response"] == {"behavior": "deny", "message": "no"}
    player.say(GOOD)
    assert [event.kind async for event in events] == ["started", "text", "done"]


async def test_a_question_after_an_interrupt_or_of_a_turn_of_its_own_is_denied(play: Any) -> None:
    backend, player = await play([], replace(ask=True))
    player.say({"type": "system", "subtype": "init", "session_id": "s"})
    player.say(question("of its own"))
    await asyncio.sleep(0.01)
    assert player.sent[-1]["response"]["response"]["behavior"] == "deny"
    waiting = asyncio.create_task(turn(backend))
    await asyncio.sleep(0)
    player.say(question("while ours waits"))
    await asyncio.sleep(0.01)
    assert player.sent[-1]["response"]["request_id"] == "while ours waits"
    assert player.sent[-1]["response"]["response"]["behavior"] == "deny"
    for _ in range(2):
        player.say(GOOD)
    assert [event.kind for event in await waiting] == ["started", "text", "done"]
    events = asyncio.create_task(turn(backend))
    await asyncio.sleep(0)
    await backend.interrupt()
    player.say(question("too late"))
    player.say({"type": "result", "subtype": "error_during_execution", "is_error": True})
    assert [event.kind for event in await events] == ["started", "done"]
    late = player.sent[-1]["response"]
    assert (late["request_id"], late["response"]["behavior"]) == ("too late", "deny")


async def test_an_agent_that_does_not_ask_gets_no_way_to_and_one_that_does_gets_its_rules(play: Any) -> None:
    _, player = await play([], replace(allowed=("Bash(ls *)",), memory=Path("/m")))
    words = player.sent[0]["command"]
    assert words[words.index("--permission-mode") + 1] == "bypassPermissions"
    assert not {"--permission-prompt-tool", "--allowedTools", "--add-dir", "--max-budget-usd"} & set(words)
    allowed = ("Bash(ls *)", "Bash(2*3)", "Bash(x) Bash(*)", "Write: /a", "--dangerous")
    _, player = await play([], replace(ask=True, allowed=allowed, memory=Path("/m"), budget_usd=0.5))
    words = player.sent[0]["command"]
    assert words[words.index("--permission-mode") + 1] == "default"
    assert words[words.index("--permission-prompt-tool") + 1] == "stdio"
    begin = words.index("--allowedTools") + 1
    assert words[begin : begin + 4] == ["Bash(ls *)", "Read(//m/**)", "Edit(//m/**)", "Write(//m/**)"]
    assert words[begin + 4].startswith("--")
    assert words[words.index("--add-dir") + 1] == "/m"
    assert words[words.index("--max-budget-usd") + 1] == "0.500000"


@pytest.mark.parametrize(
    ("line", "sign"),
    [
        ({"type": "stream_event", "event": {}}, False),
        ({"type": "system", "subtype": "api_retry"}, True),
        ({"type": "tool_progress", "tool_use_id": "t"}, True),
        ({"type": "assistant", "message": {"content": [{}]}}, True),
        ({"type": "keep_alive"}, False),
        ({"type": "from the future"}, False),
        ({"type": ["assistant"]}, False),
        (b"noise", False),
        (b"", False),
    ],
)
async def test_noise_is_no_sign_of_life(play: Any, line: dict[str, Any] | bytes, sign: bool) -> None:
    backend, player = await play([])
    before = backend.heard
    await asyncio.sleep(0.01)
    player.say(line)
    await asyncio.sleep(0.01)
    assert (backend.heard > before) is sign


async def test_text_past_what_anybody_sees_is_no_sign_of_life(play: Any) -> None:
    backend, player = await play([])
    events = asyncio.create_task(turn(backend))
    await asyncio.sleep(0)
    player.say(whole("x" * MOST_TEXT))
    await asyncio.sleep(0.01)
    before = backend.heard
    await asyncio.sleep(0.01)
    player.say(whole("and more"))
    await asyncio.sleep(0.01)
    assert backend.heard == before
    player.say(GOOD)
    assert len((await events)[-1].text) == MOST_TEXT


async def test_a_result_line_that_was_too_long_fails_the_turn_and_says_so(play: Any) -> None:
    backend, player = await play([])
    done = [event async for event in talk(backend, player, whole("part"), b"too long")][-1]
    assert (done.outcome, done.text) == ("failed", "part")
    assert "16 MiB" in done.error
    assert not backend.alive  # nobody knows whether its turn has ended: the next one gets a new process


async def test_a_line_too_long_inside_a_turn_is_skipped_when_its_end_is_told(play: Any) -> None:
    backend, player = await play([])
    events = asyncio.create_task(turn(backend))
    await asyncio.sleep(0)
    ours = player.sent[-1]["uuid"]
    player.say({"type": "command_lifecycle", "command_uuid": ours, "state": "started"})
    for line in (b"too long", whole("answer"), GOOD):
        player.say(line)
    assert (await events)[-1].outcome == "ok"


async def test_death_in_a_turn_tells_the_exit_and_the_last_words(play: Any) -> None:
    backend, player = await play([])
    events = asyncio.create_task(turn(backend))
    await asyncio.sleep(0)
    player.say(whole("part"))
    player.errors = ["out of memory"]
    player.end("ended by SIGKILL")
    done = (await events)[-1]
    assert (done.outcome, done.reason, done.text) == ("failed", "died", "part")
    assert done.error == "The agent ended in the middle of the turn (ended by SIGKILL).\nout of memory"
    assert not backend.alive
    assert (await turn(backend))[-1].error == "The agent is not running."


async def test_an_unknown_session_is_told_apart_from_a_death(play: Any) -> None:
    with pytest.raises(SessionUnknown, match="11111111"):
        await play(recording("10"), replace(session="11111111-1111-4111-8111-111111111111"))


@pytest.mark.parametrize(
    ("errors", "told"),
    [
        (["kai-inner: agent command claude: not found"], "can't be started: agent command claude: not found"),
        (["sudo: a password is required"], "account of alice doesn't open: .*sudo kai users apply"),
        (["error: unknown option '--system-prompt-snapshot'"], "update it"),
        (["one", "two"], r"ended while it started \(exit status 1\)\.\none\ntwo"),
        ([], r"ended while it started \(exit status 1\)\."),
    ],
)
async def test_death_at_the_start_says_what_to_do(play: Any, errors: list[str], told: str) -> None:
    script = [{"in": {"type": "control_request"}}, *({"err": line} for line in errors), {"exit": 1}]
    with pytest.raises(AgentDied, match=told):
        await play(script if errors else [script[0], {"err": ""}, script[-1]])


async def test_the_instructions_go_in_by_initialize_and_the_repository_has_no_say(play: Any) -> None:
    context = replace(system_prompt="be kind", model="opus", environment=(("A", "1"),), model_door="/run/m")
    _, player = await play([], context)
    asked, hello = player.sent
    assert hello["request"] == {"subtype": "initialize", "appendSystemPrompt": "be kind"}
    assert "be kind" not in json.dumps(asked)
    words = asked["command"]
    assert words[words.index("--setting-sources") + 1] == "user"
    assert "--strict-mcp-config" in words
    assert words[words.index("--model") + 1] == "opus"
    assert "--resume" not in words
    assert asked["environment"]["A"] == "1"
    assert asked["environment"]["CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC"] == "1"
    assert asked["model_door"] == "/run/m"
    _, trusting = await play([], replace(trust_settings=True))
    assert "--setting-sources" not in trusting.sent[0]["command"]


def replace(**fields: Any) -> Context:
    import msgspec

    return msgspec.structs.replace(CONTEXT, **fields)


def test_a_number_too_large_for_a_float_counts_as_missing() -> None:
    message = stream.parse(b'{"type":"result","total_cost_usd":1' + b"0" * 400 + b"}")
    assert message is not None
    assert stream.Meter(resumed=False).add(message) == 0.0
