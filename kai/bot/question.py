"""A question of the agent as a message: what it wants to do, three buttons, and how that was decided (S17)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from kai.bot.message import Body, Button, Buttons, body
from kai.bot.split import LIMIT
from kai.bot.text import Span, Text, assemble, clean, length
from kai.bot.tools import LONGEST_NAME, shorten
from kai.interfaces import Event

PREFIX: Final = "approve"
ANSWERS: Final = {"once": "Allow once", "session": "Allow this session", "deny": "Deny"}
DECISIONS: Final = {
    "once": "✓ Allowed once",
    "session": "✓ Allowed for this session",
    "deny": "✗ Denied",
    "expired": "⌛ No answer in 10 minutes: denied",
    "withdrawn": "⏹ Withdrawn",
}
OVER: Final = "⏹ Over: the turn has ended"
"""The decision of a question that was open at the end of its turn as far as the bot knows."""
LONGEST_SUMMARY: Final = 300
LONGEST_PATTERN: Final = 120
MOST_PATTERNS: Final = 10
DECISION_ROOM: Final = 64
NOTE_ROOM: Final = 96


class _Piece(NamedTuple):
    """A stretch of the message; `kind` is its formatting."""

    text: str
    kind: str = ""
    language: str | None = None


def question(turn: str, event: Event) -> Body:
    """The message that asks. What the agent gave is shown as code: nothing in it can pass for words of Kai's."""
    detail = clean(event.detail).replace("\t", "    ").strip("\n")
    summary = shorten(event.summary, LONGEST_SUMMARY)
    pieces = [
        _Piece("❓ "),
        _Piece(shorten(event.tool, LONGEST_NAME) or "The agent", "bold"),
        _Piece(" asks for your approval"),
    ]
    if summary and summary not in detail:
        pieces += [_Piece("\n"), _Piece(summary, "code")]
    after = _patterns(event.patterns)
    if detail.strip():
        room = LIMIT - DECISION_ROOM - NOTE_ROOM - sum(length(piece.text) for piece in (*pieces, *after))
        shown, left_out = _ends(detail, room)
        pieces += [_Piece("\n"), _Piece(shown, "pre", _language(event.tool, detail))]
        if left_out:
            pieces.append(_Piece(f"\n⚠ Not all is shown: {left_out} characters are left out at the mark ⋯"))
    return body(_together([*pieces, *after]), _buttons(turn, event))


def settled(asked: Body, decision: str) -> Body:
    """The question once it is decided: no buttons, one more line."""
    return Body(f"{asked.text}\n\n{decision}", asked.entities)


def parse(data: str) -> tuple[str, str, str] | None:
    """Turn, approval and answer of a pressed button, or None: anyone can send any data."""
    match data.split(":"):
        case [prefix, turn, approval, answer] if prefix == PREFIX and answer in ANSWERS:
            return turn, approval, answer
    return None


def _buttons(turn: str, event: Event) -> Buttons:
    """Where there is nothing that a session could remember, its button would be a second "once"."""
    made = {answer: Button(label, f"{PREFIX}:{turn}:{event.approval}:{answer}") for answer, label in ANSWERS.items()}
    if not event.patterns:
        return [[made["once"], made["deny"]]]
    return [[made["once"], made["session"]], made["deny"]]


def _patterns(patterns: list[str]) -> list[_Piece]:
    if not patterns:
        return []
    pieces = [_Piece("\n“This session” allows from now on: ")]
    for number, pattern in enumerate(patterns[:MOST_PATTERNS]):
        pieces += [_Piece(", " if number else ""), _Piece(shorten(pattern, LONGEST_PATTERN), "code")]
    more = len(patterns) - MOST_PATTERNS
    return [*pieces, _Piece(f" and {more} more")] if more > 0 else pieces


def _together(pieces: Iterable[_Piece]) -> Text:
    text, spans = "", []
    for piece in pieces:
        if piece.kind:
            spans.append(Span(piece.kind, len(text), len(text) + len(piece.text), language=piece.language))
        text += piece.text
    return assemble(text, spans)


def _language(tool: str, detail: str) -> str | None:
    if tool == "Bash":
        return "bash"
    lines = detail.split("\n")
    changed = sum(line.startswith(("+", "-")) for line in lines)
    context = sum(line.startswith((" ", "@@")) for line in lines)
    return "diff" if changed and changed + context >= len(lines) / 2 else None


def _ends(detail: str, room: int) -> tuple[str, int]:
    """The beginning and the end of what is longer than `room` code units; how many characters are missing between."""
    if length(detail) <= room:
        return detail, 0
    most = room if detail.isascii() else room // 2  # a character is two code units at the most
    head, tail = detail[: most * 2 // 3], detail[len(detail) - most // 4 :]
    return f"{head}\n⋯\n{tail}", len(detail) - len(head) - len(tail)
