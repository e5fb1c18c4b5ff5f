"""One command as it was given, and the way from it to the user's agent."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TypeVar

import msgspec

from kai.bot.lanes import Lane, Lanes
from kai.bot.tables import InboxRow
from kai.lib.client import delays
from kai.lib.varlink import Busy, Call, Fault, Misconfigured, Unavailable

R = TypeVar("R", bound=msgspec.Struct)
PATIENCE = {"control": 5.0, "command": 30.0}
"""Seconds from the first failure on for which a look and a change wait for an agent that restarts or is busy."""
logger = logging.getLogger(__name__)


class Refused(Exception):
    """Why nothing came of a command, in the words that the user is told."""


class Misused(Exception):
    """A command that isn't written as it could be; the message says in what, or nothing where its usage is enough."""


class Invocation:
    """What a command's handler gets: the durable row, what stands behind the command's name, the queues."""

    def __init__(self, row: InboxRow, arguments: str, lanes: Lanes) -> None:
        self.row, self.arguments, self.lanes = row, arguments, lanes

    @property
    def lane(self) -> Lane:
        return self.lanes.of(self.row.user)

    async def ask(self, call: Call[R], *, timeout: float = 30.0, patience: float | None = None) -> R:
        """The supervisor's answer, which it gets `timeout` seconds for. Raises Refused with what the user is told.

        A supervisor that restarts is asked again, for `patience` seconds, so a call must bear being made twice.
        """
        patience = PATIENCE[self.row.kind] if patience is None else patience
        deadline = 0.0
        for delay in delays():
            try:
                return await self.lane.agent.call(call, timeout=timeout)
            except (Unavailable, Busy) as error:
                logger.warning("%s: %s", call.NAME, error)
                if self.row.id in self.lane.stopped:
                    raise Refused("Stopped before it was done.") from None
                deadline = deadline or time.monotonic() + patience
                if time.monotonic() > deadline:
                    what = "is busy" if isinstance(error, Busy) else "does not answer"
                    raise Refused(f"The agent's supervisor {what}: {error}") from None
                await asyncio.sleep(delay)
            except Misconfigured as fault:
                raise Refused(f"The agent can't start: {fault}") from None
            except Fault as fault:
                raise Refused(str(fault)) from None
        raise AssertionError("delays never end")
