"""The API against an agent that means harm: smuggled requests, slow and half-open clients, floods."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from .conftest import ALICE, Stage, Stages
from .jobset import JobSet

SETTINGS = {"api": {"requests": 100_000, "messages": 100_000}}


@pytest.fixture
async def stage(stages: Stages) -> Stage:
    made: Stage = await stages(settings=SETTINGS)
    JobSet(made)
    return made


def sock(stage: Stage) -> Path:
    return stage.launcher.runtime / "api" / "alice.sock"


async def raw(stage: Stage, data: bytes, *, within: float = 20, finish: bool = False) -> bytes:
    """What comes back for these bytes until the connection ends."""
    reader, writer = await asyncio.open_unix_connection(os.fspath(sock(stage)))
    try:
        writer.write(data)
        if finish:
            writer.write_eof()
        async with asyncio.timeout(within):
            return await reader.read(-1)
    except ConnectionError:
        return b""
    finally:
        writer.transport.abort()


def statuses(answer: bytes) -> list[int]:
    return [int(found) for found in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]


def message(text: str, extra: str = "", *, path: str = "/api/send-message") -> bytes:
    body = json.dumps({"text": text})
    head = f"POST {path} HTTP/1.1\r\nHost: kai\r\nContent-Type: application/json\r\n{extra}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()


async def lives(stage: Stage, words: str = "still here") -> None:
    """The API answers others, and the supervisor has not died of it."""
    answer = await raw(stage, message(words, "Connection: close\r\n"))
    assert statuses(answer) == [200], answer
    await stage.answer(words)


INNER = b"POST /api/send-message HTTP/1.1\r\nHost: kai\r\nContent-Length: 21\r\n\r\n" + b'{"text": "SMUGGLED!"}'
SMUGGLED = {
    "two lengths": b"POST /api/jobs HTTP/1.1\r\nHost: kai\r\nContent-Length: 0\r\nContent-Length: %d\r\n\r\n" + INNER,
    "length and chunks": (
        b"POST /api/jobs HTTP/1.1\r\nHost: kai\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        + INNER
    ),
    "chunks written otherwise": (
        b"POST /api/jobs HTTP/1.1\r\nHost: kai\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + INNER
    ),
    "space before the colon": b"POST /api/jobs HTTP/1.1\r\nHost: kai\r\nContent-Length : 5\r\n\r\n" + INNER,
    "a negative length": b"POST /api/jobs HTTP/1.1\r\nHost: kai\r\nContent-Length: -5\r\n\r\n" + INNER,
    "a length with a plus": b"POST /api/jobs HTTP/1.1\r\nHost: kai\r\nContent-Length: +5\r\n\r\n" + INNER,
    "a length in hexadecimal": b"POST /api/jobs HTTP/1.1\r\nHost: kai\r\nContent-Length: 0x5\r\n\r\n" + INNER,
    "two hosts": b"POST /api/jobs HTTP/1.1\r\nHost: kai\r\nHost: bob\r\nContent-Length: 0\r\n\r\n" + INNER,
    "no host": b"GET /health HTTP/1.1\r\n\r\n" + INNER,
    "a bare newline in a header": b"GET /health HTTP/1.1\r\nHost: kai\r\nX: a\rContent-Length: 5\r\n\r\n" + INNER,
    "a NUL in a header": b"GET /health HTTP/1.1\r\nHost: kai\r\nX: a\0b\r\n\r\n" + INNER,
    "an absolute address": b"GET http://bob/health HTTP/1.1\r\nHost: kai\r\n\r\n" + INNER,
    "only an authority": b"CONNECT bob:80 HTTP/1.1\r\nHost: kai\r\n\r\n" + INNER,
    "a broken chunk": (
        b"POST /api/send-message HTTP/1.1\r\nHost: kai\r\nTransfer-Encoding: chunked\r\n\r\n5;\r\nxxxxx0\r\n" + INNER
    ),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + INNER,
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
    "a huge head": b"GET /health HTTP/1.1\r\nHost: kai\r\nX: " + b"a" * (1 << 20),
    "a huge target": b"GET /" + b"a" * (1 << 20) + b" HTTP/1.1\r\nHost: kai\r\n\r\n",
    "very many headers": b"GET /health HTTP/1.1\r\nHost: kai\r\n" + b"X: y\r\n" * 100_000 + b"\r\n",
}


@pytest.mark.parametrize("name", SMUGGLED)
async def test_a_request_that_could_be_read_in_two_ways_is_refused_and_nothing_behind_it_is_read(
    stage: Stage, name: str
) -> None:
    found = statuses(await raw(stage, SMUGGLED[name]))
    assert len(found) <= 1, found
    assert set(found) <= {400, 404, 405, 413, 431}, found
    await lives(stage)
    assert not any("SMUGGLED" in text for text in stage.shown())


async def test_requests_in_a_row_are_answered_in_order(stage: Stage) -> None:
    data = message("one") + b"GET /health HTTP/1.1\r\nHost: kai\r\n\r\n" + message("two", "Connection: close\r\n")
    assert statuses(await raw(stage, data)) == [200, 200, 200]
    await stage.answer("two")


async def test_slow_and_half_open_clients_hold_nobody_up(stage: Stage) -> None:
    await lives(stage, "first")
    held = []
    for data in (b"", b"POST /api/sch", message("never")[:-5], b"GET /health HTTP/1.1\r\nHost: kai\r\n") * 3:
        reader, writer = await asyncio.open_unix_connection(os.fspath(sock(stage)))
        writer.write(data)
        held.append((reader, writer))
    began = time.monotonic()
    await lives(stage, "second")
    assert time.monotonic() - began < 5
    for reader, _ in held[:2]:  # those without a whole head are let go of by themselves
        async with asyncio.timeout(20):
            await reader.read(-1)
    for _, writer in held:
        writer.transport.abort()
    assert not any("never" in text for text in stage.shown())


async def test_ten_thousand_connections_are_closed_at_once_and_leave_nothing(stage: Stage) -> None:
    await lives(stage, "first")
    pid = stage.launcher.pid("kai-agent@alice")
    assert pid
    before = descriptors(pid)
    held: list[socket.socket] = []
    refused = 0
    for _ in range(10_000):
        one = socket.socket(socket.AF_UNIX)
        one.setblocking(False)
        try:
            one.connect(os.fspath(sock(stage)))
            held.append(one)
        except OSError:  # the kernel's queue is full
            refused += 1
            one.close()
            await asyncio.sleep(0.001)
        if len(held) > 500:
            held.pop(0).close()
    most = descriptors(pid)
    assert most - before <= 20, most
    for one in held:
        one.close()
    await settles(lambda: descriptors(pid) <= before + 1)
    await lives(stage, "second")
    assert stage.launcher.pid("kai-agent@alice") == pid


async def test_bodies_of_a_gigabyte_cost_no_memory(stage: Stage) -> None:
    await lives(stage, "first")
    pid = stage.launcher.pid("kai-agent@alice")
    assert pid
    before = memory(pid)
    for path, kind in (("/api/schedule", "application/json"), ("/api/send-file?name=x", "application/octet-stream")):
        head = f"POST {path} HTTP/1.1\r\nHost: kai\r\nContent-Type: {kind}\r\nContent-Length: {1 << 30}\r\n\r\n"
        assert statuses(await raw(stage, head.encode())) == [413]
        reader, writer = await asyncio.open_unix_connection(os.fspath(sock(stage)))
        writer.write(head.replace(f"Content-Length: {1 << 30}", "Transfer-Encoding: chunked").encode())
        answer = asyncio.create_task(reader.read(1 << 16))  # it comes while we write, and is lost at the first EPIPE
        piece, sent = b"100000\r\n" + bytes(1 << 20) + b"\r\n", 0
        with suppress(ConnectionError, TimeoutError):
            while sent < 1024 and not answer.done():
                writer.write(piece)
                sent += 1
                async with asyncio.timeout(20):
                    await writer.drain()
        assert statuses(await answer) == [413]
        writer.transport.abort()
    assert memory(pid) - before < 16 << 20
    await lives(stage, "second")


async def test_ten_thousand_jobs_are_not_made(stage: Stage) -> None:
    job = json.dumps({"prompt": "x", "schedule_type": "interval", "schedule_data": {"seconds": 86400}})
    request = f"POST /api/schedule HTTP/1.1\r\nHost: kai\r\nContent-Length: {len(job)}\r\n\r\n{job}".encode()
    found: list[int] = []
    for _ in range(5):
        end = b"GET /health HTTP/1.1\r\nHost: kai\r\nConnection: close\r\n\r\n"
        found += statuses(await raw(stage, request * 30 + end, within=60))[:-1]
    assert found.count(200) == 100
    assert set(found[100:]) == {400}
    await lives(stage)


async def test_deep_and_odd_json_is_a_fault_of_the_caller(stage: Stage) -> None:
    odd: list[bytes] = [
        b"[" * 100_000,
        b'{"text":' * 50_000,
        b'{"text": "\xff"}',
        b'{"text": "\\ud800"}',
        b"\0",
        b"nul",
    ]
    odd += [b'{"text": 1e999}', b'{"text": NaN}', b'{"schedule_data": ' + b"[" * 5000 + b"]" * 5000 + b"}"]
    for body in odd:
        for path in ("/api/send-message", "/api/schedule", "/api/services/x", "/api/send-file"):
            head = f"POST {path} HTTP/1.1\r\nHost: kai\r\nContent-Type: application/json\r\nConnection: close\r\n"
            answer = await raw(stage, f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            assert statuses(answer)[0] in (400, 404, 413, 503), (body[:40], path, answer[:300])
            assert b"\xed\xa0" not in answer
    await lives(stage)


async def test_who_hangs_up_in_the_middle_leaves_nothing_behind(stage: Stage) -> None:
    await lives(stage, "first")
    pid = stage.launcher.pid("kai-agent@alice")
    assert pid
    before = descriptors(pid)
    for cut in range(20, 200, 9):
        await raw(stage, message("hung up")[:cut], finish=True)
        reader, writer = await asyncio.open_unix_connection(os.fspath(sock(stage)))
        writer.write(message("hung up")[:cut])
        writer.transport.abort()
        del reader
    await settles(lambda: descriptors(pid) <= before)
    await lives(stage, "second")
    assert "Traceback" not in stage.launcher.logs("kai-agent@alice")
    assert not stage.api.messages(ALICE)[-1].deleted


async def settles(condition: Callable[[], bool], within: float = 20) -> None:
    async with asyncio.timeout(within):
        while not condition():
            await asyncio.sleep(0.05)


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def memory(pid: int) -> int:
    """Resident bytes."""
    found = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) << 10
