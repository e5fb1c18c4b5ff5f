"""The terminal chat: what is typed, what is shown, and that a message which grows is drawn in place."""

from __future__ import annotations

import io
import re

import pytest

from kai.demo.botapi.server import BotApi
from kai.demo.chat import Chat
from kai.demo.editor import Editor
from kai.demo.screen import Face, Item, Plain, Terminal, painted, rows_of, safe, styled, wrapped

ALICE = 7
STOP = {"inline_keyboard": [[{"text": "⏹ Stop", "callback_data": "stop:1.2"}]]}


class Screen:
    """As much of a terminal as the chat uses: rows, a cursor, and the sequences for up, right, home and erasing."""

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.rows = [""]
        self.row = self.column = 0

    def write(self, text: str) -> None:
        for piece in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|[\n\r]|.", text):
            if piece == "\n":
                self.row, self.column = self.row + 1, 0
                if self.row == len(self.rows):
                    self.rows.append("")
            elif piece == "\r":
                self.column = 0
            elif piece.endswith("A") and piece[0] == "\x1b":
                self.row -= int(piece[2:-1])
                assert self.row >= 0
            elif piece.endswith("C") and piece[0] == "\x1b":
                self.column += int(piece[2:-1])
            elif piece.endswith("J"):
                self.rows[self.row] = self.rows[self.row][: self.column]
                del self.rows[self.row + 1 :]
            elif piece[0] != "\x1b":
                line = self.rows[self.row].ljust(self.column)
                self.rows[self.row] = line[: self.column] + piece + line[self.column + 1 :]
                self.column += 1
                assert self.column <= self.columns

    def flush(self) -> None:
        pass


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> tuple[Screen, Terminal, Editor]:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("LINES", "12")
    screen, editor = Screen(40), Editor()
    face = Terminal(screen, editor)  # type: ignore[arg-type]
    face.draw()
    return screen, face, editor


class Seen(Face):
    def __init__(self) -> None:
        self.notices: list[str] = []
        self.changes: list[int] = []

    def show(self, items: object, changed: int) -> None:
        self.changes.append(changed)

    def notice(self, text: str) -> None:
        self.notices.append(text)


@pytest.fixture
def chat() -> Chat:
    api = BotApi(token="1:secret")
    api.declare_user(ALICE)
    return Chat(api, ALICE, Seen())


def bot_says(chat: Chat, text: str, markup: object = None, message: int | None = None) -> int:
    fields = {"text": text, "reply_markup": markup}
    if message is None:
        where = chat.api.chats[ALICE]
        made = chat.api.add_message(where, chat.api.bot, {k: v for k, v in fields.items() if v is not None})
        message = int(made.wire["message_id"])
    else:
        chat.api.change_message(chat.api.chats[ALICE].messages[message], fields)
    chat.catch_up()
    return message


# ---- the editor ----


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        (b"hello\r", "hello"),
        ("grüß 👀\r".encode(), "grüß 👀"),
        (b"hxe\x1b[D\x7f\x1b[Cllo\n", "hello"),
        (b"\x1b[3~world\x01hello \r", "hello world"),
        (b"one two\x17three\r", "one three"),
        (b"gone\x15kept\r", "kept"),
        (b"kept gone\x1bOH\x1b[C\x1b[C\x1b[C\x1b[C\x0b\r", "kept"),
        (b"a\x1b[200~b\x1b[201~c\r", "abc"),
        (b"a\x00\x1bxb\r", "ab"),
    ],
)
def test_keys_edit_the_line(keys: bytes, line: str) -> None:
    assert Editor().feed(keys) == [("line", line)]
    editor, actions = Editor(), []
    for byte in keys:  # as slowly as a keyboard can be
        actions += editor.feed(bytes([byte]))
    assert actions == [("line", line)]


def test_earlier_lines_come_back_and_the_draft_is_not_lost() -> None:
    editor = Editor()
    editor.feed(b"first\rsecond\rdra")
    editor.feed(b"\x1b[A\x1b[A\x1b[A")
    assert editor.text == "first"
    editor.feed(b"\x1b[B\x1b[B")
    assert editor.text == "dra"


def test_ctrl_d_ends_only_on_an_empty_line_and_ctrl_c_empties_it() -> None:
    editor = Editor()
    assert editor.feed(b"ab\x01\x04") == []
    assert editor.text == "b"
    assert editor.feed(b"\x03\x04") == [("interrupt", ""), ("end", "")]


# ---- rendering ----


def test_entities_become_styles_by_their_utf16_offsets() -> None:
    [line] = styled("👀 bold", [{"type": "bold", "offset": 3, "length": 4}])
    assert painted(line) == "👀 \x1b[0;1mbold\x1b[0m"


def test_each_row_of_buttons_is_a_line() -> None:
    item = Item(1, True, "pick", buttons=[[(1, "✓ opus"), (2, "haiku")], [(3, "reset")]])
    assert [re.sub("\x1b.*?m", "", row).strip() for row in rows_of(item, 40)] == [
        "pick",
        "[1] ✓ opus [2] haiku",
        "[3] reset",
    ]
    out = io.StringIO()
    Plain(out).show({1: item}, 1)
    assert out.getvalue().splitlines() == ["pick", "[1] ✓ opus  [2] haiku", "[3] reset"]


def test_the_address_behind_a_link_is_shown() -> None:
    [line] = styled("see here now", [{"type": "text_link", "offset": 4, "length": 4, "url": "https://e.org"}])
    assert re.sub("\x1b.*?m", "", painted(line)) == "see here (https://e.org) now"


def test_nothing_in_a_message_can_play_with_the_terminal() -> None:
    assert safe("a\x1b[2Jb\x07\x9bc\td\ne") == "a�[2Jb��c    d\ne"
    rows = rows_of(Item(1, True, "x\x1b]0;title\x07", buttons=[[(1, "\x1b[2J")]]), 40)
    assert "\x1b]" not in "".join(rows)
    assert "\x1b[2J" not in "".join(rows)


def test_long_lines_break_at_spaces_and_wide_characters_count_twice() -> None:
    rows = wrapped([(c, "") for c in "the quick brown fox"], 10)
    assert ["".join(c for c, _ in row) for row in rows] == ["the quick ", "brown fox"]
    assert [len(row) for row in wrapped([(c, "") for c in "漢" * 7], 6)] == [3, 3, 1]


def test_a_growing_message_is_drawn_in_place_above_the_line_being_typed(
    terminal: tuple[Screen, Terminal, Editor],
) -> None:
    screen, face, editor = terminal
    editor.feed(b"half a li")
    items = {1: Item(1, False, "slow 3")}
    face.show(items, 1)
    for text in ("⏳", "one\n\n⏳", "one two\n\n⏳"):
        items[2] = Item(2, True, text, buttons=[[(1, "Stop")]], growing=True)
        face.show(items, 2)
    assert screen.rows == ["› slow 3", "  one two", "  ", "  ⏳", "  [1] Stop ", "› half a li"]
    assert (screen.row, screen.column) == (5, 11)
    items[2] = Item(2, True, "one two three")
    face.show(items, 2)
    assert screen.rows == ["› slow 3", "  one two three", "› half a li"]


def test_a_growing_message_longer_than_the_screen_shows_its_end_and_later_all_of_it(
    terminal: tuple[Screen, Terminal, Editor],
) -> None:
    screen, face, _ = terminal
    text = "\n".join(str(n) for n in range(30))
    items = {1: Item(1, True, text, growing=True)}
    face.show(items, 1)
    assert screen.rows == [*(f"  {n}" for n in range(20, 30)), "› "]
    items[1] = Item(1, True, text)
    face.show(items, 1)
    assert screen.rows == [*(f"  {n}" for n in range(30)), "› "]


def test_messages_below_a_growing_one_wait_for_it_and_may_vanish(terminal: tuple[Screen, Terminal, Editor]) -> None:
    screen, face, _ = terminal
    items = {1: Item(1, True, "⏳", growing=True), 2: Item(2, False, "next"), 3: Item(3, True, "1 message waits")}
    face.show(items, 3)
    del items[3]
    items[1] = Item(1, True, "done")
    face.show(items, 1)
    assert screen.rows == ["  done", "› next", "› "]


def test_a_long_typed_line_wraps_and_the_cursor_is_found_in_it(terminal: tuple[Screen, Terminal, Editor]) -> None:
    screen, face, editor = terminal
    editor.feed(b"x" * 50 + b"\x01\x1b[C")
    face.draw()
    face.draw()
    assert "".join(screen.rows) == "› " + "x" * 50
    assert (screen.row, screen.column) == (0, 3)


def test_without_a_terminal_certain_text_is_written_once_as_it_grows() -> None:
    out = io.StringIO()
    face = Plain(out)
    items = {1: Item(1, False, "slow 4")}
    face.show(items, 1)
    for text in ("⏳", "one\n\n⏳", "one two\n\n⏳"):
        items[2] = Item(2, True, text, buttons=[[(1, "Stop")]], growing=True)
        face.show(items, 2)
    assert out.getvalue() == "› slow 4\none"
    items[2] = Item(2, True, "one two three")
    face.show(items, 2)
    face.show(items, 2)
    assert out.getvalue() == "› slow 4\none two three\n"


def test_text_that_changed_after_it_was_written_is_written_anew() -> None:
    out = io.StringIO()
    face = Plain(out)
    for text in ("a *b\n\n⏳", "a *b\n\n⏳"):
        face.show({2: Item(2, True, text, growing=True)}, 2)
    face.show({2: Item(2, True, "a b")}, 2)
    assert out.getvalue() == "a *b\na b\n"


# ---- the chat ----


def test_lines_are_said_and_empty_ones_are_not(chat: Chat) -> None:
    chat.typed("hello /help")
    chat.typed("   ")
    [pending] = chat.api.pending()
    assert pending.update["message"]["text"] == "hello /help"
    assert [item.text for item in chat.items.values()] == ["hello /help"]


def test_a_number_presses_its_button_and_the_number_stays(chat: Chat) -> None:
    first = bot_says(chat, "⏳", STOP)
    assert chat.items[first].buttons == [[(1, "⏹ Stop")]]
    assert chat.running
    picker = {"inline_keyboard": [[{"text": name, "callback_data": name} for name in ("a", "b")]]}
    second = bot_says(chat, "pick", picker)
    assert chat.items[second].buttons == [[(2, "a"), (3, "b")]]
    bot_says(chat, "text\n\n⏳", STOP, message=first)
    assert chat.items[first].buttons == [[(1, "⏹ Stop")]]
    chat.typed(":3")
    assert chat.api.pending()[-1].update["callback_query"]["data"] == "b"
    bot_says(chat, "done", message=first)
    assert not chat.running
    chat.typed(":1")
    assert isinstance(chat.face, Seen)
    assert chat.face.notices == ["there is no button [1]"]


def test_ctrl_c_says_stop_only_while_something_runs(chat: Chat) -> None:
    assert not chat.interrupt()
    message = bot_says(chat, "⏳")
    assert chat.running
    bot_says(chat, "⚙ Bash", STOP, message=message)
    assert chat.interrupt()
    assert [update.update["message"]["text"] for update in chat.api.pending()] == ["/stop"]


def test_too_long_a_line_is_refused_with_the_reason(chat: Chat) -> None:
    chat.typed("x" * 5000)
    assert isinstance(chat.face, Seen)
    assert "4096" in chat.face.notices[0]
    assert chat.items == {}
