"""Collects what a renderer writes: text, spans, and what stands in front of each line."""

from __future__ import annotations

from collections.abc import Sequence

from kai.bot.text import Span


class Frame:
    """One list item or inner quotation around the text: what stands in front of its first and its other lines."""

    __slots__ = ("indent", "marker")

    def __init__(self, marker: str, indent: str) -> None:
        self.marker = marker
        self.indent = indent


class Writer:
    """Collects text and spans; knows where lines begin and what stands in front of them."""

    def __init__(self) -> None:
        self.out: list[str] = []
        self.position = 0  # code points written
        self.spans: list[Span] = []
        self.frames: list[Frame] = []
        self._styles: dict[str, list[int]] = {}  # kind → how many are open, where the stretch began
        self._at_line_start = True
        self._source_line = 0  # the first line of source after the last block

    def put(self, text: str) -> None:
        self.out.append(text)
        self.position += len(text)

    def text(self, text: str) -> None:
        """Text within a block: its further lines get what stands in front of every line here."""
        if "\n" in text and self.frames:
            text = text.replace("\n", "\n" + "".join(frame.indent for frame in self.frames))
        self.put(text)

    def begin(self, lines: Sequence[int] | None, *, apart: bool = False, whole_line: bool = False) -> None:
        """Start a block that stands in `lines` of the source; a blank line there is a blank line here.

        `apart` sets it off by a blank line anyhow. A block that needs the `whole_line` has nothing in front of it.
        """
        first, last = lines or (self._source_line, self._source_line)
        if not self._at_line_start:
            self.put("\n\n" if apart or first > self._source_line else "\n")
        self._source_line = last
        self._at_line_start = whole_line
        if whole_line and not any(frame.marker for frame in self.frames):
            return
        front = "".join(frame.marker or frame.indent for frame in self.frames)
        for frame in self.frames:
            frame.marker = ""
        self.put(front.rstrip() + "\n" if whole_line else front)

    def begin_empty(self, lines: Sequence[int] | None) -> None:
        """A line that has only its list mark."""
        self.begin(lines)
        front = self.out.pop()
        self.position -= len(front)
        self.put(front.rstrip())

    def block(self, kind: str, text: str, language: str | None = None) -> None:
        """Lines of their own that are one entity; `begin(whole_line=True)` came before."""
        self.spans.append(Span(kind, self.position, self.position + len(text), None, language))
        self.put(text)
        self._at_line_start = False

    def literal(self, text: str) -> None:
        """Text from outside the Markdown, in lines of its own."""
        self.frames = []
        self.begin(None)
        self.put(text.expandtabs(4))

    def open(self, *kinds: str) -> None:
        for kind in kinds:
            style = self._styles.setdefault(kind, [0, 0])
            if style[0] == 0:
                style[1] = self.position
            style[0] += 1

    def close(self, *kinds: str) -> None:
        for kind in kinds:
            style = self._styles[kind]
            style[0] -= 1
            if style[0] == 0:
                self.span(kind, style[1])

    def code(self, text: str) -> None:
        """Inline code: the styles around it stop before it and go on behind it."""
        around = [(kind, style) for kind, style in self._styles.items() if style[0]]
        for kind, style in around:
            self.span(kind, style[1])
        start = self.position
        self.text(text)
        self.span("code", start)
        for _, style in around:
            style[1] = self.position

    def span(self, kind: str, start: int, url: str | None = None) -> None:
        if start < self.position:
            self.spans.append(Span(kind, start, self.position, url))
