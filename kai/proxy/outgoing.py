"""One call of a service: a connection to a checked address and to no other, one request, one answer in bounds.

HTTP/1.1 on h11. The name is looked up here, once, and the connection goes to what was found and checked: what the name
service says a moment later doesn't matter. TLS and the Host header keep the name. No proxies of the environment, no
redirects, no cookies, no connection that is used twice.
"""

from __future__ import annotations

import asyncio
import ssl
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from functools import cache
from urllib.parse import urlsplit

import h11

import kai
from kai.config import Service
from kai.config.services import host_of
from kai.interfaces import ServiceAnswer, ServiceRefused, ServiceUnreachable
from kai.lib import log
from kai.proxy import address
from kai.proxy.mask import Masker, masked
from kai.proxy.model import reason

SECONDS, CONNECT = 30.0, 8.0
"""For the whole call; to connect to one of several addresses, TLS included."""
LARGEST_ANSWER = 10 << 20
"""Bytes of an answer, unpacked."""
CHUNK = LARGEST_HEAD = 1 << 16
LONGEST_TYPE = 200
MOST_INTERIM, EVENTS = 16, 64
"""Answers before the answer (100, 103); pieces after which others have their turn."""
PORTS = {"https": 443, "http": 80}
WITH_BODY = {"POST", "PUT", "PATCH"}


async def call(service: Service, target: str, key: str, body: bytes, take: Callable[[bytes], None]) -> ServiceAnswer:
    """Ask for `target`, and give the answer's body to `take` without the key. Raises ServiceRefused and
    ServiceUnreachable; what `take` got before counts for nothing then."""
    host = host_of(service.url)
    try:
        async with asyncio.timeout(SECONDS):
            reader, writer = await _connect(service, host)
            try:
                return await _Exchange(service, host, key, reader, writer).run(target, body, take)
            finally:
                writer.transport.abort()
    except TimeoutError:
        raise ServiceUnreachable(f"{host} had not answered in full after {SECONDS:g} s") from None


async def _connect(service: Service, host: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to the first address that takes one."""
    parts = urlsplit(service.url)
    port = parts.port or PORTS[parts.scheme]
    context, name = (tls(), host) if parts.scheme == "https" else (None, None)
    why = ""
    for found in await address.resolve(host, port, private=service.allow_private):
        try:
            async with asyncio.timeout(CONNECT):  # `found` is an address as text, which nothing looks up again
                return await asyncio.open_connection(found, port, limit=CHUNK, ssl=context, server_hostname=name)
        except ssl.SSLError as error:
            raise ServiceUnreachable(f"{host}: TLS: {reason(error)}") from None
        except TimeoutError:
            why = f"no connection within {CONNECT:g} s"
        except OSError as error:
            why = reason(error)
    raise ServiceUnreachable(f"{host}: {why}")


@cache
def tls() -> ssl.SSLContext:
    """Certificates are checked against the system's authorities, so that an operator's own one counts."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def headers(service: Service, key: str, body: bytes) -> list[tuple[str, str]]:
    """The request's headers: kai-proxy's own, the service's, and the key where it goes into one."""
    parts, auth = urlsplit(service.url), service.auth
    port = f":{PORTS[parts.scheme]}"
    found = [("Host", parts.netloc.removesuffix(port)), ("Connection", "close"), ("Accept-Encoding", "identity")]
    if service.method in WITH_BODY:
        found.append(("Content-Length", str(len(body))))
    found += service.headers
    if key and auth.type == "bearer":
        found.append(("Authorization", f"Bearer {key}"))
    elif key and auth.type == "header" and auth.name:
        found.append((auth.name, _prefixed(auth.prefix or "", key)))
    there = {name.lower() for name, _ in found}
    usual = [("User-Agent", f"Kai/{kai.__version__}"), ("Accept", "application/json, */*;q=0.5")]
    if body:
        usual.append(("Content-Type", "application/json"))
    return found + [(name, value) for name, value in usual if name.lower() not in there]


def _prefixed(prefix: str, key: str) -> str:
    """`Token KEY` for a word; a prefix that ends otherwise, as `key=`, stands right before the key."""
    return f"{prefix} {key}" if prefix[-1:].isalnum() else f"{prefix}{key}"


class _Exchange:
    """A request and its answer on one connection."""

    def __init__(
        self, service: Service, host: str, key: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.service, self.host, self.key = service, host, key
        self.reader, self.writer = reader, writer
        self.http = h11.Connection(h11.CLIENT, max_incomplete_event_size=LARGEST_HEAD)
        self.events = 0

    async def run(self, target: str, body: bytes, take: Callable[[bytes], None]) -> ServiceAnswer:
        try:
            self._ask(target, body)
            answer = await self._head()
            size = await self._body(answer, take)
        except h11.RemoteProtocolError:  # its text may quote what came
            raise ServiceUnreachable(f"{self.host} broke off, or its answer is no proper HTTP") from None
        except h11.LocalProtocolError:
            raise ServiceRefused("the request can't be expressed in HTTP") from None
        except zlib.error:
            raise ServiceRefused(f"{self.host} compressed its answer in a way that can't be unpacked") from None
        except OSError as error:
            raise ServiceUnreachable(f"{self.host} broke off: {reason(error)}") from None
        return ServiceAnswer(answer.status_code, self._type(answer), size)

    def _ask(self, target: str, body: bytes) -> None:
        events: list[h11.Event] = [
            h11.Request(method=self.service.method, target=target, headers=headers(self.service, self.key, body))
        ]
        if body:
            events.append(h11.Data(data=body))
        for event in [*events, h11.EndOfMessage()]:
            self.writer.write(self.http.send(event) or b"")

    async def _event(self) -> object:
        while (event := self.http.next_event()) is h11.NEED_DATA:
            self.http.receive_data(await self.reader.read(CHUNK))
        self.events += 1
        if not self.events % EVENTS:
            await asyncio.sleep(0)  # a body in chunks of one byte
        return event

    async def _head(self) -> h11.Response:
        for _ in range(MOST_INTERIM):
            event = await self._event()
            if isinstance(event, h11.Response):
                return event
            if not isinstance(event, h11.InformationalResponse):
                break
        raise ServiceUnreachable(f"{self.host} broke off before its answer")

    async def _body(self, answer: h11.Response, take: Callable[[bytes], None]) -> int:
        """Pass the body on without the key, and give its size. In pieces of some size: masking has a cost for each."""
        masker, pending, size, written = Masker(self.key), bytearray(), 0, 0
        async for piece in self._unpacked(_packing(answer, self.host)):
            size += len(piece)
            if size > LARGEST_ANSWER:
                raise ServiceRefused(f"{self.host} answered with more than {LARGEST_ANSWER >> 20} MiB")
            pending += piece
            if len(pending) >= CHUNK:
                written += _pass(take, masker.feed(bytes(pending)))
                pending.clear()
                await asyncio.sleep(0)
        return written + _pass(take, masker.feed(bytes(pending))) + _pass(take, masker.end())

    async def _unpacked(self, packed: bool) -> AsyncIterator[bytes]:
        unpacking, came = _Unpacking(), 0
        while isinstance(event := await self._event(), h11.Data):
            came += len(event.data)
            if came > LARGEST_ANSWER:
                raise ServiceRefused(f"{self.host} answered with more than {LARGEST_ANSWER >> 20} MiB")
            for piece in unpacking.feed(bytes(event.data)) if packed else (event.data,):
                yield piece
            if packed:
                await asyncio.sleep(0)  # little that comes may be much to unpack
        if not isinstance(event, h11.EndOfMessage):
            raise ServiceUnreachable(f"{self.host} broke off in the middle of its answer")
        if packed:
            yield unpacking.end()

    def _type(self, answer: h11.Response) -> str:
        return log.printable(masked(_header(answer, b"content-type"), self.key), LONGEST_TYPE)


def _pass(take: Callable[[bytes], None], data: bytes) -> int:
    take(data)
    return len(data)


def _header(answer: h11.Response, name: bytes) -> str:
    return ", ".join(value.decode("latin-1") for key, value in answer.headers if key == name)


def _packing(answer: h11.Response, host: str) -> bool:
    """Whether the body is compressed, although nobody asked for that."""
    encoding = _header(answer, b"content-encoding").strip().lower()
    if encoding in ("", "identity"):
        return False
    if encoding in ("gzip", "x-gzip", "deflate"):
        return True
    raise ServiceRefused(f"{host} compressed its answer in a way that kai-proxy can't unpack")


class _Unpacking:
    """gzip and zlib, never more than a piece at a time: a bomb is noticed by its size like any other answer."""

    def __init__(self) -> None:
        self.one, self.begun = zlib.decompressobj(wbits=47), False

    def feed(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self.one.eof:  # one more member
                self.one = zlib.decompressobj(wbits=47)
            self.begun = True
            yield self.one.decompress(data, CHUNK)
            data = self.one.unused_data if self.one.eof else self.one.unconsumed_tail

    def end(self) -> bytes:
        """What is left of it. Raises zlib.error when there should be more."""
        rest = b""
        with suppress(zlib.error):
            rest = self.one.flush()
        if self.begun and not self.one.eof:
            raise zlib.error("cut")
        return rest
