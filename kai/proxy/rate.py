"""How often a user may call a service: at most so many calls in any minute, and a few at a time."""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from kai.interfaces import TooManyCalls

WINDOW = 60.0
"""Seconds."""
AT_ONCE, AT_ONCE_ALL = 4, 32
"""Calls that run at a time, of one user and of all: each may take 10 MiB and half a minute."""


class Rates:
    """Counts calls. `now` gives seconds that never go back."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.now = now
        self.calls: dict[tuple[str, str], deque[float]] = {}
        self.running: Counter[str] = Counter()

    def take(self, user: str, service: str, rate: int) -> None:
        """Count a call. Raises TooManyCalls with the seconds until the next one may come."""
        moment = self.now()
        calls = self.calls.setdefault((user, service), deque())
        while calls and calls[0] <= moment - WINDOW:
            calls.popleft()
        if len(calls) >= rate:
            raise TooManyCalls(str(max(1, math.ceil(calls[len(calls) - rate] + WINDOW - moment))))
        calls.append(moment)

    @contextmanager
    def slot(self, user: str) -> Iterator[None]:
        """A place among the running calls. Raises TooManyCalls when none is free."""
        if self.running[user] >= AT_ONCE or self.running.total() >= AT_ONCE_ALL:
            raise TooManyCalls("1")
        self.running[user] += 1
        try:
            yield
        finally:
            self.running[user] -= 1
            if not self.running[user]:
                del self.running[user]

    def left(self) -> float:
        """Seconds until the last call counts no more, 0 when none does: a fresh start would forget it."""
        moment = self.now()
        latest = max((calls[-1] for calls in self.calls.values() if calls), default=moment - WINDOW)
        return max(0.0, latest + WINDOW - moment)
