"""Reading a file and its YAML: `kai.config.source`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kai.config import ConfigError
from kai.config.source import parse, read


def refused(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text, "users.yaml")
    return str(caught.value)


def test_a_missing_file_is_none(tmp_path: Path) -> None:
    assert read(tmp_path / "kai.yaml") is None


def test_a_file_of_one_mebibyte_is_read_and_one_byte_more_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "kai.yaml"
    file.write_bytes(b"#" * (1 << 20))
    assert read(file) == "#" * (1 << 20)
    file.write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(ConfigError, match=r"kai\.yaml: is larger than 1 MiB"):
        read(file)


def test_a_file_that_may_not_be_read_is_a_fault_that_names_account_owner_and_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_args: object, **_kw: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", denied)
    monkeypatch.setattr(os, "geteuid", lambda: 4294967)
    with pytest.raises(ConfigError) as caught:
        read(tmp_path / "kai.yaml")
    assert str(caught.value).startswith(f"{tmp_path}/kai.yaml: the account uid 4294967 may not read it")
    assert "root:kai-config with mode 0640" in str(caught.value)


@pytest.mark.parametrize("kind", ["directory", "fifo", "loop"])
def test_what_is_no_regular_file_is_refused_without_waiting_for_it(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "kai.yaml"
    if kind == "directory":
        file.mkdir()
    elif kind == "fifo":
        os.mkfifo(file)
    else:
        file.symlink_to(file)
    with pytest.raises(ConfigError, match=r"kai\.yaml: (is not a regular file|can't be opened)"):
        read(file)


def test_bytes_that_are_no_text_are_refused_with_their_line(tmp_path: Path) -> None:
    file = tmp_path / "kai.yaml"
    file.write_bytes(b"budget: 1\nspec_dir: \xff\n")
    with pytest.raises(ConfigError, match=r"kai\.yaml:2: byte 20 is not UTF-8"):
        read(file)


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    file = tmp_path / "kai.yaml"
    file.write_bytes(b"\xef\xbb\xbfbudget: 1\n")
    assert parse(read(file) or "", "kai.yaml") == {"budget": 1}


def test_only_true_false_null_and_decimal_numbers_are_more_than_text() -> None:
    text = "[on, Off, yes, ~, ~/x, 010, 0x1f, 1_000, 12:30, 2026-01-01, 1e3, .inf, '5', +1]"
    words = ["on", "Off", "yes", "~", "~/x", "010", "0x1f", "1_000", "12:30", "2026-01-01", "1e3", ".inf", "5", "+1"]
    assert parse(text, "x") == words
    assert parse("[true, False, null, {a: }, 5, -5, 0, 1.5, -.5, 1.0e3]", "x") == [
        True,
        False,
        None,
        {"a": None},
        5,
        -5,
        0,
        1.5,
        -0.5,
        1000.0,
    ]


def test_keys_stay_as_written() -> None:
    assert parse("{1: a, true: b, ~/x: c, ON: d}", "x") == {"1": "a", "true": "b", "~/x": "c", "ON": "d"}


def test_an_empty_document_is_none() -> None:
    assert parse("", "x") is None
    assert parse("# nothing\n", "x") is None


def test_a_key_that_stands_twice_is_refused_with_both_places() -> None:
    assert refused("users:\n- name: a\n  role: user\n  name: b\n") == (
        'users.yaml:4:3: the key "name" stands twice, first in line 2'
    )
    assert refused("{a: 1, 'a': 2}") == 'users.yaml:1:8: the key "a" stands twice, first in line 1'


def test_the_same_key_in_two_mappings_is_no_double() -> None:
    assert parse("[{a: 1}, {a: 2}, {b: {a: 3}}]", "x") == [{"a": 1}, {"a": 2}, {"b": {"a": 3}}]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("a: &x 1", "users.yaml:1:4: anchors and aliases"),
        ("a: &x [1]\nb: *x", "users.yaml:1:4: anchors and aliases"),
        ("a: !!python/object/apply:os.system [ls]", "users.yaml:1:4: tags (!)"),
        ("a: !!str 5", "users.yaml:1:4: tags (!)"),
        ("a: 1\n---\nb: 2", "users.yaml:2:1: a second document"),
        ("? [a, b]\n: 1", "users.yaml:1:3: a list or mapping is used as a key"),
        ("[" * 40, "users.yaml:1:33: nested deeper than 32 levels"),
        ("a: [1\n", "users.yaml:2:1: not valid YAML: while parsing a flow sequence did not find expected"),
        ("a: b: c", "users.yaml:1:5: not valid YAML: mapping values are not allowed"),
        ("a:\n\t- b", "users.yaml:2:1: not valid YAML: while scanning for the next token found character"),
    ],
)
def test_what_is_not_plain_yaml_is_refused_with_line_and_column(text: str, place: str) -> None:
    assert refused(text).startswith(place)


def test_control_characters_and_lone_surrogates_are_refused() -> None:
    assert refused("a: 1\nb: \x07\n").startswith("users.yaml")
    assert refused("a: \ud800").startswith("users.yaml: not valid YAML")


def test_a_fault_is_always_one_printable_line() -> None:
    fault = refused('"a\\nb\\e[1m": 1\n"a\\nb\\e[1m": 2')
    assert fault.isprintable()
    assert 'the key "a\\nb\\x1b[1m" stands twice' in fault
