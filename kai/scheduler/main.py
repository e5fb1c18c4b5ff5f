"""kai-scheduler(8): owns the jobs; PID 1 owns their times.

Runs as kai-scheduler, started with kai.target and by its socket; leaves when it is idle. Keeps the jobs in a database,
has kai-timers make systemd's timers of them, and runs them when kai-job@ID says that their time has come: a reminder
goes to kai-bot, an agent's job to the user's supervisor. No network, no secret.
"""

from __future__ import annotations

import asyncio
import logging

from kai.config import ConfigError, load
from kai.interfaces import Reconcile, RunJob
from kai.lib import daemon, varlink
from kai.lib.daemon import Daemon
from kai.lib.peers import Peers
from kai.lib.server import Handlers, Server, misconfigured
from kai.lib.store import Store, StoreError
from kai.scheduler.calendar import Calendar
from kai.scheduler.jobs import JobStore, open_tables
from kai.scheduler.notes import Notes
from kai.scheduler.reconcile import Reconciler
from kai.scheduler.run import Runner
from kai.scheduler.runs import RunStore
from kai.scheduler.service import Service

IDLE = 10.0
"""Seconds without connection, run, note or retry until it leaves (trigger limits: facts §5)."""
OPENING = 30.0
"""Seconds that the timers may take until it counts as started: systemd waits for no longer than 90 s, calls go on."""
logger = logging.getLogger(__name__)
METHODS = [method for name, method in varlink.METHODS.items() if name.startswith("kai.Scheduler.")]


def main() -> None:
    daemon.run("kai-scheduler", serve)


async def serve(d: Daemon) -> None:
    peers = Peers(one_uid=d.one_uid)
    try:
        scheduler = Scheduler(d, open_tables(d.state_dir))
    except (ConfigError, StoreError) as error:
        await misconfigured(d, "scheduler", peers, METHODS, str(error))
        return
    Server(d, "scheduler", peers, scheduler.handlers())
    opening, stopping = asyncio.create_task(scheduler.open()), asyncio.create_task(d.stopping.wait())
    await asyncio.wait({opening, stopping}, timeout=OPENING, return_when=asyncio.FIRST_COMPLETED)
    d.ready("idle")
    await d.until_done(idle_after=IDLE)
    opening.cancel()
    stopping.cancel()
    await scheduler.close()


class Scheduler:
    """Its parts, put together. Raises ConfigError."""

    def __init__(self, d: Daemon, store: Store) -> None:
        self.d, self.store = d, store
        self.config = load(d.config_dir)
        self.jobs, self.runs, calendar = JobStore(store), RunStore(store), Calendar()
        self.notes = Notes(d, lambda: self.config, self.runs)
        self.runner = Runner(d, lambda: self.config, self.jobs, self.runs, self.notes, calendar)
        self.reconciler = Reconciler(d, lambda: self.config, self.jobs, self.runs, self.runner)
        self.service = Service(d, lambda: self.config, self.jobs, self.reconciler, calendar=calendar)
        d.on_reload.append(self.reload)

    def handlers(self) -> Handlers:
        return {**self.service.handlers(), RunJob: self.runner.run, Reconcile: self.reconciler.answer}

    async def open(self) -> None:
        """What is to be done after every start: the timers first, then what was left undone."""
        with self.d.busy():
            await self.reconciler.changed()
            try:
                await self.service.open()
            except StoreError as error:
                logger.error("what was left undone goes on after the next start: %s", error)
            self.notes.wake()

    def reload(self) -> None:
        """SIGHUP: a configuration that is broken raises; the one in force stays."""
        self.config = load(self.d.config_dir)
        self.service.replan()
        self.reconciler.renew()

    async def close(self) -> None:
        """What isn't done goes on after the next start."""
        self.service.close()
        self.reconciler.close()
        self.notes.close()
        await self.runner.close()
        self.store.close()


if __name__ == "__main__":
    main()
