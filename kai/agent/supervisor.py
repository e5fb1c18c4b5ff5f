"""kai.Agent as one user's supervisor answers it: turns of chat and jobs, each at most once, and what he may set."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from kai.agent import history, jobs, sending
from kai.agent.backend import AgentBackend, AgentDied
from kai.agent.chat import Chat
from kai.agent.choices import ChoiceError
from kai.agent.context import memory_text
from kai.agent.live import LiveTurn
from kai.agent.notes import Notes
from kai.agent.runner import Runner, follow
from kai.agent.seat import INTERRUPT_PATIENCE, Seat, Shared
from kai.agent.setup import Setup
from kai.agent.turns import Turns
from kai.agent.workspaces import WorkspaceError
from kai.agent.zone import ZoneTeller
from kai.interfaces import (
    AgentState,
    Answer,
    Answered,
    Event,
    FileSent,
    ForgetJob,
    Hello,
    JobSeat,
    Join,
    Journal,
    Memory,
    MemoryText,
    ModelList,
    Models,
    NewSession,
    Note,
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
from kai.lib.daemon import Daemon
from kai.lib.peers import BOT, OPERATOR, Peer
from kai.lib.server import Emit, Handlers
from kai.lib.store import StoreError
from kai.lib.varlink import Busy, Empty, InvalidParameter, Misconfigured
from kai.lib.wire import close_all

logger = logging.getLogger(__name__)
LEAVE_DELAY = 0.3
"""Seconds that those who follow a turn get to take its last event with them."""


class Supervisor:
    """`base` is the user's directory: state, history, files, memory, work, tmp are below it."""

    def __init__(
        self, daemon: Daemon, base: Path, setup: Setup, turns: Turns, make_backend: Callable[[str], AgentBackend]
    ) -> None:
        self.daemon, self.base, self.setup, self.turns = daemon, base, setup, turns
        self.shared = Shared(daemon, turns, base, make_backend, self.leave, self._changed)
        self.notes = Notes(turns, base / "history")
        self.chat = Chat(self.shared, setup, self.notes)
        self.jobs: dict[int, jobs.JobRun] = {}
        self.zone = ZoneTeller(daemon, setup, turns)
        self.retiring = False
        self.visits = 0
        self.up_since = time.time()

    async def open(self) -> None:
        await self.turns.open(str(self.setup.home))
        await self.setup.open()
        await self.chat.open()
        await self._keep_history()
        await self.notes.open()
        await self.zone.open()

    async def _keep_history(self) -> None:
        """What an earlier supervisor's last turn had produced is a part of the conversation; it is entered once."""
        where = self.base / "history"
        for turn, part in (await self.turns.parts()).items():
            if not turn.startswith(jobs.PREFIX) and not history.has_answer(where, turn):
                history.append(where, dir="assistant", turn=turn, text=part)
            await self.turns.drop_part(turn)

    @property
    def seat(self) -> Seat:
        """The chat's."""
        return self.chat.seat

    @property
    def current(self) -> LiveTurn | None:
        """The chat's turn that runs."""
        return self.chat.current

    @property
    def running(self) -> dict[str, tuple[Runner, LiveTurn]]:
        """All turns that run, by their ids."""
        runners: list[Runner] = [self.chat, *self.jobs.values()]
        return {runner.current.id: (runner, runner.current) for runner in runners if runner.current}

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
            Note: self.note,
            ForgetJob: self.forget_job,
        }

    # ---- turns ----

    async def hello(self, peer: Peer, call: Hello) -> Journal:
        return msgspec.structs.replace(self.turns.identity, streaming=self.setup.value("streaming"))

    async def start(self, peer: Peer, call: Start, descriptors: list[int], emit: Emit) -> Event:
        jobs.check(peer, call)
        self.zone.tell()
        if call.turn in self.running:
            close_all(descriptors)
            return await follow(self.running[call.turn][1], emit)
        busy = self._busy(call.job)
        if busy:
            stored = await self._stored(call.turn)
            if stored is not None:
                return stored
            raise Busy(busy)
        live = LiveTurn(call.turn, unattended=call.job is not None, streaming=self.setup.value("streaming"))
        runner = jobs.JobRun(self.shared, self.setup, call.job, self.jobs) if call.job else self.chat
        return await runner.start(live, call.prompt, descriptors, emit)

    def _busy(self, job: JobSeat | None) -> str:
        """Why no turn can begin now, "" when one can. Jobs and the chat don't wait for each other."""
        most = self.setup.config.kai.agent.jobs_parallel
        if job and job.id in self.jobs:
            return f"the last run of job {job.id} is not over"
        if job and len(self.jobs) >= most:
            return f"{most} jobs are running, as many as may at once (agent.jobs_parallel)"
        if not job and (self.current or self.visits):
            return "the agent is busy with something else"
        return "the supervisor is about to leave" if self._leaving else ""

    async def _stored(self, turn: str) -> Event | None:
        """The answer in the journal. A disk that gives none now is no reason to do without it."""
        try:
            return await self.turns.answer(turn)
        except StoreError as error:
            raise Busy(str(error)) from None

    async def join(self, peer: Peer, call: Join, emit: Emit) -> Event:
        if call.turn in self.running:
            return await follow(self.running[call.turn][1], emit)
        stored = await self._stored(call.turn)
        if stored is None:
            raise UnknownTurn(f"{self.turns.identity.generation} {self.turns.identity.boot}")
        return stored

    async def stop(self, peer: Peer, call: Stop) -> Stopped:
        if call.turn not in self.running:
            return Stopped(stopping=False)
        runner, live = self.running[call.turn]
        return Stopped(stopping=runner.stop(live))

    async def answer(self, peer: Peer, call: Answer) -> Answered:
        if call.turn not in self.running:
            return Answered(taken=False)
        runner, live = self.running[call.turn]
        seat = runner.seat
        if seat.backend is None:
            return Answered(taken=False)
        return await seat.approvals.answer(live, seat.backend, seat.session, call)

    # ---- jobs ----

    async def note(self, peer: Peer, call: Note) -> Empty:
        try:
            await self.notes.add(call)
        except StoreError as error:
            raise Busy(str(error)) from None
        return Empty()

    async def forget_job(self, peer: Peer, call: ForgetJob) -> Empty:
        if call.job in self.jobs:
            self.jobs[call.job].forget()
        try:
            await self.turns.forget(jobs.session_name(call.job))
        except StoreError as error:
            raise Busy(str(error)) from None
        return Empty()

    # ---- sessions ----

    async def new_session(self, peer: Peer, call: NewSession) -> SessionEnded:
        if self.current or self.visits or self._leaving:
            raise Busy("the supervisor is about to leave" if self._leaving else "a turn is running")
        return await self.chat.new_session(call.turn)

    async def describe(self, peer: Peer, call: State) -> AgentState:
        session, (today, month) = self.seat.session, await self.turns.cost(self.setup.today())
        running = sum(live.cost_usd for _, live in self.running.values())
        return AgentState(
            user=self.setup.user.name,
            state="draining" if self.retiring else self.seat.state,  # type: ignore[arg-type]
            backend=self.setup.backend,
            model=str(self.setup.value("model") or ""),
            session=session.id,
            turn=self.current.id if self.current else "",
            turns=session.turns,
            cost_usd=session.cost_usd + (self.current.cost_usd if self.current else 0.0),
            since=session.since,
            workspace=self.setup.place.name,
            budget_usd=float(self.setup.value("budget")),
            cost_today_usd=today + running,
            cost_month_usd=month + running,
            up_since=self.up_since,
            jobs=len(self.jobs),
        )

    # ---- what the user may set ----

    async def settings(self, peer: Peer, call: Settings) -> SettingsInForce:
        return SettingsInForce(self.setup.place.name, self.setup.settings(), self.setup.ceiling)

    async def set(self, peer: Peer, call: Set) -> SettingsInForce:
        operator = OPERATOR in peer.roles and BOT not in peer.roles
        try:
            await self.setup.choose(call.field, call.value, workspace=call.workspace, operator=operator)
        except ChoiceError as error:
            raise InvalidParameter(str(error)) from None
        self.zone.tell()
        return await self.settings(peer, Settings())

    async def models(self, peer: Peer, call: Models) -> ModelList:
        with self._visit():
            try:
                return await self.seat.models(busy=self.current is not None)
            except (AgentDied, WorkspaceError) as error:
                raise Misconfigured(str(error)) from None

    async def memory(self, peer: Peer, call: Memory) -> MemoryText:
        return memory_text(self.base / "memory")

    @property
    def bot(self) -> Path:
        return self.daemon.runtime_dir / "bot.sock"

    async def send_file(self, peer: Peer, call: SendFile) -> FileSent:
        try:
            return await self.send(call.path, call.caption)
        except sending.Unsendable as fault:
            raise InvalidParameter(str(fault)) from None

    async def send(self, path: str, caption: str) -> FileSent:
        """Raises what `sending.send` raises."""
        if self._leaving and not self.running:  # a turn that still runs may still send
            raise Busy("the supervisor is about to leave; try again")
        return await sending.send(
            self.bot,
            self.setup.user.name,
            path,
            caption,
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
        """Take no new turn, and go when those that run are over."""
        if not self.retiring:
            logger.info("leaves: %s", reason)
        self.retiring = True
        self._leave_when_free()

    def _changed(self) -> None:
        """A seat does another thing than before."""
        turns = ", ".join(live.id for runner, live in self.running.values() if runner is not self.chat)
        if not self.daemon.stopping.is_set():  # else it says how long they may go on
            self.daemon.status(f"{self.seat.line}; jobs: {turns}" if turns else self.seat.line)
        self._leave_when_free()

    def _leave_when_free(self) -> None:
        if self.retiring and not self.running and not self.visits:
            asyncio.get_running_loop().call_later(LEAVE_DELAY, self.daemon.stopping.set)

    @contextmanager
    def _visit(self) -> Iterator[None]:
        """Something that isn't a turn uses the chat's seat or moves it: no turn of it may begin, and nobody leaves."""
        self.visits += 1
        try:
            with self.daemon.busy():
                yield
        finally:
            self.visits -= 1
            self._leave_when_free()

    async def drain(self) -> None:
        """Told to stop: let the running turns finish, then interrupt them, then end them; their parts are stored."""
        self.zone.close()
        if self.running:
            patience = self.setup.config.kai.drain
            self.daemon.status(f"draining: turn {', '.join(self.running)} has {patience:g} s to finish")
            # the unit's own limit is for the usual drain
            self.daemon.notify(f"EXTEND_TIMEOUT_USEC={int((patience + 4 * INTERRUPT_PATIENCE) * 1e6)}")
        runners: list[Runner] = [self.chat, *self.jobs.values()]
        await asyncio.gather(*(runner.drain(self.setup.config.kai.drain) for runner in runners))
