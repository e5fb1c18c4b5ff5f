"""Varlink between units: real Unix sockets, one process."""

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path

import msgspec
import pytest

from kai.interfaces import AgentState, BotStatus, Deliver, Event, Join, Part, Start, State, Status, Stored
from kai.lib import idl
from kai.lib.client import Client
from kai.lib.daemon import Daemon
from kai.lib.peers import Peer, Peers
from kai.lib.server import Emit, Server, misconfigured
from kai.lib.varlink import (
    MAX_MESSAGE,
    Busy,
    InvalidParameter,
    MethodNotFound,
    Misconfigured,
    PermissionDenied,
    Unavailable,
)

OPEN: list[socket.socket] = []


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    while OPEN:
        OPEN.pop().close()


def listening(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    OPEN.append(made)
    made.bind(os.fspath(path))
    made.listen(128)
    made.setblocking(False)
    return made


def daemon(path: Path, *, one_uid: bool = True) -> Daemon:
    return Daemon("test", {"front": listening(path)}, instance="alice", one_uid=one_uid)


class Echo:
    """A little kai.Agent and kai.Bot in one."""

    def __init__(self) -> None:
        self.ended: list[str] = []

    async def start(self, peer: Peer, call: Start, emit: Emit) -> Event:
        if call.turn == "forever":
            try:
                await emit(Event(kind="started"))
                await asyncio.sleep(60)
            finally:
                self.ended.append(call.turn)
        for number in range(int(call.turn)):
            await emit(Event(kind="text", offset=number, text="x"))
        return Event(kind="done", outcome="ok", text=call.prompt[0].text)

    async def deliver(self, peer: Peer, call: Deliver) -> Stored:
        if call.key == "busy":
            raise Busy("later")
        if call.key == "fault":
            raise RuntimeError("a bug")
        return Stored(id=len(call.text))


@pytest.fixture
async def peer(tmp_path: Path) -> AsyncIterator[tuple[Path, Echo, Daemon]]:
    path, echo = tmp_path / "s", Echo()
    made = daemon(path)
    Server(made, "front", Peers(one_uid=True), {Start: echo.start, Deliver: echo.deliver})
    yield path, echo, made


async def raw(path: Path, data: bytes, *, answers: int = 1) -> list[dict[str, object]]:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(data)
    got = [json.loads((await reader.readuntil(b"\0"))[:-1]) for _ in range(answers)]
    writer.close()
    return got


async def test_a_call_is_answered_with_its_typed_reply(peer: tuple[Path, Echo, Daemon]) -> None:
    assert await Client(peer[0]).call(Deliver(key="k", user="alice", text="four")) == Stored(id=4)


async def test_a_stream_gives_every_item_and_ends_with_the_last(peer: tuple[Path, Echo, Daemon]) -> None:
    start = Start(turn="1000", prompt=[Part(kind="text", text="hello")])
    async with aclosing(Client(peer[0]).stream(start)) as events:
        items = [event async for event in events]
    assert [item.offset for item in items[:-1]] == list(range(1000))
    assert items[-1] == Event(kind="done", outcome="ok", text="hello")


async def test_the_work_for_a_client_that_goes_away_ends(peer: tuple[Path, Echo, Daemon]) -> None:
    path, echo, _ = peer
    stream = Client(path).stream(Start(turn="forever", prompt=[]))
    assert (await anext(stream)).kind == "started"
    await stream.aclose()
    async with asyncio.timeout(2):
        while echo.ended != ["forever"]:
            await asyncio.sleep(0.01)


async def test_an_error_of_the_peer_arrives_as_that_error(peer: tuple[Path, Echo, Daemon]) -> None:
    with pytest.raises(Busy, match="later"):
        await Client(peer[0]).call(Deliver(key="busy", user="a", text="t"))
    with pytest.raises(MethodNotFound):
        await Client(peer[0]).call(Status())
    (answer,) = await raw(peer[0], b'{"method": "kai.Scheduler.List"}\0')
    assert answer == {"error": "org.varlink.service.InterfaceNotFound", "parameters": {"interface": "kai.Scheduler"}}


async def test_a_fault_in_a_handler_is_answered_and_the_daemon_goes_on(peer: tuple[Path, Echo, Daemon]) -> None:
    with pytest.raises(Exception, match="journal says why"):
        await Client(peer[0]).call(Deliver(key="fault", user="a", text="t"))
    assert await Client(peer[0]).call(Deliver(key="k", user="a", text="t")) == Stored(id=1)


@pytest.mark.parametrize(
    "parameters",
    [{}, {"key": 1, "user": "a", "text": "t"}, {"key": "k", "user": None, "text": "t"}, [], "x"],
)
async def test_wrong_parameters_are_named(peer: tuple[Path, Echo, Daemon], parameters: object) -> None:
    request = json.dumps({"method": "kai.Bot.Deliver", "parameters": parameters}).encode() + b"\0"
    (answer,) = await raw(peer[0], request)
    assert answer["error"] == "org.varlink.service.InvalidParameter"
    assert answer["parameters"]["parameter"]  # type: ignore[index]


async def test_a_stream_without_more_is_refused(peer: tuple[Path, Echo, Daemon]) -> None:
    call = {"method": "kai.Agent.Start", "parameters": {"turn": "1", "prompt": []}}
    (answer,) = await raw(peer[0], json.dumps(call).encode() + b"\0")
    assert answer["error"] == "org.varlink.service.ExpectedMore"


async def test_calls_sent_at_once_are_answered_in_order(peer: tuple[Path, Echo, Daemon]) -> None:
    calls = b"".join(
        json.dumps({"method": "kai.Bot.Deliver", "parameters": {"key": "k", "user": "a", "text": "x" * n}}).encode()
        + b"\0"
        for n in range(1, 50)
    )
    answers = await raw(peer[0], calls, answers=49)
    assert [answer["parameters"] for answer in answers] == [{"id": n} for n in range(1, 50)]


async def test_a_oneway_call_gets_no_answer(peer: tuple[Path, Echo, Daemon]) -> None:
    call = {"method": "kai.Bot.Deliver", "parameters": {"key": "k", "user": "a", "text": "x"}}
    data = json.dumps({**call, "oneway": True}).encode() + b"\0" + json.dumps(call).encode() + b"\0"
    assert await raw(peer[0], data) == [{"parameters": {"id": 1}}]


@pytest.mark.parametrize("data", [b"\0", b"{}\0", b"garbage\0", b'{"method": 1}\0', b"\xff\xfe\0"])
async def test_what_is_no_call_ends_the_connection(peer: tuple[Path, Echo, Daemon], data: bytes) -> None:
    reader, writer = await asyncio.open_unix_connection(peer[0])
    writer.write(data)
    async with asyncio.timeout(2):
        assert await reader.read() == b""
    writer.close()


async def test_a_flood_without_end_is_cut_at_the_limit_while_others_are_served(
    peer: tuple[Path, Echo, Daemon],
) -> None:
    _reader, writer = await asyncio.open_unix_connection(peer[0])
    sent = 0
    with pytest.raises(ConnectionError):
        while sent < 64 * MAX_MESSAGE:
            writer.write(b"x" * 65536)
            sent += 65536
            await writer.drain()
    assert sent < 8 * MAX_MESSAGE
    assert await Client(peer[0]).call(Deliver(key="k", user="a", text="t")) == Stored(id=1)
    writer.close()


async def test_an_absent_peer_is_unavailable_not_a_crash(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="No such file"):
        await Client(tmp_path / "nothing").call(Status())


async def test_a_caller_that_is_not_in_the_table_is_refused(tmp_path: Path) -> None:
    class Stranger(Peers):
        def identify(self, connection: socket.socket) -> Peer | None:
            return Peer(uid=4711, pid=1, roles=frozenset({"kai-webhook"}))

    made, echo = daemon(tmp_path / "s"), Echo()
    Server(made, "front", Stranger(), {Deliver: echo.deliver})
    with pytest.raises(PermissionDenied):
        await Client(tmp_path / "s").call(Deliver(key="k", user="a", text="t"))


async def test_an_unknown_account_is_not_even_read(tmp_path: Path) -> None:
    class Nobody(Peers):
        def identify(self, connection: socket.socket) -> Peer | None:
            return None

    made, echo = daemon(tmp_path / "s"), Echo()
    Server(made, "front", Nobody(), {Deliver: echo.deliver})
    with pytest.raises(Unavailable):
        await Client(tmp_path / "s").call(Deliver(key="k", user="a", text="t"))


async def test_a_misconfigured_daemon_tells_every_caller_why_and_leaves(tmp_path: Path) -> None:
    made = daemon(tmp_path / "s")
    serving = asyncio.create_task(misconfigured(made, "front", Peers(one_uid=True), [Start, State], "users.yaml: bad"))
    with pytest.raises(Misconfigured, match=r"users\.yaml: bad"):
        await Client(tmp_path / "s").call(State())
    with pytest.raises(Misconfigured):
        await anext(Client(tmp_path / "s").stream(Start(turn="1", prompt=[])))
    made.stopping.set()
    await serving


async def test_idleness_loses_no_connection(tmp_path: Path) -> None:
    """A daemon that leaves after 20 ms of idleness, started again by whoever finds the socket readable."""
    path, echo = tmp_path / "s", Echo()
    front = listening(path)
    starts = 0

    async def activate() -> None:
        nonlocal starts
        loop = asyncio.get_running_loop()
        while True:
            readable = asyncio.Event()
            loop.add_reader(front, readable.set)
            await readable.wait()
            loop.remove_reader(front)
            starts += 1
            made = Daemon("test", {"front": front}, instance="", one_uid=True)
            Server(made, "front", Peers(one_uid=True), {Deliver: echo.deliver})
            await made.until_done(idle_after=0.02)

    activator = asyncio.create_task(activate())
    for number in range(300):
        await asyncio.sleep(0.02 + (number % 7 - 3) * 0.001)
        assert await Client(path).call(Deliver(key="k", user="a", text="t"), timeout=5) == Stored(id=1)
    activator.cancel()
    assert starts > 50


def test_every_interface_has_a_description_that_names_each_method() -> None:
    assert idl.interfaces() == ["kai.Agent", "kai.Bot"]
    text = idl.describe("kai.Agent")
    assert "method Start(turn: string, prompt: []Part) -> (kind: (started, text, tool, approval, usage, done)" in text
    assert "type Part (kind: (text), text: string)" in text
    assert "error UnknownTurn (message: string)" in text


def test_fields_that_a_later_version_adds_are_ignored() -> None:
    state = BotStatus(name="n", state="s", users=1, queued=0, running=0, unsent=0)
    data = json.loads(msgspec.json.encode(state)) | {"added_later": True}
    assert msgspec.json.decode(json.dumps(data), type=BotStatus) == state
    assert AgentState.__struct_fields__
    assert Join.STREAM
    assert issubclass(InvalidParameter, Exception)
