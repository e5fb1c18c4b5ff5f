"""What Telegram may do to the bot: refuse, forget, flood, go away; and what becomes of the messages then (S3, S4)."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from kai.demo.botapi.faults import Fault
from kai.demo.botapi.views import MessageView
from kai.interfaces import BotStatus, Deliver, Drop, Entries, Entry, Queue, Retry, Show, Status
from kai.lib.client import Client
from kai.lib.varlink import InvalidParameter

from .conftest import ALICE, BOB, TOKEN, Stage, Stages

MISSING = "⚠ A part of the answer may not have arrived."
LONG = "! seq 1 200 | sed 's/$/ words that make it long/'"
"""Its answer takes more than one message."""
USERS = [
    {"telegram_id": ALICE, "name": "alice"},
    {"telegram_id": BOB, "name": "bob", "role": "admin"},
]


def bot(stage: Stage) -> Client:
    return Client(stage.launcher.runtime / "bot.sock")


async def entries(stage: Stage, *, everything: bool = False, user: str = "") -> list[Entry]:
    answer: Entries = await bot(stage).call(Queue(user=user, everything=everything))
    return answer.entries


async def settled(stage: Stage) -> None:
    """What was sent is noted as such: a notice that a crash hits before that may stand in the chat twice."""
    async with asyncio.timeout(10):
        while any(entry.state in ("stored", "sending", "received") for entry in await entries(stage)):
            await asyncio.sleep(0.02)


async def reads(look: Callable[[], object], within: float = 10.0) -> None:
    async with asyncio.timeout(within):
        while not look():
            await asyncio.sleep(0.02)


async def message(stage: Stage, contains: str, *, user: int = ALICE, timeout: float = 15) -> MessageView:
    return await stage.api.wait_message(user, contains=contains, timeout=timeout)


# ---- the one ambiguity ----


async def test_a_part_that_may_not_have_arrived_is_asked_about_once_and_sent_again_when_its_user_says_so(
    stage: Stage,
) -> None:
    stage.api.add_fault(Fault(kind="drop", method="sendMessage", skip=1))
    stage.say(LONG)
    asked = await message(stage, MISSING)
    assert asked.buttons == ["Show again"]
    assert not any("200 words" in text for text in stage.shown())
    await settled(stage)
    stage.launcher.kill("kai-bot")
    await stage.launcher.wait_exit("kai-bot")
    await stage.launcher.wait_ready("kai-bot")
    pressed = stage.api.press(ALICE, asked.message_id, label="Show again")
    stage.api.press(ALICE, asked.message_id, data="again:" + "9" * 30)
    stage.api.press(BOB, stage.api.say(BOB, "/help").message_id, data=await button(stage, asked))
    await message(stage, "200 words")
    await stage.api.wait_for(lambda: stage.api.callback(pressed.callback_id).text == "It is sent again.")
    await stage.api.wait_for(lambda: shown(stage, asked) == f"{MISSING} It is sent again.")
    again = stage.api.press(ALICE, asked.message_id, data=await button(stage, asked))
    await stage.api.wait_for(lambda: stage.api.callback(again.callback_id).text == "This was decided already.")
    assert [text for text in stage.shown() if "may not" in text] == [f"{MISSING} It is sent again."]
    assert sum("200 words" in text for text in stage.shown()) == 1
    await settled(stage)
    assert await entries(stage) == []


async def button(stage: Stage, asked: MessageView) -> str:
    return str(asked.versions[0].reply_markup["inline_keyboard"][0][0]["callback_data"])  # type: ignore[index]


def shown(stage: Stage, message: MessageView) -> str:
    return stage.api.message_view(ALICE, message.message_id).text or ""


async def test_a_lost_confirmation_shows_nothing_twice_by_itself(stage: Stage) -> None:
    stage.api.add_fault(Fault(kind="lose", method="sendMessage", skip=1))
    stage.say(LONG)
    await message(stage, MISSING)
    await asyncio.sleep(1)
    assert sum("200 words" in text for text in stage.shown()) == 1


async def test_an_answer_whose_edit_is_lost_is_edited_again_without_a_question(stage: Stage) -> None:
    stage.api.add_fault(Fault(kind="lose", method="editMessageText", count=2))
    stage.say("! echo repeated")
    await stage.answer("repeated")
    await asyncio.sleep(0.5)
    assert len(stage.shown()) == 1


# ---- refusals ----


async def test_a_chat_that_blocked_the_bot_is_kept_for_told_to_admins_once_and_served_when_its_user_is_back(
    stages: Stages,
) -> None:
    stage: Stage = await stages(users=USERS)
    stage.say("! sleep 1.5; echo kept-answer")
    await stage.growing()
    stage.api.block(ALICE)
    told = await message(stage, "takes no messages to alice", user=BOB)
    assert "blocked by the user" in (told.text or "")
    await bot(stage).call(Deliver(key="k", user="alice", text="kept-notice"))
    calls = len([call for call in stage.api.calls() if call.params.get("chat_id") == str(ALICE)])
    await asyncio.sleep(2)
    after = [call.method for call in stage.api.calls() if call.params.get("chat_id") == str(ALICE)]
    assert len(after) == calls, "it is left alone: no typing, no edit, no message"
    await stage.launcher.restart("kai-bot")
    await asyncio.sleep(0.5)
    assert {entry.state for entry in await entries(stage, user="alice")} <= {"stored", "answered"}
    status: BotStatus = await bot(stage).call(Status())
    assert status.unsent >= 2
    stage.api.block(ALICE, blocked=False)
    stage.say("/help")
    await message(stage, "kept-notice")
    await message(stage, "kept-answer")
    assert sum("takes no messages" in text for text in stage.shown(BOB)) == 1
    await stage.launcher.restart("kai-bot")
    stage.say("! echo works-again")
    await stage.answer("works-again")


@pytest.mark.parametrize(
    ("code", "description"),
    [
        (403, "Forbidden: user is deactivated"),
        (403, "Forbidden: bot can't initiate conversation with a user"),
        (400, "Bad Request: chat not found"),
    ],
)
async def test_a_chat_that_is_closed_in_another_way_keeps_its_messages_too(
    stages: Stages, code: int, description: str
) -> None:
    stage: Stage = await stages(users=USERS)
    stage.api.add_fault(Fault(kind="refuse", code=code, description=description, chat_id=ALICE))
    await bot(stage).call(Deliver(key="k", user="alice", text="kept"))
    await message(stage, "takes no messages to alice", user=BOB)
    assert [entry.state for entry in await entries(stage, user="alice")] == ["stored"]
    stage.say("/start")
    await message(stage, "kept")


async def test_a_topic_that_is_gone_costs_the_topic(stage: Stage) -> None:
    stage.api.add_fault(
        Fault(kind="refuse", code=400, description="Bad Request: message thread not found", method="sendMessage")
    )
    stage.api.open_topic(ALICE, 7)
    stage.api.say(ALICE, "! echo in-a-topic", thread=7)
    await stage.answer("in-a-topic")


async def test_a_message_that_is_refused_for_good_is_a_dead_letter_told_listed_and_sent_again_by_the_operator(
    stage: Stage,
) -> None:
    stage.api.add_fault(Fault(kind="refuse", code=400, description="Bad Request: it is odd", method="sendMessage"))
    await bot(stage).call(Deliver(key="k", user="alice", text="odd message"))
    await message(stage, "could not be sent and is kept for the operator (kai queue): It is odd")
    await settled(stage)
    (entry,) = await entries(stage)
    assert (entry.state, entry.kind, entry.text, entry.error) == ("dead", "message", "odd message", "It is odd")
    details = await bot(stage).call(Show(id=entry.id))
    assert details.entry == entry
    assert (await bot(stage).call(Retry(id=entry.id))).state in ("stored", "sending", "sent")
    await message(stage, "odd message")
    with pytest.raises(InvalidParameter, match="only what is dead or unknown"):
        await bot(stage).call(Retry(id=entry.id))
    with pytest.raises(InvalidParameter, match="can't be given up"):
        await bot(stage).call(Drop(id=entry.id))
    for wrong in ("", "x1", "i99999", "o" + "9" * 18, "o1; DROP TABLE outbox"):
        with pytest.raises(InvalidParameter, match="id:"):
            await bot(stage).call(Show(id=wrong))


async def test_an_answer_to_a_placeholder_that_its_user_deleted_is_a_new_message(stage: Stage) -> None:
    stage.say("slow 10")
    growing = await stage.growing("word2")
    stage.api.delete(ALICE, growing.message_id)
    answer = await stage.answer("word10")
    assert answer.message_id != growing.message_id


# ---- floods ----


async def test_a_long_flood_delays_messages_and_costs_none_and_decoration_stays_away(stage: Stage) -> None:
    stage.say("slow 40")
    await stage.growing("word1")
    stage.api.add_fault(Fault(kind="flood", method="sendMessage", retry_after=4))
    await bot(stage).call(Deliver(key="k", user="alice", text="a notice"))
    await stage.api.wait_for(lambda: [c for c in stage.api.calls("sendMessage") if c.status == 429])
    began = time.monotonic()
    typing = len(stage.api.calls("sendChatAction"))
    stage.say("! echo after")
    await asyncio.sleep(3)
    assert len(stage.api.calls("sendChatAction")) == typing, "no typing while the flood lasts"
    assert stage.api.calls("setMessageReaction") == [], "and no marks"
    await stage.answer("a notice")
    assert time.monotonic() - began >= 3.5
    await stage.answer("word40", timeout=30)
    await stage.answer("after", timeout=30)


async def test_the_answer_comes_while_messages_have_to_wait_for_minutes(stage: Stage) -> None:
    stage.say("slow 12")
    await stage.growing("word1")
    stage.api.add_fault(Fault(kind="flood", method="sendMessage", retry_after=120, count=None))
    await bot(stage).call(Deliver(key="k", user="alice", text="a notice"))
    await stage.answer("word12", timeout=15)
    await asyncio.sleep(0.5)
    assert [(entry.state, entry.text) for entry in await entries(stage)] == [("stored", "a notice")]
    assert len([call for call in stage.api.calls("sendMessage") if call.status == 429]) == 1


# ---- polling ----


async def test_telegram_away_for_a_while_floods_no_journal_and_loses_nothing(stage: Stage) -> None:
    port = stage.api.port
    await stage.api.stop()
    await bot(stage).call(Deliver(key="k", user="alice", text="kept over the outage"))
    await reads(lambda: "can't be reached" in stage.status())
    await asyncio.sleep(8)
    lines = [line for line in stage.launcher.logs("kai-bot").splitlines() if "reached" in line or "not sent" in line]
    assert 1 <= len(lines) <= 3, lines
    assert TOKEN not in stage.launcher.logs("kai-bot")
    await stage.api.start(port=port)
    await stage.answer("kept over the outage", timeout=20)
    await reads(lambda: "polling" in stage.status(), within=15)
    assert "updates come in again" in stage.launcher.logs("kai-bot")


async def test_while_another_program_polls_it_stays_and_says_so_and_answers_within_one_poll_after(
    stage: Stage,
) -> None:
    fault = stage.api.add_fault(Fault(kind="conflict", method="getUpdates", count=None))
    stage.say("! echo after-the-conflict")
    await reads(lambda: "(409)" in stage.status(), within=60)
    pid = stage.launcher.pid("kai-bot")
    await asyncio.sleep(6)
    assert stage.launcher.pid("kai-bot") == pid
    assert stage.launcher.logs("kai-bot").count("another program polls") == 1
    stage.api.faults.remove(fault)
    began = time.monotonic()
    await stage.answer("after-the-conflict")
    assert time.monotonic() - began < 15


# ---- what the operator decides ----


async def test_a_waiting_message_can_be_dropped_and_what_runs_can_not(stage: Stage) -> None:
    stage.say("slow 40")
    await stage.growing("word2")
    stage.say("! echo never-run")
    await stage.api.wait_for(lambda: any("1 message waits" in text for text in stage.shown()))
    runs, waits = [entry for entry in await entries(stage) if entry.id[0] == "i"]
    assert (runs.state, waits.state, waits.text) == ("running", "queued", "! echo never-run")
    assert waits.turn.startswith("1234567.")
    with pytest.raises(InvalidParameter, match="running turn is stopped"):
        await bot(stage).call(Drop(id=runs.id))
    assert (await bot(stage).call(Drop(id=waits.id))).state == "dropped"
    await stage.answer("word40", timeout=30)
    await asyncio.sleep(0.5)
    assert not any("never-run" in text for text in stage.shown())


async def test_a_message_that_waits_for_telegram_can_be_dropped(stage: Stage) -> None:
    stage.api.add_fault(Fault(kind="flood", method="sendMessage", retry_after=60, chat_id=ALICE))
    await bot(stage).call(Deliver(key="k", user="alice", text="never-sent"))
    await reads(lambda: [call for call in stage.api.calls("sendMessage") if call.status == 429])
    (entry,) = await entries(stage)
    assert (await bot(stage).call(Drop(id=entry.id))).state == "dropped"
    assert await entries(stage) == []
    assert [one.text for one in await entries(stage, everything=True) if one.state == "dropped"] == ["never-sent"]


async def test_a_dead_letter_of_a_user_who_is_back_is_worked_on_and_one_of_a_user_who_is_gone_is_not(
    stage: Stage,
) -> None:
    path = stage.launcher.directory / "etc/users.yaml"
    both = path.read_text()
    rows: list[dict[str, Any]] = json.loads(both)["users"]
    stage.say("slow 40")
    await stage.growing("word1")
    stage.say("! echo back-again")
    await stage.api.wait_for(lambda: any("1 message waits" in text for text in stage.shown()))
    await stage.launcher.services["kai-bot"].stop()
    path.write_text(json.dumps({"users": [row for row in rows if row["name"] != "alice"]}))
    stage.launcher.services["kai-bot"].start()
    await stage.launcher.wait_ready("kai-bot")
    dead = [entry for entry in await entries(stage) if entry.state == "dead" and "back-again" in entry.text]
    with pytest.raises(InvalidParameter, match="alice, who is no user any more"):
        await bot(stage).call(Retry(id=dead[0].id))
    path.write_text(both)
    await stage.launcher.restart("kai-bot")
    assert (await bot(stage).call(Retry(id=dead[0].id))).state in ("queued", "running", "answered", "delivered")
    await stage.answer("back-again", timeout=30)


async def test_rows_of_another_bot_stay_are_listed_and_go_on_with_its_token(stage: Stage) -> None:
    stage.api.add_fault(Fault(kind="flood", method="sendMessage", retry_after=60, chat_id=ALICE))
    await bot(stage).call(Deliver(key="k", user="alice", text="of the first bot"))
    await reads(lambda: [call for call in stage.api.calls("sendMessage") if call.status == 429])
    token = stage.launcher.directory / "credentials/kai-telegram-token"
    token.write_text("7654321:another-token-that-is-long-enough-x\n")
    await stage.launcher.restart("kai-bot")
    await reads(lambda: "1 message(s) wait for the token of another bot" in stage.launcher.logs("kai-bot"))
    (entry,) = await entries(stage)
    assert (entry.state, entry.bot) == ("stored", 1234567)
    with pytest.raises(InvalidParameter, match="is of bot 1234567, whose token isn't in use"):
        await bot(stage).call(Retry(id=entry.id))
    token.write_text(f"{TOKEN}\n")
    await stage.launcher.restart("kai-bot")
    await stage.answer("of the first bot")
