"""The backend and agents that misbehave: scripts that speak just enough stream-json to begin."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path

import pytest

from kai.agent import claude
from kai.agent.backend import AgentDied, Context
from kai.agent.claude import ClaudeBackend
from kai.agent.questions import MOST_OPEN
from kai.agent.stream import MOST_TEXT
from kai.demo.launcher import python
from kai.interfaces import Event, Part
from tests.process.agents import alive, changed, context, events, running, talk

BEGIN = """
import json, os, signal, subprocess, sys, time
def say(message):
    data = message if isinstance(message, bytes) else json.dumps(message).encode()
    sys.stdout.buffer.write(data + b"\\n")
    sys.stdout.buffer.flush()
def hear():
    line = sys.stdin.readline()
    return json.loads(line) if line else sys.exit(0)
def begin():
    asked = hear()
    say({"type": "control_response", "response": {"subtype": "success", "request_id": asked["request_id"]}})
def text(words):
    say({"type": "assistant", "message": {"id": "m", "content": [{"type": "text", "text": words}]}})
def result():
    say({"type": "result", "subtype": "success", "is_error": False, "result": "", "total_cost_usd": 0.25})
def ask(name, command="ls"):
    given = {"subtype": "can_use_tool", "tool_name": "Bash", "input": {"command": command}}
    say({"type": "control_request", "request_id": name, "request": given})
def cancel(name):
    say({"type": "control_cancel_request", "request_id": name})
def decision():
    response = hear()["response"]
    return response["request_id"] + " " + response.get("response", {}).get("behavior", "error")
def unheard():
    import select
    return not select.select([0], [], [], 0.3)[0]
"""
Make = Callable[[str], Context]


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """A context whose agent is this script."""
    for name, value in python()[1].items():
        monkeypatch.setenv(name, value)

    def make(script: str) -> Context:
        path = tmp_path / "agent"
        path.write_text(f"#!{sys.executable} -IS\n{BEGIN}\n{script}")
        path.chmod(0o755)
        return context(tmp_path, os.fspath(path))

    return make


@pytest.fixture
async def backend() -> AsyncIterator[ClaudeBackend]:
    made = ClaudeBackend()
    yield made
    await made.close()


def resident() -> int:
    """Own memory in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20


async def test_an_agent_that_dies_at_its_start_leaves_its_last_words(agent: Make, backend: ClaudeBackend) -> None:
    script = "print('\\n'.join(f'line {n}' for n in range(9)), file=sys.stderr); sys.exit(3)"
    with pytest.raises(AgentDied) as caught:
        await backend.start(agent(script))
    assert str(caught.value).splitlines() == [
        "The agent ended while it started (exit status 3).",
        *(f"line {n}" for n in range(4, 9)),
    ]
    assert not backend.alive


async def test_an_agent_that_prints_garbage_and_never_begins_is_given_up(
    agent: Make, backend: ClaudeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claude, "SLOWEST_START", 1.0)
    with pytest.raises(AgentDied, match=r"said nothing for 1 s\.\nIt printed what is no stream-json: Usage: claude"):
        await backend.start(agent("print('Usage: claude', flush=True); time.sleep(60)"))


async def test_an_agent_that_refuses_to_begin_says_why(agent: Make, backend: ClaudeBackend) -> None:
    script = """
asked = hear()
say({"type": "control_response", "response": {"subtype": "error", "request_id": asked["request_id"], "error": "no"}})
time.sleep(60)"""
    with pytest.raises(AgentDied, match="refused to start: no"):
        await backend.start(agent(script))


async def test_garbage_between_the_lines_is_passed_over(agent: Make, backend: ClaudeBackend) -> None:
    script = """
print("warning: something"); begin(); hear()
for noise in (b"\\xff\\xfe", b"{", b"", b"[]", b"null"): say(noise)
say(b'{"type":"assistant","message":{"id":"m","content":[{"type":"text","text":"fine\\xff"}]}}')
result(); hear()"""
    await backend.start(agent(script))
    done = await talk(backend, "x")
    assert (done.outcome, done.text, done.cost_usd) == ("ok", "fine\ufffd", 0.25)


async def test_a_line_past_all_limits_costs_no_memory_and_not_the_turn(agent: Make, backend: ClaudeBackend) -> None:
    script = """
begin(); ours = hear()["uuid"]
say({"type": "command_lifecycle", "command_uuid": ours, "state": "started"})
text("before")
for _ in range(200): sys.stdout.write("x" * (1 << 20))
say(b"")
text("after"); result(); hear()"""
    await backend.start(agent(script))
    before = resident()
    done = await talk(backend, "x")
    assert (done.outcome, done.text) == ("ok", "before\n\nafter")
    assert resident() - before < 64


async def test_a_line_just_below_the_limit_is_read(agent: Make, backend: ClaudeBackend) -> None:
    await backend.start(agent("begin(); hear(); text('z' * ((16 << 20) - 200)); result(); hear()"))
    done = await talk(backend, "x")
    assert (done.outcome, set(done.text)) == ("ok", {"z"})
    assert len(done.text) == MOST_TEXT


async def test_an_agent_that_floods_waits_for_its_reader(agent: Make, backend: ClaudeBackend) -> None:
    await backend.start(agent("begin(); hear()\nwhile True: text('flood ' * 10_000)"))
    before = resident()
    async with aclosing(backend.turn([Part(kind="text", text="x")])) as turn:
        assert (await anext(turn)).kind == "text"
        await asyncio.sleep(1)
        assert resident() - before < 16
        began = time.monotonic()
        await backend.close()
        assert time.monotonic() - began < 5


async def test_stderr_may_flood(agent: Make, backend: ClaudeBackend) -> None:
    script = """
begin(); hear()
for _ in range(100): sys.stderr.write("e" * (1 << 20))
print("\\nlast words", file=sys.stderr); sys.stderr.flush(); os._exit(7)"""
    await backend.start(agent(script))
    before = resident()
    done = await talk(backend, "x")
    assert "(exit status 7)" in done.error
    assert done.error.endswith("\nlast words")
    assert len(done.error) < 2000
    assert resident() - before < 32


async def test_a_death_in_a_turn_keeps_the_text_and_tells_how_it_ended(agent: Make, backend: ClaudeBackend) -> None:
    await backend.start(agent("begin(); hear(); text('half'); os.kill(os.getpid(), signal.SIGSEGV)"))
    done = await talk(backend, "x")
    assert (done.outcome, done.text) == ("failed", "half")
    assert done.error == "The agent ended in the middle of the turn (ended by SIGSEGV)."
    assert not backend.alive


async def test_a_process_left_behind_that_holds_the_pipes_delays_nothing(agent: Make, backend: ClaudeBackend) -> None:
    script = "begin(); hear(); text('half'); subprocess.Popen(['sleep', '76543'], start_new_session=True); os._exit(1)"
    await backend.start(agent(script))
    began = time.monotonic()
    try:
        done = await talk(backend, "x")
        assert (done.text, done.outcome) == ("half", "failed")
        assert time.monotonic() - began < 5
        await backend.close()
        assert time.monotonic() - began < 6
    finally:
        for pid in running("76543"):
            os.kill(pid, signal.SIGKILL)


async def test_an_agent_that_heeds_neither_end_of_input_nor_sigterm_is_killed(
    agent: Make, backend: ClaudeBackend, tmp_path: Path
) -> None:
    script = "signal.signal(signal.SIGTERM, signal.SIG_IGN); begin(); text(str(os.getpid()))\nwhile True: time.sleep(9)"
    await backend.start(agent(script))
    (pid,) = running(os.fspath(tmp_path / "agent"))
    began = time.monotonic()
    await backend.close()
    assert 6 < time.monotonic() - began < 20
    assert not alive(pid)


async def test_closing_while_it_starts_leaves_no_process(agent: Make, backend: ClaudeBackend) -> None:
    given = agent("time.sleep(60)")
    starting = asyncio.create_task(backend.start(given))
    async with asyncio.timeout(5):
        while not running(given.command[0]):
            await asyncio.sleep(0.02)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert not running(given.command[0])


async def test_a_turn_that_was_left_does_not_stop_the_agent(agent: Make, backend: ClaudeBackend) -> None:
    script = """
begin()
for n in (1, 2):
    hear()
    say({"type": "system", "subtype": "init", "session_id": "s"})
    for _ in range(500): text(f"of {n} " * 100)
    result()
hear()"""
    await backend.start(agent(script))
    async with aclosing(backend.turn([Part(kind="text", text="x")])) as turn:
        assert (await anext(turn)).kind == "started"
    done = (await events(backend, "y"))[-1]
    assert done.text.startswith("of 2 ")
    assert "of 1" not in done.text


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("no-such-agent", "agent command no-such-agent: not found in .*: install the agent"),
        ("/etc/passwd", "agent command /etc/passwd: .* may not execute it"),
        ("./claude", "expected a name or an absolute path"),
    ],
)
async def test_a_command_that_is_none_says_what_to_do(
    agent: Make, backend: ClaudeBackend, command: str, told: str
) -> None:
    with pytest.raises(AgentDied, match=told):
        await backend.start(changed(agent(""), command=(command,)))


async def test_a_missing_workspace_and_a_missing_door_are_named(
    agent: Make, backend: ClaudeBackend, tmp_path: Path
) -> None:
    with pytest.raises(AgentDied, match=r"workspace .*/gone: No such file"):
        await backend.start(changed(agent(""), workspace=tmp_path / "gone"))
    with pytest.raises(AgentDied, match=r"/no/sudo can't be run: No such file or directory; .*install Kai again"):
        await ClaudeBackend().start(changed(agent(""), door=("/no/sudo",)))


async def test_a_sudo_that_refuses_names_the_remedy(agent: Make, backend: ClaudeBackend, tmp_path: Path) -> None:
    sudo = tmp_path / "sudo"
    sudo.write_text("#!/bin/sh\necho 'sudo: a password is required' >&2\nexit 1\n")
    sudo.chmod(sudo.stat().st_mode | stat.S_IXUSR)
    with pytest.raises(AgentDied, match=r"account of alice doesn't open: sudo: a password.*`sudo kai users apply`"):
        await backend.start(changed(agent(""), door=(os.fspath(sudo), "-n")))


# ---- questions ----


async def asked(backend: ClaudeBackend, *, allow: bool = True) -> tuple[list[Event], Event]:
    """One turn with every question answered; the approval events, and the end."""
    found = []
    async for event in backend.turn([Part(kind="text", text="x")]):
        if event.kind == "approval":
            found.append(event)
            if event.running:
                await backend.answer(event.approval, allow=allow)
    return found, event


async def test_a_hundred_thousand_questions_cost_no_memory_and_end_with_one_done(
    agent: Make, backend: ClaudeBackend
) -> None:
    script = """
begin(); hear()
for n in range(100_000): ask(f"r{n}", f"ls {n}")
result()
while hear()["type"] != "user": pass
say({"type": "control_request", "request_id": "again", "request": {}})
text(decision()); result(); hear()"""
    await backend.start(changed(agent(script), ask=True))
    before = resident()
    found = await events(backend, "x")
    assert len([event for event in found if event.kind == "approval"]) == MOST_OPEN
    assert found[-1].outcome == "ok"
    assert resident() - before < 12
    assert (await talk(backend, "y")).text == "again error"


async def test_a_listener_that_answers_everything_is_asked_everything(agent: Make, backend: ClaudeBackend) -> None:
    script = """
begin(); hear()
for n in range(2000):
    ask(f"r{n}", f"ls {n}")
    assert decision() == f"r{n} allow"
text("all answered"); result(); hear()"""
    await backend.start(changed(agent(script), ask=True))
    before = resident()
    found, done = await asked(backend)
    assert (len(found), done.outcome, done.text) == (2000, "ok", "all answered")
    assert len({event.approval for event in found}) == 2000
    assert max(len(event.approval) for event in found) <= 12
    assert resident() - before < 16


@pytest.mark.parametrize("kind", ["ask", "cancel"])
async def test_ids_of_megabytes_are_passed_over(agent: Make, backend: ClaudeBackend, kind: str) -> None:
    script = f"begin(); hear()\nfor n in range(100): {kind}('i' * (4 << 20))\ntext(str(unheard())); result(); hear()"
    await backend.start(changed(agent(script), ask=True))
    before = resident()
    found, done = await asked(backend)
    assert (found, done.outcome, done.text) == ([], "ok", "True")
    assert resident() - before < 64


async def test_a_question_of_megabytes_is_denied_unseen(agent: Make, backend: ClaudeBackend) -> None:
    script = "begin(); hear(); ask('a', 'x' * ((16 << 20) - 300)); text(decision()); result(); hear()"
    await backend.start(changed(agent(script), ask=True))
    found, done = await asked(backend)
    assert (found, done.text) == ([], "a deny")


async def test_between_turns_nobody_is_asked_and_nothing_waits(agent: Make, backend: ClaudeBackend) -> None:
    script = """
begin()
for n in range(3):
    ask("before")
    early = decision()
    open(f"told {n}", "w").close()
    hear()
    text(early)
    result()
hear()"""
    given = changed(agent(script), ask=True)
    await backend.start(given)
    for n in range(3):
        async with asyncio.timeout(5):
            while not (given.workspace / f"told {n}").exists():
                await asyncio.sleep(0.01)
        found, done = await asked(backend)
        assert (found, done.text) == ([], "before deny")


async def test_a_question_that_is_open_at_the_end_of_its_turn_is_denied(agent: Make, backend: ClaudeBackend) -> None:
    script = """
begin()
for n in range(2):
    hear(); ask("a"); result(); late = decision()
hear(); text(late); result(); hear()"""
    await backend.start(changed(agent(script), ask=True))
    for _ in range(2):
        found = await events(backend, "x")
        (question,) = (event for event in found if event.kind == "approval")
        await asyncio.sleep(0.2)
        await backend.answer(question.approval, allow=True, remember=True)
    assert (await talk(backend, "x")).text == "a deny"


async def test_a_turn_that_nobody_follows_any_more_leaves_no_question_open(agent: Make, backend: ClaudeBackend) -> None:
    script = "begin(); hear(); ask('a'); told = decision(); result(); hear(); text(told); result(); hear()"
    await backend.start(changed(agent(script), ask=True))
    async with aclosing(backend.turn([Part(kind="text", text="x")])) as turn:
        assert (await anext(turn)).kind == "approval"
    assert (await talk(backend, "y")).text == "a deny"


async def test_the_same_id_twice_and_ids_of_nobody_get_one_answer(agent: Make, backend: ClaudeBackend) -> None:
    script = """
begin(); hear()
for name in ("nobody", "", "kai-1"): cancel(name)
ask("a", "ls"); ask("a", "rm -rf /"); cancel("b"); text("asked")
text(decision() + " " + str(unheard()))
cancel("a"); result(); hear()"""
    await backend.start(changed(agent(script), ask=True))
    asked = []
    async for event in backend.turn([Part(kind="text", text="x")]):
        if event.kind == "approval":
            asked.append(event)
        elif event.text == "asked":
            for _ in range(2):
                await backend.answer(asked[0].approval, allow=True)
    assert [question.detail for question in asked] == ["ls"]
    assert event.text == "asked\n\na allow True"


async def test_what_is_taken_back_is_withdrawn_and_its_answer_goes_nowhere(agent: Make, backend: ClaudeBackend) -> None:
    script = "begin(); hear(); ask('a'); cancel('a'); cancel('a'); text(str(unheard())); result(); hear()"
    await backend.start(changed(agent(script), ask=True))
    found = await events(backend, "x")
    approvals = [event for event in found if event.kind == "approval"]
    assert [event.answer for event in approvals] == ["", "withdrawn"]
    await backend.answer(approvals[0].approval, allow=True)
    assert (found[-1].outcome, found[-1].text) == ("ok", "True")


@pytest.mark.parametrize(
    "broken",
    [
        {"type": "control_request"},
        {"type": "control_request", "request_id": 7, "request": [1]},
        {"type": "control_request", "request_id": "r", "request": {"subtype": ["can_use_tool"]}},
        {
            "type": "control_request",
            "request_id": "r",
            "request": {"subtype": "can_use_tool", "tool_name": 7, "input": 7},
        },
        {"type": "control_request", "request": {"subtype": "can_use_tool", "input": {"": [[[[[[{}]]]]]]}}},
        {"type": "control_cancel_request"},
        {"type": "control_cancel_request", "request_id": {}},
        {"type": "control_response", "response": 7},
        {"type": ["control_request"]},
        {"type": {}},
    ],
)
async def test_questions_of_wrong_types_do_no_harm(agent: Make, backend: ClaudeBackend, broken: object) -> None:
    script = f"begin(); hear()\nfor n in range(3): say({broken!r})\ntext('fine'); result()\nwhile hear(): pass"
    await backend.start(changed(agent(script), ask=True))
    _, done = await asked(backend)
    assert (done.outcome, done.text) == ("ok", "fine")
    assert backend.alive


async def test_pieces_and_calls_without_end_cost_no_memory(agent: Make, backend: ClaudeBackend) -> None:
    script = """
begin(); hear()
def event(**inner): return json.dumps({"type": "stream_event", "event": inner}).encode()
start = event(type="content_block_start", content_block={"type": "text", "text": ""})
piece = event(type="content_block_delta", delta={"type": "text_delta", "text": "x" * 1000})
for n in range(60_000): say(piece)
for n in range(60_000): say(start)
for n in range(60_000):
    block = {"type": "tool_use", "id": f"{n:0128}", "name": "n" * 100, "input": {"a": "b" * 500}}
    say({"type": "assistant", "message": {"id": "m", "content": [block]}})
result(); time.sleep(60)"""
    await backend.start(agent(script))
    before = resident()
    async with aclosing(backend.turn([Part(kind="text", text="x")])) as turn:  # not kept in a list: only the reader's
        events = Counter([event.kind async for event in turn])
    assert events["done"] == 1
    assert resident() - before < 24


async def test_a_price_that_is_no_price_stays_a_number(agent: Make, backend: ClaudeBackend) -> None:
    script = """
begin()
for cost in (1e308, 1e308, -1e308, "free", None, True):
    hear()
    used = {"model_usage_since_last_result": {"m": {"costUSD": cost}}}
    say({"type": "result", "subtype": "success", "is_error": False, "result": "x", **used})
hear()"""
    await backend.start(agent(script))
    costs = [(await talk(backend, "x")).cost_usd for _ in range(6)]
    assert costs == [1e6, 1e6, 0, 0, 0, 0]
    assert backend.cost_usd == 2e6
