"""Tells users what their agents scheduled or changed: an agent job goes on costing money where nobody looks.

That a user is to be told stands in the job's row, so that it outlives the daemon, and the bot may be down meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from pathlib import Path

from kai.interfaces import Deliver
from kai.lib import schedules
from kai.lib.client import Client, delays
from kai.lib.daemon import Daemon
from kai.lib.log import printable
from kai.lib.store import StoreError
from kai.lib.varlink import Fault, InvalidParameter, MethodNotFound, PermissionDenied, Unavailable
from kai.scheduler.jobs import JobRow, JobStore

SHOWN_PROMPT = 500
"""Characters."""
_MARKS = re.compile(r"([\\`*_{}\[\]<>()#+.!|~&$-])")
logger = logging.getLogger(__name__)


class Announcer:
    """Delivers in the background; the daemon doesn't leave before all is told."""

    def __init__(self, daemon: Daemon, jobs: JobStore, bot: Path | None = None) -> None:
        self.daemon, self.jobs = daemon, jobs
        self.bot = Client(bot or daemon.runtime_dir / "bot.sock")
        self.tasks: dict[int, asyncio.Task[None]] = {}

    def put(self, *rows: JobRow) -> None:
        """These are to be told of; returns at once."""
        for row in rows:
            if row.id not in self.tasks:
                self.tasks[row.id] = asyncio.create_task(self._tell(row.id))

    def close(self) -> None:
        """What isn't told yet is told after the next start."""
        for task in self.tasks.values():
            task.cancel()

    async def _tell(self, job: int) -> None:
        with self.daemon.busy():
            try:
                for delay in delays():
                    row = await self.jobs.get(job)  # it may be another one by now, or gone
                    if row is None or not row.announce or row.state == "ended":
                        return
                    if await self._delivered(row):
                        await self.jobs.announced(row)  # then the next look finds nothing, or another change
                    else:
                        await asyncio.sleep(delay)
            except StoreError as error:
                logger.error("job %d is announced after the next start: %s", job, error)
            finally:
                self.tasks.pop(job, None)

    async def _delivered(self, row: JobRow) -> bool:
        """Whether there is nothing more to try."""
        key = f"job:{row.id}:changed:{row.edits}" if row.edits else f"job:{row.id}:made"
        call = Deliver(key=key, user=row.user, text=text(row, time.time()), job=row.id)
        try:
            await self.bot.call(call)
        except (InvalidParameter, PermissionDenied, MethodNotFound) as fault:
            logger.error("job %d of %s can't be announced: %s", row.id, row.user, fault)
        except (Unavailable, Fault) as error:
            logger.info("job %d of %s is not announced yet: %s", row.id, row.user, error)
            return False
        return True


def text(row: JobRow, now: float) -> str:
    """What the user is told, in Markdown."""
    what = schedules.words(row.schedule_type, row.schedule_data)
    if row.schedule_type == "once":
        what = schedules.when(row.due, schedules.zone(row.zone), now) if row.due else what
    elif row.due:
        what += f", next {schedules.when(row.due, schedules.zone(row.zone), now)}"
    prompt = row.prompt.strip()
    if len(prompt) > SHOWN_PROMPT:
        prompt = f"{prompt[: SHOWN_PROMPT - 1]}…"
    quoted = "\n".join(f"> {plain(line)}" for line in prompt.splitlines())
    did = "changed" if row.edits else "scheduled"
    return f"📅 Your agent {did} job {row.id}, “{plain(row.name)}”: {plain(what)} ({plain(row.zone)}).\n\n{quoted}"


def plain(words: str) -> str:
    """One line of text that Markdown shows as it is."""
    return _MARKS.sub(r"\\\1", printable(words, len(words) + 1))
