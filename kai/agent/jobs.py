"""A job's seat: one run of it, with a process of its own that ends with the run, and a session to come back to.

It is at the user's home workspace unless the job names another one: a job doesn't move with the chat. Nobody is there
to answer questions, and nothing of it enters the history: what is delivered to the chat comes back as a note.
"""

from __future__ import annotations

import logging

from kai.agent import budget
from kai.agent.backend import AgentDied
from kai.agent.live import LiveTurn
from kai.agent.runner import Runner
from kai.agent.seat import Seat, Shared
from kai.agent.setup import Setup
from kai.agent.turns import Session
from kai.interfaces import Event, JobSeat, Part, Start
from kai.lib.peers import BOT, SCHEDULER, Peer
from kai.lib.store import StoreError
from kai.lib.varlink import InvalidParameter, PermissionDenied

logger = logging.getLogger(__name__)
PREFIX = "job:"


def check(peer: Peer, call: Start) -> None:
    """Refuse who names a job and may not, or must name one and doesn't. Turns of jobs are told by their ids too."""
    if call.job is None:
        if BOT not in peer.roles:
            raise InvalidParameter(f"job: {peer} must say which job turn {call.turn} belongs to")
        if call.turn.startswith(PREFIX):
            raise InvalidParameter(f"job: turn {call.turn} is a job's, and none is named")
    else:
        if SCHEDULER not in peer.roles:
            raise PermissionDenied(f"job: {peer} may not run one")
        if call.job.id < 1 or not call.turn.startswith(f"{PREFIX}{call.job.id}:"):
            raise InvalidParameter(f"turn: expected {PREFIX}{call.job.id}:RUN for job {call.job.id}, got {call.turn}")


def session_name(job: int) -> str:
    """The name of a job's sessions, one for each workspace that it was ever in."""
    return f"{PREFIX}{job}"


class JobRun(Runner):
    """It is among `runs`, by its job's id, until it is over and its process gone."""

    def __init__(self, shared: Shared, setup: Setup, job: JobSeat, runs: dict[int, JobRun]) -> None:
        super().__init__(shared, Seat(shared, setup.of_job(), resumed_by="the job's next run"))
        self.job, self.runs = job, runs
        self.name = session_name(job.id)
        self.seat.session = self.seat.payer = Session(str(self.setup.path), name=self.name)
        self.ready = self.forgotten = False
        runs[job.id] = self

    @property
    def has_session(self) -> bool:
        return self.ready and not self.forgotten

    def begins(self, live: LiveTurn, prompt: list[Part]) -> None:
        """Its prompt is no message of the user's."""

    async def prepare(self, live: LiveTurn, prompt: list[Part]) -> list[Part]:
        await self.setup.follow(self.job)
        session = await self.turns.session(str(self.setup.path), self.name)
        session.cost_usd = 0.0  # its budget is for one run
        self.seat.session = self.seat.payer = session
        self.ready = True
        return prompt

    def ended(self, live: LiveTurn, done: Event) -> None:
        """What becomes of its answer is the scheduler's to say."""

    def budget_note(self, done: Event) -> str:
        if done.reason != "budget":
            return ""
        limit, _ = self.setup.effective("budget")
        return budget.spent_by_run(self.seat.session.cost_usd, limit, self.setup.ceiling)

    async def rest(self) -> None:
        self.seat.show("idle")
        try:
            await self.seat.end()
            if self.forgotten:
                await self.turns.forget(self.name)  # it was stored once more meanwhile
        except (AgentDied, StoreError) as error:
            logger.error("%s", error)
        finally:
            del self.runs[self.job.id]

    def forget(self) -> None:
        """The job is gone: stop its turn, and keep nothing."""
        self.forgotten = True
        if self.current:
            self.stop(self.current)
