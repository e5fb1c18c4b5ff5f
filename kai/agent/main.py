"""kai-agent@USER(8): supervises the agent program of one user.

Runs as kai-u-USER, started by the first connection to its socket; leaves when it is idle. Drives the inner agent over
pipes through sudo and kai-inner, so the agent has the work account's uid and never this one's. Keeps the journal of
turns, the session and the history. Holds no secret; only kai-bot and kai-scheduler may ask for turns.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from kai.agent.backend import AgentBackend, AgentDied
from kai.agent.setup import API_SOCKET, Setup
from kai.agent.supervisor import Supervisor
from kai.agent.turns import Turns
from kai.config import ConfigError
from kai.lib import daemon, log, varlink
from kai.lib.daemon import Daemon
from kai.lib.listener import Listener
from kai.lib.peers import Peer, Peers
from kai.lib.server import Server, misconfigured
from kai.lib.store import StoreError
from kai.lib.varlink import Misconfigured

if TYPE_CHECKING:
    from kai.agent.api.routes import Api

IDLE = 5.0
"""Seconds without turn, process or connection until the supervisor leaves (trigger limits: facts §5)."""
MOST_CALLERS = 16
"""Connections of the inner agent at a time."""
METHODS = [method for name, method in varlink.METHODS.items() if name.startswith("kai.Agent.")]


def main() -> None:
    daemon.run("kai-agent", serve, instance=True)


async def serve(d: Daemon) -> None:
    peers = Peers(one_uid=d.one_uid)
    with log.fields(KAI_USER=d.instance):
        try:
            supervisor = await _supervisor(d)
        except (ConfigError, Misconfigured, StoreError) as error:
            if API_SOCKET in d.sockets:
                from kai.agent.api.closed import refuse

                refuse(
                    d,
                    API_SOCKET,
                    "its configuration can't be used; the operator finds the reason by `kai check`",
                )
            await misconfigured(d, "front", peers, METHODS, str(error))
            return
        Server(d, "front", peers, supervisor.handlers())
        if API_SOCKET in d.sockets:
            open_api(d, supervisor)
        d.ready("idle")
        await d.until_done(idle_after=IDLE)
        await supervisor.drain()


def open_api(d: Daemon, supervisor: Supervisor) -> None:
    """The inner agent's own socket. HTTP is imported for its first call: most turns make none."""
    user = supervisor.setup.user
    api: list[Api] = []

    async def handle(connection: socket.socket, peer: Peer) -> None:
        if not api:
            from kai.agent.api.routes import Api

            api.append(Api(supervisor))
        with log.fields(KAI_USER=user.name):
            await api[0].handle(connection, peer)

    peers = Peers({user.work_account: user.name}, one_uid=d.one_uid)
    Listener(d, API_SOCKET, handle, peers, most_per_peer=MOST_CALLERS)


async def _supervisor(d: Daemon) -> Supervisor:
    base = d.state_dir.parent
    if d.one_uid:
        for name in ("history", "files", "memory", "work", "tmp"):
            (base / name).mkdir(exist_ok=True)  # in an installation tmpfiles.d makes them, each with its owner
    turns = Turns(d.state_dir)
    supervisor = Supervisor(d, base, Setup(d, turns), turns, make_backend)
    await supervisor.open()
    return supervisor


def make_backend(name: str) -> AgentBackend:
    if name != "claude":
        raise AgentDied(f"The backend {name} is not available in this version; the operator can set `backend: claude`.")
    from kai.agent.claude import ClaudeBackend

    return ClaudeBackend()


if __name__ == "__main__":
    main()
