"""What one Telegram message shows: text, entities, buttons. Plain data, stored in the outbox as JSON."""

from __future__ import annotations

from typing import Any

import msgspec

from kai.bot.markdown import Text, render
from kai.bot.split import split
from kai.bot.text import clean


class Button(msgspec.Struct, frozen=True):
    """`data` comes back in the callback query: 1–64 bytes."""

    text: str
    data: str


class Body(msgspec.Struct, frozen=True, omit_defaults=True):
    """Entities as the Bot API takes them; one row of buttons."""

    text: str
    entities: list[dict[str, Any]] = []
    buttons: list[Button] = []

    def encode(self) -> str:
        return msgspec.json.encode(self).decode()


def stop_button(turn: str) -> Button:
    return Button("⏹ Stop", f"stop:{turn}")


def decode(body: str) -> Body:
    return msgspec.json.decode(body, type=Body)


def plain(text: str, buttons: list[Button] | None = None) -> Body:
    """Text without markup, such as an error; cut to what one message holds."""
    (first, *_) = split(Text(clean(text), ())) or [Text("(no text)", ())]
    return Body(first.text, [], buttons or [])


def body(text: Text, buttons: list[Button] | None = None) -> Body:
    return Body(text.text, [entity.to_dict() for entity in text.entities], buttons or [])


def bodies(markdown: str) -> list[Body]:
    """The messages that show this Markdown: at least one, each within Telegram's limit."""
    return [body(part) for part in split(render(markdown))] or [plain("(no text)")]
