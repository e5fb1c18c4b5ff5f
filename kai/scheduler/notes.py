"""Tells supervisors what jobs delivered, so that it stands in the user's history and the next chat turn knows of it.

In the background and after the delivery: a supervisor that can't be reached holds nothing up. What isn't told stays in
the store, and is tried again with the next note and after the next start.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from kai import interfaces
from kai.config import Config
from kai.lib.client import Client, delays
from kai.lib.daemon import Daemon
from kai.lib.store import StoreError
from kai.lib.varlink import Busy, Fault, Misconfigured, Unavailable
from kai.scheduler.runs import Note, RunStore

AT_ONCE = 20
"""Notes that are in memory at a time."""
PATIENCE = 120.0
"""Seconds for which one note is tried at a time."""
logger = logging.getLogger(__name__)


class Notes:
    """One task for each user who is to be told something; the daemon doesn't leave before they are done."""

    def __init__(self, daemon: Daemon, config: Callable[[], Config], runs: RunStore) -> None:
        self.daemon, self.config, self.runs = daemon, config, runs
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.looking: asyncio.Task[None] | None = None
        self.more = asyncio.Event()

    def wake(self) -> None:
        """There may be something to tell; returns at once."""
        self.more.set()
        if self.looking is None or self.looking.done():
            self.looking = asyncio.create_task(self._look())

    def close(self) -> None:
        for task in (*self.tasks.values(), *([self.looking] if self.looking else [])):
            task.cancel()

    async def _look(self) -> None:
        with self.daemon.busy():
            try:
                while self.more.is_set():
                    self.more.clear()
                    for user in await self.runs.unnoted():
                        if user not in self.tasks:
                            self.tasks[user] = asyncio.create_task(self._tell_all(user))
            except StoreError as error:
                logger.error("notes for supervisors are told after the next start: %s", error)

    async def _tell_all(self, user: str) -> None:
        """Tell one supervisor all that there is: others don't wait for one that is busy."""
        with self.daemon.busy():
            try:
                while notes := await self.runs.notes(user, AT_ONCE):
                    for note in notes:
                        if not await self._tell(note):
                            return
                        await self.runs.noted(note.turn)
            except StoreError as error:
                logger.error("notes for supervisors are told after the next start: %s", error)
            finally:
                del self.tasks[user]

    async def _tell(self, note: Note) -> bool:
        """False when it is to be tried another time."""
        if self.config().user(note.user) is None:
            return True
        agent = Client(self.daemon.runtime_dir / "agent" / f"{note.user}.sock")
        until = time.monotonic() + PATIENCE
        for delay in delays():
            try:
                await agent.call(interfaces.Note(turn=note.turn, what=note.what, text=note.text, at=note.at))
            except (Unavailable, Busy, Misconfigured) as error:
                if time.monotonic() > until:
                    logger.warning("%s: what its jobs delivered isn't in the history yet: %s", note.user, error)
                    return False
                await asyncio.sleep(delay)
            except Fault as fault:
                logger.error("%s: what its jobs delivered can't be put into the history: %s", note.user, fault)
                return True
            else:
                return True
        return False
