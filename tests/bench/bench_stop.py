"""How long /stop takes: update handed out → Telegram has taken a message that says ⏹, and the one of the stopped turn.

In the middle of text, of a Bash command, of a question, of the agent's start, and with 100 messages waiting, without
and with Telegram's flood limits; first with the offline agent, then with Claude Code where it can be had. Prints JSON
lines; `python tests/bench/bench_stop.py [N [PART OF A NAME]]`.
"""

import asyncio
import json
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from kai.demo.botapi.client import ControlClient
from kai.demo.botapi.flood import FloodLimits, realistic
from kai.demo.launcher import Launcher, offline_agent
from tests import claude_cli
from tests.bench.bench_delay import ALICE, TOKEN, telegram
from tests.messages_api import MessagesAPI

QUEUED = 100
QUESTION = "asks for your approval"
WORDS = " ".join(f"word{number}" for number in range(400))
KEY = "bench-key"


class Situation(NamedTuple):
    """`begins` is what can be read in the chat, or in the supervisor's status, when the moment for /stop has come."""

    name: str
    prompt: str
    begins: str
    ask: bool = False
    queued: int = 0
    settle: bool = True
    """Whether the chat has told how many wait before /stop is said."""
    limits: FloodLimits = FloodLimits()
    pause: float = 0.0
    """Seconds for which the text grows: with flood limits, edits have a history."""


OFFLINE = (
    Situation("text", "slow 3000", "word3"),
    Situation("Bash", "! sleep 4321", "⚙ Bash: sleep 4321"),
    Situation("question", "! sleep 4321", QUESTION, ask=True),
    Situation("100 waiting", "slow 3000", "word3", queued=QUEUED),
    Situation("100 in one delivery", "slow 3000", "word3", queued=QUEUED - 1, settle=False),
    Situation("100 waiting, flood limits", "slow 3000", "word3", queued=QUEUED, limits=realistic(), pause=10.0),
)
START = Situation("start of the agent", "say never", "starting, session")
AT_ONCE = Situation("start of the supervisor", "say never", "")
CLAUDE = (
    Situation("text", f"slow: 60 {WORDS}", "word3"),
    Situation("Bash", "run: tail -f /dev/null", "⚙ Bash: tail -f /dev/null"),
    Situation("question", "run: touch never", QUESTION, ask=True),
    Situation("100 waiting", f"slow: 60 {WORDS}", "word3", queued=QUEUED),
)


class Chat:
    """What is to be seen on the screen since a moment."""

    def __init__(self, client: ControlClient) -> None:
        self.client = client
        self.version = client.state().version

    def wait(self, *contains: str, timeout: float = 60) -> float:
        """When the bot first showed one of these, on the machine's monotonic clock."""
        end = time.monotonic() + timeout
        while (left := end - time.monotonic()) > 0:
            news = self.client.changes(self.version, timeout=min(left, 20), kinds=("message", "edit"))
            for change in news.changes:
                text = change.data["text"] or ""
                if change.data["by_bot"] and any(each in text for each in contains):
                    self.version = change.version
                    return change.at
            self.version = news.version
        raise TimeoutError(f"never shown: {contains}")

    def handed_out(self, update: int | None, since: int) -> float:
        for call in self.client.calls("getUpdates", since=since):
            if any(each["update_id"] == update for each in (call.answer or {}).get("result") or []):
                return call.answered or 0.0
        raise LookupError(f"update {update} was not handed out")


def one(client: ControlClient, launcher: Launcher, situation: Situation) -> tuple[float, float]:
    """Seconds of one /stop, to the first word of it and to the turn's end."""
    chat, calls = Chat(client), client.state().calls
    client.say(ALICE, situation.prompt)
    if situation is START:
        while situation.begins not in launcher.status()["kai-agent@alice"]:
            time.sleep(0.002)
    elif situation.begins:
        chat.wait(situation.begins)
    for number in range(situation.queued):
        client.say(ALICE, f"waits-{number}")
    if situation.queued and situation.settle:
        chat.wait(f"{situation.queued} messages wait")
    time.sleep(situation.pause)
    said = client.say(ALICE, "/stop all" if situation.queued else "/stop")
    version = chat.version
    ended = chat.wait("⏹ Stopped", "⏹ Dropped")
    chat.version = version
    first = chat.wait("⏹")
    began = chat.handed_out(said.update_id, calls)
    if situation.queued:
        chat.version = 0
        chat.wait(f"{situation.queued} waiting dropped")
        client.wait_for(
            lambda: not any("messages wait" in (m.text or "") for m in client.messages(ALICE, history=False))
        )
    return first - began, ended - began


def show(agent: str, situation: Situation, samples: list[tuple[float, float]]) -> None:
    figure: dict[str, Any] = {"figure": f"/stop, {agent}: {situation.name}", "n": len(samples)}
    for what, values in zip(("first word ms", "stopped ms"), zip(*samples, strict=True), strict=True):
        figures = {"p50": statistics.median(values), "max": max(values)}
        figure[what] = {name: round(value * 1000, 1) for name, value in figures.items()}
    print(json.dumps(figure), flush=True)


async def measure(agent: str, situation: Situation, command: list[str], rounds: int) -> None:
    with tempfile.TemporaryDirectory() as name, telegram(Path(name)) as (url, client):
        user: dict[str, Any] = {"telegram_id": ALICE, "name": "alice", "approvals": "ask" if situation.ask else "auto"}
        async with Launcher(
            Path(name) / "set", api_base=url, token=TOKEN, users=[user], agent_command=command
        ) as launcher:
            await launcher.wait_ready("kai-bot")
            await asyncio.to_thread(client.wait_polling)
            client.limits(situation.limits)
            samples = []
            for _ in range(rounds):
                samples.append(await asyncio.to_thread(one, client, launcher, situation))
                if situation in (START, AT_ONCE):  # the supervisor leaves with an agent that it had to end
                    await launcher.services["kai-agent@alice"].stop()
            show(agent, situation, samples)


def slow_to_start(agent: list[str]) -> list[str]:
    return ["/bin/sh", "-c", f'sleep 4322; exec {shlex.join(agent)} "$@"', "agent"]


@contextmanager
def claude() -> Iterator[list[str]]:
    """The command of the real CLI with a scripted model."""
    program = os.fspath(claude_cli.path())
    with tempfile.TemporaryDirectory() as home, MessagesAPI(key=KEY) as api:
        root = ["IS_SANDBOX=1"] if os.geteuid() == 0 else []
        yield [
            "/usr/bin/env",
            f"HOME={home}",
            f"ANTHROPIC_BASE_URL={api.address}",
            f"ANTHROPIC_API_KEY={KEY}",
            *root,
            program,
        ]


async def main(rounds: int, part: str) -> None:
    def wanted(agent: str, situation: Situation) -> bool:
        return part in f"{agent}: {situation.name}"

    with tempfile.TemporaryDirectory() as state:
        command = offline_agent(Path(state))
        for situation in OFFLINE:
            if wanted("offline agent", situation):
                await measure("offline agent", situation, command, rounds)
        for situation in (START, AT_ONCE):
            if wanted("offline agent", situation):
                await measure("offline agent", situation, slow_to_start(command), rounds)
    try:
        with claude() as command:
            for situation in CLAUDE:
                if wanted("Claude Code", situation):
                    await measure("Claude Code", situation, command, rounds)
    except claude_cli.NoCli as reason:
        print(json.dumps({"figure": "/stop, Claude Code", "left out": str(reason)}), flush=True)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 50, sys.argv[2] if len(sys.argv) > 2 else ""))
