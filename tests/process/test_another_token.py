"""The token of another bot on the state of the first: nothing of either is lost, mixed up, or run twice (issue S4)."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kai.demo.botapi.server import BotApi
from kai.interfaces import Entry, Queue
from kai.lib.client import Client

from .conftest import ALICE, TOKEN, Stage, Stages
from .test_recovery import stop

OTHER = "7654321:another-token-that-is-long-enough"


@pytest.fixture
async def other() -> AsyncIterator[BotApi]:
    """Telegram as another bot has it; the numbers of updates and messages are the same."""
    api = BotApi(token=OTHER)
    await api.start()
    api.declare_user(ALICE)
    yield api
    await api.stop()


async def change(stage: Stage, api: BotApi, token: str) -> Stage:
    """The operator puts a token in place and starts the bot again; the chat with that bot."""
    base = stage.launcher.directory
    settings = json.loads((base / "etc/kai.yaml").read_text())
    settings["telegram"]["api_base"] = api.url
    (base / "etc/kai.yaml").write_text(json.dumps(settings))
    (base / "credentials/kai-telegram-token").write_text(token)
    await stage.launcher.restart("kai-bot")
    await api.wait_polling()
    return Stage(api, stage.launcher)


async def rows(stage: Stage) -> dict[str, Entry]:
    """All rows of the inbox by their text."""
    entries = await Client(stage.launcher.runtime / "bot.sock").call(Queue(everything=True))
    return {entry.text: entry for entry in entries.entries if entry.id.startswith("i")}


async def test_what_came_by_one_token_waits_for_it_while_another_is_used(
    stages: Stages, other: BotApi, tmp_path: Path
) -> None:
    counter = tmp_path / "runs"
    first: Stage = await stages(runs=counter)
    first.say("slow 10")
    await first.growing("word2")
    first.say("say the first bot's second")
    first.say("say the first bot's third")
    await first.api.wait_for(lambda: any("2 messages wait" in text for text in first.shown()))
    before = await rows(first)

    second = await change(first, other, OTHER)
    second.say("say the second bot's first")
    await second.answer("the second bot's first", timeout=30)
    second.say("say the second bot's second")
    await second.answer("the second bot's second", timeout=30)
    now = await rows(second)
    for text, entry in before.items():
        assert (now[text].state, now[text].turn, now[text].bot) == (entry.state, entry.turn, entry.bot)
    assert before["say the first bot's third"].turn not in {e.turn for e in now.values() if "second bot" in e.text}
    assert len(second.shown()) == 2, "what the first bot shows is not touched by the second"
    assert not other.calls("deleteMessage")
    assert not any("first bot" in text for text in second.shown())
    assert "wait for the token of another bot" in second.launcher.logs("kai-bot")

    await change(first, first.api, TOKEN)
    await first.answer("word10", timeout=30)
    await first.answer("the first bot's third", timeout=30)
    answers = [text for text in first.shown() if "first bot" in text]
    assert answers == ["the first bot's second", "the first bot's third"]
    await first.api.wait_for(lambda: not any("wait for" in text for text in first.shown()))
    assert len(counter.read_text().splitlines()) == 5


async def test_a_new_token_of_the_same_bot_changes_nothing(stages: Stages, tmp_path: Path) -> None:
    counter = tmp_path / "runs"
    stage: Stage = await stages(runs=counter)
    stage.say("slow 10")
    await stage.growing("word2")
    stage.say("say what waits")
    await stop(stage)
    renewed = TOKEN.partition(":")[0] + ":a-renewed-token-that-is-long-enough"
    stage.api.token = renewed
    await change(stage, stage.api, renewed)
    await stage.answer("word10", timeout=30)
    await stage.answer("what waits", timeout=30)
    assert len(counter.read_text().splitlines()) == 2
