"""The commands of the chat: one table, from which /help and Telegram's command menu are made.

A `control` command is answered at once, whatever runs; a `command` keeps its place in the user's queue.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Literal

import msgspec
from telegram.error import TelegramError

from kai.bot.api import Api
from kai.bot.lanes import Lanes
from kai.bot.message import Body, plain
from kai.bot.outbox import Outbox
from kai.bot.sender import Sender
from kai.bot.tables import InboxRow
from kai.interfaces import NewSession, State, Stop
from kai.lib import log
from kai.lib.client import delays
from kai.lib.varlink import Busy, Fault, Misconfigured, Unavailable

logger = logging.getLogger(__name__)


class Command(msgspec.Struct, frozen=True):
    """A row of the table. `handler` is the name of a method of Commands."""

    name: str
    description: str
    lane: Literal["control", "command"]
    handler: str
    usage: str = ""


TABLE = (
    Command("start", "greeting", "control", "help"),
    Command("help", "what you can say here", "control", "help"),
    Command("new", "end this session; the next message starts a fresh one", "command", "new"),
    Command("stop", "interrupt the running turn", "control", "stop", "[all]"),
    Command("stats", "session, model, turns, cost", "control", "stats"),
)
GREETING = (
    "Kai connects this chat to an AI agent on your own host. Write what you want done: it works under your account "
    "there, with a real shell."
)
LONGEST_CALLBACK_ANSWER = 200
BY_NAME = {command.name: command for command in TABLE}


def parse(text: str) -> tuple[str, str] | None:
    """The name and the arguments of a command, or None when the text isn't one."""
    if not text.startswith("/"):
        return None
    head, _, rest = text.partition(" ")
    name = head[1:].partition("@")[0].lower()
    return (name, rest.strip()) if name.replace("_", "").isalnum() and name.isascii() else None


class Commands:
    """Answers control rows and command rows; every answer goes through the outbox."""

    def __init__(self, api: Api, lanes: Lanes, outbox: Outbox, sender: Sender) -> None:
        self.api, self.lanes, self.outbox, self.sender = api, lanes, outbox, sender
        lanes.command = self.answer

    async def answer(self, row: InboxRow) -> None:
        """Work on one row that isn't a turn, and end it."""
        with log.fields(KAI_USER=row.user, KAI_UPDATE=str(row.update_id)):
            if row.callback:
                await self._button(row)
                return
            name, arguments = parse(row.text) or ("", "")
            command = BY_NAME.get(name)
            handler: Callable[[InboxRow, str], Awaitable[Body | None]] = (
                getattr(self, f"_{command.handler}") if command else self._unknown
            )
            reply = await handler(row, arguments)
            self.sender.put(*await self.outbox.reply(row, reply))

    async def _button(self, row: InboxRow) -> None:
        """A pressed button. Its query is answered whatever comes of it, or Telegram lets the button spin."""
        action, _, turn = row.text.partition(":")
        target = self.lanes.of(row.user).find(turn=turn)
        said = "That turn has already ended."
        if action != "stop":
            said = "This button is of an older version."
        elif target:
            said = await self._stop_turn(row.user, target)
        try:
            await self.api.answer_callback(row.callback, said[:LONGEST_CALLBACK_ANSWER])
        except TelegramError as error:
            logger.info("callback query: %s", error)
        await self.outbox.reply(row, None)

    async def _unknown(self, row: InboxRow, arguments: str) -> Body:
        """A command that nobody knows, or, as an empty text, a message of a kind that isn't taken."""
        if not row.text:
            return plain("This can't be taken: only text messages are.")
        return plain(f"There is no command {row.text.split()[0]}. /help lists what there is.")

    async def _help(self, row: InboxRow, arguments: str) -> Body:
        lines = [f"/{c.name}{' ' + c.usage if c.usage else ''} - {c.description}" for c in TABLE]
        return plain(f"{GREETING}\n\n" + "\n".join(lines))

    async def _stop(self, row: InboxRow, arguments: str) -> Body:
        """The target was stored with the row: a stop that comes late can't hit a later turn."""
        target = self.lanes.of(row.user).find(row_id=row.target) if row.target else None
        said = await self._stop_turn(row.user, target) if target else ""
        dropped = await self.lanes.drop(row.user, before=row.id) if arguments == "all" else 0
        if dropped:
            said = f"{said} {dropped} waiting dropped.".strip()
        return plain(said or ("Nothing is running." if row.target is None else "That turn has already ended."))

    async def _stop_turn(self, user: str, row: InboxRow) -> str:
        """Drop a turn that waits, interrupt one that runs, and keep one that is about to begin from beginning."""
        lane = self.lanes.of(user)
        if row.state == "queued" and await self.lanes.drop(user, row=row):
            return "Dropped before it began."
        if lane.running is not row:
            return "That turn has already ended."
        lane.ask_to_stop(row)
        waits = delays()
        for _ in range(4):
            try:
                await lane.agent.call(Stop(turn=row.turn), timeout=5)
            except Unavailable as error:
                logger.warning("stop: %s", error)
                await asyncio.sleep(next(waits))
            except Fault as fault:
                logger.warning("stop: %s", fault)
                return "Stopping."  # it can't begin any more, see ask_to_stop
            else:
                return "Stopping."
        return "The agent's supervisor does not answer; `systemctl status` of its unit tells more."

    async def _new(self, row: InboxRow, arguments: str) -> Body:
        lane = self.lanes.of(row.user)
        for delay in delays():
            try:
                await lane.agent.call(NewSession(), timeout=60)
            except (Unavailable, Busy) as error:
                logger.warning("new session waits: %s", error)
                await asyncio.sleep(delay)
            except Fault as fault:
                return plain(f"⚠ No new session: {fault}")
            else:
                return plain("A fresh session begins with your next message.")
        raise AssertionError("delays never end")

    async def _stats(self, row: InboxRow, arguments: str) -> Body:
        lane = self.lanes.of(row.user)
        try:
            state = await lane.agent.call(State(), timeout=10)
        except Misconfigured as fault:
            return plain(f"⚠ The agent can't start: {fault}")
        except (Unavailable, Fault) as error:
            return plain(f"⚠ The agent's supervisor does not answer: {error}")
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(state.since))
        waiting = len(lane.waiting)
        lines = [
            f"Agent: {state.state}{f', {waiting} waiting' if waiting else ''}",
            f"Backend: {state.backend}, model: {state.model or 'its default'}",
            f"Session: {state.session or 'none yet'}, since {since}",
            f"Turns: {state.turns}, cost: ${state.cost_usd:.4f}",
        ]
        return plain("\n".join(lines))
