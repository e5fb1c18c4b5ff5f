"""The seat of one session: its agent's process, started when a turn needs it, kept for the next, ended when idle.

A process that hangs is asked to interrupt, then ended. Whoever died or had to be killed may have left processes behind
that this one can't end, since they have another uid: then the supervisor leaves, and its control group with it.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from kai.agent import oom
from kai.agent.approvals import Approvals
from kai.agent.backend import SESSION_ID, AgentBackend, AgentDied, SessionUnknown
from kai.agent.live import LiveTurn
from kai.agent.patience import Limits, overdue
from kai.agent.setup import Setup
from kai.agent.turns import Session, Turns
from kai.interfaces import Event, Model, ModelList, Part
from kai.lib.daemon import Daemon
from kai.lib.store import StoreError

logger = logging.getLogger(__name__)
INTERRUPT_PATIENCE = 10.0
"""Seconds that an agent gets to obey its own protocol's interrupt before its process is ended."""
WATCH_PERIOD = 1.0
SMALLEST_COST = 1e-9
"""US dollars; what is less comes from adding up."""
COMMAND = re.compile(r"/([A-Za-z0-9][A-Za-z0-9_:-]*)(?:\s|$)")
"""A slash command; a path (`/etc/hosts says …`) is none."""
MODELS = "models"
STUCK = "The agent's old process can't be ended; Kai starts anew, send your message again."
LOST = "(The agent no longer knows the session before this; a fresh one begins here.)\n\n"


@dataclass(frozen=True)
class Shared:
    """What all seats of a supervisor have in common.

    `base` is the user's directory. `leave` is called with the reason when the supervisor must end after the running
    turns, `changed` whenever what a seat does is another thing than before.
    """

    daemon: Daemon
    turns: Turns
    base: Path
    make_backend: Callable[[str], AgentBackend]
    leave: Callable[[str], None]
    changed: Callable[[], None]


class Seat:
    """`setup` is what is in force for it. `resumed_by` names what goes on with the session after a mishap."""

    def __init__(self, shared: Shared, setup: Setup, *, resumed_by: str = "your next message") -> None:
        self.shared, self.setup, self.resumed_by = shared, setup, resumed_by
        self.daemon, self.turns = shared.daemon, shared.turns
        self.session = Session(str(setup.path))
        self.approvals = Approvals(shared.turns)
        self.backend: AgentBackend | None = None
        self.standing: tuple[object, ...] = ()
        self.lock = asyncio.Lock()
        self.idle: asyncio.TimerHandle | None = None
        self.closing: asyncio.Task[None] | None = None
        self.interruption: asyncio.Task[None] | None = None
        self.interrupted: LiveTurn | None = None
        self.starting: LiveTurn | None = None
        self.lost = ""
        """The workspace whose session was lost, until that is told."""
        self.state = self.line = "idle"
        self.killed_before = 0
        self.stuck = False
        self.payer = self.session
        self.driving = False
        self.paid = 0.0

    # ---- one turn ----

    async def drive(self, live: LiveTurn, prompt: list[Part]) -> Event:
        """Run a turn. Raises AgentDied, WorkspaceError and what the configuration raises."""
        if live.stop_asked:
            return Event(kind="done", outcome="interrupted")
        self.starting = live
        try:
            backend = await self.ready()
        finally:
            self.starting = None
        if self.lost == self.session.workspace:
            if not live.unattended:  # nobody reads it; and a job's first line may have a meaning
                live.add_text(LOST)
            self.lost = ""
        if live.stop_asked:
            return Event(kind="done", outcome="interrupted")
        unknown = _unknown_command(prompt, backend.commands)
        if unknown:
            return Event(kind="done", outcome="failed", error=unknown)
        self.show("working", live)
        live.last_call = asyncio.get_running_loop().time()
        watch = asyncio.create_task(self._watch(live, backend))
        self.payer, self.driving = self.session, True
        try:
            done = await self._follow(live, backend, prompt)
        finally:
            self.driving = False
            watch.cancel()
            self.approvals.close(live)
        if done.text and not live.text:
            live.add_text(done.text)
        if done.reason == "died" and not live.forced:
            done.error = f"{done.error} {self._why_it_died(done.error)}".strip()
        return done

    async def _follow(self, live: LiveTurn, backend: AgentBackend, prompt: list[Part]) -> Event:
        done = Event(kind="done", outcome="failed", error="The agent ended the turn without an answer.")
        async for event in backend.turn(prompt):
            if event.kind == "done":
                done = event
            elif event.kind == "approval":
                await self.approvals.take(live, backend, event)
            else:
                live.apply(event)
            if event.kind == "started" and self.follow_session(event.session):
                await self._store_session()
        self.follow_session(backend.session)
        self.paid += done.cost_usd
        return done

    async def _store_session(self) -> None:
        """The next supervisor resumes it, whatever happens to this one."""
        try:
            await self.turns.set_session(self.session)
        except StoreError as error:
            logger.error("the session is stored with the turn's end: %s", error)

    def _why_it_died(self, error: str) -> str:
        if oom.kills() > self.killed_before:
            limit = self.setup.user.limits.memory
            return (
                "The kernel ended it for want of memory"
                + (f" (limits.memory is {limit})" if limit else "")
                + f"; {self.resumed_by} resumes the session."
            )
        if "SIGKILL" in error:
            return "Somebody or the kernel killed it; `journalctl -k` says whether memory ran out."
        return ""

    async def _watch(self, live: LiveTurn, backend: AgentBackend) -> None:
        """Interrupt a turn that is overdue."""
        config, user = self.setup.config, self.setup.user
        limits = Limits(float(self.setup.value("timeout")), config.kai.agent.tool_timeout, user.max_turn)
        while not live.overdue:
            await asyncio.sleep(WATCH_PERIOD)
            live.overdue = overdue(limits, live, backend.heard)
        logger.warning("%s", live.overdue)
        self.interrupt(live)

    def interrupt(self, live: LiveTurn) -> None:
        """Begin to end a turn; asked again, nothing more happens."""
        if self.interrupted is not live or self.interruption is None or self.interruption.done():
            self.interrupted = live
            self.interruption = asyncio.create_task(self._interrupt(live))

    async def _interrupt(self, live: LiveTurn) -> None:
        """The protocol's own interrupt; if the agent doesn't obey, its process is ended."""
        backend = self.backend
        if backend is None or self.state != "working":
            if self.starting is live and live.task:
                live.task.cancel()  # it waits for the agent's start; elsewhere it looks at stop_asked by itself
            return
        try:
            async with asyncio.timeout(INTERRUPT_PATIENCE):
                await backend.interrupt()
                await live.ended.wait()
        except (TimeoutError, AgentDied):
            logger.warning("the agent did not obey the interrupt; its process is ended")
            live.forced = True
            self.closing = asyncio.create_task(self._let_go())
            await asyncio.wait({self.closing})

    def follow_session(self, session: str) -> bool:
        """Take over the agent's session id, unless it can't be one; True when it is new."""
        if session == self.session.id or not SESSION_ID.fullmatch(session):
            return False
        self.session.id = session
        return True

    # ---- the process ----

    async def ready(self) -> AgentBackend:
        """The running process, or a new one that resumes the session."""
        async with self.lock:
            if self.idle:
                self.idle.cancel()
                self.idle = None
            if self.closing:  # two processes must never write one session
                self.show("starting")
                await self._closed()
            if self.stuck:
                raise AgentDied(STUCK)
            standing = self.setup.standing(self.session)
            if self.backend and self.backend.alive and self.standing == standing:
                return self.backend
            self.show("starting")
            self.closing = asyncio.create_task(self._let_go())
            await self._closed()
            try:
                backend = await self._start()
            except SessionUnknown as error:
                logger.warning("session %s: %s", self.session.id, error)
                await self.turns.lose_session(self.session)
                self.lost = self.session.workspace
                backend = await self._start()
            self.standing = standing
            await self.turns.set_fact(MODELS, msgspec.json.encode(backend.models).decode())
            return backend

    async def _closed(self) -> None:
        """Wait for the old process's end, which a turn that is stopped meanwhile must not cut short."""
        assert self.closing
        await asyncio.wait({self.closing})
        self.closing = None
        if self.stuck:
            raise AgentDied(STUCK)

    async def _start(self) -> AgentBackend:
        context = await self.setup.context(self.session)
        backend = self.shared.make_backend(self.setup.backend)
        self.killed_before = oom.kills()
        self.daemon.hold()
        self.backend, self.paid = backend, 0.0
        starting = asyncio.create_task(backend.start(context))
        try:
            await asyncio.shield(starting)
        except asyncio.CancelledError:  # who stops the turn does not wait for the end of what doesn't even begin
            self.backend = None
            self.closing = asyncio.create_task(self._abandon(backend, starting))
            raise
        except BaseException:
            self.closing = asyncio.create_task(self._let_go())
            await self._closed()
            raise
        return backend

    async def _abandon(self, backend: AgentBackend, starting: asyncio.Task[None]) -> None:
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        with suppress(AgentDied):  # told by `ready`
            await self._end(backend)

    async def close(self) -> None:
        """End the process. Raises AgentDied when it can't be ended: no second one may be started beside it."""
        backend, self.backend = self.backend, None
        if backend:
            await self._end(backend)

    async def end(self) -> None:
        """`close`, and wait for what is being closed already: the end of this supervisor would cut it short."""
        if self.closing:
            await asyncio.wait({self.closing})
        await self.close()

    async def _end(self, backend: AgentBackend) -> None:
        ending = "stuck"
        try:
            ending = await backend.close()
        finally:
            self.daemon.release()
            self.stuck = self.stuck or ending == "stuck"
            if ending != "left":
                self.shared.leave(f"the agent's process was {ending}")
        if not self.driving:  # else the turn's own end tells all of it
            await self._pay(backend.cost_usd - self.paid)
        if self.stuck:
            raise AgentDied(STUCK)

    async def _pay(self, rest: float) -> None:
        """Count what the agent spent on its own since its last turn here, in US dollars."""
        if rest < SMALLEST_COST:
            return
        payer = self.session if self.session.workspace == self.payer.workspace else self.payer
        payer.cost_usd += rest
        try:
            await self.turns.pay(payer, self.setup.today(), rest)
        except StoreError as error:
            logger.error("$%.4f that the agent spent are not in the sums: %s", rest, error)

    def settle(self) -> None:
        """A turn is over: keep the process for the next one, or let go of a dead one."""
        if self.idle:  # a turn that never came to the process didn't stop its clock
            self.idle.cancel()
            self.idle = None
        if self.backend and self.backend.alive:
            self.show("ready")
            loop = asyncio.get_running_loop()
            self.idle = loop.call_later(self.setup.config.kai.agent.idle_timeout, self._evict)
            return
        self.show("idle")
        if self.backend:
            self.closing = asyncio.create_task(self._let_go())

    def _evict(self) -> None:
        """Nothing was asked for idle_timeout: the session stays on the agent's disk, the process ends."""
        self.idle = None
        self.show("idle")
        self.closing = asyncio.create_task(self._let_go())

    async def _let_go(self) -> None:
        try:
            await self.close()
        except AgentDied as error:
            logger.error("%s", error)

    async def models(self, *, busy: bool) -> ModelList:
        """What the agent offers; it is started for that once. While it is `busy` its process is not touched."""
        current, source = self.setup.effective("model")
        stored = await self.turns.fact(MODELS)
        if not stored and not busy:
            try:
                await self.ready()
            finally:
                self.settle()
            stored = await self.turns.fact(MODELS)
        return ModelList(
            current=str(current or ""), source=source, models=msgspec.json.decode(stored or "[]", type=list[Model])
        )

    def show(self, state: str, live: LiveTurn | None = None) -> None:
        self.state = state
        turn = f": turn {live.id}" if live else ""
        self.line = f"{state}{turn}, session {self.session.id or 'none'}"
        self.shared.changed()


def _unknown_command(prompt: list[Part], commands: list[str]) -> str:
    """The refusal of a slash command that the agent doesn't have: it would take it for words and answer nonsense."""
    found = COMMAND.match(prompt[0].text) if prompt else None
    if not found or not commands or found[1] in commands:
        return ""
    own = ", ".join(f"/{name}" for name in sorted(commands)[:12])
    return f"There is no command /{found[1]}. /help lists Kai's; the agent's own are {own}."
