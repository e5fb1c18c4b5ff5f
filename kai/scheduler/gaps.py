"""Local times that don't exist, because clocks were put forward over them.

systemd skips such a time: 02:30 in Paris elapses on no day when summer time begins (measured). Kai lets a job run at
the next moment that exists, which is the transition itself: its timer gets one more OnCalendar= for it, in UTC.
Nothing is added where the expression elapses in the same length of time after the transition anyhow, as an hourly one.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

import msgspec

from kai.scheduler.calendar import Calendar, expression

AHEAD = 2 * 366 * 86400
"""Seconds for which gaps are planned."""
_STEP = 86400
_FLOOR = 30 * 86400  # keeps the same gaps in the cache for a while


class Gap(msgspec.Struct, frozen=True):
    """A jump of local time. `at` is the transition and `local` the first local time that doesn't exist, written as
    if it were in UTC: seconds since the epoch. `length` is in seconds."""

    at: int
    local: int
    length: int


class Zoned(msgspec.Struct, frozen=True):
    """An expression without its zone, and that zone."""

    bare: str
    zone: str

    def __str__(self) -> str:
        return f"{self.bare} {self.zone}"


def gaps(zone: str, start: float, seconds: float = AHEAD) -> list[Gap]:
    """The gaps of a zone after a moment, in order."""
    first = int(start // _FLOOR) * _FLOOR
    return [gap for gap in _gaps(zone, first, int(seconds)) if start < gap.at <= start + seconds]


@lru_cache(maxsize=256)
def _gaps(zone: str, start: int, seconds: int) -> tuple[Gap, ...]:
    found = []
    offset = _offset(zone, start)
    for moment in range(start, start + seconds + _FLOOR, _STEP):
        after = _offset(zone, moment + _STEP)
        if after > offset:
            low, high = moment, moment + _STEP
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if _offset(zone, middle) == offset else (low, middle)
            found.append(Gap(at=high, local=high + offset, length=_offset(zone, high) - offset))
        offset = after
    return tuple(found)


def _offset(zone: str, moment: int) -> int:
    """Seconds east of UTC."""
    offset = datetime.fromtimestamp(moment, ZoneInfo(zone)).utcoffset()
    assert offset is not None
    return round(offset.total_seconds())


def moment(local: datetime, zone: str) -> float:
    """The instant of a local time, in seconds since the epoch.

    Of a time that exists twice it is the first, of one that doesn't exist the transition that jumps over it.
    """
    there = local.replace(tzinfo=ZoneInfo(zone), fold=0)
    instant = there.timestamp()
    if datetime.fromtimestamp(instant, there.tzinfo).replace(tzinfo=None) == local:
        return instant
    start = local.replace(tzinfo=UTC) - timedelta(days=2)
    wall = local.replace(tzinfo=UTC).timestamp()
    over = (gap.at for gap in gaps(zone, start.timestamp(), 4 * 86400) if gap.local <= wall < gap.local + gap.length)
    return float(next(over, instant))


async def jumps(calendar: Calendar, expressions: Sequence[Zoned], now: float) -> list[str]:
    """The expressions to add, each one moment in UTC, in order. Raises BadExpression and Unusable."""
    found: set[int] = set()
    for zone in sorted({each.zone for each in expressions}):
        those = [each for each in expressions if each.zone == zone]
        for gap in gaps(zone, now):
            would = await calendar.elapses([f"{each.bare} UTC" for each in those], after=gap.local - 1)
            doubtful = [
                str(each)
                for each, next_ in zip(those, would, strict=True)
                if next_.times and gap.local <= next_.times[0] < gap.local + gap.length
            ]
            if not doubtful:
                continue
            does = await calendar.elapses(doubtful, after=gap.at - 1)
            if any(not each.times or each.times[0] >= gap.at + gap.length for each in does):
                found.add(gap.at)
    return [expression(at) for at in sorted(found)]
