"""kai.Proxy: what a user may call, and calling it for him.

Whose call it is, the kernel says: a supervisor's user is that of its account. A key is read from systemd's credentials
for the call that needs it, and goes into the request and nowhere else.
"""

from __future__ import annotations

import asyncio
import logging
import select
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kai.config import Config, Service
from kai.config.services import KEYS
from kai.interfaces import (
    CallService,
    ListServices,
    ServiceAnswer,
    ServiceInfo,
    ServiceRefused,
    Services,
    ServiceUnreachable,
    TooManyCalls,
    UnknownService,
)
from kai.lib import credentials, log
from kai.lib.peers import OPERATOR, SUPERVISOR, Peer
from kai.lib.server import Handlers, Server
from kai.lib.varlink import Call, Fault, InvalidParameter, Misconfigured, PermissionDenied
from kai.proxy import bodies, outgoing
from kai.proxy.rate import Rates
from kai.proxy.target import target

PREFIXES = ("service", "serviceenc")
"""Of the credentials' names: those that stand in the open, and those that are encrypted."""
SHORTEST_KEY, LONGEST_KEY = log.SHORTEST_SECRET, 1024
METHODS: list[type[Call[Any]]] = [ListServices, CallService]
logger = logging.getLogger(__name__)


def key_of(service: Service) -> str:
    """The service's key; "" where it needs none, or has none and can do without. Raises Misconfigured."""
    name = service.credential
    if not name:
        return ""
    fix = f"write it to {KEYS}/{name} (root, 0600), then `systemctl stop kai-proxy`: the next call starts it anew"
    held = [prefix for prefix in PREFIXES if name in credentials.of_directory(prefix)]
    if not held:
        if service.auth.optional:
            return ""
        raise Misconfigured(f"service {service.name}: its key is missing: {fix}")
    key = credentials.read(f"{held[0]}_{name}", fix=fix)
    if not (key.isascii() and key.isprintable() and " " not in key and SHORTEST_KEY <= len(key) <= LONGEST_KEY):
        told = f"expected {SHORTEST_KEY} to {LONGEST_KEY} ASCII characters in one line, and nothing else"
        raise Misconfigured(f"service {service.name}: its key can't be used, {told}: {fix}")
    return key


def needed(services: tuple[Service, ...]) -> set[str]:
    """The credentials that services name."""
    return {service.credential for service in services} - {""}


class ServiceDesk:
    """Answers the calls of supervisors, and the operator's question what there is."""

    def __init__(self, config: Config) -> None:
        self.rates = Rates()
        self.running = 0
        self.none_running = asyncio.Event()
        self.none_running.set()
        self.read(config)

    def read(self, config: Config) -> None:
        """Take over another configuration. Calls that run go on as they began."""
        self.services = {service.name: service for service in sorted(config.services, key=lambda each: each.name)}
        self.users = {user.name for user in config.users}

    def handlers(self) -> Handlers:
        return {ListServices: self.told, CallService: self.call}

    async def told(self, peer: Peer, call: ListServices) -> Services:
        user = self._listed(peer, call.user)
        return Services([_info(each) for each in self.services.values() if not user or each.serves(user)])

    def _listed(self, peer: Peer, named: str) -> str:
        """Whose services are asked for; "" is everybody's."""
        if SUPERVISOR in peer.roles and peer.user:
            if named not in ("", peer.user):
                raise PermissionDenied(f"{peer} may not ask for another user's services")
            return peer.user
        if OPERATOR in peer.roles and named and named not in self.users:
            raise InvalidParameter("user: is not in users.yaml")
        return named

    async def call(self, peer: Peer, call: CallService, descriptors: list[int]) -> ServiceAnswer:
        with log.fields(KAI_USER=peer.user), self._counted(), _Line(peer) as line:
            service = self._find(peer, call.name)
            line.what = f"{service.name} {service.method}"
            source, sink = bodies.check(descriptors)
            body = bodies.read(source, service.method)
            with self.rates.slot(peer.user):
                key = key_of(service)
                asked = target(service, call.path_suffix, call.params, key)
                self.rates.take(peer.user, service.name, service.rate)
                line.sending = True
                written = bodies.Written(sink)
                try:
                    line.answer = await outgoing.call(service, asked, key, body, written.take)
                except BaseException:
                    written.undo()
                    raise
            return line.answer

    def _find(self, peer: Peer, name: str) -> Service:
        """Raises UnknownService, in the same words for a service of others as for none."""
        service = self.services.get(name)
        known = peer.user in self.users or not peer.user  # without a user only in the demo: one uid is everybody
        if service is None or not known or not service.serves(peer.user):
            raise UnknownService(f"there is no service {log.printable(name, 60)}")
        return service

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self.running += 1
        self.none_running.clear()
        try:
            yield
        finally:
            self.running -= 1
            if not self.running:
                self.none_running.set()


def _info(service: Service) -> ServiceInfo:
    return ServiceInfo(
        name=service.name,
        description=service.description.strip(),
        notes=service.notes.strip(),
        method=service.method,
        url=service.url,
        suffix=service.allow_path_suffix,
    )


class _Line:
    """The line of one call in the log: whose, what, and what came of it. Never what was asked or answered."""

    def __init__(self, peer: Peer) -> None:
        self.user = peer.user or "-"
        self.what = "an unknown service"
        self.sending = False
        self.answer: ServiceAnswer | None = None
        self.began = time.monotonic()

    def __enter__(self) -> _Line:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        spent = (time.monotonic() - self.began) * 1000
        if self.answer is not None:
            told = (self.user, self.what, self.answer.status, self.answer.size, spent)
            logger.info("%s: %s -> %d, %d bytes, %.0f ms", *told)
        else:
            logger.info("%s: %s -> %s, %.0f ms", self.user, self.what, self._why(error), spent)

    def _why(self, error: BaseException | None) -> str:
        if isinstance(error, asyncio.CancelledError):
            return "the caller hung up"
        if self.sending and isinstance(error, ServiceRefused | ServiceUnreachable):  # words of kai-proxy's own
            return log.printable(log.redact(str(error)), 200)
        if isinstance(error, Misconfigured):
            return str(error)
        if isinstance(error, TooManyCalls):
            return "too many calls"
        return error.NAME.rpartition(".")[2] if isinstance(error, Fault) else "a fault"


class WatchedServer(Server):
    """Ends the work for a caller who hangs up: nobody is left to read what it would bring."""

    async def _connection(self, connection: socket.socket, peer: Peer) -> None:
        loop = asyncio.get_running_loop()
        work = loop.create_task(super()._connection(connection, peer))
        with select.epoll(1) as watch:  # the connection itself is the wire's to watch
            watch.register(connection, select.EPOLLRDHUP)

            def gone() -> None:
                loop.remove_reader(watch)
                work.cancel()

            loop.add_reader(watch, gone)
            try:
                await asyncio.wait({work})
            finally:
                loop.remove_reader(watch)
                work.cancel()
        if not work.cancelled():
            work.result()
