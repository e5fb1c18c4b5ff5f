"""How a command fails: one line that says what, where and what to do."""

from __future__ import annotations

import os


class Failure(Exception):
    """Ends the command with exit status 1 and this message."""


def need_root(what: str) -> None:
    """Raise Failure unless this is root."""
    if os.geteuid() != 0:
        raise Failure(f"{what} needs root: run it with sudo")
