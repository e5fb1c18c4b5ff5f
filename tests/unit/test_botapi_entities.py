"""What the Bot API stand-in takes for well-formed text, and how it stores it."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kai.demo.botapi.answers import ApiError
from kai.demo.botapi.entities import check_url, formatted, utf16_length, utf16_slice
from kai.demo.botapi.html_text import parse_html


def entity(kind: str, offset: int, length: int, **more: Any) -> dict[str, Any]:
    return {"type": kind, "offset": offset, "length": length, **more}


def refused(text: str, *entities: object) -> str:
    with pytest.raises(ApiError) as caught:
        formatted(text, list(entities))
    assert caught.value.code == 400
    assert caught.value.description.startswith("Bad Request: can't parse entities: ")
    return caught.value.description.removeprefix("Bad Request: can't parse entities: ")


def test_entities_that_fit_are_kept_in_telegrams_order() -> None:
    given_ones = [entity("italic", 4, 3), entity("bold", 0, 7), entity("text_link", 0, 3, url="https://example.org")]
    text, found = formatted("one two three", given_ones)
    assert text == "one two three"
    assert [(one["type"], one["offset"], one["length"]) for one in found] == [
        ("bold", 0, 7),
        ("text_link", 0, 3),
        ("italic", 4, 3),
    ]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (entity("bold", -1, 2), "incorrect offset -1"),
        (entity("bold", 0, 0), "incorrect length 0"),
        (entity("bold", 0, -3), "incorrect length -3"),
        (entity("bold", 5, 1), "begins after the end of the text at UTF-16 offset 5"),
        (entity("bold", 3, 3), "beginning at UTF-16 offset 3 ends after the end of the text at UTF-16 offset 6"),
        (entity("shout", 0, 1), "Unsupported type specified"),
        (entity("text_link", 0, 1), '"url"'),
        (entity("text_link", 0, 1, url="nowhere"), "is invalid: Wrong HTTP URL"),
        (entity("text_link", 0, 1, url="javascript:alert(1)"), "Unsupported URL protocol"),
        (entity("pre", 0, 1, language=7), '"language"'),
        (entity("text_mention", 0, 1), '"user"'),
        (entity("custom_emoji", 0, 1, custom_emoji_id="x"), "custom emoji"),
        ({"type": "bold", "offset": "0", "length": 1}, "must be of type Number"),
        ({"type": "bold", "offset": True, "length": 1}, "must be of type Number"),
        ({"offset": 0, "length": 1}, "Type is not specified"),
        ("bold", "expected an Object"),
    ],
)
def test_an_entity_that_makes_no_sense_is_refused_with_its_fault(wrong: object, says: str) -> None:
    assert says in refused("hello", wrong)


def test_entities_must_be_an_array() -> None:
    with pytest.raises(ApiError, match="expected an Array"):
        formatted("hello", {"type": "bold"})


def test_offsets_count_utf16_units_and_never_cut_a_symbol() -> None:
    text = "a😀b"
    assert formatted(text, [entity("bold", 3, 1)])[1] == [entity("bold", 3, 1)]
    assert utf16_slice(text, 3, 1) == "b"
    assert "begins in a middle of a UTF-16 symbol" in refused(text, entity("bold", 2, 1))
    assert "ends in a middle of a UTF-16 symbol" in refused(text, entity("bold", 0, 2))
    assert "ends after the end" in refused(text, entity("bold", 0, 5))


def test_entities_nest_but_never_overlap() -> None:
    assert len(formatted("0123456789", [entity("bold", 0, 9), entity("italic", 2, 3)])[1]) == 2
    assert "overlap" in refused("0123456789", entity("bold", 0, 5), entity("italic", 3, 5))
    assert "overlap" in refused("0123456789", entity("code", 0, 5), entity("bold", 3, 5))


@pytest.mark.parametrize(
    ("outer", "inner"),
    [
        ("code", "bold"),
        ("pre", "text_link"),
        ("pre", "code"),
        ("text_link", "code"),
        ("text_link", "text_link"),
        ("text_link", "blockquote"),
        ("blockquote", "expandable_blockquote"),
    ],
)
def test_some_kinds_never_hold_others(outer: str, inner: str) -> None:
    made = [entity(outer, 0, 9), entity(inner, 2, 3)]
    for one in made:
        if one["type"] == "text_link":
            one["url"] = "https://example.org"
    assert re.search(f"{outer} .* can't contain {inner}", refused("0123456789", *made))


def test_a_style_around_code_is_cut_out_where_the_code_stands() -> None:
    _, found = formatted("0123456789", [entity("bold", 0, 10), entity("code", 4, 2)])
    assert found == [entity("bold", 0, 4), entity("code", 4, 2), entity("bold", 6, 4)]
    _, found = formatted("0123456789", [entity("bold", 0, 10), entity("pre", 0, 10, language="sh")])
    assert found == [entity("pre", 0, 10, language="sh")]


def test_neighbours_of_one_style_become_one() -> None:
    _, found = formatted("0123456789", [entity("bold", 0, 4), entity("bold", 4, 3), entity("bold", 1, 2)])
    assert found == [entity("bold", 0, 7)]


def test_a_quote_may_hold_code_links_and_styles() -> None:
    inside = [entity("code", 0, 2), entity("text_link", 3, 2, url="example.org"), entity("bold", 6, 2)]
    assert len(formatted("0123456789", [entity("blockquote", 0, 10), *inside])[1]) == 4


def test_outer_blank_space_goes_and_entities_shrink_with_it() -> None:
    assert formatted("\n  one  \n", [entity("bold", 3, 4)]) == ("one", [entity("bold", 0, 3)])
    assert formatted("one\n\n\n", [entity("bold", 0, 3), entity("italic", 4, 2)]) == ("one", [entity("bold", 0, 3)])
    # blank space at the beginning stays as far as an entity covers it
    assert formatted("  one", [entity("code", 0, 5)]) == ("  one", [entity("code", 0, 5)])


def test_control_characters_become_blanks_and_carriage_returns_vanish() -> None:
    assert formatted("a\tb\r\nc", [entity("bold", 4, 2)]) == ("a b\nc", [entity("bold", 3, 2)])


def test_text_of_blanks_alone_is_refused_and_fine_where_empty_is() -> None:
    with pytest.raises(ApiError, match="Bad Request: text must be non-empty"):
        formatted(" \n ", None)
    assert formatted(" \n ", None, empty_is_fine=True) == ("", [])


def test_what_telegram_finds_itself_is_ignored_and_the_101st_entity_too() -> None:
    assert formatted("/start now", [entity("bot_command", 0, 6)])[1] == []
    many = [entity("bold" if at % 2 else "italic", at, 1) for at in range(150)]
    assert len(formatted("x" * 150, many)[1]) == 100


@given(st.text(st.characters(codec="utf-8"), max_size=60))
def test_lengths_agree_with_utf16_whatever_the_text(text: str) -> None:
    assert utf16_length(text) == len(text.encode("utf-16-le")) // 2
    assert utf16_slice(text, 0, utf16_length(text)) == text


@given(st.text(st.sampled_from("ab 😀\n\r\t\u2028"), min_size=1, max_size=30), st.integers(0, 40), st.integers(1, 40))
def test_what_is_accepted_lies_inside_the_stored_text_and_passes_again(text: str, offset: int, length: int) -> None:
    try:
        stored, found = formatted(text, [entity("bold", offset, length)])
    except ApiError:
        return
    for one in found:
        assert utf16_slice(stored, one["offset"], one["length"])
    assert formatted(stored, found) == (stored, found)


@pytest.mark.parametrize(
    "url",
    [
        "https://example.org/a?b#c",
        "http://1.2.3.4:80",
        "example.org",
        "tg://user?id=1",
        "https://[::1]/",
        "HTTPS://A.B",
    ],
)
def test_urls_that_lead_somewhere_pass(url: str) -> None:
    assert check_url(url) is None


@pytest.mark.parametrize("url", ["", "localhost", "mailto:a@b.org", "file:///etc/passwd", "https://", "a b"])
def test_urls_that_lead_nowhere_dont(url: str) -> None:
    assert check_url(url)


def html(source: str) -> tuple[str, list[dict[str, Any]]]:
    return formatted(*parse_html(source))


def test_html_tags_become_entities() -> None:
    text, found = html('<b>bold <i>both</i></b> &lt;&amp;&#33; <a href="https://example.org">link</a> <code>x</code>')
    assert text == "bold both <&! link x"
    assert found == [
        entity("bold", 0, 9),
        entity("italic", 5, 4),
        entity("text_link", 14, 4, url="https://example.org"),
        entity("code", 19, 1),
    ]


def test_html_code_in_pre_is_one_entity_with_its_language() -> None:
    assert html('<pre><code class="language-python">x = 1</code></pre>')[1] == [entity("pre", 0, 5, language="python")]
    assert html("<pre><code>x = 1</code></pre>")[1] == [entity("pre", 0, 5)]
    assert html('<code class="language-c">x</code>')[1] == [entity("code", 0, 1)]


def test_html_knows_every_tag_of_the_list() -> None:
    for tag in ("b", "strong", "i", "em", "u", "ins", "s", "strike", "del", "tg-spoiler", "code", "pre", "blockquote"):
        assert len(html(f"<{tag}>x</{tag.upper()}>")[1]) == 1
    assert html("<blockquote expandable>x</blockquote>")[1][0]["type"] == "expandable_blockquote"
    assert html("<span class='tg-spoiler'>x</span>")[1][0]["type"] == "spoiler"
    assert html('<tg-emoji emoji-id="5368">👍</tg-emoji>')[1][0]["custom_emoji_id"] == "5368"


def test_html_offsets_count_utf16_units() -> None:
    assert html("😀<b>x</b>")[1] == [entity("bold", 2, 1)]


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("<b>x", 'Can\'t find end tag corresponding to start tag "b"'),
        ("x</b>", "Unexpected end tag at byte offset 1"),
        ("<b><i>x</b></i>", 'Unmatched end tag at byte offset 7, expected "</i>", found "</b>"'),
        ("ä<div>x</div>", 'Unsupported start tag "div" at byte offset 2'),
        ("1 < 2", 'Unsupported start tag "" at byte offset 2'),
        ("<b", "Unclosed start tag at byte offset 0"),
        ("<b>x</b", "Unclosed end tag at byte offset 4"),
        ('<a href="x', "Unclosed start tag"),
        ("<span>x</span>", 'must have class "tg-spoiler"'),
        ("<a =x>y</a>", "Empty attribute name"),
    ],
)
def test_html_that_is_wrong_is_refused_with_the_place(source: str, says: str) -> None:
    with pytest.raises(ApiError, match="can't parse entities") as caught:
        html(source)
    assert says in caught.value.description


def test_html_link_that_leads_nowhere_is_plain_text() -> None:
    assert html('<a href="nowhere">x</a>') == ("x", [])
