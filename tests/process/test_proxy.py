"""The model door, started by its socket as systemd would, between a client and a stand-in for the API."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from kai.demo.launcher import python
from tests.process.door import KEY, Door

BODY = {"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "hi ä"}]}


class Asked:
    """A request as it arrived at the API."""

    def __init__(self, line: str, headers: list[tuple[str, str]], body: bytes) -> None:
        self.method, self.target, _ = line.split(" ")
        self.headers, self.body = headers, body

    def header(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name]


class Api:
    """The stand-in: keeps what was asked; `answer` writes what comes back."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.tasks: set[asyncio.Task[Any]] = set()
        self.answer: Callable[[asyncio.StreamWriter], Awaitable[None]] = self.plain
        self.count_only = False

    async def start(self) -> None:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        self.server.close()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def plain(self, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self.tasks.add(task)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in head[1:-2])]
                asked = Asked(head[0], headers, b"")
                self.asked.append(asked)
                asked.body = await self._body(reader, asked)
                await self.answer(writer)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self.tasks.discard(task)
            writer.transport.abort() if task.cancelling() else writer.close()

    async def _body(self, reader: asyncio.StreamReader, asked: Asked) -> bytes:
        if asked.header("transfer-encoding") == ["chunked"]:
            pieces = []
            while size := int((await reader.readline()).strip(), 16):
                pieces.append(await reader.readexactly(size))
                await reader.readexactly(2)
            await reader.readexactly(2)
            return b"".join(pieces)
        left = int((asked.header("content-length") or ["0"])[0])
        if not self.count_only:
            return await reader.readexactly(left)
        while left:
            left -= len(await reader.read(min(left, 1 << 16)))
        return b""


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    made = Api()
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def door(tmp_path: Path, api: Api) -> AsyncIterator[Door]:
    made = Door(tmp_path)
    made.configure(api.url)
    yield made
    await made.service.close()


@pytest.fixture
async def client(door: Door) -> AsyncIterator[httpx.AsyncClient]:
    door.listen("--one-uid")
    async with door.client() as made:
        yield made


def fault(answer: httpx.Response) -> str:
    """The message of an error in the API's own shape."""
    body = answer.json()
    assert body["type"] == "error"
    assert set(body["error"]) == {"type", "message"}
    return str(body["error"]["message"])


async def test_the_api_sees_the_true_key_and_the_agents_words_unchanged(client: httpx.AsyncClient, api: Api) -> None:
    headers = {
        "x-api-key": "dummy",
        "authorization": "Bearer dummy",
        "proxy-authorization": "x",
        "cookie": "a=b",
        "x-forwarded-for": "1.2.3.4",
        "connection": "x-only-here",
        "x-only-here": "1",
        "anthropic-version": "2023-06-01",
        "anthropic-beta": "a,b",
        "x-stainless-lang": "js",
        "content-type": "application/json",
    }
    data = json.dumps(BODY).encode()
    answer = await client.post("/v1/messages?beta=true&key=stolen&beta=false", content=data, headers=headers)
    assert (answer.status_code, answer.content) == (200, b"{}")
    (asked,) = api.asked
    assert (asked.method, asked.target, asked.body) == ("POST", "/v1/messages?beta=true", data)
    assert asked.header("x-api-key") == [KEY]
    assert asked.header("host") == [api.url.removeprefix("http://")]
    for name in ("authorization", "proxy-authorization", "cookie", "x-forwarded-for", "x-only-here"):
        assert asked.header(name) == []
    for name in ("anthropic-version", "anthropic-beta", "x-stainless-lang", "content-type"):
        assert asked.header(name) == [headers[name]]


async def test_an_answer_streams_as_it_comes(client: httpx.AsyncClient, api: Api) -> None:
    go_on = asyncio.Event()

    async def slowly(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        writer.write(b"5\r\nfirst\r\n")
        await go_on.wait()
        writer.write(b"6\r\nsecond\r\n0\r\n\r\n")

    api.answer = slowly
    async with client.stream("POST", "/v1/messages", json=BODY) as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        pieces = answer.aiter_raw()
        assert await anext(pieces) == b"first"
        go_on.set()
        assert b"".join([piece async for piece in pieces]) == b"second"


async def test_a_compressed_answer_and_an_error_of_the_api_go_through_untouched(
    client: httpx.AsyncClient, api: Api
) -> None:
    packed = gzip.compress(b'{"type":"error","error":{"type":"authentication_error","message":"invalid x-api-key"}}')

    async def refuse(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 401 Unauthorized\r\ncontent-encoding: gzip\r\nrequest-id: req_1\r\nset-cookie: a=b\r\n")
        writer.write(b"content-length: %d\r\n\r\n" % len(packed) + packed)

    api.answer = refuse
    answer = await client.post("/v1/messages", json=BODY)
    assert (answer.status_code, answer.headers["request-id"]) == (401, "req_1")
    assert fault(answer) == "invalid x-api-key"
    assert "set-cookie" not in answer.headers


async def test_a_key_that_comes_back_in_a_header_is_masked(client: httpx.AsyncClient, api: Api) -> None:
    async def echo(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nx-debug: key=%b;\r\ncontent-length: 0\r\n\r\n" % KEY.encode())

    api.answer = echo
    assert (await client.post("/v1/messages", json=BODY)).headers["x-debug"] == "key=***;"


@pytest.mark.parametrize(
    ("method", "path", "passed"),
    [
        ("POST", "/v1/messages/count_tokens?beta=true", "/v1/messages/count_tokens?beta=true"),
        ("GET", "/v1/models?limit=1000&x=1", "/v1/models?limit=1000"),
        ("GET", "/v1/models/claude-opus-5-5", "/v1/models/claude-opus-5-5"),
        ("GET", "/v1/messages", None),
        ("DELETE", "/v1/models/x", None),
        ("GET", "/v1/models/../organizations/api_keys", None),
        ("GET", "/v1/models/..%2forganizations", None),
        ("POST", "/v1/messages/batches", None),
        ("POST", "/v1/messages/", None),
        ("POST", "//v1/messages", None),
        ("GET", "/v1/organizations/api_keys", None),
        ("PUT", "/", None),
    ],
)
async def test_only_the_calls_that_an_agent_needs_are_passed_on(
    client: httpx.AsyncClient, api: Api, method: str, path: str, passed: str | None
) -> None:
    url = httpx.URL("http://model.invalid").copy_with(raw_path=path.encode())
    answer = await client.request(method, url, content=b"{}" if method == "POST" else None)
    assert [asked.target for asked in api.asked] == ([passed] if passed else [])
    assert answer.status_code == (200 if passed else 404)
    if not passed:
        assert answer.json()["error"]["type"] == "not_found_error"


async def test_a_look_whether_the_door_is_there_is_answered_here(client: httpx.AsyncClient, api: Api) -> None:
    assert (await client.head("/")).status_code == 200
    assert (await client.get("/")).status_code == 200
    assert api.asked == []


async def test_a_request_too_large_is_refused(client: httpx.AsyncClient, api: Api) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(1 << 20)

    answer = await client.post("/v1/messages", content=bytes((32 << 20) + 1))
    assert (answer.status_code, answer.json()["error"]["type"]) == (413, "request_too_large")
    assert api.asked == []
    answer = await client.post("/v1/messages", content=endless())
    assert answer.status_code == 413


async def test_a_large_request_and_a_larger_answer_cost_no_memory(
    client: httpx.AsyncClient, api: Api, door: Door
) -> None:
    pieces, size = 100, 1 << 20

    async def flood(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (pieces * size))
        for _ in range(pieces):
            writer.write(bytes(size))
            await writer.drain()

    await client.post("/v1/messages", json=BODY)
    before = peak(door)
    api.answer, api.count_only = flood, True
    got = 0
    async with client.stream("POST", "/v1/messages", content=bytes(31 << 20)) as answer:
        async for piece in answer.aiter_raw():
            got += len(piece)
    assert got == pieces * size
    assert peak(door) - before < 8 << 10


def peak(door: Door) -> int:
    """The most memory that the daemon has had, in KiB."""
    lines = Path(f"/proc/{door.service.pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


async def test_an_agent_that_hangs_up_ends_the_call_to_the_api(client: httpx.AsyncClient, api: Api, door: Door) -> None:
    async def never(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n")
        await asyncio.sleep(30)

    async def silent(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(30)

    for behaviour in (never, silent):
        api.answer = behaviour
        call = asyncio.create_task(client.post("/v1/messages", json=BODY))
        async with asyncio.timeout(5):
            while not api.asked:
                await asyncio.sleep(0.01)
        call.cancel()
        api.asked.clear()
        await asyncio.sleep(0)
        await door.logged("(the agent hung up)")


async def test_an_api_out_of_reach_is_named_and_the_key_is_not(client: httpx.AsyncClient, api: Api, door: Door) -> None:
    await api.stop()
    answer = await client.post("/v1/messages", json=BODY)
    assert (answer.status_code, answer.json()["error"]["type"]) == (502, "api_error")
    assert fault(answer).endswith(f"can't reach {api.url.removeprefix('http://')}: Connection refused")
    assert KEY not in answer.text


@pytest.mark.parametrize("cut", [b"", b"HTTP/1.1 200", b"nonsense\r\n\r\n"])
async def test_an_api_that_breaks_off_before_its_answer_is_a_bad_gateway(
    client: httpx.AsyncClient, api: Api, cut: bytes
) -> None:
    async def breaks(writer: asyncio.StreamWriter) -> None:
        writer.write(cut)
        raise ConnectionError

    api.answer = breaks
    answer = await client.post("/v1/messages", json=BODY)
    assert answer.status_code == 502
    assert "broke off" in fault(answer)


async def test_an_answer_that_breaks_off_does_not_look_whole(client: httpx.AsyncClient, api: Api) -> None:
    async def breaks(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\npart\r\n")
        await writer.drain()
        raise ConnectionError

    api.answer = breaks
    with pytest.raises(httpx.TransportError):
        await client.post("/v1/messages", json=BODY)


async def test_a_redirect_is_not_followed(client: httpx.AsyncClient, api: Api) -> None:
    async def away(writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 307 x\r\nlocation: {api.url}/v1/messages?k={KEY}\r\ncontent-length: 0\r\n\r\n".encode())

    api.answer = away
    answer = await client.post("/v1/messages", json=BODY)
    assert (answer.status_code, len(api.asked)) == (502, 1)
    assert "redirects" in fault(answer)


async def test_what_is_no_http_is_refused_and_silence_is_left_alone(client: httpx.AsyncClient, door: Door) -> None:
    for data in (b"\0\0kai.Bot.Deliver\0", b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 20_000, b"GET /\r\n"):
        reader, writer = await asyncio.open_unix_connection(door.socket)
        writer.write(data + b"\r\n\r\n")
        with suppress(ConnectionError):
            assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
        writer.close()
    _, writer = await asyncio.open_unix_connection(door.socket)
    writer.close()
    assert (await client.get("/")).status_code == 200


async def test_a_missing_key_is_told_to_every_caller_and_the_daemon_leaves(door: Door, api: Api) -> None:
    (door.directory / "credentials/kai-model-key").unlink()
    door.listen("--one-uid", idle=0.3)
    async with door.client() as client:
        for _ in range(2):
            answer = await client.post("/v1/messages", json=BODY)
            assert (answer.status_code, answer.headers["x-should-retry"]) == (503, "false")
            assert "/etc/credstore/kai-model-key" in fault(answer)
    assert api.asked == []
    await asyncio.wait_for(door.service.exited.wait(), 5)
    assert door.service.exit_status == 0


@pytest.mark.parametrize("key", ["", "two words", "bad\nline", "k€y-k€y-k€y"])
async def test_a_key_that_is_none_is_not_sent_anywhere(door: Door, api: Api, key: str) -> None:
    door.configure(api.url, key=key)
    door.listen("--one-uid")
    async with door.client() as client:
        assert (await client.post("/v1/messages", json=BODY)).status_code == 503
    assert api.asked == []


async def test_a_broken_configuration_is_told_without_its_content(door: Door, api: Api) -> None:
    door.configure(api.url, users={"users": [{"telegram_id": "secret-thing", "name": "alice"}]})
    door.listen()
    async with door.client() as client:
        answer = await client.post("/v1/messages", json=BODY)
    assert answer.status_code == 503
    assert "kai check" in fault(answer)
    assert "secret-thing" not in answer.text
    assert "users[0].telegram_id" in door.log.read_text()


async def test_who_is_no_inner_agent_gets_no_answer(door: Door, api: Api) -> None:
    door.listen()  # alice's work account is kai-w-alice, and these tests run as somebody else
    async with door.client() as client:
        with pytest.raises(httpx.TransportError):
            await client.post("/v1/messages", json=BODY)
    assert "refused a c" in await door.logged("refused a c")
    assert api.asked == []


async def test_it_leaves_when_idle_and_comes_back(door: Door) -> None:
    door.listen("--one-uid", idle=0.3)
    async with door.client() as client:
        for start in (1, 2):
            assert (await client.get("/")).status_code == 200
            await asyncio.wait_for(door.service.exited.wait(), 5)
            assert (door.service.starts, door.service.exit_status) == (start, 0)


async def test_a_stop_lets_a_running_answer_end(client: httpx.AsyncClient, api: Api, door: Door) -> None:
    go_on = asyncio.Event()

    async def slowly(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\nfirst")
        await go_on.wait()
        writer.write(b"second")

    api.answer = slowly
    async with client.stream("POST", "/v1/messages", json=BODY) as answer:
        pieces = answer.aiter_raw()
        assert await anext(pieces) == b"first"
        assert door.service.pid
        os.kill(door.service.pid, signal.SIGTERM)
        await asyncio.sleep(0.2)
        go_on.set()
        assert await anext(pieces) == b"second"
    await asyncio.wait_for(door.service.exited.wait(), 5)


async def test_a_reload_with_a_broken_file_keeps_the_last_good_one(
    client: httpx.AsyncClient, api: Api, door: Door
) -> None:
    assert (await client.get("/")).status_code == 200
    pid = door.service.pid
    assert pid
    door.configure(api.url, users={"users": []})
    os.kill(pid, signal.SIGHUP)
    assert "users.yaml" in await door.logged("stays in force")
    assert (await client.post("/v1/messages", json=BODY)).status_code == 200
    assert door.service.pid == pid


async def test_a_reload_with_another_address_asks_there_from_the_next_call_on(
    client: httpx.AsyncClient, api: Api, door: Door
) -> None:
    other = Api()
    await other.start()
    await client.post("/v1/messages", json=BODY)
    assert door.service.pid
    door.configure(other.url)
    os.kill(door.service.pid, signal.SIGHUP)
    await asyncio.wait_for(door.service.exited.wait(), 5)
    await client.post("/v1/messages", json=BODY)
    assert (len(api.asked), len(other.asked)) == (1, 1)
    await other.stop()


async def test_the_log_tells_each_call_and_never_the_key(client: httpx.AsyncClient, door: Door, api: Api) -> None:
    await client.post("/v1/messages?beta=true&q=private", json=BODY)
    log = await door.logged("POST /v1/messages -> 200, 2 bytes")
    assert "private" not in log
    await api.stop()
    await client.post("/v1/messages", json=BODY)
    log = await door.logged("-> 502")
    assert KEY not in log
    assert door.service.pid
    with suppress(PermissionError):  # it hides its memory: then nobody of its uid can look
        assert KEY.encode() not in Path(f"/proc/{door.service.pid}/environ").read_bytes()
    assert KEY.encode() not in Path(f"/proc/{door.service.pid}/cmdline").read_bytes()


def test_nothing_here_needs_the_bots_libraries() -> None:
    """Start and memory: what the proxy doesn't use isn't imported."""
    import subprocess

    interpreter, environment = python()
    code = "import sys, kai.proxy.main; print([m for m in ('telegram', 'tornado', 'markdown_it') if m in sys.modules])"
    found: Any = subprocess.run([*interpreter, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]", sys.path
