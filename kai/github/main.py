"""kai-github(8): asks GitHub's API for what Kai needs of it, with a token that nobody else holds.

Runs as kai-github, started by its timer and by its socket; leaves when it is idle. Its one job so far: what GitHub
could not deliver, because kai-webhook was away, is delivered again. Reaches GitHub, and kai-webhook for the names of
repositories that somebody is subscribed to. Keeps nothing.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from pathlib import Path

from kai.config import Config, ConfigError, load
from kai.interfaces import ListRepositories, Redeliver, Redelivered
from kai.lib import credentials, daemon, varlink
from kai.lib.client import Client
from kai.lib.daemon import Daemon
from kai.lib.peers import Peer, Peers
from kai.lib.server import Server, misconfigured
from kai.lib.varlink import Busy, Fault, Misconfigured, Unavailable

IDLE, IDLE_WITHOUT = 10.0, 1.0
"""Seconds; without a token there is nothing to wait for."""
RECENT = 30.0
"""Seconds for which a round's result is the answer to who asks again."""
STORES = {"github": "/etc/credstore/kai-github", "githubenc": "/etc/credstore.encrypted/kai-github"}
TOKEN, APP_KEY = "token", "app-key"
METHODS = [method for name, method in varlink.METHODS.items() if name.startswith("kai.GitHub.")]
logger = logging.getLogger(__name__)


def main() -> None:
    daemon.run("kai-github", serve)


async def serve(d: Daemon) -> None:
    peers = Peers(one_uid=d.one_uid)
    try:
        config = load(d.config_dir)
        github = GitHub(d, config, found(TOKEN), found(APP_KEY))
    except (ConfigError, Misconfigured) as error:
        await misconfigured(d, "github", peers, METHODS, str(error))
        return
    Server(d, "github", peers, {Redeliver: github.answer})
    d.ready(github.state)
    beginning = github.begin()
    await d.until_done(idle_after=IDLE if github.able else IDLE_WITHOUT)
    beginning.cancel()


def found(name: str) -> str:
    """The credential that holds this secret, "" where there is none. Raises Misconfigured where there are two."""
    there = [f"{each}_{name}" for each in STORES if name in credentials.of_directory(each)]
    if len(there) > 1:
        raise Misconfigured(f"{name} stands in {' and in '.join(STORES.values())}: remove one of them")
    return there[0] if there else ""


class GitHub:
    """The rounds: one at a time, and who asks meanwhile joins. Raises Misconfigured."""

    def __init__(self, d: Daemon, config: Config, token: str, key: str) -> None:
        self.d, self.config = d, config
        fix = f"write it to {STORES['github']}/{TOKEN} (root, 0600)"
        self.token = credentials.read(token, fix=fix) if token else ""
        self.key = Path(os.environ.get("CREDENTIALS_DIRECTORY", "/"), key) if key else None
        if self.key and config.kai.github.app_id is None:
            raise Misconfigured("there is the key of a GitHub App, and github.app_id isn't set in kai.yaml")
        self.webhook = Client(d.runtime_dir / "intake.sock")
        self.round: asyncio.Task[Redelivered] | None = None
        self.ended, self.last = -RECENT, Redelivered(seen=0, asked=0)

    @property
    def able(self) -> bool:
        return bool(self.token or self.key)

    @property
    def state(self) -> str:
        return "idle" if self.able else f"no token in {STORES['github']}: nothing is asked of GitHub"

    def begin(self) -> asyncio.Task[Redelivered]:
        """The round that goes on, or a new one."""
        if self.round is None or self.round.done():
            self.round = asyncio.create_task(self._work())
            self.round.add_done_callback(_heard)
        return self.round

    async def answer(self, peer: Peer, call: Redeliver) -> Redelivered:
        if time.monotonic() - self.ended < RECENT and (self.round is None or self.round.done()):
            return self.last
        return await asyncio.shield(self.begin())

    async def _work(self) -> Redelivered:
        """Raises Busy, which says why nothing could be asked."""
        if not self.able:
            return self.last
        from kai.github.api import Stop

        with self.d.busy():
            self.d.status("looks for deliveries that failed")
            try:
                names = (await self.webhook.call(ListRepositories())).names if self.token else []
                self.last = await asyncio.to_thread(self._round, names)
            except (Unavailable, Fault, Stop) as error:
                logger.warning("deliveries that failed could not be looked for: %s", error)
                self.d.status(str(error))
                raise Busy(str(error)) from None
        self.ended = time.monotonic()
        self.d.status(f"{self.last.seen} deliveries seen, {self.last.asked} asked for again")
        return self.last

    def _round(self, names: list[str]) -> Redelivered:
        """In a thread. Raises Stop."""
        from kai.github.api import Api, GitHubError
        from kai.github.app import token
        from kai.github.redeliver import PATH, Round

        url, base = self.config.kai.webhook.url, self.config.kai.github.api_base
        one = Round(f"{url}{PATH}" if url else "")
        if self.token:
            api = Api(base, lambda: f"Bearer {self.token}")
            one.repositories(api, names)
            api.close()
        app, key = self.config.kai.github.app_id, self.key
        if app and key:
            signed = token(app, key)
            api = Api(base, lambda: f"Bearer {signed}")
            try:
                one.place(api, "/app/hook")
            except GitHubError as error:
                one.faults.append(str(error))
            api.close()
        for fault in one.faults:
            logger.warning("%s", fault)
        logger.info("%d deliveries seen, %d asked for again", one.seen, one.asked)
        return one.result


def _heard(task: asyncio.Task[Redelivered]) -> None:
    """Nobody may have waited for it."""
    if not task.cancelled() and (error := task.exception()) and not isinstance(error, Busy):
        logger.error("a round ended by a fault", exc_info=error)


if __name__ == "__main__":
    main()
