"""A trouble that goes on is logged when it begins, and from then on once a minute: the journal is for people."""

from __future__ import annotations

import logging
import time

PERIOD = 60.0
"""Seconds between two lines about the same trouble."""


class Sparing:
    """Lines of one logger; `kind` says which of them are about the same."""

    def __init__(self, logger: logging.Logger) -> None:
        self.logger = logger
        self.told: dict[str, tuple[float, int]] = {}

    def log(self, kind: str, level: int, message: str, *arguments: object) -> None:
        """Write the line, or only count it."""
        last, left_out = self.told.get(kind, (-PERIOD, 0))
        now = time.monotonic()
        if now - last < PERIOD:
            self.told[kind] = (last, left_out + 1)
            return
        more = f" (and {left_out} times more since the last such line)" if left_out else ""
        self.logger.log(level, message + more, *arguments)
        self.told[kind] = (now, 0)

    def over(self, kind: str) -> bool:
        """The trouble has ended; whether there was one."""
        return self.told.pop(kind, None) is not None
