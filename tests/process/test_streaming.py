"""How a user wants to see a turn grow: in a message that is edited, as a draft, or not at all (S3)."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import pytest

from kai.demo.botapi.views import MessageView
from kai.interfaces import Set
from kai.lib.client import Client

from .conftest import ALICE, Stage, Stages

AGENT = "kai-agent@alice"


async def staged(stages: Stages, streaming: str = "", **options: Any) -> Stage:
    user = {"telegram_id": ALICE, "name": "alice", **({"streaming": streaming} if streaming else {})}
    stage: Stage = await stages(users=[user], **options)
    return stage


def answers(stage: Stage, after: int) -> list[MessageView]:
    """What the bot has sent since."""
    return [message for message in stage.api.messages(ALICE) if message.by_bot and message.message_id > after]


def drafts(stage: Stage) -> list[str]:
    return [draft.text for draft in stage.api.drafts(ALICE)]


async def warm(stage: Stage) -> int:
    """One answer, so that the next turn may begin before its supervisor is asked anything."""
    stage.say("! echo warm")
    return (await stage.answer("warm")).message_id


@pytest.mark.parametrize("is_warm", [False, True])
async def test_off_sends_the_answer_and_nothing_before_it(stages: Stages, is_warm: bool) -> None:
    stage = await staged(stages, "off")
    if is_warm:
        await warm(stage)
    said = stage.say("slow 10")
    answer = await stage.answer("word10")
    assert [message.message_id for message in answers(stage, said)] == [answer.message_id]
    assert [version.text for version in stage.api.message_view(ALICE, answer.message_id).versions] == [answer.text]
    assert stage.api.calls("editMessageText") == []
    assert stage.api.calls("sendMessageDraft") == []
    assert {action.action for action in stage.api.actions(ALICE)} == {"typing"}


@pytest.mark.parametrize("is_warm", [False, True])
async def test_a_draft_grows_and_the_answer_is_a_message(stages: Stages, is_warm: bool) -> None:
    stage = await staged(stages, "draft")
    if is_warm:
        await warm(stage)
    said = stage.say("slow 20")
    answer = await stage.answer("word20")
    assert [message.message_id for message in answers(stage, said)] == [answer.message_id]
    assert stage.api.calls("editMessageText") == []
    grown = [text for text in drafts(stage) if "word" in text]
    assert len(grown) >= 2
    assert len({draft.draft_id for draft in stage.api.drafts(ALICE)}) == (2 if is_warm else 1), "one for each turn"
    for text in grown:
        words, _, status = text.partition("\n\n")
        assert (answer.text or "").startswith(words.strip())
        assert status.startswith("⏳")
    assert len(grown[-1]) > len(grown[0])


async def test_a_choice_holds_from_the_next_turn_on(stages: Stages) -> None:
    stage = await staged(stages)
    await warm(stage)
    for number, (mode, edits) in enumerate([("off", False), ("edit", True), ("draft", False)], 6):
        stage.say(f"/settings streaming {mode}")
        await stage.answer(f"streaming: {mode}")
        before, shown = len(stage.api.calls("editMessageText")), len(drafts(stage))
        said = stage.say(f"slow {number}")
        answer = await stage.answer(f"word{number}")
        assert [message.message_id for message in answers(stage, said)] == [answer.message_id]
        assert (len(stage.api.calls("editMessageText")) > before) == edits, mode
        assert (len(drafts(stage)) > shown) == (mode == "draft"), mode
    stage.say("/settings reset streaming")
    await stage.answer("taken back")
    said = stage.say("! echo as-before")
    assert len((await stage.answer("as-before")).versions) > 1


async def test_what_the_operator_chooses_holds_at_the_latest_one_turn_later(stages: Stages) -> None:
    stage = await staged(stages)
    await warm(stage)
    await Client(stage.launcher.runtime / "agent/alice.sock").call(Set(field="streaming", value="off"))
    stage.say("! echo between")
    await stage.answer("between")
    edits = len(stage.api.calls("editMessageText"))
    stage.say("! echo quiet")
    assert len((await stage.answer("quiet")).versions) == 1
    assert len(stage.api.calls("editMessageText")) == edits


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("streaming", ["draft", "off"])
async def test_a_bot_that_ends_in_mid_turn_goes_on_as_the_user_wants_it(
    stages: Stages, streaming: str, how: signal.Signals
) -> None:
    stage = await staged(stages, streaming)
    said = stage.say("slow 30")
    await asyncio.sleep(3)
    stage.launcher.kill("kai-bot", how)
    await stage.launcher.wait_exit("kai-bot")
    before = len(drafts(stage))
    if how == signal.SIGTERM:
        await stage.launcher.restart("kai-bot")
    answer = await stage.answer("word30", timeout=30)
    assert [message.message_id for message in answers(stage, said)] == [answer.message_id]
    assert (len(drafts(stage)) > before) == (streaming == "draft")


@pytest.mark.parametrize("streaming", ["draft", "off"])
async def test_a_turn_can_be_stopped_and_its_part_comes(stages: Stages, streaming: str) -> None:
    stage = await staged(stages, streaming)
    await warm(stage)
    stage.say("slow 100")
    await asyncio.sleep(2)
    stage.say("/stop")
    stopped = await stage.answer("\n\n⏹ Stopped.")
    assert (stopped.text or "").startswith("word1 word2 ")


async def test_an_agent_that_cannot_start_is_told_however_little_is_to_be_seen(stages: Stages) -> None:
    stage = await staged(stages, "off")
    await warm(stage)
    users = stage.launcher.directory / "etc/users.yaml"
    good = users.read_text()
    stage.launcher.kill(AGENT, signal.SIGTERM)
    await stage.launcher.wait_exit(AGENT)
    users.write_text("users: nonsense\n")
    stage.say("! echo late")
    waiting = await stage.growing("users.yaml", timeout=20)
    users.write_text(good)
    answer = await stage.answer("late", timeout=30)
    assert answer.message_id == waiting.message_id, "it becomes the answer"
