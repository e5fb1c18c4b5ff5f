"""Serve Varlink calls: the caller from the kernel, the caller table, limits, streams that end with their client.

Calls of one connection are worked on one after another, and the answer is drained before the next call is read:
a client that doesn't read is not read from. Under a stream the connection is watched, so that a client that goes
away ends the work that was done for it. Descriptors are taken from callers whose table has a method for them, and end
with the call that they came with.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Any

import msgspec

import kai
from kai.lib import idl
from kai.lib.daemon import Daemon
from kai.lib.listener import Listener
from kai.lib.peers import Peer, Peers
from kai.lib.varlink import (
    MAX_MESSAGE,
    Call,
    ExpectedMore,
    Fault,
    InterfaceNotFound,
    Internal,
    InvalidParameter,
    MethodNotFound,
    Misconfigured,
    PermissionDenied,
    Reply,
    Request,
    encode,
)
from kai.lib.wire import Wire, close_all

MISCONFIGURED_LIFE = 3.0
"""Seconds that a daemon answers `Misconfigured` before it leaves: well over systemd's limit of 20 starts in 2 s."""
logger = logging.getLogger(__name__)
Emit = Callable[[Any], Awaitable[None]]
Handler = Callable[..., Awaitable[msgspec.Struct]]
Handlers = dict[type[Call[Any]], Handler]


class Information(msgspec.Struct):
    vendor: str
    product: str
    version: str
    url: str
    interfaces: list[str]


class Description(msgspec.Struct):
    description: str


class Describe(msgspec.Struct):
    interface: str


class Server:
    """Answers calls on one handed-over socket.

    `handlers` maps a method to `async def handler(peer, call)` or, for a stream, `handler(peer, call, emit)`; what a
    handler returns is the answer, or a stream's last item. The handler of a method that takes descriptors gets their
    list after `call`. Those that are in the list when it returns are closed: what it takes out is its own to close.
    With `misconfigured` set, every call that the caller table admits is answered with that error and nothing else is
    done.
    """

    def __init__(
        self,
        daemon: Daemon,
        socket_name: str,
        peers: Peers,
        handlers: Handlers,
        *,
        misconfigured: str = "",
    ) -> None:
        self.methods = {call.NAME: (call, handler) for call, handler in handlers.items()}
        self.interfaces = idl.interfaces({call.NAME: call for call in handlers})
        self.misconfigured = misconfigured
        self.listener = Listener(daemon, socket_name, self._connection, peers)

    async def _connection(self, connection: socket.socket, peer: Peer) -> None:
        most = max((kind.DESCRIPTORS for kind, _ in self.methods.values() if kind.CALLERS & peer.roles), default=0)
        wire = Wire(connection, most=most, expecting=True)
        try:
            await _Connection(self, wire, peer).serve()
        except ConnectionError:
            pass
        except ValueError as error:
            logger.warning("closed the connection of %s: %s", peer, error)
        finally:
            wire.close()


class _Connection:
    def __init__(self, server: Server, wire: Wire, peer: Peer) -> None:
        self.server, self.wire, self.peer = server, wire, peer
        self.ahead: asyncio.Task[bytes | None] | None = None

    async def serve(self) -> None:
        try:
            while (message := await self._next()) is not None:
                descriptors, too_many = self.wire.collect()
                try:
                    await self._answer(_request(message), descriptors, too_many=too_many)
                finally:
                    close_all(descriptors)
                if self.wire.buffered:
                    await asyncio.sleep(0)  # the others' turn between the calls of one that sends many at once
        finally:
            if self.ahead:
                self.ahead.cancel()

    async def _next(self) -> bytes | None:
        if self.ahead:
            task, self.ahead = self.ahead, None
            return await task
        return await self.wire.receive()

    async def _answer(self, request: Request, descriptors: list[int], *, too_many: bool) -> None:
        try:
            await self._dispatch(request, descriptors, too_many=too_many)
        except Fault as fault:
            if isinstance(fault, PermissionDenied):
                logger.warning("refused %s of %s: %s", request.method, self.peer, fault.message)
            elif isinstance(fault, InvalidParameter):  # its field alone: the journal is no place for people's words
                field = fault.message.partition(":")[0][:60]
                logger.warning("refused %s of %s: its %s isn't valid", request.method, self.peer, field)
            await self._refuse(request, fault)
        except ConnectionError:
            raise
        except Exception:
            logger.exception("%s of %s failed", request.method, self.peer)
            await self._refuse(request, Internal(f"{request.method} failed; the journal says why"))

    async def _dispatch(self, request: Request, descriptors: list[int], *, too_many: bool) -> None:
        if request.method.startswith("org.varlink.service."):
            _admit(request, len(descriptors), 0, too_many=too_many)
            await self._send(request, self._service(request))
            return
        if request.method not in self.server.methods:
            interface = request.method.rpartition(".")[0]
            if interface in self.server.interfaces:
                raise MethodNotFound(request.method)
            raise InterfaceNotFound(interface)
        kind, handler = self.server.methods[request.method]
        if not kind.CALLERS & self.peer.roles:
            raise PermissionDenied(f"{self.peer} may not call {request.method}")
        if self.server.misconfigured:
            raise Misconfigured(self.server.misconfigured)
        if kind.STREAM and not request.more:
            raise ExpectedMore(request.method)
        _admit(request, len(descriptors), kind.DESCRIPTORS, too_many=too_many)
        try:
            call = msgspec.json.decode(request.parameters, type=kind)
        except msgspec.DecodeError as error:
            raise InvalidParameter(str(error)) from None
        arguments = (self.peer, call, descriptors) if kind.DESCRIPTORS else (self.peer, call)
        if kind.STREAM:
            await self._stream(request, handler, arguments)
        else:
            await self._send(request, await handler(*arguments))

    async def _stream(self, request: Request, handler: Handler, arguments: tuple[Any, ...]) -> None:
        """Send items as they come, the handler's return value last; end the handler when the client goes away."""

        async def emit(item: msgspec.Struct) -> None:
            await self._send(request, item, continues=True)

        self.ahead = asyncio.ensure_future(self.wire.receive())
        work = asyncio.ensure_future(handler(*arguments, emit))
        try:
            await asyncio.wait({work, self.ahead}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                if self.ahead.result() is None:
                    raise ConnectionResetError("the client went away")
                await asyncio.wait({work})  # the next call of a client that doesn't wait; it stays in `ahead`
            await self._send(request, work.result())
        finally:
            if not work.done():
                work.cancel()
                await asyncio.wait({work})

    async def _refuse(self, request: Request, fault: Fault) -> None:
        await self._send(request, {fault.PARAMETER: fault.message}, error=fault.NAME)

    async def _send(
        self, request: Request, parameters: Any, *, continues: bool = False, error: str | None = None
    ) -> None:
        if request.oneway:
            return
        body = msgspec.Raw(msgspec.json.encode(parameters))
        data = encode(Reply(parameters=body, continues=continues, error=error))
        if len(data) > MAX_MESSAGE:  # the peer would cut the connection, ask again, and cut it again
            logger.error("the answer to %s has %d bytes, more than %d", request.method, len(data), MAX_MESSAGE)
            fault = Internal(f"the answer to {request.method} is too long")
            body = msgspec.Raw(msgspec.json.encode({fault.PARAMETER: fault.message}))
            data = encode(Reply(parameters=body, error=fault.NAME))
        await self.wire.send(data)

    def _service(self, request: Request) -> msgspec.Struct:
        """org.varlink.service: introspection is open to every caller that the socket admits."""
        name = request.method.rpartition(".")[2]
        if name == "GetInfo":
            interfaces = ["org.varlink.service", *self.server.interfaces]
            return Information("Kai", "kai", kai.__version__, "https://varlink.org", interfaces)
        if name != "GetInterfaceDescription":
            raise MethodNotFound(request.method)
        try:
            wanted = msgspec.json.decode(request.parameters, type=Describe).interface
        except msgspec.DecodeError as fault:
            raise InvalidParameter(str(fault)) from None
        if wanted == "org.varlink.service":
            return Description(SERVICE_DESCRIPTION)
        if wanted not in self.server.interfaces:
            raise InterfaceNotFound(wanted)
        return Description(idl.describe(wanted))


def _request(message: bytes) -> Request:
    try:
        return msgspec.json.decode(message, type=Request)
    except msgspec.DecodeError as error:
        raise ValueError(f"not a Varlink call: {error}") from None


def _admit(request: Request, given: int, most: int, *, too_many: bool) -> None:
    """Raise InvalidParameter for more descriptors than the method takes."""
    if too_many or given > most:
        raise InvalidParameter(f"descriptors: {request.method} takes {f'at most {most}' if most else 'none'}")


SERVICE_DESCRIPTION = """\
# What every Varlink service can be asked
interface org.varlink.service

method GetInfo() -> (vendor: string, product: string, version: string, url: string, interfaces: []string)

method GetInterfaceDescription(interface: string) -> (description: string)

error InterfaceNotFound (interface: string)

error MethodNotFound (method: string)

error MethodNotImplemented (method: string)

error InvalidParameter (parameter: string)

error PermissionDenied ()

error ExpectedMore ()
"""


async def misconfigured(
    daemon: Daemon, socket_name: str, peers: Peers, methods: Iterable[type[Call[Any]]], message: str
) -> None:
    """What a daemon does that its socket woke and that can't work: answer everyone why, and leave.

    Leaving with a failure instead would be tried again and again until systemd gives the socket up (facts §10).
    """

    async def unused(peer: Peer, call: Any) -> msgspec.Struct:
        raise Misconfigured(message)

    logger.error("%s", message)
    Server(daemon, socket_name, peers, dict.fromkeys(methods, unused), misconfigured=message)
    daemon.ready(f"misconfigured: {message}")
    with suppress(TimeoutError):
        # However many clients keep asking: only the next start reads a repaired configuration.
        await asyncio.wait_for(daemon.until_done(), MISCONFIGURED_LIFE)
    for let_go in daemon.on_idle:
        let_go()
