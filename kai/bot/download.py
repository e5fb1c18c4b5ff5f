"""A file that a user sent, from Telegram into an unnamed temporary file: streamed, and gone with its descriptor."""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
from pathlib import Path
from typing import Final

import httpx
from telegram.error import BadRequest, Forbidden, RetryAfter, TelegramError

from kai.bot.api import Api, seconds
from kai.bot.content import BIGGEST_FILE, FileRef
from kai.lib.client import delays
from kai.lib.sparing import Sparing

CHUNK: Final = 256 * 1024
PATIENCE: Final = 60.0
"""Seconds without a byte after which a try is given up."""
REFUSALS = 5
"""So often a server may refuse an address that Telegram has just given, for it may have expired on the way."""
logger = logging.getLogger(__name__)


class NotFetched(Exception):
    """A file can't be had, now and later; the message says which and why."""


class _NotNow(Exception):
    """It may come at another try, in `wait` seconds; a server that `refused` it several times won't give it.

    No words of the client's library: they hold the address, and that the token.
    """

    def __init__(self, message: str, *, wait: float = 0.0, refused: bool = False) -> None:
        super().__init__(message)
        self.wait, self.refused = wait, refused


class Download:
    """`directory` is one of the bot's own; nothing is visible in it."""

    def __init__(self, api: Api, directory: Path) -> None:
        self.api, self.directory = api, directory
        self.client: httpx.AsyncClient | None = None
        self.sparing = Sparing(logger)

    async def close(self) -> None:
        if self.client:
            await self.client.aclose()

    async def fetch(self, file: FileRef) -> int:
        """A descriptor of the file's content, at its beginning. Tried until it comes; raises NotFetched."""
        refusals = 0
        for delay in delays():
            try:
                return await self._once(file)
            except _NotNow as error:
                refusals += error.refused
                if refusals == REFUSALS:
                    raise NotFetched(f"{file.name}: Telegram doesn't hand it out ({error})") from None
                self.sparing.log("fetch", logging.WARNING, "%s is not fetched yet: %s", file.kind, error)
                await asyncio.sleep(max(delay, error.wait))
            except OSError as error:
                self.sparing.log("disk", logging.ERROR, "%s can't be kept: %s", file.kind, error)
                await asyncio.sleep(delay)
        raise AssertionError("delays never end")

    async def _once(self, file: FileRef) -> int:
        descriptor = self._open()
        try:
            await self._try(file, descriptor)
            os.lseek(descriptor, 0, os.SEEK_SET)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _open(self) -> int:
        try:
            return os.open(self.directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError:  # a file system without unnamed files
            descriptor, name = tempfile.mkstemp(dir=self.directory)
            Path(name).unlink()
            return descriptor

    async def _try(self, file: FileRef, descriptor: int) -> None:
        try:
            address = await self.api.file_address(file.id)
        except LookupError as error:
            raise NotFetched(f"{file.name}: {error}") from None
        except (BadRequest, Forbidden) as error:
            raise NotFetched(f"{file.name}: Telegram doesn't give it: {error.message}") from None
        except RetryAfter as error:
            raise _NotNow("Telegram asks to wait", wait=seconds(error)) from None
        except TelegramError as error:
            raise _NotNow(error.message) from None
        if self.client is None:
            self.client = httpx.AsyncClient(headers={"Accept-Encoding": "identity"}, verify=self.api.context)
        try:
            async with self.client.stream("GET", address, timeout=PATIENCE) as answer:
                if answer.status_code != httpx.codes.OK:
                    wait = answer.headers.get("retry-after", "")
                    later = answer.status_code in (408, 425, 429)
                    raise _NotNow(
                        f"HTTP status {answer.status_code}",
                        wait=min(float(wait), 3600.0) if wait.isascii() and wait.isdigit() else 0.0,
                        refused=answer.is_client_error and not later,
                    )
                size = 0
                async for chunk in answer.aiter_raw(CHUNK):
                    size += len(chunk)
                    if size > BIGGEST_FILE:
                        raise NotFetched(f"{file.name}: bigger than the {BIGGEST_FILE >> 20} MB that a bot may fetch")
                    await asyncio.to_thread(_write, descriptor, chunk)
                expected = answer.headers.get("content-length")
                if expected and int(expected) != size:
                    raise _NotNow("the connection broke")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _NotNow(type(error).__name__) from None


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
