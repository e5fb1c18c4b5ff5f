"""The model door: HTTP for the inner agents, passed on to the model's API with the key that they don't have.

A connection is one request: the answer says `Connection: close`, so no idle connection keeps kai-proxy alive and none
is closed under a request. Only the calls that an agent needs are passed on. Bodies go through as they come, both ways,
no faster than the other side takes them; they are not searched for the key, headers are. Redirects are not followed.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import socket
import ssl
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from urllib.parse import parse_qsl, urlencode, urlsplit

import h11
import httpx

from kai.lib import log
from kai.lib.peers import INNER, Peer

LARGEST_BODY = 32 << 20
"""Bytes of a request, the API's own limit."""
CHUNK = LARGEST_HEAD = 1 << 16
CONNECT, IDLE, HEAD, LINGER = 10.0, 600.0, 30.0, 2.0
"""Seconds: to connect; of silence of either side; until a request's head is there; to throw away what comes late."""
PLAIN = {("POST", "/v1/messages"), ("POST", "/v1/messages/count_tokens"), ("GET", "/v1/models")}
MODEL = re.compile(r"/v1/models/[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}")
PARAMETERS = {"beta": "true", "limit": "[0-9]{1,4}", "after_id": "[A-Za-z0-9._:@-]{1,128}"}
PARAMETERS["before_id"] = PARAMETERS["after_id"]
HOP_BY_HOP = {"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "proxy-connection"}
NOT_UP = HOP_BY_HOP | {
    "x-api-key",
    "authorization",
    "proxy-authorization",
    "host",
    "expect",
    "cookie",
    "forwarded",
    "via",
}
NOT_DOWN = HOP_BY_HOP | {"set-cookie", "proxy-authenticate", "alt-svc"}
ERROR_TYPES = {
    400: "invalid_request_error",
    404: "not_found_error",
    413: "request_too_large",
    502: "api_error",
    503: "api_error",
    504: "timeout_error",
}
Headers = list[tuple[bytes, bytes]]
logger = logging.getLogger(__name__)


class Refused(Exception):
    """The call ends with an error of the door's own, in the shape of the API's."""

    def __init__(self, status: int, message: str, *, again: bool = True) -> None:
        super().__init__(message)
        self.status, self.again = status, again


class CallerGone(Exception):
    """The agent went away before its answer was complete."""


def route(method: str, target: str) -> str:
    """Path and query to ask the API for; "" for what is answered here. Raises Refused for everything else."""
    path, _, query = target.partition("?")
    if path == "/" and method in ("GET", "HEAD"):
        return ""
    if (method, path) not in PLAIN and not (method == "GET" and MODEL.fullmatch(path)):
        raise Refused(404, f"kai-proxy passes on no {log.printable(method, 20)} {log.printable(path, 100)}")
    try:
        pairs = parse_qsl(query, max_num_fields=20) if len(query) < 1000 else []
    except ValueError:
        raise Refused(400, "kai-proxy passes on at most 20 parameters") from None
    known = [(name, value) for name, value in pairs if re.fullmatch(PARAMETERS.get(name, "(?!)"), value)]
    return f"{path}?{urlencode(known)}" if known else path


def passed_on(headers: Iterable[tuple[bytes, bytes]], without: set[str]) -> Headers:
    """The headers that go through: not those for this connection alone, and those it names as such."""
    headers = [(name.lower(), value) for name, value in headers]
    named = {
        word.strip().lower()
        for name, value in headers
        if name == b"connection"
        for word in value.decode("latin-1").split(",")
    }
    out = without | named
    return [
        (name, value)
        for name, value in headers
        if (text := name.decode("latin-1")) not in out and not text.startswith(("x-forwarded-", "proxy-"))
    ]


class Caller:
    """The agent's end: one HTTP request, read and answered."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.http = h11.Connection(h11.SERVER, max_incomplete_event_size=LARGEST_HEAD)
        self.body_read = asyncio.Event()
        self.status = self.sent = 0

    async def _next(self) -> object:
        while (event := self.http.next_event()) is h11.NEED_DATA:
            async with asyncio.timeout(IDLE):
                data = await self.reader.read(CHUNK)
            if not data and self.http.their_state is h11.IDLE:
                raise CallerGone
            self.http.receive_data(data)
        return event

    async def request(self) -> h11.Request:
        """The request without its body. Raises CallerGone or Refused."""
        try:
            async with asyncio.timeout(HEAD):
                event = await self._next()
        except h11.RemoteProtocolError as error:
            raise Refused(400, f"this is no HTTP request that kai-proxy understands: {error}") from None
        except (TimeoutError, ConnectionError):
            raise CallerGone from None
        if not isinstance(event, h11.Request):
            raise CallerGone
        return event

    async def body(self) -> AsyncIterator[bytes]:
        """The request's body, piece by piece. Raises CallerGone or Refused in the middle."""
        if self.http.they_are_waiting_for_100_continue:
            await self._write(h11.InformationalResponse(status_code=100, headers=[]))
        size = 0
        try:
            while isinstance(event := await self._next(), h11.Data):
                size += len(event.data)
                if size > LARGEST_BODY:
                    raise too_large()
                yield bytes(event.data)
        except (h11.RemoteProtocolError, ConnectionError, TimeoutError):
            raise CallerGone from None
        self.body_read.set()

    async def leaves(self) -> None:
        """Returns when the caller hangs up after its request."""
        await self.body_read.wait()
        with suppress(ConnectionError):
            while await self.reader.read(CHUNK):
                pass

    async def _write(self, event: h11.Event) -> None:
        self.writer.write(self.http.send(event) or b"")
        try:
            async with asyncio.timeout(IDLE):
                await self.writer.drain()
        except (TimeoutError, ConnectionError):
            raise CallerGone from None

    async def head(self, status: int, headers: Headers) -> None:
        self.status = status
        await self._write(h11.Response(status_code=status, headers=[*headers, (b"connection", b"close")]))

    async def send(self, data: bytes) -> None:
        self.sent += len(data)
        await self._write(h11.Data(data=data))

    async def end(self) -> None:
        await self._write(h11.EndOfMessage())

    async def answer(self, status: int, headers: Headers, body: bytes = b"") -> None:
        """A whole answer of the door's own."""
        headers = [*headers, (b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await self.head(status, headers)
        if body:
            await self.send(body)
        await self.end()

    async def refuse(self, refused: Refused) -> None:
        if self.status:
            self.writer.transport.abort()  # a cut answer must not look like a whole one
            return
        error = {"type": ERROR_TYPES[refused.status], "message": str(refused)}
        body = json.dumps({"type": "error", "error": error}).encode()
        await self.answer(refused.status, [] if refused.again else [(b"x-should-retry", b"false")], body)

    async def close(self) -> None:
        """Close, and first let the caller finish what it was sending: it reads no answer before that."""
        with suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(LINGER):
                if self.status and not self.body_read.is_set():
                    self.writer.write_eof()
                    while await self.reader.read(CHUNK):
                        pass
                self.writer.close()
                await self.writer.wait_closed()
        self.writer.transport.abort()


def too_large() -> Refused:
    return Refused(413, f"the request is larger than {LARGEST_BODY >> 20} MiB", again=False)


class ModelDoor:
    """Answers the calls of inner agents. With `refusal` set, each is answered with it and nothing is passed on."""

    def __init__(self, url: str, key: str, *, refusal: str = "") -> None:
        self.url, self.key, self.refusal = url.rstrip("/"), key, refusal
        self.host = urlsplit(url).netloc
        self.client = httpx.AsyncClient(
            # the system's certificates, so that an operator's own authority counts
            verify=ssl.create_default_context() if url.startswith("https:") else False,
            timeout=httpx.Timeout(IDLE, connect=CONNECT),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=8, keepalive_expiry=20),
            follow_redirects=False,
            trust_env=False,
        )

    async def close(self) -> None:
        await self.client.aclose()

    async def handle(self, connection: socket.socket, peer: Peer) -> None:
        """One connection. Who isn't an inner agent gets no answer at all."""
        with log.fields(KAI_USER=peer.user):
            if INNER not in peer.roles:
                logger.warning("refused a call of %s", peer)
                return
            reader, writer = await asyncio.open_unix_connection(sock=connection, limit=CHUNK)
            caller = Caller(reader, writer)
            try:
                await self._call(caller, peer)
            finally:
                await caller.close()

    async def _call(self, caller: Caller, peer: Peer) -> None:
        """One request, its answer, and its line in the log."""
        began, what = time.monotonic(), ""
        try:
            request = await caller.request()
            method, target = request.method.decode("latin-1"), request.target.decode("latin-1")
            what = f"{method} {target.partition('?')[0]}"
            await self._serve(caller, request, route(method, target))
        except Refused as refused:
            logger.warning("%s", refused)
            with suppress(CallerGone):
                await caller.refuse(refused)
        except CallerGone:
            if not what:
                return
            what += " (the agent hung up)"
        spent = (time.monotonic() - began) * 1000
        what = log.printable(f"{peer.user or '-'}: {what or 'no request'}", 150)
        logger.info("%s -> %d, %d bytes, %.0f ms", what, caller.status, caller.sent, spent)

    async def _serve(self, caller: Caller, request: h11.Request, target: str) -> None:
        if self.refusal:
            raise Refused(503, self.refusal, again=False)
        if not target:
            caller.body_read.set()
            await caller.answer(200, [])
            return
        chunked = any(name == b"transfer-encoding" for name, _ in request.headers)
        headers = passed_on(request.headers, NOT_UP | ({"content-length"} if chunked else set()))
        if int(dict(headers).get(b"content-length", b"0")) > LARGEST_BODY:
            raise too_large()
        headers.append((b"x-api-key", self.key.encode()))
        if request.method == b"GET":
            caller.body_read.set()
        content = caller.body() if request.method == b"POST" else None
        up = httpx.Request(request.method.decode(), f"{self.url}{target}", headers=headers, content=content)
        exchange = asyncio.ensure_future(self._exchange(caller, up))
        leaves = asyncio.ensure_future(caller.leaves())
        try:
            await asyncio.wait({exchange, leaves}, return_when=asyncio.FIRST_COMPLETED)
            if not exchange.done():
                raise CallerGone
            exchange.result()
        finally:
            exchange.cancel()
            leaves.cancel()
            await asyncio.gather(exchange, leaves, return_exceptions=True)

    async def _exchange(self, caller: Caller, up: httpx.Request) -> None:
        """Ask the API and pass its answer on as it comes."""
        try:
            answer = await self.client.send(up, stream=True)
            try:
                if answer.is_redirect:
                    raise Refused(502, f"{self.host} redirects to another address: set proxy.model.url in kai.yaml")
                headers = self._masked(passed_on(answer.headers.raw, NOT_DOWN))
                if answer.status_code == 401:  # the same key again helps nobody; agents would try for a while
                    headers.append((b"x-should-retry", b"false"))
                await caller.head(answer.status_code, headers)
                async for chunk in answer.aiter_raw():
                    await caller.send(chunk)
                await caller.end()
            finally:
                await answer.aclose()
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise Refused(502, f"kai-proxy can't reach {self.host}: {reason(error)}") from None
        except httpx.TimeoutException:
            raise Refused(504, f"{self.host} said nothing for {IDLE:g} s") from None
        except (httpx.HTTPError, h11.LocalProtocolError) as error:
            raise Refused(502, f"{self.host} broke off: {reason(error)}") from None

    def _masked(self, headers: Headers) -> Headers:
        key = self.key.encode()
        return [(name, value.replace(key, b"***")) for name, value in headers]


def reason(error: BaseException) -> str:
    """What is at the bottom of it: the libraries above wrap it up in vaguer words."""
    while below := error.__cause__ or error.__context__:
        error = below
    if isinstance(error, ssl.SSLError):  # its number is none of the system's
        return log.redact(log.printable(getattr(error, "verify_message", "") or error.reason or "no TLS", 200))
    number = error.errno if isinstance(error, OSError) else None
    text = os.strerror(number) if number and number > 0 else str(error) or type(error).__name__
    return log.redact(log.printable(text, 200))
