"""Call another unit over its socket. A restarted peer is normal: whoever calls tries again with back-off.

`call` and `stream` raise the peer's own `Fault`, or `Unavailable` when the connection failed; then nothing is known
of what the call did, and the caller decides whether it may be repeated. Descriptors that go with a call stay the
caller's, to send once more or to close.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import msgspec

from kai.lib.varlink import Call, Fault, Reply, Request, Unavailable, encode
from kai.lib.wire import Wire

R = TypeVar("R", bound=msgspec.Struct)
FIRST_DELAY, LONGEST_DELAY = 0.05, 5.0
QUEUE_DELAY = 0.01
"""Seconds until the next try where the peer's queue of new connections is full."""


class Client:
    """One peer. Connections are made per call: an idle peer must see none, so that it can leave."""

    def __init__(self, path: Path) -> None:
        self.path = path

    async def call(self, call: Call[R], *, descriptors: Sequence[int] = (), timeout: float = 30.0) -> R:
        """The answer. Waits at most `timeout` seconds, then raises Unavailable."""
        try:
            async with asyncio.timeout(timeout):
                async with aclosing(await self._send(call, descriptors, more=False)) as answers:
                    return await anext(answers)
        except TimeoutError:
            raise Unavailable(f"{self.path}: no answer to {call.NAME} within {timeout:g} s") from None

    async def open(self, call: Call[R], *, descriptors: Sequence[int] = ()) -> Answers[R]:
        """Send a call that is answered by a stream; returns when it is sent. Close the answers to end the call."""
        return await self._send(call, descriptors, more=True)

    async def stream(self, call: Call[R]) -> AsyncGenerator[R, None]:
        """`open`, sent when the first answer is asked for."""
        async with aclosing(await self.open(call)) as answers:
            async for answer in answers:
                yield answer

    async def _send(self, call: Call[R], descriptors: Sequence[int], *, more: bool) -> Answers[R]:
        wire = Wire(await self._connect())
        try:
            parameters = msgspec.Raw(msgspec.json.encode(call))
            await wire.send(encode(Request(method=call.NAME, parameters=parameters, more=more)), descriptors)
        except BaseException as error:
            wire.close()
            if isinstance(error, ConnectionError):
                raise Unavailable(f"{self.path}: the peer went away before {call.NAME}") from None
            raise
        return Answers(self.path, call, wire)

    async def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            while True:
                try:
                    connection.connect(os.fspath(self.path))
                except BlockingIOError:
                    await asyncio.sleep(QUEUE_DELAY)
                else:
                    return connection
        except OSError as error:
            connection.close()
            raise Unavailable(f"{self.path}: {error.strerror or error}") from None
        except BaseException:
            connection.close()
            raise


class Answers(Generic[R]):
    """What comes back on one connection. Ends after the last answer; raises Unavailable, or the peer's Fault."""

    def __init__(self, path: Path, call: Call[R], wire: Wire) -> None:
        self.path, self.call, self.wire = path, call, wire
        self.ended = False

    def __aiter__(self) -> Answers[R]:
        return self

    async def __anext__(self) -> R:
        if self.ended:
            raise StopAsyncIteration
        try:
            message = await self.wire.receive()
            if message is None:
                raise Unavailable(f"{self.path}: the peer went away during {self.call.NAME}")
            reply = msgspec.json.decode(message, type=Reply)
            if reply.error:
                raise _fault(reply.error, reply.parameters)
            self.ended = not reply.continues
            return cast(R, msgspec.json.decode(reply.parameters, type=self.call.REPLY))
        except ValueError as error:  # msgspec's errors are ValueErrors
            raise Unavailable(f"{self.path}: {error}") from None

    async def aclose(self) -> None:
        self.ended = True
        self.wire.close()


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
