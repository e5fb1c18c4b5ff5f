"""What goes to one chat: rows of the outbox one after another, and growing text where nothing else waits.

Growing text is not in the outbox: only its newest state counts, and it yields to everything else. Telegram's flood
limits (`retry_after`) hold a chat up and cost no message. Messages have other limits than edits, and each goes on while
the other has to wait: a flood of messages must not hide that a turn was stopped. A file may take minutes and goes up
beside the rest; only further messages wait for it, so that they keep their order.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Literal

from telegram.error import BadRequest, RetryAfter, TelegramError

from kai.bot.api import seconds, verdict
from kai.bot.message import Body, decode
from kai.bot.remedy import Remedies, is_of_entities
from kai.bot.tables import OutboxRow, OutboxState
from kai.lib import log
from kai.lib.client import delays
from kai.lib.store import StoreError

if TYPE_CHECKING:
    from kai.bot.sender import Sender

EDIT_PERIOD, LONGEST_PERIOD = 1.5, 12.0
"""Seconds between two edits of a growing message in one chat (S3), and what flood limits make of it at the most."""
BACK_OFF, RELAXATION, FORGIVEN = 3.0, 0.99, 60.0
"""By what the period is multiplied when Telegram asks to wait, and at each edit that it takes; after so many seconds
without an edit all is forgotten. So a long turn's edits come just below the limit, not at it, and there is room for
the one that matters: with 20 edits a minute the answer, or "stopped", has to wait in one case of a hundred."""
RENEWAL = 20.0
"""Seconds after which a draft that hasn't changed is shown again: Telegram takes it away after 30."""
FAULT_PAUSE, FAULTS_BORNE = 1.0, 3
_PRIORITY = {"control": 0, "placeholder": 1, "final": 1, "message": 1}
Way = Literal["send", "edit"]
Mode = Literal["edit", "draft"]
Entry = tuple[int, int, OutboxRow]
logger = logging.getLogger(__name__)


class Growing:
    """A text that grows: where it is shown, whether it may have changed, and when it fades, in the loop's time."""

    def __init__(self) -> None:
        self.body: Callable[[], Body] = lambda: Body("")
        self.mode: Mode = "edit"
        self.thread: int | None = None
        self.changed = False
        self.fades = math.inf

    @property
    def due(self) -> float:
        """From when on it is to be shown."""
        return 0.0 if self.changed else self.fades


class Chat:
    """One chat's sends, in order of priority and age. Its task lives for as long as there is something to do."""

    def __init__(self, sender: Sender, chat: int) -> None:
        self.sender, self.api, self.outbox, self.id = sender, sender.api, sender.outbox, chat
        self.rows: list[Entry] = []
        self.known: set[int] = set()
        self.sending: set[int] = set()
        self.remedies = Remedies()
        self.faults: Counter[int] = Counter()
        self.upload: OutboxRow | None = None
        self.growing: dict[int, Growing] = {}
        self.shown: dict[int, Body] = {}
        self.period, self.next_edit = EDIT_PERIOD, 0.0
        self.not_before: dict[Way, float] = {"send": 0.0, "edit": 0.0}
        self.waits = {way: delays() for way in self.not_before}
        self.news = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    @property
    def closed(self) -> bool:
        return self.id in self.api.gates.closed

    def put(self, row: OutboxRow) -> None:
        """Queue a row; one that is queued or being sent already is left alone."""
        if row.id not in self.known:
            self.known.add(row.id)
            bisect.insort(self.rows, (_PRIORITY[row.kind], row.id, row))
            self.wake()

    def show(self, inbox: int, growing: Callable[[], Body], mode: Mode, thread: int | None) -> None:
        one = self.growing.setdefault(inbox, Growing())
        one.body, one.mode, one.thread, one.changed = growing, mode, thread, True
        self.wake()

    def finished(self, inbox: int) -> None:
        if self.growing.pop(inbox, None):
            self.news.set()

    def withdraw(self, row_id: int) -> OutboxRow | None:
        for entry in self.rows:
            if entry[1] == row_id and row_id not in self.sending:
                self._leave(entry)
                return entry[2]
        return None

    def wake(self) -> None:
        self.news.set()
        if self.task is None and not self.closed:
            self.task = asyncio.ensure_future(self._work())

    async def _work(self) -> None:
        try:
            while (self.rows or self._due() < math.inf) and not self.sender.closing and not self.closed:
                self.news.clear()
                try:
                    await self._step()
                except Exception:  # whatever it is, it must not stop what comes after it
                    logger.exception("a message of this chat could not be sent now; it is tried again")
                    await asyncio.sleep(FAULT_PAUSE)
        finally:
            self.task = None

    async def _step(self) -> None:
        """Send the first row that may go now, else show what has grown, else wait until one of them may."""
        time = asyncio.get_running_loop().time()
        moments = []
        for entry in self._in_order():
            moments.append(self.not_before[self._way(entry[2])])
            if moments[-1] <= time:
                if _has_file(entry[2]):
                    self.upload = entry[2]
                    self.sender.spawn(self._upload(entry))
                else:
                    await self._try(entry)
                return
        due = self._due()
        if due < math.inf:
            moments.append(max(due, self.next_edit, self.not_before["edit"]))
            if moments[-1] <= time:
                await self._show_one()
                return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.news.wait(), min(moments) - time if moments else None)

    def _in_order(self) -> Iterator[Entry]:
        """Rows that may go as far as order is concerned: an answer that is an edit need not wait for messages."""
        urgent = (entry for entry in self.rows if entry[0] == 0)
        answers = (entry for entry in self.rows if entry[2].kind == "final" and self._way(entry[2]) == "edit")
        others = (entry for entry in self.rows if entry[0] != 0)
        for entry in chain(urgent, answers, others):
            held = self.upload and entry[2].kind == "message" and entry[2].edits is None
            early = entry[2].edits in self.known  # the message that it changes isn't there yet
            if not held and not early and entry[1] not in self.sending:
                yield entry

    async def _upload(self, entry: Entry) -> None:
        try:
            await self._try(entry)
        except Exception:
            logger.exception("a file could not be sent now; it is tried again")
            self._pause("send", FAULT_PAUSE)
        finally:
            self.upload = None
            self.news.set()

    async def _try(self, entry: Entry) -> None:
        row = entry[2]
        self.sending.add(row.id)
        try:
            with log.fields(KAI_USER=row.user):
                if await self._sent(row):
                    self._leave(entry)
        finally:
            self.sending.discard(row.id)

    async def _sent(self, row: OutboxRow) -> bool:
        """`_send`. A fault that comes again and again is the end of its row, not of all that wait behind it."""
        try:
            ended = await self._send(row)
        except Exception as error:
            self.faults[row.id] += 1
            if self.faults[row.id] <= FAULTS_BORNE:
                raise
            logger.exception("a message can't be sent; it is kept")
            state: OutboxState = "unknown" if row.state == "sending" else "dead"
            self.sender.spawn(self.sender.mark(row, state, error=f"a fault in Kai: {type(error).__name__}"))
            ended = True
        if ended:
            self.faults.pop(row.id, None)
        return ended

    def _leave(self, entry: Entry) -> None:
        row = entry[2]
        self.rows.remove(entry)
        self.known.discard(row.id)
        self.remedies.forget(row)
        if row.kind in ("final", "message") and row.inbox is not None and not self._answers(row.inbox):
            self.sender.placeholders.pop(row.inbox, None)
            self.shown.pop(row.inbox, None)

    def _answers(self, inbox: int) -> bool:
        """Whether an answer still waits to go into this turn's placeholder."""
        return any(row.kind == "final" and row.inbox == inbox for _, _, row in self.rows)

    def _way(self, row: OutboxRow) -> Way:
        """What a row needs of Telegram, as far as is known before it is tried."""
        edits = row.edits is not None or (row.kind == "final" and row.inbox in self.sender.placeholders)
        return "edit" if edits else "send"

    def _pause(self, way: Way, duration: float) -> None:
        self.not_before[way] = asyncio.get_running_loop().time() + duration

    # ---- growing text ----

    def _due(self) -> float:
        """From when on something that has grown is to be shown."""
        return min((one.due for one in self.growing.values()), default=math.inf)

    async def _show_one(self) -> None:
        """Show what has grown, by an edit or as a draft, unless that would change nothing."""
        time = asyncio.get_running_loop().time()
        inbox, growing = next(item for item in self.growing.items() if item[1].due <= time)
        growing.changed = False
        message = await self.sender.placeholder(inbox) if growing.mode == "edit" else None
        if inbox not in self.growing or (growing.mode == "edit" and message is None):
            return
        body = growing.body()
        if body == self.shown.get(inbox) and growing.fades > time:
            return
        if growing.mode == "draft":
            growing.fades = time + RENEWAL
        if time - self.next_edit > FORGIVEN:
            self.period = EDIT_PERIOD
        self.next_edit = time + self.period
        try:
            if message is None:
                await self.api.draft(self.id, inbox, body, thread=growing.thread)
            else:
                await self.api.edit(self.id, message, body)
        except RetryAfter as error:
            growing.changed = True
            self._flooded("edit", error)
            self.period = min(BACK_OFF * self.period, LONGEST_PERIOD)
            self.next_edit = self.not_before["edit"] + self.period
        except TelegramError as error:
            if verdict(error) == "closed":
                growing.changed = True
                await self.sender.block(self.id, None, error)
            else:
                self.sender.sparing.log("growing", logging.INFO, "growing text not shown: %s", error)
        else:
            if inbox in self.growing:
                self.shown[inbox] = body
            self.period = max(EDIT_PERIOD, RELAXATION * self.period)

    # ---- rows ----

    async def _send(self, row: OutboxRow) -> bool:
        """Try a row once; True when it reached a final state. Else it waits, and what can go meanwhile goes."""
        body = self.remedies.body(row, decode(row.body))
        try:
            message = await self._attempt(row, body)
        except RetryAfter as error:
            await self._take_back(row)
            self._flooded(self._way(row), error)
            return False
        except TelegramError as error:
            return await self._failed(row, body, error)
        except FileNotFoundError as error:
            logger.error("the file of a message is gone: %s", error)
            self.sender.spawn(self.sender.mark(row, "dead", error="its file is gone from the spool"))
            return True
        except (StoreError, OSError) as error:
            await self._take_back(row)
            self._later(row, error)
            return False
        way = self._way(row)
        self.waits[way] = delays()
        if self.sender.sparing.over("later"):
            logger.info("messages go out again")
        if row.kind == "placeholder" or body.buttons:
            # Its edit may come next. A message that shows an answer and of which a crash leaves no trace would be
            # followed by another one with the same answer.
            await self.sender.mark(row, "sent", message=message)
        else:  # the next message of the chat need not wait for the disk
            self.sender.spawn(self.sender.mark(row, "sent", message=message))
        if row.kind == "placeholder" and row.inbox is not None and message:
            self.sender.placeholders[row.inbox] = message
            self.shown[row.inbox] = body
        return True

    def _flooded(self, way: Way, error: RetryAfter) -> None:
        self.sender.sparing.log("flood", logging.WARNING, "Telegram asks to wait %s s", seconds(error))
        self._pause(way, seconds(error))

    def _later(self, row: OutboxRow, error: Exception) -> None:
        level = logging.INFO if isinstance(error, TelegramError) else logging.ERROR
        self.sender.sparing.log("later", level, "not sent yet: %s", error)
        way = self._way(row)
        self._pause(way, next(self.waits[way]))

    async def _failed(self, row: OutboxRow, body: Body, error: TelegramError) -> bool:
        """Whether this error is the end of the row."""
        outcome = verdict(error)
        if outcome == "closed":
            await self.sender.block(self.id, row, error)
            return False
        if outcome == "refused":
            remedy = self.remedies.find(row, body, error)
            if remedy:
                logger.warning("Telegram refused a message: %s; it is sent %s", error, remedy)
                await self._take_back(row)
                return False
            logger.error("Telegram refused a message: %s; it is kept as a dead letter", error)
            self.sender.spawn(self.sender.mark(row, "dead", error=error.message))
            return True
        if outcome == "unknown" and row.state == "sending":
            logger.warning("a part of an answer may or may not have arrived: %s", error)
            self.sender.spawn(self.sender.mark(row, "unknown", error=error.message))
            return True
        await self._take_back(row)
        self._later(row, error)
        return False

    async def _take_back(self, row: OutboxRow) -> None:
        """It surely did not arrive: a crash from now on leaves no doubt behind."""
        if row.state == "sending":
            await self.sender.mark(row, "stored")

    async def _attempt(self, row: OutboxRow, body: Body) -> int | None:
        message = await self._edited(row) if body.file is None else None
        if message is not None:
            try:
                await self.api.edit(self.id, message, body)
            except BadRequest as error:
                if is_of_entities(error) or verdict(error) == "closed":
                    raise
                logger.info("the message to be edited is gone: %s", error)
                if row.inbox is not None:
                    self.sender.placeholders.pop(row.inbox, None)
            else:
                return message
        if row.edits is not None:
            return message
        if row.kind in ("final", "message") and row.state != "sending":
            await self.outbox.mark(row, "sending")
        return await self.api.send(self.id, body, thread=self.remedies.thread(row))

    async def _edited(self, row: OutboxRow) -> int | None:
        """The message that shows this row, where it is one that is there already."""
        if row.edits is not None:
            return await self.outbox.message(row.edits)
        return await self.sender.placeholder(row.inbox) if row.kind == "final" and row.inbox is not None else None


def _has_file(row: OutboxRow) -> bool:
    return '"file"' in row.body and decode(row.body).file is not None
