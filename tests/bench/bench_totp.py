"""How many codes the verifier checks in a second, and how soon it answers when it has to start first.

`python tests/bench/bench_totp.py [SECONDS]`; JSON lines. Each wrong code is on disk before its answer: the disk is in
these figures. Attempts are the most there may be, and each user is unlocked before they are used up.
"""

import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from kai.interfaces import Unlock, Verify
from tests.process.totp import TotpSet, wrong

STARTS = 15
SIDE_BY_SIDE = 32


def say(figure: str, **values: object) -> None:
    print(json.dumps({"figure": figure, **values}), flush=True)


async def one_after_another(totp: TotpSet, seconds: float, code: str) -> float:
    """Verifications in a second; an empty code is only a question."""
    count, spent = 0, 0.0
    while spent < seconds:
        await totp.call(Unlock("alice"))
        began = time.perf_counter()
        for _ in range(9):
            await totp.say(code)
        spent += time.perf_counter() - began
        count += 9
    return count / spent


async def at_once(totp: TotpSet, seconds: float, code: str) -> float:
    """The same from many connections; one commit serves those that come together. Behind a lock, nothing is written."""
    end, counts = time.perf_counter() + seconds, [0] * SIDE_BY_SIDE

    async def one(number: int) -> None:
        while time.perf_counter() < end:
            await totp.client.call(Verify("alice", code))
            counts[number] += 1

    await asyncio.gather(*map(one, range(SIDE_BY_SIDE)))
    return sum(counts) / seconds


async def cold(totp: TotpSet) -> list[float]:
    taken = []
    for _ in range(STARTS):
        await totp.call(Unlock("alice"))
        await totp.stop()
        await asyncio.sleep(0.2)
        code = wrong()
        began = time.perf_counter()
        await totp.say(code)
        taken.append(time.perf_counter() - began)
    return sorted(taken)


async def by_right_digits(totp: TotpSet, seconds: float) -> dict[int, float]:
    """The median in ms for wrong codes that begin with 0, 3 or 5 right digits: they should not differ."""
    samples: dict[int, list[float]] = {0: [], 3: [], 5: []}
    end, number = time.perf_counter() + seconds, 0
    while time.perf_counter() < end:
        if number % 8 == 0:
            await totp.call(Unlock("alice"))
        like = (0, 3, 5)[number % 3]
        code = wrong(like=like)
        began = time.perf_counter()
        await totp.say(code)
        samples[like].append(time.perf_counter() - began)
        number += 1
    return {like: round(1000 * statistics.median(taken), 2) for like, taken in samples.items()}


async def main(seconds: float) -> None:
    with tempfile.TemporaryDirectory() as name:
        totp = TotpSet(Path(name), attempts=10)
        try:
            await totp.enrol()
            rate = await one_after_another(totp, seconds, wrong())
            say("wrong codes, one after another", per_second=round(rate), ms=round(1000 / rate, 2))
            rate = await one_after_another(totp, seconds, "")
            say("questions, one after another", per_second=round(rate), ms=round(1000 / rate, 2))
            say("wrong codes by the digits that are right", ms=await by_right_digits(totp, seconds))
            for _ in range(10):
                await totp.say(wrong())
            rate = await at_once(totp, seconds, wrong())
            say("codes behind a lock, from many connections", connections=SIDE_BY_SIDE, per_second=round(rate))
            taken = await cold(totp)
            median = round(1000 * statistics.median(taken))
            say("cold start to answer", ms={"median": median, "max": round(1000 * taken[-1])}, starts=STARTS)
        finally:
            await totp.close()


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1]) if len(sys.argv) > 1 else 5))
