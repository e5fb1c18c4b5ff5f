"""Updates that Telegram posts: through the real kai-webhook to the real bot, once each, whatever is killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from kai.interfaces import TakeUpdate
from kai.lib.client import Client
from kai.lib.varlink import Busy

from .conftest import ALICE, STRANGER, Stages
from .hooks import HookSet

URL = "https://kai.example.org/webhook/telegram"
WEBHOOK = {"telegram": {"mode": "webhook", "webhook_url": URL}}
Made = Callable[..., Awaitable[HookSet]]


@pytest.fixture
async def made(stages: Stages, tmp_path: Path) -> Made:
    """A set in webhook mode; with `polling`, one that polls."""

    async def make(*, polling: bool = False, runs: Path | None = None) -> HookSet:
        stage = await stages(start=False, runs=runs, settings={} if polling else WEBHOOK)
        await stage.launcher.start()
        hooks = HookSet(stage)
        stage.api.lead = hooks.socket
        await stage.api.stop()
        await stage.api.start(port=stage.api.port)
        await stage.launcher.wait_ready("kai-bot")
        if not polling:
            await registered(hooks)
        return hooks

    return make


async def registered(hooks: HookSet, *, url: str = URL) -> None:
    await hooks.api.wait_for(lambda: hooks.api.webhook.get("url") == url, timeout=20)


async def switch(hooks: HookSet, mode: str) -> None:
    """What an operator does: another mode in kai.yaml, and a restart."""
    path = hooks.launcher.directory / "etc/kai.yaml"
    settings = json.loads(path.read_text())
    settings["telegram"] |= {"mode": mode, "webhook_url": URL}
    path.write_text(json.dumps(settings))
    await hooks.launcher.services["kai-bot"].stop()
    hooks.launcher.services["kai-bot"].start()


def kill(hooks: HookSet, unit: str = "kai-bot") -> None:
    pid = hooks.launcher.services[unit].pid
    assert pid
    os.kill(pid, signal.SIGKILL)


def prompts(hooks: HookSet, runs: Path) -> list[str]:
    return runs.read_text().splitlines() if runs.exists() else []


async def test_a_message_is_answered(made: Made) -> None:
    hooks = await made()
    hooks.stage.say("say hello by webhook")
    await hooks.stage.answer("hello by webhook")
    assert hooks.api.updates.waiting() == []
    assert "getUpdates" not in {call.method for call in hooks.api.calls()}
    assert hooks.stage.status().startswith("running: webhook as @") or "webhook" in hooks.stage.status()


async def test_the_secret_is_the_bots_alone_and_nothing_passes_without_it(made: Made) -> None:
    hooks = await made()
    secret = hooks.api.webhook["secret_token"]
    assert len(secret) >= 40
    body = json.dumps({"update_id": 1, "message": {}}).encode()
    for header in ({}, {"X-Telegram-Bot-Api-Secret-Token": "wrong"}, {"X-Telegram-Bot-Api-Secret-Token": secret[:-1]}):
        given = {"Content-Type": "application/json", **header}
        assert (await hooks.request("POST", "/webhook/telegram", given, body)).status == 401
    path = hooks.launcher.directory / "state/bot/telegram-webhook.json"
    assert secret in path.read_text()
    logs = hooks.launcher.directory / "logs"
    assert not [log for log in logs.iterdir() if secret in log.read_text()]


async def test_what_is_no_update_is_left_out_and_doesnt_come_for_ever(made: Made) -> None:
    hooks = await made()
    given = {"Content-Type": "application/json", "X-Telegram-Bot-Api-Secret-Token": hooks.api.webhook["secret_token"]}
    for body in (b"{}", b"nonsense", b"[" * 5000, b'{"update_id": 5, "message": {"odd": 1}}', b"\xff"):
        assert (await hooks.request("POST", "/webhook/telegram", given, body)).status in (200, 400)
    assert (await hooks.request("POST", "/webhook/telegram", given, b"x" * ((256 << 10) + 1))).status == 413
    hooks.stage.say("say still well")
    await hooks.stage.answer("still well")


async def test_a_stranger_gets_nothing(made: Made) -> None:
    hooks = await made()
    hooks.stage.say("hello", STRANGER)
    await hooks.api.wait_for(lambda: not hooks.api.updates.waiting())
    hooks.stage.say("say for me")
    await hooks.stage.answer("for me")
    assert hooks.stage.shown(STRANGER) == []


async def test_messages_keep_their_order_and_come_once(made: Made, tmp_path: Path) -> None:
    hooks = await made(runs=tmp_path / "runs")
    for number in range(20):
        hooks.stage.say(f"say the number-{number}-")
    await hooks.stage.answer("number-19-", timeout=60)
    shown = [text for text in hooks.stage.shown() if "number-" in text]
    assert [f"number-{number}-" in text for number, text in enumerate(shown)] == [True] * 20
    assert len(prompts(hooks, tmp_path / "runs")) == 20


async def test_the_same_update_again_runs_once(made: Made, tmp_path: Path) -> None:
    hooks = await made(runs=tmp_path / "runs")
    hooks.stage.say("say only once")
    await hooks.stage.answer("only once")
    update = hooks.api.messages(ALICE)[0]
    body = {
        "update_id": hooks.api.updates._next_id - 1,
        "message": {"message_id": update.message_id, "date": 1, "text": "say only once",
                    "chat": {"id": ALICE, "type": "private"},
                    "from": {"id": ALICE, "is_bot": False, "first_name": "A"}},
    }  # fmt: skip
    given = {"Content-Type": "application/json", "X-Telegram-Bot-Api-Secret-Token": hooks.api.webhook["secret_token"]}
    for _ in range(3):
        answer = await hooks.request("POST", "/webhook/telegram", given, json.dumps(body).encode())
        assert answer.status == 200
    hooks.stage.say("say the end")
    await hooks.stage.answer("the end")
    assert len(prompts(hooks, tmp_path / "runs")) == 2


async def test_what_comes_while_the_bot_is_away_comes_when_it_is_back(made: Made, tmp_path: Path) -> None:
    hooks = await made(runs=tmp_path / "runs")
    await hooks.bot_leaves()
    hooks.stage.say("say after the pause")
    await hooks.api.wait_for(lambda: hooks.api.webhook.get("last_error_message"), timeout=20)
    assert "503" in hooks.api.webhook["last_error_message"]
    hooks.bot_returns()
    await hooks.stage.answer("after the pause", timeout=30)
    assert len(prompts(hooks, tmp_path / "runs")) == 1


@pytest.mark.parametrize("unit", ["kai-bot", "kai-webhook"])
async def test_kills_in_the_stream_of_messages_lose_and_double_nothing(made: Made, tmp_path: Path, unit: str) -> None:
    hooks = await made(runs=tmp_path / "runs")
    await hooks.read()
    for number in range(12):
        hooks.stage.say(f"say the number-{number}-")
        await asyncio.sleep(0.05 * (number % 4))
        if number % 3 == 0 and hooks.launcher.services[unit].pid:
            kill(hooks, unit)
    for number in range(12):
        await hooks.stage.answer(f"number-{number}-", timeout=60)
    await hooks.api.wait_for(lambda: not hooks.api.updates.waiting(), timeout=30)
    assert len(prompts(hooks, tmp_path / "runs")) == 12


async def test_a_webhook_that_somebody_changed_is_registered_again(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    hooks = await made()
    await hooks.launcher.services["kai-bot"].stop()
    hooks.api.webhook |= {"url": "https://elsewhere.example.org/", "secret_token": "of somebody else"}
    hooks.launcher.services["kai-bot"].start()
    await registered(hooks)
    hooks.stage.say("say it is back")
    await hooks.stage.answer("it is back", timeout=30)


async def test_back_to_polling_takes_what_waits_and_nothing_twice(made: Made, tmp_path: Path) -> None:
    hooks = await made(runs=tmp_path / "runs")
    hooks.stage.say("say by webhook")
    await hooks.stage.answer("by webhook")
    await hooks.launcher.services["kai-webhook"].close()
    hooks.stage.say("say while it waits")
    await hooks.api.wait_for(lambda: hooks.api.webhook.get("last_error_message"), timeout=20)
    await switch(hooks, "polling")
    await hooks.stage.answer("while it waits", timeout=30)
    assert hooks.api.webhook == {}
    assert not (hooks.launcher.directory / "state/bot/telegram-webhook.json").exists()
    assert len(prompts(hooks, tmp_path / "runs")) == 2
    del hooks.launcher.services["kai-webhook"]


async def test_from_polling_to_the_webhook_everything_comes_once(made: Made, tmp_path: Path) -> None:
    hooks = await made(polling=True, runs=tmp_path / "runs")
    hooks.stage.say("say by polling")
    await hooks.stage.answer("by polling")
    await hooks.launcher.services["kai-bot"].stop()
    hooks.stage.say("say in between")
    await switch(hooks, "webhook")
    await hooks.stage.answer("in between", timeout=30)
    await switch(hooks, "polling")
    hooks.stage.say("say and back")
    await hooks.stage.answer("and back", timeout=30)
    assert len(prompts(hooks, tmp_path / "runs")) == 3


async def test_a_webhook_of_somebody_elses_is_left_alone_by_a_bot_that_polls(made: Made) -> None:
    hooks = await made(polling=True)
    hooks.api.webhook = {"url": "https://elsewhere.example.org/", "secret_token": "", "max_connections": 1}
    await hooks.launcher.services["kai-bot"].stop()
    hooks.launcher.services["kai-bot"].start()
    await hooks.api.wait_for(lambda: "409" in hooks.stage.status(), timeout=20)
    assert hooks.api.webhook["url"] == "https://elsewhere.example.org/"
    hooks.api.webhook = {}


async def test_a_bot_that_polls_takes_no_update_of_kai_webhooks(made: Made) -> None:
    hooks = await made(polling=True)
    with pytest.raises(Busy, match="polled for"):
        await Client(hooks.launcher.runtime / "bot.sock").call(TakeUpdate(update="{}", secret="x"), timeout=30)
    given = {"Content-Type": "application/json", "X-Telegram-Bot-Api-Secret-Token": "x"}
    assert (await hooks.request("POST", "/webhook/telegram", given, b"{}")).status == 404


async def test_its_record_is_readable_by_nobody_else(made: Made) -> None:
    hooks = await made()
    assert stat.S_IMODE((hooks.launcher.directory / "state/bot/telegram-webhook.json").stat().st_mode) == 0o600
