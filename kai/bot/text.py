"""Formatted text as Telegram takes it: a string and entities that point into it.

Offsets and lengths of an Entity are UTF-16 code units, which is how the Bot API counts. Inside this package
text is worked on in Python's code points; a Span is an entity in code points, and `assemble` turns the one into
the other at the end. Nothing here knows Markdown, and nothing imports telegram.

What Telegram does to text it is sent was read from tdlib, the library its Bot API server is built on
(td/telegram/MessageEntity.cpp, misc.cpp): the functions that rely on it say so.
"""

from __future__ import annotations

import bisect
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

# Characters that are not sent. Telegram itself blanks or drops control characters, line and paragraph separators,
# U+0333, U+033F and U+030A (tdlib, clean_input_string). The directional overrides, embeddings and isolates
# (U+202A-202E, U+2066-2069) can make text and code read as something else than they are, so they go everywhere,
# code included; the harmless marks that right-to-left text needs (U+200E, U+200F, U+061C) stay.
_UNSAFE: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\u0333\u033f\u030a\ud800-\udfff]")
_LINE_ENDS: Final = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
_REMOVED: Final = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\u202a-\u202e\u2066-\u2069\u0333\u033f]")
_RING: Final = re.compile(".\u030a")
# Escape sequences that programs print for a terminal: colours, cursor movements, window titles.
_TERMINAL: Final = re.compile("\x1b(?:\\[[0-?]*[ -/]*[@-~]|\\][^\x07\x1b]{0,200}(?:\x07|\x1b\\\\)|[@-Z\\\\^_])")

# A message of these alone counts as empty for Telegram and is refused.
_INVISIBLE: Final = "\u1680\u180e\u2000-\u200f\u202f\u205f\u2800\u3000\ufeff\ufffc\u00a0\\s" + "\U000e0000-\U000e007f"
_VISIBLE: Final = re.compile(f"[^{_INVISIBLE}]")
_ASTRAL: Final = re.compile("[\U00010000-\U0010ffff]")

# Entities that begin and end together: the outer one first.
_RANK: Final = {"blockquote": 0, "pre": 1, "text_link": 2, "code": 3}


def length(text: str) -> int:
    """The length of `text` as Telegram counts it, in UTF-16 code units."""
    return len(text) if text.isascii() else len(text.encode("utf-16-le", "surrogatepass")) // 2


def clean(text: str) -> str:
    """`text` without what must not or cannot be sent: valid Unicode, newlines as the line feed, no controls.

    Tabs stay: what becomes of them depends on where they stand.
    """
    if _UNSAFE.search(text) is None:
        return text
    if "\x1b" in text:
        text = _TERMINAL.sub("", text)
    text = _LINE_ENDS.sub("\n", text)
    text = _REMOVED.sub("", text)
    if "\u030a" in text:
        # Telegram drops the combining ring, and a file name from a Mac would turn from å into a.
        text = _RING.sub(lambda match: unicodedata.normalize("NFC", match[0]), text)
    # Two halves of a pair become the character they mean, a lone half becomes U+FFFD.
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def visible(text: str) -> bool:
    """Whether Telegram would take `text` as a message at all."""
    return _VISIBLE.search(text) is not None


@dataclass(frozen=True, slots=True)
class Entity:
    """One stretch of formatting; offset and length in UTF-16 code units."""

    type: str
    offset: int
    length: int
    url: str | None = None
    language: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The entity as the Bot API's MessageEntity object."""
        fields: dict[str, Any] = {"type": self.type, "offset": self.offset, "length": self.length}
        if self.url is not None:
            fields["url"] = self.url
        if self.language is not None:
            fields["language"] = self.language
        return fields


@dataclass(frozen=True, slots=True)
class Text:
    """What one message shows. An empty `text` means that there is nothing to send."""

    text: str
    entities: tuple[Entity, ...] = ()


class Span(NamedTuple):
    """An entity in code points: `start` to `end`, end excluded."""

    type: str
    start: int
    end: int
    url: str | None = None
    language: str | None = None


class Units:
    """Converts between code points and UTF-16 code units of one string."""

    __slots__ = ("_astral", "_wide")

    def __init__(self, text: str) -> None:
        # Only characters beyond U+FFFF count twice, so their places are all there is to know.
        self._astral = [] if text.isascii() else [match.start() for match in _ASTRAL.finditer(text)]
        self._wide = [place + number for number, place in enumerate(self._astral)]

    def at(self, index: int) -> int:
        """The code unit at which code point `index` begins."""
        return index + bisect.bisect_left(self._astral, index)

    def index(self, unit: int) -> int:
        """The code point that code unit `unit` belongs to."""
        return unit - bisect.bisect_left(self._wide, unit)


def content_start(text: str, start: int, stop: int, spans: Iterable[Span]) -> int:
    """Where the text from `start` on begins to show: whitespace skipped, but not the indentation of code.

    Telegram cuts blanks from the beginning of a message, though never inside an entity.
    """
    first = start
    while first < stop and text[first].isspace():
        first += 1
    for span in spans:
        if span.type == "pre" and span.start <= first < span.end and start < first:
            return max(start, span.start, text.rfind("\n", start, first) + 1)
    return first


def assemble(text: str, spans: Iterable[Span], start: int = 0, stop: int | None = None) -> Text:
    """The part of `text` from `start` to `stop` as a Text of its own.

    Blanks at both ends fall away as in `content_start`, spans are cut to the part, blanks at their ends are left
    out of them, and spans that are empty then are dropped. Spans must nest and must not overlap otherwise.
    """
    stop = len(text) if stop is None else stop
    spans = [span for span in spans if span.start < stop and span.end > start]
    start = content_start(text, start, stop, spans)
    part = text[start:stop].rstrip()
    if not visible(part):
        return Text("")
    units = Units(part)
    entities = []
    for span in spans:
        first = max(span.start - start, 0)
        covered = part[first : max(span.end - start, 0)].rstrip()
        last = first + len(covered)
        if span.type not in ("pre", "blockquote"):
            first = last - len(covered.lstrip())
        if covered and first < last:
            offset = units.at(first)
            entities.append(Entity(span.type, offset, units.at(last) - offset, span.url, span.language))
    entities.sort(key=lambda entity: (entity.offset, -entity.length, _RANK.get(entity.type, 4)))
    return Text(part, tuple(entities))


def spans_of(text: Text) -> list[Span]:
    """The entities of `text` in code points, in their order."""
    units = Units(text.text)
    return [
        Span(item.type, units.index(item.offset), units.index(item.offset + item.length), item.url, item.language)
        for item in text.entities
    ]
