"""Bad days at the Bot API stand-in: what a fault does, to the caller and to the chat."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from telegram import Bot
from telegram.error import Conflict, Forbidden, InvalidToken, NetworkError, RetryAfter, TimedOut
from telegram.request import HTTPXRequest

from kai.demo.botapi.faults import Fault
from kai.demo.botapi.server import BotApi
from kai.demo.botapi.world import Bounds

TOKEN = "4242:secret-of-the-test"
ALICE, BOB = 1001, 1002


@pytest.fixture
async def api() -> AsyncIterator[BotApi]:
    server = BotApi(token=TOKEN)
    await server.start()
    for user in (ALICE, BOB):
        server.declare_user(user)
    yield server
    await server.stop()


@pytest.fixture
async def bot(api: BotApi) -> AsyncIterator[Bot]:
    pools = [HTTPXRequest(connection_pool_size=8, httpx_kwargs={"trust_env": False}) for _ in range(2)]
    async with Bot(TOKEN, base_url=api.base_url, request=pools[0], get_updates_request=pools[1]) as one:
        yield one


def texts(api: BotApi, chat: int = ALICE) -> list[str | None]:
    return [message.text for message in api.messages(chat)]


async def test_a_dropped_call_did_nothing(api: BotApi, bot: Bot) -> None:
    api.add_fault(Fault("drop", "sendMessage"))
    with pytest.raises(NetworkError):
        await bot.send_message(ALICE, "one")
    assert texts(api) == []
    await bot.send_message(ALICE, "two")
    lost, _ = api.calls("sendMessage")
    assert (lost.status, lost.lost, lost.fault) == (0, True, "drop")


async def test_a_lost_answer_hides_that_the_call_was_obeyed(api: BotApi, bot: Bot) -> None:
    api.add_fault(Fault("lose", "sendMessage"))
    with pytest.raises(NetworkError):
        await bot.send_message(ALICE, "one")
    assert texts(api) == ["one"]
    (call,) = api.calls("sendMessage")
    assert (call.status, call.lost) == (200, True)


async def test_updates_whose_answer_was_lost_come_again(api: BotApi, bot: Bot) -> None:
    api.say(ALICE, "hello")
    api.add_fault(Fault("lose", "getUpdates"))
    with pytest.raises(NetworkError):
        await bot.get_updates()
    (update,) = await bot.get_updates()
    assert update.message is not None
    assert update.message.text == "hello"


@pytest.mark.parametrize(("acted", "seen"), [(False, []), (True, ["one"])])
async def test_a_502_is_the_fronts_html_before_or_after_acting(
    api: BotApi, bot: Bot, acted: bool, seen: list[str]
) -> None:
    api.add_fault(Fault("status", "sendMessage", code=502, acted=acted))
    with pytest.raises(NetworkError, match="Bad Gateway"):
        await bot.send_message(ALICE, "one")
    assert texts(api) == seen
    (call,) = api.calls("sendMessage")
    assert (call.status, call.answer) == (502, None)


async def test_a_delay_answers_late_but_acts_at_once(api: BotApi, bot: Bot) -> None:
    api.add_fault(Fault("delay", "sendMessage", seconds=1))
    begin = time.monotonic()
    sending = asyncio.create_task(bot.send_message(ALICE, "one"))
    await api.wait_message(ALICE, contains="one")
    assert not sending.done()
    await sending
    assert time.monotonic() - begin >= 1


async def test_a_held_call_acts_late(api: BotApi, bot: Bot) -> None:
    api.add_fault(Fault("hold", "sendMessage", seconds=3))
    sending = asyncio.create_task(bot.send_message(ALICE, "one"))
    with pytest.raises(TimeoutError, match="sendMessage 0"):
        await api.wait_message(ALICE, contains="one", timeout=1)
    await sending
    assert texts(api) == ["one"]


async def test_a_held_call_can_still_be_refused(api: BotApi, bot: Bot) -> None:
    api.add_fault(Fault("hold", "sendMessage", seconds=0.05))
    with pytest.raises(NetworkError, match="Chat not found"):
        await bot.send_message(99, "one")


async def test_a_caller_that_gives_up_is_known_to_have_missed_the_answer(api: BotApi, bot: Bot) -> None:
    api.add_fault(Fault("delay", "sendMessage", seconds=2))
    with pytest.raises(TimedOut):
        await bot.send_message(ALICE, "one", read_timeout=0.05)
    (call,) = await api.wait_for(lambda: [one for one in api.calls("sendMessage") if one.answered])
    assert (call.status, call.lost) == (200, True)


async def test_refusals_come_as_often_as_asked_and_name_what_they_should(api: BotApi, bot: Bot) -> None:
    api.add_fault(Fault("flood", "sendMessage", retry_after=7))
    with pytest.raises(RetryAfter) as flood:
        await bot.send_message(ALICE, "x")
    assert flood.value.retry_after == 7
    api.add_fault(Fault("conflict", "getUpdates", count=2))
    for _ in range(2):
        with pytest.raises(Conflict, match="terminated by other getUpdates"):
            await bot.get_updates()
    assert await bot.get_updates() == ()
    api.add_fault(Fault("unauthorized", "*"))
    with pytest.raises(InvalidToken):
        await bot.get_me()
    assert await bot.get_me()
    assert texts(api) == []


async def test_a_fault_may_skip_calls_and_keep_to_one_chat(api: BotApi, bot: Bot) -> None:
    number = api.add_fault(Fault("flood", "sendMessage", count=None, skip=1, chat_id=ALICE))
    await bot.send_message(ALICE, "first")
    for _ in range(2):
        with pytest.raises(RetryAfter):
            await bot.send_message(ALICE, "second")
    await bot.send_message(BOB, "other")
    api.faults.remove(number)
    await bot.send_message(ALICE, "third")
    assert texts(api) == ["first", "third"]


async def test_chance_is_repeated_by_its_seed(api: BotApi, bot: Bot) -> None:
    async def pattern() -> list[bool]:
        api.faults.clear()
        api.faults.seed(5)
        api.add_fault(Fault("flood", "sendMessage", count=None, probability=0.5))
        outcome = []
        for _ in range(12):
            try:
                await bot.send_message(ALICE, "x")
                outcome.append(True)
            except RetryAfter:
                outcome.append(False)
        return outcome

    first = await pattern()
    assert first == await pattern()
    assert {True, False} == set(first)


def test_a_fault_that_could_never_apply_is_refused() -> None:
    api = BotApi(token=TOKEN)
    for fault in (
        Fault("nonsense"),  # type: ignore[arg-type]
        Fault("status", code=200),
        Fault("drop", probability=2.0),
        Fault("drop", count=0),
    ):
        with pytest.raises(ValueError, match="fault"):
            api.add_fault(fault)


async def test_the_log_of_calls_is_bounded_in_bytes_too() -> None:
    api = BotApi(token=TOKEN, bounds=Bounds(call_bytes=50_000))
    await api.start()
    pools = [HTTPXRequest(httpx_kwargs={"trust_env": False}) for _ in range(2)]
    async with Bot(TOKEN, base_url=api.base_url, request=pools[0], get_updates_request=pools[1]) as bot:
        api.declare_user(ALICE)
        for at in range(30):
            await bot.send_message(ALICE, f"{at:04000}")
    await api.stop()
    kept = api.calls()
    assert 3 < len(kept) < 10
    assert kept[-1].params["text"] == f"{29:04000}"


async def test_logs_are_bounded() -> None:
    api = BotApi(token=TOKEN, bounds=Bounds(calls=5, changes=5, messages=3, versions=2, callbacks=2))
    await api.start()
    pools = [HTTPXRequest(httpx_kwargs={"trust_env": False}) for _ in range(2)]
    async with Bot(TOKEN, base_url=api.base_url, request=pools[0], get_updates_request=pools[1]) as bot:
        api.declare_user(ALICE)
        for at in range(10):
            message = await bot.send_message(ALICE, str(at))
        for at in range(10):
            await message.edit_text(f"edit {at}")
    await api.stop()
    assert len(api.calls()) == 5
    assert api.calls()[-1].seq == 21
    assert texts(api) == ["7", "8", "edit 9"]
    assert [one.text for one in api.messages(ALICE)[-1].versions] == ["edit 8", "edit 9"]
    seen = api.changes(0)
    assert (len(seen.changes), seen.missed) == (5, True)
    assert not api.changes(seen.version - 2).missed


async def test_any_refusal_can_be_had_in_telegrams_words(api: BotApi, bot: Bot) -> None:
    api.add_fault(Fault(kind="refuse", code=403, description="Forbidden: user is deactivated"))
    with pytest.raises(Forbidden, match="user is deactivated"):
        await bot.send_message(ALICE, "x")
    for code, description in ((403, "Bad Request: x"), (500, "Internal"), (400, "")):
        with pytest.raises(ValueError, match="fault refuse"):
            api.add_fault(Fault(kind="refuse", code=code, description=description))
