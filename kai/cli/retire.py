"""`kai retire`: every running supervisor finishes its turn and leaves; its socket starts the new one. For upgrades."""

from __future__ import annotations

import argparse
import asyncio

from kai.cli.fail import Failure, need_root
from kai.cli.paths import config_dir, runtime_dir
from kai.cli.status import active
from kai.config import ConfigError, load
from kai.interfaces import Retire
from kai.lib.client import Client
from kai.lib.log import printable
from kai.lib.varlink import Fault, Unavailable


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("retire", help="have running agents finish their turn and leave")
    parser.add_argument("user", nargs="*", help="only these users (default: all)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    need_root("kai retire")
    try:
        users = [user.name for user in load(config_dir()).users]
    except ConfigError as error:
        raise Failure(str(error)) from None
    for name in arguments.user:
        if name not in users:
            raise Failure(f"no user named {name} in {config_dir() / 'users.yaml'}")
    running = [name for name in arguments.user or users if active(f"kai-agent@{name}.service")]
    return asyncio.run(_retire(running))


async def _retire(names: list[str]) -> int:
    code = 0
    for name in names:
        try:
            await Client(runtime_dir() / "agent" / f"{name}.sock").call(Retire(), timeout=10)
        except (Unavailable, Fault) as error:
            print(f"{name}: {printable(str(error))}")
            print(f"  `systemctl restart kai-agent@{name}` does it at the cost of a running turn")
            code = 1
        else:
            print(f"{name}: leaves after its turn")
    return code
