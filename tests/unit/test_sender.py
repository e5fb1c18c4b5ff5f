"""What is sent when: command answers first, order kept, flood limits of messages and of edits apart."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from telegram.error import BadRequest, Forbidden, InvalidToken, NetworkError, RetryAfter, TelegramError

from kai.bot import chat as module
from kai.bot.api import Gates
from kai.bot.inbox import Arrival, Inbox
from kai.bot.message import Body, Button, File
from kai.bot.notices import Notice
from kai.bot.outbox import Outbox
from kai.bot.sender import Sender
from kai.bot.spool import Spool
from kai.bot.tables import InboxRow, OutboxRow, open_tables
from kai.interfaces import Journal
from kai.lib.store import Store

BOT, CHAT, ADMIN = 77, 1001, 1000
ASKED = Body("May I?", buttons=[Button("Yes", "approve:t:a:once")])


class Telegram:
    """Takes what is sent, unless the test has a fault for it."""

    def __init__(self) -> None:
        self.log: list[tuple[str, str]] = []
        self.screen: dict[int, Body] = {}
        self.faults: dict[str, list[TelegramError]] = {"send": [], "edit": [], "draft": []}
        self.lost: list[TelegramError] = []
        self.gates = Gates()
        self.threads: list[int | None] = []
        self.drafts: list[tuple[int, str]] = []
        self.uploads = asyncio.Event()
        self.uploads.set()

    async def send(self, chat: int, body: Body, *, thread: int | None = None, silent: bool = False) -> int:
        if body.file:
            await self.uploads.wait()
        self._take("send", body)
        self.threads.append(thread)
        message = len(self.screen) + 1
        self.screen[message] = body
        if self.lost:
            raise self.lost.pop(0)
        return message

    async def edit(self, chat: int, message: int, body: Body) -> None:
        self._take("edit", body)
        self.screen[message] = body

    async def draft(self, chat: int, draft_id: int, body: Body, *, thread: int | None = None) -> None:
        self._take("draft", body)
        self.drafts.append((draft_id, body.text))

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
        self.store, self.updates = store, 0
        self.spool = Spool(store.path.parent / "spool")
        self.sender = self.new_sender()

    def new_sender(self) -> Sender:
        """As after a start of the bot."""

        def told(chat: int, since: float, reason: str) -> list[Notice]:
            return [Notice("root", ADMIN, f"blocked/{chat}/{since}", Body(f"{chat}: {reason}"))]

        return Sender(self.telegram, self.outbox, spool=self.spool, told=told)  # type: ignore[arg-type]

    async def states(self) -> list[tuple[str, str]]:
        rows = await self.store.read("SELECT kind, state FROM outbox ORDER BY id")
        return [(row["kind"], row["state"]) for row in rows]

    async def deliver(self, *bodies: Body, key: str = "k", thread: int | None = None) -> list[OutboxRow]:
        _, rows = await self.outbox.deliver("job", key, "alice", CHAT, bodies)
        for row in rows:
            row.thread = thread
        self.sender.put(*rows)
        return rows

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
    scene.telegram.faults["send"] = [BadRequest("Button_data_invalid")]
    asked = await scene.ask(turn)
    scene.sender.put(*await scene.outbox.decide(asked, "⏹ Withdrawn"))
    await scene.answer(turn, "done")
    await scene.until(lambda: "done" in scene.telegram.taken())
    told = "⚠ A message could not be sent and is kept for the operator (kai queue): Button_data_invalid"
    assert scene.telegram.taken() == ["⏳", told, "done"]


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


# ---- what nobody knows ----


async def test_a_message_that_may_not_have_arrived_is_asked_about_and_sent_again_at_the_first_press_only(
    scene: Scene,
) -> None:
    scene.telegram.lost = [NetworkError("connection lost")]
    (row,) = await scene.deliver(Body("reminder"))
    await scene.until(lambda: len(scene.telegram.screen) == 2)
    asked = scene.telegram.screen[2]
    assert asked.text == "⚠ A message may not have arrived."
    assert asked.buttons == [Button("Show again", f"again:{row.id}")]
    press, later = await scene.row("control"), await scene.row("control")
    stranger = msgspec.structs.replace(press, user="bob")
    assert await scene.outbox.again(row.id, stranger) == [], "another user's button does nothing"
    scene.sender.put(*await scene.outbox.again(row.id, press))
    assert await scene.outbox.again(row.id, later) == [], "the first press counts"
    await scene.until(lambda: len(scene.telegram.taken()) == 4)
    assert scene.telegram.screen[2] == Body("⚠ A message may not have arrived. It is sent again.")
    assert scene.telegram.screen[3] == Body("reminder")
    await asyncio.sleep(0.05)
    assert (await scene.states())[0] == ("message", "sent")


async def test_however_often_a_message_is_lost_one_message_asks_about_it(scene: Scene) -> None:
    scene.telegram.lost = [NetworkError("lost")]
    (row,) = await scene.deliver(Body("reminder"))
    await scene.until(lambda: len(scene.telegram.screen) == 2)
    for round_ in range(2):
        scene.telegram.lost = [NetworkError("lost")]
        press = await scene.row("control")
        scene.sender.put(*await scene.outbox.again(row.id, press))
        assert await scene.outbox.again(row.id, press) == [], "a press that a crash left counts once"
        await scene.until(lambda count=3 + round_: len(scene.telegram.screen) == count)  # type: ignore[misc]
        await scene.until(lambda: scene.telegram.screen[2].buttons)
    questions = [body for body in scene.telegram.screen.values() if "may not have arrived" in body.text]
    assert len(questions) == 1


async def test_a_crash_while_telegram_answers_is_asked_about_once_however_often_the_bot_starts(scene: Scene) -> None:
    turn = await scene.turn()
    stored = await scene.outbox.answer(turn, "answered", [Body("one"), Body("two")])
    await scene.outbox.mark(stored[1], "sending")
    found = [await scene.outbox.recover() for _ in range(3)]
    assert [[(row.kind, row.state) for row in rows] for rows in found] == [
        [("final", "stored"), ("control", "stored")]
    ] * 3
    assert found[0][1].body.count("A part of the answer may not have arrived.") == 1
    assert ("message", "unknown") in await scene.states()


async def test_what_was_surely_not_taken_leaves_no_doubt_behind_a_crash(scene: Scene) -> None:
    scene.telegram.faults["send"] = [RetryAfter(1), InvalidToken("401")]
    (row,) = await scene.deliver(Body("reminder"))
    await scene.until(lambda: ("refused send", "reminder") in scene.telegram.log)
    await scene.until(lambda: row.state == "stored")
    assert await scene.states() == [("message", "stored")]
    await scene.until(lambda: row.state == "sent")
    assert scene.telegram.taken() == ["reminder"]


# ---- what Telegram refuses ----


async def test_a_chat_that_blocked_the_bot_keeps_its_messages_and_gets_them_when_its_user_writes(scene: Scene) -> None:
    turn = await scene.turn()
    scene.telegram.faults["send"] = [Forbidden("Forbidden: bot was blocked by the user")]
    await scene.deliver(Body("a"), Body("b"))
    await scene.until(lambda: len(scene.telegram.log) == 3)
    scene.sender.show(CHAT, turn.id, lambda: Body("growing"))
    await asyncio.sleep(0.1)
    scene.sender.finished(CHAT, turn.id)
    await scene.answer(turn, "answer")
    await asyncio.sleep(0.1)
    assert scene.telegram.log[2:] == [("send", f"{CHAT}: Forbidden: bot was blocked by the user")], "admins, once"
    assert (await scene.states())[1:3] == [("message", "stored")] * 2
    assert await scene.outbox.blocked() == {CHAT}
    scene.sender.unblock(CHAT)
    await scene.until(lambda: len(scene.telegram.taken()) == 5)
    assert set(scene.telegram.taken()[2:]) == {"answer", "a", "b"}
    assert await scene.outbox.blocked() == set()


async def test_a_blocked_chat_is_left_alone_after_a_start_until_something_came_from_it(scene: Scene) -> None:
    scene.telegram.faults["send"] = [BadRequest("Chat not found")]
    await scene.deliver(Body("a"))
    await scene.until(lambda: len(scene.telegram.log) == 2)
    scene.telegram.gates = Gates()
    scene.sender = scene.new_sender()
    rows = await scene.outbox.recover()
    await scene.sender.open()
    scene.sender.put(*rows)
    await asyncio.sleep(0.1)
    assert "a" not in scene.telegram.taken()
    await scene.row()
    await scene.store.write(lambda db: db.execute("UPDATE inbox SET arrived = changed"))
    await scene.outbox.recover()
    assert await scene.outbox.blocked() == set()


async def test_nothing_is_sent_before_the_sender_is_opened(scene: Scene) -> None:
    scene.sender.hold()
    await scene.deliver(Body("early"))
    await asyncio.sleep(0.05)
    assert scene.telegram.log == []
    await scene.sender.open()
    await scene.until(lambda: scene.telegram.taken() == ["early"])


async def test_any_other_refusal_is_a_dead_letter_and_told_in_one_line(scene: Scene) -> None:
    scene.telegram.faults["send"] = [BadRequest("Message is odd")]
    await scene.deliver(Body("odd"), Body("good"))
    await scene.until(lambda: len(scene.telegram.taken()) == 2)
    told = "⚠ A message could not be sent and is kept for the operator (kai queue): Message is odd"
    assert sorted(scene.telegram.taken()) == ["good", told]
    assert (await scene.states())[:2] == [("message", "dead"), ("message", "sent")]


async def test_a_picture_that_telegram_refuses_goes_out_as_a_document_once(scene: Scene) -> None:
    scene.telegram.faults["send"] = [BadRequest("Photo_invalid_dimensions")]
    await scene.deliver(Body("look", file=File("p.png", "photo", text="x")))
    await scene.until(lambda: scene.telegram.taken() == ["look"])
    sent = scene.telegram.screen[1].file
    assert sent and sent.kind == "document"
    scene.telegram.faults["send"] = [BadRequest("Image_process_failed"), BadRequest("File is odd")]
    await scene.deliver(Body("again", file=File("p.png", "photo", text="x")), key="2")
    await scene.until(lambda: "File is odd" in scene.telegram.taken()[-1])


async def test_a_topic_that_is_gone_costs_the_topic_once(scene: Scene) -> None:
    scene.telegram.faults["send"] = [BadRequest("Message thread not found")]
    await scene.deliver(Body("a"), thread=7)
    await scene.until(lambda: scene.telegram.taken() == ["a"])
    await scene.deliver(Body("b"), key="2", thread=7)
    await scene.until(lambda: len(scene.telegram.taken()) == 2)
    assert scene.telegram.threads == [None, 7]


async def test_after_a_flood_the_answer_goes_before_other_messages_and_growing_text_last(scene: Scene) -> None:
    turn = await scene.turn()
    await asyncio.sleep(0.02)
    scene.telegram.faults = {"send": flood(1), "edit": flood(1), "draft": []}
    scene.sender.show(CHAT, turn.id, lambda: Body("growing"))
    await scene.until(lambda: ("refused edit", "growing") in scene.telegram.log)
    await scene.deliver(Body("notice"))
    await scene.until(lambda: ("refused send", "notice") in scene.telegram.log)
    await scene.answer(turn, "answer")
    await scene.until(lambda: len(scene.telegram.taken()) == 4)
    assert scene.telegram.taken()[1:] == ["answer", "notice", "growing"]


# ---- files and drafts ----


async def test_a_file_that_takes_long_holds_up_messages_behind_it_and_nothing_else(scene: Scene) -> None:
    turn = await scene.turn()
    scene.telegram.uploads.clear()
    await scene.deliver(Body("file", file=File("a.txt", text="x")), Body("after it"))
    await asyncio.sleep(0.05)
    await scene.reply("stopping")
    await scene.answer(turn, "⏹ Stopped.")
    await scene.until(lambda: scene.telegram.taken() == ["⏳", "stopping", "⏹ Stopped."])
    scene.telegram.uploads.set()
    await scene.until(lambda: scene.telegram.taken()[3:] == ["file", "after it"])


async def test_the_file_of_a_message_that_was_sent_is_removed_and_that_of_a_dead_letter_kept(
    scene: Scene, tmp_path: Path
) -> None:
    (tmp_path / "data").write_bytes(b"content")
    with (tmp_path / "data").open("rb") as file:
        names = [(await scene.spool.take(file.fileno())).spool for _ in range(2)]
    scene.telegram.faults["send"] = [BadRequest("File is odd")]
    for name in names:
        await scene.deliver(Body("", file=File("a", spool=name)), key=name)
        await scene.until(lambda: len(scene.telegram.log) >= 2)
    await scene.until(lambda: scene.spool.names() == {names[0]})
    assert await scene.outbox.spooled() == {names[0]}


async def test_a_draft_grows_is_renewed_while_it_shows_and_ends_with_its_turn(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RENEWAL", 0.2)
    row = await scene.row()
    words = [Body("a")]
    began = asyncio.get_running_loop().time()
    while asyncio.get_running_loop().time() - began < 0.5:
        scene.sender.show(CHAT, row.id, lambda: words[0], "draft")
        await asyncio.sleep(0.02)
    assert 2 <= len(scene.telegram.drafts) <= 4, "nothing new, so it is only renewed"
    words[0] = Body("a b")
    scene.sender.show(CHAT, row.id, lambda: words[0], "draft")
    await scene.until(lambda: scene.telegram.drafts[-1] == (row.id, "a b"))
    await scene.until(lambda: [text for _, text in scene.telegram.drafts].count("a b") == 2)
    scene.sender.finished(CHAT, row.id)
    await scene.until(lambda: scene.sender.chats[CHAT].task is None)
    assert {way for way, _ in scene.telegram.log} == {"draft"}


# ---- how an answer is stored ----


async def test_a_late_answer_comes_as_new_messages_and_the_placeholder_becomes_a_summary(scene: Scene) -> None:
    turn = await scene.turn()
    rows = await scene.outbox.answer(turn, "answered", [Body("1"), Body("2")], afresh=Body("✓ 2 min"))
    scene.sender.put(*rows)
    await scene.until(lambda: len(scene.telegram.taken()) == 4)
    assert [body.text for body in scene.telegram.screen.values()] == ["✓ 2 min", "1", "2"]
    assert [row.kind for row in rows] == ["message"] * 3
    await asyncio.sleep(0.05)
    assert [row["state"] for row in await scene.store.read("SELECT state FROM inbox")] == ["delivered"]
    assert not (scene.sender.placeholders or scene.sender.chats[CHAT].shown)


async def test_the_answer_of_a_turn_without_a_placeholder_is_a_new_message(scene: Scene) -> None:
    row = await scene.row()
    rows = await scene.outbox.answer(row, "answered", [Body("1"), Body("2")])
    assert [one.kind for one in rows] == ["message", "message"]
    scene.telegram.lost = [NetworkError("lost")]
    scene.sender.put(*rows)
    await scene.until(lambda: any("A part of the answer may" in text for text in scene.telegram.taken()))


async def test_an_answer_goes_out_in_the_topic_that_it_was_asked_in(scene: Scene) -> None:
    row = await scene.row()
    row.thread = 5
    scene.sender.put(*await scene.outbox.answer(row, "answered", [Body("1")]))
    await scene.until(lambda: scene.telegram.threads == [5])


async def test_a_question_that_waited_for_a_flood_limit_shows_its_decision(scene: Scene) -> None:
    turn = await scene.turn()
    scene.telegram.faults["send"] = flood(1)
    asked = await scene.ask(turn)
    await scene.until(lambda: ("refused send", "May I?") in scene.telegram.log)
    scene.sender.put(*await scene.outbox.decide(asked, "⏹ Over"))
    await scene.until(lambda: any(body.text == "May I?\n\n⏹ Over" for body in scene.telegram.screen.values()))
    assert not any(body.buttons for body in scene.telegram.screen.values() if body.text.startswith("May I?"))


async def test_a_placeholder_that_waited_for_a_flood_limit_does_not_stay_with_its_stop_button(scene: Scene) -> None:
    row = await scene.row()
    scene.telegram.faults["send"] = flood(1)
    assert await scene.inbox.run(row, Journal("g", "b"))
    placeholder = await scene.outbox.placeholder(row.id)
    assert placeholder
    scene.sender.put(placeholder)
    await scene.until(lambda: ("refused send", "⏳") in scene.telegram.log)
    scene.sender.put(*await scene.outbox.answer(row, "answered", [Body("answer")], afresh=Body("✓ 1:05")))
    await scene.until(lambda: any(body.text == "✓ 1:05" for body in scene.telegram.screen.values()))
    assert not any(body.text == "⏳" for body in scene.telegram.screen.values())


async def test_a_row_that_cant_be_sent_by_a_fault_does_not_hold_up_those_behind_it(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FAULT_PAUSE", 0.02)
    _, (bad,) = await scene.outbox.deliver("job", "bad", "alice", CHAT, [Body("x")])
    bad.body = '{"text": 5}'
    scene.sender.put(bad)
    await scene.deliver(Body("behind"), key="good")
    await scene.until(lambda: "behind" in scene.telegram.taken())
