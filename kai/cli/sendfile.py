"""`kai send-file`: a file of an agent's, to its user's chat. His supervisor reads it, with the agent's rights."""

from __future__ import annotations

import argparse
import asyncio
import os

from kai.cli import agentapi
from kai.cli.fail import Failure
from kai.cli.paths import config_dir, runtime_dir
from kai.config import ConfigError, load
from kai.interfaces import FileSent, SendFile
from kai.lib.client import Client
from kai.lib.log import printable
from kai.lib.varlink import Fault, Unavailable

SECONDS = 300.0


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("send-file", help="send a file of an agent's to its user")
    parser.add_argument("--user", default="", help="whose chat and whose agent; root has to say it")
    parser.add_argument("--caption", default="", help="a text beside it, in Markdown")
    parser.add_argument("path", help="in the agent's current workspace, or below the user's files")
    agentapi.json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    if agentapi.wanted():
        return _as_agent(arguments)
    if not arguments.user:
        raise Failure("--user is missing: whose agent's file is it?")
    try:
        users = [user.name for user in load(config_dir()).users]
    except ConfigError as error:
        raise Failure(str(error)) from None
    if arguments.user not in users:
        raise Failure(f"no user named {printable(arguments.user, 40)} in {config_dir() / 'users.yaml'}")
    call = SendFile(path=arguments.path, caption=arguments.caption)
    sent = asyncio.run(_ask(arguments.user, call))
    print(printable(f"{sent.name}, {sent.size} bytes, is on its way as o{sent.id}", 300))
    return 0


def _as_agent(arguments: argparse.Namespace) -> int:
    """A relative path is meant from where the command runs, as of every other command."""
    body = {"path": os.path.abspath(arguments.path), "caption": arguments.caption, "user": arguments.user or None}  # noqa: PTH100 - links stay
    sent = agentapi.ask("POST", "/api/send-file", body)
    return agentapi.tell(arguments, sent, printable(f"{sent['file']} is on its way", 300))


async def _ask(user: str, call: SendFile) -> FileSent:
    try:
        return await Client(runtime_dir() / "agent" / f"{user}.sock").call(call, timeout=SECONDS)
    except Fault as error:
        raise Failure(printable(str(error), 500)) from None
    except Unavailable as error:
        raise Failure(f"{printable(str(error))}: see `systemctl status kai-agent@{user}.socket`") from None
