"""One turn, from the durable row to the stored answer: Start once, after any doubt only Join."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import aclosing, suppress

import msgspec

from kai.bot.api import Api
from kai.bot.inbox import Inbox
from kai.bot.message import plain
from kai.bot.outbox import Outbox
from kai.bot.prompt import NotFetched, Prompt
from kai.bot.question import DECISIONS, OVER, question
from kai.bot.sender import Sender
from kai.bot.tables import DEDUP_WINDOW, InboxRow, InboxState, OutboxRow, now
from kai.bot.view import View
from kai.interfaces import Event, Hello, Join, Journal, Part, Start, UnknownTurn
from kai.lib.client import Answers, Client, delays
from kai.lib.store import StoreError
from kai.lib.varlink import Busy, Fault, Internal, Misconfigured, Unavailable
from kai.lib.wire import close_all

TYPING_DELAY, TYPING_PERIOD = 0.02, 4.0
"""Seconds before the first typing action, so that the placeholder goes first, and between two: Telegram shows one for
five."""
TICK, SLOW_TICK, LONG_TURN = 5.0, 30.0, 600.0
"""Seconds between two looks at the clocks of a turn of which nothing is heard, and from when on they are fewer."""
QUIET_TROUBLE = 3.0
"""Seconds for which an agent that can't be reached is not worth a word: a restart takes less."""
QUIET_FETCH = 1.0
"""Seconds for which files are fetched without a word."""
FAULTS_BORNE = 3
"""Internal faults of the supervisor in one turn before the user is told."""
RESET = "the host or the agent's journal was reset; it may have run in part."
logger = logging.getLogger(__name__)


class Stopped(Exception):
    """The user stopped the turn before it began."""


class Turn:
    """Runs one inbox row. `agent` reaches the user's supervisor, whose `journal` is given where it is known."""

    def __init__(
        self,
        row: InboxRow,
        agent: Client,
        api: Api,
        inbox: Inbox,
        outbox: Outbox,
        sender: Sender,
        prompt: Prompt,
        journal: Journal | None = None,
    ) -> None:
        self.row, self.agent, self.api, self.prompt, self.journal = row, agent, api, prompt, journal
        self.inbox, self.outbox, self.sender = inbox, outbox, sender
        self.view = View(row)
        self.placed = False
        self.parts: list[Part] | None = None
        self.descriptors: list[int] = []
        self.stop_asked = asyncio.Event()
        self.troubled_since = 0.0

    async def run(self, *, rejoin: bool) -> Journal | None:
        """See the turn through. `rejoin`: it was running before the bot started, so it may have begun.

        Returns the agent's journal as far as it is known, so that the next turn needs no question.
        """
        self.beside: list[asyncio.Task[None]] = []
        try:
            if self.row.state == "queued":
                self.journal = await self._hello()
                if not await self.inbox.run(self.row, self.journal):
                    return self.journal
            done = await self._follow(rejoin=rejoin)
        finally:
            for task in self.beside:
                task.cancel()
            self._close_files()
            self.sender.finished(self.row.chat, self.row.id)
        self.sender.put(*await self._store(done))
        return self.journal

    async def _store(self, done: Event) -> list[OutboxRow]:
        """The answer goes to disk before it is sent, however long the disk is full; the supervisor keeps it too."""
        state: InboxState = "interrupted" if done.outcome == "interrupted" else "answered"
        try:
            messages, summary = self.view.final(done), self.view.summary(done)
        except Exception:
            logger.exception("the answer can't be rendered; it goes out as it is")
            messages, summary = [plain(done.text or done.error)], None
        for delay in delays():
            try:
                rows = await self.outbox.answer(self.row, state, messages, afresh=summary)
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

    # ---- what is shown ----

    async def _begin_to_show(self, *, trouble: bool = False) -> None:
        if not self.beside:
            self.beside = [asyncio.create_task(self._typing()), asyncio.create_task(self._tick())]
        try:
            await self._placeholder(wanted=trouble or self._streaming == "edit")
        except StoreError as error:  # the answer will say so too, and wait; the turn itself can go on
            logger.error("no placeholder: %s", error)

    async def _placeholder(self, *, wanted: bool) -> None:
        """Have the turn's first message sent, unless it was. One that there is counts, whatever is wanted now."""
        if self.placed:
            return
        placeholder = await self.outbox.placeholder(self.row.id)
        if placeholder is None and wanted:
            placeholder = await self.inbox.placeholder(self.row)
        if placeholder is None:
            return
        self.placed = True
        if placeholder.message is None:
            self.sender.put(placeholder)

    @property
    def _streaming(self) -> str:
        """How the user wants to see the turn grow; "" while that isn't known."""
        return self.journal.streaming if self.journal else ""

    async def _started(self, event: Event) -> None:
        """The supervisor says how the turn is to be shown; that may be news."""
        streaming = event.streaming or "edit"  # supervisors of the version before don't say
        journal = self.journal or Journal(self.row.generation, self.row.boot)
        self.journal = msgspec.structs.replace(journal, streaming=streaming)
        await self._begin_to_show()

    def _show(self) -> None:
        row = self.row
        if self.placed:
            self.sender.show(row.chat, row.id, self.view.growing, thread=row.thread)
        elif self._streaming == "draft":
            self.sender.show(row.chat, row.id, self.view.growing, "draft", thread=row.thread)

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
                    await self.api.typing(self.row.chat, thread=self.row.thread)
            except Exception as error:  # it is decoration, and any error of it may come again in four seconds
                logger.debug("typing: %s", error)
            await asyncio.sleep(max(0.0, TYPING_PERIOD - (now() - began)))

    async def _trouble(self, error: Exception) -> None:
        """Keep waiting, and say what for where it is worth saying."""
        logger.warning("waits for the agent: %s", error)
        self.troubled_since = self.troubled_since or time.monotonic()
        if isinstance(error, Misconfigured) or time.monotonic() - self.troubled_since > QUIET_TROUBLE:
            self.view.trouble = f"⚠ The agent can't start yet; this message waits. {error}"
            await self._begin_to_show(trouble=True)
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

    # ---- what happens ----

    async def _follow(self, *, rejoin: bool) -> Event:
        """Start, and Join after every break, until the answer is there or it is clear that there will be none."""
        begin, waits, faults = not rejoin, delays(), 0
        while True:
            try:
                async with aclosing(await self._open(begin=begin)) as events:
                    await self._begin_to_show()  # not before: the agent is to have its prompt first
                    if not self.placed:
                        self._show()
                    async for event in events:
                        self.troubled_since = 0.0  # to be connected is not yet to be served
                        self._close_files()
                        if event.kind == "done":
                            return event
                        waits = delays()
                        if event.kind == "started":
                            await self._started(event)
                        elif event.kind == "approval":
                            await self._approval(event)
                        self.view.apply(event)
                        self._show()
                raise Unavailable("the agent's supervisor ended the turn without an answer")
            except Stopped:
                return Event(kind="done", outcome="interrupted")
            except NotFetched as error:
                return Event(kind="done", outcome="failed", error=str(error))
            except UnknownTurn as fault:
                forgotten = now() - self.row.arrived > DEDUP_WINDOW  # the journal keeps an ended turn no longer
                if forgotten or fault.message != f"{self.row.generation} {self.row.boot}":
                    return Event(kind="done", outcome="interrupted", reason="cut", text=self.view.text, error=RESET)
                begin = True  # the same journal never heard of it: it did not begin
            except (Busy, Misconfigured) as error:
                await self._trouble(error)
                await self._pause(next(waits), until_stopped=begin)
            except Unavailable as error:
                begin = False
                await self._trouble(error)
                await asyncio.sleep(next(waits))
            except Fault as fault:
                logger.error("%s: %s", fault.NAME, fault)
                faults += 1
                if not isinstance(fault, Internal) or faults > FAULTS_BORNE:
                    return Event(kind="done", outcome="failed", error=str(fault))
                begin = False  # whatever went wrong, the turn may run: only Join tells
                await asyncio.sleep(next(waits))

    async def _open(self, *, begin: bool) -> Answers[Event]:
        """Begin the turn, or join it. Raises Stopped where it is not to begin any more, and NotFetched."""
        if not begin:
            self._close_files()
            return await self.agent.open(Join(turn=self.row.turn))
        if self.parts is None:
            await self._fetch()
        if self.stop_asked.is_set():
            raise Stopped
        assert self.parts is not None
        return await self.agent.open(Start(turn=self.row.turn, prompt=self.parts), descriptors=self.descriptors)

    async def _fetch(self) -> None:
        """Have the prompt with its files, or raise Stopped as soon as the user wants neither."""
        if not (self.row.content or self.row.bundle) and self.row.target is None:
            self.parts = [Part(kind="text", text=self.row.text)]
            return
        fetching = asyncio.ensure_future(self.prompt.parts(self.row))
        stopped = asyncio.ensure_future(self.stop_asked.wait())
        try:
            await asyncio.wait({fetching, stopped}, timeout=QUIET_FETCH, return_when=asyncio.FIRST_COMPLETED)
            if not fetching.done() and not stopped.done():
                self.view.fetching = True
                await self._begin_to_show()
                self._show()
                await asyncio.wait({fetching, stopped}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.view.fetching = False
            stopped.cancel()
            fetching.cancel()
            await asyncio.wait({fetching})
            if not fetching.cancelled() and fetching.exception() is None:
                self.parts, self.descriptors = fetching.result()
            self._show()
        if fetching.cancelled():
            raise Stopped
        fetching.result()

    def _close_files(self) -> None:
        """The supervisor has them now, or needs them no more."""
        if self.descriptors:
            close_all(self.descriptors)
            self.descriptors, self.parts = [], None

    async def _pause(self, duration: float, *, until_stopped: bool) -> None:
        if not until_stopped:
            await asyncio.sleep(duration)
            return
        with suppress(TimeoutError):
            await asyncio.wait_for(self.stop_asked.wait(), duration)
