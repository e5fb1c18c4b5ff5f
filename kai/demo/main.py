"""`kai demo`: the whole set on this machine without root, systemd, Telegram or a model, and a chat with it.

The same daemons and sockets as in an installation, started by a small launcher; a strict stand-in for the Bot API; an
offline agent that runs commands; the terminal as the Telegram app. `--say TEXT` prints one answer and leaves.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import pwd
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kai.demo.botapi.server import BotApi
from kai.demo.chat import Chat, at_terminal, by_lines, grows, is_terminal
from kai.demo.editor import Editor
from kai.demo.launcher import Launcher, LauncherError, refuse_where_installed
from kai.demo.screen import Plain, Terminal
from kai.interfaces import Status
from kai.lib.client import Client
from kai.lib.varlink import Fault, Unavailable

USER, USER_ID = "you", 1001
SETTINGS = {"drain": 1, "agent": {"idle_timeout": 600}}
"""A demo that ends doesn't wait two minutes for a turn."""
READY_WITHIN = 20.0
ANSWER_WITHIN = 60.0
GREETING = """\
Kai's demo: the real daemons, a stand-in for Telegram, an offline agent. Nothing leaves this machine.
What is missing here is the isolation: everything runs as you ({account}), without systemd, accounts of
its own, sudo or sandbox. A command that you give the agent has all your rights.

Write a message. `help` tells what the agent can do, /help what Kai can. `! ls -la` runs a command.
:1 presses button [1], Ctrl-C stops a running turn, Ctrl-D ends everything{kept}.
"""


def options() -> argparse.ArgumentParser:
    """The options of `kai demo`."""
    parser = argparse.ArgumentParser(
        prog="kai demo",
        description="Runs Kai's daemons under your own account, with stand-ins for Telegram and the agent.",
    )
    parser.add_argument("--say", metavar="TEXT", help="send one message, print the answer, and leave")
    parser.add_argument("--keep", metavar="DIR", type=Path, help="keep configuration, state and logs in this directory")
    return parser


def main(argv: list[str] | None = None) -> int:
    """`kai demo`. Exit status: 0, or 1 with the reason on standard error; 2 for wrong options."""
    arguments = options().parse_args(argv)
    try:
        standard_streams()
        refuse_where_installed()
        with place(arguments.keep) as directory:
            return asyncio.run(_demo(directory, arguments.say, kept=arguments.keep is not None))
    except (LauncherError, OSError) as error:
        sys.stderr.write(f"kai demo: {error}\n")
    except KeyboardInterrupt:
        return 130
    return 1


def standard_streams() -> None:
    """Who starts this with some of them closed must not get a socket in their place, nor a poor locale a traceback."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


@contextmanager
def place(kept: Path | None) -> Iterator[Path]:
    """The directory of everything that is written; gone afterwards, unless it was asked for."""
    if kept:
        kept.mkdir(mode=0o700, parents=True, exist_ok=True)
        yield kept.absolute()
        return
    directory = Path(tempfile.mkdtemp(prefix="kai-demo-"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


async def _demo(directory: Path, text: str | None, *, kept: bool) -> int:
    # a new bot each time: a kept state must not take the stand-in's message and update ids for those of before
    api = BotApi(token=f"{secrets.randbelow(9 * 10**8) + 10**8}:{secrets.token_urlsafe(32)}")
    api.declare_user(USER_ID, first_name=_account())
    await api.start()
    users = [{"telegram_id": USER_ID, "name": USER, "role": "admin"}]
    launcher = Launcher(directory, api_base=api.url, token=api.token, users=users, settings=SETTINGS)
    work: asyncio.Task[int] | None = None
    try:
        await launcher.start()
        work = asyncio.create_task(_chat(api, launcher, kept=kept) if text is None else _say(api, launcher, text))
        for number in (signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, work.cancel)
        await asyncio.wait({work})
        return 128 + signal.SIGTERM if work.cancelled() else work.result()
    finally:
        if work:
            work.cancel()
            await asyncio.wait({work})
        await launcher.stop()
        await api.stop()


async def _say(api: BotApi, launcher: Launcher, text: str) -> int:
    """One message and its answer, whole and nothing else, on standard output."""
    await launcher.wait_ready("kai-bot", within=READY_WITHIN)
    try:
        said = api.say(USER_ID, text)
        async with asyncio.timeout(ANSWER_WITHIN):
            await api.wait_message(USER_ID, after=said.message_id, timeout=ANSWER_WITHIN)
            await while_it_lives(launcher, until_idle(api, launcher))
    except ValueError as error:
        raise LauncherError(str(error)) from None
    except TimeoutError:
        told = "\n".join(f"{name}: {status}" for name, status in launcher.status().items())
        logs = launcher.end_of_log("kai-bot") + "\n" + launcher.end_of_log(f"kai-agent@{USER}")
        raise LauncherError(f"no answer within {ANSWER_WITHIN:g} s\n{told}\n{logs}".rstrip()) from None
    answers = [m.text for m in api.messages(USER_ID) if m.by_bot and m.message_id > said.message_id and m.text]
    print("\n\n".join(answers))
    return 0


async def _chat(api: BotApi, launcher: Launcher, *, kept: bool) -> int:
    """Talk until Ctrl-D, the end of the input, or the end of the bot."""
    editor = Editor()
    face = Terminal(sys.stdout, editor) if is_terminal() else Plain(sys.stdout)
    print(GREETING.format(account=_account(), kept=f"; {launcher.directory} is kept" if kept else ""), flush=True)
    await launcher.wait_ready("kai-bot", within=READY_WITHIN)
    chat = Chat(api, USER_ID, face)

    def interrupted() -> None:
        if not chat.interrupt():
            chat.over.set()

    async def talk() -> None:
        if isinstance(face, Terminal):
            await at_terminal(chat, face, editor)
        else:
            await by_lines(chat)
        if not chat.over.is_set():
            await until_idle(api, launcher, calm=1.0)
            chat.catch_up()

    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, interrupted)
    following = asyncio.create_task(chat.follow())
    try:
        await while_it_lives(launcher, talk())
    finally:
        following.cancel()
    return 0


async def while_it_lives(launcher: Launcher, work: Coroutine[Any, Any, None]) -> None:
    """See the work through. Raises LauncherError with the bot's last words as soon as it has failed for good."""
    bot = launcher.services["kai-bot"]
    doing, failing = asyncio.create_task(work), asyncio.create_task(bot.failed.wait())
    try:
        await asyncio.wait({doing, failing}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        doing.cancel()
        failing.cancel()
        await asyncio.wait({doing, failing})
    if not doing.cancelled():
        doing.result()
    else:
        raise LauncherError(f"kai-bot: {launcher.status()['kai-bot']}\n{launcher.end_of_log('kai-bot')}".rstrip())


async def until_idle(api: BotApi, launcher: Launcher, *, calm: float = 0.05) -> None:
    """Wait until the bot has taken every update, and for `calm` seconds nothing runs, grows, waits or is unsent."""
    bot = Client(launcher.runtime / "bot.sock")
    loop = asyncio.get_running_loop()
    busy = loop.time()
    while loop.time() - busy <= calm:
        await asyncio.sleep(0.05)
        try:
            status = await bot.call(Status(), timeout=5)
        except (Fault, Unavailable):
            busy = loop.time()
            continue
        growing = any(grows(message.text, message.reply_markup) for message in api.messages(USER_ID, history=False))
        if api.state().pending or growing or status.running or status.queued or status.unsent:
            busy = loop.time()


def _account() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"uid {os.geteuid()}"


if __name__ == "__main__":
    raise SystemExit(main())
