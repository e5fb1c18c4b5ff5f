"""Where long text is cut, and what becomes of the entities that the cut goes through."""

from __future__ import annotations

import pytest

from kai.bot.markdown import Entity, Text, length, render
from kai.bot.split import MAX_ENTITIES, MAX_ENTITY_BYTES, split
from kai.bot.text import visible


def texts(parts: list[Text]) -> list[str]:
    return [part.text for part in parts]


def test_what_fits_stays_whole() -> None:
    text = render("a **b**\n\nc")
    assert split(text) == [text]
    exact = Text("x" * 4096)
    assert split(exact) == [exact]


def test_nothing_visible_makes_no_message() -> None:
    for empty in ("", " \n ", "\u200b" * 5000, "\u3000\n" * 3000):
        assert split(Text(empty)) == []


def test_a_limit_that_no_emoji_fits_into_is_refused() -> None:
    with pytest.raises(ValueError, match="limit 1"):
        split(Text("a"), 1)


def test_the_length_counts_utf16_units() -> None:
    parts = split(Text("😀" * 4096))
    assert [length(part.text) for part in parts] == [4096, 4096]
    assert texts(split(Text("a😀😀"), 3)) == ["a😀", "😀"]


def test_a_blank_line_is_preferred_to_a_line_and_a_line_to_a_word() -> None:
    assert texts(split(Text("aaa bbb\nccc\n\nddd\neee fff"), 21)) == ["aaa bbb\nccc", "ddd\neee fff"]
    assert texts(split(Text("aaa bbb\nccc ddd eee"), 13)) == ["aaa bbb", "ccc ddd eee"]
    assert texts(split(Text("aaa bbb ccc ddd"), 9)) == ["aaa bbb", "ccc ddd"]
    assert texts(split(Text("aaabbbcccddd"), 9)) == ["aaabbbccc", "ddd"]


def test_a_better_place_doesnt_leave_a_part_half_empty() -> None:
    assert texts(split(Text("a\n\nbbb bbb bbb ccc"), 13)) == ["a\n\nbbb bbb", "bbb ccc"]


def test_a_separator_right_behind_the_limit_is_used() -> None:
    assert texts(split(Text("aaaa bbb\n\ncc dd"), 8)) == ["aaaa bbb", "cc dd"]


def test_a_character_of_several_code_points_stays_together() -> None:
    family, flag, accent = "👩\u200d👩\u200d👧", "🇩🇪", "e\u0301"
    assert texts(split(Text("abc" + family), 10)) == ["abc", family]
    assert texts(split(Text("abc" + flag), 5)) == ["abc", flag]
    assert texts(split(Text("abc" + accent), 4)) == ["abc", accent]
    assert texts(split(Text("a" + "\u0301" * 100), 50))[0] == "a" + "\u0301" * 49


def test_an_entity_is_ended_and_begun_again() -> None:
    parts = split(render("**aaa bbb ccc ddd**"), 9)
    assert parts == [Text("aaa bbb", (Entity("bold", 0, 7),)), Text("ccc ddd", (Entity("bold", 0, 7),))]
    link = split(Text("x" * 12, (Entity("text_link", 0, 12, url="https://e.org"),)), 8)
    assert [part.entities for part in link] == [
        (Entity("text_link", 0, 8, url="https://e.org"),),
        (Entity("text_link", 0, 4, url="https://e.org"),),
    ]


def test_code_goes_on_as_code_of_the_same_language_with_its_indentation() -> None:
    code = "def f():\n" + "".join(f"    line_{number} = {number}\n" for number in range(20))
    parts = split(render(f"```python\n{code}```"), 100)
    assert len(parts) > 3
    assert all(part.entities == (Entity("pre", 0, length(part.text), language="python"),) for part in parts)
    assert "\n".join(texts(parts)) == code.rstrip()
    assert parts[1].text.startswith("    line_")


def test_code_that_fits_the_next_part_isnt_cut() -> None:
    block = "\n".join(f"line {number}" for number in range(10))
    for words in (6, 10):
        parts = split(render(f"{'word ' * words}\n\n```\n{block}\n```"), 90)
        assert texts(parts) == [("word " * words).strip(), block]


def test_code_is_cut_when_the_part_before_it_would_be_tiny() -> None:
    block = "\n".join(f"line {number:02}" for number in range(10))
    parts = split(render(f"Tiny.\n\n```\n{block}\n```"), 84)
    assert parts[0].text.startswith("Tiny.\n\nline 00\nline 01")
    assert [entity.type for part in parts for entity in part.entities] == ["pre", "pre"]


def test_a_link_near_the_limit_moves_whole_into_the_next_part() -> None:
    parts = split(render("word word word [a link of words](https://e.org)"), 24)
    assert texts(parts) == ["word word word", "a link of words"]


def test_a_quotation_with_code_keeps_both() -> None:
    parts = split(render("> " + "`code` word\n> " * 40), 60)
    for part in parts:
        assert part.entities[0] == Entity("blockquote", 0, length(part.text))
        assert all(entity.type == "code" for entity in part.entities[1:])


def test_no_part_has_more_entities_than_telegram_takes() -> None:
    parts = split(render(" ".join(f"**{number}**" for number in range(250))))
    assert [len(part.entities) for part in parts] == [MAX_ENTITIES, MAX_ENTITIES, 50]


def test_no_part_has_more_entity_data_than_telegram_takes() -> None:
    markdown = " ".join(f"[{number}](https://e.org/{'x' * 300})" for number in range(60))
    parts = split(render(markdown))
    assert len(parts) == 3
    assert all(sum(len(e.url or "") for e in part.entities) <= MAX_ENTITY_BYTES for part in parts)
    assert sum(len(part.entities) for part in parts) == 60


def test_text_with_more_entities_at_one_place_than_allowed_is_still_cut() -> None:
    crowded = Text("a" * 10, tuple(Entity("bold", 0, 10) for _ in range(150)))
    parts = split(crowded, 5)
    assert "".join(texts(parts)) == "a" * 10
    assert all(len(part.entities) <= MAX_ENTITIES for part in parts)


def test_blanks_at_a_cut_fall_away() -> None:
    assert texts(split(Text("aaaa" + " " * 10 + "bbbb"), 8)) == ["aaaa", "bbbb"]
    assert texts(split(Text("aaaa\n" + "\u200b" * 20 + "\nbbbb"), 8)) == ["aaaa", "bbbb"]


def test_what_telegram_takes_for_nothing_is_known() -> None:
    assert not visible("\u00a0\u200b\u2800\ufeff\ufffc \n")
    assert visible("\u00a0.")
