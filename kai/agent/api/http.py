"""HTTP/1.1 on a Unix socket: one request after the other, each with limits of size and time.

What two readers could take for different requests is refused (a body with two lengths, bytes behind a broken head):
after any fault the connection ends. The caller is one account, but it is hostile.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from urllib.parse import parse_qsl

import h11
import msgspec

from kai.lib import log

LARGEST_HEAD = 16 << 10
CHUNK = 1 << 16
HEAD, BODY, ANSWER, LINGER = 10.0, 60.0, 60.0, 2.0
"""Seconds: until a request's head is there, from the beginning or the last answer; for its body; for the answer to be
taken; to throw away what still comes when the connection ends."""
MOST_PARAMETERS = 20
logger = logging.getLogger(__name__)


class Refused(Exception):
    """The request ends with this status and `{"error": …}`."""

    def __init__(self, status: int, error: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(error)
        self.status, self.headers = status, dict(headers or {})


class Gone(Exception):
    """The caller hung up, or is too slow to be waited for."""


class Request:
    """One request. Its body is read by `body` or `into`, once."""

    def __init__(self, exchange: Exchange, event: h11.Request) -> None:
        self._exchange = exchange
        self.method = event.method.decode("latin-1")
        target = event.target.decode("latin-1")
        if not target.startswith("/") or "#" in target or not target.isascii() or not target.isprintable():
            raise Refused(400, f"the address of a request begins with /, got {log.printable(target, 100)}")
        self.path, _, query = target.partition("?")
        self.query = _parameters(query)
        self.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in event.headers}
        if "transfer-encoding" in self.headers and "content-length" in self.headers:
            raise Refused(400, "a body has either a Content-Length or a Transfer-Encoding")

    @property
    def type(self) -> str:
        """The content type, without parameters."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    async def body(self, most: int) -> bytes:
        """The whole body. Raises Refused for one of more than `most` bytes, and Gone."""
        return b"".join([piece async for piece in self._pieces(most)])

    async def into(self, descriptor: int, most: int) -> int:
        """Write the body to a file as it comes; its bytes."""
        size = 0
        async for piece in self._pieces(most):
            size += len(piece)
            rest = memoryview(piece)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        return size

    async def _pieces(self, most: int) -> AsyncIterator[bytes]:
        if int(self.headers.get("content-length", "0")) > most:
            raise too_large(most)
        size = 0
        async for piece in self._exchange.body():
            size += len(piece)
            if size > most:
                raise too_large(most)
            yield piece


def too_large(most: int) -> Refused:
    size = f"{most >> 20} MiB" if most >= 1 << 20 else f"{most >> 10} KiB"
    return Refused(413, f"the body of this request may have {size} at the most")


def _parameters(query: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=MOST_PARAMETERS, errors="strict")
    except ValueError:
        raise Refused(400, f"a query has at most {MOST_PARAMETERS} parameters, in UTF-8") from None
    found = dict(pairs)
    if len(found) != len(pairs):
        raise Refused(400, "a parameter of the query is there twice")
    return found


class Answer:
    """What goes back: a status, JSON, and headers beside those of its type and length."""

    def __init__(self, body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        self.body, self.status, self.headers = body, status, dict(headers or {})


Handler = Callable[[Request], Awaitable[Answer]]


class Exchange:
    """One connection and its requests."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.http = h11.Connection(h11.SERVER, max_incomplete_event_size=LARGEST_HEAD)
        self.head_only = False

    async def serve(self, handler: Handler) -> None:
        """Answer until the connection ends."""
        try:
            while await self._one(handler):
                self.http.start_next_cycle()
        except Gone:
            self.writer.transport.abort()
        finally:
            await self._close()

    async def _one(self, handler: Handler) -> bool:
        """One request and its answer. Returns whether another one may follow."""
        refusal = True
        try:
            event = await self._event(HEAD)
            if not isinstance(event, h11.Request):
                return False
            self.head_only = event.method == b"HEAD"
            answer, refusal = await handler(Request(self, event)), False
        except Refused as refused:
            answer = Answer(error(str(refused)), refused.status, refused.headers)
        except h11.RemoteProtocolError as fault:
            if self.http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
                return False
            text = f"this is no HTTP request that Kai understands: {fault}"
            answer = Answer(error(text), fault.error_status_hint if fault.error_status_hint in (400, 431) else 400)
        more = not refusal and self._is_read()
        await self._answer(answer, last=not more)
        return more and self.http.our_state is h11.DONE

    def _is_read(self) -> bool:
        """Whether the request is over, and what comes next is another one."""
        try:
            if self.http.their_state is h11.SEND_BODY:
                self.http.next_event()  # the end of a request that has no body
        except h11.RemoteProtocolError:
            return False
        return self.http.their_state is h11.DONE

    async def body(self) -> AsyncIterator[bytes]:
        """The pieces of the request's body. Raises Refused for a broken one, and Gone."""
        try:
            async with asyncio.timeout(BODY):
                if self.http.they_are_waiting_for_100_continue:
                    await self._send(h11.InformationalResponse(status_code=100, headers=[]))
                while isinstance(event := await self._event(BODY), h11.Data):
                    yield bytes(event.data)
        except TimeoutError:
            raise Refused(408, f"the body didn't come within {BODY:g} s") from None
        except h11.RemoteProtocolError as fault:
            raise Refused(400, f"the body is broken: {fault}") from None

    async def _event(self, seconds: float) -> object:
        try:
            async with asyncio.timeout(seconds):
                while (event := self.http.next_event()) is h11.NEED_DATA:
                    data = await self.reader.read(CHUNK)
                    if not data and self.http.their_state is h11.IDLE:
                        raise Gone
                    self.http.receive_data(data)
        except (TimeoutError, ConnectionError):
            raise Gone from None
        return event

    async def _answer(self, answer: Answer, *, last: bool) -> None:
        headers = {"Content-Type": "application/json", "Content-Length": str(len(answer.body)), **answer.headers}
        if last:
            headers["Connection"] = "close"
        head = h11.Response(status_code=answer.status, headers=list(headers.items()))
        body = b"" if self.head_only else answer.body
        await self._send(head, h11.Data(data=body), h11.EndOfMessage())

    async def _send(self, *events: h11.Event) -> None:
        self.writer.write(b"".join(self.http.send(event) or b"" for event in events))
        try:
            async with asyncio.timeout(ANSWER):
                await self.writer.drain()
        except (TimeoutError, ConnectionError):
            raise Gone from None

    async def _close(self) -> None:
        """First let the caller finish what it was sending: it reads no answer before that."""
        with suppress(TimeoutError, ConnectionError, RuntimeError):
            async with asyncio.timeout(LINGER):
                if not self.writer.transport.is_closing() and self.writer.can_write_eof():
                    self.writer.write_eof()
                    while await self.reader.read(CHUNK):
                        pass
        self.writer.transport.abort()


def error(text: str) -> bytes:
    """The JSON of an error."""
    return msgspec.json.encode({"error": log.printable(text, 1000)})


async def serve(connection: socket.socket, handler: Handler) -> None:
    """One connection, to its end."""
    reader, writer = await asyncio.open_unix_connection(sock=connection, limit=CHUNK)
    await Exchange(reader, writer).serve(handler)
