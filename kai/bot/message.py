"""What one Telegram message shows: text, entities, buttons. Plain data, stored in the outbox as JSON."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import msgspec

from kai.bot.markdown import Text, render
from kai.bot.split import split
from kai.bot.text import Span, assemble, clean


class Button(msgspec.Struct, frozen=True):
    """`data` comes back in the callback query: 1–64 bytes."""

    text: str
    data: str


class Code(NamedTuple):
    """A name or a value, shown as it is: Telegram makes no link, mention or command of it."""

    text: str


class Body(msgspec.Struct, frozen=True, omit_defaults=True):
    """Entities as the Bot API takes them. A button that stands by itself is a row, like a list of them."""

    text: str
    entities: list[dict[str, Any]] = []
    buttons: list[Button | list[Button]] = []

    def rows(self) -> list[list[Button]]:
        """The buttons as Telegram lays them out."""
        return [row if isinstance(row, list) else [row] for row in self.buttons]

    def encode(self) -> str:
        return msgspec.json.encode(self).decode()


Buttons = list[Button | list[Button]]


def stop_button(turn: str) -> Button:
    return Button("⏹ Stop", f"stop:{turn}")


def decode(body: str) -> Body:
    return msgspec.json.decode(body, type=Body)


def plain(text: str, buttons: Buttons | None = None) -> Body:
    """Text without markup, such as an error; cut to what one message holds."""
    (first, *_) = split(Text(clean(text), ())) or [Text("(no text)", ())]
    return Body(first.text, [], buttons or [])


def body(text: Text, buttons: Buttons | None = None) -> Body:
    return Body(text.text, [entity.to_dict() for entity in text.entities], buttons or [])


def bodies(markdown: str) -> list[Body]:
    """The messages that show this Markdown: at least one, each within Telegram's limit."""
    return [body(part) for part in split(render(markdown))] or [plain("(no text)")]


def compose(*pieces: str | Code, buttons: Buttons | None = None) -> list[Body]:
    """Messages of Kai's own words and of names; at least one. The buttons are below the last."""
    text, spans = "", []
    for piece in pieces:
        shown = clean(piece) if isinstance(piece, str) else one_line(piece.text)
        if isinstance(piece, Code):
            spans.append(Span("code", len(text), len(text) + len(shown)))
        text += shown
    *first, last = split(assemble(text, spans)) or [Text("(no text)")]
    return [*(body(part) for part in first), body(last, buttons)]


def one_line(text: str) -> str:
    """A foreign name as one line of text, however odd it is."""
    return re.sub(r"\s", " ", clean(text))
