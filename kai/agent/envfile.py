"""Files of NAME=VALUE lines, in the form of systemd's EnvironmentFile= (systemd.exec(5)), `export ` before a name too.

A value never shows up in an error: people keep passwords there.
"""

from __future__ import annotations

import re

_ASSIGNMENT = re.compile(r"[ \t]*(?:export[ \t]+)?([A-Za-z_][A-Za-z0-9_]{0,127})[ \t]*=[ \t]*")
_NOTHING = re.compile(r"[ \t]*(?:[#;][^\n]*)?(?:\n|\Z)")
_SINGLE = re.compile(r"'([^']*)'[ \t]*")
_DOUBLE = re.compile(r'"((?:[^"\\]|\\.)*)"[ \t]*', re.DOTALL)
_PLAIN = re.compile(r"(?:[^\\\n]|\\.)*\\?", re.DOTALL)
_ESCAPED = re.compile(r"\\(.?)", re.DOTALL)


class EnvFileError(Exception):
    """A line can't be read; the message is `line N: …`."""


def parse(data: bytes) -> dict[str, str]:
    """The variables, the last one of each name. Raises EnvFileError."""
    try:
        text = data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise _error(data, error.start, "is not UTF-8") from None
    if "\0" in text:
        raise _error(text, text.index("\0"), "has a NUL character")
    found: dict[str, str] = {}
    at = 0
    while at < len(text):
        if nothing := _NOTHING.match(text, at):
            at = nothing.end()
            continue
        assignment = _ASSIGNMENT.match(text, at)
        if not assignment:
            raise _error(text, at, "expected NAME=VALUE, or a comment after #")
        found[assignment[1]], at = _value(text, assignment.end())
    return found


def _value(text: str, start: int) -> tuple[str, int]:
    """The value that begins there and where the next line does. Quoted parts may have several lines."""
    pieces, at = [], start
    while at < len(text) and text[at] != "\n":
        if text[at] == "'":
            quoted = _SINGLE.match(text, at)
            piece = quoted[1] if quoted else ""
        elif text[at] == '"':
            quoted = _DOUBLE.match(text, at)
            piece = _ESCAPED.sub(_unescape, quoted[1]) if quoted else ""
        else:
            plain = _PLAIN.match(text, at)
            assert plain is not None
            pieces.append(_plain(plain[0]))
            at = plain.end()
            break
        if quoted is None:
            raise _error(text, at, "has a quote that isn't closed")
        pieces.append(piece)
        at = quoted.end()
    return "".join(pieces), at + 1


def _unescape(found: re.Match[str]) -> str:
    if found[1] == "\n":
        return ""
    return found[1] if found[1] in '"\\`$' else found[0]


def _plain(text: str) -> str:
    """Without quotes: a backslash keeps the next character or joins two lines; spaces at the end don't count."""
    bare = text.rstrip(" \t")
    if bare.endswith("\\") and (len(bare) - len(bare.rstrip("\\"))) % 2:
        bare = text[: len(bare) + 1]  # an escaped space counts
    return _ESCAPED.sub(lambda found: "" if found[1] == "\n" else found[1], bare)


def _error(text: str | bytes, at: int, what: str) -> EnvFileError:
    before = text[:at]
    line = (before.count(b"\n") if isinstance(before, bytes) else before.count("\n")) + 1
    return EnvFileError(f"line {line}: {what}")
