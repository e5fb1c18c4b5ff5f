"""How often an agent may ask: an even rate, with room for a burst."""

from __future__ import annotations

import time
from collections.abc import Callable

BURST = 3
"""The part of a minute's requests that may come at once: one third."""


class Bucket:
    """Lets `rate` requests through a minute. `now` gives seconds that never go back."""

    def __init__(self, rate: int, now: Callable[[], float] = time.monotonic) -> None:
        self.rate, self.now = rate, now
        self.most = max(1.0, rate / BURST)
        self.left, self.seen = self.most, now()

    def take(self) -> float:
        """0 when the request may go on, else in how many seconds one may."""
        moment = self.now()
        self.left = min(self.most, self.left + (moment - self.seen) * self.rate / 60)
        self.seen = moment
        if self.left < 1:
            return (1 - self.left) * 60 / self.rate
        self.left -= 1
        return 0.0
