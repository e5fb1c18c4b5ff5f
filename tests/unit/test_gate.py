"""The gate: what passes, what is held back, and that nothing which was held back can become a turn without a code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from kai.bot import gate as gate_module
from kai.bot.commands import TABLE
from kai.bot.gate import BUTTON, DOUBTFUL, EDITED, FORGOTTEN, PASSING, Gate
from kai.bot.inbox import CODE, LOCKED, Arrival, Inbox
from kai.bot.queue import _revive
from kai.bot.tables import FINISHED, InboxRow, open_tables
from kai.config import Config, User
from kai.config.kaiyaml import Kai, Totp
from kai.interfaces import Journal
from kai.lib.store import Store

ALICE = User(telegram_id=1001, name="alice")
BOB = User(telegram_id=1002, name="bob")
CAROL = User(telegram_id=1003, name="carol", totp="required")
JOURNAL = Journal("g", "b", "edit")


class Scene:
    """A gate before real tables. Alice is enrolled, bob isn't, carol must be and isn't."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.update = 1000.0, 0
        monkeypatch.setattr(gate_module, "_boottime", lambda: self.now)
        self.markers = directory / "enrolled"
        self.markers.mkdir()
        (self.markers / "alice").write_text("{}")
        config = Config(Kai(totp=Totp(idle=600)), (ALICE, BOB, CAROL))
        self.gate = Gate(lambda: config, cast(Any, None), self.markers)
        self.store: Store = open_tables(directory)
        self.inbox = Inbox(self.store, 7)

    def said(self, text: str, kind: Any = "turn", user: User = ALICE, **more: Any) -> Arrival:
        self.update += 1
        return Arrival(self.update, user.name, user.telegram_id, 100 + self.update, kind, text, **more)

    def judged(self, text: str, kind: Any = "turn", user: User = ALICE, **more: Any) -> Arrival:
        arrival = self.said(text, kind, user, **more)
        self.gate.judge([arrival])
        return arrival

    async def take(self, *arrivals: Arrival) -> list[InboxRow]:
        self.gate.judge(arrivals)
        return await self.inbox.receive(arrivals, self.update + 1)

    def open(self, user: str = "alice") -> None:
        assert self.gate.let_in(user, self.gate.marker(user))


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    made = Scene(tmp_path, monkeypatch)
    yield made
    made.store.close()


# ---- who is gated ----


def test_who_never_was_enrolled_is_not_gated(scene: Scene) -> None:
    assert scene.gate.standing("bob") == "free"
    arrival = scene.judged("rm -rf", user=BOB, journal=JOURNAL)
    assert (arrival.locked, arrival.text, arrival.journal) == (False, "rm -rf", JOURNAL)


def test_who_must_be_enrolled_and_is_not_is_told_whom_to_ask_and_nothing_of_his_is_taken(scene: Scene) -> None:
    for kind, more in (("turn", {}), ("command", {}), ("edit", {}), ("control", {"callback": "c"})):
        arrival = scene.judged("x", kind, CAROL, **cast(Any, more))
        assert "sudo kai totp setup carol" in arrival.refused
    assert scene.judged("123456", user=CAROL).bundle == ""


def test_where_the_markers_cant_be_read_everybody_is_locked_out(scene: Scene) -> None:
    (scene.markers / "alice").unlink()
    scene.markers.rmdir()
    for user in (ALICE, BOB, CAROL):
        assert scene.judged("x", user=user).refused == DOUBTFUL
        assert scene.judged("c", "control", user, callback="c").refused == DOUBTFUL
        assert not scene.judged("/stop", "control", user).locked


def test_a_window_belongs_to_one_enrolment(scene: Scene) -> None:
    scene.open()
    assert scene.gate.standing("alice") == "open"
    marker = scene.gate.marker("alice")
    (scene.markers / "new").write_text("{}")
    (scene.markers / "new").rename(scene.markers / "alice")
    assert scene.gate.standing("alice") == "closed"
    assert not scene.gate.let_in("alice", marker), "a code of the former secret"
    (scene.markers / "alice").unlink()
    assert scene.gate.standing("alice") == "free"


def test_a_marker_that_comes_closes_at_once_and_one_that_goes_and_comes_opens_nothing(scene: Scene) -> None:
    assert scene.gate.standing("bob") == "free"
    (scene.markers / "bob").write_text("{}")
    assert scene.gate.standing("bob") == "closed"
    scene.open()
    (scene.markers / "alice").unlink()
    assert scene.gate.standing("alice") == "free"
    (scene.markers / "alice").write_text("{}")
    assert scene.gate.standing("alice") == "closed"


# ---- the window ----


@pytest.mark.parametrize(
    ("kind", "more"), [("turn", {}), ("command", {}), ("control", {}), ("edit", {}), ("control", {"callback": "c"})]
)
def test_whatever_the_user_does_keeps_the_window_open(scene: Scene, kind: Any, more: dict[str, Any]) -> None:
    scene.open()
    scene.now += 599
    assert not scene.judged("x", kind, **more).locked
    scene.now += 599
    assert not scene.judged("y").locked
    scene.now += 600
    assert scene.judged("z").locked


def test_what_others_do_keeps_nobodys_window_open(scene: Scene) -> None:
    scene.open()
    for _ in range(3):
        scene.now += 250
        scene.judged("x", user=BOB)
    assert scene.judged("y").locked


def test_what_passes_a_closed_gate_opens_it_not(scene: Scene) -> None:
    for _ in range(3):
        assert not scene.judged("/stop", "control").locked
    assert scene.gate.standing("alice") == "closed"


# ---- what passes, and what doesn't ----


def test_only_start_help_and_stop_pass_of_all_commands(scene: Scene) -> None:
    assert {"start", "help", "stop"} == PASSING
    for command in TABLE:
        for text in (f"/{command.name}", f"/{command.name} all", f"/{command.name}@kai_bot"):
            arrival = scene.judged(text, "control")
            assert arrival.locked != (command.name in PASSING), text
            assert scene.judged(text, "command").locked


@pytest.mark.parametrize("text", ["/stop", "/help", "/start"])
def test_a_button_or_an_edit_or_a_forward_that_says_stop_does_not_pass(scene: Scene, text: str) -> None:
    assert scene.judged(text, "control", callback="c").refused == BUTTON
    assert scene.judged(text, "edit").refused == EDITED
    assert scene.judged(text, "turn", bundle="forward").locked


BUTTONS = ["stop:7.1", "approve:x:once", "continue:7.1", "drop:7.1", "again:5", "cmd:/settings x", "jobs:run:7", "?"]


@pytest.mark.parametrize("data", BUTTONS)
async def test_no_button_does_anything(scene: Scene, data: str) -> None:
    (row,) = await scene.take(scene.said(data, "turn", callback="c"))
    assert (row.kind, row.state, row.error) == ("control", "received", BUTTON)


async def test_continue_and_drop_decide_nothing_of_a_turn_that_was_cut_off(scene: Scene) -> None:
    scene.open()
    (row,) = await scene.take(scene.said("work"))
    await scene.store.write(lambda db: db.execute("UPDATE inbox SET state = 'interrupted'"))
    scene.gate.forget("alice")
    for data in ("continue:7.1", "drop:7.1"):
        await scene.take(scene.said(data, "control", callback="c"))
    found = await scene.inbox.find(row.id)
    assert found and found.state == "interrupted"


async def test_an_edit_of_what_waited_before_the_lock_changes_nothing(scene: Scene) -> None:
    scene.open()
    first = scene.said("copy the files")
    (row,) = await scene.take(first)
    scene.gate.forget("alice")
    edit = scene.said("delete the files", "edit")
    edit.message = first.message
    (refused,) = await scene.take(edit)
    found = await scene.inbox.find(row.id)
    assert found and (found.text, found.state) == ("copy the files", "queued")
    assert (refused.state, refused.error, refused.text) == ("received", EDITED, "")


async def test_an_edit_of_what_is_held_changes_nothing(scene: Scene) -> None:
    first = scene.said("copy the files")
    (row,) = await scene.take(first)
    edit = scene.said("delete the files", "edit")
    edit.message = first.message
    await scene.take(edit)
    found = await scene.inbox.find(row.id)
    assert found and (found.text, found.state) == ("copy the files", "held")


# ---- what is held ----


@pytest.mark.parametrize(("kind", "then"), [("turn", "queued"), ("command", "queued"), ("control", "received")])
async def test_one_message_is_held_and_waits_like_any_other_after_a_code(scene: Scene, kind: Any, then: str) -> None:
    held, other = await scene.take(scene.said("/stats", kind, journal=JOURNAL), scene.said("the second"))
    assert (held.state, held.text, held.generation) == ("held", "/stats", "")
    assert (other.state, other.error, other.text) == ("refused", LOCKED, "")
    assert [row.id for row in await scene.inbox.held()] == [held.id]
    released = await scene.inbox.release("alice", 1001, 0.0)
    assert released and (released.id, released.state) == (held.id, then)
    assert await scene.inbox.release("alice", 1001, 0.0) is None


async def test_what_is_held_is_nobody_elses_to_release(scene: Scene) -> None:
    await scene.take(scene.said("mine"))
    assert await scene.inbox.release("bob", 1002, 0.0) is None
    assert await scene.inbox.release("alice", 9999, 0.0) is None, "another account"


async def test_an_album_is_held_as_one_and_a_part_that_comes_after_the_code_joins_it(scene: Scene) -> None:
    parts = [scene.said("", bundle="album:5", content='{"files": [{"id": "f", "kind": "photo"}]}') for _ in range(4)]
    rows = await scene.take(*parts[:3])
    assert [row.state for row in rows] == ["held", "grouped", "grouped"]
    await scene.inbox.release("alice", 1001, 0.0)
    scene.open()
    (late,) = await scene.take(parts[3])
    assert (late.state, late.leader) == ("grouped", rows[0].id)


async def test_a_comment_with_what_it_is_about_is_held_as_one(scene: Scene) -> None:
    rows = await scene.take(scene.said("look"), scene.said("a", bundle="forward"), scene.said("b", bundle="forward"))
    assert [row.state for row in rows] == ["held", "grouped", "grouped"]


async def test_a_part_that_comes_before_the_code_joins_nothing_that_came_after_one(scene: Scene) -> None:
    scene.open()
    (before,) = await scene.take(scene.said("x", bundle="album:5"))
    scene.gate.forget("alice")
    (locked,) = await scene.take(scene.said("y", bundle="album:5"))
    assert before.state == "queued"
    assert (locked.state, locked.leader) == ("held", None)


async def test_what_is_held_never_becomes_a_turn_by_the_operators_retry_a_start_or_a_prune(scene: Scene) -> None:
    (row,) = await scene.take(scene.said("x"))
    assert await scene.store.write(lambda db: _revive(db, row.id)) is None
    assert await scene.inbox.unfinished() == []
    await scene.inbox.prune()
    assert [one.state for one in await scene.inbox.held()] == ["held"]


async def test_what_is_held_of_a_user_who_is_gone_is_no_dead_letter_that_could_be_worked_on(scene: Scene) -> None:
    (row,) = await scene.take(scene.said("x"))
    assert await scene.inbox.bury({"bob": 1002}) == 0
    found = await scene.inbox.find(row.id)
    assert found and found.state == "expired"
    assert "'expired'" in FINISHED
    assert await scene.store.write(lambda db: _revive(db, row.id)) is None


async def test_what_is_held_keeps_nothing_of_a_later_user_from_running_at_once(scene: Scene) -> None:
    await scene.take(scene.said("x"))
    (row,) = await scene.take(scene.said("mine", user=BOB, journal=JOURNAL))
    assert row.state == "running"


# ---- codes ----


@pytest.mark.parametrize(
    "text", ["123456", " 123 456 ", "123 456\n", "123-456", "12 34 56", "123\u00a0456", "12\u202f34\u202f56"]
)
async def test_a_code_is_in_memory_alone(scene: Scene, text: str, tmp_path: Path) -> None:
    (row,) = await scene.take(scene.said(text))
    assert (row.kind, row.state, row.bundle, row.text, row.error) == ("control", "received", CODE, "", FORGOTTEN)
    assert scene.gate.codes == {row.update_id: "123456"}
    scene.store.close()
    for file in tmp_path.glob("queue.db*"):
        assert not re.search(rb"12.{0,3}3.{0,3}4.{0,3}56", file.read_bytes())


async def test_a_code_that_answers_a_message_keeps_no_quotation(scene: Scene) -> None:
    (row,) = await scene.take(scene.said("123456", content='{"quote": "send the six digits"}'))
    assert (row.bundle, row.content) == (CODE, "")


@pytest.mark.parametrize(
    "more",
    [
        {"bundle": "forward"},
        {"bundle": "album:5"},
        {"content": '{"files": [{"id": "f", "kind": "photo"}]}'},
        {"kind": "edit"},
    ],
)
async def test_a_forward_a_caption_and_an_edit_are_no_code(scene: Scene, more: dict[str, Any]) -> None:
    await scene.take(scene.said("123456", **more))
    assert scene.gate.codes == {}


@pytest.mark.parametrize("text", ["12345", "1234567", "123-45", "12 34 56 7"])
def test_a_mistyped_code_is_not_held_as_a_message_while_one_is_asked_for(scene: Scene, text: str) -> None:
    assert scene.judged(text).text == text, "nobody was asked for a code: a message like any other"
    scene.gate.asked.add("alice")
    arrival = scene.judged(text)
    assert (arrival.text, arrival.bundle, scene.gate.codes) == ("", CODE, {arrival.update_id: ""})


def test_digits_of_another_script_are_no_code(scene: Scene) -> None:
    assert scene.judged("١٢٣٤٥٦").bundle == ""


def test_while_the_gate_is_open_six_digits_are_a_message_unless_it_was_opened_just_now(scene: Scene) -> None:
    scene.open()
    first = scene.judged("123456", journal=JOURNAL)
    assert (first.text, first.bundle, first.journal) == ("", CODE, None)
    assert scene.judged("1234567").text == "1234567"
    scene.gate.codes.clear()
    scene.now += 91
    assert scene.judged("123456").text == "123456"
    assert scene.gate.codes == {}


async def test_two_users_in_one_batch_are_two(scene: Scene) -> None:
    mine, his_row, code = await scene.take(
        scene.said("a"), scene.said("b", user=BOB, journal=JOURNAL), scene.said("654321")
    )
    assert (mine.state, his_row.state, code.bundle) == ("held", "running", CODE)


async def test_a_refused_kind_of_message_is_not_described_to_who_is_locked_out(scene: Scene) -> None:
    arrival = scene.judged("x", refused="This kind of message can't be taken")
    assert (arrival.refused, arrival.kind, arrival.text) == (LOCKED, "control", "")
    (row,) = await scene.inbox.receive([arrival], 99)
    assert row.state == "received", "it is told like any other that can't be taken"
