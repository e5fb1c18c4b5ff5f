"""kai-proxy(8): speaks to the model's API for the inner agents, with a key that none of them can read.

Runs as kai-proxy, started by the first connection to a socket of its own; leaves when it is idle. Reads its key as a
systemd credential and nothing else that is secret. Reaches the internet. Who is calling is told by the kernel: the
inner agents of the configured users get through, everyone else gets no answer. Keeps nothing.
"""

from __future__ import annotations

import asyncio
import logging
import socket

from kai.config import Config, ConfigError, load
from kai.lib import credentials, daemon
from kai.lib.daemon import Daemon
from kai.lib.listener import Listener
from kai.lib.peers import INNER, Peer, Peers
from kai.lib.varlink import Misconfigured
from kai.proxy.model import ModelDoor

IDLE, IDLE_BROKEN = 30.0, 5.0
DRAIN = 60.0
"""Seconds that running calls get to end when the daemon is told to stop."""
logger = logging.getLogger(__name__)


class Admitted(Peers):
    """Everyone whom the socket's group lets in: used only to say what is wrong with the configuration."""

    def identify(self, connection: socket.socket) -> Peer | None:
        return Peer(0, 0, frozenset({INNER}))


def main() -> None:
    daemon.run("kai-proxy", serve)


async def serve(d: Daemon) -> None:
    peers, door = _prepare(d)
    listener = Listener(d, "model", door.handle, peers)

    def reread() -> None:
        config = load(d.config_dir)  # broken: what was read before stays in force
        peers.inner = _accounts(config)
        if door.refusal or config.kai.proxy.model.url != door.url:
            d.stopping.set()  # the next call starts it anew

    d.on_reload.append(reread)
    d.ready(door.refusal or f"model door to {door.host}")
    await d.until_done(idle_after=IDLE_BROKEN if door.refusal else IDLE)
    listener.let_go()
    if listener.tasks:
        await asyncio.wait(listener.tasks, timeout=DRAIN)
    await door.close()


def _accounts(config: Config) -> dict[str, str]:
    return {user.work_account: user.name for user in config.users}


def _prepare(d: Daemon) -> tuple[Peers, ModelDoor]:
    """Who may call, and the door: one that answers every call with the reason when it can't work."""
    try:
        config = load(d.config_dir)
    except ConfigError as error:
        logger.error("%s", error)
        told = "its configuration can't be used; the operator finds the reason by `kai check`"
        return Admitted(), ModelDoor("http://none", "", refusal=f"kai-proxy: {told}")
    peers = Peers(_accounts(config), one_uid=d.one_uid)
    url = config.kai.proxy.model.url
    try:
        return peers, ModelDoor(url, _key())
    except Misconfigured as error:
        logger.error("%s", error)
        return peers, ModelDoor(url, "", refusal=f"kai-proxy: {error}")


def _key() -> str:
    key = credentials.read("kai-model-key")
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise Misconfigured("credential kai-model-key: expected one line that holds the key and nothing else")
    return key


if __name__ == "__main__":
    main()
