"""Tables drawn with characters of one width."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Final, Literal

Align = Literal["left", "center", "right"]

_NO_WIDTH: Final = frozenset(("Mn", "Me", "Cf"))
_GAP: Final = " | "


def width(text: str) -> int:
    """How many columns `text` takes in a monospace font: two for East-Asian wide characters and emoji."""
    if text.isascii():
        return len(text)
    columns = 0
    for char in text:
        if unicodedata.category(char) not in _NO_WIDTH:
            columns += 2 if unicodedata.east_asian_width(char) in ("W", "F") else 1
    return columns


def draw(rows: Sequence[Sequence[str]], aligns: Sequence[Align], *, limit: int) -> str | None:
    """The table as aligned lines, its first row the heading; None when a line would be wider than `limit` columns.

    Every row has as many cells as `aligns` has members.
    """
    sizes = [max(width(row[column]) for row in rows) for column in range(len(aligns))]
    if sum(sizes) + len(_GAP) * (len(sizes) - 1) > limit:
        return None
    lines = [
        _GAP.join(_pad(cell, size, align) for cell, size, align in zip(row, sizes, aligns, strict=True)).rstrip()
        for row in rows
    ]
    lines.insert(1, "-+-".join("-" * size for size in sizes))
    return "\n".join(lines)


def _pad(cell: str, size: int, align: Align) -> str:
    space = size - width(cell)
    left = {"left": 0, "center": space // 2, "right": space}[align]
    return " " * left + cell + " " * (space - left)
