"""kai-webhook(8): takes in webhooks, and sees that the people they concern hear of them.

Runs as kai-webhook, started with kai.target and by its sockets; leaves when it is idle and its spool is empty. Speaks
HTTP on sockets that were handed over, to a reverse proxy and whoever is behind it; has no network of its own, so that
it can accept but not call out. Holds the secrets that webhooks are signed with. Stores what is right before it answers,
and may say to the bot: here is a notice, for this user.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from kai.config import Config, ConfigError, load
from kai.interfaces import Redeliver
from kai.lib import daemon, varlink
from kai.lib import server as calls
from kai.lib.client import Client
from kai.lib.daemon import Daemon
from kai.lib.peers import Peers
from kai.lib.store import Store, StoreError
from kai.lib.varlink import Fault, Misconfigured, Unavailable
from kai.webhook import records, secrets
from kai.webhook.delivery import Delivery
from kai.webhook.endpoints import Endpoint, Generic, GitHub, Telegram, Unusable
from kai.webhook.http import Server
from kai.webhook.intake import Intake
from kai.webhook.records import Records
from kai.webhook.service import Service
from kai.webhook.spool import Spool

IDLE = 60.0
DRAIN = 10.0
"""Seconds that requests get to end when it is told to stop."""
ROUND = 300.0
"""Seconds that kai-github may take."""
DOORS = {"http": False, "local": True}
"""The sockets for HTTP, and whether only the reverse proxy reaches them."""
PATHS = ("/webhook/github", "/webhook", "/webhook/telegram")
METHODS = [method for name, method in varlink.METHODS.items() if name.startswith("kai.Webhook.")]
logger = logging.getLogger(__name__)


def main() -> None:
    daemon.run("kai-webhook", serve)


async def serve(d: Daemon) -> None:
    peers = Peers(one_uid=d.one_uid)

    def doors(endpoints: Mapping[str, Endpoint], healthy: Callable[[], bool]) -> list[Server]:
        names = [name for name in DOORS if name in d.sockets]
        return [Server(d, name, endpoints, behind_proxy=DOORS[name], healthy=healthy) for name in names]

    try:
        webhook = Webhook(d, load(d.config_dir), records.open_store(d.state_dir))
        await webhook.open()
    except (ConfigError, Misconfigured, StoreError, OSError) as error:
        closed = doors(dict.fromkeys(PATHS, Unusable(str(error))), lambda: False)
        await calls.misconfigured(d, "intake", peers, METHODS, str(error))
        await asyncio.gather(*(door.drain(DRAIN) for door in closed))
        return
    varlink_server = calls.Server(d, "intake", peers, webhook.service.handlers())
    open_doors = doors(
        dict(zip(PATHS, (webhook.github, webhook.generic, webhook.telegram), strict=True)), webhook.healthy
    )
    d.on_reload.append(webhook.reload)
    d.ready("idle")
    webhook.delivery.wake()
    if webhook.first_of_boot():
        webhook.ask_github()
    await d.until_done(idle_after=IDLE)
    varlink_server.listener.let_go()
    for door in open_doors:
        door.let_go()
    await asyncio.gather(*(door.drain(DRAIN) for door in open_doors))
    webhook.close()


class Webhook:
    """Its parts, put together. Raises Misconfigured, OSError."""

    def __init__(self, d: Daemon, config: Config, store: Store) -> None:
        self.d, self.config, self.store = d, config, store
        known = secrets.load()
        self.spool, self.records = Spool(d.state_dir / "spool"), Records(store)
        self.intake = Intake(self.spool, self.records, lambda name: self.delivery.wake(), self.ask_github)
        self.delivery = Delivery(d, lambda: self.config, self.spool, self.records, self.intake.done)
        self.service = Service(lambda: self.config, known, self.spool, self.records, self.intake, self.delivery)
        self.github, self.generic = GitHub(self.intake, known), Generic(self.intake, known)
        bot = Client(d.runtime_dir / "bot.sock")
        self.asking: asyncio.Task[None] | None = None
        self.telegram = Telegram(bot, lambda: self.config.kai.telegram.mode == "webhook")

    async def open(self) -> None:
        """Take up what was left. Raises StoreError, OSError."""
        await self.records.open()
        self.intake.open()
        self.spool.sweep()

    def healthy(self) -> bool:
        """Whether it could store something now."""
        try:
            self.spool.check()
        except OSError:
            return False
        return True

    def reload(self) -> None:
        """SIGHUP: a configuration that is broken raises; the one in force stays."""
        self.config = load(self.d.config_dir)
        self.delivery.wake()

    def first_of_boot(self) -> bool:
        """Whether the host was off since it last ran: its runtime directory lives as long as the boot."""
        place = os.environ.get("RUNTIME_DIRECTORY")
        if not place or (mark := Path(place) / "started").exists():
            return False
        mark.touch()
        return True

    def ask_github(self) -> None:
        """While nothing was accepted, GitHub may have tried in vain: kai-github looks."""

        async def ask() -> None:
            with suppress(Unavailable, Fault):
                await Client(self.d.runtime_dir / "github.sock").call(Redeliver(), timeout=ROUND)

        if self.asking is None or self.asking.done():
            self.asking = asyncio.create_task(ask())

    def close(self) -> None:
        """What isn't delivered goes on after the next start."""
        if self.asking:
            self.asking.cancel()
        self.delivery.close()
        self.spool.close()
        self.store.close()


if __name__ == "__main__":
    main()
