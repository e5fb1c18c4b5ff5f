"""/stop: whatever the agent does and however much waits, the turn ends, what it said stays, the session goes on.

The times are asserted with a bound that only a hang reaches; tests/bench/bench_stop.py prints them.
"""

import asyncio
import shlex
from pathlib import Path

import pytest

from kai.demo.botapi.flood import realistic
from kai.demo.botapi.views import MessageView
from kai.demo.launcher import offline_agent

from .agents import running
from .conftest import ALICE, Stage, Stages

SOON = 5.0
"""Seconds: far more than /stop takes, far less than anything that it must not wait for."""
QUEUED = 100
ASK = {"users": [{"telegram_id": ALICE, "name": "alice", "approvals": "ask"}]}
AGENT = "kai-agent@alice"


def handed_out(stage: Stage, update: int | None) -> float:
    """When the bot was given this update."""
    for call in stage.api.calls("getUpdates"):
        result = (call.answer or {}).get("result") or []
        if any(each["update_id"] == update for each in result):
            return call.answered or 0.0
    raise AssertionError(f"update {update} was never handed out")


def seen(stage: Stage, contains: str) -> float | None:
    """When this could first be read in the chat."""
    versions = [v for m in stage.api.messages(ALICE) if m.by_bot for v in m.versions if contains in (v.text or "")]
    return min((version.at for version in versions), default=None)


async def stops(stage: Stage, outcome: str = "⏹ Stopped", *, command: str = "/stop") -> MessageView:
    """Say /stop; the message that tells the outcome, which is there in time."""
    said = stage.api.say(ALICE, command)
    answer = await stage.answer(outcome, timeout=30)
    ended = seen(stage, outcome)
    assert ended
    assert ended - handed_out(stage, said.update_id) < SOON
    return answer


async def queued(stage: Stage, count: int = QUEUED, text: str = "say turn-{}") -> None:
    """So many messages wait, and the chat says so."""
    for number in range(count):
        stage.say(text.format(number))
    await stage.api.wait_for(lambda: any(f"{count} messages wait" in text for text in stage.shown()), timeout=60)


async def goes_on(stage: Stage, prompt: str) -> None:
    """The session still knows the turn that was stopped."""
    last = max(m.message_id for m in stage.api.messages(ALICE))
    stage.say("history")
    answer = await stage.answer("history", after=last, timeout=30)
    assert prompt in (answer.text or "")


async def test_stop_in_the_middle_of_text_keeps_what_was_said(stage: Stage) -> None:
    stage.say("slow 200")
    await stage.growing("word3")
    stopped = await stops(stage)
    assert "word3" in (stopped.text or "")
    await goes_on(stage, "slow 200")


async def test_stop_ends_a_command_and_what_it_started(stage: Stage) -> None:
    stage.say("! sleep 4324 & sleep 4324")
    await stage.growing("⚙ Bash: sleep 4324")
    async with asyncio.timeout(SOON):
        while len(running("4324")) < 2:
            await asyncio.sleep(0.02)
    await stops(stage)
    async with asyncio.timeout(SOON):
        while running("4324"):
            await asyncio.sleep(0.02)
    await goes_on(stage, "sleep 4324")


async def test_stop_takes_back_what_waits_for_approval(stages: Stages, tmp_path: Path) -> None:
    stage: Stage = await stages(**ASK)
    stage.say(f"! touch {tmp_path}/ran")
    question = await stage.growing("asks for your approval")
    await stops(stage)
    settled = await stage.answer("⏹ Withdrawn")
    assert settled.message_id == question.message_id
    assert not (tmp_path / "ran").exists()
    await goes_on(stage, "touch")


def slow_to_start(tmp_path: Path, seconds: float) -> list[str]:
    """The offline agent, which begins only after a while."""
    agent = offline_agent(tmp_path / "agent")
    return ["/bin/sh", "-c", f'sleep {seconds}; exec {shlex.join(agent)} "$@"', "agent"]


async def test_stop_does_not_wait_for_an_agent_that_is_slow_to_start(stages: Stages, tmp_path: Path) -> None:
    stage: Stage = await stages(agent_command=slow_to_start(tmp_path, 4322))
    stage.say("say never")
    await stage.growing()
    await stage.api.wait_for(lambda: "starting" in stage.status(AGENT) or None, timeout=10)
    await stops(stage)
    assert not any("never" in text for text in stage.shown())


async def test_stop_in_the_same_breath_as_the_message(stages: Stages, tmp_path: Path) -> None:
    counter = tmp_path / "runs"
    stage: Stage = await stages(runs=counter)
    stage.say("slow 300")
    said = stage.api.say(ALICE, "/stop")
    await stage.api.wait_for(lambda: seen(stage, "⏹ Stopped") or seen(stage, "Dropped"), timeout=30)
    ended = seen(stage, "⏹")
    assert ended
    assert ended - handed_out(stage, said.update_id) < SOON
    stage.say("say after")
    await stage.answer("after")
    assert not any("word20" in text for text in stage.shown())


@pytest.mark.parametrize("limits", ["", "realistic"], ids=["", "with Telegram's flood limits"])
async def test_stop_overtakes_a_hundred_messages_that_wait(stage: Stage, limits: str) -> None:
    if limits:
        stage.api.flood.set(realistic())
    stage.say("slow 3000")
    await stage.growing("word3")
    await queued(stage)
    stopped = await stops(stage)
    assert "word3" in (stopped.text or "")
    await stage.answer("⏹ Stopping.", timeout=30)
    first, *_ = [call.params["text"] for call in stage.api.calls("sendMessage") if "⏹" in call.params.get("text", "")]
    assert first == "⏹ Stopping."
    await stage.answer("turn-0", timeout=30)
    stage.say("/stop all")
    await stage.answer("waiting dropped", timeout=30)


async def test_stop_that_comes_with_a_hundred_messages_in_one_delivery(stage: Stage, tmp_path: Path) -> None:
    stage.say("slow 3000")
    await stage.growing("word3")
    for number in range(QUEUED - 1):
        stage.say(f"say turn-{number}")
    await stops(stage)
    stage.say("/stop all")
    await stage.answer("waiting dropped", timeout=30)


async def test_stop_all_drops_a_hundred_and_runs_none_of_them(stages: Stages, tmp_path: Path) -> None:
    counter = tmp_path / "runs"
    stage: Stage = await stages(runs=counter)
    stage.say("slow 3000")
    await stage.growing("word3")
    await queued(stage)
    await stops(stage, f"{QUEUED} waiting dropped", command="/stop all")
    await stage.answer("⏹ Stopped")
    stage.say("say still here")
    await stage.answer("still here")
    assert len(counter.read_text().splitlines()) == 2
    await stage.api.wait_for(lambda: not any("messages wait" in text for text in stage.shown()))


async def test_the_button_stops_behind_a_hundred_too(stage: Stage) -> None:
    stage.say("slow 3000")
    message = await stage.growing("word3")
    await queued(stage)
    pressed = stage.api.press(ALICE, message.message_id, label="⏹ Stop")
    await stage.answer("⏹ Stopped", timeout=30)
    ended = seen(stage, "⏹ Stopped")
    assert ended
    assert ended - handed_out(stage, pressed.update_id) < SOON
    await stage.api.wait_for(lambda: stage.api.callback(pressed.callback_id).answered)
    stage.say("/stop all")
    await stage.answer("waiting dropped", timeout=30)
