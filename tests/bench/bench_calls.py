"""Processor time and delay of one call of the Bot API: python-telegram-bot's own HTTPXRequest against Kai's Transport.

Interleaved, so that what else the machine does meets both. `python tests/bench/bench_calls.py [ROUNDS]`; JSON lines.
"""

import asyncio
import json
import ssl
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import telegram
from telegram.request import BaseRequest, HTTPXRequest

from kai.bot.transport import Transport
from tests.bench.bench_delay import ALICE, TOKEN
from tests.bench.bench_delay import telegram as stand_in

CALLS = 50


async def sends(bot: telegram.Bot) -> tuple[float, float]:
    """Seconds of processor and of waiting for one sendMessage."""
    cpu, began = time.process_time(), time.monotonic()
    for number in range(CALLS):
        await bot.send_message(ALICE, f"message {number}", disable_notification=True)
    return (time.process_time() - cpu) / CALLS, (time.monotonic() - began) / CALLS


async def main(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as name, stand_in(Path(name)) as (url, _):
        context = ssl.create_default_context()
        options = {"verify": context, "trust_env": False}
        requests: dict[str, BaseRequest] = {
            "HTTPXRequest": HTTPXRequest(connection_pool_size=32, httpx_kwargs=options),
            "Transport": Transport(url, context, connections=32, trust_env=False),
        }
        bots = {
            kind: telegram.Bot(TOKEN, f"{url}/bot", request=request, get_updates_request=HTTPXRequest())
            for kind, request in requests.items()
        }
        samples: dict[str, list[tuple[float, float]]] = {kind: [] for kind in bots}
        for _ in range(rounds + 1):
            for kind, bot in bots.items():
                samples[kind].append(await sends(bot))
        for kind, taken in samples.items():
            processor, delay = (statistics.median(one[at] for one in taken[1:]) * 1e6 for at in (0, 1))
            figure = {"figure": "sendMessage", "through": kind, "µs": {"cpu": round(processor), "delay": round(delay)}}
            print(json.dumps(figure, ensure_ascii=False), flush=True)
            await requests[kind].shutdown()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 10))
