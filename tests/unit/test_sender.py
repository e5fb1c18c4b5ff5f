"""What is sent when: command answers first, order kept, flood limits of messages and of edits apart."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from telegram.error import BadRequest, NetworkError, RetryAfter, TelegramError

from kai.bot import sender as module
from kai.bot.inbox import Arrival, Inbox
from kai.bot.message import Body, Button
from kai.bot.outbox import Outbox
from kai.bot.sender import Sender
from kai.bot.tables import InboxRow, OutboxRow, open_tables
from kai.interfaces import Journal
from kai.lib.store import Store

BOT, CHAT = 77, 1001
ASKED = Body("May I?", buttons=[Button("Yes", "approve:t:a:once")])


class Telegram:
    """Takes what is sent, unless the test has a fault for it."""

    def __init__(self) -> None:
        self.log: list[tuple[str, str]] = []
        self.screen: dict[int, Body] = {}
        self.faults: dict[str, list[TelegramError]] = {"send": [], "edit": []}
        self.lost: list[TelegramError] = []

    async def send(self, chat: int, body: Body, *, silent: bool = False) -> int:
        self._take("send", body)
        message = len(self.screen) + 1
        self.screen[message] = body
        if self.lost:
            raise self.lost.pop(0)
        return message

    async def edit(self, chat: int, message: int, body: Body) -> None:
        self._take("edit", body)
        self.screen[message] = body

    def _take(self, way: str, body: Body) -> None:
        if self.faults[way]:
            self.log.append((f"refused {way}", body.text))
            raise self.faults[way].pop(0)
        self.log.append((way, body.text))

    def taken(self) -> list[str]:
        return [text for way, text in self.log if not way.startswith("refused")]


class Scene:
    def __init__(self, store: Store) -> None:
        self.telegram = Telegram()
        self.inbox, self.outbox = Inbox(store, BOT), Outbox(store, BOT)
        self.sender = Sender(self.telegram, self.outbox)  # type: ignore[arg-type]
        self.updates = 0

    async def row(self, kind: Any = "turn") -> InboxRow:
        self.updates += 1
        arrival = Arrival(self.updates, "alice", CHAT, self.updates, kind, "text")
        (row,) = await self.inbox.receive([arrival], self.updates + 1)
        return row

    async def turn(self) -> InboxRow:
        """A turn that runs, and its placeholder in the chat."""
        row = await self.row()
        assert await self.inbox.run(row, Journal("g", "b"))
        placeholder = await self.outbox.placeholder(row.id)
        assert placeholder
        self.sender.put(placeholder)
        await self.until(lambda: placeholder.state == "sent")
        return row

    async def answer(self, row: InboxRow, *texts: str) -> None:
        self.sender.put(*await self.outbox.answer(row, "answered", [Body(text) for text in texts]))

    async def reply(self, text: str) -> None:
        self.sender.put(*await self.outbox.reply(await self.row("control"), [Body(text)]))

    async def ask(self, row: InboxRow) -> OutboxRow:
        self.sender.put(*await self.outbox.ask(row, "a", ASKED))
        asked = await self.outbox.question("alice", row.turn, "a")
        assert asked
        return asked

    async def until(self, look: Callable[[], object], within: float = 5.0) -> None:
        async with asyncio.timeout(within):
            while not look():
                await asyncio.sleep(0.005)


@pytest.fixture
async def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    monkeypatch.setattr(module, "seconds", lambda error: 0.2)
    monkeypatch.setattr(module, "EDIT_PERIOD", 0.05)
    store = open_tables(tmp_path)
    made = Scene(store)
    yield made
    await made.sender.close()
    store.close()


def flood(times: int) -> list[TelegramError]:
    return [RetryAfter(1) for _ in range(times)]


async def test_the_answer_to_a_command_overtakes_what_waits_for_a_flood_limit(scene: Scene) -> None:
    first = await scene.turn()
    scene.telegram.faults["send"] = flood(2)
    await scene.answer(first, "one", "two", "three")
    await scene.until(lambda: ("refused send", "two") in scene.telegram.log)
    await scene.reply("stopping")
    await scene.until(lambda: "three" in scene.telegram.taken())
    assert scene.telegram.taken() == ["⏳", "one", "stopping", "two", "three"]


async def test_an_edit_goes_on_while_messages_have_to_wait(scene: Scene) -> None:
    turn = await scene.turn()
    scene.telegram.faults["send"] = flood(1)
    await scene.reply("stopping")
    await scene.until(lambda: scene.telegram.log[-1] == ("refused send", "stopping"))
    await scene.answer(turn, "⏹ Stopped.")
    await scene.until(lambda: "stopping" in scene.telegram.taken())
    assert scene.telegram.taken() == ["⏳", "⏹ Stopped.", "stopping"]


async def test_messages_go_on_while_edits_have_to_wait_and_keep_their_order(scene: Scene) -> None:
    first, second = await scene.turn(), await scene.turn()
    scene.telegram.faults["edit"] = flood(1)
    await scene.answer(first, "1a", "1b", "1c")
    await scene.answer(second, "2a", "2b")
    await scene.until(lambda: len(scene.telegram.taken()) == 7)
    assert [body.text for body in scene.telegram.screen.values()] == ["1a", "2a", "1b", "1c", "2b"]
    assert [text for way, text in scene.telegram.log if way == "send"] == ["⏳", "⏳", "1b", "1c", "2b"]


async def test_growing_text_that_looks_the_same_is_not_shown_again(scene: Scene) -> None:
    turn = await scene.turn()
    (shown,) = scene.telegram.screen.values()
    current = [shown]
    for body in (shown, shown, Body("more"), Body("more"), Body("more and more")):
        current[0] = body
        scene.sender.show(CHAT, turn.id, lambda: current[0])
        await asyncio.sleep(0.08)
    assert scene.telegram.log == [("send", "⏳"), ("edit", "more"), ("edit", "more and more")]


async def test_growing_text_leaves_room_in_the_flood_limits_and_its_newest_state_is_shown(scene: Scene) -> None:
    turn = await scene.turn()
    scene.telegram.faults["edit"] = flood(2)
    words = [Body("a")]
    scene.sender.show(CHAT, turn.id, lambda: words[0])
    await scene.until(lambda: ("refused edit", "a") in scene.telegram.log)
    words[0] = Body("a b c")
    await scene.until(lambda: "a b c" in scene.telegram.taken())
    period = scene.sender.chats[CHAT].period
    assert period == pytest.approx(0.05 * module.BACK_OFF**2 * module.RELAXATION), "two refusals, one success"
    assert "a" not in scene.telegram.taken()


async def test_nothing_grows_over_an_answer(scene: Scene) -> None:
    turn = await scene.turn()
    scene.telegram.faults["edit"] = flood(1)
    scene.sender.show(CHAT, turn.id, lambda: Body("part"))
    await scene.until(lambda: ("refused edit", "part") in scene.telegram.log)
    scene.sender.finished(CHAT, turn.id)
    await scene.answer(turn, "whole")
    await asyncio.sleep(0.5)
    assert scene.telegram.taken() == ["⏳", "whole"]
    chat = scene.sender.chats[CHAT]
    assert not (chat.rows or chat.known or chat.growing or chat.shown or scene.sender.placeholders)
    assert chat.task is None, "nothing is left to do"


async def test_a_decision_goes_into_the_message_of_its_question(scene: Scene) -> None:
    turn = await scene.turn()
    asked = await scene.ask(turn)
    scene.sender.put(*await scene.outbox.decide(asked, "✓ Allowed once"))
    assert await scene.outbox.decide(asked, "✗ Denied") == [], "the first decision counts"
    await scene.until(lambda: len(scene.telegram.taken()) == 3)
    assert scene.telegram.screen[2] == Body("May I?\n\n✓ Allowed once")
    await scene.answer(turn, "done")
    await scene.until(lambda: "done" in scene.telegram.taken())
    assert scene.telegram.taken() == ["⏳", "May I?", "May I?\n\n✓ Allowed once", "done"]


async def test_the_end_of_a_turn_closes_its_open_questions_in_the_same_step(scene: Scene) -> None:
    turn = await scene.turn()
    await scene.ask(turn)
    await scene.until(lambda: len(scene.telegram.taken()) == 2)
    stored = await scene.outbox.answer(turn, "answered", [Body("done")])
    assert [one.edits is not None for one in stored] == [True, False]
    scene.sender.put(*stored)
    await scene.until(lambda: "done" in scene.telegram.taken())
    assert scene.telegram.screen[2].text.startswith("May I?\n\n⏹")
    assert not scene.telegram.screen[2].buttons


async def test_a_question_that_never_reached_the_chat_holds_nothing_up(scene: Scene) -> None:
    turn = await scene.turn()
    scene.telegram.faults["send"] = [BadRequest("chat not found")]
    asked = await scene.ask(turn)
    scene.sender.put(*await scene.outbox.decide(asked, "⏹ Withdrawn"))
    await scene.answer(turn, "done")
    await scene.until(lambda: "done" in scene.telegram.taken())
    assert scene.telegram.taken() == ["⏳", "done"]


async def test_a_question_that_may_not_have_arrived_is_asked_again(scene: Scene) -> None:
    turn = await scene.turn()
    scene.telegram.lost = [NetworkError("connection lost")]
    await scene.ask(turn)
    await scene.until(lambda: scene.telegram.taken().count("May I?") == 2)


async def test_entities_that_telegram_refuses_cost_the_entities_only(scene: Scene) -> None:
    turn = await scene.turn()
    scene.telegram.faults["edit"] = [BadRequest("can't parse entities")]
    bold = Body("bold", [{"type": "bold", "offset": 0, "length": 4}])
    scene.sender.put(*await scene.outbox.answer(turn, "answered", [bold]))
    await scene.until(lambda: "bold" in scene.telegram.taken())
    assert scene.telegram.screen[1] == Body("bold")
