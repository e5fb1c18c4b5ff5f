"""The chat's seat: its turns are the user's history, and its session lasts until he ends it."""

from __future__ import annotations

import asyncio
import logging

from kai.agent import budget, history
from kai.agent.backend import AgentDied
from kai.agent.live import LiveTurn
from kai.agent.notes import Notes
from kai.agent.runner import LONGEST_ERROR, Runner
from kai.agent.seat import COMMAND, INTERRUPT_PATIENCE, Seat, Shared
from kai.agent.setup import Setup
from kai.interfaces import Event, Part, SessionEnded
from kai.lib.store import StoreError
from kai.lib.varlink import Busy

logger = logging.getLogger(__name__)
SAVE_PATIENCE = 30.0
SAVE = (
    "[Kai] This session ends now. If there is something in it that you should remember and that is not in MEMORY.md "
    "yet, write it there now, in a few lines. Then answer with the one word: done. You have 30 seconds."
)


class Chat(Runner):
    """Turns of the chat, and the end of its session. `notes` are what its next turn is told of."""

    def __init__(self, shared: Shared, setup: Setup, notes: Notes) -> None:
        super().__init__(shared, Seat(shared, setup))
        self.notes = notes
        self.history = shared.base / "history"

    async def open(self) -> None:
        self.seat.session = await self.turns.session(str(self.setup.path))

    # ---- turns ----

    def begins(self, live: LiveTurn, prompt: list[Part]) -> None:
        text = "\n".join(part.text for part in prompt if part.kind == "text")
        media = [part.name for part in prompt if part.kind == "file"]
        history.append(self.history, dir="user", turn=live.id, text=text, media=media)

    async def prepare(self, live: LiveTurn, prompt: list[Part]) -> list[Part]:
        """The user's words, after what reached the chat since the last turn. A slash command takes nothing before it,
        and leaves that to the next one."""
        if live.unattended or (prompt and COMMAND.match(prompt[0].text)):
            return prompt
        try:
            text, live.told = await self.notes.pending(self.setup.zone)
        except StoreError as error:
            logger.error("the agent is not told what was delivered: %s", error)
            return prompt
        return [Part(kind="text", text=text), *prompt] if text else prompt

    def ended(self, live: LiveTurn, done: Event) -> None:
        if done.text:
            history.append(self.history, dir="assistant", turn=live.id, text=done.text)

    def budget_note(self, done: Event) -> str:
        session, (limit, source) = self.seat.session, self.setup.effective("budget")
        if session.cost_usd >= limit or done.reason == "budget":
            session.warned_usd = limit
            return budget.spent(session.cost_usd, limit, self.setup.ceiling, source=source)
        if session.cost_usd >= budget.WARNED_AT * limit and session.warned_usd != limit:
            session.warned_usd = limit
            return budget.nearly(session.cost_usd, limit)
        return ""

    async def rest(self) -> None:
        self.seat.settle()

    # ---- the end of a session ----

    async def new_session(self, turn: str) -> SessionEnded:
        """End the session, while no turn runs; the agent may save its memory first. Raises Busy when it can't be."""
        live = self.current = LiveTurn(turn or "new", unattended=True)
        self.daemon.hold()
        try:
            ended, cost = await self._save_memory(live)
            live.finish(Event(kind="done"))
            await self.seat.close()
            self.seat.session = await self.turns.end_session(self.seat.session, self.setup.today(), cost)
        except AgentDied as error:
            raise Busy(str(error)) from None  # the next supervisor ends the session
        finally:
            live.ended.set()
            await self.release()
        return ended

    async def _save_memory(self, live: LiveTurn) -> tuple[SessionEnded, float]:
        """Give the agent a bounded turn for its memory; returns how it went and its cost in US dollars."""
        session = self.seat.session
        if not session.id or not session.turns:
            return SessionEnded(), 0.0
        if session.cost_usd >= float(self.setup.value("budget")):
            return SessionEnded(note="Its budget was used up, so the agent had no turn to save its memory."), 0.0
        live.task = task = asyncio.create_task(self._keep(live))
        await asyncio.wait({task}, timeout=SAVE_PATIENCE)
        late = not task.done()
        if late:
            self.seat.interrupt(live)
            await asyncio.wait({task}, timeout=INTERRUPT_PATIENCE)
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
        done = live.done or Event(kind="done", outcome="failed", error="it had to be ended")
        if live.stop_asked or late:
            note = "Stopped while the agent saved its memory." if live.stop_asked else "The agent took too long for it."
            return SessionEnded(note=note), done.cost_usd
        note = "" if done.outcome == "ok" else f"The agent could not save its memory: {done.error}"
        return SessionEnded(saved=done.outcome == "ok", note=note[:LONGEST_ERROR]), done.cost_usd

    async def _keep(self, live: LiveTurn) -> None:
        live.finish(await self.drive(live, [Part(kind="text", text=SAVE)]))
