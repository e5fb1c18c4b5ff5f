"""A turn that was cut off: what it had said stays, it never runs again by itself, and the user decides, once (S4.6)."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import pytest

from kai.demo.botapi.faults import Fault
from kai.demo.botapi.views import MessageView

from .conftest import ALICE, Stage, Stages

AGENT = "kai-agent@alice"
CUT = "⚠ This turn was cut off: "
BEFORE = "This was decided already."


class Scene:
    """A set, what its agent was asked, and what its user is shown."""

    def __init__(self, stage: Stage, runs: Path) -> None:
        self.stage, self.runs = stage, runs

    def prompts(self) -> list[str]:
        lines = self.runs.read_text().splitlines() if self.runs.exists() else []
        return [str(json.loads(line)["text"]) for line in lines]

    def said(self) -> list[dict[str, Any]]:
        """The assistant's lines of the history."""
        where = self.stage.launcher.directory / "state/users/alice/history"
        lines = [json.loads(line) for path in sorted(where.iterdir()) for line in path.read_text().splitlines()]
        return [line for line in lines if line["dir"] == "assistant"]

    async def cut(self, *, bot_too: bool = False) -> MessageView:
        """Have a turn cut off after its third word; the message that asks what is to become of it."""
        self.stage.say("slow 300")
        await self.stage.growing("word3", timeout=30)
        if bot_too:
            await self.end("kai-bot", signal.SIGTERM)
            await asyncio.sleep(2)  # words that nobody but the journal has heard
        await self.end(AGENT)
        if bot_too:
            await self.stage.launcher.restart("kai-bot")
        return await self.stage.growing(CUT, timeout=30)

    async def end(self, unit: str, how: signal.Signals = signal.SIGKILL) -> None:
        self.stage.launcher.kill(unit, how)
        await self.stage.launcher.wait_exit(unit)

    async def press(self, message: MessageView, label: str) -> str:
        """What a press is answered with."""
        return await self.answered(self.tap(message, label))

    def tap(self, message: MessageView, label: str) -> str:
        data = {button["text"]: button["callback_data"] for row in keyboard(message) for button in row}
        return self.stage.api.press(ALICE, message.message_id, data=data[label]).callback_id

    async def answered(self, callback: str) -> str:
        await self.stage.api.wait_for(lambda: self.stage.api.callback(callback).answered, timeout=30)
        return self.stage.api.callback(callback).text

    async def decided(self, message: MessageView, words: str) -> MessageView:
        """The message once it has lost its buttons."""

        def look() -> MessageView | None:
            shown = self.stage.api.message_view(ALICE, message.message_id)
            return None if shown.buttons else shown

        shown = await self.stage.api.wait_for(look, timeout=30)
        assert (shown.text or "") == f"{message.text}\n\n{words}"
        return shown

    async def goes_on(self, message: MessageView) -> MessageView:
        """The answer of the turn that continues: what it is asked is not among what the offline agent knows."""
        return await self.stage.answer("I can't think about that", after=message.message_id, timeout=30)


def keyboard(message: MessageView) -> list[list[dict[str, str]]]:
    rows: list[list[dict[str, str]]] = (message.reply_markup or {}).get("inline_keyboard", [])
    return rows


@pytest.fixture
async def scene(stages: Stages, tmp_path: Path) -> Scene:
    stage: Stage = await stages(runs=tmp_path / "runs")
    return Scene(stage, tmp_path / "runs")


@pytest.mark.parametrize("bot_too", [False, True])
async def test_continue_runs_one_new_turn_that_names_the_old_one(scene: Scene, bot_too: bool) -> None:
    message = await scene.cut(bot_too=bot_too)
    assert message.buttons == ["Continue", "Drop"]
    assert f"word{8 if bot_too else 3} " in (message.text or ""), "what had been said is shown"
    assert scene.prompts() == ["slow 300"], "nothing runs by itself"
    data = keyboard(message)[0][0]["callback_data"]
    assert await scene.press(message, "Continue") == "▶ Continued"
    await scene.decided(message, "▶ Continued")
    await scene.goes_on(message)
    assert await scene.press(message, "Continue") == BEFORE
    assert await scene.press(message, "Drop") == BEFORE
    first, second = scene.prompts()
    assert first == "slow 300"
    assert data.removeprefix("continue:") in second
    assert "> slow 300" in second
    scene.stage.say("! echo and-on")
    await scene.stage.answer("and-on")
    assert len(scene.prompts()) == 3


async def test_drop_ends_it_and_the_next_message_is_a_turn_as_any_other(scene: Scene) -> None:
    message = await scene.cut()
    assert await scene.press(message, "Drop") == "✗ Dropped"
    await scene.decided(message, "✗ Dropped")
    assert await scene.press(message, "Continue") == BEFORE
    scene.stage.say("! echo next")
    await scene.stage.answer("next")
    assert scene.prompts() == ["slow 300", "! echo next"]


@pytest.mark.parametrize("labels", [("Continue", "Continue"), ("Continue", "Drop"), ("Drop", "Continue")])
async def test_of_two_presses_that_come_together_the_first_counts(scene: Scene, labels: tuple[str, str]) -> None:
    message = await scene.cut()
    await scene.end("kai-bot", signal.SIGTERM)
    first, second = (scene.tap(message, label) for label in labels)
    await scene.stage.launcher.restart("kai-bot")
    words = {"Continue": "▶ Continued", "Drop": "✗ Dropped"}[labels[0]]
    assert await scene.answered(first) == words
    assert await scene.answered(second) == BEFORE
    await scene.decided(message, words)
    if labels[0] == "Continue":
        await scene.goes_on(message)
    scene.stage.say("! echo next")
    await scene.stage.answer("next")
    assert len(scene.prompts()) == (3 if labels[0] == "Continue" else 2)


@pytest.mark.parametrize("label", ["Continue", "Drop"])
async def test_a_bot_that_is_killed_right_after_the_press_shows_the_decision_later(scene: Scene, label: str) -> None:
    message = await scene.cut()
    scene.stage.api.add_fault(Fault(kind="drop", method="editMessageText", count=None))
    scene.tap(message, label)
    await scene.stage.api.wait_for(
        lambda: scene.stage.api.calls("editMessageText")[-1].status != 200 or len(scene.prompts()) > 1, timeout=15
    )
    await scene.end("kai-bot")
    scene.stage.api.faults.clear()
    await scene.stage.launcher.wait_ready("kai-bot", within=30)
    await scene.decided(message, {"Continue": "▶ Continued", "Drop": "✗ Dropped"}[label])
    if label == "Continue":
        await scene.goes_on(message)
    assert len(scene.prompts()) == (2 if label == "Continue" else 1)


async def test_a_continue_waits_its_turn_and_takes_the_buttons_away_at_once(scene: Scene) -> None:
    message = await scene.cut()
    scene.stage.say("slow 15")
    await scene.stage.api.wait_for(lambda: len(scene.prompts()) == 2, timeout=30)
    assert await scene.press(message, "Continue") == "▶ Continued This waits for the running turn."
    await scene.decided(message, "▶ Continued")
    assert len(scene.prompts()) == 2
    await scene.stage.answer("word15")
    await scene.goes_on(message)
    assert len(scene.prompts()) == 3


async def test_what_a_turn_had_said_is_in_the_history_once(scene: Scene) -> None:
    await scene.cut(bot_too=True)
    for mark in ("first", "second"):
        scene.stage.say(f"! echo the-{mark}")
        await scene.stage.answer(f"the-{mark}", timeout=30)
        await scene.end(AGENT, signal.SIGTERM)
    parts = [line["text"] for line in scene.said() if "word" in line["text"]]
    assert len(parts) == 1
    assert parts[0].startswith("word1 word2 word3 ")


async def test_a_drain_that_runs_out_asks_and_a_stop_does_not(stages: Stages, tmp_path: Path) -> None:
    stage: Stage = await stages(runs=tmp_path / "runs", settings={"drain": 1}, stop_patience=60.0)
    scene = Scene(stage, tmp_path / "runs")
    stage.say("slow 300")
    await stage.growing("word3", timeout=30)
    stage.launcher.kill(AGENT, signal.SIGTERM)
    message = await stage.growing(CUT, timeout=30)
    assert "told to stop" in (message.text or "")
    assert "word3 " in (message.text or "")
    assert await scene.press(message, "Drop") == "✗ Dropped"
    stage.say("slow 300")
    await stage.api.wait_for(lambda: len(scene.prompts()) == 2, timeout=15)
    await stage.growing("word3", timeout=30)
    stage.launcher.kill(AGENT, signal.SIGTERM)
    stage.say("/stop")
    stopped = await stage.answer("⏹ Stopped", timeout=30)
    assert "word3 " in (stopped.text or "")
    assert stopped.buttons == []


async def test_a_turn_of_which_a_new_journal_knows_nothing_asks_too(scene: Scene) -> None:
    stage = scene.stage
    stage.say("slow 300")
    await stage.growing("word3", timeout=30)
    await scene.end("kai-bot", signal.SIGTERM)
    await scene.end(AGENT)
    for path in (stage.launcher.directory / "state/users/alice/state").glob("turns.db*"):
        path.unlink()
    await stage.launcher.restart("kai-bot")
    message = await stage.growing(CUT, timeout=30)
    assert "reset" in (message.text or "")
    assert scene.prompts() == ["slow 300"]
    assert await scene.press(message, "Continue") == "▶ Continued"
    await scene.goes_on(message)
    assert len(scene.prompts()) == 2
