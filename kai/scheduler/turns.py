"""One turn of a job at its user's supervisor: started once, joined after any doubt, until its done event comes."""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing

from kai.interfaces import Event, Hello, JobSeat, Join, Part, Start, UnknownTurn
from kai.lib.client import Client, delays
from kai.lib.varlink import Busy, Fault, Internal, Misconfigured, Unavailable
from kai.scheduler.runs import Run, RunStore

FAULTS_BORNE = 3
CUT = "It was cut off, and how far it came isn't known. A run that may have done something isn't repeated on its own."
logger = logging.getLogger(__name__)


async def follow(agent: Client, runs: RunStore, run: Run, prompt: str, seat: JobSeat) -> Event:
    """The done event of the run's turn. Raises StoreError."""
    begin, waits, faults = False, delays(), 0
    while True:
        try:
            if not run.generation:  # it was given to nobody yet
                await runs.given(run, await agent.call(Hello()))
                begin = True
            call = Start(turn=run.turn, prompt=[Part("text", prompt)], job=seat) if begin else Join(turn=run.turn)
            async with aclosing(await agent.open(call)) as events:
                async for event in events:
                    if event.kind == "done":
                        return event
                    waits = delays()
            raise Unavailable("the agent's supervisor ended the turn without an answer")
        except UnknownTurn as fault:
            if fault.message != f"{run.generation} {run.boot}":
                return Event(kind="done", outcome="interrupted", reason="cut", error=CUT)
            begin = True  # the same journal never heard of it: it did not begin
        except (Busy, Misconfigured) as error:
            logger.info("job %d waits for the agent: %s", run.job, error)
        except Unavailable as error:
            begin = False
            logger.info("job %d waits for the agent: %s", run.job, error)
        except Fault as fault:
            logger.error("job %d: %s: %s", run.job, fault.NAME, fault)
            faults += 1
            if not isinstance(fault, Internal) or faults > FAULTS_BORNE:
                return Event(kind="done", outcome="failed", error=str(fault))
            begin = False  # whatever went wrong, the turn may run: only Join tells
        await asyncio.sleep(next(waits))
