"""One turn, from the durable row to the stored answer: Start once, after any doubt only Join."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import aclosing, suppress

from kai.bot.api import Api
from kai.bot.inbox import Inbox
from kai.bot.message import plain
from kai.bot.outbox import Outbox
from kai.bot.question import DECISIONS, OVER, question
from kai.bot.sender import Sender
from kai.bot.tables import InboxRow, InboxState, OutboxRow, now
from kai.bot.view import View
from kai.interfaces import Event, Hello, Join, Journal, Part, Start, UnknownTurn
from kai.lib.client import Client, delays
from kai.lib.store import StoreError
from kai.lib.varlink import Busy, Fault, Internal, Misconfigured, Unavailable

TYPING_DELAY, TYPING_PERIOD = 0.02, 4.0
"""Seconds before the first typing action, so that the placeholder goes first, and between two: Telegram shows one for
five."""
TICK, SLOW_TICK, LONG_TURN = 5.0, 30.0, 600.0
"""Seconds between two looks at the clocks of a turn of which nothing is heard, and from when on they are fewer."""
QUIET_TROUBLE = 3.0
"""Seconds for which an agent that can't be reached is not worth a word: a restart takes less."""
FAULTS_BORNE = 3
"""Internal faults of the supervisor in one turn before the user is told."""
logger = logging.getLogger(__name__)


class Turn:
    """Runs one inbox row. `agent` reaches the user's supervisor."""

    def __init__(self, row: InboxRow, agent: Client, api: Api, inbox: Inbox, outbox: Outbox, sender: Sender) -> None:
        self.row, self.agent, self.api = row, agent, api
        self.inbox, self.outbox, self.sender = inbox, outbox, sender
        self.view = View(row)
        self.placed = False
        self.stop_asked = asyncio.Event()
        self.troubled_since = 0.0

    async def run(self, *, rejoin: bool) -> Journal | None:
        """See the turn through. `rejoin`: it was running before the bot started, so it may have begun.

        Returns the agent's journal, where it was asked for, so that the next turn needs no question.
        """
        self.beside: list[asyncio.Task[None]] = []
        journal = None
        try:
            if self.row.state == "queued":
                journal = await self._hello()
                if not await self.inbox.run(self.row, journal):
                    return journal
            done = await self._follow(rejoin=rejoin)
        finally:
            for task in self.beside:
                task.cancel()
            self.sender.finished(self.row.chat, self.row.id)
        self.sender.put(*await self._store(done))
        return journal

    async def _store(self, done: Event) -> list[OutboxRow]:
        """The answer goes to disk before it is sent, however long the disk is full; the supervisor keeps it too."""
        state: InboxState = "interrupted" if done.outcome == "interrupted" else "answered"
        try:
            messages = self.view.final(done)
        except Exception:
            logger.exception("the answer can't be rendered; it goes out as it is")
            messages = [plain(done.text or done.error)]
        for delay in delays():
            try:
                rows = await self.outbox.answer(self.row, state, messages)
            except StoreError as error:
                logger.error("the answer waits: %s", error)
                await asyncio.sleep(delay)
            else:
                self.row.state = state
                return rows
        raise AssertionError("delays never end")

    async def _hello(self) -> Journal:
        """The journal is known before the row runs, or it could not be told whether the turn began."""
        for delay in delays():
            try:
                return await self.agent.call(Hello())
            except (Unavailable, Busy, Misconfigured) as error:
                await self._trouble(error)
                await asyncio.sleep(delay)
        raise AssertionError("delays never end")

    async def _begin_to_show(self) -> None:
        if not self.beside:
            self.beside = [asyncio.create_task(self._typing()), asyncio.create_task(self._tick())]
        try:
            await self._placeholder()
        except StoreError as error:  # the answer will say so too, and wait; the turn itself can go on
            logger.error("no placeholder: %s", error)

    async def _placeholder(self) -> None:
        """Have the turn's first message sent, unless it was."""
        if self.placed:
            return
        placeholder = await self.outbox.placeholder(self.row.id) or await self.inbox.placeholder(self.row)
        self.placed = True
        if placeholder.message is None:
            self.sender.put(placeholder)

    async def _follow(self, *, rejoin: bool) -> Event:
        """Start, and Join after every break, until the answer is there or it is clear that there will be none."""
        start = Start(turn=self.row.turn, prompt=[Part(kind="text", text=self.row.text)])
        join = Join(turn=self.row.turn)
        call: Start | Join = join if rejoin else start
        waits, faults = delays(), 0
        while True:
            if call is start and self.stop_asked.is_set():
                return Event(kind="done", outcome="interrupted")
            try:
                async with aclosing(await self.agent.open(call)) as events:
                    await self._begin_to_show()  # not before: the agent is to have its prompt first
                    self.troubled_since = 0.0
                    async for event in events:
                        if event.kind == "done":
                            return event
                        waits = delays()
                        if event.kind == "approval":
                            await self._approval(event)
                        self.view.apply(event)
                        self._show()
                raise Unavailable("the agent's supervisor ended the turn without an answer")
            except UnknownTurn as fault:
                if fault.message != f"{self.row.generation} {self.row.boot}":
                    return Event(
                        kind="done",
                        outcome="interrupted",
                        text=self.view.text,
                        error="The host or the agent's journal was reset in this turn; it may have run in part. "
                        "Send it again if you want it repeated.",
                    )
                call = start  # the same journal never heard of it: it did not begin
            except (Busy, Misconfigured) as error:
                await self._trouble(error)
                await self._pause(next(waits), until_stopped=call is start)
            except Unavailable as error:
                call = join
                await self._trouble(error)
                await asyncio.sleep(next(waits))
            except Fault as fault:
                logger.error("%s: %s", fault.NAME, fault)
                faults += 1
                if not isinstance(fault, Internal) or faults > FAULTS_BORNE:
                    return Event(kind="done", outcome="failed", error=str(fault))
                call = join  # whatever went wrong, the turn may run: only Join tells
                await asyncio.sleep(next(waits))

    async def _pause(self, duration: float, *, until_stopped: bool) -> None:
        if not until_stopped:
            await asyncio.sleep(duration)
            return
        with suppress(TimeoutError):
            await asyncio.wait_for(self.stop_asked.wait(), duration)

    async def _trouble(self, error: Exception) -> None:
        """Keep waiting, and say what for where it is worth saying."""
        logger.warning("waits for the agent: %s", error)
        self.troubled_since = self.troubled_since or time.monotonic()
        if isinstance(error, Misconfigured) or time.monotonic() - self.troubled_since > QUIET_TROUBLE:
            self.view.trouble = f"⚠ The agent can't start yet; this message waits. {error}"
            await self._begin_to_show()
            self._show()

    async def _approval(self, event: Event) -> None:
        """A question is a message of its own; how it ended goes into that message. Replayed, both are known already."""
        if event.running:
            asked = question(self.row.turn, event)
            self.sender.put(*await self.outbox.ask(self.row, event.approval, asked))
            return
        known = await self.outbox.question(self.row.user, self.row.turn, event.approval)
        if known:
            self.sender.put(*await self.outbox.decide(known, DECISIONS.get(event.answer, OVER)))

    def _show(self) -> None:
        self.sender.show(self.row.chat, self.row.id, self.view.growing)

    async def _tick(self) -> None:
        """The clock of a long command goes on although no event comes."""
        while True:
            await asyncio.sleep(TICK if self.view.elapsed < LONG_TURN else SLOW_TICK)
            self._show()

    async def _typing(self) -> None:
        await asyncio.sleep(TYPING_DELAY)
        while True:
            began = now()
            try:
                if not self.view.questions:  # then it is the user's turn, not ours
                    await self.api.typing(self.row.chat)
            except Exception as error:  # it is decoration, and any error of it may come again in four seconds
                logger.debug("typing: %s", error)
            await asyncio.sleep(max(0.0, TYPING_PERIOD - (now() - began)))
