"""Memory of one supervisor: PSS in MiB when it has just started, with an agent, and after turn upon turn.

Prints JSON lines; `python tests/bench/bench_memory.py [TURNS]`. The turns come over its socket, as the bot sends them,
each with some text and its place in journal and history; the agent's own process is left out.
"""

import asyncio
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from kai.demo.launcher import Launcher
from kai.interfaces import Event, Part, Start, State
from kai.lib.client import Client
from tests.bench.bench_delay import ALICE, TOKEN, telegram
from tests.bench.bench_idle import pss

UNIT = "kai-agent@alice"


async def turn(client: Client, number: int) -> None:
    text = f"turn {number} " + "of some words " * 40
    last: Event | None = None
    async for event in client.stream(Start(turn=f"1.{number}", prompt=[Part(kind="text", text=text)])):
        last = event
    if last is None or last.outcome != "ok":
        raise RuntimeError(f"turn {number} failed: {last}")


async def main(turns: int) -> None:
    with tempfile.TemporaryDirectory() as name, telegram(Path(name)) as (url, _):
        directory = Path(name)
        agent = [sys.executable, "-I", "-S", str(Path(__file__).with_name("instant_agent.py"))]
        launcher = Launcher(
            directory / "set",
            api_base=url,
            token=TOKEN,
            users=[{"telegram_id": ALICE, "name": "alice"}],
            agent_command=[*agent, "--times", str(directory / "times")],
        )
        async with launcher:
            await launcher.wait_ready("kai-bot")
            client = Client(launcher.runtime / "agent/alice.sock")
            await client.call(State())
            pid = launcher.pid(UNIT)
            assert pid
            found = {"fresh": pss(pid)}
            for number in range(1, turns + 1):
                await turn(client, number)
                if number in (1, 10, 100, turns):
                    found[f"after {number} turns"] = pss(pid)
            assert launcher.pid(UNIT) == pid
            rounded = {when: round(value, 1) for when, value in found.items()}
            print(json.dumps({"figure": "PSS of a supervisor", "MiB": rounded}), flush=True)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000))
