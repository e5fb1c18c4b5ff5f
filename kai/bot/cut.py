"""A turn that was cut off, as its user sees it: what it had produced, and whether it is to go on (S4.6)."""

from __future__ import annotations

import re
from typing import Final

import msgspec

from kai.bot.message import Body, Button, Buttons, noted, plain
from kai.bot.split import LIMIT
from kai.bot.text import length

CONTINUE: Final = "continue"
DROP: Final = "drop"
"""The first words of the buttons' data; the turn follows."""
CONTINUED: Final = "▶ Continued"
DROPPED: Final = "✗ Dropped"
_DECISION_ROOM: Final = 32
_DATA: Final = re.compile(rf"(?:{CONTINUE}|{DROP}):([0-9]{{1,18}}\.[0-9]{{1,18}})", re.ASCII)


def asking(messages: list[Body], note: str, turn: str) -> list[Body]:
    """The part of an answer with a note and the buttons below its last message, where the decision will stand too."""
    room = bool(messages) and length(messages[-1].text) + length(note) + _DECISION_ROOM <= LIMIT
    *first, last = noted(messages, note) if room else [*messages, plain(note)]
    return [*first, msgspec.structs.replace(last, buttons=_buttons(turn))]


def parse(data: str) -> str | None:
    """The turn that a pressed button means, or None: anyone can send any data."""
    found = _DATA.fullmatch(data)
    return found[1] if found else None


def _buttons(turn: str) -> Buttons:
    return [[Button("Continue", f"{CONTINUE}:{turn}"), Button("Drop", f"{DROP}:{turn}")]]
