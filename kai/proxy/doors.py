"""The two doors of kai-proxy, each on a socket of its own: the model's for agents, the services' for supervisors.

Each can be there without the other. One that can't work answers every call with the reason.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Protocol

from kai.config import Config
from kai.interfaces import ServiceAnswer
from kai.lib import credentials
from kai.lib.daemon import Daemon
from kai.lib.listener import Listener
from kai.lib.peers import INNER, Peer, Peers
from kai.lib.server import Handlers
from kai.lib.varlink import Misconfigured
from kai.proxy.model import ModelDoor
from kai.proxy.services import METHODS, ServiceDesk, WatchedServer, needed

BROKEN = "kai-proxy: its configuration can't be used; the operator finds the reason by `kai check`"
DRAIN, DRAIN_SERVICES = 60.0, 31.0
"""Seconds that running calls get to end when the daemon is told to stop; a service's call has 30 in all."""
logger = logging.getLogger(__name__)


class Door(Protocol):
    """`refusal` is why it can't work, "" when it can."""

    refusal: str
    status: str

    def reload(self, config: Config) -> bool:
        """Go on with another configuration; False when only a fresh start can."""

    async def close(self) -> None:
        """Accept no more, and let running calls end."""


class Admitted(Peers):
    """Everyone whom the socket's group lets in: used only to say what is wrong with the configuration."""

    def identify(self, connection: socket.socket) -> Peer | None:
        return Peer(0, 0, frozenset({INNER}))


class Model:
    """The model door, for inner agents. `config` None is one that can't be used."""

    def __init__(self, d: Daemon, config: Config | None) -> None:
        self.peers = Admitted() if config is None else Peers(_accounts(config), one_uid=d.one_uid)
        self.door = _model_door(config)
        self.refusal = self.door.refusal
        self.status = self.refusal or f"model door to {self.door.host}"
        self.listener = Listener(d, "model", self.door.handle, self.peers)

    def reload(self, config: Config) -> bool:
        self.peers.inner = _accounts(config)
        return not self.refusal and config.kai.proxy.model.url == self.door.url

    async def close(self) -> None:
        self.listener.let_go()
        if self.listener.tasks:
            await asyncio.wait(self.listener.tasks, timeout=DRAIN)
        await self.door.close()


def _accounts(config: Config) -> dict[str, str]:
    return {user.work_account: user.name for user in config.users}


def _model_door(config: Config | None) -> ModelDoor:
    if config is None:
        return ModelDoor("http://none", "", refusal=BROKEN)
    url = config.kai.proxy.model.url
    try:
        return ModelDoor(url, _model_key())
    except Misconfigured as error:
        logger.error("%s", error)
        return ModelDoor(url, "", refusal=f"kai-proxy: {error}")


def _model_key() -> str:
    key = credentials.read("kai-model-key")
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise Misconfigured("credential kai-model-key: expected one line that holds the key and nothing else")
    return key


class ServiceDoor:
    """kai.Proxy, for supervisors and the operator."""

    def __init__(self, d: Daemon, config: Config | None) -> None:
        self.desk = None if config is None else ServiceDesk(config)
        self.needed = needed(config.services) if config else set()
        self.refusal = "" if config else BROKEN
        self.status = self.refusal or f"{len(config.services) if config else 0} services"
        handlers: Handlers = self.desk.handlers() if self.desk else dict.fromkeys(METHODS, _unused)
        self.server = WatchedServer(d, "services", Peers(one_uid=d.one_uid), handlers, misconfigured=self.refusal)

    def reload(self, config: Config) -> bool:
        if self.desk:
            self.desk.read(config)
        return self.desk is not None and needed(config.services) == self.needed  # credentials come at the start only

    async def close(self) -> None:
        self.server.listener.let_go()
        if self.desk:
            try:
                await asyncio.wait_for(self.desk.none_running.wait(), DRAIN_SERVICES)
            except TimeoutError:
                logger.warning("%d calls of services are cut off", self.desk.running)


async def _unused(*arguments: object) -> ServiceAnswer:
    raise Misconfigured(BROKEN)
