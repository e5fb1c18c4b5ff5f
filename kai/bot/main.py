"""kai-bot(8): the bot, between Telegram and the users' agents.

Runs as kai-bot, always; the one unit that holds the Telegram token. Takes updates, admits by numeric id, stores them
before it acknowledges them, hands each user's messages in order to his supervisor, and sends the answers. May reach
Telegram and the supervisors' sockets; supervisors and the scheduler may ask it to deliver. Runs no agent and opens no
file of a user.
"""

from __future__ import annotations

import asyncio
import logging
import re

from kai.bot.bot import Bot
from kai.bot.tables import open_tables
from kai.config import ConfigError, load
from kai.lib import credentials, daemon
from kai.lib.daemon import Daemon
from kai.lib.peers import Peers
from kai.lib.server import Server
from kai.lib.store import StoreError
from kai.lib.varlink import Misconfigured

TOKEN = re.compile(r"[0-9]{1,20}:[A-Za-z0-9_-]+")
logger = logging.getLogger(__name__)


def main() -> None:
    daemon.run("kai-bot", serve)


async def serve(d: Daemon) -> None:
    try:
        config = load(d.config_dir)
        token = credentials.read("kai-telegram-token")
        if not TOKEN.fullmatch(token):
            raise Misconfigured(
                "credential kai-telegram-token: expected 123456:ABC-DEF… as @BotFather gives it; write it to "
                "/etc/credstore/kai-telegram-token (root, 0600) and restart kai-bot"
            )
        store = open_tables(d.state_dir)
    except (ConfigError, StoreError) as error:
        raise Misconfigured(str(error)) from None
    bot = Bot(d, config, token, store)
    Server(d, "bot", Peers(one_uid=d.one_uid), bot.service.handlers())
    d.on_reload.append(bot.reload)
    work = asyncio.create_task(bot.run())
    stop = asyncio.create_task(d.until_done())
    await asyncio.wait({work, stop}, return_when=asyncio.FIRST_COMPLETED)
    await bot.close()
    store.close()
    if work.done() and not work.cancelled():
        work.result()  # it never ends by itself: this raises what ended it


if __name__ == "__main__":
    main()
