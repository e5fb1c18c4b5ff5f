"""Makes the end of Markdown that is still being written presentable.

A growing message is shown many times before it is complete. Its last line may stop in the middle of a marker
("- ", "``", "| -"), of a link or of code. What can't be read yet is left out until the next edit; what has begun is
ended. Only the last line is touched: an asterisk further up that found no partner is an asterisk.
"""

from __future__ import annotations

import re
from typing import Final

_REACH: Final = 3000  # characters before the end in which a link or code may have begun
_ROUNDS: Final = 8  # markers inside markers; nobody but an attacker has more

# A last line of markers alone: list and quotation marks, headings, rules, fences, boxes, parts of a table.
_MARKERS: Final = re.compile(r"(?:[-+*_=#>`~|:\s]|\d{1,3}[.)](?=\s|$)|\[[ xX]?\]?(?=\s|$))*")
_DEFINITION: Final = re.compile(r"\[[^\[\]]{1,999}\]:\s*\S*")
# At the end: [label · [label] · [label][reference · [label](address; with or without ! in front.
_LABEL: Final = r"(?<!\w)!?\[((?:[^\[\]]|\[[^\[\]]{0,100}\]){0,200})"
_LINK: Final = re.compile(_LABEL + r"(?:\](?:\[[^\[\]]{0,200})?)?$")
_BEFORE_ADDRESS: Final = re.compile(_LABEL + r"\]$")
# At the end: a backslash, an address in pointed brackets, a character's name (&amp;).
_HALF: Final = re.compile(r"(?:\\|<[A-Za-z]{0,6}(?::[^<>\s]{0,2000})?|&#?\w{0,31})$")

_TICKS: Final = re.compile(r"\\.|`+")


def drop_half_line(source: str) -> str:
    """`source` without a last line that says nothing yet."""
    head, newline, line = source.rpartition("\n")
    if _MARKERS.fullmatch(line):
        source = head + newline
    # A table shows as one from its second line on; until then its heading would be a line full of bars.
    head, newline, line = source.removesuffix("\n").rpartition("\n")
    if line.lstrip(" >").startswith("|") and not head.rpartition("\n")[2].lstrip(" >").startswith("|"):
        return head + newline
    return source


def complete_inline(content: str) -> str:
    """The text of a block, with what its last line has only begun either left out or ended."""
    cut = max(content.rfind("\n") + 1, len(content) - _REACH)
    head, line = content[:cut], content[cut:]
    if _DEFINITION.fullmatch(line):
        return head
    for _ in range(_ROUNDS):
        before = line
        line = line.rstrip("*_~`")
        opening, masked = _scan_code(line)
        if opening is not None and line[opening.end() :].strip():
            return head + line + opening[0]
        if opening is not None:
            line = line[: opening.start()]
        elif link := _half_link(masked):
            line = line[: link.start()] + line[link.start(1) : link.end(1)]
        line = _HALF.sub("", line)
        if line == before:
            break
    return head + line


def _half_link(line: str) -> re.Match[str] | None:
    depth = 0
    for index in range(len(line) - 1, 0, -1):
        if line[index] == ")":
            depth += 1
        elif line[index] == "(" and depth:
            depth -= 1
        elif line[index] == "(" and line[index - 1] == "]":
            return _BEFORE_ADDRESS.search(line[:index])
    return _LINK.search(line)


def _scan_code(line: str) -> tuple[re.Match[str] | None, str]:
    """The first backticks of `line` that begin code without an end, and `line` with code and escapes blanked out."""
    masked = line
    opening = None
    position = 0
    while found := _TICKS.search(line, position):
        position = found.end()
        if found[0].startswith("\\"):
            end = position
        else:
            end = next((run.end() for run in _TICKS.finditer(line, position) if run[0] == found[0]), 0)
            if not end:
                opening = opening or found
                continue
        masked = masked[: found.start()] + "\x00" * (end - found.start()) + masked[end:]
        position = end
    return opening, masked
