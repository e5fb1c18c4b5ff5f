"""Each user's turns, one at a time in order of arrival; users never wait for each other."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path

from kai.bot.api import Api
from kai.bot.inbox import RESTART, Inbox
from kai.bot.message import plain
from kai.bot.outbox import Outbox
from kai.bot.places import Places
from kai.bot.prompt import Prompt
from kai.bot.sender import Sender
from kai.bot.tables import InboxRow
from kai.bot.turn import Turn
from kai.interfaces import Journal
from kai.lib import log
from kai.lib.client import Client, delays
from kai.lib.store import StoreError

logger = logging.getLogger(__name__)
FAULTS_BORNE = 3
"""How often an unforeseen fault is tried again before the user is told."""
Command = Callable[[InboxRow], Awaitable[None]]


class Lane:
    """One user's queue. Its task lives for as long as something waits."""

    def __init__(self, lanes: Lanes, user: str) -> None:
        self.lanes, self.user = lanes, user
        self.agent = Client(lanes.agents / f"{user}.sock")
        self.journal: Journal | None = None
        self.waiting: deque[InboxRow] = deque()
        self.running: InboxRow | None = None
        self.running_task: asyncio.Task[None] | None = None
        self.turn: Turn | None = None
        self.interruptible: InboxRow | None = None
        """The command that a /stop means before any turn: while it is worked on, none runs."""
        self.stopped: set[int] = set()
        self.task: asyncio.Task[None] | None = None

    def put(self, row: InboxRow, *, rejoin: bool = False) -> None:
        if rejoin:
            self.lanes.rejoin.add(row.id)
        self.waiting.append(row)
        if self.task is None:
            self.task = asyncio.create_task(self._work())
        else:
            self.lanes.places.waits(row, len(self.waiting))

    def changed(self, part: InboxRow) -> None:
        """A waiting message was edited, or another part of its bundle came."""
        if part.state == "replaced" and (row := self.find(row_id=part.target)):
            row.text, row.content = part.text, part.content
        elif part.state == "grouped" and (row := self.find(row_id=part.leader)):
            row.settles = part.settles

    async def _work(self) -> None:
        try:
            while self.waiting:
                row = self.waiting.popleft()
                if row.state not in ("queued", "running"):
                    continue
                self.running = row
                self.lanes.places.moves(self.user, row, self.waiting)
                with log.fields(KAI_USER=self.user, KAI_TURN=row.turn, KAI_UPDATE=str(row.update_id)):
                    self.running_task = asyncio.create_task(self._one(row))
                    await asyncio.wait({self.running_task})
                self.running = self.running_task = self.turn = None
                self.stopped.discard(row.id)
        finally:
            self.task = None
            self.lanes.changed()

    async def _one(self, row: InboxRow) -> None:
        """See one row through. A fault is tried again in order: Start and Join make that safe at any point."""
        rejoin = row.id in self.lanes.rejoin
        for number, delay in enumerate(delays()):
            try:
                await self._attempt(row, rejoin=rejoin or (number > 0 and row.state == "running"))
            except asyncio.CancelledError:
                return
            except StoreError as error:
                logger.error("%s; tried again", error)
            except Exception:
                logger.exception("a fault in Kai")
                if number >= FAULTS_BORNE:
                    try:
                        await self._give_up(row)
                    except StoreError as error:
                        logger.error("%s; tried again", error)
                    else:
                        return
            else:
                self.lanes.rejoin.discard(row.id)
                return
            await asyncio.sleep(delay)

    async def _attempt(self, row: InboxRow, *, rejoin: bool) -> None:
        lanes = self.lanes
        await settled(row)
        if row.kind == "command":
            if row.state == "running" or await lanes.inbox.begin(row):
                await lanes.command(row)
            return
        self.turn = Turn(
            row, self.agent, lanes.api, lanes.inbox, lanes.outbox, lanes.sender, lanes.prompt, self.journal
        )
        if row.id in self.stopped:
            self.turn.stop_asked.set()
        self.journal = await self.turn.run(rejoin=rejoin) or self.journal

    async def _give_up(self, row: InboxRow) -> None:
        note = plain("⚠ A fault in Kai kept this message from being worked on; the journal says more.")
        lanes = self.lanes
        if row.kind == "command":
            lanes.sender.put(*await lanes.outbox.reply(row, [note]))
        else:
            lanes.sender.put(*await lanes.outbox.answer(row, "interrupted", [note]))

    def find(self, *, row_id: int | None = None, turn: str = "") -> InboxRow | None:
        """What runs or waits in this lane under this id."""
        for row in (self.running, *self.waiting):
            if row and (row.id == row_id or row.turn == turn):
                return row
        return None

    def ask_to_stop(self, row: InboxRow) -> None:
        """Whatever the supervisor says: a turn that has not begun must not begin any more."""
        self.stopped.add(row.id)
        if self.turn and self.turn.row is row:
            self.turn.stop_asked.set()


class Lanes:
    """All users' queues. `agents` is the directory of the supervisors' sockets; those of other units are beside it."""

    def __init__(
        self,
        api: Api,
        inbox: Inbox,
        outbox: Outbox,
        sender: Sender,
        places: Places,
        agents: Path,
        prompt: Prompt,
        changed: Callable[[], None],
    ) -> None:
        self.api, self.inbox, self.outbox, self.sender, self.places = api, inbox, outbox, sender, places
        self.agents, self.prompt, self.changed = agents, prompt, changed
        self.scheduler = Client(agents.parent / "scheduler.sock")
        self.intake = Client(agents.parent / "intake.sock")
        self.command: Command = _no_command
        self.rejoin: set[int] = set()
        self.since = time.time()
        self.users: dict[str, Lane] = {}

    def of(self, user: str) -> Lane:
        if user not in self.users:
            self.users[user] = Lane(self, user)
        return self.users[user]

    def journal(self, user: str) -> Journal | None:
        """The journal of a user whose agent was asked before and whose lane is free: his turn may run at once."""
        lane = self.of(user)
        return lane.journal if lane.task is None else None

    async def drop(self, user: str, *, row: InboxRow | None = None, before: int | None = None) -> int:
        """Drop one waiting turn, or all that wait, or those that arrived before a row; returns how many."""
        lane = self.of(user)

        def meant(one: InboxRow) -> bool:
            return one is row if row else before is None or one.id < before

        rows = [one for one in lane.waiting if meant(one)]
        if lane.running and lane.running.state == "queued" and meant(lane.running):
            rows.append(lane.running)
        dropped = await self.inbox.drop(rows)
        for one in rows:
            if one.id in dropped:
                one.state = "dropped"
                if one is lane.running and lane.running_task:
                    lane.running_task.cancel()
                    if await self.outbox.placeholder(one.id):  # it showed what it waited for
                        dropped_note = [plain("⏹ Dropped before it began.")]
                        self.sender.put(*await self.outbox.answer(one, "dropped", dropped_note))
        self.places.moves(user, lane.running, lane.waiting)
        return len(dropped)

    def let_go(self, user: str) -> None:
        """Work no more for a user who is gone; his rows are dead letters on disk."""
        lane = self.users.pop(user, None)
        if lane:
            lane.waiting.clear()
            for task in (lane.task, lane.running_task):
                if task:
                    task.cancel()
            self.places.moves(user, None, ())

    def counts(self) -> tuple[int, int]:
        """Turns that run and that wait."""
        running = sum(lane.running is not None for lane in self.users.values())
        return running, sum(len(lane.waiting) for lane in self.users.values())

    async def close(self) -> None:
        """Let go of all turns; they go on at their supervisors and are joined after the next start."""
        tasks = [t for lane in self.users.values() for t in (lane.task, lane.running_task) if t]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def settled(row: InboxRow) -> None:
    """Wait for the rest of a bundle; each part that comes moves the moment on. A clock that was set back doesn't."""
    left = row.settles - time.time()
    if row.state == "queued" and 0 < left <= RESTART:
        await asyncio.sleep(left)
        await settled(row)


async def _no_command(row: InboxRow) -> None:
    raise AssertionError(f"no handler for {row.text}")
