"""kai-timers(8): asks PID 1 for the timers of jobs; the only part of Kai that runs as root.

Started by the scheduler's first connection, leaves when it is idle. Without capabilities and without network; reads no
configuration and no secret. Only the scheduler may call, and gets timers named kai-job@ID.timer from a fixed schema,
and starts of kai-job@ID.service: whoever may make any transient unit is root. Keeps nothing.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from kai.lib import daemon
from kai.lib.daemon import Daemon
from kai.lib.peers import Peers
from kai.lib.server import Server
from kai.timers.bus import SYSTEM_BUS, Bus
from kai.timers.timers import Timers

IDLE = 20.0
DRAIN = 30.0
"""Seconds that running calls get to end when the daemon is told to stop."""
STAMPS = Path("/var/lib/systemd/timers")


def main() -> None:
    daemon.run("kai-timers", serve)


async def serve(d: Daemon) -> None:
    bus = Bus(SYSTEM_BUS)
    server = Server(d, "timers", Peers(one_uid=d.one_uid), Timers(bus, STAMPS).handlers())
    d.ready("waiting for the scheduler")
    await d.until_done(idle_after=IDLE)
    server.listener.let_go()
    if server.listener.tasks:
        await asyncio.wait(server.listener.tasks, timeout=DRAIN)
    await bus.close()


if __name__ == "__main__":
    main()
