"""The crash sweep for as long as one likes: kills, updates, lost, run twice, answered twice, and each send in doubt.

`python tests/bench/bench_crash.py [KILLS [FIRST SEED]]`: 10,000 kills take about a quarter of an hour on two cores.
Prints a JSON line; on standard error every sweep that found something, with its seed and the instants of its kills. A
seed runs again by `bench_crash.py 1 SEED`. What is counted as what: `tests/process/crash/verdict.py`.
"""

import asyncio
import json
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.process.crash.sweep import Report, Sweep
from tests.process.crash.units import Zygote

AT_ONCE = 3
"""Sweeps side by side: one alone waits half of the time."""
KILLS = 65
"""Of one sweep, after which all is left to settle and is judged."""


class Bench:
    """Sweeps of one seed after another until there were so many kills."""

    def __init__(self, zygote: Zygote, kills: int, seed: int) -> None:
        self.zygote, self.kills, self.seed = zygote, kills, seed
        self.reports: list[Report] = []

    async def work(self) -> None:
        while sum(report.killed for report in self.reports) < self.kills:
            seed, self.seed = self.seed, self.seed + 1
            report = await Sweep(self.zygote, seed, wanted=KILLS).run()
            self.reports.append(report)
            if report.wrong:
                print(report, file=sys.stderr, flush=True)

    def figures(self, seconds: float) -> dict[str, object]:
        verdicts = [report.verdict for report in self.reports]
        doubt = Counter(_kind(line) for verdict in verdicts for line in verdict.ambiguous)
        return {
            "figure": "crash sweep",
            "kills": sum(report.killed for report in self.reports),
            "power cuts": sum(report.power_cuts for report in self.reports),
            "updates": sum(report.said.updates for report in self.reports),
            "deliveries": sum(len(report.said.deliveries) for report in self.reports),
            "answered": sum(verdict.answered for verdict in verdicts),
            "told that it was cut off or dropped": sum(verdict.told for verdict in verdicts),
            "continued": sum(verdict.continued for verdict in verdicts),
            "lost": sum(len(verdict.lost) for verdict in verdicts),
            "run twice": sum(len(verdict.run_twice) for verdict in verdicts),
            "answered twice": sum(len(verdict.answered_twice) for verdict in verdicts),
            "out of order": sum(len(verdict.disorder) for verdict in verdicts),
            "unfinished": sum(len(verdict.unfinished) for verdict in verdicts),
            "ambiguous": dict(sorted(doubt.items())),
            "shown again": sum(verdict.shown_again for verdict in verdicts),
            "sweeps with a fault": [report.seed for report in self.reports if report.wrong],
            "kills by instant": dict(sorted(sum((report.points for report in self.reports), Counter()).items())),
            "seconds": round(seconds),
        }


def _kind(line: str) -> str:
    """Whether a doubtful message arrived, and whether its user was told."""
    arrived = "did not arrive" if "did not arrive" in line else "arrived"
    return f"{arrived}, {'not told' if 'not told' in line else 'told'}"


async def main(kills: int, seed: int) -> int:
    began = time.monotonic()
    zygote = Zygote()
    try:
        bench = Bench(zygote, kills, seed)
        await asyncio.gather(*(bench.work() for _ in range(AT_ONCE if kills > KILLS else 1)))
    finally:
        zygote.close()
    print(json.dumps(bench.figures(time.monotonic() - began)), flush=True)
    return 1 if any(report.wrong for report in bench.reports) else 0


if __name__ == "__main__":
    arguments = [int(word) for word in sys.argv[1:]]
    sys.exit(asyncio.run(main(arguments[0] if arguments else 10_000, arguments[1] if len(arguments) > 1 else 1000)))
