"""What each construct of Markdown looks like in Telegram."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import pytest

from kai.bot import commonmark, grid
from kai.bot.markdown import MAX_SOURCE, RULE, Entity, Text, length, render, render_partial
from kai.bot.text import clean

LINK = "https://e.org/x"


def formats(text: Text) -> list[tuple[Any, ...]]:
    """(type, covered text) and, where there is one, the address or language."""
    units = text.text.encode("utf-16-le")
    return [
        (
            e.type,
            units[2 * e.offset : 2 * (e.offset + e.length)].decode("utf-16-le"),
            *filter(None, [e.url, e.language]),
        )
        for e in text.entities
    ]


def check(markdown: str, text: str, *entities: tuple[Any, ...]) -> None:
    shown = render(markdown)
    assert shown.text == text
    assert formats(shown) == list(entities)


def test_plain_text_is_shown_as_it_is() -> None:
    check("Hello, world. 2 * 3 * 4 = 24, snake_case_name", "Hello, world. 2 * 3 * 4 = 24, snake_case_name")


def test_nothing_visible_makes_an_empty_text() -> None:
    for markdown in ("", "  \n\n", "[x]: https://e.org", "&nbsp;", "\u200b", "```\n```", "#", "\x00"):
        assert render(markdown) == Text("", ()), markdown


def test_styles_become_entities() -> None:
    check(
        "**bold** *italic* __bold__ _italic_ ~~gone~~ `code`",
        "bold italic bold italic gone code",
        ("bold", "bold"), ("italic", "italic"), ("bold", "bold"), ("italic", "italic"), ("strikethrough", "gone"),
        ("code", "code"),
    )  # fmt: skip


def test_styles_nest_and_the_same_style_counts_once() -> None:
    check("**a *b* c**", "a b c", ("bold", "a b c"), ("italic", "b"))
    check("***a***", "a", ("bold", "a"), ("italic", "a"))
    check("**a **b** c**", "a b c", ("bold", "a b c"))


def test_style_around_code_is_interrupted_by_it() -> None:
    check("**run `x` *now***", "run x now", ("bold", "run"), ("code", "x"), ("italic", "now"), ("bold", "now"))


def test_offsets_count_utf16_units() -> None:
    text = render("😀 **b** 👩‍👩‍👧 *i*")
    assert text.text == "😀 b 👩‍👩‍👧 i"
    assert text.entities == (Entity("bold", 3, 1), Entity("italic", 14, 1))
    assert length("a😀é") == 4


def test_an_entity_is_what_the_bot_api_wants() -> None:
    assert Entity("bold", 1, 2).to_dict() == {"type": "bold", "offset": 1, "length": 2}
    assert Entity("pre", 0, 2, language="py").to_dict()["language"] == "py"
    assert Entity("text_link", 0, 2, url=LINK).to_dict()["url"] == LINK


def test_headings_are_bold_and_stand_apart() -> None:
    check("# One\ntext\n## Two **b** `c`\nmore", "One\ntext\n\nTwo b c\nmore",
          ("bold", "One"), ("underline", "One"), ("bold", "Two b"), ("code", "c"))  # fmt: skip
    check("Setext\n===", "Setext", ("bold", "Setext"), ("underline", "Setext"))
    check("a\n\n#\n\nb", "a\n\nb")


def test_line_breaks_stay_line_breaks() -> None:
    check("one\ntwo  \nthree\\\nfour<br>five", "one\ntwo\nthree\nfour\nfive")


def test_blank_lines_are_kept_as_written() -> None:
    check("a\n- b\n- c\n\nd\n\n\n\ne", "a\n• b\n• c\n\nd\n\ne")


def test_lists_nest_by_indentation() -> None:
    check("- a\n  b\n  - c\n    1. d\n    2. e\n       - f", "• a\n   b\n   ◦ c\n      1. d\n      2. e\n         ▪ f")
    check("-\n- a", "•\n• a")


def test_numbers_are_counted_and_gaps_kept() -> None:
    check("1. a\n1. b\n1. c", "1. a\n2. b\n3. c")
    check("3) a\n4) b\n7) c", "3) a\n4) b\n7) c")


def test_tasks_get_boxes() -> None:
    check("- [ ] a\n- [x] b\n- [X]\n- [y] d\n1. [x] e", "☐ a\n☑ b\n☑\n• [y] d\n1. ☑ e")


def test_fenced_code_keeps_its_language_and_everything_in_it() -> None:
    check("```c++ title\n  a <b> &amp; *c*\n\n    d\n```", "  a <b> &amp; *c*\n\n    d",
          ("pre", "  a <b> &amp; *c*\n\n    d", "c++"))  # fmt: skip
    check("~~~\nplain\n~~~", "plain", ("pre", "plain"))
    check("x\n\n    indented\n    code", "x\n\nindented\ncode", ("pre", "indented\ncode"))


def test_tabs_in_code_become_spaces_that_telegram_keeps() -> None:
    check("```go\nif x {\n\treturn\n}\n```", "if x {\n    return\n}", ("pre", "if x {\n    return\n}", "go"))
    assert "\t" not in render("a\tb `c\td` &#9;").text


def test_code_in_a_list_has_lines_of_its_own_without_indentation() -> None:
    check("1. run\n   ```sh\n   ls\n   ```\n2. done", "1. run\nls\n2. done", ("pre", "ls", "sh"))
    check("- ```\n  ls\n  ```", "•\nls", ("pre", "ls"))


def test_quotations_are_entities_and_inner_ones_are_drawn() -> None:
    check("> a **b**\n> c\n\nd", "a b\nc\n\nd", ("blockquote", "a b\nc"), ("bold", "b"))
    check("> a\n>\n> > b\n> > c", "a\n\n│ b\n│ c", ("blockquote", "a\n\n│ b\n│ c"))
    check("> `c`\n>\n> ```\n>   p\n> ```", "c\n\n  p", ("blockquote", "c\n\n  p"), ("code", "c"), ("pre", "  p"))
    check("- a\n  > b", "• a\nb", ("blockquote", "b"))


def test_links_are_clickable() -> None:
    check(f'[a **b**]({LINK} "title")', "a b", ("text_link", "a b", LINK), ("bold", "b"))
    check(f"[a][r] [r]\n\n[r]: {LINK}", "a r", ("text_link", "a", LINK), ("text_link", "r", LINK))
    check(f"<{LINK}>", LINK, ("text_link", LINK, LINK))
    check(f"[`code`]({LINK})", "code", ("text_link", "code", LINK))
    check(f"[]({LINK})", LINK, ("text_link", LINK, LINK))
    check("[t](tg://resolve?domain=x)", "t", ("text_link", "t", "tg://resolve?domain=x"))
    check("[ip](http://192.0.2.1:8080/)", "ip", ("text_link", "ip", "http://192.0.2.1:8080/"))


@pytest.mark.parametrize(
    ("markdown", "text"),
    [
        ("[file](src/a%20b.py#L3)", "file (src/a b.py#L3)"),
        ("[src/a.py](src/a.py)", "src/a.py"),
        ("[app](http://localhost:3000/x)", "app (http://localhost:3000/x)"),
        ("[bank](https://bank.example@evil.example/)", "bank (https://bank.example@evil.example/)"),
        ("[port](https://e.org:99999/)", "port (https://e.org:99999/)"),
        ("[me](tg://user?id=1)", "me (tg://user?id=1)"),
        ("[js](javascript:alert)", "js (javascript:alert)"),
        ("[mail](mailto:a@e.org)", "mail (a@e.org)"),
        ("<a@e.org>", "a@e.org"),
        ("[call](tel:+4912345)", "call (+4912345)"),
        ("[above](#heading)", "above"),
        ("![pixel](data:image/png;base64,AAAA)", "pixel"),
        ("[none]()", "none"),
        (f"[long](https://e.org/{'x' * 2000})", f"long (https://e.org/{'x' * 2000})"),
    ],
)
def test_an_address_that_telegram_would_refuse_is_shown_as_text(markdown: str, text: str) -> None:
    check(markdown, text)


def test_images_are_links_under_their_description() -> None:
    check(f"![a *b*]({LINK})", "a b", ("text_link", "a b", LINK))
    check(f"![]({LINK})", LINK, ("text_link", LINK, LINK))
    check(f"[![badge](https://e.org/b.svg)]({LINK})", "badge", ("text_link", "badge", LINK))


def test_a_rule_is_a_line() -> None:
    check("a\n\n---\n\nb", f"a\n\n{RULE}\n\nb")


def test_html_is_shown_as_text_and_its_characters_are_decoded() -> None:
    check("<b>x</b> &lt;i&gt; &copy; &#x41;", "<b>x</b> <i> © A")
    check("<div>\n*a*\n</div>", "<div>\na\n</div>", ("italic", "a"))


def test_escapes_are_taken_away() -> None:
    check(r"\*a\* \[b\] \`c\`", "*a* [b] `c`")


def test_a_narrow_table_is_drawn() -> None:
    drawn = "Name | Size\n-----+-----\n你好 |   12\nb    |  7 x"
    check("| Name | Size |\n|:--|--:|\n| 你好 | **12** |\n| b | 7<br>`x` |", drawn, ("pre", drawn))
    centred = "abc | d\n----+--\n x  | y"
    check("a\n\n|abc|d|\n|:-:|-|\n|x|y|\n\nb", f"a\n\n{centred}\n\nb", ("pre", centred))


def test_a_wide_table_becomes_a_list_under_each_first_cell() -> None:
    wide = "a description that is far too long for a phone"
    check(
        f"| Option | Does | More |\n|---|---|---|\n| `-a` | {wide} | *x* |\n| b | | y |\n| | {wide} |",
        f"-a\n• Does: {wide}\n• More: x\n\nb\n• More: y\n\n• Does: {wide}",
        ("code", "-a"), ("italic", "x"), ("bold", "b"),
    )  # fmt: skip


def test_a_table_with_links_keeps_them() -> None:
    check(f"|a|b|\n|-|-|\n|c|[d]({LINK})|", "c\n• b: d", ("bold", "c"), ("text_link", "d", LINK))


def test_wide_characters_take_two_columns() -> None:
    assert [grid.width(text) for text in ("abc", "你好", "e\u0301", "😀", "ﾊ", "\u200b")] == [3, 4, 1, 2, 1, 0]


def test_characters_that_disguise_or_control_are_gone() -> None:
    check("a\u202eb\u2066c&#x202d;d\x00e\x07f\x7f `\u202eg`", "abcdef g", ("code", "g"))
    check("\x1b[1;31mred\x1b[0m \x1b]0;title\x07x", "red x")
    check("a\r\nb\rc\u2028d", "a\nb\nc\nd")
    assert clean("lone \ud800 pair \ud83d\ude00 ring a\u030a") == "lone \ufffd pair 😀 ring å"
    assert clean("עברית\u200f e\u0301") == "עברית\u200f e\u0301"


def test_a_growing_text_ends_what_it_has_begun() -> None:
    def partial(markdown: str) -> tuple[str, list[tuple[Any, ...]]]:
        text = render_partial(markdown)
        return text.text, formats(text)

    assert partial("a **b") == ("a b", [("bold", "b")])
    assert partial("a **b *c") == ("a b c", [("bold", "b c"), ("italic", "c")])
    assert partial("~~a *b~~ c") == ("a *b c", [("strikethrough", "a *b")])
    assert partial("a **b*") == ("a b", [("bold", "b")])
    assert partial("a ~~b") == ("a b", [("strikethrough", "b")])
    assert partial("a **b `c") == ("a b c", [("bold", "b"), ("code", "c")])
    assert partial("a ``c`d") == ("a c`d", [("code", "c`d")])
    assert partial("```py\nx = 1\n``") == ("x = 1", [("pre", "x = 1", "py")])
    assert partial(f"[**a** b]({LINK}) [c **d") == (
        "a b c d",
        [("text_link", "a b", LINK), ("bold", "a"), ("bold", "d")],
    )
    assert partial("| a | b |\n|---|---|\n| 1 | **2") == ("a | b\n--+--\n1 | 2", [("pre", "a | b\n--+--\n1 | 2")])


@pytest.mark.parametrize(
    ("markdown", "text"),
    [
        ("a **", "a"), ("a `", "a"), ("a ```", "a"), ("a\n```", "a"), ("a\n-", "a"), ("a\n- b\n-", "a\n• b"),
        ("a\n=", "a"),
        ("a\n\n#", "a"), ("a\n\n1.", "a"), ("a\n\n- [", "a"), ("a\n\n- [x]", "a"), ("a\n>", "a"), ("a [b", "a b"),
        ("a [b]", "a b"), ("a [b](", "a b"), ("a [b](https://e.o", "a b"), ("a [b](x(y", "a b"), ("a [b][r", "a b"),
        ("a ![b](htt", "a b"), ("a <https://e.or", "a"), ("a &am", "a"), ("a \\", "a"), ("a\n\n| b | c", "a"),
        ("a\n\n| b | c |\n|--", "a"), ("a\n\n[r]: https://e", "a"), ("a\n\n[r]:", "a"),
        ("a `[` b", "a [ b"), ("x[0", "x[0"), ("**", ""),
    ],
)  # fmt: skip
def test_a_growing_text_doesnt_show_half_markup(markdown: str, text: str) -> None:
    assert render_partial(markdown).text == text


def test_a_growing_text_leaves_earlier_lines_alone() -> None:
    assert render_partial("*.py and [x\nnow **b").text == "*.py and [x\nnow b"


def test_a_parser_that_fails_costs_nobody_an_answer(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(source: str, env: commonmark.Env) -> list[Any]:
        raise RecursionError("too deep")

    monkeypatch.setattr(commonmark, "parse_blocks", broken)
    assert render("**a**\tb") == Text("**a**   b")
    assert "too deep" in caplog.text


def test_what_is_nested_too_deeply_is_still_shown() -> None:
    shown = render("".join("  " * depth + f"- item{depth}\n" for depth in range(40))).text
    assert [shown.count(f"item{depth}\n") + shown.endswith(f"item{depth}") for depth in range(40)] == [1] * 40
    assert "word" in render("> " * 100 + "word").text


def test_a_table_of_thousands_of_cells_is_shown_as_its_source() -> None:
    huge = "|" + "a|" * 256 + "\n|" + "-|" * 256 + "\n" + "b\n" * 256
    began = time.monotonic()
    assert "-|-|-" in render(huge * 10).text
    assert time.monotonic() - began < 10


def test_text_beyond_the_limit_is_kept_as_it_is() -> None:
    lines = "**a**\n" * (MAX_SOURCE // 6 + 100)
    shown = render(lines).text
    assert shown.startswith("a\na\n") and shown.endswith("**a**\n**a**")
    assert shown.count("a") == lines.count("a")
    open_ends = "*a\n" * MAX_SOURCE
    assert render_partial(open_ends) == render(open_ends)


@pytest.mark.parametrize(
    "pattern", ["[", "![", "[x]: y\n", ">", "> ", "*", "*a_", "`", "<", "- ", "[a](", "a\n", "(", "\\", "|", "&", "~~a"]
)
def test_a_megabyte_of_markup_is_rendered_in_bounded_time(pattern: str) -> None:
    # Quadratic work would take hours; a slow machine takes seconds.
    began = time.monotonic()
    assert render(pattern * (1_000_000 // len(pattern))).text
    assert time.monotonic() - began < 30


def test_importing_the_renderer_loads_neither_the_parser_nor_telegram() -> None:
    code = "import sys, kai.bot.markdown, kai.bot.split; print({'markdown_it', 'telegram'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "set()"


def test_the_time_of_many_small_tables_grows_with_the_text() -> None:
    """Counted in looks at the text, not in seconds: each refused table was once scanned to its end from every line."""
    from kai.bot import commonmark

    def looks(length: int) -> int:
        seen = 0
        real: Any = vars(commonmark)["markdown_it_table"]

        def counted(state: Any, start: int, end: int, silent: bool) -> bool:
            nonlocal seen
            seen += end - start
            return bool(real(state, start, end, silent))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(commonmark, "markdown_it_table", counted)
            render(("a|b\n-|-\n" * length)[:length])
        return seen

    assert looks(32768) < 8 * looks(8192) + 8192
