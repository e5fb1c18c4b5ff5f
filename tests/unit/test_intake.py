"""From updates to rows: who is admitted, what is taken, which messages are one turn, what an edit and a button do."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import telegram

from kai.bot import inbox as inbox_module
from kai.bot.content import BIGGEST_FILE, decode
from kai.bot.inbox import LONG, MOST_TOGETHER, NOT_EDITED, NOT_TAKEN, RESTART, SETTLE, TOO_LATE, Inbox
from kai.bot.intake import Intake
from kai.bot.tables import FINISHED, InboxRow, open_tables
from kai.config import Config, load
from kai.interfaces import Journal
from kai.lib.store import Store

BOT, ALICE, BOB, STRANGER = 77, 1001, 1002, 6666
JOURNAL = Journal("g1", "b1")


class Clock:
    """The time of the tables, in the test's hand."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class Scene:
    """An intake with its inbox; each message has the next id."""

    def __init__(self, config: Config, store: Store, clock: Clock) -> None:
        self.store, self.clock = store, clock
        self.inbox = Inbox(store, BOT)
        self.journal: Journal | None = None
        self.intake = Intake(lambda: config, lambda user: self.journal)
        self.updates, self.messages = itertools.count(1), itertools.count(101)

    def update(self, **content: Any) -> telegram.Update:
        """An update; `sender` and `message_id` may be set, `edited` and `data` say that it is no new message."""
        sender, chat = content.pop("sender", ALICE), content.pop("chat", None)
        edited, data = content.pop("edited", False), content.pop("data", None)
        person = {"id": sender, "is_bot": False, "first_name": "P"}
        where = {"id": chat, "type": "group", "title": "G"} if chat else {"id": sender, "type": "private"}
        message = {"message_id": next(self.messages), "date": 1_700_000_000, "chat": where, "from": person, **content}
        update: dict[str, Any] = {"update_id": next(self.updates)}
        if data is not None:
            query = {"id": "c1", "from": person, "chat_instance": "1", "data": data, "message": message}
            made = telegram.Update.de_json({**update, "callback_query": query}, None)
        else:
            made = telegram.Update.de_json({**update, "edited_message" if edited else "message": message}, None)
        assert made is not None
        return made

    async def receive(self, *updates: telegram.Update) -> list[InboxRow]:
        return await self.inbox.receive(self.intake.sort(list(updates)), updates[-1].update_id + 1)

    async def take(self, **content: Any) -> InboxRow:
        """The row of one update."""
        (row,) = await self.receive(self.update(**content))
        return row

    async def now(self, row: InboxRow) -> InboxRow:
        found = await self.inbox.find(row.id)
        assert found is not None
        return found

    async def set(self, row: InboxRow, state: str) -> None:
        await self.store.write(lambda db: db.execute("UPDATE inbox SET state = ? WHERE id = ?", (state, row.id)))


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    users = f"users: [{{telegram_id: {ALICE}, name: alice}}, {{telegram_id: {BOB}, name: bob}}]\n"
    (tmp_path / "users.yaml").write_text(users)
    (tmp_path / "kai.yaml").write_text("{}\n")
    clock = Clock()
    monkeypatch.setattr(inbox_module, "now", clock)
    store = open_tables(tmp_path)
    yield Scene(load(tmp_path), store, clock)
    store.close()


def document(unique: str = "U", *, size: int = 10, name: str = "a.pdf") -> dict[str, Any]:
    return {"file_id": f"F{unique}", "file_unique_id": unique, "file_size": size, "file_name": name}


def forwarded(name: str) -> dict[str, Any]:
    return {"type": "hidden_user", "date": 1_700_000_000, "sender_user_name": name}


# ---- admission ----


async def test_strangers_and_groups_leave_no_row(scene: Scene) -> None:
    rows = await scene.receive(
        scene.update(text="hello", sender=STRANGER),
        scene.update(text="hello", chat=-100),
        scene.update(text="hello", sender=STRANGER, edited=True),
        scene.update(data="stop:77.1", sender=STRANGER),
    )
    assert rows == []
    assert await scene.inbox.offset() == 5
    assert await scene.store.read("SELECT * FROM inbox") == []


# ---- kinds ----


async def test_a_file_is_a_turn_whose_caption_is_the_prompt(scene: Scene) -> None:
    row = await scene.take(document=document(), caption="/new is what it is about")
    assert (row.kind, row.state, row.text) == ("turn", "queued", "/new is what it is about")
    assert [file.name for file in decode(row.content).files] == ["a.pdf"]


async def test_a_forwarded_command_is_no_command(scene: Scene) -> None:
    assert (await scene.take(text="/stop")).kind == "control"
    assert (await scene.take(text="/stop", forward_origin=forwarded("Mallory"))).kind == "turn"


async def test_a_topic_is_remembered_and_an_ordinary_thread_is_none(scene: Scene) -> None:
    assert (await scene.take(text="a", message_thread_id=9, is_topic_message=True)).thread == 9
    assert (await scene.take(text="b", message_thread_id=9)).thread is None


async def test_what_can_not_be_taken_is_refused_with_words_and_does_not_run(scene: Scene) -> None:
    scene.journal = JOURNAL
    big = await scene.take(document=document(size=BIGGEST_FILE + 1, name="movie.mkv"), caption="watch")
    assert (big.kind, big.state) == ("turn", "received")
    assert "movie.mkv" in big.error
    story = await scene.take(story={"chat": {"id": 1, "type": "private"}, "id": 1})
    assert "can't be taken" in story.error
    assert (await scene.take(text="goes on")).state == "running"


async def test_what_only_happened_to_the_chat_is_not_stored(scene: Scene) -> None:
    changed = scene.update(message_auto_delete_timer_changed={"message_auto_delete_time": 60})
    assert await scene.receive(changed) == []


# ---- several messages that are one turn ----


async def test_an_album_is_led_by_its_first_part(scene: Scene) -> None:
    scene.journal = JOURNAL
    leader = await scene.take(document=document("1"), caption="both", media_group_id="5")
    assert (leader.state, leader.settles) == ("queued", scene.clock.now + SETTLE), "it waits for the rest"
    scene.clock.now += 60
    part = await scene.take(document=document("2"), media_group_id="5")
    assert (part.state, part.leader, part.settles) == ("grouped", leader.id, scene.clock.now + SETTLE)
    assert (await scene.now(leader)).settles == part.settles
    assert [row.id for row in await scene.inbox.members(leader)] == [part.id]
    assert (await scene.take(document=document("3"), media_group_id="6")).state == "queued"


async def test_a_part_of_an_album_that_comes_after_other_messages_still_belongs_to_it(scene: Scene) -> None:
    leader = await scene.take(document=document("1"), media_group_id="5")
    refused = await scene.take(document=document("2", size=BIGGEST_FILE + 1), media_group_id="5")
    await scene.set(refused, "refused")
    await scene.take(text="beside it")
    assert (await scene.take(document=document("3"), media_group_id="5")).leader == leader.id


@pytest.mark.parametrize("state", ["running", "answered", "dropped", "dead"])
async def test_a_part_that_comes_after_the_leader_began_is_a_turn_of_its_own(scene: Scene, state: str) -> None:
    leader = await scene.take(document=document("1"), media_group_id="5")
    await scene.set(leader, state)
    part = await scene.take(document=document("2"), media_group_id="5")
    assert (part.state, part.leader) == ("queued", None)
    assert (await scene.take(document=document("3"), media_group_id="5")).leader == part.id


async def test_an_album_has_no_more_parts_than_one_call_takes_files(scene: Scene) -> None:
    leader = await scene.take(document=document("0"), media_group_id="5")
    rows = await scene.receive(
        *(scene.update(document=document(str(n)), media_group_id="5") for n in range(1, MOST_TOGETHER + 3))
    )
    assert [row.leader for row in rows[:MOST_TOGETHER]] == [leader.id] * MOST_TOGETHER
    assert [row.leader for row in rows[MOST_TOGETHER:]] == [None, rows[MOST_TOGETHER].id]


async def test_forwards_that_come_together_are_one_turn_with_the_words_before_them(scene: Scene) -> None:
    scene.journal = JOURNAL
    comment, *rest = await scene.receive(
        scene.update(text="what is this?"),
        scene.update(text="one", forward_origin=forwarded("Ada")),
        scene.update(text="for bob", sender=BOB),
        scene.update(document=document(), forward_origin=forwarded("Eve")),
    )
    assert (comment.state, comment.settles) == ("queued", scene.clock.now + SETTLE)
    assert [row.leader for row in rest] == [comment.id, None, comment.id]
    assert rest[1].state == "running", "users never wait for each other"
    scene.clock.now += 2 * SETTLE
    assert (await scene.take(text="later", forward_origin=forwarded("Ada"))).leader is None


async def test_words_behind_forwards_are_a_turn_of_their_own(scene: Scene) -> None:
    await scene.take(text="one", forward_origin=forwarded("Ada"))
    assert (await scene.take(text="do it")).leader is None


async def test_the_halves_of_a_long_text_are_one_turn_and_its_end_is_not_waited_for(scene: Scene) -> None:
    leader = await scene.take(text="x" * LONG)
    middle = await scene.take(text="🙂" * (LONG // 2))
    assert (middle.state, middle.leader, middle.settles) == ("grouped", leader.id, scene.clock.now + SETTLE)
    end = await scene.take(text="the end")
    assert (end.leader, end.settles) == (leader.id, scene.clock.now)
    assert (await scene.take(text="another")).leader is None


async def test_a_short_text_does_not_wait_and_neither_does_what_follows_a_long_one_later(scene: Scene) -> None:
    scene.journal = JOURNAL
    assert (await scene.take(text="x" * (LONG - 1))).state == "running"
    await scene.take(text="x" * LONG, sender=BOB)
    scene.clock.now += 2 * SETTLE
    assert (await scene.take(text="something else", sender=BOB)).leader is None


async def test_after_a_start_the_rest_of_a_bundle_is_waited_for_anew(scene: Scene) -> None:
    leader = await scene.take(text="one", forward_origin=forwarded("Ada"))
    plain = await scene.take(text="plain", sender=BOB)
    scene.clock.now += 3600
    again = {row.id: row for row in await scene.inbox.unfinished()}
    assert again[leader.id].settles == scene.clock.now + RESTART
    assert again[plain.id].settles == 0
    assert (await scene.take(text="two", forward_origin=forwarded("Ada"))).leader == leader.id


# ---- edits ----


async def test_an_edit_of_a_waiting_message_takes_its_place(scene: Scene) -> None:
    first = await scene.take(text="before")
    edit = await scene.take(text="after", message_id=first.message, edited=True)
    assert (edit.kind, edit.state, edit.target) == ("edit", "replaced", first.id)
    assert ((await scene.now(first)).text, (await scene.now(first)).state) == ("after", "queued")


async def test_an_edit_of_a_part_replaces_that_part(scene: Scene) -> None:
    leader = await scene.take(document=document("1"), media_group_id="5")
    part = await scene.take(document=document("2"), media_group_id="5")
    await scene.take(document=document("3"), caption="new", message_id=part.message, edited=True, media_group_id="5")
    (changed,) = await scene.inbox.members(leader)
    assert changed.text == "new"
    assert [file.key for file in decode(changed.content).files] == ["3"]


async def test_an_edit_in_the_same_batch_is_in_time_although_the_turn_runs_at_once(scene: Scene) -> None:
    scene.journal = JOURNAL
    first, edit = await scene.receive(
        scene.update(text="before", message_id=500), scene.update(text="after", message_id=500, edited=True)
    )
    assert (first.state, edit.state) == ("running", "replaced")
    assert (await scene.now(first)).text == "after"


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("running", TOO_LATE), ("answered", TOO_LATE), ("delivered", TOO_LATE), ("interrupted", TOO_LATE),
        ("dropped", NOT_TAKEN), ("refused", NOT_TAKEN), ("dead", NOT_TAKEN),
    ],
)  # fmt: skip
async def test_an_edit_that_comes_too_late_is_told_so_and_changes_nothing(scene: Scene, state: str, said: str) -> None:
    first = await scene.take(text="before")
    await scene.set(first, state)
    edit = await scene.take(text="after", message_id=first.message, edited=True)
    assert (edit.kind, edit.state, edit.error) == ("edit", "received", said)
    assert (await scene.now(first)).text == "before"


async def test_what_changes_nothing_of_a_message_is_no_edit(scene: Scene) -> None:
    before = {"message_id": 4, "date": 1, "chat": {"id": ALICE, "type": "private"}, "text": "⏳"}
    first = await scene.take(text="see https://example.org", reply_to_message=before)
    await scene.set(first, "running")
    again = {"text": first.text, "message_id": first.message, "edited": True}
    assert await scene.receive(scene.update(**again, reply_to_message={**before, "text": "the answer"})) == []
    file = await scene.take(document=document("1"))
    await scene.set(file, "running")
    other_id = {**document("1"), "file_id": "another id of the same file"}
    assert await scene.receive(scene.update(document=other_id, message_id=file.message, edited=True)) == []


async def test_an_edit_that_came_too_late_is_told_once(scene: Scene) -> None:
    first = await scene.take(text="before")
    await scene.set(first, "running")
    await scene.take(text="after", message_id=first.message, edited=True)
    assert await scene.receive(scene.update(text="after", message_id=first.message, edited=True)) == []
    assert (await scene.take(text="before", message_id=first.message, edited=True)).error == TOO_LATE


async def test_a_place_that_moves_and_an_unknown_message_are_not_answered(scene: Scene) -> None:
    first = await scene.take(location={"latitude": 1, "longitude": 2})
    moved = scene.update(location={"latitude": 1, "longitude": 3}, message_id=first.message, edited=True)
    unknown = scene.update(text="after", message_id=99, edited=True)
    assert await scene.receive(moved, unknown) == []


async def test_no_edit_makes_or_changes_a_command(scene: Scene) -> None:
    first = await scene.take(text="before")
    edit = await scene.take(text="/stop", message_id=first.message, edited=True)
    assert "can't be made a command" in edit.error
    assert (await scene.now(first)).text == "before"
    command = await scene.take(text="/model a")
    edit = await scene.take(text="model b", message_id=command.message, edited=True)
    assert edit.error == NOT_EDITED
    assert (await scene.now(command)).text == "/model a"


async def test_the_message_of_another_user_is_not_changed_by_an_edit(scene: Scene) -> None:
    await scene.take(text="alice", message_id=500)
    assert await scene.receive(scene.update(text="bob", message_id=500, edited=True, sender=BOB)) == []


# ---- Continue and Drop ----


async def test_the_first_press_decides_what_becomes_of_an_interrupted_turn(scene: Scene) -> None:
    scene.journal = JOURNAL
    cut = await scene.take(text="work", message_thread_id=9, is_topic_message=True)
    await scene.set(cut, "interrupted")
    first, second = await scene.receive(
        scene.update(data=f"continue:{cut.turn}"), scene.update(data=f"drop:{cut.turn}")
    )
    assert (first.kind, first.state, first.target, first.thread) == ("turn", "running", cut.id, 9)
    assert (second.kind, second.state) == ("control", "received")
    assert second.target != cut.id, "a target would say that it decided"
    assert (await scene.now(cut)).state == "continued"


async def test_drop_is_a_decision_too(scene: Scene) -> None:
    cut = await scene.take(text="work")
    await scene.set(cut, "interrupted")
    drop = await scene.take(data=f"drop:{cut.turn}")
    assert (drop.kind, drop.state, drop.target) == ("control", "received", cut.id)
    assert (await scene.now(cut)).state == "dropped"


async def test_a_continued_turn_waits_for_what_runs(scene: Scene) -> None:
    cut = await scene.take(text="work")
    await scene.set(cut, "interrupted")
    scene.journal = JOURNAL
    await scene.take(text="other work")
    assert (await scene.take(data=f"continue:{cut.turn}")).state == "queued"


@pytest.mark.parametrize("state", ["running", "delivered", "continued", "dropped"])
async def test_a_turn_that_was_not_cut_off_is_not_continued(scene: Scene, state: str) -> None:
    other = await scene.take(text="work")
    await scene.set(other, state)
    press = await scene.take(data=f"continue:{other.turn}")
    assert (press.kind, press.state) == ("control", "received")
    assert (await scene.now(other)).state == state


@pytest.mark.parametrize("data", ["continue:78.1", "continue:77.999", "continue:77.1", "drop:x", "continue:"])
async def test_nobody_continues_what_is_not_his(scene: Scene, data: str) -> None:
    cut = await scene.take(text="work", sender=BOB)
    await scene.set(cut, "interrupted")
    assert (await scene.take(data=data)).kind == "control"
    assert (await scene.now(cut)).state == "interrupted"


# ---- another bot, and what is forgotten ----


async def test_rows_of_another_bot_stay_as_they_are_and_are_counted(scene: Scene) -> None:
    mine = await scene.take(text="mine")
    other = Inbox(scene.store, BOT + 1)
    assert await other.unfinished() == []
    assert await other.foreign() == 1
    assert await scene.inbox.foreign() == 0
    again = scene.update(text="the same number", message_id=mine.message)
    again = telegram.Update(mine.update_id, message=again.message)
    (theirs,) = await other.receive(scene.intake.sort([again]), 2)
    assert theirs.turn != mine.turn
    assert [row.id for row in await scene.inbox.unfinished()] == [mine.id]


async def test_an_update_that_comes_again_is_known(scene: Scene) -> None:
    update = scene.update(text="once")
    assert len(await scene.receive(update, update)) == 1
    assert await scene.receive(update) == []


async def test_the_parts_of_a_turn_are_kept_for_as_long_as_it_waits(scene: Scene) -> None:
    leader = await scene.take(document=document("1"), media_group_id="5")
    await scene.take(document=document("2"), media_group_id="5")
    scene.clock.now += 8 * 86400
    await scene.inbox.prune()
    assert len(await scene.inbox.members(leader)) == 1
    await scene.set(leader, "delivered")
    assert "delivered" in FINISHED
    await scene.inbox.prune()
    assert await scene.store.read("SELECT * FROM inbox") == []
