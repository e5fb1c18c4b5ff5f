"""What a turn's prompt is made of: the rows of a bundle, what they refer to, and their files."""

from __future__ import annotations

import os
import tempfile
from typing import cast

import pytest

from kai.bot.content import Content, FileRef
from kai.bot.download import Download, NotFetched
from kai.bot.inbox import Inbox
from kai.bot.prompt import Prompt, close
from kai.bot.tables import InboxRow
from kai.interfaces import Part


class Rows:
    """In place of the inbox."""

    def __init__(self, *rows: InboxRow) -> None:
        self.rows = {row.id: row for row in rows}

    async def find(self, row_id: int) -> InboxRow | None:
        return self.rows.get(row_id)

    async def members(self, row: InboxRow) -> list[InboxRow]:
        return [each for each in self.rows.values() if each.leader == row.id]


class Files:
    """In place of Telegram; a file named `gone` can't be had."""

    def __init__(self) -> None:
        self.opened: list[int] = []

    async def fetch(self, file: FileRef) -> int:
        if file.name == "gone":
            raise NotFetched("gone: it isn't there")
        with tempfile.TemporaryFile() as made:
            made.write(file.id.encode())
            made.flush()
            self.opened.append(os.dup(made.fileno()))
        return self.opened[-1]


def row(number: int, text: str = "", *, leader: int | None = None, bundle: str = "", **more: object) -> InboxRow:
    """An inbox row; `files` are names, `target` is the row that it continues."""
    files = cast("list[str]", more.get("files", []))
    held = Content(
        files=[FileRef(f"id of {name}", "document", name, "text/plain") for name in files],
        origin=cast(str, more.get("origin", "")),
    )
    target = cast("int | None", more.get("target"))
    return InboxRow(
        number, 7, 100 + number, "alice", 1001, 200 + number, "turn", text, "", target, "running", "g", "b",
        content=held.encode(), bundle=bundle, leader=leader,
    )  # fmt: skip


async def parts(*rows: InboxRow, files: Files | None = None) -> list[Part]:
    """The prompt of the first row, whose descriptors are closed."""
    made = Prompt(cast(Inbox, Rows(*rows)), cast(Download, files or Files()))
    found, descriptors = await made.parts(rows[0])
    close(descriptors)
    return found


async def test_a_file_comes_behind_its_caption_with_its_content() -> None:
    one = row(1, "look", files=["a.txt"])
    made = Prompt(cast(Inbox, Rows(one)), cast(Download, Files()))
    found, descriptors = await made.parts(one)
    assert found == [Part("text", "look"), Part("file", name="a.txt", mime="text/plain", descriptor=0)]
    assert os.pread(descriptors[0], 100, 0) == b"id of a.txt"
    close(descriptors)


async def test_the_parts_of_an_album_are_one_prompt_in_their_order() -> None:
    album = [
        row(1, "two of them", bundle="album:5", files=["a"]),
        row(2, leader=1, bundle="album:5", files=["b"]),
        row(3, "and words", leader=1, bundle="album:5", files=["c"]),
    ]
    found = await parts(*album)
    assert [part.text or part.name for part in found] == ["two of them", "a", "b", "and words", "c"]
    assert [part.descriptor for part in found if part.kind == "file"] == [0, 1, 2]


async def test_forwards_are_one_text_that_names_each_origin() -> None:
    found = await parts(
        row(1, "what is this?", bundle="forward"),
        row(2, "one", leader=1, bundle="forward", origin="Ada, then"),
        row(3, "two", leader=1, bundle="forward", origin="Eve, then"),
    )
    assert found == [
        Part("text", "what is this?\n\n[Forwarded from Ada, then]\none\n\n[Forwarded from Eve, then]\ntwo")
    ]


async def test_a_text_that_was_cut_at_the_limit_is_put_together_without_a_seam() -> None:
    hard, soft = "🙂" * 2048, "x" * 4090
    (found,) = await parts(
        row(1, hard, bundle="long"), row(2, soft, leader=1, bundle="long"), row(3, "end", leader=1, bundle="")
    )
    assert found.text == f"{hard}{soft}\nend"


async def test_a_file_that_can_not_be_had_leaves_no_descriptor_open() -> None:
    files = Files()
    with pytest.raises(NotFetched, match="it isn't there"):
        await parts(row(1, bundle="album:5", files=["a"]), row(2, leader=1, files=["gone"]), files=files)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(files.opened[0])


async def test_a_continuation_repeats_the_words_of_what_was_cut_off_and_no_files() -> None:
    cut = [row(1, "do it", bundle="album:5", files=["a.txt"]), row(2, "all of it", leader=1)]
    (found,) = await parts(row(3, "continue:7.101", target=1), *cut)
    assert "Turn 7.101 was cut off" in found.text
    assert found.text.endswith("> do it\n> [document: a.txt]\n> \n> all of it")


async def test_a_continuation_that_was_cut_off_too_goes_back_to_the_first_message() -> None:
    (found,) = await parts(
        row(3, "continue:7.102", target=2), row(2, "continue:7.101", target=1), row(1, "the words themselves")
    )
    assert found.text.endswith("> the words themselves")


async def test_what_was_cut_off_and_forgotten_is_continued_all_the_same() -> None:
    (found,) = await parts(row(3, "continue:7.101", target=1))
    assert "was cut off" in found.text
