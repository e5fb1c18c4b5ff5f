"""Call another unit over its socket. A restarted peer is normal: whoever calls tries again with back-off.

`call` and `stream` raise the peer's own `Fault`, or `Unavailable` when the connection failed; then nothing is known
of what the call did, and the caller decides whether it may be repeated.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import msgspec

from kai.lib.varlink import MAX_MESSAGE, Call, Fault, Reply, Request, Unavailable, encode, read_message

R = TypeVar("R", bound=msgspec.Struct)
FIRST_DELAY, LONGEST_DELAY = 0.05, 5.0


class Client:
    """One peer. Connections are made per call: an idle peer must see none, so that it can leave."""

    def __init__(self, path: Path) -> None:
        self.path = path

    async def call(self, call: Call[R], *, timeout: float = 30.0) -> R:
        """The answer. Waits at most `timeout` seconds, then raises Unavailable."""
        try:
            async with asyncio.timeout(timeout):
                connection = await self._send(call, more=False)
                async with aclosing(Answers(self.path, call, *connection)) as answers:
                    async for answer in answers:
                        return answer
        except TimeoutError:
            raise Unavailable(f"{self.path}: no answer to {call.NAME} within {timeout:g} s") from None
        raise Unavailable(f"{self.path}: no answer to {call.NAME}")

    async def open(self, call: Call[R]) -> Answers[R]:
        """Send a call that is answered by a stream; returns when it is sent. Close the answers to end the call."""
        return Answers(self.path, call, *await self._send(call, more=True))

    async def stream(self, call: Call[R]) -> AsyncGenerator[R, None]:
        """`open`, sent when the first answer is asked for."""
        async with aclosing(await self.open(call)) as answers:
            async for answer in answers:
                yield answer

    async def _send(self, call: Call[R], *, more: bool) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            reader, writer = await asyncio.open_unix_connection(self.path, limit=MAX_MESSAGE)
        except OSError as error:
            raise Unavailable(f"{self.path}: {error.strerror or error}") from None
        parameters = msgspec.Raw(msgspec.json.encode(call))
        writer.write(encode(Request(method=call.NAME, parameters=parameters, more=more)))
        return reader, writer


class Answers(Generic[R]):
    """What comes back on one connection. Ends after the last answer; raises Unavailable, or the peer's Fault."""

    def __init__(self, path: Path, call: Call[R], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.path, self.call, self.reader, self.writer = path, call, reader, writer
        self.ended = False

    def __aiter__(self) -> Answers[R]:
        return self

    async def __anext__(self) -> R:
        if self.ended:
            raise StopAsyncIteration
        try:
            await self.writer.drain()
            message = await read_message(self.reader)
            if message is None:
                raise Unavailable(f"{self.path}: the peer went away during {self.call.NAME}")
            reply = msgspec.json.decode(message, type=Reply)
            if reply.error:
                raise _fault(reply.error, reply.parameters)
            self.ended = not reply.continues
            return cast(R, msgspec.json.decode(reply.parameters, type=self.call.REPLY))
        except (ConnectionError, ValueError) as error:  # msgspec's errors are ValueErrors
            raise Unavailable(f"{self.path}: {error}") from None

    async def aclose(self) -> None:
        self.ended = True
        self.writer.close()


def _fault(name: str, parameters: msgspec.Raw) -> Exception:
    values: dict[str, Any] = msgspec.json.decode(parameters)
    kind = Fault.registry.get(name)
    if kind is None:
        return Unavailable(f"unknown error {name}: {values}")
    return kind(str(values.get(kind.PARAMETER, "")))


def delays() -> Iterator[float]:
    """Seconds to wait before each further try: doubling, with jitter so that a restarted peer isn't stormed."""
    delay = FIRST_DELAY
    while True:
        yield delay * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, guards nothing
        delay = min(delay * 2, LONGEST_DELAY)
