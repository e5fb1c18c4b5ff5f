"""`kai service`: web services that an agent may call; kai-proxy has the keys."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from kai.cli import agentapi
from kai.cli.fail import Failure
from kai.lib.api import quoted
from kai.lib.log import printable

LONGEST_LINE = 2000


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("service", help="an agent's: call web services whose keys Kai has")
    below = parser.add_subparsers(metavar="list | call", required=True)
    listing = below.add_parser("list", help="what may be called, and what is to be known of it")
    listing.set_defaults(run=_list)
    call = below.add_parser("call", help="call one and print its answer")
    call.add_argument("name", help="as the list has it")
    call.add_argument("--param", action="append", default=[], metavar="K=V", type=_pair, help="for the query")
    call.add_argument("--body", metavar="JSON", help="for the request's body; - reads it from standard input")
    call.add_argument("--suffix", default="", metavar="PATH", help="behind the service's address")
    call.set_defaults(run=_call)
    for each in (listing, call):
        agentapi.user_option(each)
        agentapi.json_option(each)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {printable(text, 40)!r}")
    return name, value


def _list(arguments: argparse.Namespace) -> int:
    services = agentapi.ask("GET", "/api/services", user=arguments.user)
    lines = []
    for each in services:
        suffix = " (a path may be appended)" if each["allow_path_suffix"] else ""
        lines.append(f"{each['name']}: {each['description']}".rstrip(": "))
        lines.append(f"    {each['method']} {each['url']}{suffix}")
        lines += [f"    {line}" for line in each["notes"].splitlines()]
    words = "\n".join(printable(line, LONGEST_LINE) for line in lines)
    return agentapi.tell(arguments, services, words or "There is no service.")


def _call(arguments: argparse.Namespace) -> int:
    """Its answer goes to standard output as it is; a status that isn't 2xx is an error."""
    asked: dict[str, Any] = {"params": dict(arguments.param), "path_suffix": arguments.suffix}
    if arguments.body is not None:
        asked["body"] = _json(sys.stdin.read() if arguments.body == "-" else arguments.body)
    answer = agentapi.ask("POST", f"/api/services/{quoted(arguments.name) or '-'}", asked, user=arguments.user)
    found = answer["body"]
    words = found if isinstance(found, str) else json.dumps(found, indent=2, ensure_ascii=False)
    agentapi.tell(arguments, answer, "".join(c if c.isprintable() or c in "\n\t" else " " for c in words))
    if not 200 <= answer["status"] < 300:
        raise Failure(f"{arguments.name} answered with status {answer['status']}")
    return 0


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Failure(f"--body: isn't JSON: {error}") from None
