"""The bot's parts, put together: polling → intake → inbox → lanes → turn → outbox → sender."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from functools import partial
from typing import Any

from telegram.error import TelegramError

from kai.bot import again, approvals, notices, question
from kai.bot.api import Api
from kai.bot.commands import TABLE, Commands
from kai.bot.download import Download
from kai.bot.gate import Gate
from kai.bot.hook import Hook, Record, unhook
from kai.bot.inbox import Inbox
from kai.bot.intake import Intake
from kai.bot.lanes import Lanes
from kai.bot.markdown import render
from kai.bot.outbox import Outbox
from kai.bot.places import Places
from kai.bot.polling import Polling
from kai.bot.prompt import Prompt
from kai.bot.sender import Sender
from kai.bot.service import Service
from kai.bot.spool import Spool
from kai.bot.tables import InboxRow
from kai.bot.unlock import Unlock
from kai.config import Config, load
from kai.lib.client import delays
from kai.lib.daemon import Daemon
from kai.lib.store import Store, StoreError

PRUNE_PERIOD = 86400.0
logger = logging.getLogger(__name__)


class Bot:
    """What runs for as long as kai-bot does."""

    def __init__(self, d: Daemon, config: Config, token: str, store: Store) -> None:
        self.d, self.config = d, config
        self.webhook_url = _webhook_url(config)
        self.spool = Spool(d.state_dir / "spool")
        self.api = Api(token, config.kai.telegram.api_base, self.spool.directory)
        self.inbox, self.outbox = Inbox(store, self.api.id), Outbox(store, self.api.id)
        self.sender = Sender(self.api, self.outbox, spool=self.spool, told=self._closed)
        self.sender.hold()  # the socket is open before `run` has taken up what was left
        self.left = self.spool.names()
        self.places = Places(self.api, store)
        agents = d.runtime_dir / "agent"
        self.download = Download(self.api, d.state_dir)
        prompt = Prompt(self.inbox, self.download)
        self.accounts: dict[str, int] = {}
        self.lanes = Lanes(self.api, self.inbox, self.outbox, self.sender, self.places, agents, prompt, self.show)
        self.commands = Commands(self.lanes)
        self.commands.buttons[question.PREFIX] = partial(approvals.press, self.lanes)
        self.commands.buttons[notices.AGAIN] = partial(again.press, self.lanes)
        intake = Intake(lambda: self.config, self.lanes.journal)
        self.gate = Gate(lambda: self.config, intake, d.state_dir.parent / "totp" / "enrolled")
        self.unlock = Unlock(
            self.gate, lambda: self.config, self.api, self.inbox, self.outbox, self.sender, d.runtime_dir / "totp.sock",
            take=self.take, spawn=self._spawn,
        )  # fmt: skip
        self.record = Record(d.state_dir)
        self.hook = Hook(self.api, self.inbox, self.gate, self.take, self.say, self.record)
        self.service = Service(
            lambda: self.config,
            self.inbox,
            self.outbox,
            self.lanes,
            self.sender,
            self.spool,
            lambda: self.state,
            self.gate.inside,
            self.hook.take,
        )
        self.polling = Polling(self.api, self.inbox, self.gate, self.take, self.say, self._conflict)
        self.state = "starting"
        self.tasks: set[asyncio.Task[Any]] = set()

    async def run(self) -> None:
        """Take up what was left, then take updates, forever."""
        await self.places.open()
        await self._bury()
        rows = await self.outbox.recover()
        await self.sender.open()
        self.sender.put(*rows)
        self.take(await self.inbox.unfinished(), rejoin=True)
        await self.unlock.resume()
        self.d.ready(self.line())
        self._spawn(asyncio.to_thread(render, ""))  # loads the parser before the first answer needs it
        self._spawn(self._introduce())
        self._spawn(self._sweep(self.left))
        self._spawn(self._prune())
        if self.webhook_url:
            await self.hook.run(self.webhook_url)
        await unhook(self.api, self.record, self.say)
        await self.polling.run()

    def take(self, rows: list[InboxRow], *, rejoin: bool = False) -> None:
        """New rows, or those that an earlier run of the bot left unfinished."""
        for row in rows:
            if not rejoin:  # whoever writes takes messages again
                self.sender.unblock(row.chat)
            if self.unlock.takes(row, rejoin=rejoin):
                continue
            if row.callback:
                self._spawn(self.commands.acknowledge(row))
            if row.state == "received":
                self._spawn(self.commands.persist(row))
            elif row.state in ("queued", "running"):
                self.lanes.of(row.user).put(row, rejoin=rejoin and row.state == "running")
            else:
                self.lanes.of(row.user).changed(row)
        self.show()

    def reload(self) -> None:
        """SIGHUP: read the configuration again; a broken one raises, and the one in force stays."""
        self.config = load(self.d.config_dir)
        if self.webhook_url != _webhook_url(self.config):
            logger.warning("telegram.mode or telegram.webhook_url has changed: systemctl restart kai-bot")
        self._gone()
        logger.info("configuration read again: %d users", len(self.config.users))
        self._spawn(self._bury())
        self.show()

    def _gone(self) -> set[str]:
        """The names that stand for nobody or somebody else now. The gate is closed to them at once."""
        users = {user.name: user.telegram_id for user in self.config.users}
        gone = {name for name, account in self.accounts.items() if users.get(name) != account}
        for user in gone:
            self.gate.forget(user)
        return gone

    async def _bury(self) -> None:
        users = {user.name: user.telegram_id for user in self.config.users}
        gone = self._gone()
        buried = await self.inbox.bury(users)  # first: what is dead on disk can't begin, nor be answered
        self.accounts = users
        for user in gone:
            self.lanes.let_go(user)
            self.unlock.forget(user)
        chats = [(user.name, chat) for user in self.config.users for chat in user.notify_chats]
        unsent = await self.outbox.bury(users, chats)
        for row in unsent:
            self.sender.withdraw(row)
        dead = buried + len(unsent)
        if dead:
            logger.warning("%d message(s) of users who are gone became dead letters", dead)
            self.sender.put(*await self.outbox.tell(notices.of_buried(self.config, dead)))

    async def _introduce(self) -> None:
        """Learn the bot's own name and register the commands; neither is needed for work."""
        for delay in delays():
            try:
                self.service.name = await self.api.username()
                await self.api.set_commands([(c.name, c.description) for c in TABLE])
            except TelegramError as error:
                logger.debug("introduction: %s", error)
                await asyncio.sleep(max(delay, 1.0))
            else:
                self.show()
                return

    async def _sweep(self, left: set[str]) -> None:
        """Look after what earlier runs left: files without a row, and the rows of another bot."""
        orphans = self.spool.sweep(left, await self.outbox.spooled()) if left else 0
        if orphans:
            logger.info("removed %d file(s) that no message needs", orphans)
        others = await self.outbox.of_others() + await self.inbox.foreign()
        if others:
            logger.warning("%d message(s) wait for the token of another bot: kai queue lists them", others)

    def _closed(self, chat: int, since: float, reason: str) -> list[notices.Notice]:
        return notices.of_blocked(self.config, chat, since, reason)

    async def _conflict(self, since: float) -> None:
        self.sender.put(*await self.outbox.tell(notices.of_conflict(self.config, since)))

    async def _prune(self) -> None:
        while True:
            try:
                await self.inbox.prune()
            except StoreError as error:
                logger.error("old rows stay for another day: %s", error)
            await asyncio.sleep(PRUNE_PERIOD)

    def say(self, state: str) -> None:
        self.state = state
        self.show()

    def show(self) -> None:
        self.d.status(self.line())

    def line(self) -> str:
        """`polling as @name, 2 users, queue 0`."""
        running, queued = self.lanes.counts()
        name = f" as @{self.service.name}" if self.service.name and self.state in ("polling", "webhook") else ""
        busy = f", {running} running" if running else ""
        return f"{self.state}{name}, {len(self.config.users)} users{busy}, queue {queued}"

    def _spawn(self, work: Coroutine[Any, Any, object]) -> None:
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            logger.error("a task failed", exc_info=error)

    async def close(self) -> None:
        """Stop; turns go on at their supervisors, what is stored goes out after the next start."""
        for task in self.tasks:
            task.cancel()
        await self.lanes.close()
        await self.sender.close()
        await self.download.close()
        await self.api.close()


def _webhook_url(config: Config) -> str:
    """Where Telegram is to post updates, "" where they are polled for."""
    telegram = config.kai.telegram
    return telegram.webhook_url or "" if telegram.mode == "webhook" else ""
