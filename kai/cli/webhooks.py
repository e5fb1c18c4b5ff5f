"""`kai webhooks`: how the intake of webhooks does, and another try for what was given up."""

from __future__ import annotations

import argparse
import asyncio
import time

from kai.cli.fail import Failure, need_root
from kai.cli.paths import runtime_dir
from kai.interfaces import IntakeState, ReadIntake, RetryDeliveries
from kai.lib.client import Client
from kai.lib.log import printable
from kai.lib.schedules import span
from kai.lib.varlink import Call, Fault, Unavailable

SECONDS = 30.0
SECRETS = "/etc/credstore/kai-webhook"


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("webhooks", help="the intake of webhooks: its state, and what was given up")
    parser.add_argument("--retry", action="store_true", help="try to deliver again what was given up")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Exit status 1 where something is wrong."""
    need_root("kai webhooks")
    found = _ask(RetryDeliveries() if arguments.retry else ReadIntake())
    for line in lines(found, time.time()):
        print(printable(line, 300))
    return 1 if found.trouble or found.failed else 0


def lines(found: IntakeState, now: float) -> list[str]:
    """What is shown of it."""
    github = "open" + (", two secrets are valid" if found.rotating else "") if found.github else "closed"
    last = f"{found.last}, {span(max(now - found.last_at, 0))} ago" if found.last_at else "none yet"
    waits = f", the oldest since {span(max(now - found.oldest_at, 0))}" if found.oldest_at else ""
    shown = [
        f"endpoint  {found.endpoint or 'webhook.url is not set in kai.yaml'}",
        f"github    {github}" + ("" if found.github else f": no secret in {SECRETS}/github"),
        f"generic   {'open' if found.generic else f'closed: no secret in {SECRETS}/generic'}",
        f"last      {last}",
        f"waiting   {found.stored}{waits}",
        f"given up  {found.failed}" + (": `kai webhooks --retry` tries again" if found.failed else ""),
        *(f"          {delivery}" for delivery in found.given_up),
    ]
    if found.trouble:
        shown.append(f"trouble   {found.trouble}")
    return shown


def faults() -> list[str]:
    """What `kai doctor` says of it. Raises Failure."""
    found = _ask(ReadIntake())
    said = [found.trouble] if found.trouble else []
    if found.failed:
        said.append(f"{found.failed} deliveries were given up: see `kai webhooks`")
    if found.github and not found.endpoint:
        said.append("there is a secret for GitHub and no webhook.url in kai.yaml: /github add can't tell the address")
    return said


def _ask(call: Call[IntakeState]) -> IntakeState:
    try:
        return asyncio.run(Client(runtime_dir() / "intake.sock").call(call, timeout=SECONDS))
    except (Unavailable, Fault) as error:
        raise Failure(f"kai-webhook: {error}: see `systemctl status kai-webhook`") from None
