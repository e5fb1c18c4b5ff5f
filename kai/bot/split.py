"""Cuts formatted text into messages that Telegram takes.

Each part has 1 to `limit` UTF-16 code units, at most MAX_ENTITIES entities (Telegram ignores further ones) and at
most MAX_ENTITY_BYTES of entity data (Telegram refuses more: ENTITIES_TOO_LONG). Entities that a cut goes through
are ended in one part and begun again in the next.

A cut is made at a blank line, else at a line's end, else between words, else between characters; the first three
only where the part is at least half full. A cut inside code or a quotation moves before it when it fits whole into
the next part and this part isn't left nearly empty; one inside any other entity moves before it in the same way.

Exactly this is lost: the blanks and line ends around a cut (but not the indentation of code), and parts in which
nothing is visible. So the text is the parts' texts in their order, with nothing but such characters before,
between and behind them.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from typing import Final

from kai.bot.text import Span, Text, Units, assemble, content_start, spans_of

LIMIT: Final = 4096  # UTF-16 code units of one message
MAX_ENTITIES: Final = 100
# Telegram's own limit is undocumented; "about 9,500" was confirmed by the author of its Bot API server.
MAX_ENTITY_BYTES: Final = 8000
_ENTITY_BYTES: Final = 16  # of one entity, beside its address or language

_BLOCKS: Final = ("pre", "blockquote")
_MAX_CLUSTER: Final = 32  # code points looked at to find where a character that people see begins


def split(text: Text, limit: int = LIMIT) -> list[Text]:
    """`text` as messages of at most `limit` code units, in order; none when nothing is visible.

    Raises ValueError for a limit below 2, into which not every character fits.
    """
    if limit < 2:
        raise ValueError(f"split: limit {limit} is below 2, the length of one emoji; give at least 2")
    return list(_parts(text, limit))


def _parts(text: Text, limit: int) -> Iterator[Text]:
    whole, spans = text.text, spans_of(text)
    units = Units(whole)
    following = 0  # the first span that begins at or after `start`
    open_spans: list[Span] = []
    start = 0
    while start < len(whole):
        while following < len(spans) and spans[following].start < start:
            open_spans.append(spans[following])
            following += 1
        open_spans = [span for span in open_spans if span.end > start]
        start = content_start(whole, start, len(whole), (*open_spans, *spans[following : following + MAX_ENTITIES]))
        while following < len(spans) and spans[following].start < start:
            open_spans.append(spans[following])
            following += 1

        stop, behind = _furthest(spans, following, open_spans, min(len(whole), units.index(units.at(start) + limit)))
        here = (open_spans + spans[following:behind])[:MAX_ENTITIES]
        if stop < len(whole):
            stop = _cut(whole, start, max(stop, start + 1), here, units, limit)
        part = assemble(whole, here, start, stop)
        if part.text:
            yield part
        start = stop


def _furthest(spans: Sequence[Span], following: int, open_spans: Sequence[Span], stop: int) -> tuple[int, int]:
    """How far a part may reach for its entities' sake, at most to `stop`, and the first span behind it."""
    count = len(open_spans)
    size = sum(_size(span) for span in open_spans)
    behind = following
    while behind < len(spans) and spans[behind].start < stop:
        count += 1
        size += _size(spans[behind])
        if count > MAX_ENTITIES or size > MAX_ENTITY_BYTES:
            return spans[behind].start, behind
        behind += 1
    return stop, behind


def _size(span: Span) -> int:
    return _ENTITY_BYTES + len((span.url or "").encode()) + len((span.language or "").encode())


def _cut(text: str, start: int, stop: int, spans: Sequence[Span], units: Units, limit: int) -> int:
    """Where to end the part that begins at `start` and can't go beyond `stop`."""
    half = start + (stop - start + 1) // 2
    for separator in ("\n\n", "\n", " "):
        if text.startswith(separator, stop):
            cut = stop
            break
        found = text.rfind(separator, half, stop)
        if found >= 0:
            cut = found + len(separator)
            break
    else:
        cut = _character_start(text, start, stop)
    for span in spans:
        if span.start < cut < span.end:
            least = start + (stop - start) // 4 if span.type in _BLOCKS else half
            if span.start >= max(least, start + 1) and units.at(span.end) - units.at(span.start) <= limit:
                return span.start
    return cut


def _character_start(text: str, start: int, stop: int) -> int:
    """The last place up to `stop` that isn't inside what is seen as one character; `stop` if none is near."""
    for cut in range(stop, max(start, stop - _MAX_CLUSTER), -1):
        if not _joined(text[cut - 1], text[cut]):
            return cut
    return stop


def _joined(before: str, after: str) -> bool:
    """Whether two neighbours belong together: accents, joined emoji, skin tones, flags."""
    if after.isascii():
        return False
    return (
        unicodedata.category(after) in ("Mn", "Me", "Mc", "Cf")
        or before == "\u200d"
        or "\U0001f3fb" <= after <= "\U0001f3ff"
        or ("\U0001f1e6" <= after <= "\U0001f1ff" and "\U0001f1e6" <= before <= "\U0001f1ff")
    )
