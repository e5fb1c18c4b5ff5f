"""The bot's word with Telegram about its webhook: what it looks for, and what it does then."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from telegram.error import BadRequest, NetworkError

from kai.bot import hook as module
from kai.bot.hook import Hook, Record, Registered, unhook
from kai.interfaces import TakeUpdate
from kai.lib.store import StoreError
from kai.lib.varlink import Busy

URL = "https://kai.example.org/webhook/telegram"


class PlayedTelegram:
    """`set` are the addresses that were set; `info` what getWebhookInfo says; `trouble` is raised once."""

    def __init__(self) -> None:
        self.set: list[tuple[str, str]] = []
        self.deleted = 0
        self.url = ""
        self.error: tuple[datetime, str] | None = None
        self.trouble: list[Exception] = []

    async def set_webhook(self, url: str, secret: str) -> None:
        if self.trouble:
            raise self.trouble.pop(0)
        self.set.append((url, secret))
        self.url = url

    async def webhook_info(self) -> Any:
        date, message = self.error or (None, None)
        return SimpleNamespace(url=self.url, pending_update_count=3, last_error_date=date, last_error_message=message)

    async def delete_webhook(self) -> None:
        self.deleted += 1
        self.url = ""

    def parse(self, updates: list[dict[str, Any]]) -> list[Any]:
        return updates


class PlayedInbox:
    def __init__(self) -> None:
        self.stored: list[int] = []
        self.offsets: list[int] = []
        self.fault: Exception | None = None

    async def receive(self, updates: list[dict[str, Any]], offset: int) -> list[Any]:
        if self.fault:
            raise self.fault
        self.offsets.append(offset)
        self.stored += [one["update_id"] for one in updates]
        return updates


class Scene:
    def __init__(self, directory: Path) -> None:
        self.api, self.inbox = PlayedTelegram(), PlayedInbox()
        self.said: list[str] = []
        self.taken: list[Any] = []
        self.record = Record(directory)
        sorter: Any = SimpleNamespace(sort=lambda updates: updates)
        api: Any = self.api
        inbox: Any = self.inbox
        self.hook = Hook(api, inbox, sorter, self.taken.extend, self.said.append, self.record)

    async def running(self, condition: Any) -> None:
        task = asyncio.create_task(self.hook.run(URL))
        try:
            async with asyncio.timeout(5):
                while not condition():
                    await asyncio.sleep(0.005)
        finally:
            task.cancel()

    async def take(self, update: str, secret: str = "s") -> bool:
        unused: Any = None
        return (await self.hook.take(unused, TakeUpdate(update, secret))).taken


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    monkeypatch.setattr(module, "CHECK_PERIOD", 0.01)
    monkeypatch.setattr(module, "REFUSED_PERIOD", 0.01)
    return Scene(tmp_path)


async def test_the_secret_is_on_disk_before_telegram_hears_of_it_and_stays(scene: Scene) -> None:
    await scene.running(lambda: scene.api.set)
    url, secret = scene.api.set[0]
    assert (url, len(secret) > 40) == (URL, True)
    assert scene.record.read() == Registered(secret, URL)
    again = Scene(scene.record.path.parent)
    await again.running(lambda: again.api.set)
    assert again.api.set[0] == (URL, secret)


async def test_a_webhook_that_somebody_has_changed_is_set_again_while_it_runs(scene: Scene) -> None:
    def meddling() -> bool:
        if "webhook" in scene.said and len(scene.api.set) == 1:
            scene.api.url = "https://elsewhere.example.org"
        return len(scene.api.set) == 2

    await scene.running(meddling)
    assert scene.api.url == URL


async def test_what_telegram_cant_deliver_is_told_and_the_webhook_set_again(scene: Scene) -> None:
    scene.api.error = datetime.now(UTC) + timedelta(seconds=5), "Connection refused"
    await scene.running(lambda: len(scene.api.set) >= 3)
    assert "Telegram can't deliver: Connection refused, 3 updates wait there" in scene.said


async def test_an_error_of_before_is_over(scene: Scene) -> None:
    scene.api.error = datetime.now(UTC) - timedelta(hours=1), "Connection refused"
    await scene.running(lambda: scene.said.count("webhook") > 3)
    assert len(scene.api.set) == 1
    assert not [said for said in scene.said if "deliver" in said]


async def test_trouble_with_telegram_is_told_and_tried_again(scene: Scene) -> None:
    scene.api.trouble = [NetworkError("no route"), BadRequest("bad webhook: no")]
    await scene.running(lambda: "webhook" in scene.said)
    assert any("can't be reached: no route" in said for said in scene.said)
    assert any("refuses the webhook: bad webhook: no" in said for said in scene.said)
    assert len(scene.api.set) == 1


async def opened(scene: Scene) -> None:
    scene.hook.registered = Registered("s", URL)
    scene.hook.opened.set()


async def test_updates_are_stored_in_whatever_order_they_come_and_move_no_offset(scene: Scene) -> None:
    await opened(scene)
    for number in (7, 5, 6):
        assert await scene.take(json.dumps({"update_id": number}))
    assert scene.inbox.stored == [7, 5, 6]
    assert set(scene.inbox.offsets) == {0}
    assert len(scene.taken) == 3


async def test_a_wrong_secret_stores_nothing(scene: Scene) -> None:
    await opened(scene)
    for secret in ("", "S", "ss", "\ud800"):
        assert not await scene.take('{"update_id": 1}', secret)
    assert scene.inbox.stored == []


async def test_what_cant_be_stored_stays_at_telegram(scene: Scene) -> None:
    await opened(scene)
    scene.inbox.fault = StoreError("full")
    with pytest.raises(Busy):
        await scene.take('{"update_id": 1}')


async def test_one_that_fails_for_an_unforeseen_reason_doesnt_come_for_ever(scene: Scene) -> None:
    await opened(scene)
    scene.inbox.fault = RuntimeError("unforeseen")
    assert await scene.take('{"update_id": 1}')
    for rubbish in ("", "[]", "{}", '{"update_id": "x"}', "[" * 100_000):
        assert await scene.take(rubbish)


async def test_before_the_bot_is_ready_telegram_is_asked_to_come_again(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "OPENING", 0.01)
    with pytest.raises(Busy):
        await scene.take('{"update_id": 1}')


async def test_before_polling_its_own_webhook_is_taken_back_and_no_others(scene: Scene) -> None:
    api: Any = scene.api
    await unhook(api, scene.record, scene.said.append)
    assert scene.api.deleted == 0
    scene.record.write(Registered("s", URL))
    scene.api.url = "https://elsewhere.example.org"
    await unhook(api, scene.record, scene.said.append)
    assert (scene.api.deleted, scene.record.read()) == (0, None)
    scene.record.write(Registered("s", URL))
    scene.api.url = URL
    await unhook(api, scene.record, scene.said.append)
    assert (scene.api.deleted, scene.record.read()) == (1, None)


async def test_a_record_that_cant_be_read_makes_a_new_secret(scene: Scene) -> None:
    scene.record.path.write_text("{")
    await scene.running(lambda: scene.api.set)
    assert scene.record.read() == Registered(scene.api.set[0][1], URL)
