"""An agent's Markdown as Telegram shows it: text with entities, nothing raw, never a parse error.

`render` is for finished text, `render_partial` for a message that still grows. Both take any string and never
raise. Where Telegram has no counterpart, the nearest thing that reads well on a phone is made:

- headings are bold, the first level underlined too; a rule is a line of ─; bullets are • ◦ ▪, tasks ☐ ☑;
- blank lines between blocks are kept as the agent wrote them; a soft line break stays a line break;
- blockquote entities can't nest, so inner quotations have │ in front of each line;
- `code` and `pre` share their characters with no entity but a blockquote: bold text around code is interrupted,
  and code in a link is plain (Bot API, "Formatting options"; tdlib, fix_entities);
- tabs in code become spaces, because Telegram turns a tab into one single blank;
- a table is drawn in a `pre` when a phone can show its width, else (and when it holds links) each row becomes a
  short list under its first cell;
- HTML is shown as the text it is, except <br>.

More than MAX_SOURCE characters of Markdown make more messages than anyone reads in a chat (they go out as a
document): what comes after is shown as it is, which bounds the time that a hostile text can take.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from kai.bot import grid, link
from kai.bot.partial import complete_inline, drop_half_line
from kai.bot.text import Entity, Text, assemble, clean, length
from kai.bot.writer import Frame, Writer

if TYPE_CHECKING:
    from markdown_it.token import Token

__all__ = ["Entity", "Text", "length", "render", "render_partial"]

logger = logging.getLogger(__name__)

MAX_SOURCE: Final = 32_768  # characters
TABLE_WIDTH: Final = 40  # columns that a phone shows before it wraps them
RULE: Final = "─" * 16
INDENT: Final = "   "
BULLETS: Final = "•◦▪"

_TASK: Final = re.compile(r"\[([ xX])\](?:\s+|$)")
_BREAK: Final = re.compile(r"[ \t]*<br[ \t]*/?>[ \t]*\n?", re.IGNORECASE)
_LANGUAGE: Final = re.compile(r"[\w+#.-]{1,32}")
_STYLES: Final = {"strong": ("bold",), "em": ("italic",), "s": ("strikethrough",)}


def render(markdown: str) -> Text:
    """The whole of `markdown`, as long as it may be: `split` makes messages of it. Empty when nothing shows."""
    return _render(markdown, growing=False)


def render_partial(markdown: str) -> Text:
    """The beginning of a text that still grows: markup begun is ended, and half-written markup isn't shown."""
    return _render(markdown, growing=True)


def _render(markdown: str, *, growing: bool) -> Text:
    source = clean(markdown)
    source, rest = _head(source)
    growing = growing and not rest
    try:
        renderer = _Renderer(growing=growing)
        renderer.blocks(drop_half_line(source) if growing else source)
        writer = renderer.writer
    except Exception as error:
        # The parser is foreign code fed with foreign text: whatever it stumbles over, the user gets his answer.
        logger.warning("Markdown of %d characters is shown as it is: parsing failed: %r", len(source), error)
        writer = Writer()
        writer.literal(source)
    if rest:
        writer.literal(rest)
    return assemble("".join(writer.out), writer.spans)


def _head(source: str) -> tuple[str, str]:
    """What is rendered as Markdown, and what comes after; cut at a line's end if there is one."""
    if len(source) <= MAX_SOURCE:
        return source, ""
    cut = source.rfind("\n", MAX_SOURCE // 2, MAX_SOURCE) + 1 or MAX_SOURCE
    return source[:cut], source[cut:]


class _Renderer:
    """Walks the parser's flat list of tokens once; nothing here recurses."""

    def __init__(self, *, growing: bool) -> None:
        from kai.bot import commonmark

        self.writer = Writer()
        self._parser = commonmark
        self._growing = growing
        self._env: dict[str, Any] = {}
        self._lists: list[int | None] = []  # per open list: the next number, or None for bullets
        self._quotes: list[tuple[int, list[Frame]]] = []  # per open quotation: where it began, the frames around
        self._item_lines: list[Sequence[int] | None] = []

    def blocks(self, source: str) -> None:
        tokens = self._parser.parse_blocks(source, self._env)
        last = self._growing_block(tokens)
        skip_to = 0
        for index, token in enumerate(tokens):
            if index < skip_to:
                continue
            if token.type == "table_open":
                end = next(at for at in range(index, len(tokens)) if tokens[at].type == "table_close")
                self._table(token, tokens[index + 1 : end], last)
                skip_to = end
            elif token.type == "inline":
                self._inline(self._children(token, growing=token is last))
            else:
                self._block(token, tokens[index + 1] if token.type in ("paragraph_open", "heading_open") else token)

    def _growing_block(self, tokens: list[Token]) -> Token | None:
        """The block whose text may still be written, as an inline token."""
        if not self._growing:
            return None
        last = next((token for token in reversed(tokens) if not token.type.endswith("_close")), None)
        return last if last is not None and last.type == "inline" else None

    def _children(self, token: Token, *, growing: bool) -> list[Token]:
        content = complete_inline(token.content) if growing else token.content
        return self._parser.parse_inline(content, self._env, growing=growing)

    def _block(self, token: Token, text: Token) -> None:
        """`text` is the inline token of a paragraph or heading."""
        writer = self.writer
        match token.type:
            case "paragraph_open":
                self._task(text)
                if text.content:
                    writer.begin(token.map)
            case "heading_open":
                if text.content:
                    writer.begin(token.map, apart=True)
                writer.open(*_heading(token))
            case "heading_close":
                writer.close(*_heading(token))
            case "fence" | "code_block":
                code = clean(token.content).expandtabs(4).rstrip()
                code = code[code.rfind("\n", 0, len(code) - len(code.lstrip())) + 1 :]
                if code:
                    language = _LANGUAGE.match(token.info.strip())
                    writer.begin(token.map, whole_line=True)
                    writer.block("pre", code, language[0] if language else None)
            case "hr":
                writer.begin(token.map)
                writer.put(RULE)
            case "bullet_list_open":
                self._lists.append(None)
            case "ordered_list_open":
                self._lists.append(int(token.attrs.get("start", 1)))
            case "bullet_list_close" | "ordered_list_close":
                self._lists.pop()
            case "list_item_open":
                writer.frames.append(Frame(self._marker(token), INDENT))
                self._item_lines.append(token.map)
            case "list_item_close":
                lines = self._item_lines.pop()
                if writer.frames[-1].marker:  # nothing stands in it
                    writer.begin_empty(lines)
                writer.frames.pop()
            case "blockquote_open":
                self._quote(token)
            case "blockquote_close":
                start, writer.frames = self._quotes.pop()
                if not self._quotes:
                    writer.span("blockquote", start)

    def _marker(self, token: Token) -> str:
        number = self._lists[-1]
        if number is None:
            return BULLETS[(self._lists.count(None) - 1) % len(BULLETS)] + " "
        # Markdown counts for itself; an agent that skips a number speaks of "step 4" later on.
        number = max(number, int(token.info or 0))
        self._lists[-1] = number + 1
        return f"{number}{token.markup} "

    def _task(self, paragraph: Token) -> None:
        """[x] at the beginning of a list item is its box."""
        frames = self.writer.frames
        if not self._lists or not frames or not frames[-1].marker:
            return
        match = _TASK.match(paragraph.content)
        if match is not None:
            box = "☐ " if match[1] == " " else "☑ "
            frames[-1].marker = box if self._lists[-1] is None else frames[-1].marker + box
            paragraph.content = paragraph.content[match.end() :]

    def _quote(self, token: Token) -> None:
        writer = self.writer
        if self._quotes:
            self._quotes.append((writer.position, writer.frames))
            writer.frames = [*writer.frames, Frame("", "│ ")]
        else:
            first = token.map[0] if token.map else 0
            writer.begin((first, first), whole_line=True)
            self._quotes.append((writer.position, writer.frames))
            writer.frames = []

    def _inline(self, tokens: list[Token]) -> None:
        writer = self.writer
        opened: tuple[str, int, int] | None = None  # the link around: its address, where it began in text and output
        for token in tokens:
            match token.type:
                case "text" | "text_special":
                    writer.text(_text(token.content))
                case "softbreak" | "hardbreak":
                    writer.text("\n")
                case "code_inline":
                    code = clean(token.content).replace("\t", " ")
                    if opened is None:
                        writer.code(code)
                    else:
                        writer.text(code)
                case "link_open":
                    opened = str(token.attrs["href"]), writer.position, len(writer.out)
                case "link_close":
                    if opened is not None:
                        url, start, piece = opened
                        self._link(url, start, "".join(writer.out[piece:]))
                    opened = None
                case "image":
                    url, start = str(token.attrs["src"]), writer.position
                    alt = _plain(token.children or [])
                    writer.text(alt)
                    if opened is None:
                        self._link(url, start, alt)
                case _:
                    kind, _, side = token.type.rpartition("_")
                    if side == "open":
                        writer.open(*_STYLES[kind])
                    else:
                        writer.close(*_STYLES[kind])

    def _link(self, url: str, start: int, label: str) -> None:
        """What was written since `start` is the label of a link to `url`."""
        writer = self.writer
        clickable = link.clickable(url)
        if not clickable or not label.strip():
            address = " ".join(clean(self._parser.decode(link.readable(url))).split())
            if not label.strip():
                writer.text(address)
            elif address not in label:
                writer.text(f" ({address})")
        if clickable:
            writer.span("text_link", start, url)

    def _table(self, opening: Token, tokens: list[Token], last: Token | None) -> None:
        cells: list[list[list[Token]]] = []
        aligns: list[grid.Align] = []
        for token in tokens:
            if token.type == "tr_open":
                cells.append([])
            elif token.type == "th_open":
                aligns.append(_align(token))
            elif token.type == "inline":
                cells[-1].append(self._children(token, growing=token is last))
        writer = self.writer
        drawn = None
        if not any(token.type in ("link_open", "image") for row in cells for cell in row for token in cell):
            rows = [[" ".join(_plain(cell).split()) for cell in row] for row in cells]
            drawn = grid.draw(rows, aligns, limit=TABLE_WIDTH)
        if drawn is not None:
            writer.begin(opening.map, whole_line=True)
            writer.block("pre", drawn)
        else:
            self._rows(opening, cells)

    def _rows(self, opening: Token, cells: list[list[list[Token]]]) -> None:
        """The readable form of a table: the first cell of each row in bold, the others below with their heading."""
        writer = self.writer
        heading = [" ".join(_plain(cell).split()) for cell in cells[0]]
        lines = opening.map
        for row in cells[1:] or cells:
            writer.begin(lines, apart=True)
            lines = None
            start = writer.position
            writer.open("bold")
            self._inline(row[0])
            writer.close("bold")
            for name, cell in zip(heading[1:], row[1:], strict=True):
                if cell:
                    writer.text(("\n• " if writer.position > start else "• ") + (f"{name}: " if name else ""))
                    self._inline(cell)


def _heading(token: Token) -> tuple[str, ...]:
    return ("bold", "underline") if token.tag == "h1" else ("bold",)


def _align(token: Token) -> grid.Align:
    style = str(token.attrs.get("style", ""))
    return "right" if style.endswith("right") else "center" if style.endswith("center") else "left"


def _text(content: str) -> str:
    # Entities like &#9; and &#x202e; are decoded by now, so characters have to be looked at again.
    content = clean(content).replace("\t", " ")
    return _BREAK.sub("\n", content) if "<" in content else content


def _plain(tokens: list[Token]) -> str:
    """Inline tokens as text without any formatting."""
    out: list[str] = []
    waiting = list(reversed(tokens))
    while waiting:
        token = waiting.pop()
        if token.type in ("softbreak", "hardbreak"):
            out.append("\n")
        elif token.children:
            waiting.extend(reversed(token.children))
        else:
            out.append(_text(token.content))
    return "".join(out)
