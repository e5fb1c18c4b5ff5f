"""Take a key out of what a service answers, in every spelling that an honest echo has.

A service may return the request in an error or for debugging: as it was, escaped for a URL, JSON or HTML, in base64
(alone or inside of a longer text), in hexadecimal. A service that wants to give its key away can always do so, but
it had it before; this is for those that don't mean it.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from functools import lru_cache

MASK = b"***"
_NAMED = {"&": "amp", "<": "lt", ">": "gt", '"': "quot", "'": "apos"}
_UNRESERVED = re.compile(r"[A-Za-z0-9]")


class Masker:
    """Masks one key in a stream of bytes, also where it is split over pieces. Not to be used twice.

    Holds back as many bytes as the longest spelling of the key has, no more.
    """

    def __init__(self, key: str) -> None:
        self.pattern: re.Pattern[bytes] | None = None
        self.longest = 0
        if key:
            self.pattern, self.longest = _pattern(key)
        self.held = b""

    def feed(self, data: bytes) -> bytes:
        """What can be passed on for certain."""
        if self.pattern is None:
            return data
        whole = self.pattern.sub(MASK, self.held + data)
        cut = max(0, len(whole) - self.longest + 1)
        self.held = whole[cut:]
        return whole[:cut]

    def end(self) -> bytes:
        """The rest."""
        rest, self.held = self.held, b""
        return rest


def masked(text: str, key: str) -> str:
    """A short text without the key."""
    masker = Masker(key)
    return (masker.feed(text.encode()) + masker.end()).decode("utf-8", "replace")


@lru_cache(maxsize=128)
def _pattern(key: str) -> tuple[re.Pattern[bytes], int]:
    """A pattern for all spellings, and the length of the longest one."""
    letters = [_letter(c) for c in key]
    coded = sorted(_coded(key), key=len, reverse=True)
    pattern = "|".join(["".join(one for one, _ in letters), *coded])
    longest = max(sum(length for _, length in letters), *(len(key) * 2, len(key) * 2 + 8))
    return re.compile(pattern.encode("ascii")), longest


def _letter(c: str) -> tuple[str, int]:
    """All spellings of one character, and the length of the longest: itself, and escaped in URL, JSON and HTML."""
    number = ord(c)
    digits = _any_case(f"{number:02x}")
    spellings = [
        re.escape(c),
        rf"%(?:25)?{digits}",
        rf"\\(?:u00|x){digits}",
        rf"&#(?:0{{0,2}}{number}|[xX]0{{0,2}}{digits});",
    ]
    longest = 8
    if not _UNRESERVED.fullmatch(c):
        spellings.append(rf"\\{re.escape(c)}")
    if c in _NAMED:
        spellings.append(f"&{_NAMED[c]};")
    return f"(?:{'|'.join(spellings)})", longest


def _coded(key: str) -> Iterator[str]:
    """The key as a whole in hexadecimal, and in base64 at each of the three places it can have in a longer text."""
    data = key.encode()
    yield _any_case(data.hex())
    for before in range(3):
        text = base64.b64encode(b"\0" * before + data).decode().rstrip("=")
        start = (0, 2, 3)[before]  # characters that the bytes before have a part in
        stop = len(text) - bool((len(data) + before) % 3)  # so have the bytes behind in the last one
        found = text[start:stop]
        yield re.escape(found)
        yield re.escape(found.replace("+", "-").replace("/", "_"))
        yield re.escape(found).replace("/", r"\\/")


def _any_case(digits: str) -> str:
    return "".join(f"[{d}{d.upper()}]" if d.isalpha() else d for d in digits)
