"""Many users at once, many messages, and what a turn writes: throughput, delay under load, growth, fsyncs.

`python tests/bench/bench_throughput.py [USERS [MESSAGES [GROWTH [FSYNCS]]]]`; as it stands 100 users with 20 messages
each, 10,000 messages for the growth, 50 turns for the fsyncs. Each user says the next message when the last one is
answered. Prints JSON lines. One uid, no systemd; stand-in, agents and driver share the machine's cores with the set.
"""

import asyncio
import json
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from kai.demo.botapi.client import ControlClient
from kai.demo.launcher import Launcher
from kai.demo.service import Unit
from tests.bench.bench_delay import ALICE, TOKEN, one, telegram
from tests.bench.bench_idle import pss

FIRST_USER = 2001
LOOK_BACK = 400
"""Calls that may still be waiting for their answer when later ones have theirs."""
READ_PERIOD = 0.5
PACED = 0.5
"""Share of the highest throughput at which the delay of an unhurried set is measured."""
ANSWER = re.compile(r"re: ([\w.-]+)\.$")
FSYNC = re.compile(r"^\d+ +(\d+\.\d+) (?:fsync|fdatasync)\(|^\d+ +(\d+\.\d+) <\.\.\. (?:fsync|fdatasync) resumed>")


class Traced(Launcher):
    """A set whose bot writes down its fsyncs."""

    trace: Path

    def units(self) -> list[Unit]:
        bot, *others = super().units()
        strace = ("strace", "-D", "-f", "-ttt", "-e", "trace=fsync,fdatasync", "-o", str(self.trace))
        return [Unit(bot.name, (*strace, *bot.command), bot.sockets, bot.environment, resident=True), *others]


class Log:
    """When each update was handed out and each answer sent, from the stand-in's log of calls, which is bounded."""

    def __init__(self, client: ControlClient) -> None:
        self.client = client
        self.seen = client.state().calls
        self.at = time.monotonic()
        self.handed: dict[str, float] = {}
        self.final: dict[str, float] = {}

    def read(self) -> None:
        self.at = time.monotonic()
        for call in self.client.calls(since=max(0, self.seen - LOOK_BACK), answered=True):
            self.seen = max(self.seen, call.seq)
            if call.method == "getUpdates":
                for update in (call.answer or {}).get("result") or []:
                    text = update.get("message", {}).get("text", "")
                    self.handed.setdefault(text.removesuffix("."), call.answered or 0.0)
            elif found := ANSWER.search(str(call.params.get("text", ""))):
                self.final.setdefault(found[1], call.at)


def rows(times: Path) -> dict[str, dict[str, Any]]:
    """What the agents wrote down, by the text of the prompt."""
    found = (json.loads(line) for line in times.read_text().splitlines())
    return {row["text"].removesuffix("."): row for row in found}


def figures(values: Sequence[float]) -> dict[str, float]:
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    named = {"p50": cuts[49], "p95": cuts[94], "p99": cuts[98], "max": max(values)}
    return {name: round(value * 1000, 2) for name, value in named.items()}


def show(figure: str, **more: object) -> None:
    print(json.dumps({"figure": figure, **more}), flush=True)


class Crowd:
    """Users who talk to their agents; `say` begins, `run` goes on until all have said what they had to."""

    def __init__(self, client: ControlClient, times: Path, users: Sequence[int]) -> None:
        self.client, self.times, self.users = client, times, users

    def round(self, name: str, messages: int, *, every: float = 0.0) -> tuple[float, list[float]]:
        """Seconds in all, and of each message Kai's own. With `every`, a message comes each so many seconds."""
        log, version = Log(self.client), self.client.state().version
        waiting: dict[str, tuple[int, int]] = {}
        plan = self._plan(messages)
        began, said = time.monotonic(), 0
        total = messages * len(self.users)

        def say(user: int, number: int) -> None:
            text = f"{name}-{user}-{number}"
            waiting[text] = (user, number)
            self.client.say(user, f"{text}.")

        if not every:
            for user in self.users:
                say(user, 0)
        answered = 0
        while answered < total:
            if every:
                while said < total and began + said * every <= time.monotonic():
                    say(*next(plan))
                    said += 1
            news = self.client.changes(version, timeout=min(every, 1.0) if every else 5.0, kinds=("message", "edit"))
            if news.missed:
                raise RuntimeError("the stand-in has forgotten changes before they were read")
            version = news.version
            for change in news.changes:
                found = ANSWER.search(change.data["text"] or "") if change.data["by_bot"] else None
                if found and found[1] in waiting:
                    user, number = waiting.pop(found[1])
                    answered += 1
                    if not every and number + 1 < messages:
                        say(user, number + 1)
            if time.monotonic() - log.at > READ_PERIOD:
                log.read()
        ended = time.monotonic()
        log.read()
        runs = rows(self.times)
        own = []
        for text, final in log.final.items():
            if text.startswith(f"{name}-") and text in log.handed:
                own.append(runs[text]["prompt"] - log.handed[text] + final - runs[text]["result"])
        return ended - began, own

    def _plan(self, messages: int) -> Iterator[tuple[int, int]]:
        for number in range(messages):
            for user in self.users:
                yield user, number


@asynccontextmanager
async def running(kind: type[Launcher], users: Sequence[int], **attributes: object) -> Any:
    """A set of these users with instant agents: the client, the launcher and the agents' file."""
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url, client = stack.enter_context(telegram(directory))
        times = directory / "times"
        times.touch()
        agent = [sys.executable, "-I", "-S", str(Path(__file__).with_name("instant_agent.py")), "--times", str(times)]
        launcher = kind(
            directory / "set",
            api_base=url,
            token=TOKEN,
            users=[{"telegram_id": user, "name": f"u{user}"} for user in users],
            agent_command=agent,
            settings={"agent": {"idle_timeout": 3600}},
        )
        for name, value in {"trace": directory / "trace", **attributes}.items():
            setattr(launcher, name, value)
        await stack.enter_async_context(launcher)
        for user in users:
            client.declare_user(user)
        await launcher.wait_ready("kai-bot", within=60)
        await asyncio.to_thread(client.wait_polling)
        yield client, launcher, times


async def throughput(users: int, messages: int) -> None:
    people = range(FIRST_USER, FIRST_USER + users)
    async with running(Launcher, people) as (client, _, times):
        crowd = Crowd(client, times, people)
        await asyncio.to_thread(crowd.round, "first", 1, every=0.2)  # each agent is started
        seconds, own = await asyncio.to_thread(crowd.round, "all", messages)
        rate = users * messages / seconds
        show(
            "throughput", users=users, messages=users * messages, per_second=round(rate, 1), n=len(own), ms=figures(own)
        )
        every = 1 / (PACED * rate)
        _, own = await asyncio.to_thread(crowd.round, "paced", max(messages // 2, 1), every=every)
        show("delay under half of that load", per_second=round(1 / every, 1), n=len(own), ms=figures(own))


async def growth(messages: int) -> None:
    """PSS in MiB as one user says one message after another."""
    async with running(Launcher, [ALICE]) as (client, launcher, times):
        crowd = Crowd(client, times, [ALICE])
        found: dict[str, dict[str, float]] = {}
        done = 0
        for upto in sorted({10, messages // 10, messages // 4, messages // 2, messages} - {0}):
            await asyncio.to_thread(crowd.round, f"to{upto}", upto - done)
            done = upto
            await asyncio.sleep(1)
            pids = {"bot": launcher.pid("kai-bot"), "supervisor": launcher.pid(f"kai-agent@u{ALICE}")}
            found[f"after {upto}"] = {unit: round(pss(pid), 1) for unit, pid in pids.items() if pid}
        show("growth, PSS", MiB=found)


async def fsyncs(turns: int) -> None:
    """Those of the bot from update to prompt and from result to Telegram, one turn at a time.

    It is an upper bound: what is stored beside the sending falls into the same spans.
    """
    if shutil.which("strace") is None:
        show("serial fsyncs of a turn", left_out="strace is missing")
        return
    async with running(Traced, [ALICE]) as (client, launcher, times):
        shift = time.time() - time.monotonic()
        await asyncio.to_thread(one, client, times, "first")
        before: list[int] = []
        after: list[int] = []
        everywhere = 0
        for number in range(turns):
            await asyncio.sleep(0.1)
            log = Log(client)
            text = f"turn-{number}"
            lines = _syncs(launcher.trace)
            await asyncio.to_thread(one, client, times, f"{text}.")
            await asyncio.sleep(0.1)
            log.read()
            row = rows(times)[text]
            ends = [at - shift for at in _syncs(launcher.trace)]
            everywhere += len(ends) - len(lines)
            before.append(sum(log.handed[text] <= at <= row["prompt"] for at in ends))
            after.append(sum(row["result"] <= at <= log.final[text] for at in ends))
        both = [sum(pair) for pair in zip(before, after, strict=True)]
        show(
            "serial fsyncs of a turn",
            n=turns,
            handed_out_to_prompt=statistics.mean(before),
            result_to_telegram=statistics.mean(after),
            most=max(both),
            of_the_bot_per_turn=round(everywhere / turns, 1),
        )


def _syncs(trace: Path) -> list[float]:
    """When they were called, or came back where another thread's line stands between, in seconds since the epoch."""
    lines = trace.read_text(errors="replace").splitlines() if trace.exists() else []
    found = (FSYNC.search(line) for line in lines if "<unfinished" not in line)
    return [float(match[1] or match[2]) for match in found if match]


async def main(users: int, messages: int, grown: int, turns: int) -> None:
    if users:
        await throughput(users, messages)
    if grown:
        await growth(grown)
    if turns:
        await fsyncs(turns)


if __name__ == "__main__":
    given = [int(word) for word in sys.argv[1:]]
    asyncio.run(main(*[*given, *(100, 20, 10_000, 50)[len(given) :]]))
