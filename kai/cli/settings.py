"""`kai settings`: what is in force for a user, and the operator's hand on it. Asks the user's supervisor."""

from __future__ import annotations

import argparse
import asyncio

from kai.cli.fail import Failure, need_root
from kai.cli.paths import config_dir, runtime_dir
from kai.config import ConfigError, load
from kai.interfaces import Set, Settings, SettingsInForce
from kai.lib.client import Client
from kai.lib.log import printable
from kai.lib.varlink import Call, Fault, Unavailable

SECONDS = 30.0


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "settings",
        help="show or set what a user could with /settings, and approvals auto",
        usage="kai settings [-h] USER [FIELD VALUE | reset [FIELD]]",
    )
    parser.add_argument("user")
    parser.add_argument("words", nargs="*", metavar="FIELD VALUE | reset [FIELD]")
    parser.set_defaults(run=run, parser=parser)


def run(arguments: argparse.Namespace) -> int:
    need_root("kai settings")
    parser: argparse.ArgumentParser = arguments.parser
    call = wanted(arguments.words)
    if call is None:
        parser.error("expected USER, USER FIELD VALUE, USER reset or USER reset FIELD")
    try:
        users = [user.name for user in load(config_dir()).users]
    except ConfigError as error:
        raise Failure(str(error)) from None
    if arguments.user not in users:
        raise Failure(f"no user named {printable(arguments.user, 40)} in {config_dir() / 'users.yaml'}")
    print(table(asyncio.run(_ask(arguments.user, call))))
    return 0


def wanted(words: list[str]) -> Call[SettingsInForce] | None:
    """The call that the words after the user's name ask for; None when they ask for nothing that there is."""
    match words:
        case []:
            return Settings()
        case ["reset"]:
            return Set(field="", value="")
        case ["reset", field]:
            return Set(field=field, value="")
        case [field, value] if value:
            return Set(field=field, value=value)
    return None


def table(found: SettingsInForce) -> str:
    """Field, value and source, in columns; then what they are for."""
    rows = [
        (each.field, each.value or "the agent's default", each.source.replace("your", "the user's"))
        for each in found.settings
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(2)] if rows else [0, 0]
    lines = [f"{field:{widths[0]}}  {value:{widths[1]}}  {source}" for field, value, source in rows]
    lines.append(f"in the workspace {found.workspace}; the budget may be up to ${found.ceiling_usd:.2f}")
    return "\n".join(printable(line, 300) for line in lines)  # an agent's supervisor wrote it


async def _ask(user: str, call: Call[SettingsInForce]) -> SettingsInForce:
    try:
        return await Client(runtime_dir() / "agent" / f"{user}.sock").call(call, timeout=SECONDS)
    except Fault as error:
        raise Failure(printable(str(error), 500)) from None
    except Unavailable as error:
        raise Failure(f"{printable(str(error))}: see `systemctl status kai-agent@{user}.socket`") from None
