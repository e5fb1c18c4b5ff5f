"""Shows that a message waits: 👀 on it, and one note per user that tells how many are before the newest."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection

from telegram.error import RetryAfter, TelegramError

from kai.bot.api import Api, seconds
from kai.bot.message import plain
from kai.bot.tables import InboxRow
from kai.lib.store import Store, StoreError

MARK = "👀"
MARK_PERIOD = 0.05
"""Seconds from one mark to the next: a hundred at once would hold up what is urgent, such as an answer to /stop."""
NOTE_PERIOD = 3.0
"""Seconds between two edits of a note: they share their flood limit with the answers."""
logger = logging.getLogger(__name__)


class Places:
    """The notes are decoration: an error costs the note, never the message. Their ids are kept over a restart."""

    def __init__(self, api: Api, store: Store) -> None:
        self.api, self.store = api, store
        self.notes: dict[str, tuple[int, int]] = {}
        self.wanted: dict[str, tuple[int, int | None, str]] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.marks: set[asyncio.Task[None]] = set()
        self.marking = asyncio.Lock()

    async def open(self) -> None:
        query = "SELECT user, chat, message FROM notes WHERE bot = ?"
        for user, chat, message in await self.store.read(query, (self.api.id,)):
            self.notes[user] = (chat, message)
            self._want(user, chat, None, "")

    def waits(self, row: InboxRow, place: int) -> None:
        """A message came while another turn runs."""
        if row.kind == "turn":
            task = asyncio.ensure_future(self._mark(row, MARK))
            self.marks.add(task)
            task.add_done_callback(self.marks.discard)
        self._want(row.user, row.chat, row.thread, _note(place))

    def moves(self, user: str, running: InboxRow | None, waiting: Collection[InboxRow]) -> None:
        """The queue went on: the running message loses its mark, the note follows or goes."""
        left = [row for row in waiting if row.state == "queued"]
        if running and running.kind == "turn" and (left or user in self.notes or user in self.tasks):
            task = asyncio.ensure_future(self._mark(running, None))
            self.marks.add(task)
            task.add_done_callback(self.marks.discard)
        if left:
            self._want(user, left[-1].chat, left[-1].thread, _note(len(left)))
        elif user in self.notes or user in self.tasks:
            self._want(user, 0, None, "")

    def _want(self, user: str, chat: int, thread: int | None, text: str) -> None:
        self.wanted[user] = (chat, thread, text)
        if user not in self.tasks:
            self.tasks[user] = asyncio.ensure_future(self._work(user))

    async def _work(self, user: str) -> None:
        """Bring the note to its newest wanted state; states in between are skipped."""
        try:
            while user in self.wanted:
                chat, thread, text = self.wanted.pop(user)
                pause = NOTE_PERIOD
                try:
                    await self._show(user, chat, thread, text)
                except RetryAfter as error:
                    self.wanted.setdefault(user, (chat, thread, text))
                    pause = seconds(error) + NOTE_PERIOD
                except (TelegramError, StoreError) as error:
                    logger.info("place note: %s", error)
                await asyncio.sleep(pause)
        finally:
            del self.tasks[user]

    async def _show(self, user: str, chat: int, thread: int | None, text: str) -> None:
        note, bot = self.notes.get(user), self.api.id
        if not text:
            if note:
                self.notes.pop(user)
                query = "DELETE FROM notes WHERE bot = ? AND user = ?"
                await self.store.write(lambda db: db.execute(query, (bot, user)))
                await self.api.delete(*note)
        elif note:
            await self.api.edit(*note, plain(text))
        else:
            message = await self.api.send(chat, plain(text), thread=thread, silent=True)
            self.notes[user] = (chat, message)
            insert = "INSERT OR REPLACE INTO notes (bot, user, chat, message) VALUES (?, ?, ?, ?)"
            await self.store.write(lambda db: db.execute(insert, (bot, user, chat, message)))

    async def _mark(self, row: InboxRow, emoji: str | None) -> None:
        """A flood limit is waited for: a mark that isn't taken away would stay for good."""
        wait = MARK_PERIOD
        while wait:
            async with self.marking:
                if emoji and row.state != "queued":
                    return
                wait = await self._react(row, emoji)
                await asyncio.sleep(MARK_PERIOD)
            await asyncio.sleep(wait)

    async def _react(self, row: InboxRow, emoji: str | None) -> float:
        """Seconds until it is to be tried again, 0 for never."""
        try:
            await self.api.react(row.chat, row.message, emoji)
        except RetryAfter as error:
            return seconds(error)
        except TelegramError as error:
            logger.info("waiting mark: %s", error)
        return 0.0


def _note(waiting: int) -> str:
    return f"{MARK} {waiting} message{'s wait' if waiting > 1 else ' waits'} for the running turn. /stop ends it."
