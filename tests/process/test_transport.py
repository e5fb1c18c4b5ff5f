"""The bot's HTTP against servers that behave oddly: what a call gives, what its failure means, what is used again."""

from __future__ import annotations

import asyncio
import io
import json
import socket
import ssl
from asyncio import StreamReader as Reader
from asyncio import StreamWriter as Writer
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
import telegram
from telegram.error import InvalidToken, NetworkError, TelegramError, TimedOut
from telegram.request import RequestData

from kai.bot import transport
from kai.bot.api import verdict
from kai.bot.transport import Lost, NotSent, Transport

SECRET = "bot1234:token-that-nobody-may-read"
CERTIFICATE = Path(__file__).with_name("localhost.pem")
PATIENCE = 0.3
"""Seconds, where a test waits for a time to run out."""
Behaviour = Callable[["Server", Reader, Writer], Awaitable[None]]


def http(body: bytes = b"{}", *headers: str, status: str = "200 OK", length: bool = True) -> bytes:
    lines = [f"HTTP/1.1 {status}", *headers, *([f"Content-Length: {len(body)}"] if length else [])]
    return "\r\n".join([*lines, "", ""]).encode() + body


class Server:
    """Counts connections and keeps the requests that it has read whole."""

    def __init__(self, behave: Behaviour) -> None:
        self.behave = behave
        self.connections = 0
        self.open: set[asyncio.Task[None]] = set()
        self.requests: list[tuple[str, bytes]] = []
        self.url = ""

    async def met(self, reader: Reader, writer: Writer) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task
        self.open.add(task)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await self.behave(self, reader, writer)
        finally:
            self.open.discard(task)
            writer.transport.abort()

    async def request(self, reader: Reader) -> tuple[str, bytes]:
        """The next request of a connection: its head and its body."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = next((int(line[15:]) for line in head.lower().splitlines() if line.startswith("content-length:")), 0)
        self.requests.append((head, await reader.readexactly(length)))
        return self.requests[-1]


@asynccontextmanager
async def serving(behave: Behaviour, context: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    server = Server(behave)
    listening = await asyncio.start_server(server.met, "127.0.0.1", 0, ssl=context)
    port = listening.sockets[0].getsockname()[1]
    server.url = f"https://localhost:{port}" if context else f"http://127.0.0.1:{port}"
    try:
        yield server
    finally:
        listening.close()
        for task in list(server.open):
            task.cancel()
        await asyncio.gather(*server.open, return_exceptions=True)


@asynccontextmanager
async def calling(
    base: str, *, connections: int = 4, context: ssl.SSLContext | None = None
) -> AsyncIterator[Transport]:
    one = Transport(base, context or ssl.create_default_context(), connections=connections, trust_env=False)
    try:
        yield one
    finally:
        await one.shutdown()


async def ask(one: Transport, method: str = "sendMessage", /, **limits: Any) -> tuple[int, bytes]:
    return await one.do_request(f"{one.origin}/{SECRET}/{method}", "POST", data(text=method), **limits)


def data(**parameters: object) -> RequestData:
    return RequestData([telegram.request._requestparameter.RequestParameter.from_input(*p) for p in parameters.items()])


async def failure(
    one: Transport, kind: type[Exception], *, error: type[TelegramError] = NetworkError, **limits: Any
) -> str:
    """The words of a call's failure, which is of this kind, means that for a message, and names no secret."""
    with pytest.raises(NetworkError) as caught:
        await ask(one, **limits)
    assert type(caught.value) is error
    assert type(caught.value.__cause__) is kind
    assert verdict(caught.value) == ("not sent" if kind is NotSent else "unknown")
    told: BaseException | None = caught.value
    while told:
        assert "token" not in f"{told!r} {told}"
        told = told.__cause__ or told.__context__
    return str(caught.value)


# ---- behaviours ----


async def echoes(server: Server, reader: Reader, writer: Writer) -> None:
    """A good server: each answer is what the request said."""
    while True:
        _, body = await server.request(reader)
        writer.write(http(json.dumps({"ok": True, "result": parse_qs(body.decode())}).encode()))


def answers(*pieces: bytes, pause: float = 0.0, stays: bool = True) -> Behaviour:
    """Gives these bytes for every request."""

    async def behave(server: Server, reader: Reader, writer: Writer) -> None:
        while True:
            await server.request(reader)
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(pause)
            if not stays:
                return

    return behave


async def drops(server: Server, reader: Reader, writer: Writer) -> None:
    await server.request(reader)


async def is_silent(server: Server, reader: Reader, writer: Writer) -> None:
    await server.request(reader)
    await reader.read()


async def reads_nothing(server: Server, reader: Reader, writer: Writer) -> None:
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    await asyncio.sleep(30)


# ---- good days ----


async def test_calls_share_a_connection_and_keep_their_answers() -> None:
    async with serving(echoes) as server, calling(server.url) as one:
        for text in ("one", "zwei & drei=3+4 %", "🙂\n"):
            status, body = await one.do_request(f"{server.url}/{SECRET}/x", "POST", data(text=text, n=[1]))
            assert (status, json.loads(body)["result"]) == (200, {"text": [text], "n": ["[1]"]})
        assert server.connections == 1
    head = server.requests[0][0]
    assert head.startswith(f"POST /{SECRET}/x HTTP/1.1\r\n")
    assert f"Host: 127.0.0.1:{server.url.rpartition(':')[2]}\r\n" in head
    assert "Accept-Encoding: identity\r\n" in head


async def test_half_a_surrogate_pair_does_not_hold_a_message_up() -> None:
    async with serving(echoes) as server, calling(server.url) as one:
        _, body = await one.do_request(f"{server.url}/x", "POST", data(text="a\ud83dz"))
        assert json.loads(body)["result"] == {"text": ["a?z"]}


@pytest.mark.parametrize(
    "pieces",
    [
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nkept\r\n", b"6\r\n alive\r\n0\r\n\r\n"],
        [bytes([byte]) for byte in http(b"kept alive", "Server: slow")],
        [b"HTTP/1.1 100 Continue\r\n\r\n", http(b"kept alive")],
    ],
    ids=["chunked", "byte by byte", "after a 100"],
)
async def test_an_answer_may_come_in_any_shape(pieces: list[bytes]) -> None:
    async with serving(answers(*pieces)) as server, calling(server.url) as one:
        assert [await ask(one) for _ in range(2)] == [(200, b"kept alive")] * 2
        assert server.connections == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.0 200 OK\r\n\r\nup to the end",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 13\r\n\r\nup to the end",
    ],
)
async def test_a_server_that_closes_after_its_answer_is_met_anew(answer: bytes) -> None:
    async with serving(answers(answer, stays=False)) as server, calling(server.url) as one:
        assert [await ask(one) for _ in range(2)] == [(200, b"up to the end")] * 2
        assert server.connections == 2


async def test_a_refusal_is_an_answer_and_a_redirect_is_not_followed() -> None:
    moved = http(b"", "Location: http://127.0.0.1:9/", status="302 Found")
    async with serving(answers(moved)) as server, calling(server.url) as one:
        assert await ask(one) == (302, b"")
        with pytest.raises(NetworkError, match="Found"):
            await one.post(f"{server.url}/{SECRET}/getMe")
    refused = http(b'{"ok": false, "description": "Unauthorized"}', status="401 Unauthorized")
    async with serving(answers(refused)) as server, calling(server.url) as one:
        with pytest.raises(InvalidToken):
            await one.post(f"{server.url}/{SECRET}/getMe")


@pytest.mark.parametrize("header", ["Connection: close", "Server: undecided"])
async def test_a_server_that_refuses_before_it_has_read_all_is_heard(header: str) -> None:
    async def refuses(server: Server, reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(http(b"too much", header, status="413 Content Too Large"))
        await reader.read()

    async with serving(refuses) as server, calling(server.url) as one:
        assert (await one.do_request(f"{server.url}/x", "POST", data(text="x" * (8 << 20))))[0] == 413
        assert not one._unused


async def test_a_hundred_calls_at_once_get_each_its_own_answer() -> None:
    async with serving(echoes) as server, calling(server.url, connections=8) as one:
        bodies = await asyncio.gather(*(ask(one, f"call{number}") for number in range(100)))
        texts = [json.loads(body)["result"]["text"] for _, body in bodies]
        assert texts == [[f"call{number}"] for number in range(100)]
        assert 1 < server.connections <= 8
        assert len(one._open) == server.connections


async def test_python_telegram_bot_speaks_through_it() -> None:
    me = {"ok": True, "result": {"id": 1234, "is_bot": True, "first_name": "Kai", "username": "kai_bot"}}
    async with serving(answers(http(json.dumps(me).encode()))) as server:
        requests = [Transport(server.url, ssl.create_default_context(), connections=1, trust_env=False) for _ in "12"]
        async with telegram.Bot(
            "1234:token", f"{server.url}/bot", request=requests[0], get_updates_request=requests[1]
        ) as bot:
            assert bot.username == "kai_bot"


# ---- bad days: surely not sent ----


async def test_a_server_that_is_not_there_got_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    async with calling(f"http://127.0.0.1:{port}") as one:
        assert "127.0.0.1: no connection" in await failure(one, NotSent)
        assert not one._places.locked()


async def test_a_name_that_nobody_knows_got_nothing() -> None:
    for host in ("kai.invalid", "x" * 70 + ".invalid"):
        async with calling(f"http://{host}:8081") as one:
            await failure(one, NotSent)


async def test_a_connection_that_is_never_accepted_got_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        async with calling(f"http://127.0.0.1:{full.getsockname()[1]}") as one:
            assert "in time" in await failure(one, NotSent, error=TimedOut, connect_timeout=PATIENCE)
        for filler in fillers:
            filler.close()


async def test_who_finds_no_free_connection_in_time_sent_nothing() -> None:
    async with serving(is_silent) as server, calling(server.url, connections=1) as one:
        first = asyncio.create_task(ask(one))
        await asyncio.sleep(0.05)
        assert "busy" in await failure(one, NotSent, error=TimedOut, pool_timeout=PATIENCE)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert len(server.requests) == 1


async def test_an_address_that_is_none_sends_nothing() -> None:
    async with serving(echoes) as server, calling(server.url) as one:
        with pytest.raises(NetworkError) as caught:
            await one.do_request(f"{server.url}/{SECRET}/a b\r\nc: d", "POST")
        assert isinstance(caught.value.__cause__, NotSent)
        assert "token" not in f"{caught.value!r}{caught.value.__cause__!r}"
        assert await ask(one)
        assert len(server.requests) == 1


async def test_after_its_end_nothing_is_sent() -> None:
    async with serving(echoes) as server, calling(server.url) as one:
        await ask(one)
        await one.shutdown()
        assert not one._open
        await failure(one, NotSent)
        await one.initialize()
        assert (await ask(one))[0] == 200


# ---- bad days: nobody knows ----


async def test_a_drop_after_the_request_leaves_its_fate_open() -> None:
    async with serving(drops) as server, calling(server.url) as one:
        assert "ended before the answer" in await failure(one, Lost)
        assert len(server.requests) == 1


async def test_a_drop_on_a_used_connection_is_not_tried_again() -> None:
    async def drops_the_second(server: Server, reader: Reader, writer: Writer) -> None:
        await server.request(reader)
        writer.write(http())
        await server.request(reader)

    async with serving(drops_the_second) as server, calling(server.url) as one:
        await ask(one)
        await failure(one, Lost)
        assert (server.connections, len(server.requests)) == (1, 2)


async def test_a_connection_that_the_server_has_closed_is_not_used() -> None:
    async with serving(answers(http(), stays=False)) as server, calling(server.url) as one:
        for number in range(3):
            assert (await ask(one))[0] == 200
            if number:
                await asyncio.sleep(0.02)
        assert (server.connections, len(server.requests)) == (3, 3)


async def test_a_close_that_was_not_noticed_yet_is_seen_before_the_next_request() -> None:
    """The server's end stands in the socket, and the loop had no time to read it."""
    closed: list[Writer] = []

    async def answers_once(server: Server, reader: Reader, writer: Writer) -> None:
        await server.request(reader)
        closed.append(writer)
        writer.write(http())
        await reader.read()

    async with serving(answers_once) as server, calling(server.url) as one:
        await ask(one)
        closed[0].get_extra_info("socket").shutdown(socket.SHUT_WR)
        assert (await ask(one))[0] == 200
        assert server.connections == 2


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"\x16\x03\x01\x02\x00 what is this \r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 7\r\n\r\nhello", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\n" + b"X-Filler: and so on\r\n" * 10_000, "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nX-Filler: " + b"x" * 100_000, "not HTTP"),
        (http(b"\x1f\x8b", "Content-Encoding: gzip"), "not asked for"),
        (http(b"x" * 2_000_000), "more than"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel", "ended before|not HTTP"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n", "ended before|not HTTP"),
        (b"HTTP/1.1 200", "ended before|not HTTP"),
    ],
)
async def test_an_answer_that_is_none_leaves_the_fate_open(
    answer: bytes, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "LARGEST_BODY", 1_000_000)
    async with serving(answers(answer, stays=False)) as server, calling(server.url) as one:
        told = await failure(one, Lost)
        assert any(word in told for word in words.split("|"))
        assert len(told) < 300
        assert not one._unused


@pytest.mark.parametrize("words", [b"", b"HTTP/1.1 200 OK\r\n", http(b"half")[:-2]])
async def test_a_server_that_falls_silent_is_not_waited_for(words: bytes) -> None:
    async with serving(answers(words, pause=30)) as server, calling(server.url) as one:
        told = await failure(one, Lost, error=TimedOut, read_timeout=PATIENCE)
        assert "within 0.3 s" in told
        await asyncio.sleep(0)
        assert not one._open


@pytest.mark.parametrize("at_once", [0, 40], ids=["head", "body"])
async def test_a_trickle_does_not_hold_a_call_up(at_once: int) -> None:
    whole = http(b"a body that takes its time, one letter after the other")
    drips = [whole[:at_once], *(bytes([byte]) for byte in whole[at_once:])]
    async with serving(answers(*drips, pause=0.02)) as server, calling(server.url) as one:
        await failure(one, Lost, error=TimedOut, read_timeout=PATIENCE)


async def test_a_large_answer_may_take_longer_than_a_silence() -> None:
    pieces = [http(b"", "Content-Length: 600000", length=False), *[b"x" * 100_000] * 6]
    async with serving(answers(*pieces, pause=PATIENCE / 3)) as server, calling(server.url) as one:
        status, body = await ask(one, read_timeout=PATIENCE)
        assert (status, len(body)) == (200, 600_000)


async def test_a_server_that_does_not_read_is_not_waited_for() -> None:
    async with serving(reads_nothing) as server, calling(server.url) as one:
        with pytest.raises(TimedOut) as caught:
            await one.do_request(f"{server.url}/x", "POST", data(text="x" * (16 << 20)), write_timeout=PATIENCE)
        assert isinstance(caught.value.__cause__, Lost)
        assert "not taken within" in str(caught.value)


async def test_who_was_slow_to_read_has_his_time_for_the_answer() -> None:
    async def reads_late(server: Server, reader: Reader, writer: Writer) -> None:
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.sleep(PATIENCE / 2)
        writer.transport.resume_reading()  # type: ignore[attr-defined]
        await server.request(reader)
        await asyncio.sleep(PATIENCE)
        writer.write(http())

    async with serving(reads_late) as server, calling(server.url) as one:
        given = {"write_timeout": PATIENCE, "read_timeout": 10}
        status, _ = await one.do_request(f"{server.url}/x", "POST", data(text="x" * (8 << 20)), **given)
        assert status == 200


@pytest.mark.parametrize("extra", [b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nother", b"\r\n", b"x"])
async def test_what_nobody_asked_for_never_becomes_the_answer_to_the_next_call(extra: bytes) -> None:
    for pieces in ([http(b"first") + extra], [http(b"first"), extra]):
        async with serving(answers(*pieces, pause=0.02)) as server, calling(server.url) as one:
            for _ in range(2):
                assert await ask(one) == (200, b"first")
                await asyncio.sleep(0.08)
            assert server.connections == 2


# ---- cancelled ----


@pytest.mark.parametrize("used", [False, True])
async def test_a_cancelled_call_takes_its_connection_with_it(used: bool) -> None:
    ended = asyncio.Event()

    async def late(server: Server, reader: Reader, writer: Writer) -> None:
        while True:
            _, body = await server.request(reader)
            if b"slow" in body:
                await reader.read()
                ended.set()
                return
            writer.write(http(b"mine"))

    async with serving(late) as server, calling(server.url, connections=1) as one:
        if used:
            await ask(one, "quick")
            server.requests.clear()
        call = asyncio.create_task(ask(one, "slow"))
        while not server.requests:
            await asyncio.sleep(0.01)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await ask(one, "quick") == (200, b"mine")
        await asyncio.wait_for(ended.wait(), 5)
        assert server.connections == 2


async def test_who_is_cancelled_while_he_waits_takes_nobody_s_place() -> None:
    go = asyncio.Event()

    async def answers_then(server: Server, reader: Reader, writer: Writer) -> None:
        while True:
            await server.request(reader)
            await go.wait()
            writer.write(http())

    async with serving(answers_then) as server, calling(server.url, connections=1) as one:
        calls = [asyncio.create_task(ask(one, f"call{number}")) for number in range(6)]
        while not server.requests:
            await asyncio.sleep(0.01)
        for call in calls[1::2]:
            call.cancel()
        go.set()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert [isinstance(one, asyncio.CancelledError) for one in outcomes] == [False, True] * 3
        assert len(server.requests) == 3
        assert not one._places.locked()


async def test_who_is_cancelled_while_he_connects_leaves_nothing_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        context = ssl.create_default_context()
        async with calling(f"https://localhost:{deaf.getsockname()[1]}", connections=1, context=context) as one:
            call = asyncio.create_task(ask(one))
            await asyncio.sleep(0.1)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert not one._open
            assert not one._places.locked()


# ---- the pool ----


async def test_unused_connections_end_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "KEPT", 0.1)
    async with serving(echoes) as server, calling(server.url) as one:
        await asyncio.gather(*(ask(one) for _ in range(4)))
        assert len(one._unused) == 4
        await asyncio.sleep(0.07)
        await ask(one)
        await asyncio.sleep(0.06)
        assert len(one._unused) == 1  # the one that was used last
        await asyncio.sleep(0.15)
        assert not one._open
        assert one._sweep is None
        assert (await ask(one))[0] == 200


# ---- TLS ----


def tls() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context(cafile=CERTIFICATE)
    server.load_cert_chain(CERTIFICATE)
    server.set_alpn_protocols(["h2", "http/1.1"])
    return server, client


async def test_tls_is_spoken_to_whom_the_authority_names() -> None:
    server_side, client_side = tls()
    async with serving(echoes, server_side) as server, calling(server.url, context=client_side) as one:
        for _ in range(3):
            assert (await ask(one))[0] == 200
        assert server.connections == 1
        (connection,) = one._open
        assert connection.transport.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"


async def test_a_server_whom_nobody_vouches_for_gets_nothing() -> None:
    server_side, client_side = tls()
    async with serving(echoes, server_side) as server:
        async with calling(server.url) as one:
            assert "certificate verify failed" in (await failure(one, NotSent)).lower()
        async with calling(server.url.replace("localhost", "127.0.0.1"), context=client_side) as one:
            assert "certificate verify failed" in (await failure(one, NotSent)).lower()
        assert not server.requests


async def test_a_server_that_does_not_speak_tls_gets_nothing() -> None:
    async with serving(reads_nothing) as server, calling(server.url.replace("http", "https")) as one:
        await failure(one, NotSent, error=TimedOut, connect_timeout=PATIENCE)
    async with serving(answers(http())) as server, calling(server.url.replace("http", "https")) as one:
        await failure(one, NotSent, error=TimedOut, connect_timeout=PATIENCE)


async def test_over_tls_a_drop_and_a_cancelled_call_mean_the_same() -> None:
    server_side, client_side = tls()
    async with serving(drops, server_side) as server, calling(server.url, context=client_side) as one:
        await failure(one, Lost)
    async with serving(is_silent, server_side) as server, calling(server.url, context=client_side) as one:
        call = asyncio.create_task(ask(one))
        while not server.requests:
            await asyncio.sleep(0.01)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        await asyncio.sleep(0.01)
        assert not one._open


# ---- what httpx does ----


async def test_a_proxy_in_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(answers(http(b"by proxy"))) as proxy:
        for name in ("HTTP_PROXY", "ALL_PROXY", "all_proxy"):
            with monkeypatch.context() as environment:
                environment.setenv(name, proxy.url)
                one = Transport("http://kai.invalid", ssl.create_default_context(), connections=1)
                assert await ask(one) == (200, b"by proxy")
                await one.shutdown()
    assert [head.split()[1] for head, _ in proxy.requests] == [f"http://kai.invalid/{SECRET}/sendMessage"] * 3


async def test_a_proxy_that_is_not_there_got_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{taken.getsockname()[1]}")
    one = Transport("http://kai.invalid", ssl.create_default_context(), connections=1)
    await failure(one, NotSent)
    await one.shutdown()


async def test_files_and_foreign_addresses_go_by_httpx() -> None:
    upload = data(chat_id=1, document=telegram.InputFile(io.BytesIO(b"what is in it"), filename="a.txt"))
    async with serving(answers(http(b"taken"))) as server, calling("http://127.0.0.1:9") as one:
        one.origin = server.url
        assert await one.do_request(f"{server.url}/{SECRET}/sendDocument", "POST", upload) == (200, b"taken")
        head, body = server.requests[0]
        assert "multipart/form-data" in head
        assert b"what is in it" in body
        one.origin = "http://127.0.0.1:9"
        assert await one.retrieve(f"{server.url}/file/{SECRET}/a.txt") == b"taken"


async def test_a_file_that_could_not_be_sent_surely_was_not() -> None:
    upload = data(chat_id=1, document=telegram.InputFile(b"what is in it", filename="a.txt"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    async with calling(f"http://127.0.0.1:{port}") as one:
        with pytest.raises(NetworkError) as caught:
            await one.do_request(f"{one.origin}/{SECRET}/sendDocument", "POST", upload)
        assert verdict(caught.value) == "not sent"
