"""Calls of services through a real kai-proxy, between a supervisor and a service that isn't always friendly."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import os
import signal
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from kai.interfaces import (
    CallService,
    ServiceRefused,
    ServiceUnreachable,
    TooManyCalls,
    UnknownService,
)
from kai.lib.client import Client
from kai.lib.varlink import InvalidParameter, Misconfigured, PermissionDenied
from tests.process.conftest import Stages
from tests.process.desk import KEY, Asked, Desk, Upstream, whole

CERTIFICATE = Path(__file__).with_name("localhost.pem")
ECHO = "/echo"


@pytest.fixture
async def up() -> AsyncIterator[Upstream]:
    made = Upstream()
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def desk(tmp_path: Path, up: Upstream) -> AsyncIterator[Desk]:
    made = Desk(tmp_path)
    basic = {"url": f"{up.url}/v1", "allow_private": True, "allow_path_suffix": True}
    bearer = {**basic, "auth": {"type": "bearer"}}
    made.services(
        weather={**basic, "description": "The weather", "notes": "Ask for a town."},
        post={**bearer, "method": "POST", "headers": {"Accept": "text/x", "X-Version": "7"}},
        header={**basic, "auth": {"type": "header", "name": "X-Key", "prefix": "Token", "credential": "post"}},
        query={
            **basic,
            "auth": {"type": "query", "name": "appid", "credential": "post"},
            "params": {"units": "metric"},
        },
        bobs={**basic, "users": ["bob"]},
        rare={**basic, "rate": 2},
        keyless=bearer,
        optional={**basic, "auth": {"type": "bearer", "optional": True}},
        forbidden={"url": "https://169.254.169.254", "allow_private": True},
        nowhere={**basic, "url": "http://127.0.0.1:1"},
    )
    made.key("post")
    yield made
    await made.close()


async def test_a_call_reaches_the_service_with_its_parameters_and_comes_back(desk: Desk, up: Upstream) -> None:
    desk.listen()
    answer, body = await desk.call("weather", suffix="daily/tomorrow", q="Köln & Bonn", n="1")
    assert (answer.status, answer.type, body) == (200, "application/json", b'{"ok":true}')
    (asked,) = up.asked
    assert (asked.method, asked.target) == ("GET", "/v1/daily/tomorrow?q=K%C3%B6ln+%26+Bonn&n=1")
    assert asked.header("host") == [f"127.0.0.1:{up.port}"]
    assert asked.header("accept-encoding") == ["identity"]
    assert asked.header("user-agent")[0].startswith("Kai/")
    assert asked.header("authorization") == asked.header("content-type") == []


async def test_each_way_of_giving_the_key_puts_it_where_the_service_wants_it(desk: Desk, up: Upstream) -> None:
    desk.listen()
    data = json.dumps({"a": "ä"}).encode()
    await desk.call("post", data)
    await desk.call("header")
    await desk.call("query", q="x")
    posted, header, query = up.asked
    assert (posted.method, posted.body) == ("POST", data)
    assert posted.header("authorization") == [f"Bearer {KEY}"]
    assert posted.header("content-type") == ["application/json"]
    assert (posted.header("accept"), posted.header("x-version")) == (["text/x"], ["7"])
    assert header.header("x-key") == [f"Token {KEY}"]
    assert query.target == f"/v1?units=metric&q=x&appid={quote(KEY, safe='')}"


async def test_a_redirect_is_the_answer_and_is_not_followed(desk: Desk, up: Upstream) -> None:
    other = Upstream()
    await other.start()
    up.answer = whole(b"moved", f"location: {other.url}/?{KEY}", status="302 Found", kind="text/plain")
    desk.listen()
    answer, body = await desk.call("post", b"{}")
    assert (answer.status, body) == (302, b"moved")
    assert (len(up.asked), other.asked) == (1, [])
    await other.stop()


async def test_an_error_of_the_service_is_an_answer(desk: Desk, up: Upstream) -> None:
    up.answer = whole(b'{"error":"bad"}', status="422 No")
    desk.listen()
    answer, body = await desk.call("weather")
    assert (answer.status, body) == (422, b'{"error":"bad"}')


async def test_an_environment_with_proxies_changes_nothing(desk: Desk, up: Upstream) -> None:
    trap = Upstream()
    await trap.start()
    desk.listen(environment=dict.fromkeys(("http_proxy", "HTTP_PROXY", "ALL_PROXY", "https_proxy"), trap.url))
    assert (await desk.call("weather"))[0].status == 200
    assert (len(up.asked), trap.asked) == (1, [])
    await trap.stop()


# ---- keys ----


def spellings() -> list[bytes]:
    """The key as honest echoes have it."""
    basic = base64.b64encode(f"user:{KEY}".encode())
    other = [json.dumps(KEY).encode(), KEY.replace("/", "\\/").encode(), quote(KEY, safe="").encode()]
    return [KEY.encode(), base64.b64encode(KEY.encode()), basic, KEY.encode().hex().encode(), *other]


async def test_a_key_that_comes_back_is_masked_in_every_spelling(desk: Desk, up: Upstream) -> None:
    up.answer = whole(b" | ".join(spellings()), kind=f"text/plain; key={KEY}")
    desk.listen()
    answer, body = await desk.call("post", b"{}")
    for spelling in spellings():
        assert spelling not in body
    assert KEY.encode()[4:14] not in body
    assert answer.type == "text/plain; key=***"


async def test_a_key_that_comes_back_in_pieces_is_masked(desk: Desk, up: Upstream) -> None:
    async def drip(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        filler = b"x" * 65530  # the key lies over the end of a piece that is passed on
        for piece in (filler, *(bytes([byte]) for byte in KEY.encode()), filler, KEY.encode()):
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await writer.drain()
            await asyncio.sleep(0)
        writer.write(b"0\r\n\r\n")

    up.answer = drip
    desk.listen()
    _, body = await desk.call("post", b"{}")
    assert body == b"x" * 65530 + b"***" + b"x" * 65530 + b"***"


async def test_a_key_that_comes_back_compressed_is_masked(desk: Desk, up: Upstream) -> None:
    up.answer = whole(gzip.compress(b"a " + KEY.encode()) + gzip.compress(b" b"), "content-encoding: gzip")
    desk.listen()
    assert (await desk.call("post", b"{}"))[1] == b"a *** b"


async def test_a_missing_key_names_its_file_unless_it_is_optional(desk: Desk, up: Upstream) -> None:
    desk.listen()
    with pytest.raises(Misconfigured, match="/etc/credstore/kai-services/keyless"):
        await desk.call("keyless")
    assert up.asked == []
    await desk.call("optional")
    assert up.asked[0].header("authorization") == []


@pytest.mark.parametrize("key", ["two words", "two\nlines", "short", "ünicode-key", "x" * 5000])
async def test_a_key_that_is_none_is_not_sent(desk: Desk, up: Upstream, key: str) -> None:
    desk.key("keyless", key)
    desk.listen()
    with pytest.raises(Misconfigured, match="can't be used") as caught:
        await desk.call("keyless")
    assert key not in str(caught.value)
    assert up.asked == []


async def test_the_log_tells_each_call_and_neither_query_nor_path_nor_key(desk: Desk, up: Upstream) -> None:
    up.answer = whole(b"secret-answer")
    desk.listen()
    await desk.call("query", suffix="secret-path", q="secret-word")
    await desk.call("post", b'{"a":"secret-body"}')
    with pytest.raises(UnknownService):
        await desk.call("secret-name")
    with pytest.raises(InvalidParameter):
        await desk.call("weather", params={"secret\nparam": "1"})
    with pytest.raises(ServiceUnreachable):
        await desk.call("nowhere", suffix="secret-path")
    log = await desk.logged("nowhere GET -> 127.0.0.1: Connection refused")
    assert "user=alice alice: query GET -> 200, 13 bytes" in log
    assert "alice: post POST -> 200, 13 bytes" in log
    assert "alice: an unknown service -> UnknownService" in log
    assert "alice: weather GET -> InvalidParameter" in log
    for secret in ("secret", *(spelling.decode() for spelling in spellings())):
        assert secret not in log


# ---- who, and how often ----


async def test_a_user_sees_and_calls_his_services_and_no_others(desk: Desk, up: Upstream) -> None:
    desk.listen()
    everybodys = ["forbidden", "header", "keyless", "nowhere", "optional", "post", "query", "rare", "weather"]
    assert await desk.names() == await desk.names("alice") == everybodys
    with pytest.raises(PermissionDenied):
        await desk.names("bob")
    with pytest.raises(UnknownService) as his:
        await desk.call("bobs")
    with pytest.raises(UnknownService) as none:
        await desk.call("none")
    assert str(his.value).replace("bobs", "none") == str(none.value)
    desk.who("supervisor bob")
    assert await desk.names() == sorted([*everybodys, "bobs"])
    assert (await desk.call("bobs"))[0].status == 200
    desk.who("supervisor carol")  # has left; his supervisor has not yet
    with pytest.raises(UnknownService):
        await desk.call("weather")
    assert len(up.asked) == 1


async def test_the_operator_may_look_and_not_call(desk: Desk, up: Upstream) -> None:
    desk.who("operator ")
    desk.listen()
    assert "bobs" in await desk.names()
    assert "bobs" not in await desk.names("alice")
    with pytest.raises(InvalidParameter, match="user: "):
        await desk.names("nobody")
    with pytest.raises(PermissionDenied):
        await desk.call("weather")
    assert up.asked == []


@pytest.mark.parametrize("who", ["inner alice", "kai-bot ", "kai-scheduler "])
async def test_others_may_do_nothing(desk: Desk, up: Upstream, who: str) -> None:
    desk.who(who)
    desk.listen()
    with pytest.raises(PermissionDenied):
        await desk.names()
    with pytest.raises(PermissionDenied):
        await desk.call("weather")
    assert up.asked == []


async def test_a_rate_bounds_each_user_apart_and_tells_when_to_come_back(desk: Desk, up: Upstream) -> None:
    desk.listen()
    for _ in range(2):
        await desk.call("rare")
    with pytest.raises(TooManyCalls) as caught:
        await desk.call("rare")
    assert 55 <= int(str(caught.value)) <= 60
    await desk.call("weather")
    desk.who("supervisor bob")
    await desk.call("rare")
    assert len(up.asked) == 4


async def test_four_calls_of_a_user_run_at_a_time(desk: Desk, up: Upstream) -> None:
    go_on = asyncio.Event()

    async def later(asked: Asked, writer: asyncio.StreamWriter) -> None:
        await go_on.wait()
        await whole(b"{}")(asked, writer)

    up.answer = later
    desk.listen()
    calls = [asyncio.create_task(desk.call("weather")) for _ in range(4)]
    async with asyncio.timeout(10):
        while len(up.asked) < 4:
            await asyncio.sleep(0.02)
    with pytest.raises(TooManyCalls, match="1"):
        await desk.call("weather")
    go_on.set()
    await asyncio.gather(*calls)
    await desk.call("weather")


# ---- services that aren't friendly ----


async def test_ten_mebibytes_come_whole_and_one_byte_more_is_refused(desk: Desk, up: Upstream) -> None:
    most = 10 << 20
    for packed in (False, True):
        up.answer = whole(gzip.compress(bytes(most)), "content-encoding: gzip") if packed else whole(bytes(most))
        if not packed:
            desk.listen()
        answer, body = await desk.call("weather")
        assert (answer.size, body) == (most, bytes(most))
        more = bytes(most + 1)
        up.answer = whole(gzip.compress(more), "content-encoding: gzip") if packed else whole(more)
        with pytest.raises(ServiceRefused, match="more than 10 MiB"):
            await desk.call("weather")


async def test_an_endless_answer_and_a_bomb_end_early_and_cost_little_memory(desk: Desk, up: Upstream) -> None:
    async def endless(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(bytes(1 << 16))
            await writer.drain()

    async def nothing(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\n\r\n")
        while True:  # much comes, and unpacked it is still empty
            writer.write(gzip.compress(b"") * 1000)
            await writer.drain()

    desk.listen()
    await desk.call("post", b"{}")
    before = desk.peak()
    bomb = gzip.compress(bytes(200 << 20))
    for answer in (endless, nothing, whole(bomb, "content-encoding: gzip")):
        up.answer = answer
        for service in ("weather", "header"):
            with pytest.raises(ServiceRefused, match="more than 10 MiB"):
                await desk.call(service)
    assert desk.peak() - before < 8 << 10


@pytest.mark.parametrize("encoding", ["br", "gzip, gzip", "zstd"])
async def test_what_cant_be_unpacked_is_refused(desk: Desk, up: Upstream, encoding: str) -> None:
    up.answer = whole(b"x", f"content-encoding: {encoding}")
    desk.listen()
    with pytest.raises(ServiceRefused, match="compressed"):
        await desk.call("weather")


@pytest.mark.parametrize("broken", [b"no gzip at all", gzip.compress(os.urandom(5000))[:-100]])
async def test_a_damaged_packing_is_refused(desk: Desk, up: Upstream, broken: bytes) -> None:
    up.answer = whole(broken, "content-encoding: gzip")
    desk.listen()
    with pytest.raises(ServiceRefused, match="can't be unpacked"):
        await desk.call("weather")


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"HTTP/1.1 200",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nab",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * (1 << 17) + b"\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 100,
        b"HTTP/1.1 101 Switching\r\nupgrade: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n%b bad: x\r\n\r\n" % KEY.encode(),
    ],
)
async def test_an_answer_that_breaks_off_or_is_none_counts_for_nothing(desk: Desk, up: Upstream, said: bytes) -> None:
    async def answer(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(said)

    up.answer = answer
    desk.listen()
    with pytest.raises(ServiceUnreachable, match=r"^127\.0\.0\.1 broke off") as caught:
        await desk.call("post", b"{}")
    assert KEY not in str(caught.value)


async def test_a_slow_service_is_given_up(desk: Desk, up: Upstream) -> None:
    async def slow(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b"x")
            await asyncio.sleep(0.05)

    up.answer = slow
    desk.listen("import kai.proxy.outgoing as o; assert o.SECONDS == 30; o.SECONDS = 0.5")
    with pytest.raises(ServiceUnreachable, match=r"had not answered in full after 0\.5 s"):
        await desk.call("weather")
    async with asyncio.timeout(5):
        await up.left.wait()


async def test_crumbs_of_one_byte_dont_hold_up_the_others(desk: Desk, up: Upstream) -> None:
    async def crumbs(asked: Asked, writer: asyncio.StreamWriter) -> None:
        if "crumbs" not in asked.target:
            await whole(b"{}")(asked, writer)
            return
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"1\r\nx\r\n" * 10000)
            await writer.drain()

    up.answer = crumbs
    desk.listen()
    eats = asyncio.create_task(desk.call("weather", suffix="crumbs"))
    async with asyncio.timeout(10):
        while not up.asked:
            await asyncio.sleep(0.02)
        began = asyncio.get_running_loop().time()
        for _ in range(5):
            await desk.call("optional")
        assert asyncio.get_running_loop().time() - began < 3
    eats.cancel()
    await asyncio.gather(eats, return_exceptions=True)


async def test_a_caller_who_hangs_up_ends_the_call_of_the_service(desk: Desk, up: Upstream) -> None:
    async def never(asked: Asked, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(60)

    up.answer = never
    desk.listen()
    call = asyncio.create_task(desk.call("weather"))
    async with asyncio.timeout(10):
        while not up.asked:
            await asyncio.sleep(0.02)
        call.cancel()
        await up.left.wait()
    await desk.logged("weather GET -> the caller hung up")
    up.answer = whole(b"{}")
    await asyncio.gather(*(desk.call("rare") for _ in range(2)))


# ---- addresses ----


async def test_an_address_of_a_cloud_is_refused_even_with_allow_private(desk: Desk) -> None:
    desk.listen()
    with pytest.raises(ServiceRefused, match=r"169\.254\.169\.254"):
        await desk.call("forbidden")
    await desk.logged("forbidden GET -> 169.254.169.254 is")


async def test_a_name_that_leads_to_this_host_is_refused_without_allow_private(desk: Desk, up: Upstream) -> None:
    desk.services(rebound={"url": f"https://service.test:{up.port}"})
    answers = "[(2, 1, 6, '', ('127.0.0.1', port))]"
    desk.listen(f"import socket; socket.getaddrinfo = lambda host, port, **more: {answers}")
    with pytest.raises(ServiceRefused, match="private network"):
        await desk.call("rebound")
    assert up.asked == []


async def test_a_name_is_looked_up_once_and_the_connection_goes_to_what_was_checked(desk: Desk, up: Upstream) -> None:
    """The name service says something else at the second question, as one that means harm would."""
    other = Upstream()
    await other.start()
    desk.services(
        rebound={"url": f"http://service.test:{up.port}", "allow_private": True},
    )
    desk.listen(
        "import socket",
        "count = 0",
        "def changing(host, port, *rest, **more):",
        "    global count",
        "    count += 1",
        "    address = ('127.0.0.1', port) if count % 2 else ('169.254.169.254', port)",
        "    return [(2, 1, 6, '', address)]",
        "socket.getaddrinfo = changing",
    )
    assert (await desk.call("rebound"))[0].status == 200
    assert up.asked[0].header("host") == [f"service.test:{up.port}"]
    with pytest.raises(ServiceRefused, match=r"169\.254\.169\.254"):
        await desk.call("rebound")
    assert len(up.asked) == 1
    await other.stop()


async def test_a_service_out_of_reach_is_named(desk: Desk) -> None:
    desk.listen()
    with pytest.raises(ServiceUnreachable, match=r"^127\.0\.0\.1: Connection refused$"):
        await desk.call("nowhere")


# ---- TLS ----


async def test_tls_is_checked_against_the_name_and_the_systems_authorities(tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    async with AsyncExitStack() as stack:
        up = Upstream(context)
        await up.start()
        stack.push_async_callback(up.stop)
        desk = Desk(tmp_path)
        stack.push_async_callback(desk.close)
        desk.services(
            good={"url": f"https://localhost:{up.port}", "allow_private": True},
            other={"url": f"https://127.0.0.2:{up.port}", "allow_private": True},
            plain={"url": f"http://localhost:{up.port}", "allow_private": True},
        )
        desk.listen(environment={"SSL_CERT_FILE": os.fspath(CERTIFICATE)})
        assert (await desk.call("good"))[1] == b'{"ok":true}'
        assert up.asked[0].header("host") == [f"localhost:{up.port}"]
        with pytest.raises(ServiceUnreachable):
            await desk.call("plain")
        await desk.close()
        (tmp_path / "none.pem").write_text("")
        desk.listen(environment={"SSL_CERT_FILE": os.fspath(tmp_path / "none.pem"), "SSL_CERT_DIR": "/nonexistent"})
        with pytest.raises(ServiceUnreachable, match=r"TLS: .*certificate"):
            await desk.call("good")
        assert len(up.asked) == 1


async def test_a_certificate_for_another_name_is_refused(tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    async with AsyncExitStack() as stack:
        up = Upstream(context)
        await up.start()
        stack.push_async_callback(up.stop)
        desk = Desk(tmp_path)
        stack.push_async_callback(desk.close)
        desk.services(wrong={"url": f"https://service.test:{up.port}", "allow_private": True})
        patch = "import socket; socket.getaddrinfo = lambda host, port, **more: [(2, 1, 6, '', ('127.0.0.1', port))]"
        desk.listen(patch, environment={"SSL_CERT_FILE": os.fspath(CERTIFICATE)})
        with pytest.raises(ServiceUnreachable, match=r"TLS: .*not valid for 'service\.test'"):
            await desk.call("wrong")
        assert up.asked == []


# ---- descriptors and bodies ----


@pytest.mark.parametrize("kinds", [(), ("memory",), ("pipe", "memory"), ("memory", "pipe"), ("memory", "read-only")])
async def test_only_files_in_memory_are_taken(desk: Desk, up: Upstream, kinds: tuple[str, ...]) -> None:
    desk.listen()
    opened, pipes = [], []
    for kind in kinds:
        if kind == "memory":
            opened.append(os.memfd_create("x"))
        elif kind == "pipe":
            pair = os.pipe()
            opened.append(pair[len(opened)])
            pipes.append(pair[1 - len(opened) + 1])
        else:
            memory = os.memfd_create("x")
            opened.append(os.open(f"/proc/self/fd/{memory}", os.O_RDONLY))
            os.close(memory)
    try:
        with pytest.raises(InvalidParameter, match="descriptors: "):
            await Client(desk.socket).call(CallService(name="weather"), descriptors=opened)
    finally:
        for descriptor in [*opened, *pipes]:
            os.close(descriptor)
    assert up.asked == []


@pytest.mark.parametrize("body", [b"{", b"\xff", b'"\xff"', b"{} {}", b"NaN", b"[" * 100000])
async def test_a_body_that_is_no_json_is_not_sent(desk: Desk, up: Upstream, body: bytes) -> None:
    desk.listen()
    with pytest.raises(InvalidParameter, match=r"^body: "):
        await desk.call("post", body)
    assert up.asked == []


async def test_a_body_has_its_bounds(desk: Desk, up: Upstream) -> None:
    desk.listen()
    largest = json.dumps("x" * ((256 << 10) - 2)).encode()
    await desk.call("post", largest)
    assert up.asked[0].body == largest
    await desk.call("post")
    assert (up.asked[1].body, up.asked[1].header("content-length")) == (b"", ["0"])
    with pytest.raises(ServiceRefused, match=r"^body: "):
        await desk.call("post", largest + b" ")
    with pytest.raises(InvalidParameter, match=r"^body: "):
        await desk.call("weather", b"{}")
    assert len(up.asked) == 2


async def test_a_call_cant_leave_the_services_address_or_replace_its_parameters(desk: Desk, up: Upstream) -> None:
    desk.listen()
    for suffix in ("../admin", "%2e%2e/admin", "x?y", "x#y", "a\\b", "//evil.example", "a\r\nHost: x"):
        with pytest.raises(ServiceRefused, match=r"^path_suffix: "):
            await desk.call("weather", suffix=suffix)
    for name in ("appid", "APPID", "units"):
        with pytest.raises(ServiceRefused, match=r"^params: "):
            await desk.call("query", params={name: "mine"})
    assert up.asked == []


# ---- its life ----


async def test_it_leaves_when_idle_and_comes_back(desk: Desk) -> None:
    desk.listen(idle=0.3)
    for start in (1, 2):
        assert await desk.names()
        await asyncio.wait_for(desk.service.exited.wait(), 5)
        assert (desk.service.starts, desk.service.exit_status) == (start, 0)


async def test_a_reload_takes_over_services_and_leaves_only_for_other_keys(desk: Desk, up: Upstream) -> None:
    desk.services(one={"url": up.url, "allow_private": True})
    desk.listen()
    assert await desk.names() == ["one"]
    pid = desk.service.pid
    assert pid
    desk.services(two={"url": up.url, "allow_private": True})
    os.kill(pid, signal.SIGHUP)
    async with asyncio.timeout(5):
        while await desk.names() != ["two"]:
            await asyncio.sleep(0.02)
    (desk.directory / "etc/services.yaml").write_text("services: {two: {url: ftp}}")
    os.kill(pid, signal.SIGHUP)
    await desk.logged("stays in force")
    assert await desk.names() == ["two"]
    assert desk.service.pid == pid
    desk.services(three={"url": up.url, "allow_private": True, "auth": "bearer"})
    os.kill(pid, signal.SIGHUP)
    await asyncio.wait_for(desk.service.exited.wait(), 5)
    assert await desk.names() == ["three"]


async def test_a_broken_configuration_is_said_at_each_call(desk: Desk) -> None:
    (desk.directory / "etc/services.yaml").write_text("services: {two: {url: ftp://user:secret-thing@x}}")
    desk.listen("m.IDLE_BROKEN = 0.3")
    for _ in range(2):
        with pytest.raises(Misconfigured, match="kai check"):
            await desk.names()
    with pytest.raises(Misconfigured, match="kai check"):
        await desk.call("weather")
    assert "secret-thing" not in desk.log.read_text()


async def test_a_stop_lets_a_running_call_end(desk: Desk, up: Upstream) -> None:
    go_on = asyncio.Event()

    async def later(asked: Asked, writer: asyncio.StreamWriter) -> None:
        await go_on.wait()
        await whole(b"done")(asked, writer)

    up.answer = later
    desk.listen()
    idle = socket.socket(socket.AF_UNIX)  # who only holds a connection open doesn't delay it
    idle.connect(os.fspath(desk.socket))
    call = asyncio.create_task(desk.call("weather"))
    async with asyncio.timeout(10):
        while not up.asked:
            await asyncio.sleep(0.02)
        assert desk.service.pid
        os.kill(desk.service.pid, signal.SIGTERM)
        await asyncio.sleep(0.2)
        go_on.set()
        assert (await call)[1] == b"done"
        await desk.service.exited.wait()
    idle.close()


# ---- with a supervisor ----


async def test_an_agents_call_through_its_supervisors_api_reaches_the_service(stages: Stages, up: Upstream) -> None:
    stage = await stages()
    directory = stage.launcher.directory
    (directory / "credentials/service_post").write_text(KEY)
    basic = {"url": up.url, "allow_private": True, "auth": "bearer"}
    known = {"post": {**basic, "method": "POST"}, "keyless": basic}
    (directory / "etc/services.yaml").write_text(json.dumps({"services": known}))
    up.answer = whole(json.dumps({"you sent": KEY}).encode())
    transport = httpx.AsyncHTTPTransport(uds=os.fspath(stage.launcher.runtime / "api/alice.sock"))
    async with httpx.AsyncClient(transport=transport, base_url="http://kai", timeout=30) as agent:
        listed = (await agent.get("/api/services")).json()
        assert [each["name"] for each in listed] == ["keyless", "post"]
        answer = await agent.post("/api/services/post", json={"body": {"a": 1}, "params": {"n": 2}})
        assert (answer.status_code, answer.json()) == (200, {"status": 200, "body": {"you sent": "***"}})
        assert (up.asked[0].target, json.loads(up.asked[0].body)) == ("/?n=2", {"a": 1})
        assert up.asked[0].header("authorization") == [f"Bearer {KEY}"]
        for name, status in (("none", 404), ("keyless", 503)):
            refused = await agent.post(f"/api/services/{name}", json={})
            assert (refused.status_code, list(refused.json())) == (status, ["error"]), refused.text
