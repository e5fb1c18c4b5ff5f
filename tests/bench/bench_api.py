"""The agent's API: requests a second and p99 of itself, of a list of 20 jobs, of making one; the supervisor's memory.

`python tests/bench/bench_api.py [SECONDS]`; JSON lines. Real supervisor and scheduler under one uid; systemd's timers
are played, so making a job costs here what Kai itself takes for it.
"""

import asyncio
import json
import os
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from kai.demo.botapi.server import BotApi
from kai.demo.launcher import Launcher
from kai.interfaces import State
from kai.lib.client import Client
from tests.process.conftest import ALICE, TOKEN, Stage
from tests.process.jobset import JobSet

MOST = 10_000_000
JOB = {"prompt": "x", "schedule_type": "interval", "schedule_data": {"seconds": 86400}}


def say(figure: str, **values: object) -> None:
    print(json.dumps({"figure": figure, **values}), flush=True)


class Caller:
    """One connection that stays open."""

    def __init__(self, path: Path) -> None:
        self.path = path

    async def open(self) -> None:
        self.reader, self.writer = await asyncio.open_unix_connection(os.fspath(self.path))

    async def ask(self, method: str, path: str, body: object = None) -> bytes:
        data = json.dumps(body).encode() if body is not None else b""
        head = f"{method} {path} HTTP/1.1\r\nHost: kai\r\nContent-Length: {len(data)}\r\n"
        self.writer.write(f"{head}Content-Type: application/json\r\n\r\n".encode() + data)
        answer = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        if " 200 " not in answer.partition("\r\n")[0]:
            raise RuntimeError(answer)
        found = re.search(r"content-length: (\d+)", answer, re.IGNORECASE)
        assert found
        return await self.reader.readexactly(int(found[1]))


async def measure(caller: Caller, what: str, seconds: float, method: str, path: str, body: object = None) -> None:
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter()
        await caller.ask(method, path, body)
        taken.append(time.perf_counter() - began)
    taken.sort()
    ms = {"p50": statistics.median(taken), "p99": taken[int(len(taken) * 0.99)], "max": taken[-1]}
    shown = {name: round(1000 * value, 2) for name, value in ms.items()}
    say(what, per_second=round(len(taken) / sum(taken)), ms=shown, count=len(taken))


def memory(pid: int) -> float:
    """MiB, proportional."""
    found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    assert found
    return round(int(found[1]) / 1024, 1)


async def main(seconds: float) -> None:
    api = BotApi(token=TOKEN)
    await api.start()
    api.declare_user(ALICE)
    settings = {"api": {"requests": 100_000, "messages": 100_000}, "jobs": {"limit": 10_000}}
    with tempfile.TemporaryDirectory() as name:
        users = [{"telegram_id": ALICE, "name": "alice"}]
        async with Launcher(Path(name), api_base=api.url, token=TOKEN, users=users, settings=settings) as launcher:
            await launcher.wait_ready("kai-bot")
            jobs = JobSet(Stage(api, launcher))
            await Client(launcher.runtime / "agent" / "alice.sock").call(State())
            pid = launcher.pid("kai-agent@alice")
            assert pid
            before = memory(pid)
            caller = Caller(launcher.runtime / "api" / "alice.sock")
            await caller.open()
            await caller.ask("GET", "/health")
            say("supervisor's memory", pss_mib={"before the first request": before, "after it": memory(pid)})
            await measure(caller, "the API itself (/health)", seconds, "GET", "/health")
            for _ in range(20):
                await jobs.add("x", {"seconds": 86400})
            await measure(caller, "list of 20 jobs", min(seconds, 8), "GET", "/api/jobs")
            await measure(caller, "schedule", min(seconds, 4), "POST", "/api/schedule", JOB)
            say("supervisor's memory", pss_mib={"at the end": memory(pid)})
    await api.stop()


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1]) if len(sys.argv) > 1 else 5))
