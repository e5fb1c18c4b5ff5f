"""Memory of the set at rest: PSS of every process of Kai's, in MiB, after an answer and after the agent was evicted.

Prints JSON lines. One uid, no systemd; the agent's own process is not Kai's and is left out.
"""

import asyncio
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from kai.demo.launcher import Launcher
from tests.bench.bench_delay import ALICE, TOKEN, telegram


def pss(pid: int) -> float:
    """Proportional set size of a process, in MiB."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no Pss of {pid}")


async def main() -> None:
    with tempfile.TemporaryDirectory() as name, telegram(Path(name)) as (url, client):
        launcher = Launcher(
            Path(name) / "set",
            api_base=url,
            token=TOKEN,
            users=[{"telegram_id": ALICE, "name": "alice"}],
            settings={"agent": {"idle_timeout": 3}},
        )
        async with launcher:
            await launcher.wait_ready("kai-bot")
            await asyncio.to_thread(client.wait_polling)
            client.say(ALICE, "! echo hello")
            await asyncio.to_thread(client.wait_message, ALICE, contains="hello", timeout=30)
            await asyncio.sleep(1)
            pids = {unit: launcher.pid(unit) for unit in ("kai-bot", "kai-agent@alice")}
            active = {unit: round(pss(pid), 1) for unit, pid in pids.items() if pid}
            print(json.dumps({"figure": "PSS with one active user", "MiB": active}), flush=True)
            await launcher.wait_exit("kai-agent@alice", within=60)
            pids = {unit: launcher.pid(unit) for unit in ("kai-bot", "kai-agent@alice")}
            idle = {unit: round(pss(pid), 1) for unit, pid in pids.items() if pid}
            print(json.dumps({"figure": "idle PSS of the set", "MiB": idle}), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
