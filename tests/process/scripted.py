"""A supervisor that does as a test says, on the socket of a running set: what commands ask it can be seen."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from kai.interfaces import (
    AgentState,
    Event,
    Hello,
    Join,
    Journal,
    Memory,
    MemoryText,
    Model,
    ModelList,
    Models,
    NewSession,
    Place,
    SessionEnded,
    Set,
    Setting,
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
from kai.lib.peers import Peer, Peers
from kai.lib.server import Emit, Server
from kai.lib.varlink import Busy, InvalidParameter

S = TypeVar("S", bound="Supervisor")


class Supervisor:
    """One user's. A turn whose text is `wait` lasts until it is stopped; `calls` are those that change something.

    `ending` is how many seconds the end of a session takes, `deaf` how many stops come before what they mean.
    """

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.turns: dict[str, str] = {}
        self.stopped: dict[str, asyncio.Event] = {}
        self.ending = 0.0
        self.deaf = 0
        self.refuses = ""
        self.overruled = self.busy = False
        self.memory = MemoryText(path="/state/memory/MEMORY.md", text="# Memory\n\n- likes **tea**\n")
        self.models = [Model("opus", "Opus", "for hard work"), Model("haiku", "", "quick")]
        self.values = {
            "model": ("opus", "kai.yaml", []),
            "budget": ("10.0", "kai.yaml", []),
            "approvals": ("auto", "users.yaml", ["auto", "ask"]),
            "streaming": ("edit", "built-in", ["edit", "draft", "off"]),
            "timezone": ("Pacific/Kiritimati", "your choice", []),
        }
        self.place = "home"
        self.places = ["home", "website", "notes"]

    def handlers(self) -> Any:
        return {
            Hello: self.hello, Start: self.start, Join: self.join, Stop: self.stop, NewSession: self.new_session,
            Settings: self.settings, Set: self.set, Models: self.list_models, Workspaces: self.workspaces,
            SwitchWorkspace: self.switch, Memory: self.read, State: self.state,
        }  # fmt: skip

    async def hello(self, peer: Peer, call: Hello) -> Journal:
        return Journal(generation="g", boot="b")

    async def start(self, peer: Peer, call: Start, descriptors: list[int], emit: Emit) -> Event:
        self.turns[call.turn] = text = call.prompt[0].text
        await emit(Event(kind="started", session="s"))
        if text != "wait":
            return Event(kind="done", outcome="ok", text=f"did {text}")
        await self.stopped.setdefault(call.turn, asyncio.Event()).wait()
        return Event(kind="done", outcome="interrupted", text="a part")

    async def join(self, peer: Peer, call: Join, emit: Emit) -> Event:
        raise UnknownTurn("g b")

    async def stop(self, peer: Peer, call: Stop) -> Stopped:
        self.calls.append(call)
        if self.deaf:
            self.deaf -= 1
            return Stopped(stopping=False)
        self.stopped.setdefault(call.turn, asyncio.Event()).set()
        return Stopped(stopping=True)

    async def new_session(self, peer: Peer, call: NewSession) -> SessionEnded:
        if self.busy:
            raise Busy("a turn is running")
        self.calls.append(call)
        self.busy = True
        cut = self.stopped.setdefault(call.turn, asyncio.Event())
        try:
            await asyncio.wait_for(cut.wait(), self.ending)
        except TimeoutError:
            return SessionEnded(saved=len(self.calls) == 1)
        finally:
            self.busy = False
        return SessionEnded(note="It was stopped.")

    async def settings(self, peer: Peer, call: Settings) -> SettingsInForce:
        found = [Setting(field, value, source, choices) for field, (value, source, choices) in self.values.items()]
        return SettingsInForce(workspace=self.place, settings=found, ceiling_usd=20.0)

    async def set(self, peer: Peer, call: Set) -> SettingsInForce:
        self.calls.append(call)
        if self.refuses:
            raise InvalidParameter(self.refuses)
        for field in [] if self.overruled else [call.field] if call.field else list(self.values):
            source = "your choice for this workspace" if call.workspace else "your choice"
            value, choices = call.value or "reset", self.values[field][2]
            self.values[field] = (value, source if call.value else "built-in", choices)
        return await self.settings(peer, Settings())

    async def list_models(self, peer: Peer, call: Models) -> ModelList:
        value, source, _ = self.values["model"]
        return ModelList(current=value, source=source, models=self.models)

    async def workspaces(self, peer: Peer, call: Workspaces) -> WorkspaceList:
        places = [Place(name, f"/base/{name}") for name in self.places]
        return WorkspaceList(current=Place(self.place, f"/base/{self.place}"), places=places, base="/base")

    async def switch(self, peer: Peer, call: SwitchWorkspace) -> Switched:
        self.calls.append(call)
        if self.refuses:
            raise InvalidParameter(self.refuses)
        self.place = call.name
        return Switched(Place(call.name, f"/base/{call.name}"), resumed=not call.create, git=call.create)

    async def read(self, peer: Peer, call: Memory) -> MemoryText:
        return self.memory

    async def state(self, peer: Peer, call: State) -> AgentState:
        return AgentState(
            user="alice", state="ready", backend="claude", model="opus", session="5e55-10", turn="", turns=7,
            cost_usd=0.25, since=1_700_000_000.0, workspace=self.place, budget_usd=10.0, cost_today_usd=1.5,
            cost_month_usd=20.0, up_since=1_700_000_000.0,
        )  # fmt: skip


@asynccontextmanager
async def supervisor(path: Path) -> AsyncIterator[Supervisor]:
    """Takes the place of the supervisor whose socket this is."""
    async with serving(path, Supervisor()) as made:
        yield made


@asynccontextmanager
async def serving(path: Path, made: S) -> AsyncIterator[S]:
    """The same with a supervisor of one's own."""
    path.unlink()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.fspath(path))
        listening.listen(128)
        listening.setblocking(False)
        daemon = Daemon("test", {"front": listening}, instance="alice", one_uid=True)
        server = Server(daemon, "front", Peers(one_uid=True), made.handlers())
        yield made
        for let_go in daemon.on_idle:
            let_go()
        del server
