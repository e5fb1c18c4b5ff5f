"""What an agent does, in two short lines: the tool that runs now, and how often which ones have run."""

from __future__ import annotations

from collections.abc import Sequence

from kai.bot.message import one_line
from kai.bot.text import Span, Text, assemble
from kai.interfaces import Ran

LONG_CALL = 3.0
"""Seconds after which the line of a tool shows its elapsed time."""
LONGEST_NAME = 40
LONGEST_SUMMARY = 100
DONE = "✓ "
MOST_NAMES = 5
"""Tools that are counted by name; the rest is one number."""


def clock(seconds: float) -> str:
    """`0:42` or `1:02:03`."""
    whole = max(0, int(seconds))
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def running_line(tool: str, summary: str, elapsed: float) -> Text:
    """`⚙ Bash: pytest -q · 0:42`. What the agent gave is code, so that Telegram makes no link or command of it."""
    head, what = f"⚙ {shorten(tool, LONGEST_NAME)}", shorten(summary, LONGEST_SUMMARY)
    start = len(head) + 2
    line = f"{head}: {what}" if what else head
    spans = [Span("code", start, len(line))] if what else []
    return assemble(f"{line} · {clock(elapsed)}" if elapsed >= LONG_CALL else line, spans)


def counts_line(ran: Sequence[Ran]) -> str:
    """`✓ 3 Bash, 2 Read`, the most used first; "" when nothing has ended."""
    ordered = sorted(ran, key=lambda each: -each.count)
    named = [f"{each.count} {shorten(each.tool, LONGEST_NAME)}" for each in ordered[:MOST_NAMES]]
    others = sum(each.count for each in ordered[MOST_NAMES:])
    return f"{DONE}{', '.join([*named, f'{others} more'] if others else named)}" if named else ""


def shorten(text: str, longest: int) -> str:
    """One line of at most so many characters."""
    line = one_line(text).strip()
    return line if len(line) <= longest else line[: longest - 1] + "…"
