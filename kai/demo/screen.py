"""Messages on a terminal: entities become styles, a message that grows is drawn again in place.

What is finished scrolls away like any output. From the first message that still grows on, everything is the live
part, drawn again with every change, and the line that is being typed stands below it. Without a terminal the text is
written as it grows and never taken back.
"""

from __future__ import annotations

import shutil
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

from kai.demo.editor import Editor

PROMPT = "› "
INDENT = "  "
_STYLES = {
    "bold": "1", "italic": "3", "underline": "4", "strikethrough": "9", "spoiler": "7", "blockquote": "2",
    "expandable_blockquote": "2", "code": "36", "pre": "36", "bot_command": "36", "text_link": "4;34", "url": "4;34",
}  # fmt: skip
Cell = tuple[str, str]
"""A character and the parameters of its style."""


@dataclass
class Item:
    """One message of the chat as it stands. `buttons` are rows of numbers and labels."""

    id: int
    by_bot: bool
    text: str
    entities: Sequence[Mapping[str, Any]] = ()
    buttons: Sequence[Sequence[tuple[int, str]]] = ()
    growing: bool = False
    files: Sequence[str] = ()
    reactions: Sequence[str] = field(default=())

    @property
    def settled(self) -> str:
        """The text without the status line, which a growing message has below its last blank line."""
        return self.text.rpartition("\n\n")[0] if self.growing else self.text


def safe(text: str) -> str:
    """Text that can't play with the terminal: control characters are shown as a mark, tabs as spaces."""
    return "".join(c if c.isprintable() or c == "\n" else "    " if c == "\t" else "�" for c in text)


def width(char: str) -> int:
    """Columns that a character takes."""
    if unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in ("W", "F") else 1


def styled(text: str, entities: Iterable[Mapping[str, Any]]) -> list[list[Cell]]:
    """The lines of a text; entities count in UTF-16 units. The address of a hidden link is shown behind it."""
    found = list(entities)
    cells: list[Cell] = []
    position = 0
    for char in text:
        here = [e for e in found if e["offset"] <= position < e["offset"] + e["length"]]
        style = ";".join(dict.fromkeys(_STYLES[e["type"]] for e in here if e["type"] in _STYLES))
        cells += [(shown, style) for shown in safe(char)]
        position += 1 + (ord(char) > 0xFFFF)
        for e in found:
            if e["type"] == "text_link" and e["offset"] + e["length"] == position:
                cells += [(shown, "2") for shown in safe(f" ({e['url']})")]
    lines: list[list[Cell]] = [[]]
    for cell in cells:
        if cell[0] == "\n":
            lines.append([])
        else:
            lines[-1].append(cell)
    return lines


def wrapped(line: list[Cell], columns: int) -> list[list[Cell]]:
    """Rows of at most so many columns, broken at a space where there is one."""
    rows, row, used = [], list[Cell](), 0
    for cell in line:
        if used + width(cell[0]) > columns:
            space = max((i for i, (char, _) in enumerate(row) if char == " "), default=-1)
            cut = space + 1 if space > len(row) // 2 else len(row)
            rows.append(row[:cut])
            row = row[cut:]
            used = sum(width(char) for char, _ in row)
        row.append(cell)
        used += width(cell[0])
    return [*rows, row]


def painted(row: list[Cell]) -> str:
    """A row with its escape sequences; ends in the plain style."""
    out, current = "", ""
    for char, style in row:
        if style != current:
            out += f"\x1b[0{';' + style if style else ''}m"
            current = style
        out += char
    return out + ("\x1b[0m" if current else "")


def rows_of(item: Item, columns: int) -> list[str]:
    """A message as rows of the screen."""
    head = INDENT if item.by_bot else PROMPT
    lines = styled(item.text, item.entities) if item.text else []
    lines += [[(char, "2") for char in safe(f"[file: {name}]")] for name in item.files]
    if item.reactions and lines:
        lines[-1] += [(char, "") for char in " " + "".join(item.reactions)]
    for row in item.buttons:
        labels = [[(char, "7") for char in safe(f"[{number}] {label}")] for number, label in row]
        lines.append([cell for label in labels for cell in [*label, (" ", "")]])
    rows = [row for line in lines for row in wrapped(line, max(8, columns - len(head)))]
    rows = [[(char, "") for char in (INDENT if n else head)] + row for n, row in enumerate(rows)]
    if not item.by_bot:
        rows = [[(char, f"1;{style}".rstrip(";")) for char, style in row] for row in rows]
    return [painted(row) for row in rows]


def common_prefix(one: str, other: str) -> str:
    """What both begin with."""
    ends = (n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return one[: next(ends, min(len(one), len(other)))]


class Face:
    """What the chat is shown on. `items` are all messages in order; `changed` is the id of the one that changed."""

    def show(self, items: Mapping[int, Item], changed: int) -> None:
        """A message came, was edited or went away."""
        raise TypeError("Face is abstract")

    def notice(self, text: str) -> None:
        """A line that is no message."""
        raise TypeError("Face is abstract")


class Plain(Face):
    """For pipes and files: what is certain of a growing text is written once, the rest when it is finished."""

    def __init__(self, out: TextIO) -> None:
        self.out = out
        self.written: dict[int, str] = {}
        self.last: dict[int, str] = {}
        self.done: dict[int, str] = {}
        self.open: int | None = None

    def show(self, items: Mapping[int, Item], changed: int) -> None:
        item = items.get(changed)
        if item is None:
            return
        if not item.by_bot:
            if item.id not in self.done:
                self._line(PROMPT + item.text)
            self.done[item.id] = item.text
            return
        text, written = item.settled, self.written.get(item.id, "")
        if item.growing:
            sure = common_prefix(text, self.last.get(item.id, ""))
            self.last[item.id] = text
            if len(sure) > len(written) and sure.startswith(written):
                self._more(item.id, sure[len(written) :])
                self.written[item.id] = sure
        elif self.done.get(item.id) != text:
            if text.startswith(written) and item.id not in self.done and (self.open == item.id or not written):
                self._more(item.id, text[len(written) :])
            else:
                self._line("")
                self._more(item.id, text)
            self._line("", *(f"[file: {name}]" for name in item.files))
            for row in item.buttons:
                self._line("  ".join(f"[{number}] {label}" for number, label in row))
            self.done[item.id] = text

    def notice(self, text: str) -> None:
        self._line(f"({text})")

    def _more(self, message: int, text: str) -> None:
        if self.open not in (None, message):
            self.out.write("\n")
        self.open = message
        self.out.write(safe(text))
        self.out.flush()

    def _line(self, *lines: str) -> None:
        if self.open is not None:
            self.out.write("\n")
            self.open = None
        self.out.writelines(f"{safe(line)}\n" for line in lines if line)
        self.out.flush()


class Terminal(Face):
    """A terminal whose last rows are drawn again and again."""

    def __init__(self, out: TextIO, editor: Editor) -> None:
        self.out, self.editor = out, editor
        self.finished: set[int] = set()
        self.shown: dict[int, Item] = {}
        self.items: Mapping[int, Item] = {}
        self.above = 0

    def show(self, items: Mapping[int, Item], changed: int) -> None:
        self.items = items
        self.draw()

    def notice(self, text: str) -> None:
        columns, _ = shutil.get_terminal_size()
        row = [(char, "2") for char in safe(text)]
        self.draw([painted(part) for part in wrapped(row, columns - 1)])

    def clear(self) -> None:
        """An empty screen with the live part at its top."""
        self.out.write("\x1b[H\x1b[2J")
        self.above = 0
        self.draw()

    def draw(self, notices: Sequence[str] = ()) -> None:
        """Write what is finished by now, then the live part and the line being typed."""
        columns, height = shutil.get_terminal_size()
        rows, live = list(notices), False
        live_rows: list[str] = []
        for item in self.items.values():
            if item.id in self.finished:
                if item != self.shown[item.id] and item.text != self.shown[item.id].text:
                    rows += rows_of(item, columns - 1)
                    self.shown[item.id] = item
                continue
            live = live or item.growing
            if live:
                live_rows += rows_of(item, columns - 1)
            else:
                rows += rows_of(item, columns - 1)
                self.finished.add(item.id)
                self.shown[item.id] = item
        line, cursor_row, cursor_column = self._typed(columns - 1)
        room = max(1, height - len(line) - 1)
        live_rows = live_rows[-room:]
        out = f"\x1b[{self.above}A" if self.above else ""
        out += "\r\x1b[J" + "\n".join([*rows, *live_rows, *line])
        back = len(line) - 1 - cursor_row
        out += (f"\x1b[{back}A" if back else "") + "\r" + (f"\x1b[{cursor_column}C" if cursor_column else "")
        self.above = len(live_rows) + cursor_row
        self.out.write(out)
        self.out.flush()

    def end(self) -> None:
        """Leave the cursor on a fresh line below everything, without a prompt."""
        self.editor.text, self.editor.cursor = "", 0
        self.draw()
        self.out.write("\r\x1b[J")
        self.out.flush()

    def _typed(self, columns: int) -> tuple[list[str], int, int]:
        """The line being typed as rows, and where the cursor stands in them."""
        rows, used, row, cursor = [PROMPT], len(PROMPT), 0, (0, len(PROMPT))
        for position, char in enumerate(self.editor.text):
            shown = "    " if char == "\t" else char
            taken = sum(width(c) for c in shown)
            if used + taken >= columns:
                rows.append("")
                row, used = row + 1, 0
            if position == self.editor.cursor:
                cursor = (row, used)
            rows[row] += shown
            used += taken
        if self.editor.cursor == len(self.editor.text):
            cursor = (row, used)
        return rows, *cursor
