"""Files on their way to a chat (S8) and answers that are too long for messages (S3), through the real bot."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from kai.demo.botapi.faults import Fault
from kai.demo.botapi.images import grey_png
from kai.demo.botapi.views import MessageView
from kai.interfaces import Attachment, Deliver, Drop, Queue, Stored
from kai.lib.client import Client
from kai.lib.varlink import InvalidParameter, Unavailable

from .conftest import ALICE, Stage

BIG = 45 << 20


@contextmanager
def memory(content: bytes, size: int = 0) -> Iterator[int]:
    """An unnamed file, as a supervisor hands it over."""
    descriptor = os.memfd_create("test", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, content)
        if size:
            os.truncate(descriptor, size)
        yield descriptor
    finally:
        os.close(descriptor)


def bot(stage: Stage) -> Client:
    return Client(stage.launcher.runtime / "bot.sock")


async def deliver(
    stage: Stage, content: bytes, name: str, text: str = "", *, key: str = "k", size: int = 0, user: str = "alice"
) -> Stored:
    with memory(content, size) as descriptor:
        call = Deliver(key=key, user=user, text=text, file=Attachment(name, 0))
        return await bot(stage).call(call, descriptors=[descriptor])


def files(stage: Stage) -> list[MessageView]:
    return [one for one in stage.api.messages(ALICE) if one.by_bot and ("document" in one.wire or "photo" in one.wire)]


async def arrived(stage: Stage, count: int = 1, timeout: float = 30) -> list[MessageView]:
    await stage.api.wait_for(lambda: len(files(stage)) >= count, timeout=timeout)
    return files(stage)


def spool(stage: Stage) -> Path:
    return stage.launcher.directory / "state/bot/spool"


async def emptied(stage: Stage) -> None:
    async with asyncio.timeout(10):
        while any(spool(stage).iterdir()):
            await asyncio.sleep(0.02)


async def test_a_file_arrives_as_it_is_with_its_name_and_its_caption_and_leaves_the_spool(stage: Stage) -> None:
    content = os.urandom(300_000)
    await deliver(stage, content, "../report\n.bin", "**All** of it")
    (message,) = await arrived(stage)
    assert message.wire["document"]["file_name"] == "report.bin"
    assert stage.api.file_bytes(message.wire["document"]["file_id"]) == content
    assert (message.text, message.entities) == ("All of it", [{"type": "bold", "offset": 0, "length": 3}])
    await emptied(stage)


async def test_a_picture_is_a_photo_and_one_that_telegram_refuses_a_document(stage: Stage) -> None:
    await deliver(stage, grey_png(30, 30), "good.png", key="1")
    await deliver(stage, grey_png(3000, 3), "long.png", key="2")
    await deliver(stage, b"\x89PNG\r\n\x1a\nno picture at all", "bad.png", key="3")
    shown = await arrived(stage, 3)
    assert ["photo" in one.wire for one in shown] == [True, False, False]
    assert [call.status for call in stage.api.calls("sendPhoto")] == [200, 400, 400]
    assert [call.status for call in stage.api.calls("sendDocument")] == [200, 200]
    await emptied(stage)


async def test_the_same_delivery_again_sends_and_keeps_nothing_new(stage: Stage) -> None:
    first = await deliver(stage, b"x", "a.txt")
    assert await deliver(stage, b"x", "a.txt") == first
    await arrived(stage)
    await emptied(stage)
    assert len(files(stage)) == 1


async def test_what_cant_be_sent_is_refused_with_the_reason_and_leaves_nothing(stage: Stage) -> None:
    with pytest.raises(InvalidParameter, match=r"big: it has 50\.0 MB, and Telegram takes 50 MB"):
        await deliver(stage, b"x", "big", size=(50 << 20) + 1)
    with pytest.raises(InvalidParameter, match="empty"):
        await deliver(stage, b"", "nothing")
    with pytest.raises(InvalidParameter, match="nobody is named"):
        await deliver(stage, b"x", "a", user="mallory")
    with pytest.raises(InvalidParameter, match=r"file\.descriptor"):
        await bot(stage).call(Deliver(key="k", user="alice", text="", file=Attachment("a", 0)))
    directory = os.open("/", os.O_RDONLY)
    with pytest.raises(InvalidParameter, match="regular"):
        await bot(stage).call(Deliver(key="k", user="alice", text="", file=Attachment("a", 0)), descriptors=[directory])
    os.close(directory)
    assert not spool(stage).exists() or not any(spool(stage).iterdir())
    assert files(stage) == []


async def test_a_large_file_is_never_whole_in_memory_and_holds_up_no_command(stage: Stage) -> None:
    await deliver(stage, b"x", "warm-up", key="0")
    await arrived(stage)
    before = peak(stage)
    stage.api.add_fault(Fault(kind="hold", method="sendDocument", seconds=6))
    await deliver(stage, b"x", "large.bin", size=BIG, key="1")
    await bot(stage).call(Deliver(key="2", user="alice", text="behind the file"))
    await stage.api.wait_for(lambda: len(stage.api.calls("sendDocument")) == 2, timeout=30)
    stage.say("/help")
    await stage.answer("/stats", timeout=5)
    assert not any("behind" in text for text in stage.shown()), "messages keep their order"
    (_, large) = await arrived(stage, 2)
    assert large.wire["document"]["file_size"] == BIG
    await stage.answer("behind the file", after=large.message_id)
    assert peak(stage) - before < 12, "MiB"


def peak(stage: Stage) -> float:
    status = Path(f"/proc/{stage.launcher.pid('kai-bot')}/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


async def test_a_kill_at_any_moment_of_a_delivery_loses_and_leaks_nothing(stage: Stage) -> None:
    """The caller repeats what was not confirmed, with the same key, as every caller does."""
    for number in range(12):
        stage.api.add_fault(Fault(kind="hold", method="sendDocument", seconds=0.05))
        sending = asyncio.ensure_future(deliver(stage, b"x" * 2_000_000, f"{number}.bin", key=str(number)))
        await asyncio.sleep(0.004 * number)
        stage.launcher.kill("kai-bot", signal.SIGKILL)
        await stage.launcher.wait_exit("kai-bot")
        with suppress(Unavailable):
            await sending
        await stage.launcher.wait_ready("kai-bot")
        await deliver(stage, b"x" * 2_000_000, f"{number}.bin", key=str(number))

    def doubtful() -> list[MessageView]:
        return [one for one in stage.api.messages(ALICE) if "may not have arrived" in (one.text or "")]

    def accounted() -> bool:
        return {one.wire["document"]["file_name"] for one in files(stage)} | {
            (one.text or "").split()[3] for one in doubtful()
        } == {f"{number}.bin" for number in range(12)}

    await stage.api.wait_for(accounted, timeout=30)
    await stage.launcher.restart("kai-bot")
    left = [entry for entry in (await bot(stage).call(Queue())).entries if entry.state == "unknown"]
    async with asyncio.timeout(10):
        while len(list(spool(stage).iterdir())) != len(left):
            await asyncio.sleep(0.05)
    for entry in left:
        assert (await bot(stage).call(Drop(id=entry.id))).state == "dropped"
    await emptied(stage)
    names = [one.wire["document"]["file_name"] for one in files(stage)]
    assert len(names) == len(set(names)), "none arrives twice"


async def test_an_answer_of_more_than_five_messages_is_its_beginning_and_a_document(stage: Stage) -> None:
    stage.say("! seq 1 1300 | sed 's/$/ and some words/'")
    first = await stage.answer("1 and some words")
    (document,) = await arrived(stage)
    assert document.message_id > first.message_id
    assert document.wire["document"]["file_name"] == "answer.md"
    text = stage.api.file_bytes(document.wire["document"]["file_id"]).decode()
    assert [line.split()[0] for line in text.splitlines() if "words" in line] == [str(n) for n in range(1, 1301)]
    assert len([text for text in stage.shown() if "and some words" in text]) == 1
