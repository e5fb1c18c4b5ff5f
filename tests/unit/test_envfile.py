"""env_file of workspaces.yaml: the form of systemd's EnvironmentFile=, and no value in any error."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kai.agent.envfile import EnvFileError, parse


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", {}),
        ("\n\n# A=1\n  ; B=2\n\t\n", {}),
        ("A=1", {"A": "1"}),
        ("A=1\nB=2\nA=3\n", {"A": "3", "B": "2"}),
        ("A=", {"A": ""}),
        ("A=\nB=2\n", {"A": "", "B": "2"}),
        ("export A=1\n  export\tB=2\nexport=3\n", {"A": "1", "B": "2", "export": "3"}),
        ("  A = one two  \t\n", {"A": "one two"}),
        ("A=with = and # and ; in it\n", {"A": "with = and # and ; in it"}),
        ('A=it\'s "so"\n', {"A": 'it\'s "so"'}),
        ("A='single $x \\n \" '\n", {"A": 'single $x \\n " '}),
        ('A="double \\" \\\\ \\$x \\` \\n\' "\n', {"A": "double \" \\ $x ` \\n' "}),
        ('A="two\nlines"\nB=2\n', {"A": "two\nlines", "B": "2"}),
        ("A='two\nlines'\r\nB=2\r\n", {"A": "two\nlines", "B": "2"}),
        ('A="one \\\nline"\n', {"A": "one line"}),
        ("A=one \\\nline\nB=2\n", {"A": "one line", "B": "2"}),
        ("A='a'\"b\" 'c'\n", {"A": "abc"}),
        ("A='a'b c\n", {"A": "ab c"}),
        ("A=\\'x\\ \\ \n", {"A": "'x  "}),
        ("A=x\\\\\n", {"A": "x\\"}),
        ("A=x\\", {"A": "x"}),
        ("A=''\n", {"A": ""}),
        ("\ufeffA=ü€\n", {"A": "ü€"}),
        ("_A1=x\n", {"_A1": "x"}),
    ],
)
def test_lines_are_read_as_systemd_reads_them(text: str, found: dict[str, str]) -> None:
    assert parse(text.encode()) == found


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"A=1\nhunter2\n", "line 2: expected NAME=VALUE, or a comment after #"),
        (b"=hunter2", "line 1: expected NAME=VALUE"),
        (b"1A=hunter2", "line 1: expected NAME=VALUE"),
        (b"A-B=hunter2", "line 1: expected NAME=VALUE"),
        (b"\xc3\xa4=hunter2", "line 1: expected NAME=VALUE"),
        (b"export A B=hunter2", "line 1: expected NAME=VALUE"),
        (b"A" * 200 + b"=hunter2", "line 1: expected NAME=VALUE"),
        (b"A=1\n\nB='hunter2\nC=3\n", "line 3: has a quote that isn't closed"),
        (b'A="hunter2\\"\n', "line 1: has a quote that isn't closed"),
        (b"A='1'\"hunter2", "line 1: has a quote that isn't closed"),
        (b"A=1\nB=\xff hunter2\n", "line 2: is not UTF-8"),
        (b"A=1\nB=hunter2\0\n", "line 2: has a NUL character"),
        (b"A='1\n2'\nhunter2", "line 3: expected NAME=VALUE"),
    ],
)
def test_a_bad_line_is_told_by_its_number_and_never_by_its_value(data: bytes, message: str) -> None:
    with pytest.raises(EnvFileError) as caught:
        parse(data)
    assert str(caught.value).startswith(message)
    assert "hunter2" not in str(caught.value)


@given(st.dictionaries(st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,9}", fullmatch=True), st.text()))
def test_every_value_can_be_written(values: dict[str, str]) -> None:
    values = {name: text.replace("\0", "").replace("\r", "") for name, text in values.items()}
    quoted = {name: text.replace("\\", "\\\\").replace('"', '\\"') for name, text in values.items()}
    lines = "".join(f'{name}="{text}"\n' for name, text in quoted.items())
    assert parse(lines.encode("utf-8", "surrogatepass")) == values


@given(st.binary(max_size=200))
def test_whatever_stands_in_the_file_is_read_or_refused(data: bytes) -> None:
    try:
        found = parse(data)
    except EnvFileError as error:
        assert str(error).startswith("line ")
    else:
        assert all("\0" not in text for text in found.values())


def test_a_file_of_the_largest_size_is_read_at_once() -> None:
    assert len(parse(b"A=" + b"\\x" * 32767)["A"]) == 32767
    assert len(parse(b'A="' + b"\\\\" * 32000 + b'"')["A"]) == 32000
    with pytest.raises(EnvFileError):
        parse(b"A='" + b"x\n" * 32000)
