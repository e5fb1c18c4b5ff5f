"""Kai's own delay: update handed out → prompt at the agent, plus result → Telegram, every durable write included.

Warm: the agent's process runs. Cold: it was evicted and its supervisor has left; the agent's own start is taken off.
Start: exec of kai-bot → its first getUpdates. Processor time: what a warm turn costs the bot and the supervisor; on a
machine that has other work too, this is the figure to compare.

Prints JSON lines; `python tests/bench/bench_delay.py [WARM [COLD]]`.
"""

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from kai.demo.botapi.client import ControlClient
from kai.demo.launcher import Launcher

TOKEN = "1234567:bench-token-that-is-long-enough"
ALICE = 1001
PARTS: list[tuple[float, float]] = []


@contextmanager
def telegram(directory: Path) -> Iterator[tuple[str, ControlClient]]:
    """The stand-in in a process of its own, so that its work isn't on the clock of the set's."""
    (directory / "token").write_text(TOKEN)
    program = [sys.executable, "-m", "kai.demo.botapi", "--token-file", str(directory / "token")]
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen([*program, "--port-file", str(directory / "port")], cwd=root, stdout=subprocess.DEVNULL) as p:
        try:
            while not (directory / "port").exists():
                time.sleep(0.02)
            port = (directory / "port").read_text().strip()
            url = f"http://127.0.0.1:{port}"
            client = ControlClient(url, TOKEN)
            client.declare_user(ALICE)
            yield url, client
        finally:
            p.terminate()


def own_times(times: Path, text: str) -> dict[str, float]:
    """What the agent wrote down of a turn; it does so after the result, which may be in Telegram by then."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        lines = times.read_text().splitlines(keepends=True) if times.exists() else []
        for row in (json.loads(line) for line in reversed(lines) if line.endswith("\n")):
            if row["text"] == text:
                return dict(row)
        time.sleep(0.005)
    raise RuntimeError(f"the agent wrote nothing of {text}")


def processor(pid: int) -> float:
    """Seconds of processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def one(client: ControlClient, times: Path, text: str, *, cold: bool = False) -> float:
    """Seconds of Kai's own for one message."""
    client.say(ALICE, text)
    client.wait_message(ALICE, contains=f"re: {text}", timeout=30)
    handed = final = 0.0
    for call in client.calls():
        answer, parameters = call.answer or {}, call.params
        if call.method == "getUpdates" and text in json.dumps(answer.get("result", "")):
            handed = call.answered or 0.0
        if call.method in ("sendMessage", "editMessageText") and parameters.get("text") == f"re: {text}":
            final = final or call.at
    row = own_times(times, text)
    own_start = row["ready"] - row["began"] if cold else 0.0
    PARTS.append((row["prompt"] - handed, final - row["result"]))
    return float(row["prompt"] - handed - own_start + final - row["result"])


def show(name: str, samples: list[float]) -> None:
    cuts = statistics.quantiles(samples, n=100, method="inclusive")
    figures = {"p50": cuts[49], "p95": cuts[94], "p99": cuts[98], "max": max(samples)}
    milliseconds = {key: round(value * 1000, 2) for key, value in figures.items()}
    print(json.dumps({"figure": name, "n": len(samples), "ms": milliseconds}), flush=True)


async def main(warm: int, cold: int) -> None:
    with tempfile.TemporaryDirectory() as name, telegram(Path(name)) as (url, client):
        directory = Path(name)
        times = directory / "times"
        agent = [sys.executable, "-I", "-S", str(Path(__file__).with_name("instant_agent.py")), "--times", str(times)]
        launcher = Launcher(
            directory / "set",
            api_base=url,
            token=TOKEN,
            users=[{"telegram_id": ALICE, "name": "alice"}],
            agent_command=agent,
            settings={"agent": {"idle_timeout": 1}},
        )
        async with launcher:
            await launcher.wait_ready("kai-bot")
            await asyncio.to_thread(client.wait_polling)
            await asyncio.to_thread(one, client, times, "first")
            pids = {unit: launcher.pid(unit) for unit in ("kai-bot", "kai-agent@alice")}
            before = {unit: processor(pid) for unit, pid in pids.items() if pid}
            samples = [await asyncio.to_thread(one, client, times, f"warm-{n}.") for n in range(warm)]
            used = {unit: round((processor(pids[unit] or 0) - s) * 1000 / warm, 2) for unit, s in before.items()}
            show("warm delay", samples)
            show("warm delay: handed out to prompt", [p for p, _ in PARTS[-warm:]])
            show("warm delay: result to Telegram", [r for _, r in PARTS[-warm:]])
            print(json.dumps({"figure": "processor time of a warm turn", "n": warm, "ms": used}), flush=True)
            evicted = []
            for number in range(cold):
                await launcher.wait_exit("kai-agent@alice", within=30)
                evicted.append(await asyncio.to_thread(one, client, times, f"cold-{number}.", cold=True))
            if evicted:
                show("cold delay without the agent's own start", evicted)
            starts = []
            for _ in range(10):
                await launcher.services["kai-bot"].stop()
                seen = client.calls()[-1].seq
                began = time.monotonic()
                launcher.services["kai-bot"].start()
                call = await asyncio.to_thread(client.wait_call, "getUpdates", since=seen)
                starts.append(call.at - began)
                await launcher.wait_ready("kai-bot")
            show("kai-bot exec to first getUpdates", starts)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 300, int(sys.argv[2]) if len(sys.argv) > 2 else 5))
