"""Varlink between units: real Unix sockets, one process."""

import asyncio
import json
import os
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from pathlib import Path

import msgspec
import pytest

from kai.interfaces import (
    MOST_FILES,
    AgentState,
    BotStatus,
    Deliver,
    Event,
    Join,
    Part,
    Queue,
    Start,
    State,
    Status,
    Stored,
)
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
from kai.lib.wire import Wire, close_all

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
        self.read: list[bytes] = []
        self.came_with: dict[str, list[bytes]] = {}
        self.emitted = 0

    def take(self, call: str, descriptors: list[int]) -> None:
        assert not any(os.get_inheritable(each) for each in descriptors)
        self.came_with[call] = [os.pread(each, 100, 0) for each in descriptors]
        self.read += self.came_with[call]

    async def start(self, peer: Peer, call: Start, descriptors: list[int], emit: Emit) -> Event:
        self.take(call.turn, descriptors)
        if call.turn == "let go":
            close_all(descriptors)
        if call.turn == "forever":
            try:
                await emit(Event(kind="started"))
                await asyncio.sleep(60)
            finally:
                self.ended.append(call.turn)
        if call.turn == "short":
            await asyncio.sleep(0.03)
        for number in range(int(call.turn) if call.turn.isdigit() else 0):
            await emit(Event(kind="text", offset=number, text=call.prompt[0].name or "x"))
            self.emitted += 1
        return Event(kind="done", outcome="ok", text=call.prompt[0].text)

    async def deliver(self, peer: Peer, call: Deliver, descriptors: list[int]) -> Stored:
        self.take(call.key, descriptors)
        if call.key == "busy":
            raise Busy("later")
        if call.key == "fault":
            raise RuntimeError("a bug")
        return Stored(id=len(call.text))

    async def status(self, peer: Peer, call: Status) -> BotStatus:
        return BotStatus(name="n", state="s", users=1, queued=0, running=0, unsent=0)


@pytest.fixture
async def peer(tmp_path: Path) -> AsyncIterator[tuple[Path, Echo, Daemon]]:
    path, echo = tmp_path / "s", Echo()
    made = daemon(path)
    Server(made, "front", Peers(one_uid=True), {Start: echo.start, Deliver: echo.deliver, Status: echo.status})
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
    async with asyncio.timeout(20):
        while echo.ended != ["forever"]:
            await asyncio.sleep(0.01)


async def test_an_error_of_the_peer_arrives_as_that_error(peer: tuple[Path, Echo, Daemon]) -> None:
    with pytest.raises(Busy, match="later"):
        await Client(peer[0]).call(Deliver(key="busy", user="a", text="t"))
    with pytest.raises(MethodNotFound):
        await Client(peer[0]).call(Queue())
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
    async with asyncio.timeout(20):
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


async def test_a_client_that_reads_slowly_is_written_to_slowly(peer: tuple[Path, Echo, Daemon]) -> None:
    path, echo, _ = peer
    start = Start(turn="500", prompt=[Part(kind="text", text="end", name="x" * 10_000)])
    async with aclosing(await Client(path).open(start)) as events:
        await asyncio.sleep(0.2)
        waiting = echo.emitted
        assert 0 < waiting < 200
        await asyncio.sleep(0.1)
        assert echo.emitted == waiting
        items = [event async for event in events]
    assert [item.offset for item in items[:-1]] == list(range(500))
    assert items[-1].text == "end"


async def test_a_call_waits_for_a_place_in_the_queue_of_connections(tmp_path: Path) -> None:
    front = listening(tmp_path / "s")
    front.listen(1)
    calls = [asyncio.create_task(Client(tmp_path / "s").call(Status())) for _ in range(10)]
    await asyncio.sleep(0.1)
    made, echo = Daemon("test", {"front": front}, instance="", one_uid=True), Echo()
    Server(made, "front", Peers(one_uid=True), {Status: echo.status})
    assert len(await asyncio.wait_for(asyncio.gather(*calls), 10)) == 10


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
    assert starts > 20


def test_every_interface_has_a_description_that_names_each_method() -> None:
    assert idl.interfaces() == [
        "kai.Agent",
        "kai.Bot",
        "kai.GitHub",
        "kai.Proxy",
        "kai.Scheduler",
        "kai.Timers",
        "kai.Totp",
        "kai.Webhook",
    ]
    text = idl.describe("kai.Agent")
    assert "method Start(turn: string, prompt: []Part, job: ?JobSeat) -> (kind: (started, text, tool," in text
    assert "type Part (kind: (text, file), text: ?string, name: ?string, mime: ?string, descriptor: ?int)" in text
    assert "error UnknownTurn (message: string)" in text


def test_fields_that_a_later_version_adds_are_ignored() -> None:
    state = BotStatus(name="n", state="s", users=1, queued=0, running=0, unsent=0)
    data = json.loads(msgspec.json.encode(state)) | {"added_later": True}
    assert msgspec.json.decode(json.dumps(data), type=BotStatus) == state
    assert AgentState.__struct_fields__
    assert Join.STREAM
    assert issubclass(InvalidParameter, Exception)


# ---- descriptors ----


def open_here() -> int:
    """How many descriptors this process has, and so the server in it."""
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def files() -> Iterator[Callable[[str], int]]:
    """Makes open files that have the given text in them."""
    with tempfile.TemporaryDirectory() as directory:
        made: list[int] = []

        def make(text: str) -> int:
            path = Path(directory) / str(len(made))
            path.write_text(text)
            made.append(os.open(path, os.O_RDONLY))
            return made[-1]

        yield make
        close_all(made)


def request(method: str, **parameters: object) -> bytes:
    more = method.endswith("Start")
    return json.dumps({"method": method, "parameters": parameters, "more": more}).encode() + b"\0"


START = request("kai.Agent.Start", turn="1", prompt=[{"kind": "text", "text": "t"}])
FOREVER = request("kai.Agent.Start", turn="forever", prompt=[])
SHORT = request("kai.Agent.Start", turn="short", prompt=[{"kind": "text", "text": "t"}])
DELIVER = request("kai.Bot.Deliver", key="k", user="a", text="t")


def connected(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    OPEN.append(made)
    made.connect(os.fspath(path))
    made.setblocking(False)
    return made


def give(to: socket.socket, data: bytes, *descriptors: int) -> None:
    socket.send_fds(to, [data], list(descriptors))


async def test_files_arrive_with_their_call_and_end_with_it(
    peer: tuple[Path, Echo, Daemon], files: Callable[[str], int]
) -> None:
    path, echo, _ = peer
    given = [files(str(number)) for number in range(MOST_FILES)]
    before = open_here()
    start = Start(turn="3", prompt=[Part(kind="text", text="hello")])
    async with aclosing(await Client(path).open(start, descriptors=given)) as events:
        assert len([event async for event in events]) == 4
    assert echo.read == [str(number).encode() for number in range(MOST_FILES)]
    await Client(path).call(Deliver(key="k", user="a", text="t"), descriptors=[given[7]])
    assert echo.read[-1] == b"7"
    await nothing_left(before)
    assert os.pread(given[7], 1, 0) == b"7", "the caller's own is still open"


async def nothing_left(before: int) -> None:
    """Wait until no more is open than there was."""
    async with asyncio.timeout(5):
        while open_here() > before:
            await asyncio.sleep(0.01)


async def test_a_handler_may_let_go_of_files_before_it_ends(
    peer: tuple[Path, Echo, Daemon], files: Callable[[str], int]
) -> None:
    before = open_here()
    start = Start(turn="let go", prompt=[Part(kind="text", text="t")])
    async with aclosing(await Client(peer[0]).open(start, descriptors=[files("a"), files("b")])) as events:
        assert [event.kind async for event in events] == ["done"]
    assert open_here() <= before + 3, "two files, and the server's end of the connection"


@pytest.mark.parametrize(
    ("data", "count", "error"),
    [
        (START, MOST_FILES + 1, "org.varlink.service.InvalidParameter"),
        (START, 253, "org.varlink.service.InvalidParameter"),
        (DELIVER, 2, "org.varlink.service.InvalidParameter"),
        (request("kai.Bot.Status"), 1, "org.varlink.service.InvalidParameter"),
        (request("org.varlink.service.GetInfo"), 1, "org.varlink.service.InvalidParameter"),
        (request("kai.Bot.Deliver"), 1, "org.varlink.service.InvalidParameter"),
        (request("kai.Bot.Fly"), 1, "org.varlink.service.MethodNotFound"),
        (request("kai.Nobody.Fly"), 1, "org.varlink.service.InterfaceNotFound"),
        (START.replace(b"true", b"false"), 1, "org.varlink.service.ExpectedMore"),
        (request("kai.Bot.Deliver", key="fault", user="a", text="t"), 1, "kai.Internal"),
    ],
)
async def test_files_of_a_call_that_is_refused_are_closed(
    peer: tuple[Path, Echo, Daemon], files: Callable[[str], int], data: bytes, count: int, error: str
) -> None:
    given, client = files("x"), connected(peer[0])
    give(client, b"", given)  # nothing is sent: the kernel drops it
    before = open_here()
    give(client, data, *[given] * count)
    reader, writer = await asyncio.open_unix_connection(sock=client)
    answer = json.loads((await asyncio.wait_for(reader.readuntil(b"\0"), 5))[:-1])
    assert answer["error"] == error
    await asyncio.sleep(0)
    assert open_here() <= before + 1, "no more than the server's end of this connection"
    writer.close()
    assert await Client(peer[0]).call(Deliver(key="k", user="a", text="t")) == Stored(id=1)


async def test_files_of_a_caller_who_may_not_send_any_are_not_even_taken(
    tmp_path: Path, files: Callable[[str], int]
) -> None:
    class Stranger(Peers):
        def identify(self, connection: socket.socket) -> Peer | None:
            return Peer(uid=4711, pid=1, roles=frozenset({"kai-webhook"}))

    made, echo = daemon(tmp_path / "s"), Echo()
    Server(made, "front", Stranger(), {Start: echo.start, Deliver: echo.deliver})
    given = [files("x"), files("y")]
    before = open_here()
    with pytest.raises(PermissionDenied):
        await Client(tmp_path / "s").call(Deliver(key="k", user="a", text="t"), descriptors=given)
    await nothing_left(before)
    assert echo.read == []


@pytest.mark.parametrize(
    "pieces",
    [
        [(DELIVER[:20], 1)],
        [(DELIVER[:20], 1), (DELIVER[20:40], 1), (DELIVER[40:], 1)],
        [(bytes([byte]), 1) for byte in START],
        [(b"garbage", 5), (b"\0", 1)],
        [(b"\0", 1), (b"\0", 1)],
        [(DELIVER + DELIVER + DELIVER[:-1], 1)],
        [(SHORT, 3), (DELIVER, 1), (DELIVER[:10], 1)],
        [(FOREVER, 3), (b"x" * 60_000, 1), (b"x" * 60_000, 1)],
        [(b'{"method": "kai.Bot.Deliver", "oneway": true}\0', 1)] * 20,
    ],
    ids=["half", "three pieces", "byte by byte", "garbage", "empty", "at once", "ahead", "half ahead", "one way"],
)
@pytest.mark.parametrize("waits", [False, True])
async def test_no_file_stays_open_whatever_a_hostile_client_does(
    peer: tuple[Path, Echo, Daemon],
    files: Callable[[str], int],
    pieces: list[tuple[bytes, int]],
    *,
    waits: bool,
) -> None:
    given = files("x")
    before = open_here()
    for _ in range(5):
        client = connected(peer[0])
        try:
            for data, count in pieces:
                give(client, data, *[given] * count)
                if waits:
                    await asyncio.sleep(0.002)
                    assert open_here() < before + 2 * MOST_FILES
        except (BrokenPipeError, ConnectionResetError):
            pass  # the server had enough
        await asyncio.sleep(0.01)
        client.close()
    await nothing_left(before)
    assert await Client(peer[0]).call(Deliver(key="k", user="a", text="t")) == Stored(id=1)


@pytest.mark.parametrize("waits", [False, True])
async def test_each_call_of_many_gets_its_own_files(
    peer: tuple[Path, Echo, Daemon], files: Callable[[str], int], *, waits: bool
) -> None:
    path, echo, _ = peer
    client = connected(path)
    expected: dict[str, list[bytes]] = {}
    for number in range(20):
        call = request("kai.Bot.Deliver", key=f"k{number}", user="a", text="x" * (number * 997 % 5000 + 1))
        expected[f"k{number}"] = [str(number).encode()] * (number % 2)
        give(client, call[:30], *[files(str(number))] * (number % 2))
        if waits:
            await asyncio.sleep(0.002)
        give(client, call[30:])
    reader, writer = await asyncio.open_unix_connection(sock=client)
    for number in range(20):
        answer = json.loads((await reader.readuntil(b"\0"))[:-1])
        assert answer == {"parameters": {"id": number * 997 % 5000 + 1}}
    assert echo.came_with == expected
    writer.close()


async def test_files_that_nobody_collects_are_closed_by_the_next_message(files: Callable[[str], int]) -> None:
    ours, theirs = socket.socketpair()
    reader, given = Wire(theirs, most=2), files("x")
    before = open_here()
    for number in range(100):
        give(ours, b"%d\0" % number, given, given)
        assert await reader.receive() == b"%d" % number
        assert open_here() == before + 2
    last, too_many = reader.collect()
    assert (len(last), too_many) == (2, False)
    close_all(last)
    reader.close()
    ours.close()


async def test_a_long_call_gets_its_files_though_it_comes_in_many_pieces(
    peer: tuple[Path, Echo, Daemon], files: Callable[[str], int]
) -> None:
    text = "x" * (MAX_MESSAGE - 1000)
    stored = await Client(peer[0]).call(Deliver(key="k", user="a", text=text), descriptors=[files("a")])
    assert (stored.id, peer[1].read) == (len(text), [b"a"])


async def test_what_a_cancelled_sender_began_arrives_whole() -> None:
    ours, theirs = socket.socketpair()
    sender, reader = Wire(ours), Wire(theirs)
    first = b"x" * (MAX_MESSAGE - 1) + b"\0"
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(sender.send(first), 0.05)
    sending = asyncio.create_task(sender.send(b"second\0"))
    assert await asyncio.wait_for(reader.receive(), 5) == first[:-1]
    assert await asyncio.wait_for(reader.receive(), 5) == b"second"
    await sending
    sender.close()
    assert await reader.receive() is None
    reader.close()


async def test_who_waits_on_a_connection_learns_of_its_end() -> None:
    ours, theirs = socket.socketpair()
    one, other = Wire(ours), Wire(theirs)
    receiving = asyncio.create_task(one.receive())
    sending = asyncio.create_task(one.send(b"x" * (4 * MAX_MESSAGE)))
    await asyncio.sleep(0.01)
    one.close()
    one.close()
    assert await asyncio.wait_for(receiving, 20) is None
    with pytest.raises(ConnectionError):
        await asyncio.wait_for(sending, 20)
    with pytest.raises(ConnectionError):
        await one.send(b"more\0")
    other.close()


async def test_a_message_of_the_longest_length_passes_and_none_beyond() -> None:
    ours, theirs = socket.socketpair()
    sender, reader = Wire(ours), Wire(theirs)
    sending = asyncio.create_task(sender.send(b"x" * MAX_MESSAGE + b"\0" + b"y" * 4 * MAX_MESSAGE + b"\0"))
    assert await reader.receive() == b"x" * MAX_MESSAGE
    with pytest.raises(ValueError, match="longer than"):
        await reader.receive()
    reader.close()
    with pytest.raises(ConnectionError):
        await sending
    sender.close()
