"""`kai logs TURN`: one message's way through all units, from the journal."""

from __future__ import annotations

import argparse
import pwd
import re
import subprocess

import msgspec

from kai.cli.fail import Failure, need_root
from kai.lib.log import printable
from kai.lib.peers import SUPERVISOR_PREFIX, UNIT_ACCOUNTS

TURN = re.compile(r"[0-9]+\.[0-9]+|job:[0-9]+:[0-9A-Za-z.-]+")


class Entry(msgspec.Struct):
    """A journal entry; MESSAGE is a list of bytes where it isn't text."""

    MESSAGE: str | list[int] | None = None
    SYSLOG_IDENTIFIER: str = ""
    realtime: str = msgspec.field(name="__REALTIME_TIMESTAMP", default="0")


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("logs", help="the journal of one turn")
    parser.add_argument("turn", help="its id, as journal lines and `kai status` show it")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Any account can write KAI_TURN= into the journal, so only lines of Kai's own accounts count."""
    need_root("kai logs")
    if not TURN.fullmatch(arguments.turn):
        raise Failure(f"{arguments.turn} is no turn id: expected BOT.UPDATE, such as 123456.789")
    own = [p for p in pwd.getpwall() if p.pw_name in UNIT_ACCOUNTS or p.pw_name.startswith(SUPERVISOR_PREFIX)]
    found = subprocess.run(
        ["journalctl", "-q", "-o", "json", f"KAI_TURN={arguments.turn}", *(f"_UID={p.pw_uid}" for p in own)],
        stdout=subprocess.PIPE,
        check=False,
    )
    lines = found.stdout.splitlines()
    for line in lines:
        entry = msgspec.json.decode(line, type=Entry)
        text = entry.MESSAGE if isinstance(entry.MESSAGE, str) else bytes(entry.MESSAGE or []).decode(errors="replace")
        print(f"{_clock(entry.realtime)} {entry.SYSLOG_IDENTIFIER}: {printable(text)}")
    if not lines:
        raise Failure(f"the journal has nothing of turn {arguments.turn}")
    return found.returncode


def _clock(microseconds: str) -> str:
    from datetime import datetime

    return datetime.fromtimestamp(int(microseconds) / 1e6).astimezone().strftime("%b %d %H:%M:%S.%f")[:-3]
