"""One sweep: people write, Telegram has bad days, and the set is killed at instants that the seed chooses.

What is said, which faults the stand-in has and where each life of each daemon ends are functions of the seed; how the
processes meet in time is the machine's. `where` of a kill is its daemon, its life and its point, for example
`kai-bot#12 commit 3 after: queue.db Outbox.answer`.
"""

from __future__ import annotations

import asyncio
import random
import re
import sys
import tempfile
import time
from collections import Counter
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from kai.demo.botapi.faults import Fault
from kai.demo.botapi.server import BotApi
from kai.demo.launcher import Launcher
from kai.interfaces import Deliver, Status
from kai.lib.client import Client
from kai.lib.varlink import Fault as Refusal
from kai.lib.varlink import Unavailable

from .. import hooks
from .points import Kind, Moment, Point
from .units import BOT, WEBHOOK, Plan, Units, Zygote
from .verdict import MARK, Command, Delivery, Judge, Press, Prompt, Queue, Said, Verdict

TOKEN = "1234567:sweep-token-that-is-long-enough"
ADDRESS = "https://kai.example.org/webhook/telegram"
BOT_ID = TOKEN.partition(":")[0]
CUT = ("continue:", "drop:")
LOOKED_AT = 8
"""Messages of a chat whose buttons may be pressed."""
USERS = {"alice": 1001, "bob": 1002, "carol": 1003}
AGENT = Path(__file__).with_name("agent.py")
MOST_OPEN = 4
"""Prompts of one user that wait for an answer before he says no more; after PATIENCE seconds one is not waited for."""
PATIENCE = 4.0
SETTLING = 60.0
"""Seconds in which everything must come to its end, once nothing is killed any more."""
QUIET, LONG_QUIET = 0.5, 4.0
"""Seconds without a word of the bot's after which it is asked whether it has something left to do, and after which
what it says of that is no longer waited for."""
OWN_FAULTS = ("a fault in Kai", "ended by a fault", "failed by a fault", "a task failed", "can't be rendered")
At = tuple[Kind, Moment, str]
OF_BOT: list[At] = [
    *((kind, moment, "") for kind in ("commit", "request") for moment in ("before", "after")),
    *(("commit", moment, name) for name in ("Inbox", "Outbox.answer", "Outbox") for moment in ("before", "after")),
    *(("request", m, name) for name in ("sendMessage", "editMessageText", "getUpdates") for m in ("before", "after")),
    *(("call", moment, name) for name in ("", "Start", "Join") for moment in ("before", "after")),
    *(("reply", "after", name) for name in ("", "started", "done", "done")),
    ("asked", "after", ""),
    ("answer", "before", ""),
    ("answer", "after", ""),
]
OF_WEBHOOK: list[At] = [
    ("call", "before", "TakeUpdate"), ("call", "after", "TakeUpdate"), ("reply", "after", ""),
]  # fmt: skip
OF_AGENT: list[At] = [
    *(("commit", moment, name) for name in ("", "Turns.begin", "Turns.end") for moment in ("before", "after")),
    *(("answer", moment, name) for name in ("", "done") for moment in ("before", "after")),
    *(("prompt", moment, "user") for moment in ("before", "after")),
    *(("said", moment, name) for name in ("", "assistant", "result") for moment in ("before", "after")),
    ("asked", "after", ""),
]
LATE_OF_BOT: list[tuple[Kind, Moment]] = [("commit", "after"), ("request", "before"), ("request", "after")]
LATE_OF_AGENT: list[tuple[Kind, Moment]] = [("commit", "before"), ("answer", "before"), ("said", "after")]
BAD_DAYS = (
    Fault(kind="delay", probability=0.04, seconds=0.04, count=None),
    Fault(kind="hold", probability=0.02, seconds=0.06, count=None),
    *(
        fault
        for method, share in (("getUpdates", 1.0), ("sendMessage", 0.6), ("editMessageText", 0.6))
        for fault in (
            Fault(kind="drop", method=method, probability=0.03 * share, count=None),
            Fault(kind="lose", method=method, probability=0.04 * share, count=None),
            Fault(kind="status", method=method, probability=0.02 * share, count=None, code=502),
            Fault(kind="status", method=method, probability=0.02 * share, count=None, code=504, acted=True),
            Fault(kind="flood", method=method, probability=0.01 * share, count=None, retry_after=1),
        )
    ),
    Fault(kind="conflict", method="getUpdates", probability=0.02, count=None),
)


@dataclass
class Report:
    """What a sweep did, and what was found. `kills` are the points; `killed` counts processes, all-at-once included."""

    seed: int
    killed: int
    starts: int
    power_cuts: int
    seconds: float
    said: Said
    verdict: Verdict
    kills: list[str]
    points: Counter[str]
    """How often each kind of instant was the end of a daemon, as `kai-bot commit after`."""
    others: list[str]
    logs: dict[str, str]
    killing: float = 0.0
    """Seconds of `seconds` in which daemons were killed."""

    @property
    def wrong(self) -> list[str]:
        """Everything that must not be."""
        lines = [line for log in self.logs.values() for line in log.splitlines()]
        told = Counter(words for line in lines for words in OWN_FAULTS if words in line)
        return [
            *self.verdict.faults,
            *self.others,
            *(f'the journals say "{words}" {n} times' for words, n in told.items()),
        ]

    def __str__(self) -> str:
        """For a failed test: the seed, what is wrong, and where the daemons were killed."""
        return "\n".join(
            (
                f"seed {self.seed}: {self.killed} kills, {self.said.updates} updates; wrong:",
                *(f"  {line}" for line in self.wrong),
                "killed at:",
                *(f"  {line}" for line in self.kills),
            )
        )


def plan_of(seed: int) -> Plan:
    """Where each life of each daemon ends."""

    def plan(unit: str, life: int) -> list[Point]:
        chance = random.Random(f"{seed}/{unit}/{life}")
        kind, moment, name = chance.choice({BOT: OF_BOT, WEBHOOK: OF_WEBHOOK}.get(unit, OF_AGENT))
        everyone = chance.random() < 0.1
        mean = (8 if unit == BOT else 12) if not name else (3 if unit == BOT else 4)
        number = 1 + int(chance.expovariate(1 / mean))
        # One that is never reached must not end the killing.
        late = chance.choice(LATE_OF_BOT if unit == BOT else LATE_OF_AGENT)
        return [Point(kind, moment, number, name, everyone), Point(*late, number=15 + chance.randrange(30))]

    return plan


class Sweep:
    """A set of its own with `users`; `run` kills at least `wanted` daemons and judges what is left.

    With `webhook`, updates are posted to kai-webhook, which is killed like the others.
    """

    def __init__(
        self,
        zygote: Zygote,
        seed: int,
        *,
        wanted: int,
        plan: Plan | None = None,
        broken: str = "",
        within: float = 60.0,
        webhook: bool = False,
    ) -> None:
        self.zygote, self.seed, self.wanted, self.broken, self.within = zygote, seed, wanted, broken, within
        self.webhook = webhook
        self.killing = plan or plan_of(seed)
        self.chance = random.Random(f"{seed}/traffic")
        self.said = Said()
        self.seen: set[str] = set()
        self.open: dict[int, list[tuple[float, str]]] = {user: [] for user in USERS.values()}
        self.version = 0
        self.stacked = AsyncExitStack()
        self.power_cuts = 0
        self.tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> Report:
        began = time.monotonic()
        async with AsyncExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kai-sweep-", dir="/tmp")))
            self.runs = directory / "runs"
            self.api = BotApi(token=TOKEN)
            self.api.lead = directory / "run/webhook.sock"
            await self.api.start()
            stack.push_async_callback(self.api.stop)
            for user in USERS.values():
                self.api.declare_user(user)
            launcher = Launcher(
                directory,
                api_base=self.api.url,
                token=TOKEN,
                users=[{"telegram_id": number, "name": name} for name, number in USERS.items()],
                agent_command=[sys.executable, "-I", "-S", str(AGENT), str(self.runs)],
                settings={"telegram": {"mode": "webhook", "webhook_url": ADDRESS}} if self.webhook else {},
            )
            launcher._lay_out()
            more = [hooks.unit(launcher)] if self.webhook else []
            self.bot = Client(launcher.runtime / "bot.sock")
            self.units = Units(self.zygote, launcher, self._plan, broken=self.broken, more=more)
            try:
                self.units.open()
                self.api.faults.seed(self.seed)
                for fault in BAD_DAYS:
                    self.api.faults.add(Fault(**{name: getattr(fault, name) for name in fault.__struct_fields__}))
                await self._kill()
                killing = time.monotonic() - began
                self.api.faults.clear()
                await self._settle()
                await self.units.restart(BOT)  # what a start takes up or puts away is done after it
                await self._settle()
            finally:
                await self._end_tasks()
                await self.units.close()
            judge = Judge(self.api, Queue(directory / "state/bot/queue.db"), self.runs, self.said)
            kills = self.units.kills.read_text().splitlines() if self.units.kills.exists() else []
            return Report(
                seed=self.seed,
                killed=self.units.killed,
                starts=sum(unit.lives for unit in self.units.units.values()),
                power_cuts=self.power_cuts,
                seconds=time.monotonic() - began,
                said=self.said,
                verdict=judge.judge(),
                kills=kills,
                points=Counter(_instant(line) for line in kills),
                others=self.units.others,
                logs={name: self.units.log(name).read_text(errors="replace") for name in self._logged()},
                killing=killing,
            )

    def _logged(self) -> list[str]:
        return [name for name in self.units.units if self.units.log(name).exists()]

    def _plan(self, unit: str, life: int) -> list[Point]:
        return self.killing(unit, life) if self.units.killed < self.wanted else []

    # ---- the two phases ----

    async def _kill(self) -> None:
        """People write while daemons die, until enough of them have."""
        end = time.monotonic() + self.within
        next_cut = self.chance.randrange(15, 60)
        while self.units.killed < self.wanted and not self.units.held and time.monotonic() < end:
            self._look()
            self._say()
            if self.units.killed >= next_cut:
                next_cut += self.chance.randrange(25, 80)
                self.power_cuts += 1
                await self.units.power_cut(f"boot-{self.power_cuts}")
            await asyncio.sleep(self.chance.expovariate(1 / 0.02))

    async def _settle(self) -> None:
        """Until the bot has nothing to do and says nothing more."""
        end = time.monotonic() + SETTLING
        calls, since = 0, time.monotonic()
        while time.monotonic() < end and not self.units.held:
            await asyncio.sleep(0.05)
            now = sum(call.method.lower() != "getupdates" for call in self.api.journal._calls)
            if now != calls or self.tasks or self.api.pending():
                calls, since = now, time.monotonic()
            quiet = time.monotonic() - since
            if quiet >= LONG_QUIET or (quiet >= QUIET and await self._idle()):
                return

    async def _idle(self) -> bool:
        with suppress(Unavailable, Refusal):
            status = await self.bot.call(Status(), timeout=5)
            return status.queued == status.running == status.unsent == 0
        return False

    async def _end_tasks(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    # ---- what people do ----

    def _look(self) -> None:
        """See which answers have arrived: who has many open says no more."""
        news = self.api.changes(self.version, ("message", "edit"))
        self.version = news.version
        for change in news.changes:
            if change.data["by_bot"]:
                self.seen.update(tag for tag, _ in MARK.findall(change.data["text"] or ""))
        now = time.monotonic()
        for user, tags in self.open.items():
            self.open[user] = [(at, tag) for at, tag in tags if tag not in self.seen and now - at < PATIENCE]

    def _say(self) -> None:
        chance = self.chance
        user = chance.choice(list(USERS.values()))
        what = chance.random()
        if what < 0.04:
            self._command(user, "/stop")
        elif what < 0.05:
            self._command(user, "/stop all")
        elif what < 0.09:
            self._command(user, "/help")
        elif what < 0.12:
            self._command(user, "/new")
        elif what < 0.17:
            self._deliver(user)
        elif what < 0.23:
            self._press(user)
        elif len(self.open[user]) < MOST_OPEN:
            for _ in range(chance.randrange(3, 7) if what > 0.96 else 1):
                self._prompt(user)

    def _prompt(self, user: int) -> None:
        tag = f"t{len(self.said.prompts)}"
        kind, marks = self.chance.random(), 1
        text = f"run-{tag};"
        if kind < 0.25:
            text += f" slow-{self.chance.randrange(50, 400)};"
        elif kind < 0.4:
            marks = self.chance.randrange(4, 20)
            text += f" long-{marks};"
        told = self.api.say(user, text)
        assert told.update_id
        self.said.prompts.append(Prompt(tag, user, told.update_id, told.message_id, text, marks))
        self.open[user].append((time.monotonic(), tag))

    def _command(self, user: int, text: str) -> None:
        told = self.api.say(user, text)
        assert told.update_id
        self.said.commands.append(Command(user, told.update_id, text))

    def _press(self, user: int) -> None:
        """One of the buttons in the last messages: Stop, Continue, Drop, Show again; now and then twice."""
        last = list(self.api.chats[user].messages.values())[-LOOKED_AT:]
        buttons = [
            (message.wire["message_id"], str(button["callback_data"]))
            for message in last
            if message.by_bot and not message.deleted
            for line in (message.wire.get("reply_markup") or {}).get("inline_keyboard", [])
            for button in line
        ]
        # What continues a continuation has the tag of the first one: it could not be told from running twice.
        known = {f"{BOT_ID}.{prompt.update}": prompt for prompt in self.said.prompts}
        buttons = [one for one in buttons if not one[1].startswith(CUT) or one[1].partition(":")[2] in known]
        if not buttons:
            return
        message, data = self.chance.choice(buttons)
        for _ in range(2 if self.chance.random() < 0.2 else 1):
            told = self.api.press(user, message, data=data)
            assert told.update_id
            prompt = known[data.partition(":")[2]] if data.startswith(CUT) else None
            self.said.presses.append(Press(user, told.update_id, data, prompt))

    def _deliver(self, user: int) -> None:
        number = len(self.said.deliveries)
        delivery = Delivery(f"k{number}", user, f"delivered-{number}.")
        self.said.deliveries.append(delivery)
        name = next(name for name, number in USERS.items() if number == user)
        task = asyncio.ensure_future(self._until_stored(Deliver(key=delivery.key, user=name, text=delivery.mark)))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _until_stored(self, call: Deliver) -> None:
        """As any unit does: the same key, until the bot has said that it is stored, and now and then once more."""
        again = self.chance.random() < 0.2
        while True:
            with suppress(Unavailable):
                await self.bot.call(call, timeout=5)
                if not again:
                    return
                again = False
            await asyncio.sleep(0.05)


def _instant(line: str) -> str:
    """`kai-bot commit after` of a line of the file of kills."""
    found = re.match(r"(?:all )?(kai-\w+)\S* (\w+) \d+ (\w+):", line)
    return " ".join(found.groups()) if found else line
