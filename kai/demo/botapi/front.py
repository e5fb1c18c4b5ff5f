"""The HTTP side: tornado's connection layer without its web framework, so that a call costs well under a millisecond.

`/bot<TOKEN>/<method>` and `/file/bot<TOKEN>/<path>` are Telegram's; `/control/<verb>` drives the stand-in and is
answered to loopback only, and only with the bot's token as bearer: whoever may speak as a person may make the
agent behind the bot run commands.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
from collections.abc import Callable
from urllib.parse import unquote

from tornado import httputil
from tornado.http1connection import HTTP1Connection

from kai.demo.botapi.answers import ApiError, conflict, ok
from kai.demo.botapi.control import Control
from kai.demo.botapi.faults import Fault
from kai.demo.botapi.files import MAX_UPLOAD
from kai.demo.botapi.journal import CallRecord
from kai.demo.botapi.methods import GET_UPDATES, METHODS
from kai.demo.botapi.params import Params, read_params
from kai.demo.botapi.people import People

MAX_BODY = 1 << 30  # bytes read at all; what is too much for Telegram is read and thrown away, then refused
_MAX_REQUEST = MAX_UPLOAD + (1 << 20)  # the file and the form around it
_WEBHOOK_ACTIVE = "can't use getUpdates method while webhook is active; use deleteWebhook to delete the webhook first"
_REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 409: "Conflict"}
_NOT_FOUND = ApiError(404, "Not Found")
_UNAUTHORIZED = ApiError(401, "Unauthorized")

log = logging.getLogger(__name__)


class Front(httputil.HTTPServerConnectionDelegate):
    """What every connection of a stand-in shares."""

    def __init__(self, world: People) -> None:
        self.world = world
        self.control = Control(world)
        self._timers: set[asyncio.TimerHandle] = set()

    def start_request(self, server_conn: object, request_conn: httputil.HTTPConnection) -> httputil.HTTPMessageDelegate:
        """A request begins (called by tornado)."""
        assert isinstance(request_conn, HTTP1Connection)
        return Exchange(self, request_conn)

    def later(self, seconds: float, act: Callable[[], None]) -> None:
        """Do something after a while, unless the server stops before."""
        handle: asyncio.TimerHandle

        def run() -> None:
            self._timers.discard(handle)
            act()

        handle = asyncio.get_running_loop().call_later(seconds, run)
        self._timers.add(handle)

    def stop(self) -> None:
        """Forget what was to happen later, and end the waiting getUpdates."""
        for handle in self._timers:
            handle.cancel()
        self._timers.clear()
        self.control.stop()
        self.world.updates.end_poll(ApiError(502, "Bad Gateway"))
        self.world.journal.wake()


class Exchange(httputil.HTTPMessageDelegate):
    """One request and its answer."""

    def __init__(self, front: Front, connection: HTTP1Connection) -> None:
        self._front = front
        self._world = front.world
        self._connection = connection
        self._path = self._query = ""
        self._headers = httputil.HTTPHeaders()
        self._chunks: list[bytes] = []
        self._size = 0
        self._done = False
        self._record: CallRecord | None = None
        self._after: list[Fault] = []

    # tornado calls these

    def headers_received(
        self, start_line: httputil.RequestStartLine | httputil.ResponseStartLine, headers: httputil.HTTPHeaders
    ) -> None:
        """The head is there."""
        assert isinstance(start_line, httputil.RequestStartLine)
        path, _, self._query = start_line.path.partition("?")
        self._path = unquote(path)
        self._headers = headers

    def data_received(self, chunk: bytes) -> None:
        """A piece of the body is there; what is over the limit isn't kept."""
        self._size += len(chunk)
        if self._size <= _MAX_REQUEST:
            self._chunks.append(chunk)
        else:
            self._chunks.clear()

    def finish(self) -> None:
        """The request is complete: answer it."""
        self._connection.set_close_callback(self._caller_gone)
        self._guard(self._route)

    def _guard(self, act: Callable[[], None]) -> None:
        """Do it, and answer with whatever it refuses."""
        try:
            act()
        except ApiError as refusal:
            self._answer(refusal.code, refusal.body(), retry_after=refusal.retry_after)
        except Exception:
            log.exception("the Bot API stand-in failed at a request")
            self._answer(500, ApiError(500, "Internal Server Error: see the stand-in's log").body())

    def on_connection_close(self) -> None:
        """The caller left before the request was complete."""
        self._caller_gone()

    # routes

    def _route(self) -> None:
        _, _, rest = self._path.partition("/")
        first, _, rest = rest.partition("/")
        if first.startswith("bot"):
            self._call(first[3:], rest)
        elif first == "file" and rest.startswith("bot"):
            token, _, path = rest[3:].partition("/")
            self._download(token, path)
        elif first == "control":
            self._control(rest)
        else:
            raise _NOT_FOUND

    def _download(self, token: str, path: str) -> None:
        file = self._world.files.at_path(path) if self._is_token(token) else None
        if file is None or file.data is None:
            raise _NOT_FOUND
        self._send(200, file.data, content_type="application/octet-stream")

    def _control(self, verb: str) -> None:
        address = ipaddress.ip_address(getattr(self._connection.context, "remote_ip", "0.0.0.0"))  # noqa: S104
        given = self._headers.get("Authorization", "")
        if not address.is_loopback or not self._is_token(given.removeprefix("Bearer ")):
            raise _UNAUTHORIZED
        self._front.control.handle(verb, self._query, self._headers, b"".join(self._chunks), self._control_answer)

    def _control_answer(self, status: int, body: bytes, content_type: str) -> None:
        self._send(status, body, content_type=content_type)

    def _call(self, token: str, method: str) -> None:
        if not self._is_token(token):
            raise _UNAUTHORIZED
        if self._size > _MAX_REQUEST:
            self._record = self._world.journal.call(method, {}, {})
            raise ApiError(413, "Request Entity Too Large")
        body = b"".join(self._chunks)
        self._chunks.clear()
        try:
            params = read_params(self._query, self._headers.get("Content-Type", ""), body)
        except ApiError:
            self._record = self._world.journal.call(method, {}, {})
            raise
        self._record = self._world.journal.call(method, params.values, params.files)
        before = self._world.faults.matching(method, str(params.values.get("chat_id", "")))
        self._record.fault = ", ".join(fault.kind for fault in before)
        self._after = [fault for fault in before if fault.kind in ("delay", "lose") or fault.acted]
        held = sum(fault.seconds for fault in before if fault.kind == "hold")
        if held:
            self._front.later(held, lambda: self._guard(lambda: self._act(method, params, before)))
        else:
            self._act(method, params, before)

    def _act(self, method: str, params: Params, faults: list[Fault]) -> None:
        for fault in faults:
            if fault.kind == "drop":
                self._hang_up(b"", status=0)
                return
            if fault.kind == "status" and not fault.acted:
                self._answer(fault.code, fault.page(), content_type="text/html")
                return
            refusal = fault.refusal()
            if refusal:
                raise refusal
        name = method.lower()
        if name == GET_UPDATES:
            if self._world.webhook:
                raise conflict(_WEBHOOK_ACTIVE)
            self._world.updates.poll(params, self._answer)
            return
        known = METHODS.get(name)
        if known is None:
            raise ApiError(404, "Not Found: method not found")
        self._world.flood.check(name, params.text("chat_id"))
        self._answer(200, ok(known(self._world, params)))

    # answers

    def _answer(
        self,
        status: int,
        body: bytes,
        *,
        retry_after: int | None = None,
        content_type: str = "application/json",
    ) -> None:
        """The outcome of a call: through the faults that come after acting, into the log, to the caller."""
        after, self._after = self._after, []
        for fault in after:
            if fault.kind == "lose":
                self._hang_up(body, status=status)
                return
            if fault.kind == "status":
                status, body, content_type = fault.code, fault.page(), "text/html"
        delay = sum(fault.seconds for fault in after if fault.kind == "delay")
        if delay:
            self._front.later(
                delay, lambda: self._send(status, body, retry_after=retry_after, content_type=content_type)
            )
        else:
            self._send(status, body, retry_after=retry_after, content_type=content_type)

    def _send(
        self, status: int, body: bytes, *, retry_after: int | None = None, content_type: str = "application/json"
    ) -> None:
        gone = self._done
        if self._record:
            self._world.journal.answered(self._record, status, body, lost=gone)
        if gone:
            return
        self._done = True
        headers = httputil.HTTPHeaders()
        headers["Content-Type"] = content_type
        headers["Content-Length"] = str(len(body))
        if retry_after is not None:
            headers["Retry-After"] = str(retry_after)
        line = httputil.ResponseStartLine("HTTP/1.1", status, _REASONS.get(status, "Error"))
        self._connection.write_headers(line, headers, body)
        self._connection.finish()

    def _hang_up(self, body: bytes, *, status: int) -> None:
        """End the connection instead of answering."""
        if self._record:
            self._world.journal.answered(self._record, status, body, lost=True)
        self._done = True
        self._connection.close()

    def _caller_gone(self) -> None:
        self._done = True
        self._world.updates.forget_poll(self._answer)

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self._world.token.encode())
