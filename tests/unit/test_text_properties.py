"""Whatever an agent writes: what goes to Telegram keeps Telegram's rules, and nothing is lost on the way.

`faults` is written from the published rules (https://core.telegram.org/bots/api#formatting-options and
#messageentity) and, where they are silent, from what Telegram's server does to text (see kai/bot/text.py).
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import re
from collections.abc import Iterator
from logging.handlers import BufferingHandler

from hypothesis import example, given, settings
from hypothesis import strategies as st

from kai.bot.markdown import Entity, Text, length, render, render_partial
from kai.bot.split import MAX_ENTITIES, split

STYLES = {"bold", "italic", "underline", "strikethrough"}
CODE = {"code", "pre"}
KINDS = STYLES | CODE | {"text_link", "blockquote"}
FORBIDDEN = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
# What Telegram sees as nothing: a message of these alone is refused as empty.
NOTHING = re.compile("[\\s\u00a0\u1680\u180e\u2000-\u200f\u202f\u205f\u2800\u3000\ufeff\ufffc\U000e0000-\U000e007f]*")

MARKUP = [
    "*", "**", "***", "_", "__", "~~", "~", "`", "``", "```", "```python\n", "~~~\n", "[", "]", "](", ")", "[a](b)",
    "[a](https://e.org/x)", "![i](https://e.org/i.png)", "[x]: https://e.org\n", "[x]", "<https://e.org>", "<b>",
    "<br>", "&amp;", "&#x202e;", "&#9;", "&nbsp;", "&#10;", "> ", ">", "- ", "* ", "1. ", "7) ", "    ", "  ", "\t",
    "\n", "\n\n", "# ", "## ", "---\n", "===\n", "| ", "|", "|---|\n", "| a | b |\n|---|:-:|\n", "- [ ] ",
    "- [x] ", "\\", "a", "word ", "é", "e\u0301", "你好", "😀", "👩\u200d👩\u200d👧", "🇩🇪", "\u202e", "\u2066",
    "\u200b", "\u00a0", "\u3000", "\x1b[31m", "\r\n", "\x00", "\ud800", "line of text\n", "x" * 50,
]  # fmt: skip

strings = st.text(st.characters(), max_size=200)
soups = st.lists(st.sampled_from(MARKUP), max_size=60).map("".join)
documents = st.one_of(strings, soups, st.tuples(soups, strings).map("".join))
limits = st.one_of(st.integers(2, 60), st.integers(61, 4096))

DOCUMENT = """# Title of **all**

A *short* text with **bold and *both* of them**, ~~gone~~ and `code * here`.
A [link](https://e.org/a_(b)?q=1&r=2 "title"), <https://e.org/auto>, ![image](https://e.org/i.png) &amp; more.

- one **bold**
- two
  1. inner `code`
  2. inner [link](https://e.org)
     - deepest

> quoted *text*
> > inner ``co`de``

```python
def f(x):
    return x * 2  # [not](a link)
```

- [ ] open
- [x] done

| Name | Größe |
|:-----|------:|
| 你好 | **12** |
| b    | `7`   |

Last __line__ of the text
---

***
The end.
"""


def faults(text: Text) -> list[str]:
    """What Telegram would refuse, drop or change about a message."""
    found = []
    units = text.text.encode("utf-16-le", "surrogatepass")
    borders = set(itertools.accumulate((2 if char > "\uffff" else 1 for char in text.text), initial=0))
    if match := FORBIDDEN.search(text.text):
        found.append(f"character {match[0]!r}")
    if not text.text:
        return found + [f"{entity} in an empty text" for entity in text.entities]
    if NOTHING.fullmatch(text.text):
        found.append("nothing to see")
    if text.text != text.text.rstrip():
        found.append("blanks at the end")
    if text.text != text.text.lstrip() and not any(e.type == "pre" and e.offset == 0 for e in text.entities):
        found.append("blanks at the beginning")
    for entity in text.entities:
        covered = units[2 * entity.offset : 2 * (entity.offset + entity.length)].decode("utf-16-le", "replace")
        if entity.type not in KINDS:
            found.append(f"{entity}: unknown type")
        if entity.length <= 0 or entity.offset < 0 or entity.offset + entity.length > len(units) // 2:
            found.append(f"{entity}: outside of the text")
        if not {entity.offset, entity.offset + entity.length} <= borders:
            found.append(f"{entity}: within a surrogate pair")
        if covered != covered.rstrip() or (entity.type not in ("pre", "blockquote") and covered != covered.strip()):
            found.append(f"{entity}: blanks at the end of {covered!r}")
        if (entity.url is not None) != (entity.type == "text_link"):
            found.append(f"{entity}: url")
        if entity.url is not None and not re.match(r"https?://[^/?#@]+\.[^/?#@]+|tg://\w", entity.url, re.IGNORECASE):
            found.append(f"{entity}: an address that Telegram refuses")
        if entity.language is not None and (entity.type != "pre" or not entity.language.strip()):
            found.append(f"{entity}: language")
    if list(text.entities) != sorted(text.entities, key=lambda e: (e.offset, -e.length)):
        found.append("entities out of order")
    found += nesting_faults(text.entities)
    return found


def nesting_faults(entities: tuple[Entity, ...]) -> list[str]:
    found = []
    around: list[Entity] = []
    for inner in entities:
        around = [outer for outer in around if outer.offset + outer.length > inner.offset]
        for outer in around:
            same = (outer.offset, outer.length) == (inner.offset, inner.length)
            kinds = {outer.type, inner.type}
            if inner.offset + inner.length > outer.offset + outer.length:
                found.append(f"{outer} and {inner} overlap")
            if outer.type == inner.type:
                found.append(f"{outer} holds {inner} of the same type")
            if kinds & CODE and kinds - CODE != {"blockquote"}:
                found.append(f"{outer} and {inner}: code with something else")
            if outer.type in CODE or (outer.type == "text_link" and inner.type not in STYLES and not same):
                found.append(f"{outer} can't hold {inner}")
            if inner.type == "blockquote" and outer.type not in STYLES:
                found.append(f"{outer} can't hold {inner}")
        around.append(inner)
    return found


def looks(text: Text) -> dict[int, frozenset[tuple[str, str | None, str | None]]]:
    """For each code point that isn't blank: how it is formatted."""
    formats: dict[int, frozenset[tuple[str, str | None, str | None]]] = {}
    position = 0
    for index, char in enumerate(text.text):
        formats[index] = frozenset(
            (e.type, e.url, e.language) for e in text.entities if e.offset <= position < e.offset + e.length
        )
        position += 2 if char > "\uffff" else 1
    return {index: look for index, look in formats.items() if not text.text[index].isspace()}


@contextlib.contextmanager
def understood() -> Iterator[None]:
    """Fails when the Markdown inside had to be shown as it is."""
    handler = BufferingHandler(1000)
    logger = logging.getLogger("kai.bot.markdown")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
    assert [record.getMessage() for record in handler.buffer] == []


@given(documents)
@example("**&#32;a&#9;**")
@example("> ```\n>   x\n> ```")
@example("**a `b` c** [`d` **e**](https://e.org) ***f `g`***")
@example("- \n\n  - > 1. ```\n")
@example("|a|\n|-|\n|[x](https://e.org)|")
@settings(max_examples=300, deadline=None)
def test_any_string_becomes_text_that_keeps_telegrams_rules(markdown: str) -> None:
    with understood():
        assert faults(render(markdown)) == []


@given(documents)
@settings(max_examples=200, deadline=None)
def test_any_growing_text_keeps_telegrams_rules(markdown: str) -> None:
    with understood():
        assert faults(render_partial(markdown)) == []


def test_every_beginning_of_a_document_can_be_shown() -> None:
    for end in range(len(DOCUMENT) + 1):
        assert faults(render_partial(DOCUMENT[:end])) == [], DOCUMENT[:end]


def test_no_beginning_of_a_document_shows_markup() -> None:
    for end in range(len(DOCUMENT) + 1):
        text = render_partial(DOCUMENT[:end])
        units = text.text.encode("utf-16-le")
        for entity in text.entities:
            if entity.type in CODE:
                blank = ("\x01" * entity.length).encode("utf-16-le")
                units = units[: 2 * entity.offset] + blank + units[2 * (entity.offset + entity.length) :]
        assert not re.search(r"[*`~\[\]|#<>\\]|__|&am|https?:/(?!/e.org/auto)|--", units.decode("utf-16-le")), (
            DOCUMENT[max(0, end - 40) : end],
            text.text[-80:],
        )


@given(documents, limits)
@example("a" * 5000, 4096)
@example("😀" * 300, 3)
@example("`" + "x " * 100 + "`", 10)
@example("```python\n" + "    line = 1\n\n" * 500 + "```", 100)
@example("**" + "word " * 300 + "end**", 50)
@example("a\n\n\u200b\u200b\u200b\u200b\n\nb", 2)
@example("".join(f"[{n}](https://e.org/{'x' * 150}) " for n in range(120)), 4096)
@example("**b** " * 250, 4096)
@settings(max_examples=300, deadline=None)
def test_parts_keep_telegrams_rules_and_lose_nothing(markdown: str, limit: int) -> None:
    whole = render(markdown)
    parts = split(whole, limit)
    assert all(1 <= length(part.text) <= limit for part in parts)
    assert all(len(part.entities) <= MAX_ENTITIES for part in parts)
    assert [fault for part in parts for fault in faults(part)] == []

    wanted = looks(whole)
    position = 0
    for part in parts:
        begin = whole.text.find(part.text, position)
        assert begin >= 0
        assert NOTHING.fullmatch(whole.text, position, begin)
        shown = {begin + index: look for index, look in looks(part).items()}
        assert shown == {index: wanted[index] for index in shown}
        position = begin + len(part.text)
    assert NOTHING.fullmatch(whole.text, position)


@given(documents)
@settings(max_examples=100, deadline=None)
def test_what_fits_one_message_stays_one(markdown: str) -> None:
    whole = render(markdown)
    if whole.text and length(whole.text) <= 4096 and len(whole.entities) <= MAX_ENTITIES:
        assert split(whole) == [whole]


@given(strings)
@settings(max_examples=100, deadline=None)
def test_no_word_of_a_plain_text_is_lost(text: str) -> None:
    words = re.findall(r"[A-Za-z0-9]+", text)
    shown = render(re.sub(r"[^A-Za-z0-9 ]+", " ", text)).text
    assert re.findall(r"[A-Za-z0-9]+", shown) == words
