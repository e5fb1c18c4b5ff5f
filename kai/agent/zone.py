"""Tells kai-scheduler which time zone the user chose: the local times of his jobs follow it.

That never keeps a turn waiting. What couldn't be told is tried again at the next choice, turn or start.
"""

from __future__ import annotations

import asyncio
import logging

from kai.agent.setup import Setup
from kai.agent.turns import Turns
from kai.interfaces import SetTimezone
from kai.lib.client import Client
from kai.lib.daemon import Daemon
from kai.lib.store import StoreError
from kai.lib.varlink import Fault, Unavailable

logger = logging.getLogger(__name__)
TOLD = "timezone told"
"""The fact: `=` and the zone that the scheduler was told last. None is as good as `=`: no choice was ever told."""
DOUBT = "?"
"""The fact while a call is on its way: whether it arrives isn't known before its answer."""
PATIENCE = 10.0


class ZoneTeller:
    """One for each supervisor."""

    def __init__(self, daemon: Daemon, setup: Setup, turns: Turns) -> None:
        self.daemon, self.setup, self.turns = daemon, setup, turns
        self.scheduler = Client(daemon.runtime_dir / "scheduler.sock")
        self.told = "="
        self.task: asyncio.Task[None] | None = None
        self.logged = False

    async def open(self) -> None:
        self.told = await self.turns.fact(TOLD) or "="
        self.tell()

    def tell(self) -> None:
        """Begin to tell what holds now, unless the scheduler knows; returns at once."""
        if self.told != self._wanted() and (self.task is None or self.task.done()):
            self.task = asyncio.create_task(self._tell())

    def close(self) -> None:
        if self.task:
            self.task.cancel()

    def _wanted(self) -> str:
        value, source = self.setup.effective("timezone")
        return f"={value}" if source == "your choice" else "="

    async def _tell(self) -> None:
        try:
            with self.daemon.busy():
                while self.told != (wanted := self._wanted()):
                    await self._remember(DOUBT)
                    await self.scheduler.call(SetTimezone(wanted[1:], self.setup.user.name), timeout=PATIENCE)
                    await self._remember(wanted)
        except (Unavailable, Fault, StoreError) as error:
            if not self.logged:
                logger.info("kai-scheduler is not told the time zone now, but later: %s", error)
            self.logged = True
        else:
            self.logged = False

    async def _remember(self, told: str) -> None:
        if told != self.told:
            await self.turns.set_fact(TOLD, told)
            self.told = told
