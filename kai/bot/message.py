"""What one Telegram message shows: text, entities, buttons. Plain data, stored in the outbox as JSON."""

from __future__ import annotations

import re
from typing import Any, Literal, NamedTuple

import msgspec

from kai.bot.markdown import Text, render
from kai.bot.split import LIMIT, split
from kai.bot.text import Span, assemble, clean, length


class Button(msgspec.Struct, frozen=True):
    """`data` comes back in the callback query: 1–64 bytes."""

    text: str
    data: str


class Code(NamedTuple):
    """A name or a value, shown as it is: Telegram makes no link, mention or command of it."""

    text: str


class File(msgspec.Struct, frozen=True, omit_defaults=True):
    """A file of a message: its content stands here as `text`, or in the spool under the name `spool`."""

    name: str
    kind: Literal["document", "photo"] = "document"
    text: str = ""
    spool: str = ""


class Body(msgspec.Struct, frozen=True, omit_defaults=True):
    """Entities as the Bot API takes them. A button that stands by itself is a row, like a list of them.

    With a file, the text is its caption.
    """

    text: str
    entities: list[dict[str, Any]] = []
    buttons: list[Button | list[Button]] = []
    file: File | None = None

    def rows(self) -> list[list[Button]]:
        """The buttons as Telegram lays them out."""
        return [row if isinstance(row, list) else [row] for row in self.buttons]

    def encode(self) -> str:
        return msgspec.json.encode(self).decode()


Buttons = list[Button | list[Button]]
MOST_MESSAGES = 5
"""What is longer goes out as a document, with its beginning as text (S3)."""
LONGEST_CAPTION = 1024
"""UTF-16 code units of the text beside a file."""
_ALL_OF_IT = "All of it is in this file."


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


def bodies(markdown: str, *, name: str = "answer.md") -> list[Body]:
    """The messages that show this Markdown: at least one, each within Telegram's limit, at most MOST_MESSAGES."""
    return parts(render(markdown), markdown, name=name) or [plain("(no text)")]


def parts(text: Text, source: str, *, name: str) -> list[Body]:
    """A text as messages, none where nothing is visible; one that takes too many as its beginning and a document.

    The document holds the `source` under this name.
    """
    cut = split(text)
    if len(cut) <= MOST_MESSAGES:
        return [body(part) for part in cut]
    return [body(cut[0]), Body(_ALL_OF_IT, file=File(name, text=source))]


def captioned(markdown: str, file: File) -> list[Body]:
    """A file with a text: as its caption where it fits, else in messages of its own before it."""
    cut = split(render(markdown), LONGEST_CAPTION)
    if len(cut) > 1:
        return [*bodies(markdown), Body("", file=file)]
    return [Body(one.text, one.entities, file=file) for one in map(body, cut)] or [Body("", file=file)]


def noted(messages: list[Body], note: str) -> list[Body]:
    """The messages with a note of Kai's own under the last one, or behind it where it doesn't fit or is a file."""
    if messages and not messages[-1].file and length(messages[-1].text) + length(note) + 2 <= LIMIT:
        last = messages[-1]
        return [*messages[:-1], Body(f"{last.text}\n\n{note}", last.entities, last.buttons)]
    return [*messages, plain(note)]


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
