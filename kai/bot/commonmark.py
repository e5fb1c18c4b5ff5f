"""The Markdown parser as Kai uses it: markdown-it-py with tables and strikethrough, bounded in depth and work.

Parsing goes in two steps, blocks first and then the inline text of each block, so that a message which is still
being written can have its last block completed in between. Three rules are added:

- markdown-it drops what is nested deeper than `maxNesting`; `_deep` takes such lines as plain paragraphs instead.
- A table of a few bytes can name 65,536 cells; `_table` leaves what is too large to show as a table alone.
- `_close_open` ends emphasis that nobody has ended yet, in the one paragraph that is still growing.

Importing this module loads markdown-it (some 50 ms), so it is imported at the first rendering.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any, Final

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.rules_block import table as markdown_it_table
from markdown_it.rules_inline import StateInline
from markdown_it.rules_inline.state_inline import Delimiter
from markdown_it.token import Token

MAX_NESTING: Final = 20  # levels; a list takes two, a quotation one
DEEP: Final = MAX_NESTING - 4
MAX_CELLS: Final = 4000  # of all tables of one text together

Env = MutableMapping[str, Any]
_CELLS: Final = "kai_cells"
_GROWING: Final = "kai_growing"


class _Parser(MarkdownIt):
    """Takes every link as a link: which of them may be clicked is the renderer's decision."""

    def validateLink(self, url: str) -> bool:
        return True


def parse_blocks(source: str, env: Env) -> list[Token]:
    """The block tokens of `source`; `inline` tokens have their content, but no children yet."""
    return _PARSER.parse(source, env)


def parse_inline(content: str, env: Env, *, growing: bool = False) -> list[Token]:
    """The tokens of one block's text. `growing`: emphasis begun in its last line ends with it."""
    tokens: list[Token] = []
    _PARSER.inline.parse(content, _PARSER, {**env, _GROWING: True} if growing else env, tokens)
    return tokens


def decode(url: str) -> str:
    """`url` with its percent-encoding undone where that reads better."""
    return _PARSER.normalizeLinkText(url)


def _deep(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    if state.level < DEEP or silent:
        return False
    line = start + 1
    while line < end and (state.isEmpty(line) or state.sCount[line] >= state.blkIndent):
        line += 1
    state.line = line
    state.push("paragraph_open", "p", 1).map = [start, line]
    text = state.push("inline", "", 0)
    text.content = state.getLines(start, line, state.blkIndent, False).strip()
    state.push("paragraph_close", "p", -1)
    return True


def _table(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    if state.env.get(_CELLS, 0) > MAX_CELLS or not markdown_it_table(state, start, end, True):
        return False
    if silent:
        return True
    row = start
    while row < end and not state.isEmpty(row):
        row += 1
    header = state.src[state.bMarks[start] : state.eMarks[start]]
    cells = state.env.get(_CELLS, 0) + (header.count("|") + 1) * (row - start)
    state.env[_CELLS] = cells
    if cells > MAX_CELLS:  # nor any after it: each would be looked through to its end again
        return False
    return markdown_it_table(state, start, end, False)


def _close_open(state: StateInline) -> None:
    """Runs when pairs are matched: gives each opening delimiter of the last line that found no match one at the end."""
    if not state.env.get(_GROWING):
        return
    last_break = max(
        (index for index, token in enumerate(state.tokens) if token.type in ("softbreak", "hardbreak")), default=-1
    )
    delimiters = state.delimiters
    openers = []
    covered = -1  # the end of the pairs so far; what is begun inside a pair can't end outside it
    for index, delimiter in enumerate(delimiters):
        if delimiter.end >= 0:
            covered = max(covered, delimiter.end)
        elif delimiter.open and index > covered and delimiter.token > last_break:
            openers.append(delimiter)
    for opener in reversed(openers):
        opener.end = len(delimiters)
        state.push("text", "", 0).content = state.tokens[opener.token].content
        delimiters.append(
            Delimiter(opener.marker, opener.length, len(state.tokens) - 1, end=-1, open=False, close=True)
        )


def _parser() -> _Parser:
    parser = _Parser("commonmark", {"html": False, "maxNesting": MAX_NESTING})
    parser.enable(["table", "strikethrough"])
    parser.disable(["inline", "text_join"])  # steps of the whole, taken block by block here
    parser.block.ruler.at("table", _table, {"alt": ["paragraph", "reference"]})
    parser.block.ruler.before("table", "deep", _deep)
    parser.inline.ruler2.after("balance_pairs", "close_open", _close_open)
    return parser


_PARSER: Final = _parser()
