"""The API of a supervisor whose configuration can't be used: each request is told so."""

from __future__ import annotations

import socket

from kai.agent.api import http
from kai.agent.api.http import Answer, Refused, Request
from kai.lib.daemon import Daemon
from kai.lib.listener import Listener
from kai.lib.peers import INNER, Peer, Peers


class Admitted(Peers):
    """Everyone whom the socket's mode lets in: nobody is told more than that it can't be used."""

    def identify(self, connection: socket.socket) -> Peer | None:
        return Peer(0, 0, frozenset({INNER}))


def refuse(d: Daemon, name: str, reason: str) -> None:
    """Answer all calls on the socket of that name with 503."""

    async def answer(request: Request) -> Answer:
        raise Refused(503, reason)

    async def handle(connection: socket.socket, peer: Peer) -> None:
        await http.serve(connection, answer)

    Listener(d, name, handle, Admitted())
