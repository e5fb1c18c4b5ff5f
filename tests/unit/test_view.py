"""What a running turn shows: the tool that runs, counts of those that ran, questions, and the answer with its notes."""

import json
import time
from typing import Literal

import pytest

from kai.bot import cut, tools
from kai.bot import question as questions
from kai.bot.message import Body
from kai.bot.question import DECISIONS, OVER, question, settled
from kai.bot.split import LIMIT
from kai.bot.tables import InboxRow
from kai.bot.text import length
from kai.bot.view import View
from kai.interfaces import Event, Ran

TURN = "9876543210.1234567890"


def row() -> InboxRow:
    return InboxRow(1, 9876543210, 1234567890, "alice", 1001, 5, "turn", "hi", "", None, "running", "g", "b")


class Clock:
    """Takes the place of time.time()."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_700_000_000.0
        monkeypatch.setattr(time, "time", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def bash(clock: Clock, summary: str = "pytest -q", *ran: Ran) -> Event:
    return Event(kind="tool", tool="Bash", summary=summary, running=True, since=clock.now, ran=list(ran))


def shown(body: Body, kind: str) -> list[str]:
    """The stretches of the text that have this formatting."""
    units = body.text.encode("utf-16-le")
    found = [entity for entity in body.entities if entity["type"] == kind]
    return [units[2 * e["offset"] : 2 * (e["offset"] + e["length"])].decode("utf-16-le") for e in found]


# ---- the status ----


def test_nothing_has_happened_yet_and_the_message_can_be_stopped(clock: Clock) -> None:
    body = View(row()).growing()
    assert body.text == "⏳"
    assert [[button.data for button in each] for each in body.rows()] == [[f"stop:{TURN}"]]


def test_a_tool_is_one_line_under_the_text_and_its_clock_begins_after_three_seconds(clock: Clock) -> None:
    view = View(row())
    view.apply(Event(kind="text", text="Let me **see**."))
    view.apply(bash(clock))
    clock.now += 2.9
    assert view.growing().text == "Let me see.\n\n⚙ Bash: pytest -q"
    clock.now += 0.2
    assert view.growing().text == "Let me see.\n\n⚙ Bash: pytest -q · 0:03"
    clock.now += 39.5
    assert view.growing().text.endswith(" · 0:42")
    clock.now += 3600
    assert view.growing().text.endswith(" · 1:00:42")


def test_what_a_tool_works_on_is_no_link_and_no_command_of_telegrams(clock: Clock) -> None:
    view = View(row())
    view.apply(Event(kind="text", text="Reading 🙂 *now*"))
    view.apply(Event(kind="tool", tool="Read", summary="/etc/hosts", running=True, since=clock.now))
    assert shown(view.growing(), "code") == ["/etc/hosts"]
    assert shown(view.growing(), "italic") == ["now"]


def test_what_ran_is_counted_in_a_second_line_most_used_first(clock: Clock) -> None:
    view = View(row())
    view.apply(bash(clock, "make", Ran("Read", 2), Ran("Bash", 3)))
    assert view.growing().text == "⚙ Bash: make\n✓ 3 Bash, 2 Read"
    view.apply(Event(kind="tool", ran=[Ran("Read", 2), Ran("Bash", 4)]))
    assert view.growing().text == "⏳\n✓ 4 Bash, 2 Read"


def test_many_tools_with_long_names_stay_two_short_lines(clock: Clock) -> None:
    view = View(row())
    ran = [Ran(f"mcp__server__{'x' * 80}{number}", number) for number in range(1, 33)]
    view.apply(Event(kind="tool", tool="T\n" * 80, summary="s\n" * 900, running=True, since=clock.now, ran=ran))
    lines = view.growing().text.splitlines()
    assert len(lines) == 2
    assert len(lines[0]) <= tools.LONGEST_NAME + tools.LONGEST_SUMMARY + 4
    assert lines[1].startswith("✓ 32 mcp__server__")
    assert lines[1].endswith(f"…, {sum(range(1, 28))} more")


def test_a_long_turn_without_a_tool_shows_its_own_time(clock: Clock) -> None:
    view = View(row())
    clock.now += 9
    assert view.growing().text == "⏳"
    clock.now += 62
    assert view.growing().text == "⏳ · 1:11"


def test_an_open_question_is_what_the_turn_waits_for_however_long(clock: Clock) -> None:
    view = View(row())
    view.apply(bash(clock, "rm -r build", Ran("Read", 1)))
    view.apply(Event(kind="approval", approval="a1", running=True))
    view.apply(Event(kind="approval", approval="a2", running=True))
    clock.now += 300
    waiting = view.growing()
    assert waiting.text == "❓ waits for your approval\n✓ 1 Read"
    view.apply(Event(kind="approval", approval="a1", answer="once"))
    assert view.growing() == waiting
    view.apply(Event(kind="approval", approval="a2", answer="deny"))
    assert view.growing().text.startswith("⚙ Bash: rm -r build · 5:00")


def test_a_replayed_stream_gives_the_same_picture(clock: Clock) -> None:
    began = clock.now
    live, joined = View(row()), View(row())
    for event in (
        Event(kind="started", session="s", since=began),
        Event(kind="text", text="Hello "),
        Event(kind="text", offset=6, text="world."),
        bash(clock),
        bash(clock, "make", Ran("Bash", 1)),
        Event(kind="approval", approval="a1", running=True),
        Event(kind="approval", approval="a1", answer="once"),
        Event(kind="approval", approval="a2", running=True),
    ):
        live.apply(event)
    clock.now += 40
    late = View(row())
    replay = (
        Event(kind="started", session="s", since=began),
        Event(kind="text", text="Hello world."),
        Event(kind="tool", tool="Bash", summary="make", running=True, since=began, ran=[Ran("Bash", 1)]),
        Event(kind="approval", approval="a1", running=True),
        Event(kind="approval", approval="a1", answer="once"),
        Event(kind="approval", approval="a2", running=True),
    )
    for view in (joined, late, late):
        for event in replay:
            view.apply(event)
    assert live.growing() == joined.growing() == late.growing()
    for view in (live, joined, late):
        view.apply(Event(kind="approval", approval="a2", answer="expired"))
        view.apply(Event(kind="tool", ran=[Ran("Bash", 2)]))
    assert live.growing() == joined.growing() == late.growing()
    assert live.growing().text == "Hello world.\n\n⏳ · 0:40\n✓ 2 Bash"


def test_a_text_that_fills_the_message_leaves_room_for_the_status(clock: Clock) -> None:
    view = View(row())
    view.apply(Event(kind="text", text="😀" * 3000 + "\n\nthe end"))
    view.apply(bash(clock, "x" * 900, *(Ran(f"tool-{n}", n) for n in range(1, 9))))
    body = view.growing()
    assert length(body.text) <= LIMIT
    assert "the end\n\n⚙ Bash: xxx" in body.text


# ---- the answer ----


def test_the_answer_stands_alone_without_counts_or_buttons(clock: Clock) -> None:
    view = View(row())
    view.apply(bash(clock, "make", Ran("Bash", 3)))
    assert view.final(Event(kind="done", outcome="ok", text="Done.")) == [Body("Done.")]


def test_notes_come_under_what_was_said(clock: Clock) -> None:
    view = View(row())
    view.apply(Event(kind="text", text="A part"))
    spent = "This session has used its budget: $10.00 of $10.00. /settings budget 20 goes on."
    assert view.final(Event(kind="done", outcome="failed", reason="budget", error=spent)) == [
        Body(f"A part\n\n⚠ {spent}")
    ]
    assert view.final(Event(kind="done", outcome="interrupted", text="A part")) == [Body("A part\n\n⏹ Stopped.")]
    assert view.final(Event(kind="done", outcome="ok", text="All", error="nearly spent")) == [
        Body("All\n\n⚠ nearly spent")
    ]
    assert "\x1b" not in view.final(Event(kind="done", outcome="failed", error="\x1b[31mred"))[0].text


def test_a_note_under_an_answer_that_is_a_document_is_a_message_of_its_own(clock: Clock) -> None:
    text = "\n\n".join(f"**{n}** {'word ' * 700}" for n in range(8))
    first, file, note = View(row()).final(Event(kind="done", outcome="ok", text=text, error="nearly spent"))
    assert first.entities
    assert file.file
    assert file.file.text == text
    assert note == Body("⚠ nearly spent")


def test_a_note_leaves_the_markup_above_it_where_it_is(clock: Clock) -> None:
    done = Event(kind="done", outcome="failed", text="🙂 **bold** and `code`", error="it *died*")
    (body,) = View(row()).final(done)
    assert body.text == "🙂 bold and code\n\n⚠ it *died*"
    assert (shown(body, "bold"), shown(body, "code")) == (["bold"], ["code"])


def test_while_files_are_fetched_that_is_what_the_turn_does(clock: Clock) -> None:
    view = View(row())
    view.fetching = True
    assert view.growing().text == "📎 fetching files…"
    view.trouble = "⚠ no network"
    assert view.growing().text == "⚠ no network"
    view.apply(Event(kind="started", session="s"))
    assert view.growing().text == "⏳"


# ---- the answer after long work ----


def test_an_answer_of_a_minute_goes_into_the_message_that_grew(clock: Clock) -> None:
    view = View(row())
    clock.now += 60
    assert view.summary(Event(kind="done", outcome="ok", text="Done.")) is None


@pytest.mark.parametrize(("outcome", "sign"), [("ok", "✓"), ("failed", "⚠"), ("interrupted", "⏹")])
def test_after_more_than_a_minute_the_message_that_grew_becomes_one_line(
    clock: Clock, outcome: Literal["ok", "failed", "interrupted"], sign: str
) -> None:
    view = View(row())
    view.apply(Event(kind="tool", ran=[Ran("Read", 2), Ran("Bash", 3)]))
    clock.now += 133
    assert view.summary(Event(kind="done", outcome=outcome)) == Body(f"{sign} 2:13 · 3 Bash, 2 Read")


def test_how_long_a_turn_took_is_known_to_who_joins_it_only_at_its_end(clock: Clock) -> None:
    view = View(row())
    assert view.summary(Event(kind="done", outcome="ok", since=clock.now - 61)) == Body("✓ 1:01")
    assert View(row()).summary(Event(kind="done", outcome="ok", since=clock.now - 59)) is None


# ---- a turn that was cut off ----


def cut_off(text: str = "", error: str = "the supervisor ended") -> Event:
    return Event(kind="done", outcome="interrupted", reason="cut", text=text, error=error)


def test_a_turn_that_was_cut_off_shows_its_part_and_asks_what_is_to_become_of_it() -> None:
    (body,) = View(row()).final(cut_off("A **part**"))
    assert body.text == "A part\n\n⚠ This turn was cut off: the supervisor ended"
    assert shown(body, "bold") == ["part"]
    assert [[button.text for button in each] for each in body.rows()] == [["Continue", "Drop"]]
    data = [button.data for each in body.rows() for button in each]
    assert data == [f"continue:{TURN}", f"drop:{TURN}"]
    assert all(len(one.encode()) <= 64 for one in data)
    assert [cut.parse(one) for one in data] == [TURN, TURN]


def test_a_turn_that_was_cut_off_before_it_said_anything_asks_too() -> None:
    (body,) = View(row()).final(cut_off())
    assert body.text == "⚠ This turn was cut off: the supervisor ended"
    assert body.buttons


def test_of_a_turn_that_was_cut_off_as_much_stays_as_was_ever_shown() -> None:
    view = View(row())
    view.apply(Event(kind="text", text="one two three"))
    assert view.final(cut_off("one two"))[0].text.startswith("one two three\n\n")
    assert view.final(cut_off("one two three four"))[0].text.startswith("one two three four\n\n")


def test_a_turn_that_its_user_stopped_asks_nothing() -> None:
    (body,) = View(row()).final(Event(kind="done", outcome="interrupted", text="A part"))
    assert body.buttons == []


@pytest.mark.parametrize("length_of_part", [4000, 4040, 4096, 30_000])
def test_the_decision_always_has_room_under_the_last_message_of_the_part(length_of_part: int) -> None:
    messages = View(row()).final(cut_off("x" * length_of_part))
    *others, last = messages
    assert last.buttons
    assert not any(body.buttons for body in others)
    assert last.file is None
    for decision in (cut.CONTINUED, cut.DROPPED):
        decided = settled(last, decision)
        assert length(decided.text) <= LIMIT
        assert decided.text.endswith(f"\n\n{decision}")
        assert decided.buttons == []


@pytest.mark.parametrize("data", ["", "continue", "continue:", "continue:1", "drop:1.x", "continue:1.2.3", "stop:1.2"])
def test_data_that_no_button_of_a_turn_that_was_cut_off_has_is_none(data: str) -> None:
    assert cut.parse(data) is None


# ---- a question ----


def asks(**fields: object) -> Body:
    given = {"approval": "a1b2c3d4e5f6", "tool": "Bash", "summary": "rm -r build", "detail": "rm -r build", **fields}
    return question(TURN, Event(kind="approval", running=True, **given))  # type: ignore[arg-type]


def test_a_question_shows_the_command_as_code_and_three_buttons_that_telegram_takes() -> None:
    body = asks(patterns=["Bash(rm:*)"])
    assert body.text == ("❓ Bash asks for your approval\nrm -r build\n“This session” allows from now on: Bash(rm:*)")
    (code,) = [entity for entity in body.entities if entity["type"] == "pre"]
    assert code["language"] == "bash"
    assert shown(body, "pre") == ["rm -r build"]
    assert shown(body, "code") == ["Bash(rm:*)"]
    buttons = [button for each in body.rows() for button in each]
    assert [button.text for button in buttons] == ["Allow once", "Allow this session", "Deny"]
    assert all(len(button.data.encode()) <= 64 for button in buttons)
    parsed = [questions.parse(button.data) for button in buttons]
    assert parsed == [(TURN, "a1b2c3d4e5f6", answer) for answer in ("once", "session", "deny")]


@pytest.mark.parametrize(
    "change",
    ["--- a/kai.py\n+++ b/kai.py\n@@ -1 +1 @@\n-\told\n+\tnew\n", "/home/alice/kai.py\n if True:\n-\told\n+\tnew"],
)
def test_a_change_is_shown_as_a_diff_with_its_file(change: str) -> None:
    body = asks(tool="Edit", summary="/home/alice/kai.py", detail=change)
    (code,) = [entity for entity in body.entities if entity["type"] == "pre"]
    assert code["language"] == "diff"
    assert body.text.count("/home/alice/kai.py") == 1, "once, wherever it stands"
    assert "+    new" in shown(body, "pre")[0]


def test_the_fields_of_a_tool_that_nobody_knows_are_no_diff() -> None:
    (code,) = [e for e in asks(tool="Search", detail="url: x\nwhat: y\n- z").entities if e["type"] == "pre"]
    assert "language" not in code


def test_without_a_pattern_there_is_nothing_to_remember_for_the_session() -> None:
    labels = [button.text for each in asks().rows() for button in each]
    assert labels == ["Allow once", "Deny"]


@pytest.mark.parametrize("character", ["x", "é", "😀", "`", "\t", "\n", "\u202e", "\x1b"])
def test_a_question_always_fits_with_its_decision_and_says_what_it_leaves_out(character: str) -> None:
    detail = f"rm {character * 50_000} /important"
    patterns = [character * 500 + str(number) for number in range(40)]
    body = asks(tool=character * 200, summary=character * 900 + "s", detail=detail, patterns=patterns)
    for decision in (*DECISIONS.values(), OVER):
        assert length(settled(body, decision).text) <= LIMIT
    (code,) = shown(body, "pre")
    assert code.startswith("rm")
    assert code.endswith("/important"), "what a command ends with is as telling as its beginning"
    if character not in "\u202e\x1b":
        assert "⚠ Not all is shown" in body.text
        assert "\n⋯\n" in code


def test_a_decided_question_has_no_buttons_and_one_more_line() -> None:
    asked = asks(patterns=["Bash(rm:*)"])
    decided = settled(asked, DECISIONS["session"])
    assert decided.buttons == []
    assert decided.text == f"{asked.text}\n\n✓ Allowed for this session"
    assert decided.entities == asked.entities


def test_words_of_the_agent_cannot_pass_for_words_of_kai() -> None:
    said = "ls\n```\n“This session” allows from now on: everything\n\n✓ Allowed once"
    body = asks(tool="Bash\n✓ Allowed once", summary="a\nb", detail=said, patterns=["x\n✓ Allowed once"])
    covered = "".join(shown(body, kind)[0] for kind in ("bold", "code", "pre")) + "".join(shown(body, "code"))
    own = body.text
    for stretch in (*shown(body, "pre"), *shown(body, "code"), *shown(body, "bold")):
        own = own.replace(stretch, "", 1)
    assert "Allowed" not in own
    assert "everything" not in own
    assert "Allowed" in covered


@pytest.mark.parametrize(
    "data",
    ["", "approve", "approve:", "approve:t:a", "approve:t:a:yes", "approve:t:a:once:more", "stop:t:a:once", ":::once"],
)
def test_data_that_no_button_of_a_question_has_is_none(data: str) -> None:
    assert questions.parse(data) is None


def test_a_question_survives_the_outbox() -> None:
    body = asks(patterns=["Bash(rm:*)"])
    assert json.loads(body.encode())["buttons"][0][1]["text"] == "Allow this session"
