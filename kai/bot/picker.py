"""Buttons that do what a typed command does: their data is `do:` and the command."""

from __future__ import annotations

from collections.abc import Iterable

from kai.bot.message import Button, Buttons, one_line
from kai.bot.text import visible

PREFIX = "do:"
CURRENT = "✓ "
LONGEST_DATA = 64
"""Bytes that Telegram takes."""
LONGEST_LABEL = 48
SHORT_LABEL = 18
"""Characters of a label that is still readable when two stand in a row of a telephone."""


def button(label: str, command: str, *, current: bool = False) -> Button | None:
    """The button for a command; None where the command is too long for one."""
    data = PREFIX + command
    if len(data.encode()) > LONGEST_DATA:
        return None
    return Button((CURRENT if current else "") + label_of(label), data)


def label_of(name: str) -> str:
    """A foreign name as the label of a button."""
    shown = one_line(name)
    shown = shown if len(shown) <= LONGEST_LABEL else shown[: LONGEST_LABEL - 1] + "…"
    return shown if visible(shown) else "(no name)"


def rows(buttons: Iterable[Button]) -> Buttons:
    """Two in a row where both labels are short."""
    laid: Buttons = []
    for each in buttons:
        before = laid[-1] if laid else None
        if isinstance(before, Button) and max(len(before.text), len(each.text)) <= SHORT_LABEL:
            laid[-1] = [before, each]
        else:
            laid.append(each)
    return laid
