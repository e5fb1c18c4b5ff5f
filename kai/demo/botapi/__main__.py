"""`python -m kai.demo.botapi`: the stand-in as a program. Prints its address, runs until SIGTERM or Ctrl-C."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from pathlib import Path

from kai.demo.botapi.flood import realistic
from kai.demo.botapi.server import BotApi


def main() -> int:
    """Run it; 0 after a signal, 2 for wrong options, 1 when it can't start."""
    options = _options()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="botapi: %(message)s")
    try:
        token = options.token_file.read_text().strip()
        api = BotApi(token=token, username=options.username, limits=realistic() if options.flood_limits else None)
        return asyncio.run(_serve(api, options.port, options.port_file))
    except (OSError, ValueError) as fault:
        print(f"botapi: can't start: {fault}", file=sys.stderr)
        return 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m kai.demo.botapi", description="A stand-in for Telegram's Bot API")
    parser.add_argument("--port", type=int, default=0, help="TCP port on 127.0.0.1, 0 (default) for any free one")
    parser.add_argument("--token-file", type=Path, required=True, help="file with the bot's token, NUMBER:SECRET")
    parser.add_argument("--port-file", type=Path, help="file to write the port into when it listens")
    parser.add_argument("--username", default="kai_demo_bot", help="the bot's user name")
    parser.add_argument("--flood-limits", action="store_true", help="answer 429 as Telegram does under load")
    return parser.parse_args()


async def _serve(api: BotApi, port: int, port_file: Path | None) -> int:
    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, over.set)
    await api.start(port=port)
    if port_file:
        # renamed into place, so that whoever waits for the file never reads half of it
        beside = port_file.with_name(port_file.name + ".new")
        beside.write_text(f"{api.port}\n")
        beside.replace(port_file)
    print(api.url, flush=True)
    await over.wait()
    await api.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
