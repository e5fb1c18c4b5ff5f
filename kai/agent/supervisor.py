"""Drives one user's inner agent: one turn at a time, one session, each turn at most once."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path

from kai.agent import history
from kai.agent.backend import SESSION_ID, AgentBackend, AgentDied, Context, SessionUnknown
from kai.agent.context import system_prompt
from kai.agent.live import MOST_TEXT, LiveTurn
from kai.agent.turns import Session, Turns
from kai.config import ConfigError
from kai.interfaces import (
    AgentState,
    Event,
    Hello,
    Join,
    Journal,
    NewSession,
    Part,
    Retire,
    Start,
    State,
    Stop,
    Stopped,
    UnknownTurn,
)
from kai.lib import log
from kai.lib.client import delays
from kai.lib.daemon import Daemon
from kai.lib.peers import Peer
from kai.lib.server import Emit
from kai.lib.store import StoreError
from kai.lib.varlink import Busy, Empty, Misconfigured

logger = logging.getLogger(__name__)
LONGEST_ERROR = 4000
INTERRUPT_PATIENCE = 10.0
"""Seconds that an agent gets to obey its own protocol's interrupt before its process is ended."""


class Settings:
    """What the configuration says of this user, asked anew at each start of the inner agent."""

    def __init__(
        self,
        *,
        user: str,
        backend: str,
        command: tuple[str, ...],
        model: str,
        door: tuple[str, ...],
        home: Path,
        idle_timeout: float,
        drain: float,
        model_door: bool = True,
        trust_settings: bool = False,
    ) -> None:
        self.user, self.backend, self.command, self.model = user, backend, command, model
        self.door, self.home = door, home
        self.idle_timeout, self.drain = idle_timeout, drain
        self.model_door, self.trust_settings = model_door, trust_settings


class Supervisor:
    """`base` is the user's directory: state, history, files, memory, work, tmp are below it."""

    def __init__(
        self,
        daemon: Daemon,
        base: Path,
        turns: Turns,
        settings: Callable[[], Settings],
        make_backend: Callable[[str], AgentBackend],
    ) -> None:
        self.daemon, self.base, self.turns = daemon, base, turns
        self.settings, self.make_backend = settings, make_backend
        self.session = Session()
        self.current: LiveTurn | None = None
        self.work: asyncio.Task[None] | None = None
        self.backend: AgentBackend | None = None
        self.backend_cost = 0.0
        self.idle: asyncio.TimerHandle | None = None
        self.interruption: asyncio.Task[None] | None = None
        self.closing: asyncio.Task[None] | None = None
        self.retiring = False
        self.state = "idle"

    async def open(self) -> None:
        await self.turns.open()
        self.session = await self.turns.session()

    # ---- the methods of kai.Agent ----

    async def hello(self, peer: Peer, call: Hello) -> Journal:
        return self.turns.identity

    async def start(self, peer: Peer, call: Start, emit: Emit) -> Event:
        if self.current and self.current.id == call.turn:
            return await self.current.follow(emit)
        if self.current or self.retiring or self.daemon.stopping.is_set():
            stored = await self.turns.answer(call.turn)
            if stored is not None:
                return stored
            raise Busy("another turn is running" if self.current else "the supervisor is about to leave")
        live = self.current = LiveTurn(call.turn)  # claimed before the first await: a second Start joins it
        self.daemon.hold()
        try:
            stored = await self.turns.begin(call.turn)
        except BaseException:
            self._release()
            raise
        if stored is not None:
            self._release()
            return stored
        self.work = asyncio.create_task(self._run(live, call.prompt))
        return await live.follow(emit)

    async def join(self, peer: Peer, call: Join, emit: Emit) -> Event:
        if self.current and self.current.id == call.turn:
            return await self.current.follow(emit)
        stored = await self.turns.answer(call.turn)
        if stored is None:
            raise UnknownTurn(f"{self.turns.identity.generation} {self.turns.identity.boot}")
        return stored

    async def stop(self, peer: Peer, call: Stop) -> Stopped:
        if not self.current or self.current.id != call.turn or self.current.done:
            return Stopped(stopping=False)
        if not self.current.stop_asked:
            self.current.stop_asked = True
            self.interruption = asyncio.create_task(self._interrupt(self.current))
        return Stopped(stopping=True)

    async def new_session(self, peer: Peer, call: NewSession) -> Empty:
        if self.current:
            raise Busy("a turn is running")
        with self.daemon.busy():
            await self._close_backend()
            self.session = Session(since=time.time())
            await self.turns.set_session(self.session)
        return Empty()

    async def describe(self, peer: Peer, call: State) -> AgentState:
        settings = self.settings()
        return AgentState(
            user=settings.user,
            state="draining" if self.retiring else self.state,  # type: ignore[arg-type]
            backend=settings.backend,
            model=settings.model,
            session=self.session.id,
            turn=self.current.id if self.current else "",
            turns=self.session.turns,
            cost_usd=self.session.cost_usd + (self.current.cost_usd if self.current else 0.0),
            since=self.session.since,
        )

    async def retire(self, peer: Peer, call: Retire) -> Empty:
        self.retiring = True
        if not self.current:
            self.daemon.stopping.set()
        return Empty()

    # ---- one turn ----

    async def _run(self, live: LiveTurn, prompt: list[Part]) -> None:
        with log.fields(KAI_TURN=live.id):
            logger.info("turn begins")
            text = "\n".join(part.text for part in prompt)
            history.append(self.base / "history", dir="user", turn=live.id, text=text)
            try:
                done = await self._drive(live, prompt)
            except (AgentDied, Misconfigured, ConfigError) as error:
                done = Event(kind="done", outcome="failed", error=str(error))
            except asyncio.CancelledError:
                done = Event(kind="done", outcome="interrupted", error="the supervisor had to leave")
            except Exception:
                logger.exception("turn failed by a fault of Kai's")
                done = Event(kind="done", outcome="failed", error="a fault in Kai; the journal says more")
            await self._end(live, done)

    async def _drive(self, live: LiveTurn, prompt: list[Part]) -> Event:
        if live.stop_asked:
            return Event(kind="done", outcome="interrupted")
        backend = await self._ready(live)
        if live.stop_asked:
            return Event(kind="done", outcome="interrupted")
        self._show("working")
        done = Event(kind="done", outcome="failed", error="the agent ended the turn without an answer")
        async for event in backend.turn(prompt):
            if event.kind == "done":
                done = event
            else:
                live.apply(event)
            if event.kind == "started" and self._follow_session(event.session):
                await self.turns.set_session(self.session)  # the next supervisor resumes it, whatever happens to us
        if done.text and not live.text:
            live.add_text(done.text)
        return done

    async def _end(self, live: LiveTurn, done: Event) -> None:
        """Journal, history, followers, in this order: who sees the answer can rely on it being stored."""
        cost = done.cost_usd or live.cost_usd
        if self.backend:
            self._follow_session(self.backend.session)
        self.session.turns += 1
        self.session.cost_usd += cost
        done.text, done.cost_usd, done.session = live.text, cost, self.session.id
        done.error = done.error[:LONGEST_ERROR]  # an agent's own words may be megabytes
        if live.stop_asked and done.outcome != "ok":
            done.outcome, done.error = "interrupted", ""
        if live.cut:
            done.error = f"{done.error} The answer was longer than {MOST_TEXT} characters; the rest is cut.".strip()
        for delay in delays():
            try:
                await self.turns.end(live.id, done, self.session)
            except StoreError as error:  # a full disk: nobody may see an answer that isn't stored
                logger.error("the answer waits to be stored: %s", error)
                await asyncio.sleep(delay)
            else:
                break
        if done.text:
            history.append(self.base / "history", dir="assistant", turn=live.id, text=done.text)
        logger.info("turn ended: %s%s", done.outcome, f": {log.printable(done.error, 300)}" if done.error else "")
        live.finish(done)
        self._release()
        if self.retiring:
            self.daemon.stopping.set()

    def _release(self) -> None:
        self.current = self.work = None
        self.daemon.release()
        if self.backend and self.backend.alive:
            self._show("ready")
            self._arm_idle()
        else:
            self._show("idle")
            if self.backend:  # it died in the turn; what holds this daemon must go with it
                self.closing = asyncio.create_task(self._close_backend())

    # ---- the inner agent's process ----

    async def _ready(self, live: LiveTurn) -> AgentBackend:
        """The running inner agent, or a new one that resumes the session."""
        if self.idle:
            self.idle.cancel()
            self.idle = None
        if self.closing:  # two processes must never write one session
            await asyncio.wait({self.closing})
            self.closing = None
        if self.backend and self.backend.alive:
            return self.backend
        await self._close_backend()
        self._show("starting")
        try:
            return await self._start_backend(self.session.id)
        except SessionUnknown as error:
            logger.warning("session %s: %s", self.session.id, error)
            self.session = Session(since=time.time())
            live.add_text("(The agent no longer knows the session before this; a fresh one begins here.)\n\n")
            return await self._start_backend("")

    async def _start_backend(self, session: str) -> AgentBackend:
        settings = self.settings()
        prompt = await system_prompt(
            config_dir=self.daemon.config_dir,
            user=settings.user,
            base=self.base,
            home=settings.home,
            workspace=settings.home,
            door=settings.door,
            fresh=not session,
        )
        model_door = self.daemon.runtime_dir / "model.sock"
        context = Context(
            user=settings.user,
            door=settings.door,
            command=settings.command,
            workspace=settings.home,
            session=session,
            system_prompt=prompt,
            model=settings.model,
            model_door=str(model_door) if settings.model_door and model_door.exists() else "",
            trust_settings=settings.trust_settings,
        )
        backend = self.make_backend(settings.backend)
        self.daemon.hold()
        self.backend = backend
        try:
            await backend.start(context)
        except BaseException:
            await self._close_backend()
            raise
        return backend

    async def _close_backend(self) -> None:
        if self.backend:
            backend, self.backend = self.backend, None
            gone = False
            try:
                gone = await backend.close()
            finally:
                self.daemon.release()
            if not gone:
                logger.error(
                    "the agent's process can't be ended; this supervisor leaves, and its control group with it"
                )
                self.retiring = True
                if not self.current:
                    self.daemon.stopping.set()

    def _arm_idle(self) -> None:
        loop = asyncio.get_running_loop()
        self.idle = loop.call_later(self.settings().idle_timeout, self._evict)

    def _evict(self) -> None:
        """Nothing was asked for idle_timeout: the session stays on the agent's disk, the process ends."""
        self.idle = None
        if not self.current:
            self._show("idle")
            self.closing = asyncio.create_task(self._close_backend())

    async def _interrupt(self, live: LiveTurn) -> None:
        """The protocol's own interrupt; if the agent doesn't obey, its process is ended."""
        backend = self.backend
        if backend is None or self.state != "working":
            if self.state == "starting" and self.work:
                self.work.cancel()  # it waits for the agent's start; elsewhere it looks at stop_asked by itself
            return
        try:
            async with asyncio.timeout(INTERRUPT_PATIENCE):
                await backend.interrupt()
                await live.ended.wait()
        except (TimeoutError, AgentDied):
            logger.warning("the agent did not obey the interrupt; its process is ended")
            await backend.close()

    async def drain(self) -> None:
        """Told to stop: let the running turn finish, then interrupt it, then end it; its part is stored."""
        if self.current and self.work:
            live, work = self.current, self.work
            patience = self.settings().drain
            self.daemon.status(f"draining: turn {live.id} has {patience:g} s to finish")
            longest = patience + 4 * INTERRUPT_PATIENCE
            self.daemon.notify(
                f"EXTEND_TIMEOUT_USEC={int(longest * 1e6)}"
            )  # the unit's own limit is for the usual drain
            done, _ = await asyncio.wait({work}, timeout=patience)
            if not done:
                live.stop_asked = True
                await asyncio.wait_for(self._interrupt(live), INTERRUPT_PATIENCE * 2)
                done, _ = await asyncio.wait({work}, timeout=INTERRUPT_PATIENCE)
            if not done:
                work.cancel()
                await asyncio.wait({work}, timeout=INTERRUPT_PATIENCE)
            await asyncio.sleep(0.1)  # followers take the last event with them
        await self._close_backend()

    def _follow_session(self, session: str) -> bool:
        """Take over the agent's session id, unless it can't be one; True when it is new."""
        if session == self.session.id or not SESSION_ID.fullmatch(session):
            return False
        self.session.id = session
        return True

    def _show(self, state: str) -> None:
        self.state = state
        turn = f": turn {self.current.id}" if self.current and state == "working" else ""
        self.daemon.status(f"{state}{turn}, session {self.session.id or 'none'}")
