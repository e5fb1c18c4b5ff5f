"""kai-totp with a point where it is killed: `totp_points.py POINT FILE`; while FILE is there, it is killed at POINT.

The file goes first: one kill for each time it is made.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kai.lib import store
from kai.totp import counting, record
from kai.totp.main import main

POINTS = ("asked", "judged", "written", "committed", "answered")
"""The code is in; what becomes of it is known; it is in the transaction; it is on disk; the answer is on its way."""


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


def arm(point: str, flag: Path) -> None:
    if point == "asked":
        at(counting, "tried", flag, after=False)
    elif point == "judged":
        at(counting, "tried", flag, after=True)
    elif point == "written":
        at(record, "_write", flag, after=True)
    elif point == "committed":
        at(store, "_settle", flag, after=False)
    else:
        at(store, "_settle", flag, after=True)


if __name__ == "__main__":
    arm(sys.argv.pop(1), Path(sys.argv.pop(1)))
    main()
