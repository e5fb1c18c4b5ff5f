"""`kai queue`: what waits, runs, is on its way or is a dead letter, and the operator's decision on it. Asks the bot."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Iterable
from typing import TypeVar

import msgspec

from kai.cli.fail import Failure, need_root
from kai.cli.paths import runtime_dir
from kai.interfaces import Details, Drop, Entry, Queue, Retry, Show
from kai.lib.client import Client
from kai.lib.log import printable
from kai.lib.varlink import Call, Fault, Unavailable

SECONDS = 30.0
LONGEST_CELL, LONGEST_LINE = 80, 2000
R = TypeVar("R", bound=msgspec.Struct)


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("queue", help="what waits, is on its way, or is a dead letter")
    _list_options(parser)
    below = parser.add_subparsers(metavar="list | show | retry | drop")
    _list_options(below.add_parser("list", help="the rows of inbox and outbox, the oldest first"), suppress=True)
    for name, help_, run in (
        ("show", "one row whole, and those that belong to it", _show),
        ("retry", "work on, or send, a dead letter again, or what may not have arrived", _retry),
        ("drop", "give up what waits, or a dead letter", _drop),
    ):
        one = below.add_parser(name, help=help_)
        one.add_argument("id", help="as the list shows it, such as i12 or o34")
        one.set_defaults(run=run)


def _list_options(parser: argparse.ArgumentParser, *, suppress: bool = False) -> None:
    """For the command with and without its word; what the word doesn't say, it leaves as it was said before it."""
    parser.add_argument("--user", default=argparse.SUPPRESS if suppress else "", help="only this user's")
    parser.add_argument(
        "--all",
        action="store_true",
        default=argparse.SUPPRESS if suppress else False,
        help="what is finished too",
    )
    parser.set_defaults(run=_list)


def _list(arguments: argparse.Namespace) -> int:
    found = _ask(Queue(user=arguments.user, everything=arguments.all))
    if found.entries:
        print(table(found.entries))
    else:
        whose = f" of {printable(arguments.user, 40)}" if arguments.user else ""
        print(f"Nothing{whose} is stored." if arguments.all else f"Nothing{whose} waits, and there is no dead letter.")
    if found.more:
        print(f"({found.more} older ones are left off)")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    print(whole(_ask(Show(id=arguments.id))))
    return 0


def _retry(arguments: argparse.Namespace) -> int:
    return _told(_ask(Retry(id=arguments.id)))


def _drop(arguments: argparse.Namespace) -> int:
    return _told(_ask(Drop(id=arguments.id)))


def _told(entry: Entry) -> int:
    print(f"{entry.id}: {entry.state}")
    return 0


def table(entries: Iterable[Entry]) -> str:
    """Id, user, state, age, kind, and the reason or the text's beginning. What others wrote can't paint here."""
    rows = [("ID", "USER", "STATE", "AGE", "KIND", "TEXT")]
    now = time.time()
    for each in entries:
        said = f"[{each.error}] {each.text}" if each.error else each.text
        cells = (each.id, each.user, each.state, age(now - each.when), each.kind, said)
        rows.append(tuple(printable(cell, LONGEST_CELL) for cell in cells))  # type: ignore[arg-type]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = ((*(f"{cell:{width}}" for cell, width in zip(row[:5], widths, strict=True)), row[5]) for row in rows)
    return "\n".join("  ".join(line).rstrip() for line in lines)


def whole(found: Details) -> str:
    """One row, a line for each thing that is known of it; then its text, then the rows that belong to it."""
    entry = found.entry
    facts = {
        "id": entry.id,
        "user": entry.user,
        "state": f"{entry.state}, since {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(entry.when))}",
        "kind": entry.kind,
        "turn": entry.turn,
        "bot": str(entry.bot or ""),
        "reason": entry.error,
    }
    lines = [f"{name:8}{printable(value, LONGEST_LINE)}" for name, value in facts.items() if value]
    if entry.text:
        lines += ["", *(printable(line, LONGEST_LINE) for line in entry.text.split("\n"))]
    if found.related:
        lines += ["", table(found.related)]
    return "\n".join(lines)


def age(seconds: float) -> str:
    """`42 s`, `7 min`, `5 h`, `3 d`."""
    whole = max(0, int(seconds))
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if whole >= size:
            return f"{whole // size} {unit}"
    return f"{whole} s"


def _ask(call: Call[R]) -> R:
    need_root("kai queue")
    try:
        return asyncio.run(Client(runtime_dir() / "bot.sock").call(call, timeout=SECONDS))
    except Fault as error:
        raise Failure(printable(str(error), 500)) from None
    except Unavailable as error:
        raise Failure(f"{printable(str(error))}: see `systemctl status kai-bot`") from None
