"""A line editor for the terminal chat: bytes from the keyboard in, finished lines out; draws nothing itself.

The keys are the usual ones: arrows, Home, End, Delete, Ctrl-A E K U W L, up and down for earlier lines. It exists
because messages arrive while someone types, and the line must then be drawn again below them.
"""

from __future__ import annotations

import codecs
import re
from typing import Literal

Action = Literal["line", "interrupt", "end", "clear"]

_SEQUENCE = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|O[@-~]|[^\[O])")
_UNFINISHED = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*|O)?")
_KEYS = {
    "\x1b[A": "up", "\x1bOA": "up", "\x10": "up",
    "\x1b[B": "down", "\x1bOB": "down", "\x0e": "down",
    "\x1b[C": "right", "\x1bOC": "right", "\x06": "right",
    "\x1b[D": "left", "\x1bOD": "left", "\x02": "left",
    "\x1b[H": "home", "\x1bOH": "home", "\x1b[1~": "home", "\x01": "home",
    "\x1b[F": "last", "\x1bOF": "last", "\x1b[4~": "last", "\x05": "last",
    "\x1b[3~": "delete",
    "\x7f": "backspace", "\x08": "backspace",
    "\x0b": "kill", "\x15": "kill_before", "\x17": "kill_word",
}  # fmt: skip


class Editor:
    """`text` is the line so far, `cursor` a position in it, in characters."""

    def __init__(self) -> None:
        self.text = ""
        self.cursor = 0
        self.earlier: list[str] = []
        self.place = 0
        self.draft = ""
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.rest = ""

    def feed(self, data: bytes) -> list[tuple[Action, str]]:
        """What these bytes lead to, in order; a key that only changes the line leads to nothing."""
        actions: list[tuple[Action, str]] = []
        typed, self.rest = self.rest + self.decoder.decode(data), ""
        while typed:
            key = typed[0]
            if key == "\x1b":
                if _UNFINISHED.fullmatch(typed):
                    self.rest = typed
                    break
                found = _SEQUENCE.match(typed)
                key = found[0] if found else key
            typed = typed[len(key) :]
            self._press(key, actions)
        return actions

    def _press(self, key: str, actions: list[tuple[Action, str]]) -> None:
        if key in ("\r", "\n"):
            actions.append(("line", self._take()))
        elif key == "\x03":
            self._set("")
            actions.append(("interrupt", ""))
        elif key == "\x04" and not self.text:
            actions.append(("end", ""))
        elif key == "\x0c":
            actions.append(("clear", ""))
        elif key == "\x04":
            self._delete()
        elif key in _KEYS:
            getattr(self, f"_{_KEYS[key]}")()
        elif key.isprintable() or key == "\t":
            self.text = self.text[: self.cursor] + key + self.text[self.cursor :]
            self.cursor += 1

    def _take(self) -> str:
        line = self.text
        if line.strip() and (not self.earlier or self.earlier[-1] != line):
            self.earlier.append(line)
        self.place = len(self.earlier)
        self._set("")
        return line

    def _set(self, text: str) -> None:
        self.text, self.cursor = text, len(text)

    def _up(self) -> None:
        if self.place == len(self.earlier):
            self.draft = self.text
        if self.place > 0:
            self.place -= 1
            self._set(self.earlier[self.place])

    def _down(self) -> None:
        if self.place < len(self.earlier):
            self.place += 1
            self._set(self.earlier[self.place] if self.place < len(self.earlier) else self.draft)

    def _left(self) -> None:
        self.cursor = max(0, self.cursor - 1)

    def _right(self) -> None:
        self.cursor = min(len(self.text), self.cursor + 1)

    def _home(self) -> None:
        self.cursor = 0

    def _last(self) -> None:
        self.cursor = len(self.text)

    def _backspace(self) -> None:
        if self.cursor:
            self.cursor -= 1
            self._delete()

    def _delete(self) -> None:
        self.text = self.text[: self.cursor] + self.text[self.cursor + 1 :]

    def _kill(self) -> None:
        self.text = self.text[: self.cursor]

    def _kill_before(self) -> None:
        self.text, self.cursor = self.text[self.cursor :], 0

    def _kill_word(self) -> None:
        start = len(re.sub(r"\S*\s*$", "", self.text[: self.cursor]))
        self.text, self.cursor = self.text[:start] + self.text[self.cursor :], start
