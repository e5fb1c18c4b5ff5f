"""A running turn and those who follow it.

The turn does not wait for its followers and does not end with them: each gets, at its own pace, what it has not yet
seen, so that a slow or restarted bot costs no memory and loses nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import msgspec

from kai.interfaces import Event, Ran, Streaming
from kai.lib.server import Emit

MOST_TEXT = 128 * 1024
"""Characters of a turn's text that are kept: escaped as JSON they still fit into one message."""
MOST_CALLS = 64
"""Tool calls that are kept as running: an agent that never ends them costs no memory."""
MOST_TOOLS = 32
"""Names of tools that are counted one by one."""


class LiveTurn:
    """What is known of one turn so far.

    With `unattended` nobody sees it, so that nobody can be asked; `streaming` is how its user wants to see it grow.
    """

    def __init__(self, turn: str, *, unattended: bool = False, streaming: Streaming = "edit") -> None:
        self.id, self.streaming = turn, streaming
        self.began, self.since = time.monotonic(), time.time()
        self.text = ""
        self.cut = False
        self.started: Event | None = None
        self.tool: Event | None = None
        self.calls: dict[str, Event] = {}
        self.call_began: dict[str, float] = {}
        self.last_call = time.monotonic()
        self.ran: Counter[str] = Counter()
        self.approvals: dict[str, Event] = {}
        self.questions: list[Event] = []
        self.cost_usd = 0.0
        self.begun: asyncio.Task[None] | None = None
        self.task: asyncio.Task[None] | None = None
        self.unattended = unattended
        self.told = 0
        """The last of the notes that its prompt tells of."""
        self.stop_asked = False
        self.drained = False
        """It is stopped because the supervisor is, and its user has asked for nothing."""
        self.overdue = ""
        self.forced = False
        self.done: Event | None = None
        self.ended = asyncio.Event()
        self.released = asyncio.Event()
        self._changed = asyncio.Event()

    def apply(self, event: Event) -> None:
        """Take in an event of the backend, `done` excepted: the supervisor makes that one, see `finish`."""
        if event.kind == "text":
            self.add_text(event.text)
        elif event.kind == "tool":
            self._tool(event)
        elif event.kind == "approval":
            self._approval(event)
        elif event.kind == "started":
            self.started = msgspec.structs.replace(event, since=self.since, streaming=self.streaming)
        self.cost_usd = max(self.cost_usd, event.cost_usd)
        self._pulse()

    def add_text(self, text: str) -> None:
        room = MOST_TEXT - len(self.text)
        self.cut = self.cut or len(text) > room
        self.text += text[:room]

    def _tool(self, event: Event) -> None:
        """A call began or ended; what is told is the newest one that still runs, and counts of those that ended."""
        self.last_call = time.monotonic()
        if event.running and len(self.calls) < MOST_CALLS:
            self.calls[event.call] = msgspec.structs.replace(event, since=time.time())
            self.call_began[event.call] = self.last_call
        elif not event.running:
            self.calls.pop(event.call, None)
            self.call_began.pop(event.call, None)
            self.ran[event.tool if event.tool in self.ran or len(self.ran) < MOST_TOOLS else "others"] += 1
        newest = next(reversed(self.calls.values()), Event(kind="tool"))
        counts = [Ran(tool, count) for tool, count in self.ran.items()]
        self.tool = msgspec.structs.replace(newest, call="", ran=counts)

    def _approval(self, event: Event) -> None:
        """A question, or how it ended. Both are replayed to whoever follows later."""
        if event.running:
            self.approvals[event.approval] = event
            self.questions.append(event)
        elif self.approvals.pop(event.approval, None):
            self.questions.append(event)

    def finish(self, done: Event) -> None:
        self.done = done
        self.ended.set()
        self._pulse()

    async def grown(self, length: int) -> None:
        """Wait until the text has more than so many characters."""
        while len(self.text) <= length:
            await self._changed.wait()

    def _pulse(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def follow(self, emit: Emit) -> Event:
        """Emit what has happened and happens; returns the done event."""
        sent, questions, started, tool = 0, 0, None, None
        while True:
            changed = self._changed
            if self.started is not started:
                started = self.started
                await emit(started)
            if len(self.text) > sent:
                piece = self.text[sent:]
                await emit(Event(kind="text", offset=sent, text=piece))
                sent += len(piece)
            if self.tool is not tool:
                tool = self.tool
                await emit(tool)
            while questions < len(self.questions):
                questions += 1
                await emit(self.questions[questions - 1])
            if self.done is not None:
                return self.done
            await changed.wait()
