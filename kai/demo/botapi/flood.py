"""Flood limits: so many messages per chat and second, so many over all, so many edits; 429 beyond.

Telegram publishes no exact numbers (https://core.telegram.org/bots/faq#my-bot-is-hitting-limits-how-do-i-avoid-this);
`realistic` is what bots meet in practice.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

import msgspec

from kai.demo.botapi.answers import too_many

_SENDING = frozenset(("sendmessage", "senddocument", "sendphoto", "sendvoice"))
_EDITING = frozenset(("editmessagetext", "editmessagereplymarkup"))
_MAX_CHATS = 10_000


class FloodLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Rates in calls per second, bursts in calls. A rate of 0 means no limit."""

    chat_rate: float = 0.0
    chat_burst: int = 5
    overall_rate: float = 0.0
    overall_burst: int = 30
    edit_rate: float = 0.0
    edit_burst: int = 20


def realistic() -> FloodLimits:
    """1 message/s per chat after a burst of 5, 30/s over all, 20 edits a minute per chat."""
    return FloodLimits(chat_rate=1.0, overall_rate=30.0, edit_rate=20 / 60)


@dataclass(slots=True)
class _Bucket:
    left: float
    at: float


@dataclass(slots=True)
class FloodGate:
    """Counts what passes. A refused call costs nothing."""

    limits: FloodLimits = field(default_factory=FloodLimits)
    _buckets: dict[tuple[str, str], _Bucket] = field(default_factory=dict)

    def set(self, limits: FloodLimits) -> None:
        """Use other limits from now on, beginning with full bursts."""
        self.limits = limits
        self._buckets.clear()

    def check(self, method: str, chat_id: str) -> None:
        """Let a call (method in lower case) pass, or refuse it with 429."""
        limits = self.limits
        wanted: list[tuple[tuple[str, str], float, int]] = []
        if method in _SENDING:
            wanted = [
                (("chat", chat_id), limits.chat_rate, limits.chat_burst),
                (("overall", ""), limits.overall_rate, limits.overall_burst),
            ]
        elif method in _EDITING:
            wanted = [(("edit", chat_id), limits.edit_rate, limits.edit_burst)]
        limited = [entry for entry in wanted if entry[1] > 0]
        if not limited:
            return
        now = time.monotonic()
        buckets = [(self._bucket(key, rate, burst, now), rate) for key, rate, burst in limited]
        wait = max((1 - bucket.left) / rate for bucket, rate in buckets)
        if wait > 0:
            raise too_many(max(1, math.ceil(wait)))
        for bucket, _ in buckets:
            bucket.left -= 1

    def _bucket(self, key: tuple[str, str], rate: float, burst: int, now: float) -> _Bucket:
        bucket = self._buckets.get(key)
        if bucket is None:
            if len(self._buckets) >= _MAX_CHATS:
                self._buckets.clear()
            bucket = self._buckets[key] = _Bucket(float(burst), now)
        bucket.left = min(float(burst), bucket.left + (now - bucket.at) * rate)
        bucket.at = now
        return bucket
