"""HTTP/1.1 to the Bot API under python-telegram-bot: connections of asyncio's own, answers read by h11.

python-telegram-bot's HTTPXRequest takes some three times the processor time for a call (tests/bench/bench_calls.py).
It stays for what is rare and has more to it: uploads, addresses elsewhere, and everything where the environment names
a proxy.

What a failure means for a message is told by its cause. `NotSent`: nothing of the request has left this process.
`Lost`: it may have been obeyed, and nobody here knows. Nothing is ever sent twice. No error names the address: the
token is in it.
"""

from __future__ import annotations

import asyncio
import select
import ssl
import time
from typing import Any, cast
from urllib.parse import urlencode, urlsplit
from urllib.request import getproxies_environment

import h11
import httpx
from telegram.error import NetworkError, TimedOut
from telegram.request import BaseRequest, HTTPXRequest, RequestData

CONNECT, READ, WRITE, POOL = 5.0, 30.0, 5.0, 30.0
"""Seconds, where a call names none: to connect; for the answer's head, and for each STEP of its body; until the kernel
has the request; for a free connection."""
KEPT = 15.0
"""Seconds that an unused connection is kept. Servers keep them longer: a call that meets one just being closed can't be
told from one whose answer was lost."""
LARGEST_HEAD, LARGEST_BODY = 1 << 16, 16 << 20
STEP = 1 << 16
"""Bytes of a body after which its clock starts anew: a trickle doesn't hold it up."""
LONGEST_REASON = 200
_GIVEN = BaseRequest.DEFAULT_NONE


class Failure(Exception):
    """Why a call has no answer; `late` where a time ran out."""

    def __init__(self, reason: str, *, late: bool = False) -> None:
        super().__init__(reason[:LONGEST_REASON])
        self.late = late


class NotSent(Failure):
    """Nothing of the request has left: Telegram surely did not see it."""


class Lost(Failure):
    """No answer, or none that can be understood, to a request that may have been obeyed."""


class Transport(BaseRequest):
    """A pool of at most `connections` to the server of the address `base`; further calls wait for one.

    With `trust_env`, a proxy that HTTPS_PROXY, HTTP_PROXY or ALL_PROXY names is used.
    """

    def __init__(
        self,
        base: str,
        context: ssl.SSLContext,
        *,
        connections: int,
        read_timeout: float = READ,
        trust_env: bool = True,
    ) -> None:
        address = urlsplit(base)
        proxies = getproxies_environment() if trust_env else {}
        self.direct = not proxies.keys() & {address.scheme, "all"} and "@" not in address.netloc
        self.origin, self.netloc = f"{address.scheme}://{address.netloc}", address.netloc
        self.host = address.hostname or ""
        self.port = address.port or (443 if address.scheme == "https" else 80)
        context.set_alpn_protocols(["http/1.1"])
        self.context = context if address.scheme == "https" else None
        self.connections, self._read_timeout = connections, read_timeout
        self._options = {"verify": context, "trust_env": trust_env}
        self._rare: HTTPXRequest | None = None
        self._places = asyncio.Semaphore(connections)
        self._open: set[Connection] = set()
        self._unused: list[Connection] = []  # the one used last is the last
        self._sweep: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def read_timeout(self) -> float:
        return self._read_timeout

    async def initialize(self) -> None:
        self._closed = False
        if self._rare:
            await self._rare.initialize()

    async def shutdown(self) -> None:
        """Close all connections; calls that are under way are lost."""
        self._closed = True
        for connection in list(self._open):
            connection.close()
        if self._sweep:
            self._sweep.cancel()
            self._sweep = None
        if self._rare:
            await self._rare.shutdown()
        await asyncio.sleep(0)  # asyncio closes the sockets in the loop's next step

    async def do_request(
        self,
        url: str,
        method: str,
        request_data: RequestData | None = None,
        read_timeout: Any = _GIVEN,
        write_timeout: Any = _GIVEN,
        connect_timeout: Any = _GIVEN,
        pool_timeout: Any = _GIVEN,
    ) -> tuple[int, bytes]:
        """The answer's status and body. Raises NetworkError or TimedOut from NotSent or Lost."""
        plain = request_data is None or not request_data.contains_files
        if not (self.direct and plain and url.startswith(f"{self.origin}/")):
            limits = (read_timeout, write_timeout, connect_timeout, pool_timeout)
            return await self._by_httpx(url, method, request_data, *limits)
        try:
            await self._enter(POOL if pool_timeout is _GIVEN else pool_timeout)
            try:
                connection = self._reuse() or await self._connect(
                    CONNECT if connect_timeout is _GIVEN else connect_timeout
                )
                try:
                    return await connection.ask(
                        self._request(method, url, request_data),
                        write=WRITE if write_timeout is _GIVEN else write_timeout,
                        read=self._read_timeout if read_timeout is _GIVEN else read_timeout,
                    )
                finally:
                    self._leave(connection)
            finally:
                self._places.release()
        except Failure as failure:
            raise (TimedOut if failure.late else NetworkError)(f"{self.host}: {failure}") from failure

    def _request(self, method: str, url: str, data: RequestData | None) -> tuple[h11.Request, bytes]:
        headers = [
            ("Host", self.netloc),
            ("User-Agent", self.USER_AGENT),
            ("Accept-Encoding", "identity"),
        ]
        body = b""
        if data is not None and (parameters := data.json_parameters):
            body = urlencode(parameters, errors="replace").encode("ascii")
            headers.append(("Content-Type", "application/x-www-form-urlencoded"))
        if method != "GET":
            headers.append(("Content-Length", str(len(body))))
        try:
            return h11.Request(method=method, target=url[len(self.origin) :], headers=headers), body
        except (h11.LocalProtocolError, UnicodeEncodeError):  # its words may hold the address
            raise NotSent("the request can't be written as HTTP") from None

    async def _by_httpx(self, url: str, method: str, data: RequestData | None, *limits: Any) -> tuple[int, bytes]:
        if self._rare is None:
            self._rare = HTTPXRequest(
                self.connections, self._read_timeout, WRITE, CONNECT, POOL, httpx_kwargs=self._options
            )
        try:
            return await self._rare.do_request(url, method, data, *limits)
        except NetworkError as error:
            unsent = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
            if isinstance(error.__cause__, unsent):
                raise type(error)(error.message) from NotSent(str(error.__cause__))
            raise

    # ---- the pool ----

    async def _enter(self, patience: float | None) -> None:
        """Take one of the places. Released by the caller."""
        if self._closed:
            raise NotSent("the connections are closed")
        if not self._places.locked():
            await self._places.acquire()  # at once
            return
        try:
            async with asyncio.timeout(patience):
                await self._places.acquire()
        except TimeoutError:
            raise NotSent(f"all {self.connections} connections are busy", late=True) from None

    def _reuse(self) -> Connection | None:
        while self._unused:
            connection = self._unused.pop()
            if connection.quiet:
                return connection
            connection.close()
        return None

    async def _connect(self, patience: float | None) -> Connection:
        loop = asyncio.get_running_loop()
        secure: dict[str, Any] = {"ssl": self.context, "server_hostname": self.host} if self.context else {}
        try:
            async with asyncio.timeout(patience):
                _, connection = await loop.create_connection(
                    lambda: Connection(self._open, self._unused),
                    self.host,
                    self.port,
                    happy_eyeballs_delay=0.25,
                    **secure,
                )
        except TimeoutError:
            raise NotSent("no connection in time", late=True) from None
        except (OSError, ValueError) as error:  # TLS' errors are OSErrors, a name that can't be asked for a ValueError
            raise NotSent(f"no connection: {error}") from None
        return connection

    def _leave(self, connection: Connection) -> None:
        """Keep a connection for the next call, or close it."""
        if self._closed or not connection.fit:
            connection.close()
            return
        connection.since = time.monotonic()
        self._unused.append(connection)
        if self._sweep is None:
            self._sweep = asyncio.get_running_loop().call_later(KEPT, self._close_old)

    def _close_old(self) -> None:
        left = 0.0
        while self._unused and (left := self._unused[0].since + KEPT - time.monotonic()) <= 0:
            self._unused.pop(0).close()
        self._sweep = asyncio.get_running_loop().call_later(left, self._close_old) if self._unused else None


class Connection(asyncio.Protocol):
    """One connection, one call at a time. `fit`: the last answer is complete, and another call may follow.

    It enters and leaves `everyone` by itself, and leaves `unused` when the server closes it.
    """

    transport: asyncio.Transport

    def __init__(self, everyone: set[Connection], unused: list[Connection]) -> None:
        self._everyone, self._unused = everyone, unused
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=LARGEST_HEAD)
        self._loop = asyncio.get_running_loop()
        self._clock: asyncio.TimerHandle | None = None
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._poll = select.poll()
        self._status, self._size, self._body = 0, 0, [b""]
        self._read: float | None = None
        self._full = False
        self.fit = False
        self.since = 0.0

    @property
    def quiet(self) -> bool:
        """Whether nothing came since the last answer, the end of the connection included."""
        return not self.transport.is_closing() and not self._poll.poll(0)

    def close(self) -> None:
        self.transport.abort()

    async def ask(
        self, request: tuple[h11.Request, bytes], *, write: float | None, read: float | None
    ) -> tuple[int, bytes]:
        """Send a request and its body; the answer's status and body. Times are in seconds. Raises NotSent or Lost."""
        self.fit = False
        if self.transport.is_closing():
            raise NotSent("the connection ended before the request")
        head, body = request
        message = [self._http.send(event) or b"" for event in (head, h11.Data(data=body), h11.EndOfMessage())]
        self._status, self._size, self._read = 0, 0, read
        self._body.clear()
        self._answer = self._loop.create_future()
        try:
            self.transport.write(b"".join(message))
            self._wait(write if self._full else read)
            return await self._answer
        finally:
            self._wait(None)
            self._answer = None

    def _wait(self, seconds: float | None) -> None:
        """Set the clock; None stops it."""
        if self._clock:
            self._clock.cancel()
        self._clock = None if seconds is None else self._loop.call_later(seconds, self._late, seconds)

    def _late(self, seconds: float) -> None:
        what = "it was not taken" if self._full else "the answer did not go on" if self._status else "no answer"
        self._fail(f"{what} within {seconds:g} s", late=True)

    def _fail(self, reason: str, *, late: bool = False) -> None:
        if self._answer and not self._answer.done():
            self._answer.set_exception(Lost(reason, late=late))

    def _events(self) -> None:
        """Take in what has come of the answer."""
        while True:
            event = self._http.next_event()
            if isinstance(event, h11.Response):
                self._status = event.status_code
                coding = dict(event.headers).get(b"content-encoding", b"identity")
                if coding != b"identity":
                    raise h11.RemoteProtocolError(f"the body is {coding!r}, which was not asked for")
                self._wait(self._read)
            elif isinstance(event, h11.Data):
                self._take(event.data)
            elif isinstance(event, h11.EndOfMessage):
                self._end()
                return
            elif not isinstance(event, h11.InformationalResponse):
                return  # NEED_DATA; or the connection's end, which connection_lost tells

    def _take(self, data: bytes) -> None:
        if (self._size + len(data)) // STEP > self._size // STEP:
            self._wait(self._read)
        self._size += len(data)
        if self._size > LARGEST_BODY:
            raise h11.RemoteProtocolError(f"the body has more than {LARGEST_BODY} bytes")
        self._body.append(data)

    def _end(self) -> None:
        http = self._http
        self.fit = http.our_state is http.their_state is h11.DONE and not http.trailing_data[0] and not self._full
        if self.fit:
            http.start_next_cycle()
        assert self._answer
        self._answer.set_result((self._status, b"".join(self._body)))

    # ---- asyncio.Protocol ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(1)  # with 0, asyncio's TLS says at once that it is full
        self._poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN | select.POLLHUP)
        self._everyone.add(self)

    def data_received(self, data: bytes) -> None:
        if not self._answer or self._answer.done():
            self.fit = False
            self.close()  # nobody asked
            return
        try:
            self._http.receive_data(data)
            self._events()
        except h11.RemoteProtocolError as error:
            self._fail(f"not HTTP as expected: {error}")

    def eof_received(self) -> None:
        """The connection ends by itself after this. The end may be that of the answer's body."""
        if self._status or not self._answer:
            self.data_received(b"")

    def connection_lost(self, error: Exception | None) -> None:
        self.fit = False
        self._fail(f"the connection ended before the answer{f': {error}' if error else ''}")
        self._everyone.discard(self)
        if self in self._unused:
            self._unused.remove(self)

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        if self._answer and not self._answer.done() and not self._status:
            self._wait(self._read)
