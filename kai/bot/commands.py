"""The commands of the chat: one table, from which /help and Telegram's command menu are made.

A control row is answered at once, whatever runs; a command row keeps its place in the user's queue. Handlers stand
in the modules of their subjects; what they answer goes through the outbox.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Literal

import msgspec
from telegram.error import TelegramError

from kai.bot import cut, decision, joblist, jobnote, jobs, picker
from kai.bot.github import github, webhooks
from kai.bot.invocation import Invocation, Misused, Refused
from kai.bot.lanes import Lanes
from kai.bot.message import Body, plain
from kai.bot.session import ENDED, new, stop, stop_turn
from kai.bot.settings import model, settings
from kai.bot.stats import memory, stats
from kai.bot.tables import InboxRow
from kai.bot.workspaces import workspace
from kai.lib import log
from kai.lib.client import delays
from kai.lib.store import StoreError

TYPING_DELAY, TYPING_PERIOD = 0.5, 4.0
LONGEST_CALLBACK_ANSWER = 200
_COMMAND = re.compile(r"/([A-Za-z0-9_]{1,32})(?:@\w*)?(?:\s+(.*))?", re.DOTALL)
GREETING = (
    "Kai connects this chat to an AI agent on your own host. Write what you want done: it works under your account "
    "there, with a real shell."
)
logger = logging.getLogger(__name__)


class Command(msgspec.Struct, frozen=True):
    """A row of the table.

    `queued` tells which forms keep their place in the queue; the others are answered at once. What a `pressable`
    command does may be a button of a message.
    """

    name: str
    description: str
    handler: Callable[[Invocation], Awaitable[list[Body]]]
    usage: str = ""
    queued: Literal["never", "always", "with arguments"] = "never"
    pressable: bool = False
    aliases: tuple[str, ...] = ()
    details: str = ""
    example: str = ""


async def start(asked: Invocation) -> list[Body]:
    return [plain(f"{GREETING}\n\n/help lists the commands; what you write besides goes to the agent.")]


async def help_(asked: Invocation) -> list[Body]:
    """/help, /help COMMAND."""
    if not asked.arguments:
        lines = [f"{synopsis(each)} - {each.description}" for each in TABLE]
        more = "\n\n/help COMMAND tells more of one. Other words with a slash are the agent's own commands."
        return [plain("\n".join(lines) + more)]
    name = asked.arguments.lower().removeprefix("/")
    if name not in BY_NAME:
        raise Misused(f"There is no command /{name}.")
    command = BY_NAME[name]
    also = f"\nAlso: {', '.join(f'/{alias}' for alias in command.aliases)}" if command.aliases else ""
    example = f"\nExample: {command.example}" if command.example else ""
    details = f"\n\n{command.details}" if command.details else ""
    return [plain(f"{synopsis(command)}\n{command.description}{details}{also}{example}")]


def synopsis(command: Command) -> str:
    return f"/{command.name} {command.usage}".rstrip()


TABLE = (
    Command("start", "greeting", start),
    Command("help", "what you can say here", help_, "[COMMAND]", example="/help settings"),
    Command(
        "new",
        "end this session; the next message starts a fresh one",
        new,
        queued="always",
        details="The agent first gets up to 30 seconds to save what it should remember; /stop cuts that short.",
    ),
    Command(
        "stop",
        "interrupt the running turn",
        stop,
        "[all]",
        details="The session stays, and so does what was said so far. With all, what waits is dropped too.",
    ),
    Command("models", "choose the model from a list", model, queued="with arguments"),
    Command(
        "model",
        "show or change the model",
        model,
        "[NAME | reset]",
        "with arguments",
        pressable=True,
        details="It holds from the next message on, and the session goes on. reset takes your choice back.",
        example="/model opus",
    ),
    Command(
        "settings",
        "show or change your settings",
        settings,
        "[FIELD VALUE | reset [FIELD]]",
        "with arguments",
        pressable=True,
        details="Each value is shown with where it comes from. reset takes your choice back, or all of them.",
        example="/settings budget 5",
    ),
    Command(
        "workspace",
        "show, change or make the workspace",
        workspace,
        "[NAME | home | new NAME | set FIELD VALUE | reset [FIELD]]",
        "with arguments",
        pressable=True,
        aliases=("ws",),
        details="Each workspace has its own session to come back to. new makes one, with a git repository. set and "
        "reset change the model, budget and timeout of this workspace alone.",
        example="/workspace new website",
    ),
    Command("workspaces", "choose the workspace from a list", workspace, queued="with arguments"),
    Command("jobs", "your scheduled jobs", jobs.jobs),
    Command(
        "job",
        "look at one of your jobs, cancel, run or pause it",
        jobs.job,
        "info|cancel|run|pause|resume ID",
        details="ID is the number that /jobs shows. run has it run now, once, and leaves its times as they are. pause "
        "keeps it from running until resume.",
        example="/job info 7",
    ),
    Command(
        "github",
        "what you hear of GitHub",
        github,
        "[add|remove OWNER/REPO | reviews on|off | triage on|off | notify CHAT_ID|reset]",
        details="You hear of what concerns your GitHub login, and of the repositories that you are subscribed to. "
        "notify sends your notices to another chat, one that your admin has allowed. reviews and triage are kept for "
        "when Kai does them.",
        example="/github add acme/site",
    ),
    Command("webhooks", "how the intake of webhooks does", webhooks),
    Command("stats", "session, model, turns, cost", stats),
    Command("memory", "what the agent remembers of you", memory),
)
BY_NAME = {name: command for command in TABLE for name in (command.name, *command.aliases)}


def parse(text: str) -> tuple[Command, str] | None:
    """One of these commands and what stands behind its name, or None: then the text is the agent's."""
    found = _COMMAND.fullmatch(text)
    command = BY_NAME.get(found[1].lower()) if found else None
    return (command, (found[2] or "").strip()) if found and command else None


def pressed(data: str) -> tuple[Command, str] | None:
    """The command that a button's data stands for. Anyone can send any data, so it must be one for buttons."""
    found = parse(data.removeprefix(picker.PREFIX)) if data.startswith(picker.PREFIX) else None
    return found if found and found[0].pressable else None


def kind_of(command: Command, arguments: str) -> Literal["control", "command"]:
    waits = command.queued == "always" or (command.queued == "with arguments" and bool(arguments))
    return "command" if waits else "control"


class Commands:
    """Answers control rows and command rows."""

    def __init__(self, lanes: Lanes) -> None:
        self.lanes, self.api, self.outbox, self.sender = lanes, lanes.api, lanes.outbox, lanes.sender
        lanes.command = self.answer
        # By the first word of a button's data: works on the press, and says in a few words what came of it.
        self.buttons: dict[str, Callable[[InboxRow], Awaitable[str]]] = {
            "stop": self._stop_button,
            cut.CONTINUE: partial(decision.press, lanes),
            cut.DROP: partial(decision.press, lanes),
            joblist.PREFIX: partial(jobs.press, lanes),
            jobnote.PREFIX: partial(jobnote.press, lanes),
        }

    async def acknowledge(self, row: InboxRow) -> None:
        """Answer the query of a button that stands for a command or a turn, which itself may have to wait."""
        if not row.callback or row.error or not (row.kind == "turn" or pressed(row.text)):
            return
        said = await decision.continued(self.lanes, row) if row.kind == "turn" else ""
        running = self.lanes.of(row.user).running
        waits = row.kind != "control" and running and running is not row
        await self._answer_query(row, f"{said} This waits for the running turn.".strip() if waits else said)

    async def persist(self, row: InboxRow) -> None:
        """`answer`, for a row of no lane, however long the disk is full."""
        for delay in delays():
            try:
                await self.answer(row)
            except StoreError as error:
                logger.error("%s; tried again", error)
                await asyncio.sleep(delay)
            else:
                return

    async def answer(self, row: InboxRow) -> None:
        """Work on one row that isn't a turn, and end it."""
        with log.fields(KAI_USER=row.user, KAI_UPDATE=str(row.update_id)):
            found = pressed(row.text) if row.callback else parse(row.text)
            if row.error and row.callback:
                await self._answer_query(row, row.error)
                await self.outbox.reply(row, [])
            elif row.error:
                self.sender.put(*await self.outbox.reply(row, [plain(row.error)]))
            elif found:
                await self._run(row, *found)
            elif row.callback:
                await self._button(row)
            else:  # an earlier version stored it
                self.sender.put(*await self.outbox.reply(row, [plain("This can't be taken.")]))

    async def _run(self, row: InboxRow, command: Command, arguments: str) -> None:
        asked = Invocation(row, arguments, self.lanes)
        typing = asyncio.create_task(self._typing(row.chat))
        renew = False
        try:
            reply = await command.handler(asked)
            renew = bool(row.callback)
        except StoreError:
            raise
        except Refused as refusal:
            reply = [plain(f"⚠ {refusal}")]
        except Misused as fault:
            example = f", for example {command.example}" if command.example else ""
            reply = [plain(f"{fault} Expected: {synopsis(command)}{example}".strip())]
        except Exception:
            logger.exception("/%s failed", command.name)
            reply = [plain(f"⚠ A fault in Kai kept /{command.name} from being worked on; the journal says more.")]
        finally:
            typing.cancel()
        self.sender.put(*await self.outbox.reply(row, reply))
        if renew:
            self.sender.spawn(self._renew(row, command))

    async def _renew(self, row: InboxRow, command: Command) -> None:
        """The message whose button was pressed shows what is in force now: decoration, whose faults cost nothing."""
        try:
            *_, shown = await command.handler(Invocation(row, "", self.lanes))
            await self.api.edit(row.chat, row.message, shown)
        except Exception as error:
            logger.info("picker not renewed: %s", error)

    async def _button(self, row: InboxRow) -> None:
        """A pressed button. Its query is answered whatever comes of it, or Telegram lets the button spin."""
        press = self.buttons.get(row.text.partition(":")[0])
        said = await press(row) if press else "This button is of an older version."
        await self._answer_query(row, said)
        await self.outbox.reply(row, [])

    async def _answer_query(self, row: InboxRow, said: str) -> None:
        try:
            await self.api.answer_callback(row.callback, said[:LONGEST_CALLBACK_ANSWER])
        except TelegramError as error:
            logger.info("callback query: %s", error)

    async def _stop_button(self, row: InboxRow) -> str:
        target = self.lanes.of(row.user).find(turn=row.text.partition(":")[2])
        return await stop_turn(self.lanes, target) if target else ENDED

    async def _typing(self, chat: int) -> None:
        await asyncio.sleep(TYPING_DELAY)
        while True:
            try:
                await self.api.typing(chat)
            except TelegramError as error:
                logger.debug("typing: %s", error)
            await asyncio.sleep(TYPING_PERIOD)
