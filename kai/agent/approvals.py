"""Questions of the running turn that wait for the user, and what he allowed for the session (S17)."""

from __future__ import annotations

import asyncio
import logging

import msgspec

from kai.agent.backend import AgentBackend
from kai.agent.live import LiveTurn
from kai.agent.turns import Session, Turns
from kai.interfaces import Answer, Answered, Event
from kai.lib.store import StoreError

PATIENCE = 600.0
"""Seconds after which no answer is a no."""
MOST = 100
"""Questions of one turn that reach the user: an agent that asks and takes back in a loop is no reason to flood him."""
NO_ANSWER = "The user did not answer within 10 minutes, so this is denied."
DENIED = "The user denied this."
logger = logging.getLogger(__name__)


class Approvals:
    """The first answer wins: the user's, the clock's, or the agent's own taking back."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.timers: dict[str, asyncio.TimerHandle] = {}
        self.tasks: set[asyncio.Task[None]] = set()

    async def take(self, live: LiveTurn, backend: AgentBackend, event: Event) -> None:
        """An approval event of the backend."""
        if not event.running:
            self._decide(live, event.approval, "withdrawn")
        elif live.stop_asked or live.unattended or len(live.questions) >= 2 * MOST:
            await backend.answer(event.approval, allow=False, message="Nobody can be asked now, so this is denied.")
        else:
            logger.info("asks for approval: %s", event.tool)
            live.apply(event)
            loop = asyncio.get_running_loop()
            self.timers[event.approval] = loop.call_later(PATIENCE, self._expire, live, backend, event.approval)

    async def answer(self, live: LiveTurn, backend: AgentBackend, session: Session, call: Answer) -> Answered:
        """The user's decision. "session" is on disk before the agent hears of it, for the next process too."""
        asked = live.approvals.get(call.approval)
        if asked is None:
            known = [event.answer for event in live.questions if event.approval == call.approval and not event.running]
            return Answered(taken=False, answer=known[-1] if known else "")
        self._decide(live, call.approval, call.answer)
        logger.info("approval of %s: %s", asked.tool, call.answer)
        if call.answer == "session":
            try:
                await self.turns.allow(session, asked.patterns)
            except StoreError as error:
                logger.error("allowed once only: %s", error)
        allow, remember = call.answer != "deny", call.answer == "session"
        await backend.answer(call.approval, allow=allow, remember=remember, message="" if allow else DENIED)
        return Answered(taken=True, answer=call.answer)

    def close(self, live: LiveTurn) -> None:
        """The turn is over: what is still asked has no meaning any more."""
        for approval in list(live.approvals):
            self._decide(live, approval, "withdrawn")

    def _decide(self, live: LiveTurn, approval: str, answer: str) -> None:
        timer = self.timers.pop(approval, None)
        if timer:
            timer.cancel()
        asked = live.approvals.get(approval)
        if asked:
            event = Event(kind="approval", approval=approval, tool=asked.tool)
            live.apply(msgspec.structs.replace(event, answer=answer))
            live.last_call = asyncio.get_running_loop().time()

    def _expire(self, live: LiveTurn, backend: AgentBackend, approval: str) -> None:
        logger.info("nobody answered an approval; it is denied")
        self._decide(live, approval, "expired")
        task = asyncio.ensure_future(backend.answer(approval, allow=False, message=NO_ANSWER))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
