"""kai-webhook with a point where it is killed: `hook_points.py POINT FILE`; while FILE is there, it is killed at POINT.

The file goes first: one kill for each time it is made.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kai.webhook import delivery, endpoints, http, spool
from kai.webhook.main import main
from kai.webhook.records import Records

ACCEPTING = ("begun", "half", "checked", "written", "named", "synced", "accepted", "answered")
DELIVERING = ("read", "handed over", "noted", "removed")
POINTS = (*ACCEPTING, *DELIVERING)
"""The file is made; part of the body is in it; the signature is right; it is on disk; it has its name; the name is on
disk; it is known as accepted; the answer is out. It is read again; the bot has it; it is noted as done; it is gone."""


def kill(flag: Path) -> None:
    if flag.exists():
        flag.unlink()
        os.kill(os.getpid(), signal.SIGKILL)


def at(module: Any, name: str, flag: Path, *, after: bool) -> None:
    real: Callable[..., Any] = getattr(module, name)

    def call(*arguments: Any, **options: Any) -> Any:
        if not after:
            kill(flag)
        found = real(*arguments, **options)
        if after:
            kill(flag)
        return found

    setattr(module, name, call)


def awaited(owner: Any, name: str, flag: Path) -> None:
    real: Callable[..., Any] = getattr(owner, name)

    async def call(*arguments: Any, **options: Any) -> Any:
        found = await real(*arguments, **options)
        kill(flag)
        return found

    setattr(owner, name, call)


def fsynced(flag: Path, *, directory: bool) -> None:
    real = os.fsync

    def call(fd: int) -> None:
        real(fd)
        if (fd == state.directory) is directory:
            kill(flag)

    class state:
        directory = -1

    begin = spool.Spool.__init__

    def made(self: spool.Spool, path: Path) -> None:
        begin(self, path)
        state.directory = self.directory

    spool.Spool.__init__ = made  # type: ignore[method-assign]
    os.fsync = call  # type: ignore[assignment]


def arm(point: str, flag: Path) -> None:
    if point == "begun":
        at(spool.Spool, "begin", flag, after=True)
    elif point == "half":
        at(endpoints._Stored, "write", flag, after=True)
    elif point == "checked":
        at(endpoints, "is_signed", flag, after=True)
    elif point in ("written", "synced"):
        fsynced(flag, directory=point == "synced")
    elif point == "named":
        at(os, "link", flag, after=True)
    elif point == "accepted":
        awaited(endpoints._Stored, "end", flag)
    elif point == "answered":
        at(http.Request, "_answer", flag, after=True)
    elif point == "read":
        at(spool.Spool, "read", flag, after=True)
    elif point == "handed over":
        awaited(delivery.Delivery, "_notify", flag)
    elif point == "noted":
        awaited(Records, "done", flag)
    else:
        at(spool.Spool, "remove", flag, after=True)


if __name__ == "__main__":
    arm(sys.argv.pop(1), Path(sys.argv.pop(1)))
    main()
