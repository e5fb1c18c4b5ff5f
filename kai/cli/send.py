"""`kai send`: a text of an agent's to its user's chat."""

from __future__ import annotations

import argparse
import sys

from kai.cli import agentapi
from kai.cli.fail import Failure


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("send", help="an agent's: show a text in its user's chat")
    parser.add_argument("text", help="in Markdown; - reads it from standard input")
    agentapi.user_option(parser)
    agentapi.json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    text = arguments.text
    if text == "-":
        try:
            text = sys.stdin.read()
        except UnicodeDecodeError as error:
            raise Failure(f"standard input isn't UTF-8: {error.reason} at byte {error.start}") from None
    body = {"text": text, "user": arguments.user or None}
    return agentapi.tell(arguments, agentapi.ask("POST", "/api/send-message", body, user=arguments.user), "sent")
