"""Foreign text, made short and harmless for a notice.

Titles, names and bodies are whatever somebody typed into GitHub. Nothing in them is markup here; what is left is what
they can do to the eye: turn the line around, hide in it, fill the screen.
"""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any

LONGEST_MESSAGE = 4096
"""UTF-16 code units, a Telegram message."""
_CUT = "…"
# Controls but line feed and tab; zero-width and directional marks; fillers; variation selectors of the second block and
# tag characters, which can carry a whole hidden text.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e"
    "\u2060-\u206f\u3164\ufeff\uffa0\ufff0-\uffff\ud800-\udfff\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_LINE_ENDS = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
_MARKS = 4
"""Combining marks on one character: some scripts need three."""


class BadPayload(ValueError):
    """It can't be understood; the message says where."""


def line(text: str, most: int) -> str:
    """`text` as one line of at most `most` characters."""
    return cut(" ".join(clean(text[: most * 20]).split()), most)


def excerpt(text: str, most: int) -> str:
    """The beginning of `text`, without empty lines."""
    kept = (one.rstrip() for one in clean(text[: most * 20]).split("\n"))
    return cut("\n".join(one for one in kept if one.strip()), most)


def clean(text: str) -> str:
    """Without what hides, turns around, or piles up."""
    text = _HIDDEN.sub("", _LINE_ENDS.sub("\n", text))
    if text.isascii():
        return text
    kept, marks = [], 0
    for character in text:
        marks = marks + 1 if unicodedata.category(character) in ("Mn", "Me") else 0
        if marks <= _MARKS:
            kept.append(character)
    return "".join(kept)


def cut(text: str, most: int) -> str:
    """At most so many characters, the last one tells that there was more."""
    return text if len(text) <= most else text[: most - 1].rstrip() + _CUT


def parse(body: bytes) -> Any:
    """JSON as the standard has it. Raises BadPayload."""
    try:
        found = json.loads(body, parse_constant=_refuse)
    except RecursionError:
        raise BadPayload("the JSON is nested too deeply") from None
    except ValueError as error:
        raise BadPayload(f"not JSON: {error}") from None
    return found


def generic_text(body: bytes) -> str:
    """What POST /webhook shows: the string `message` of an object, or the JSON, readable. Raises BadPayload."""
    found = parse(body)
    message = found.get("message") if isinstance(found, dict) else None
    if isinstance(message, str) and (text := clean(message).strip()):
        return _units(text)
    pieces, size = [], 0
    try:
        for piece in json.JSONEncoder(indent=2, ensure_ascii=False).iterencode(found):  # all of it could be gigabytes
            pieces.append(piece[: LONGEST_MESSAGE * 2])
            size += len(piece)
            if size > LONGEST_MESSAGE * 2:
                break
    except RecursionError:
        raise BadPayload("the JSON is nested too deeply") from None
    return _units(clean("".join(pieces)))


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def _units(text: str) -> str:
    """Cut to what one message holds."""
    wide = text.encode("utf-16-le", "replace")
    if len(wide) <= LONGEST_MESSAGE * 2:
        return text
    return wide[: (LONGEST_MESSAGE - len(_CUT)) * 2].decode("utf-16-le", "ignore") + _CUT
