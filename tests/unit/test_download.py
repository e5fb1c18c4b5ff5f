"""A user's file on its way from Telegram: tried until it comes, never more than the limit, and without a trace."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import telegram
from telegram.error import BadRequest, Forbidden, NetworkError, RetryAfter, TelegramError

from kai.bot.api import Api
from kai.bot.content import BIGGEST_FILE, FileRef
from kai.bot.download import REFUSALS, Download, NotFetched

SECRET = "77:the-secret-of-the-bot"
Answer = Callable[[], httpx.Response]
FILE = FileRef("F1", "document", "a.txt", "text/plain", 5)


class Telegram:
    """In place of the Bot API: getFile raises what is in `errors` first; the last of the `answers` is repeated."""

    def __init__(self, *answers: Answer, errors: list[Exception] | None = None) -> None:
        self.answers, self.errors = list(answers), list(errors or [])
        self.asked: list[str] = []

    async def file_address(self, file: str) -> str:
        self.asked.append(file)
        if self.errors:
            raise self.errors.pop(0)
        return f"http://telegram.invalid/file/bot{SECRET}/documents/a.txt"

    def answer(self, request: httpx.Request) -> httpx.Response:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return answer()


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that were waited between two tries; none really is."""
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    return waited


@pytest.fixture
async def fetching(tmp_path: Path) -> AsyncIterator[Callable[[Telegram], Download]]:
    made: list[Download] = []

    def make(server: Telegram) -> Download:
        one = Download(cast(Api, server), tmp_path)
        one.client = httpx.AsyncClient(transport=httpx.MockTransport(server.answer))
        made.append(one)
        return one

    yield make
    for one in made:
        await one.close()
    assert list(tmp_path.iterdir()) == [], "a file on its way has no name"


def given(content: bytes, **headers: str) -> Answer:
    return lambda: httpx.Response(200, stream=httpx.ByteStream(content), headers=headers)


def status(code: int) -> Answer:
    return lambda: httpx.Response(code)


def failing(error: Exception) -> Answer:
    def fail() -> httpx.Response:
        raise error

    return fail


def whole(descriptor: int) -> bytes:
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


Fetching = Callable[[Telegram], Download]


async def test_a_file_is_given_from_its_beginning(fetching: Fetching) -> None:
    assert whole(await fetching(Telegram(given(b"hello"))).fetch(FILE)) == b"hello"


async def test_a_file_system_without_unnamed_files_does_too(
    fetching: Fetching, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def refuse(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "not supported")
        return real(path, flags, *more, **named)

    monkeypatch.setattr(os, "open", refuse)
    assert whole(await fetching(Telegram(given(b"hello"))).fetch(FILE)) == b"hello"


@pytest.mark.parametrize(
    "first",
    [
        failing(httpx.ConnectError("refused")),
        failing(httpx.ReadTimeout("late")),
        status(502),
        status(404),
        given(b"hel", **{"content-length": "5"}),
    ],
)
async def test_what_may_come_is_tried_again_from_the_beginning(fetching: Fetching, first: Answer) -> None:
    server = Telegram(first, first, given(b"hello"))
    assert whole(await fetching(server).fetch(FILE)) == b"hello"
    assert len(server.asked) == 3, "an address may have expired, so it is asked for again"


@pytest.mark.parametrize("error", [NetworkError("no route"), TelegramError("Bad Gateway")])
async def test_an_address_that_may_come_is_asked_for_again(fetching: Fetching, error: Exception) -> None:
    assert whole(await fetching(Telegram(given(b"hello"), errors=[error] * 9)).fetch(FILE)) == b"hello"


async def test_a_flood_limit_is_waited_for(fetching: Fetching, waits: list[float]) -> None:
    server = Telegram(given(b"hello"), errors=[RetryAfter(30)])
    os.close(await fetching(server).fetch(FILE))
    assert waits[0] >= 30


async def test_a_flood_limit_of_the_file_server_is_waited_for(fetching: Fetching, waits: list[float]) -> None:
    def busy() -> httpx.Response:
        return httpx.Response(429, headers={"retry-after": "30"})

    server = Telegram(*[busy] * (REFUSALS + 2), given(b"hello"))
    assert whole(await fetching(server).fetch(FILE)) == b"hello"
    assert min(waits) >= 30


@pytest.mark.parametrize(
    "error",
    [
        BadRequest("file is too big"),
        BadRequest("wrong file_id or the file is temporarily unavailable"),
        Forbidden("no"),
    ],
)
async def test_what_telegram_refuses_is_told_and_not_asked_for_again(fetching: Fetching, error: TelegramError) -> None:
    server = Telegram(given(b""), errors=[error])
    with pytest.raises(NotFetched, match=rf"a\.txt: .*{error.message}"):
        await fetching(server).fetch(FILE)
    assert len(server.asked) == 1


async def test_an_address_that_is_refused_again_and_again_is_given_up(fetching: Fetching) -> None:
    server = Telegram(status(404))
    with pytest.raises(NotFetched, match="404"):
        await fetching(server).fetch(FILE)
    assert len(server.asked) == REFUSALS


async def test_what_is_bigger_than_telegram_said_is_not_read_to_its_end(fetching: Fetching) -> None:
    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        while True:
            read += 1 << 20
            yield b"x" * (1 << 20)

    with pytest.raises(NotFetched, match="20 MB"):
        await fetching(Telegram(lambda: httpx.Response(200, content=endless()))).fetch(FILE)
    assert read <= BIGGEST_FILE + (2 << 20)


async def test_a_full_disk_is_waited_for(fetching: Fetching, monkeypatch: pytest.MonkeyPatch) -> None:
    real, full = os.write, [OSError(errno.ENOSPC, "No space left on device")] * 3

    def write(descriptor: int, data: Any) -> int:
        if full:
            raise full.pop()
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", write)
    assert whole(await fetching(Telegram(given(b"hello"))).fetch(FILE)) == b"hello"


async def test_a_try_that_is_given_up_leaves_no_descriptor(fetching: Fetching) -> None:
    going, hangs = asyncio.Event(), asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield b"hel"
        going.set()
        await hangs.wait()

    before = len(list(Path("/proc/self/fd").iterdir()))
    task = asyncio.ensure_future(fetching(Telegram(lambda: httpx.Response(200, content=slowly()))).fetch(FILE))
    await going.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize("error", [httpx.ConnectError, httpx.InvalidURL, httpx.UnsupportedProtocol])
async def test_the_token_in_the_address_is_neither_logged_nor_told(
    fetching: Fetching, caplog: pytest.LogCaptureFixture, error: Callable[[str], Exception]
) -> None:
    caplog.set_level(logging.INFO)
    trouble = error(f"can't reach http://telegram.invalid/file/bot{SECRET}/documents/a.txt")
    os.close(await fetching(Telegram(failing(trouble), given(b"hello"))).fetch(FILE))
    with pytest.raises(NotFetched) as told:
        await fetching(Telegram(status(404))).fetch(FILE)
    assert "not fetched yet" in caplog.text
    kai = [record.getMessage() for record in caplog.records if record.name.startswith("kai")]
    assert not any(SECRET in line for line in (*kai, str(told.value)))
    assert told.value.__context__ is None or told.value.__suppress_context__


# ---- the address ----


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Sets the path that getFile answers."""

    def set_path(given: str) -> None:
        async def get_file(bot: telegram.Bot, file: str) -> telegram.File:
            whole = given if given.startswith("/") and Path(given).exists() else f"{bot.base_file_url}/{given}"
            return telegram.File(file, "U", file_path=whole)

        monkeypatch.setattr(telegram.Bot, "get_file", get_file)

    yield set_path


async def test_the_address_of_a_file_is_one_whatever_its_ending_is(path: Callable[[str], None]) -> None:
    path("documents/file_1.a#b?c d")
    api = Api(SECRET, "http://127.0.0.1:9")
    address = await api.file_address("F1")
    assert address == f"http://127.0.0.1:9/file/bot{SECRET}/documents/file_1.a%23b%3Fc%20d"
    await api.close()


@pytest.mark.parametrize("place", ["/var/lib/telegram-bot-api/1/documents/a.txt", tempfile.gettempdir()])
async def test_a_path_on_the_host_of_a_server_of_ones_own_is_refused(
    path: Callable[[str], None], place: str, tmp_path: Path
) -> None:
    path(place)
    api = Api(SECRET, "http://127.0.0.1:9")
    with pytest.raises(NotFetched, match="--local") as told:
        await Download(api, tmp_path).fetch(FILE)
    assert SECRET not in str(told.value)
    await api.close()
