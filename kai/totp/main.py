"""kai-totp(8): says whether a code of six digits is right. The only part of Kai that has the users' TOTP secrets.

Runs as kai-totp, started by the bot's first question, and leaves when it is idle. Counts a wrong code on disk before
it answers, and uses a right one up. No network, no other unit's socket; the bot hears ok, bad, locked or off.
"""

from __future__ import annotations

import asyncio

from kai.config import ConfigError, load
from kai.lib import daemon, varlink
from kai.lib.daemon import Daemon
from kai.lib.peers import Peers
from kai.lib.server import Server, misconfigured
from kai.lib.store import StoreError
from kai.lib.varlink import Misconfigured
from kai.totp import secrets
from kai.totp.record import Record
from kai.totp.verifier import Verifier

IDLE = 60.0
DRAIN = 5.0
"""Seconds that calls get to end when it is told to stop: what is counted should be heard of."""
MARKERS = "enrolled"
"""The directory beside its own where root marks who is enrolled."""
METHODS = [method for name, method in varlink.METHODS.items() if name.startswith("kai.Totp.")]


def main() -> None:
    daemon.run("kai-totp", serve)


async def serve(d: Daemon) -> None:
    peers = Peers(one_uid=d.one_uid)
    try:
        config = load(d.config_dir)
        handed, record = secrets.load(), Record(d.state_dir)
    except (ConfigError, Misconfigured, StoreError) as error:
        after = "; then `sudo kai totp unlock USER` for each user" if isinstance(error, StoreError) else ""
        await misconfigured(d, "totp", peers, METHODS, f"{error}{after}")
        return

    def reload() -> None:
        nonlocal config
        config = load(d.config_dir)

    verifier = Verifier(lambda: config.kai.totp, d.state_dir.parent / MARKERS, handed, record)
    d.on_reload.append(reload)
    server = Server(d, "totp", peers, verifier.handlers())
    d.ready("waiting for codes")
    await d.until_done(idle_after=IDLE)
    server.listener.let_go()
    if server.listener.tasks:
        await asyncio.wait(server.listener.tasks, timeout=DRAIN)
    record.close()


if __name__ == "__main__":
    main()
