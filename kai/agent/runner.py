"""The turns of one seat, one at a time: entered in the journal, run, stored, and told to whoever follows them.

A turn that is entered runs, though he who asked for it goes away. Whatever happens, it ends with one done event, and
who sees that can rely on it being stored.
"""

from __future__ import annotations

import abc
import asyncio
import logging
import time
from contextlib import suppress

from kai.agent import files
from kai.agent.backend import AgentDied
from kai.agent.choices import ChoiceError
from kai.agent.live import MOST_TEXT, LiveTurn
from kai.agent.seat import INTERRUPT_PATIENCE, Seat, Shared
from kai.agent.workspaces import WorkspaceError
from kai.config import ConfigError
from kai.interfaces import Event, Part
from kai.lib import log
from kai.lib.client import delays
from kai.lib.server import Emit
from kai.lib.store import StoreError
from kai.lib.varlink import Busy, Misconfigured
from kai.lib.wire import close_all

logger = logging.getLogger(__name__)
LONGEST_ERROR = 4000
STOPPED = "the agent's supervisor was told to stop before it was over."
PART_DELAY, PART_PERIOD = 0.1, 1.0
"""Seconds before the first and between two commits of a turn's text so far: an answer that comes at once costs none."""


async def follow(live: LiveTurn, emit: Emit) -> Event:
    """Emit what has happened and happens in a turn; its done event. Raises why it could not be entered."""
    if live.begun:
        await asyncio.shield(live.begun)
    return await live.follow(emit)


class Runner(abc.ABC):
    """What the chat and the jobs have in common. `current` is the turn that runs."""

    def __init__(self, shared: Shared, seat: Seat) -> None:
        self.shared, self.seat = shared, seat
        self.daemon, self.turns, self.setup = shared.daemon, shared.turns, seat.setup
        self.current: LiveTurn | None = None

    # ---- where chat and jobs differ ----

    @abc.abstractmethod
    def begins(self, live: LiveTurn, prompt: list[Part]) -> None:
        """A turn is in the journal."""

    @abc.abstractmethod
    async def prepare(self, live: LiveTurn, prompt: list[Part]) -> list[Part]:
        """Get the seat ready; what the agent is asked."""

    @abc.abstractmethod
    def ended(self, live: LiveTurn, done: Event) -> None:
        """A turn's end is stored, and nobody was told of it yet."""

    @abc.abstractmethod
    def budget_note(self, done: Event) -> str:
        """What is to be said of the budget at the end of a turn."""

    @abc.abstractmethod
    async def rest(self) -> None:
        """A turn is over, and those who follow it know: keep the agent's process, or end it."""

    @property
    def has_session(self) -> bool:
        """Whether the seat's session is one that may be stored."""
        return True

    # ---- a turn ----

    async def start(self, live: LiveTurn, prompt: list[Part], descriptors: list[int], emit: Emit) -> Event:
        """Run a turn on this seat, which is free, and follow it. The seat is claimed before anything is waited for."""
        self.current = live
        self.daemon.hold()
        given, descriptors[:] = descriptors[:], []
        live.begun = asyncio.create_task(self._begin(live, prompt, given))
        return await follow(live, emit)

    def stop(self, live: LiveTurn) -> bool:
        """Interrupt this turn for its user; False when it is over."""
        if live is not self.current or live.done:
            return False
        live.drained = False
        if not live.stop_asked:
            live.stop_asked = True
            self.seat.interrupt(live)
        return True

    async def _begin(self, live: LiveTurn, prompt: list[Part], descriptors: list[int]) -> None:
        """Beside the one who asked: a turn that is entered runs, though he goes away meanwhile."""
        try:
            prompt = await self._with_files(live.id, prompt, descriptors)
            stored = await self.turns.begin(live.id)
        except BaseException as error:
            await self.release()
            if isinstance(error, StoreError):
                raise Busy(str(error)) from None  # it did not begin: asked again, it does
            raise
        if stored is None:
            live.task = asyncio.create_task(self._run(live, prompt))
        else:
            live.finish(stored)
            await self.release()

    async def _with_files(self, turn: str, prompt: list[Part], descriptors: list[int]) -> list[Part]:
        """The prompt with its files on disk; they aren't stored once more for a turn that has ended."""
        try:
            if any(part.kind == "file" for part in prompt) and await self.turns.answer(turn) is None:
                where, day = self.shared.base / "files", self.setup.today()
                return await files.store(where, prompt, descriptors, turn=turn, day=day)
            return prompt
        finally:
            close_all(descriptors)

    async def _run(self, live: LiveTurn, prompt: list[Part]) -> None:
        with log.fields(KAI_TURN=live.id):
            logger.info("turn begins")
            self.begins(live, prompt)
            keeping = asyncio.create_task(self._keep_part(live))
            try:
                done = await self.drive(live, prompt)
            finally:
                keeping.cancel()
            await self._end(live, done)

    async def _keep_part(self, live: LiveTurn) -> None:
        """Whoever ends this process in mid-turn leaves to the next one what the agent has said."""
        kept = 0
        while True:
            await live.grown(kept)
            await asyncio.sleep(PART_DELAY)
            try:
                kept = len(live.text)
                await self.turns.keep_part(live.id, live.text)
            except StoreError as error:
                logger.error("the text so far is not stored: %s", error)
            await asyncio.sleep(PART_PERIOD)

    async def drive(self, live: LiveTurn, prompt: list[Part]) -> Event:
        """Whatever happens, one done event."""
        try:
            prompt = await self.prepare(live, prompt)
            if self.seat.session.cost_usd >= float(self.setup.value("budget")):
                return Event(kind="done", outcome="failed", reason="budget")
            return await self.seat.drive(live, prompt)
        except (AgentDied, Misconfigured, ConfigError, WorkspaceError, ChoiceError) as error:
            return Event(kind="done", outcome="failed", error=str(error))
        except asyncio.CancelledError:
            return Event(kind="done", outcome="interrupted", error="the supervisor had to leave")
        except Exception:
            logger.exception("turn failed by a fault of Kai's")
            return Event(kind="done", outcome="failed", error="a fault in Kai; the journal says more")

    async def _end(self, live: LiveTurn, done: Event) -> None:
        """Journal, history, followers, in this order: who sees the answer can rely on it being stored."""
        session = self.seat.session
        done.cost_usd = done.cost_usd or live.cost_usd
        session.turns += 1
        session.cost_usd += done.cost_usd
        session.used = time.time()
        done.text, done.session, done.since = live.text, session.id, live.since
        self._explain(live, done)
        day, told = self.setup.today(), live.told if done.outcome == "ok" else 0
        for delay in delays():
            try:
                await self.turns.end(live.id, done, session if self.has_session else None, day, told=told)
            except StoreError as error:  # a full disk: nobody may see an answer that isn't stored
                logger.error("the answer waits to be stored: %s", error)
                await asyncio.sleep(delay)
            else:
                break
        self.ended(live, done)
        logger.info("turn ended: %s%s", done.outcome, f": {log.printable(done.error, 300)}" if done.error else "")
        live.finish(done)
        await self.release()

    def _explain(self, live: LiveTurn, done: Event) -> None:
        """Put into `done.error` what the user is to know of the end."""
        forced = f"It did not obey, so its process was ended; {self.seat.resumed_by} resumes the session."
        if live.drained and done.outcome != "ok":
            done.outcome, done.reason, done.error = "interrupted", "cut", STOPPED
        elif live.stop_asked and done.outcome != "ok":
            done.outcome, done.error = "interrupted", forced if live.forced else ""
        elif live.overdue and done.outcome != "ok":
            done.outcome, done.error = "failed", f"{live.overdue} {forced if live.forced else ''}".strip()
        elif done.reason == "budget":
            done.error = ""  # the agent's words for what is said below
        notes = [done.error[:LONGEST_ERROR]]  # an agent's own words may be megabytes
        if live.cut:
            notes.append(f"The answer was longer than {MOST_TEXT} characters; the rest is cut.")
        notes.append(self.budget_note(done))
        done.error = " ".join(note for note in notes if note)

    async def release(self) -> None:
        """The turn is over, and the seat is free when the agent's process is as it is to be."""
        try:
            await self.rest()
        finally:
            if self.current:
                self.current.released.set()
            self.current = None
            self.daemon.release()
            self.shared.changed()

    # ---- the supervisor is told to stop ----

    async def drain(self, patience: float) -> None:
        """Let the running turn finish within `patience` seconds, then interrupt it, then end it; its part is stored."""
        live = self.current
        if live and live.begun:
            await asyncio.wait({live.begun})
        if live and live.task:
            done, _ = await asyncio.wait({live.task}, timeout=patience)
            if not done:
                self._drain(live)
                done, _ = await asyncio.wait({live.task}, timeout=2 * INTERRUPT_PATIENCE)
            if not done:
                live.task.cancel()
                await asyncio.wait({live.task}, timeout=INTERRUPT_PATIENCE)
            await asyncio.sleep(0.1)  # followers take the last event with them
        if live and live.unattended:  # the end of a session is more than the turn for its memory
            with suppress(TimeoutError):
                await asyncio.wait_for(live.released.wait(), 2 * INTERRUPT_PATIENCE)
        try:
            await self.seat.end()
        except AgentDied as error:
            logger.error("%s", error)

    def _drain(self, live: LiveTurn) -> None:
        if live.done:
            return
        live.drained = live.drained or not live.stop_asked
        live.stop_asked = True
        self.seat.interrupt(live)
