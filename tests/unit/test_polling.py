"""The loop that asks for updates: what it says, to whom, and how often, when Telegram doesn't give any."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import Any

import pytest
from telegram.error import Conflict, NetworkError, TelegramError

from kai.bot import polling as module
from kai.bot.notices import of_blocked, of_conflict, parse
from kai.bot.polling import Polling
from kai.config import Config, Kai, User
from kai.lib.sparing import Sparing

ADMIN, ALICE = User(1, "root", "admin"), User(2, "alice")


class Telegram:
    """Answers with these errors in turn (None: no updates), then for ever with the last."""

    def __init__(self, *answers: TelegramError | None) -> None:
        self.answers, self.asked = list(answers), 0

    async def updates(self, offset: int, patience: int) -> list[dict[str, Any]]:
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        await asyncio.sleep(0.001)
        if answer:
            raise answer
        return []


class Inbox:
    async def offset(self) -> int:
        return 0


async def run(telegram: Telegram, asked: int) -> tuple[list[str], list[float]]:
    """Poll so many times; what the status said, and the alarms."""
    said: list[str] = []
    alarms: list[float] = []

    async def alarm(since: float) -> None:
        alarms.append(since)

    polling = Polling(telegram, Inbox(), None, lambda rows: None, said.append, alarm)  # type: ignore[arg-type]
    task = asyncio.ensure_future(polling.run())
    async with asyncio.timeout(5):
        while telegram.asked < asked:
            await asyncio.sleep(0.001)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    return said, alarms


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONFLICT_PERIOD", 0.01)
    monkeypatch.setattr(module, "CONFLICT_BORNE", 0.1)
    monkeypatch.setattr(module, "delays", lambda: iter([0.001] * 1000))


async def test_a_conflict_that_lasts_is_told_to_admins_once_and_one_that_passes_is_not() -> None:
    assert (await run(Telegram(*[Conflict("409")] * 3, None), 5))[1] == []
    said, alarms = await run(Telegram(Conflict("409")), 40)
    assert len(alarms) == 1
    assert "(409)" in said[-1]


async def test_two_programs_that_poll_in_turns_are_a_conflict_all_the_time(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        _, alarms = await run(Telegram(*[Conflict("409"), None] * 30), 50)
    assert len(alarms) == 1
    assert len([line for line in caplog.messages if "409" in line]) == 1


async def test_a_new_conflict_is_told_again() -> None:
    answers = [*[Conflict("409")] * 30, *[None] * 200, *[Conflict("409")] * 30]
    assert len((await run(Telegram(*answers), 255))[1]) == 2


async def test_the_journal_gets_the_beginning_and_the_end_of_an_outage(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        said, _ = await run(Telegram(*[NetworkError(f"reason {n}") for n in range(100)], None), 105)
    assert caplog.messages == ["Telegram can't be reached: reason 0", "updates come in again"]
    assert said[-1] == "polling"


def test_a_trouble_that_goes_on_is_logged_once_a_minute_with_a_count(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr("kai.lib.sparing.time.monotonic", lambda: clock[0])
    log = Sparing(logging.getLogger("test"))
    for _ in range(121):
        log.log("a", logging.WARNING, "%s is away", "it")
        clock[0] += 1
    assert caplog.messages == [
        "it is away",
        "it is away (and 59 times more since the last such line)",
        "it is away (and 59 times more since the last such line)",
    ]
    assert log.over("a")
    assert not log.over("a")


def test_admins_are_told_and_not_the_one_whose_chat_it_is() -> None:
    config = Config(Kai(), (ADMIN, ALICE, User(3, "second", "admin")))
    assert [(one.user, one.chat) for one in of_blocked(config, 2, 5.0, "why")] == [("root", 1), ("second", 3)]
    (other,) = of_blocked(config, 1, 5.0, "why")
    assert (other.user, other.key) == ("second", "blocked/1/5.000/second")
    assert "messages to root: why." in other.body.text
    assert len({one.key for one in of_conflict(config, 5.0)}) == 2


@pytest.mark.parametrize("data", ["again", "again:", "again:x", "again:-1", "again:²", f"again:{10**19}", "stop:1"])
def test_a_buttons_data_that_is_no_number_means_nothing(data: str) -> None:
    assert parse(data) is None


async def test_the_state_of_polling_is_one_printable_line() -> None:
    said, _ = await run(Telegram(NetworkError("\x1b]0;owned\x07\nalice  idle")), 3)
    assert all(line.isprintable() for line in said)
