"""Files on their way out: copied whole and safely, shown as what they are, named so that no name does harm."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kai.bot import spool as module
from kai.bot.message import LONGEST_CAPTION, MOST_MESSAGES, Body, File, bodies, captioned, noted
from kai.bot.split import LIMIT
from kai.bot.spool import MOST, MOST_OF_PHOTO, Spool, Unfit, display_name
from kai.bot.stats import shown
from kai.bot.text import length
from kai.demo.botapi.images import grey_png
from kai.interfaces import MemoryText


@pytest.fixture
def memory() -> Iterator[int]:
    descriptor = os.memfd_create("test", os.MFD_CLOEXEC)
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool")


async def test_a_file_is_copied_whole_wherever_its_reader_stands(spool: Spool, memory: int) -> None:
    content = os.urandom(700_000)
    os.write(memory, content)
    taken = await spool.take(memory)
    assert (taken.size, taken.kind) == (700_000, "document")
    assert spool.path(taken.spool).read_bytes() == content
    assert spool.path(taken.spool).stat().st_mode & 0o777 == 0o600
    assert spool.directory.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("head", "size", "kind"),
    [
        (grey_png(3, 3), 0, "photo"),
        (b"\xff\xd8\xff\xe0", 0, "photo"),
        (b"RIFF....WEBPVP8 ", 0, "photo"),
        (grey_png(3, 3), MOST_OF_PHOTO, "photo"),
        (grey_png(3, 3), MOST_OF_PHOTO + 1, "document"),
        (b"GIF89a", 0, "document"),
        (b"%PDF-1.7", 0, "document"),
    ],
)
async def test_a_picture_is_known_by_its_first_bytes_and_its_size(
    spool: Spool, memory: int, head: bytes, size: int, kind: str
) -> None:
    os.write(memory, head)
    os.truncate(memory, max(size, len(head)))
    assert (await spool.take(memory)).kind == kind


async def test_what_is_no_file_or_too_big_or_empty_is_refused_and_leaves_nothing(spool: Spool, memory: int) -> None:
    with pytest.raises(Unfit, match="empty"):
        await spool.take(memory)
    os.truncate(memory, MOST + 1)
    with pytest.raises(Unfit, match=r"50\.0 MB, and Telegram takes 50 MB"):
        await spool.take(memory)
    reading, writing = os.pipe()
    with pytest.raises(Unfit, match="regular"):
        await spool.take(reading)
    os.close(reading)
    os.close(writing)
    assert spool.names() == set()


async def test_a_file_of_exactly_the_limit_is_taken(spool: Spool, memory: int) -> None:
    os.truncate(memory, MOST)
    assert (await spool.take(memory)).size == MOST


async def test_a_file_that_grows_past_the_limit_while_it_is_read_is_refused(
    spool: Spool, memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_check", lambda descriptor: None)
    os.truncate(memory, MOST + 1)
    with pytest.raises(Unfit, match="50 MB"):
        await spool.take(memory)
    assert spool.names() == set()


async def test_a_file_that_cant_be_read_is_refused(spool: Spool, tmp_path: Path) -> None:
    descriptor = os.open(tmp_path / "x", os.O_WRONLY | os.O_CREAT)
    with pytest.raises(Unfit, match="can't be read"):
        await spool.take(descriptor)
    os.close(descriptor)


async def test_the_senders_descriptor_stays_open_and_no_other_is_left(spool: Spool, memory: int) -> None:
    os.write(memory, b"x")
    before = set(Path("/proc/self/fd").iterdir())
    await spool.take(memory)
    await spool.take(memory)
    assert set(Path("/proc/self/fd").iterdir()) == before
    assert len(spool.names()) == 2


async def test_a_sweep_removes_what_was_there_and_no_row_needs(spool: Spool, memory: int) -> None:
    os.write(memory, b"x")
    needed, orphan = [(await spool.take(memory)).spool for _ in range(2)]
    found = spool.names()
    new = (await spool.take(memory)).spool
    assert spool.sweep(found, {needed}) == 1
    assert spool.names() == {needed, new}
    assert orphan not in spool.names()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("report.pdf", "report.pdf"),
        ("../../etc/passwd", "passwd"),
        ("a\\b\\c.txt", "c.txt"),
        ("two\nlines.txt", "twolines.txt"),
        ('say "hi".txt', "say hi.txt"),
        ("invoice\u202efdp.exe", "invoicefdp.exe"),
        ("zero\u200bwidth", "zerowidth"),
        ("..", "file"),
        ("", "file"),
        (".bashrc", "bashrc"),
        ("\ud800x", "\ufffdx"),
        ("x" * 300 + ".tar", "x" * 96 + ".tar"),
        ("y" * 300, "y" * 100),
        ("Grüße 🎉.md", "Grüße 🎉.md"),
    ],
)
def test_a_name_is_one_harmless_part(name: str, shown: str) -> None:
    assert display_name(name) == shown


def test_a_long_answer_is_its_beginning_and_a_document_of_all_of_it() -> None:
    markdown = "\n\n".join(f"**{n}** " + "word " * 500 for n in range(20))
    first, document = bodies(markdown)
    assert first.text.startswith("0 word")
    assert length(first.text) <= LIMIT
    assert document.file == File("answer.md", text=markdown)


@pytest.mark.parametrize("count", [1, MOST_MESSAGES])
def test_what_fits_into_few_messages_is_no_document(count: int) -> None:
    messages = bodies("\n\n".join("x" * 4000 for _ in range(count)))
    assert len(messages) == count
    assert not any(body.file for body in messages)


def test_a_text_is_a_files_caption_where_it_fits() -> None:
    file = File("a.pdf", spool="s")
    (one,) = captioned("**Done**", file)
    assert (one.text, one.entities[0]["type"], one.file) == ("Done", "bold", file)
    assert captioned("", file) == [Body("", file=file)]
    (fits,) = captioned("🎉" * (LONGEST_CAPTION // 2), file)
    assert length(fits.text) == LONGEST_CAPTION
    text, alone = captioned("y" * (LONGEST_CAPTION + 1), file)
    assert (length(text.text), alone) == (LONGEST_CAPTION + 1, Body("", file=file))


def test_a_note_never_takes_the_place_of_a_file() -> None:
    document = Body("All", file=File("a.md", text="x"))
    assert noted([Body("a"), document], "⚠ note") == [Body("a"), document, Body("⚠ note")]
    assert noted([Body("a")], "note") == [Body("a\n\nnote")]
    assert noted([Body("a" * LIMIT)], "note") == [Body("a" * LIMIT), Body("note")]
    assert noted([], "note") == [Body("note")]


def test_a_long_memory_file_is_its_beginning_and_a_document() -> None:
    text = "\n\n".join("- " + "fact " * 600 for _ in range(9))
    first, document = shown(MemoryText("/m/MEMORY.md", text))
    assert first.text.startswith("/m/MEMORY.md\n\n")
    assert document.file == File("MEMORY.md", text=text)
