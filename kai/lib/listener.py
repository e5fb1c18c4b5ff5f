"""Accept connections on a handed-over socket without ever losing one to idleness."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import Awaitable, Callable

from kai.lib.daemon import Daemon
from kai.lib.peers import Peer, Peers

MOST_PER_PEER = 64
"""Connections of one uid at a time. More are closed at once: nobody can take the others' places."""
logger = logging.getLogger(__name__)


class Listener:
    """Accepts and counts in one callback: the daemon can't go idle between the two (measured: facts §5)."""

    def __init__(
        self,
        daemon: Daemon,
        name: str,
        handle: Callable[[socket.socket, Peer], Awaitable[None]],
        peers: Peers,
        *,
        most_per_peer: int = MOST_PER_PEER,
    ) -> None:
        self.daemon, self.name, self.handle, self.peers = daemon, name, handle, peers
        self.most_per_peer = most_per_peer
        self.socket = daemon.socket(name)
        self.open: Counter[int] = Counter()
        self.tasks: set[asyncio.Task[None]] = set()
        self.loop = asyncio.get_running_loop()
        self.loop.add_reader(self.socket, self._accept)
        daemon.on_idle.append(self.let_go)

    def let_go(self) -> None:
        """Stop accepting; what comes now waits in the kernel."""
        self.loop.remove_reader(self.socket)

    def _accept(self) -> None:
        try:
            connection, _ = self.socket.accept()
        except OSError as error:
            if not isinstance(error, BlockingIOError | InterruptedError):
                logger.warning("%s: accept failed: %s", self.name, error)
            return
        connection.setblocking(False)
        peer = self.peers.identify(connection)
        if peer is None:
            logger.warning("%s: refused a connection of an unknown account", self.name)
            connection.close()
            return
        if self.open[peer.uid] >= self.most_per_peer:
            logger.warning("%s: refused connection %d of %s", self.name, self.most_per_peer + 1, peer)
            connection.close()
            return
        self.open[peer.uid] += 1
        self.daemon.hold()
        task = self.loop.create_task(self._serve(connection, peer))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _serve(self, connection: socket.socket, peer: Peer) -> None:
        try:
            await self.handle(connection, peer)
        except Exception:
            logger.exception("%s: connection of %s ended by a fault", self.name, peer)
        finally:
            connection.close()
            self.open[peer.uid] -= 1
            if not self.open[peer.uid]:
                del self.open[peer.uid]
            self.daemon.release()
