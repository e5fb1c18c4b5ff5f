"""HTTP on the sockets that systemd handed over: tornado reads it, this says how much, how slowly, how many at once.

Who speaks here is unknown until a signature is right, so every request has its bounds: so many connections, bodies and
bytes, and so many seconds for each step. One beyond them is told so and costs nothing more.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from http import HTTPStatus
from typing import Any

from tornado import httputil, iostream
from tornado.http1connection import HTTP1Connection
from tornado.httpserver import HTTPServer

from kai.lib.daemon import Daemon
from kai.lib.log import printable
from kai.lib.sparing import Sparing
from kai.webhook.endpoints import Answer, Body, Endpoint, busy

MOST_CONNECTIONS = 128
MOST_BODIES = 8
"""Bodies that come in at the same time; more wait for a place. Each socket has both for itself: what some agent of this
host does on loopback takes nothing from the reverse proxy.
"""
PLACE_PATIENCE = 5.0
"""Seconds that a request waits for a place. GitHub waits 10 s for its answer."""
HEAD_PATIENCE = 15.0
"""Seconds for a request's head, and that a connection may be idle."""
BODY_PATIENCE = 15.0
"""Seconds for a request's body, the wait for a place not counted."""
LARGEST_HEAD = 16 << 10
DRAINED = 32 << 20
"""Bytes of a refused body that are read and thrown away: a client that still sends reads no answer."""
WITHOUT_END = 1 << 62
HEALTH = "/health"
logger = logging.getLogger(__name__)


class Server(HTTPServer):
    """Serves `endpoints`, by their paths, on one socket. `healthy` says whether it could accept now.

    `behind_proxy` says whether only a reverse proxy reaches this socket, so that its word on clients is taken.
    """

    def initialize(  # type: ignore[override]
        self,
        daemon: Daemon,
        name: str,
        endpoints: Mapping[str, Endpoint],
        *,
        behind_proxy: bool,
        healthy: Callable[[], bool],
    ) -> None:
        super().initialize(
            self, max_header_size=LARGEST_HEAD, idle_connection_timeout=HEAD_PATIENCE, max_body_size=WITHOUT_END,
            chunk_size=1 << 16, max_buffer_size=1 << 20,
        )  # fmt: skip
        self.daemon, self.endpoints, self.healthy = daemon, endpoints, healthy
        self.working: set[asyncio.Task[None]] = set()
        self.bodies = asyncio.Semaphore(MOST_BODIES)
        self.sparing = Sparing(logger)
        self.closing = False
        self.behind_proxy = behind_proxy
        self.add_socket(daemon.socket(name).dup())
        daemon.on_idle.append(self.let_go)

    def let_go(self) -> None:
        """Stop accepting; what comes now waits in the kernel."""
        if not self.closing:
            self.closing = True
            self.stop()

    async def drain(self, patience: float) -> None:
        """Let what is being stored be answered, `patience` seconds at the most, and close all connections."""
        if self.working:
            await asyncio.wait(self.working, timeout=patience)
        await self.close_all_connections()

    def handle_stream(self, stream: iostream.IOStream, address: Any) -> None:
        if len(self._connections) >= MOST_CONNECTIONS:
            self.sparing.log("connections", logging.WARNING, "%d connections are open: one more is closed at once",
                             MOST_CONNECTIONS)  # fmt: skip
            stream.close()
            return
        self.daemon.hold()  # in the same step as the accept: it can't go idle between the two
        super().handle_stream(stream, address)

    def start_request(self, server_conn: object, request_conn: httputil.HTTPConnection) -> httputil.HTTPMessageDelegate:
        assert isinstance(request_conn, HTTP1Connection)
        return Request(self, request_conn)

    def on_close(self, server_conn: object) -> None:
        super().on_close(server_conn)
        self.daemon.release()

    def endpoint(self, method: str, target: str) -> Endpoint:
        """Raises Answer where there is none, and for /health."""
        path = target.partition("?")[0]
        if path == HEALTH:
            if method not in ("GET", "HEAD"):
                raise Answer(405, "expected GET", headers={"Allow": "GET, HEAD"})
            raise Answer(200, "ok") if self.healthy() else busy("")
        if path not in self.endpoints:
            raise Answer(404, "there is nothing here")
        if method != "POST":
            raise Answer(405, "expected POST", headers={"Allow": "POST"})
        return self.endpoints[path]


class Request(httputil.HTTPMessageDelegate):
    """One request. Its answer is written once; what comes after it is thrown away."""

    def __init__(self, server: Server, connection: HTTP1Connection) -> None:
        self.server, self.connection = server, connection
        self.body: Body | None = None
        self.refusal: Answer | None = None
        self.size = self.largest = 0
        self.placed = self.answered = self.gone = self.complete = False
        self.client = self.method = self.path = ""
        self.late: asyncio.TimerHandle | None = None
        self.work: asyncio.Task[None] | None = None

    def headers_received(
        self, start_line: httputil.RequestStartLine | httputil.ResponseStartLine, headers: httputil.HTTPHeaders
    ) -> Awaitable[None] | None:
        assert isinstance(start_line, httputil.RequestStartLine)
        self.method, self.client = start_line.method, self._client(headers)
        self.late = asyncio.get_running_loop().call_later(BODY_PATIENCE + PLACE_PATIENCE, self._is_late)
        length = headers.get("Content-Length", "")
        size = int(length) if length.isascii() and length.isdigit() and len(length) < 20 else 0
        try:
            endpoint = self.server.endpoint(start_line.method, start_line.path)
            self.path, self.largest = start_line.path, endpoint.largest
            if size > self.largest:
                raise self._too_large()
            if not length and "Transfer-Encoding" not in headers:
                raise Answer(411, "expected a body, with its Content-Length")
            return self._begin(endpoint, headers)
        except Answer as refusal:
            self._refuse(refusal)
            if size > DRAINED or "Expect" in headers:
                self._answer(refusal)
            return None

    async def _begin(self, endpoint: Endpoint, headers: httputil.HTTPHeaders) -> None:
        """Take a place, once what the head says is right: who is refused takes none."""
        try:
            body = endpoint.open(headers)
            try:
                await self._take_place()
            except BaseException:
                body.close()
                raise
        except Answer as refusal:
            self._refuse(refusal)
            return
        except TimeoutError:
            self._refuse(busy(f"{MOST_BODIES} bodies come in already, and none ended within {PLACE_PATIENCE:g} s"))
            return
        self.placed, self.body = True, body
        if self.gone:
            self._release()

    async def _take_place(self) -> None:
        """Raises TimeoutError."""
        bodies = self.server.bodies
        if bodies.locked():
            async with asyncio.timeout(PLACE_PATIENCE):
                await bodies.acquire()
        else:
            await bodies.acquire()

    def data_received(self, chunk: bytes) -> None:
        self.size += len(chunk)
        if self.refusal or self.body is None:
            if self.size > DRAINED and self.refusal:
                self._answer(self.refusal)
            return
        try:
            if self.size > self.largest:
                raise self._too_large()
            self.body.write(chunk)
        except Answer as refusal:
            self._refuse(refusal)

    def finish(self) -> None:
        """All of it is here."""
        self.complete = True
        if self.late:
            self.late.cancel()
        if self.refusal:
            self._answer(self.refusal)
        elif self.body:
            self.work = asyncio.create_task(self._end(self.body))
            self.server.working.add(self.work)
            self.work.add_done_callback(self.server.working.discard)

    async def _end(self, body: Body) -> None:
        try:
            answer = await body.end()
        except Exception:
            logger.exception("a request of %s could not be worked on", self.client)
            answer = busy("")
        self._log(answer)
        self._release()
        self._answer(answer)

    def on_connection_close(self) -> None:
        """The client went away: what is being stored is stored all the same."""
        self.gone = True
        if self.late:
            self.late.cancel()
        if self.work is None:
            self._release()

    def _is_late(self) -> None:
        if self.refusal is None:
            self._refuse(Answer(408, "the body took too long", "a body came too slowly"))
        if self.refusal:
            self._answer(self.refusal)

    def _too_large(self) -> Answer:
        return Answer(413, f"larger than {self.largest >> 20} MiB", "a body was too large")

    def _refuse(self, refusal: Answer) -> None:
        """It is told when its body has been read: who still sends reads nothing."""
        self.refusal = refusal
        self._log(refusal)
        self._release()

    def _release(self) -> None:
        if self.body:
            self.body.close()
            self.body = None
        if self.placed:
            self.placed = False
            self.server.bodies.release()

    def _answer(self, answer: Answer) -> None:
        if self.answered or self.gone:
            return
        self.answered = True
        text = f"{answer.text}\n".encode()
        headers = httputil.HTTPHeaders({
            "Content-Type": "text/plain; charset=utf-8", "Content-Length": str(len(text)), **answer.headers,
        })  # fmt: skip
        if not self.complete:  # tornado closes it then
            headers["Connection"] = "close"
        line = httputil.ResponseStartLine("HTTP/1.1", answer.status, HTTPStatus(answer.status).phrase)
        with suppress(iostream.StreamClosedError):
            self.connection.write_headers(line, headers, b"" if self.method == "HEAD" else text)
            self.connection.finish()

    def _log(self, answer: Answer) -> None:
        if answer.why:
            level = logging.ERROR if answer.status >= 500 else logging.WARNING
            self.server.sparing.log(f"{answer.status} {self.path}", level, "%s: %s", self.client, answer.why)

    def _client(self, headers: httputil.HTTPHeaders) -> str:
        """Who speaks, for the journal: what the reverse proxy says, where only it can have said so."""
        forwarded = headers.get("X-Forwarded-For", "").rpartition(",")[2].strip()
        try:
            address = str(ipaddress.ip_address(forwarded))
        except ValueError:
            address = ""
        if self.server.behind_proxy:
            return address or "the reverse proxy"
        return f"a local program, for {printable(address, 50)}" if address else "a local program"
