"""A running turn and those who follow it.

The turn does not wait for its followers and does not end with them: each gets, at its own pace, what it has not yet
seen, so that a slow or restarted bot costs no memory and loses nothing.
"""

from __future__ import annotations

import asyncio
import time

from kai.interfaces import Event
from kai.lib.server import Emit

MOST_TEXT = 128 * 1024
"""Characters of a turn's text that are kept: escaped as JSON they still fit into one message."""


class LiveTurn:
    """What is known of one turn so far."""

    def __init__(self, turn: str) -> None:
        self.id = turn
        self.began = time.time()
        self.text = ""
        self.cut = False
        self.started: Event | None = None
        self.tool: Event | None = None
        self.cost_usd = 0.0
        self.stop_asked = False
        self.done: Event | None = None
        self.ended = asyncio.Event()
        self._changed = asyncio.Event()

    def apply(self, event: Event) -> None:
        """Take in an event of the backend, `done` excepted: the supervisor makes that one, see `finish`."""
        if event.kind == "text":
            self.add_text(event.text)
        elif event.kind == "tool":
            self.tool = event
        elif event.kind == "started":
            self.started = event
        self.cost_usd = max(self.cost_usd, event.cost_usd)
        self._pulse()

    def add_text(self, text: str) -> None:
        room = MOST_TEXT - len(self.text)
        self.cut = self.cut or len(text) > room
        self.text += text[:room]

    def finish(self, done: Event) -> None:
        self.done = done
        self.ended.set()
        self._pulse()

    def _pulse(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def follow(self, emit: Emit) -> Event:
        """Emit what has happened and happens; returns the done event."""
        sent, started, tool = 0, None, None
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
            if self.done is not None:
                return self.done
            await changed.wait()
