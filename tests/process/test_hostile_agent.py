"""The backend and agents that misbehave: scripts that speak just enough stream-json to begin."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path

import pytest

from kai.agent import claude
from kai.agent.backend import AgentDied, Context
from kai.agent.claude import ClaudeBackend
from kai.agent.stream import MOST_TEXT
from kai.demo.launcher import python
from kai.interfaces import Part
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
    assert 6 < time.monotonic() - began < 10
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
