"""`kai status`: the bot and the agents in a few lines. Wakes no agent: only running supervisors are asked."""

from __future__ import annotations

import argparse
import asyncio
import subprocess
from pathlib import Path

from kai.cli import totpfiles
from kai.cli.fail import Failure, need_root
from kai.cli.paths import config_dir, runtime_dir
from kai.config import ConfigError, load
from kai.interfaces import State, Status
from kai.lib.client import Client
from kai.lib.log import printable
from kai.lib.varlink import Fault, Unavailable


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("status", help="what the bot and the agents are doing")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Exit status 0 when the bot answers, else 1."""
    need_root("kai status")
    return asyncio.run(_status())


async def _status() -> int:
    code, let_in = 0, ""
    try:
        bot = await Client(runtime_dir() / "bot.sock").call(Status(), timeout=5)
        name = f" as @{bot.name}" if bot.name else ""
        dead = f", {bot.dead} to decide on: see `kai queue`" if bot.dead else ""
        counts = f"{bot.users} users, {bot.running} running, {bot.queued} waiting, {bot.unsent} unsent{dead}"
        print(printable(f"bot      {bot.state}{name}, {counts}", 500))
        let_in = f", let in now: {', '.join(bot.let_in) or 'nobody'}"
    except (Unavailable, Fault) as error:
        print(f"bot      not running: {printable(str(error))}: see `systemctl status kai-bot`")
        code = 1
    if enrolled := totpfiles.FILES.users():
        door = "" if active("kai-totp.socket") else ", no socket, so nothing of them is let through: `kai doctor`"
        print(f"totp     {', '.join(enrolled)} enrolled{let_in}{door}")
    try:
        users = load(config_dir()).users
    except ConfigError as error:
        raise Failure(str(error)) from None
    for user in users:
        print(f"{user.name:8} {await _agent(user.name)}")
    return code


async def _agent(user: str) -> str:
    if not active(f"kai-agent@{user}.service"):
        return "idle" if active(f"kai-agent@{user}.socket") else "no socket: run `kai users apply`"
    try:
        state = await Client(runtime_dir() / "agent" / f"{user}.sock").call(State(), timeout=5)
    except (Unavailable, Fault) as error:
        return printable(str(error))  # an agent's supervisor wrote it
    turn = f", turn {state.turn}" if state.turn else ""
    turn += f", jobs running: {state.jobs}" if state.jobs else ""
    session = state.session or "none"
    return printable(f"{state.state}{turn}, {state.turns} turns, ${state.cost_usd:.4f} in session {session}", 300)


def active(unit: str) -> bool:
    """Whether systemd says that the unit is active. Without systemctl nothing is."""
    systemctl = Path("/usr/bin/systemctl")
    return systemctl.exists() and subprocess.run([systemctl, "is-active", "-q", unit], check=False).returncode == 0
