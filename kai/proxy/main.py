"""kai-proxy(8): speaks to the model's API and to services, with keys that no agent can read.

Runs as kai-proxy, started by the first connection to one of its two sockets; leaves when it is idle. Reads its keys as
systemd credentials and nothing else that is secret. Reaches the internet. Who is calling is told by the kernel: the
inner agents of the configured users get through to the model, their supervisors to services, everyone else to nothing.
Keeps nothing.
"""

from __future__ import annotations

import asyncio
import logging

from kai.config import Config, ConfigError, load
from kai.lib import daemon
from kai.lib.daemon import Daemon
from kai.lib.varlink import Misconfigured
from kai.proxy.doors import Door, Model, ServiceDoor
from kai.proxy.rate import WINDOW

IDLE, IDLE_BROKEN = 30.0, 5.0
"""Seconds; with services at least a minute, so that leaving and coming back makes nobody's rate anew."""
DOORS: dict[str, type[Model] | type[ServiceDoor]] = {"model": Model, "services": ServiceDoor}
logger = logging.getLogger(__name__)


def main() -> None:
    daemon.run("kai-proxy", serve)


async def serve(d: Daemon) -> None:
    config = _config(d)
    doors: list[Door] = [door(d, config) for name, door in DOORS.items() if name in d.sockets]
    if not doors:
        raise Misconfigured(f"kai-proxy: no socket named {' or '.join(DOORS)} was handed over")

    def reread() -> None:
        fresh = load(d.config_dir)  # broken: what was read before stays in force
        kept = [door.reload(fresh) for door in doors]
        if not all(kept):
            d.stopping.set()  # the next call starts it anew

    d.on_reload.append(reread)
    d.ready("; ".join(dict.fromkeys(door.status for door in doors)))
    await d.until_done(idle_after=_idle(d, doors))
    await asyncio.gather(*(door.close() for door in doors))


def _config(d: Daemon) -> Config | None:
    try:
        return load(d.config_dir)
    except ConfigError as error:
        logger.error("%s", error)
        return None


def _idle(d: Daemon, doors: list[Door]) -> float:
    if all(door.refusal for door in doors):
        return IDLE_BROKEN
    return max(IDLE, WINDOW) if "services" in d.sockets else IDLE


if __name__ == "__main__":
    main()
