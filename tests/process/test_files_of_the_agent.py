"""Files in and out at the supervisor: what a user sends is there before the turn begins, and what his agent sends is
read with the agent's rights and from nowhere else."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kai.agent import door as the_door
from kai.agent import sending
from kai.agent.sending import Unsendable
from kai.config import User
from kai.demo.launcher import python
from kai.interfaces import Attachment, Deliver, Event, FileSent, Join, Part, SendFile, Start, Stored, UnknownTurn
from kai.lib.client import Client
from kai.lib.daemon import Daemon
from kai.lib.peers import Peer, Peers
from kai.lib.server import Server
from kai.lib.varlink import Busy, InvalidParameter

from .conftest import ALICE, Stage

PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)

# ---- in ----


class Alice:
    """Her supervisor, asked directly."""

    def __init__(self, stage: Stage) -> None:
        self.base = stage.launcher.directory / "state/users/alice"
        self.client = Client(stage.launcher.runtime / "agent/alice.sock")

    async def start(self, turn: str, *files: tuple[str, bytes], caption: str = "") -> Event:
        """The end of a turn whose prompt is the caption and the files."""
        given = []
        prompt = [Part(kind="text", text=caption)] if caption else []
        for number, (name, content) in enumerate(files):
            given.append(os.memfd_create(name))
            os.write(given[-1], content)
            prompt.append(Part(kind="file", name=name, descriptor=number))
        try:
            async with aclosing(await self.client.open(Start(turn=turn, prompt=prompt), descriptors=given)) as events:
                return [event async for event in events][-1]
        finally:
            for each in given:
                os.close(each)

    async def join(self, turn: str) -> Event:
        async with aclosing(await self.client.open(Join(turn=turn))) as events:
            return [event async for event in events][-1]

    def stored(self) -> list[str]:
        return sorted(str(path.relative_to(self.base / "files")) for path in (self.base / "files").rglob("*.*"))

    def history(self) -> list[dict[str, Any]]:
        (day,) = (self.base / "history").iterdir()
        return [json.loads(line) for line in day.read_text().splitlines()]


@pytest.fixture
async def alice(stage: Stage) -> Alice:
    made = Alice(stage)
    await made.start("7.0", caption="say ready")  # the supervisor has made its directories
    return made


async def test_the_agent_gets_the_files_of_its_user_by_path_and_images_as_images(alice: Alice) -> None:
    done = await alice.start("7.1", ("notes.txt", b"hello"), ("cat.png", PNG), caption="look at these")
    day, _ = alice.stored()[0].split("/")
    place = alice.base / "files" / day
    assert f"I can read `{place}/7.1-notes.txt`: 5 bytes." in done.text
    assert f"I can read `{place}/7.1-cat.png`: {len(PNG)} bytes." in done.text
    assert done.text.count("I was shown an image") == 1
    assert f"I was shown an image: image/png, {len(PNG)} bytes." in done.text
    told = [line for line in alice.history() if line["turn"] == "7.1"]
    assert told[0]["text"] == "look at these"
    assert told[0]["media"] == [f"{place}/7.1-notes.txt", f"{place}/7.1-cat.png"]


async def test_a_turn_asked_for_twice_has_its_files_once(alice: Alice) -> None:
    first = await alice.start("7.1", ("a.txt", b"1"), ("a.txt", b"2"))
    stored = alice.stored()
    assert len(stored) == 2
    assert await alice.start("7.1", ("a.txt", b"1"), ("a.txt", b"2"), ("b.txt", b"3")) == first
    assert alice.stored() == stored


async def test_a_turn_whose_files_cannot_be_stored_did_not_begin(alice: Alice) -> None:
    files = alice.base / "files"
    files.rmdir()
    files.write_text("in the way")
    with pytest.raises(Busy, match="the files can't be stored in"):
        await alice.start("7.1", ("a.txt", b"1"), caption="hello")
    with pytest.raises(UnknownTurn):
        await alice.join("7.1")
    files.unlink()
    files.mkdir()
    assert "1 bytes" in (await alice.start("7.1", ("a.txt", b"1"), caption="hello")).text
    assert [line["turn"] for line in alice.history()].count("7.1") == 2


async def test_a_turn_with_something_that_is_no_file_is_refused_and_did_not_begin(alice: Alice) -> None:
    reading, writing = os.pipe()
    call = Start(turn="7.1", prompt=[Part(kind="file", name="a.txt", descriptor=0)])
    with pytest.raises(InvalidParameter, match=r"a\.txt: descriptor 0 is no file"):
        async with aclosing(await alice.client.open(call, descriptors=[reading])) as events:
            await anext(events)
    os.close(reading)
    with pytest.raises(BrokenPipeError):
        os.write(writing, b"x")  # the supervisor has closed its own
    os.close(writing)
    with pytest.raises(UnknownTurn):
        await alice.join("7.1")


async def test_who_goes_away_while_files_are_copied_leaves_a_turn_that_runs(alice: Alice) -> None:
    given = os.memfd_create("big")
    os.ftruncate(given, 20_000_000)
    call = Start(turn="7.1", prompt=[Part(kind="file", name="big.bin", descriptor=0)])
    await (await alice.client.open(call, descriptors=[given])).aclose()
    os.close(given)
    async with asyncio.timeout(20):
        while True:
            try:
                assert "20000000 bytes" in (await alice.join("7.1")).text
                break
            except UnknownTurn:
                await asyncio.sleep(0.05)


# ---- out ----


class Bot:
    """What of kai-bot takes files; it keeps what it got."""

    def __init__(self) -> None:
        self.got: list[tuple[Deliver, bytes, int]] = []
        self.refuses: Exception | None = None

    async def deliver(self, peer: Peer, call: Deliver, descriptors: list[int]) -> Stored:
        if self.refuses:
            raise self.refuses
        (given,) = descriptors
        self.got.append((call, os.pread(given, 100, 0), fcntl.fcntl(given, fcntl.F_GET_SEALS)))
        with pytest.raises(PermissionError):
            os.ftruncate(given, 0)
        return Stored(id=len(self.got))


class Desk:
    """A user's directory, and the way from his agent's files to the bot."""

    def __init__(self, directory: Path) -> None:
        self.base = directory / "alice"
        self.work = self.base / "work"
        for name in ("work", "files", "history", "memory", "state"):
            (self.base / name).mkdir(parents=True)
        self.door = the_door.command(msgspec.convert({"telegram_id": 1, "name": "alice"}, User), one_uid=True)
        self.bot, self.socket = Bot(), directory / "bot.sock"

    def serve(self) -> socket.socket:
        front = socket.socket(socket.AF_UNIX)
        front.bind(os.fspath(self.socket))
        front.listen(8)
        front.setblocking(False)
        made = Daemon("test", {"bot": front}, instance="", one_uid=True)
        Server(made, "bot", Peers(one_uid=True), {Deliver: self.bot.deliver})
        return front

    async def send(self, path: str, *, workspace: Path | None = None) -> FileSent:
        given = {"door": self.door, "base": self.base, "workspace": workspace or self.work}
        return await sending.send(self.socket, "alice", path, "the caption", **given)  # type: ignore[arg-type]


@pytest.fixture
async def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Desk]:
    for name, value in python()[1].items():
        monkeypatch.setenv(name, value)
    made = Desk(tmp_path)
    front = made.serve()
    before = len(list(Path("/proc/self/fd").iterdir()))
    yield made
    await asyncio.sleep(0)
    front.close()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1


async def test_a_file_of_the_workspace_or_of_the_user_reaches_the_bot_sealed(desk: Desk) -> None:
    (desk.work / "sub").mkdir()
    (desk.work / "sub/report.pdf").write_bytes(b"%PDF")
    (desk.base / "files/cat.jpg").write_bytes(b"meow")
    for path in ("sub/report.pdf", f"{desk.work}/sub/report.pdf", "sub/../sub/report.pdf"):
        assert await desk.send(path) == FileSent(name="report.pdf", size=4, id=len(desk.bot.got))
    assert await desk.send(f"{desk.base}/files/cat.jpg") == FileSent(name="cat.jpg", size=4, id=4)
    assert [content for _, content, _ in desk.bot.got] == [b"%PDF"] * 3 + [b"meow"]
    assert {seals for _, _, seals in desk.bot.got} == {sending.SEALS}
    calls = [call for call, _, _ in desk.bot.got]
    assert len({call.key for call in calls}) == 4, "each is a sending of its own"
    assert [(call.user, call.text) for call in calls] == [("alice", "the caption")] * 4


async def test_a_big_file_goes_through_whole(desk: Desk) -> None:
    with (desk.work / "big.bin").open("wb") as file:
        file.write(b"begin")
        file.truncate(sending.MOST)
    assert (await desk.send("big.bin")).size == sending.MOST
    assert desk.bot.got[0][1].startswith(b"begin")


def make_link(desk: Desk) -> None:
    (desk.base.parent / "secret").write_text("s")
    (desk.work / "bad").symlink_to(desk.base.parent / "secret")


def make_link_inside(desk: Desk) -> None:
    (desk.work / "good").write_text("s")
    (desk.work / "bad").symlink_to("good")


def make_linked_directory(desk: Desk) -> None:
    (desk.base / "history/day.jsonl").write_text("s")
    (desk.work / "bad").symlink_to(desk.base / "history")


def make_pipe(desk: Desk) -> None:
    os.mkfifo(desk.work / "bad")


def make_socket(desk: Desk) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.fspath(desk.work / "bad"))


def make_directory(desk: Desk) -> None:
    (desk.work / "bad").mkdir()


def make_empty(desk: Desk) -> None:
    (desk.work / "bad").touch()


def make_huge(desk: Desk) -> None:
    with (desk.work / "bad").open("wb") as file:
        file.truncate(sending.MOST + 1)


def make_own(desk: Desk) -> None:
    for name in sending.NEVER:
        (desk.base / name / "bad").write_text("s")


def nothing(desk: Desk) -> None: ...


BAD: list[tuple[Callable[[Desk], None], str, str]] = [
    (nothing, "bad", "there is no such file in /"),
    (nothing, "bad/worse", "there is no such file in /"),
    (make_link, "bad", "symbolic link"),
    (make_link_inside, "bad", "symbolic link"),
    (make_linked_directory, "bad/day.jsonl", "symbolic link"),
    (make_pipe, "bad", "not a regular file"),
    (make_directory, "bad", "not a regular file"),
    (make_directory, "bad/", "expected that of a file"),
    (make_socket, "bad", "No such device or address"),
    (make_empty, "bad", "it is empty"),
    (make_huge, "bad", "more than the 50 MB that Telegram takes"),
    (nothing, "../../../../../../../../etc/passwd", "leads out of /"),
    (nothing, "/etc/passwd", "files are sent from the current workspace, .*; copy it there first"),
    (nothing, "{work}/../../../../../../../etc/passwd", "leads out of /"),
    (nothing, "{base}/files/../history/bad", "leads out of /"),
    (make_own, "{base}/history/bad", "files are sent from the current workspace"),
    (make_own, "{base}/memory/bad", "files are sent from the current workspace"),
    (make_own, "{base}/state/bad", "files are sent from the current workspace"),
    (nothing, "/proc/self/environ", "files are sent from the current workspace"),
    (nothing, "", "expected that of a file"),
    (nothing, "a\0b", "expected that of a file"),
]


@pytest.mark.parametrize(("make", "path", "reason"), BAD, ids=lambda value: getattr(value, "__name__", None))
async def test_what_is_not_to_be_sent_is_refused_with_its_reason(
    desk: Desk, make: Callable[[Desk], None], path: str, reason: str
) -> None:
    make(desk)
    with pytest.raises(Unsendable, match=f"(?s)^path: .*{reason}") as refused:
        await asyncio.wait_for(desk.send(path.format(base=desk.base, work=desk.work)), 20)
    assert "\n" not in str(refused.value)
    assert desk.bot.got == []


@pytest.mark.parametrize("name", sending.NEVER)
async def test_history_memory_and_state_stay_even_where_a_workspace_reaches_them(desk: Desk, name: str) -> None:
    """A workspace that is, or leads to, the user's own directory: the path in it is not what counts."""
    (desk.base / name / "bad").write_text("s")
    (desk.base.parent / "way").symlink_to(desk.base.parent)
    wanted = [
        (desk.base, f"{name}/bad"),
        (desk.base.parent, f"alice/{name}/bad"),
        (desk.base / name, "bad"),
        (desk.base.parent / "way/alice", f"{name}/bad"),
    ]
    for workspace, path in wanted:
        with pytest.raises(Unsendable, match=f"lies in {desk.base}/{name}, and nothing is given out from there"):
            await desk.send(path, workspace=workspace)
    (desk.base / f"{name}-notes").write_text("another name")
    assert (await desk.send(f"{name}-notes", workspace=desk.base)).size == 12
    assert len(desk.bot.got) == 1


async def test_a_name_that_breaks_lines_is_made_safe(desk: Desk) -> None:
    (desk.work / "a\nb\x1b[31m.txt").write_text("x")
    assert (await desk.send("a\nb\x1b[31m.txt")).name == "a_b__31m.txt"
    assert desk.bot.got[0][0].file == Attachment(name="a_b__31m.txt", descriptor=0)


async def test_a_file_that_the_agent_may_not_read_is_refused(desk: Desk) -> None:
    (desk.work / "closed").write_text("x")
    (desk.work / "closed").chmod(0)
    if os.geteuid() == 0:  # who may read everything
        desk.door = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--", *desk.door)
    with pytest.raises(Unsendable, match="the agent's account has no right to it"):
        await desk.send("closed")


async def test_a_link_that_is_swapped_in_meanwhile_gives_nothing_away(desk: Desk) -> None:
    """The file becomes a link to a secret and back, as fast as it can, while it is sent again and again."""
    secret, path, spare = desk.base.parent / "secret", desk.work / "f", desk.work / "spare"
    secret.write_text("secret")
    path.write_text("mine")
    ended = threading.Event()

    def swap() -> None:
        while not ended.is_set():
            spare.symlink_to(secret)
            spare.rename(path)
            spare.write_text("mine")
            spare.rename(path)

    swapping = threading.Thread(target=swap)
    swapping.start()
    refused = 0
    try:
        for _ in range(20):
            try:
                await desk.send("f")
            except Unsendable as error:
                assert "symbolic link" in str(error) or "no such file" in str(error)
                refused += 1
    finally:
        ended.set()
        swapping.join()
    assert refused + len(desk.bot.got) == 20
    assert {content for _, content, _ in desk.bot.got} <= {b"mine"}


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ('echo \'{"size": 4, "name": "f"}\'; printf abc', "changed while it was read"),
        ('echo \'{"size": 4, "name": "f"}\'; cat /dev/zero | head -c 100000000', "changed while it was read"),
        ("echo '{\"size\": -1}'", "changed while it was read"),
        ("head -c 200000 /dev/zero", "it gave no answer"),
        ("echo no; echo 'sudo: a password is required' >&2", "a password is required"),
        ("exit 1", "it gave no answer"),
    ],
)
async def test_an_account_that_answers_nonsense_sends_nothing(desk: Desk, answer: str, told: str) -> None:
    desk.door = ("/bin/sh", "-c", answer)
    with pytest.raises(Busy, match=f"f can't be read with the agent's rights: .*{told}"):
        await desk.send("f")
    assert desk.bot.got == []


async def test_a_bot_that_refuses_is_quoted_and_one_that_is_away_is_named(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    (desk.work / "f").write_text("x")
    desk.bot.refuses = InvalidParameter("text: a caption has at most 1024 characters")
    with pytest.raises(InvalidParameter, match="at most 1024"):
        await desk.send("f")
    monkeypatch.setattr(sending, "PATIENCE", 0.2)
    desk.socket.unlink()
    with pytest.raises(Busy, match="kai-bot doesn't answer"):
        await desk.send("f")


async def test_a_bot_that_comes_back_gets_the_file_once(desk: Desk) -> None:
    (desk.work / "f").write_text("x")
    desk.socket.rename(desk.socket.with_name("away"))
    sent = asyncio.create_task(desk.send("f"))
    await asyncio.sleep(0.3)
    desk.socket.with_name("away").rename(desk.socket)
    assert (await asyncio.wait_for(sent, 15)).id == 1
    assert len(desk.bot.got) == 1


# ---- through the whole set ----


async def test_the_operator_sends_a_file_of_the_agent_to_its_user(stage: Stage, alice: Alice) -> None:
    (alice.base / "work/plan.txt").write_text("the plan")
    sent = await alice.client.call(SendFile(path="plan.txt", caption="here it is"), timeout=60)
    assert (sent.name, sent.size) == ("plan.txt", 8)

    def look() -> str:
        found = [message.wire["document"] for message in stage.api.messages(ALICE) if "document" in message.wire]
        return str(found[0]["file_id"]) if found else ""

    assert stage.api.file_bytes(await stage.api.wait_for(look)) == b"the plan"
    with pytest.raises(InvalidParameter, match="there is no such file"):
        await alice.client.call(SendFile(path="nothing.txt"))


async def test_a_document_from_the_chat_is_at_the_path_that_the_agent_is_told(stage: Stage, alice: Alice) -> None:
    stage.api.say(ALICE, document=stage.api.put_file(b"x" * 70_000, name="notes.txt"))
    await stage.answer("70000 bytes.")
    (path,) = (alice.base / "files").glob("*/*-notes.txt")
    assert path.read_bytes() == b"x" * 70_000
