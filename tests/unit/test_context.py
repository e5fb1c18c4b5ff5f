"""What the supervisor itself reads for the agent: its memory, which is hostile ground, and the history."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from kai.agent import history
from kai.agent.context import MEMORY_LIMIT, memory_text, read_by_claude


def resident() -> int:
    """Own memory in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20


# ---- memory ----


def test_the_memory_is_given_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "MEMORY.md").write_text("Likes tea.\n")
    found = memory_text(tmp_path)
    assert (found.path, found.text, found.note) == (f"{tmp_path}/MEMORY.md", "Likes tea.\n", "")


def test_no_memory_yet_and_an_empty_one_are_said(tmp_path: Path) -> None:
    assert memory_text(tmp_path).note == "It does not exist yet."
    assert memory_text(tmp_path / "gone").note == "It does not exist yet."
    (tmp_path / "MEMORY.md").write_text("\n")
    assert memory_text(tmp_path).note == "It is empty."


def test_a_memory_of_exactly_the_limit_is_whole_and_one_byte_more_is_told(tmp_path: Path) -> None:
    (tmp_path / "MEMORY.md").write_bytes(b"x" * MEMORY_LIMIT)
    assert memory_text(tmp_path).note == ""
    (tmp_path / "MEMORY.md").write_bytes(b"x" * MEMORY_LIMIT + b"y")
    found = memory_text(tmp_path)
    assert found.text == "x" * MEMORY_LIMIT
    assert found.note == "Only its first 64 KiB are given; it should be shorter."


@pytest.mark.parametrize("cut", [b"\xff\xfe tea", ("x" * (MEMORY_LIMIT - 1) + "ü").encode()])
def test_a_memory_that_is_no_utf8_is_given_with_marks(tmp_path: Path, cut: bytes) -> None:
    (tmp_path / "MEMORY.md").write_bytes(cut)
    assert "\ufffd" in memory_text(tmp_path).text


@pytest.mark.parametrize("what", ["link", "link out", "pipe", "directory", "socket", "sparse", "linked directory"])
def test_whatever_stands_in_the_memorys_place_costs_neither_time_nor_memory(tmp_path: Path, what: str) -> None:
    (tmp_path / "secret").write_text("of the supervisor")
    directory = tmp_path / "memory"
    directory.mkdir()
    path = directory / "MEMORY.md"
    expected = "It can't be read"
    if what == "link":
        (directory / "other").write_text("of the supervisor")
        path.symlink_to("other")
    elif what == "link out":
        path.symlink_to(tmp_path / "secret")
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "directory":
        path.mkdir()
    elif what == "socket":
        import socket

        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(os.fspath(path))
    elif what == "sparse":
        with path.open("wb") as file:
            file.truncate(1 << 30)
        expected = "Only its first 64 KiB"
    else:
        (directory / "real").mkdir()
        (directory / "real/MEMORY.md").write_text("of the supervisor")
        (tmp_path / "turned").symlink_to(directory / "real")
        directory = tmp_path / "turned"
    before, began = resident(), time.monotonic()
    found = memory_text(directory)
    assert time.monotonic() - began < 1
    assert resident() - before < 8
    assert found.note.startswith(expected)
    assert "of the supervisor" not in found.text + found.note
    assert len(found.text) <= MEMORY_LIMIT


def test_an_unreadable_memory_is_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("kai.lib.hostile.open_beneath", denied)
    assert memory_text(tmp_path).note == f"It can't be read: {tmp_path}/MEMORY.md: Permission denied."


def test_claude_reads_its_own_file_always_and_those_of_a_trusted_workspace() -> None:
    site, home = Path("/srv/work/site"), Path("/home/alice")
    assert read_by_claude(site, home, trusted=False) == {home / ".claude/CLAUDE.md"}
    trusted = read_by_claude(site, home, trusted=True)
    assert {site / "CLAUDE.md", site / ".claude/CLAUDE.md", site.parent / "CLAUDE.md"} <= trusted
    assert home / "CLAUDE.md" not in trusted


# ---- history ----


def today(directory: Path) -> Path:
    return directory / f"{datetime.now(UTC):%Y-%m-%d}.jsonl"


def test_a_message_is_a_line_of_todays_file(tmp_path: Path) -> None:
    history.append(tmp_path, dir="user", turn="1.2", text="two\nlines\u2028ü")
    history.append(tmp_path, dir="assistant", turn="1.2", text="yes")
    lines = today(tmp_path).read_bytes().splitlines()
    first, second = (msgspec.json.decode(line, type=history.Line) for line in lines)
    assert (first.dir, first.turn, first.text, second.text) == ("user", "1.2", "two\nlines\u2028ü", "yes")
    assert datetime.fromisoformat(first.ts).utcoffset() == datetime.now(UTC).utcoffset()
    assert today(tmp_path).stat().st_mode & 0o007 == 0


def test_a_line_that_was_cut_off_costs_itself_and_no_other(tmp_path: Path) -> None:
    today(tmp_path).write_bytes(b'{"ts":"2026-01-01","dir":"user","tu')
    history.append(tmp_path, dir="user", turn="1.2", text="after it")
    history.append(tmp_path, dir="user", turn="1.3", text="and more")
    assert [line.text for line in history.recent(tmp_path)] == ["after it", "and more"]


def test_history_never_goes_over_a_link(tmp_path: Path) -> None:
    (tmp_path / "history").mkdir()
    today(tmp_path / "history").symlink_to(tmp_path / "outside")
    history.append(tmp_path / "history", dir="user", turn="1.2", text="x")
    assert not (tmp_path / "outside").exists()


def test_the_last_messages_are_recalled_over_days_each_cut(tmp_path: Path) -> None:
    def line(text: str) -> bytes:
        return msgspec.json.encode(history.Line(ts="t", dir="user", turn="1", text=text)) + b"\n"

    for day in range(1, 4):
        (tmp_path / f"2026-01-0{day}.jsonl").write_bytes(b"".join(line(f"{day}-{n}") for n in range(8)))
    found = [each.text for each in history.recent(tmp_path)]
    assert found == [*(f"1-{n}" for n in range(4, 8)), *(f"{day}-{n}" for day in (2, 3) for n in range(8))]
    (tmp_path / "2026-01-04.jsonl").write_bytes(line("x" * 501) * 30)
    found = [each.text for each in history.recent(tmp_path)]
    assert found == ["x" * 500 + "…"] * 20


def test_a_day_of_many_megabytes_is_read_from_its_end(tmp_path: Path) -> None:
    path = tmp_path / "2026-01-01.jsonl"
    message = msgspec.json.encode(history.Line(ts="t", dir="user", turn="1", text="x" * 100_000)) + b"\n"
    with path.open("wb") as file:
        for _ in range(1500):
            file.write(message)
    before, began = resident(), time.monotonic()
    assert len(history.recent(tmp_path)) == 20
    assert time.monotonic() - began < 1
    assert resident() - before < 60


def test_a_history_that_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "2026-01-01.jsonl").mkdir()
    assert history.recent(tmp_path) == []
    assert history.recent(tmp_path / "gone") == []
