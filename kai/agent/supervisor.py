"""kai.Agent as one user's supervisor answers it: one turn at a time, each at most once, and what the user may set."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from kai.agent import budget, files, history, sending
from kai.agent.backend import AgentBackend, AgentDied
from kai.agent.choices import ChoiceError
from kai.agent.context import memory_text
from kai.agent.live import MOST_TEXT, LiveTurn
from kai.agent.seat import INTERRUPT_PATIENCE, Seat
from kai.agent.setup import Setup
from kai.agent.turns import Turns
from kai.agent.workspaces import WorkspaceError
from kai.config import ConfigError
from kai.interfaces import (
    AgentState,
    Answer,
    Answered,
    Event,
    FileSent,
    Hello,
    Join,
    Journal,
    Memory,
    MemoryText,
    ModelList,
    Models,
    NewSession,
    Part,
    Place,
    Retire,
    SendFile,
    SessionEnded,
    Set,
    Settings,
    SettingsInForce,
    Start,
    State,
    Stop,
    Stopped,
    Switched,
    SwitchWorkspace,
    UnknownTurn,
    WorkspaceList,
    Workspaces,
)
from kai.lib import log
from kai.lib.client import delays
from kai.lib.daemon import Daemon
from kai.lib.peers import BOT, OPERATOR, Peer
from kai.lib.server import Emit, Handlers
from kai.lib.store import StoreError
from kai.lib.varlink import Busy, Empty, InvalidParameter, Misconfigured
from kai.lib.wire import close_all

logger = logging.getLogger(__name__)
LONGEST_ERROR = 4000
STOPPED = "the agent's supervisor was told to stop before it was over."
LEAVE_DELAY = 0.3
"""Seconds that those who follow a turn get to take its last event with them."""
PART_DELAY, PART_PERIOD = 0.1, 1.0
"""Seconds before the first and between two commits of a turn's text so far: an answer that comes at once costs none."""
SAVE_PATIENCE = 30.0
SAVE = (
    "[Kai] This session ends now. If there is something in it that you should remember and that is not in MEMORY.md "
    "yet, write it there now, in a few lines. Then answer with the one word: done. You have 30 seconds."
)


class Supervisor:
    """`base` is the user's directory: state, history, files, memory, work, tmp are below it."""

    def __init__(
        self, daemon: Daemon, base: Path, setup: Setup, turns: Turns, make_backend: Callable[[str], AgentBackend]
    ) -> None:
        self.daemon, self.base, self.setup, self.turns = daemon, base, setup, turns
        self.seat = Seat(daemon, setup, turns, make_backend, self.leave)
        self.current: LiveTurn | None = None
        self.retiring = False
        self.visits = 0
        self.up_since = time.time()

    async def open(self) -> None:
        await self.turns.open(str(self.setup.home))
        await self.setup.open()
        self.seat.session = await self.turns.session(str(self.setup.path))
        await self._keep_history()

    async def _keep_history(self) -> None:
        """What an earlier supervisor's last turn had produced is a part of the conversation; it is entered once."""
        where = self.base / "history"
        for turn, part in (await self.turns.parts()).items():
            if not history.has_answer(where, turn):
                history.append(where, dir="assistant", turn=turn, text=part)
            await self.turns.drop_part(turn)

    def handlers(self) -> Handlers:
        return {
            Hello: self.hello,
            Start: self.start,
            Join: self.join,
            Stop: self.stop,
            Answer: self.answer,
            NewSession: self.new_session,
            State: self.describe,
            Retire: self.retire,
            Settings: self.settings,
            Set: self.set,
            Models: self.models,
            Workspaces: self.workspaces,
            SwitchWorkspace: self.switch_workspace,
            Memory: self.memory,
            SendFile: self.send_file,
        }

    # ---- turns ----

    async def hello(self, peer: Peer, call: Hello) -> Journal:
        return msgspec.structs.replace(self.turns.identity, streaming=self.setup.value("streaming"))

    async def start(self, peer: Peer, call: Start, descriptors: list[int], emit: Emit) -> Event:
        if self.current and self.current.id == call.turn:
            close_all(descriptors)
            return await self._follow(self.current, emit)
        if self.current or self.visits or self._leaving:
            stored = await self._stored(call.turn)
            if stored is not None:
                return stored
            busy = self.current or self.visits
            raise Busy("the agent is busy with something else" if busy else "the supervisor is about to leave")
        # Claimed before the first await: a second Start joins it.
        live = self.current = LiveTurn(call.turn, streaming=self.setup.value("streaming"))
        self.daemon.hold()
        given, descriptors[:] = descriptors[:], []
        live.begun = asyncio.create_task(self._begin(live, call.prompt, given))
        return await self._follow(live, emit)

    async def _begin(self, live: LiveTurn, prompt: list[Part], descriptors: list[int]) -> None:
        """Beside the one who asked: a turn that is entered runs, though he goes away meanwhile."""
        try:
            prompt = await self._with_files(live.id, prompt, descriptors)
            stored = await self.turns.begin(live.id)
        except BaseException as error:
            self._release()
            if isinstance(error, StoreError):
                raise Busy(str(error)) from None  # it did not begin: asked again, it does
            raise
        if stored is None:
            live.task = asyncio.create_task(self._run(live, prompt))
        else:
            live.finish(stored)
            self._release()

    async def _with_files(self, turn: str, prompt: list[Part], descriptors: list[int]) -> list[Part]:
        """The prompt with its files on disk; they aren't stored once more for a turn that has ended."""
        try:
            if any(part.kind == "file" for part in prompt) and await self._stored(turn) is None:
                where, day = self.base / "files", self.setup.today()
                return await files.store(where, prompt, descriptors, turn=turn, day=day)
            return prompt
        finally:
            close_all(descriptors)

    async def _follow(self, live: LiveTurn, emit: Emit) -> Event:
        if live.begun:
            await asyncio.shield(live.begun)
        return await live.follow(emit)

    async def _stored(self, turn: str) -> Event | None:
        """The answer in the journal. A disk that gives none now is no reason to do without it."""
        try:
            return await self.turns.answer(turn)
        except StoreError as error:
            raise Busy(str(error)) from None

    async def join(self, peer: Peer, call: Join, emit: Emit) -> Event:
        if self.current and self.current.id == call.turn:
            return await self._follow(self.current, emit)
        stored = await self._stored(call.turn)
        if stored is None:
            raise UnknownTurn(f"{self.turns.identity.generation} {self.turns.identity.boot}")
        return stored

    async def stop(self, peer: Peer, call: Stop) -> Stopped:
        if not self.current or self.current.id != call.turn or self.current.done:
            return Stopped(stopping=False)
        self.current.drained = False
        if not self.current.stop_asked:
            self.current.stop_asked = True
            self.seat.interrupt(self.current)
        return Stopped(stopping=True)

    async def answer(self, peer: Peer, call: Answer) -> Answered:
        live, backend = self.current, self.seat.backend
        if live is None or backend is None or live.id != call.turn:
            return Answered(taken=False)
        return await self.seat.approvals.answer(live, backend, self.seat.session, call)

    async def _run(self, live: LiveTurn, prompt: list[Part]) -> None:
        with log.fields(KAI_TURN=live.id):
            logger.info("turn begins")
            text = "\n".join(part.text for part in prompt if part.kind == "text")
            media = [part.name for part in prompt if part.kind == "file"]
            history.append(self.base / "history", dir="user", turn=live.id, text=text, media=media)
            keeping = asyncio.create_task(self._keep_part(live))
            try:
                done = await self._drive(live, prompt)
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

    async def _drive(self, live: LiveTurn, prompt: list[Part]) -> Event:
        """Whatever happens, one done event."""
        session, limit = self.seat.session, float(self.setup.value("budget"))
        try:
            if session.cost_usd >= limit:
                return Event(kind="done", outcome="failed", reason="budget")
            return await self.seat.drive(live, prompt)
        except (AgentDied, Misconfigured, ConfigError, WorkspaceError) as error:
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
        day = self.setup.today()
        for delay in delays():
            try:
                await self.turns.end(live.id, done, session, day)
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

    def _explain(self, live: LiveTurn, done: Event) -> None:
        """Put into `done.error` what the user is to know of the end."""
        forced = "It did not obey, so its process was ended; your next message resumes the session."
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
        notes.append(self._budget_note(done))
        done.error = " ".join(note for note in notes if note)

    def _budget_note(self, done: Event) -> str:
        session, (limit, source) = self.seat.session, self.setup.effective("budget")
        if session.cost_usd >= limit or done.reason == "budget":
            session.warned_usd = limit
            return budget.spent(session.cost_usd, limit, self._ceiling, source=source)
        if session.cost_usd >= budget.WARNED_AT * limit and session.warned_usd != limit:
            session.warned_usd = limit
            return budget.nearly(session.cost_usd, limit)
        return ""

    @property
    def _ceiling(self) -> float:
        return self.setup.config.ceiling(self.setup.user)

    def _release(self) -> None:
        if self.current:
            self.current.released.set()
        self.current = None
        self.daemon.release()
        self.seat.settle()
        self._leave_when_free()

    # ---- sessions ----

    async def new_session(self, peer: Peer, call: NewSession) -> SessionEnded:
        if self.current or self.visits or self._leaving:
            raise Busy("the supervisor is about to leave" if self._leaving else "a turn is running")
        live = self.current = LiveTurn(call.turn or "new", unattended=True)
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
            self._release()
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
        live.finish(await self._drive(live, [Part(kind="text", text=SAVE)]))

    async def describe(self, peer: Peer, call: State) -> AgentState:
        session, (today, month) = self.seat.session, await self.turns.cost(self.setup.today())
        running = self.current.cost_usd if self.current else 0.0
        return AgentState(
            user=self.setup.user.name,
            state="draining" if self.retiring else self.seat.state,  # type: ignore[arg-type]
            backend=self.setup.backend,
            model=str(self.setup.value("model") or ""),
            session=session.id,
            turn=self.current.id if self.current else "",
            turns=session.turns,
            cost_usd=session.cost_usd + running,
            since=session.since,
            workspace=self.setup.place.name,
            budget_usd=float(self.setup.value("budget")),
            cost_today_usd=today + running,
            cost_month_usd=month + running,
            up_since=self.up_since,
        )

    # ---- what the user may set ----

    async def settings(self, peer: Peer, call: Settings) -> SettingsInForce:
        return SettingsInForce(self.setup.place.name, self.setup.settings(), self._ceiling)

    async def set(self, peer: Peer, call: Set) -> SettingsInForce:
        operator = OPERATOR in peer.roles and BOT not in peer.roles
        try:
            await self.setup.choose(call.field, call.value, workspace=call.workspace, operator=operator)
        except ChoiceError as error:
            raise InvalidParameter(str(error)) from None
        return await self.settings(peer, Settings())

    async def models(self, peer: Peer, call: Models) -> ModelList:
        with self._visit():
            try:
                return await self.seat.models(busy=self.current is not None)
            except (AgentDied, WorkspaceError) as error:
                raise Misconfigured(str(error)) from None

    async def memory(self, peer: Peer, call: Memory) -> MemoryText:
        return memory_text(self.base / "memory")

    async def send_file(self, peer: Peer, call: SendFile) -> FileSent:
        if self._leaving:
            raise Busy("the supervisor is about to leave; try again")
        return await sending.send(
            self.daemon.runtime_dir / "bot.sock",
            self.setup.user.name,
            call.path,
            call.caption,
            door=self.setup.door,
            base=self.base,
            workspace=self.setup.path,
        )

    async def workspaces(self, peer: Peer, call: Workspaces) -> WorkspaceList:
        places, names = self.setup.places, {}
        for path, used in (await self.turns.used_workspaces()).items():
            if self.setup.reaches(Path(path)):
                names[path] = Place(name=places.name_of(Path(path)), path=path, used=used)
        for place in (Place(name="home", path=str(self.setup.home)), *await self._listed()):
            names.setdefault(place.path, place)
        return WorkspaceList(
            current=self.setup.place, places=list(names.values()), base=str(places.base) if places.base else ""
        )

    async def _listed(self) -> list[Place]:
        base = self.setup.places.base
        if base is None:
            return []
        try:
            return [Place(name=name, path=str(base / name)) for name in await self.setup.places.listing()]
        except WorkspaceError as error:
            logger.warning("workspaces: %s", error)
            return []

    async def switch_workspace(self, peer: Peer, call: SwitchWorkspace) -> Switched:
        if self.current:
            raise Busy("a turn is running")
        with self._visit():
            try:
                if call.create:
                    place, git = await self.setup.places.create(call.name)
                else:
                    place, git = await self.setup.places.find(call.name), False
            except WorkspaceError as error:
                raise InvalidParameter(str(error)) from None
            async with self.seat.lock:  # what starts now, for a look at the models, is of one workspace only
                session = await self.turns.session(place.path)
                await self.setup.move(place)
                self.seat.session = session
            session.used = time.time()
            await self.turns.set_session(session)
            self.seat.show(self.seat.state)
        return Switched(place=place, resumed=bool(session.id), git=git)

    # ---- the end ----

    async def retire(self, peer: Peer, call: Retire) -> Empty:
        self.leave("it was asked to retire")
        return Empty()

    @property
    def _leaving(self) -> bool:
        return self.retiring or self.daemon.stopping.is_set()

    def leave(self, reason: str) -> None:
        """Take no new turn, and go when the running one is over."""
        if not self.retiring:
            logger.info("leaves: %s", reason)
        self.retiring = True
        self._leave_when_free()

    def _leave_when_free(self) -> None:
        if self.retiring and not self.current and not self.visits:
            asyncio.get_running_loop().call_later(LEAVE_DELAY, self.daemon.stopping.set)

    @contextmanager
    def _visit(self) -> Iterator[None]:
        """Something that isn't a turn uses the agent or moves it: no turn may begin, and nobody leaves."""
        self.visits += 1
        try:
            with self.daemon.busy():
                yield
        finally:
            self.visits -= 1
            self._leave_when_free()

    async def drain(self) -> None:
        """Told to stop: let the running turn finish, then interrupt it, then end it; its part is stored."""
        live = self.current
        if live and live.begun:
            await asyncio.wait({live.begun})
        if live and live.task:
            patience = self.setup.config.kai.drain
            self.daemon.status(f"draining: turn {live.id} has {patience:g} s to finish")
            longest = patience + 4 * INTERRUPT_PATIENCE
            # the unit's own limit is for the usual drain
            self.daemon.notify(f"EXTEND_TIMEOUT_USEC={int(longest * 1e6)}")
            done, _ = await asyncio.wait({live.task}, timeout=patience)
            if not done:
                live.drained = live.drained or not live.stop_asked
                live.stop_asked = True
                self.seat.interrupt(live)
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
