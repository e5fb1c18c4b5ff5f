"""Schedules: from what a caller wrote to what a timer is.

`parse` looks at the words, `plan` asks systemd. Both raise InvalidParameter, whose message begins with the field.
"""

from __future__ import annotations

import heapq
import json
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NoReturn

import msgspec

from kai.config.decode import join, shown, unknown_key
from kai.config.rules import is_timezone
from kai.lib import schedules
from kai.lib.varlink import Busy, InvalidParameter
from kai.scheduler import gaps
from kai.scheduler.calendar import LONGEST, BadExpression, Calendar, Elapses, Unusable, expression, is_sane
from kai.scheduler.gaps import Zoned

SHORTEST, LONGEST_INTERVAL = 10, 366 * 86400
"""Seconds between two runs."""
MOST_TIMES = 24
LONGEST_DATA = 4096
"""Bytes of `schedule_data`."""
LAST_YEAR = 2199
"""systemd's calendar ends with it."""
_LOOKED_AT = 64
"""Times of an expression that are looked at to see how close they come."""
_FIELD = "schedule_data"
_KEYS = {"once": "run_at", "daily": "times", "interval": "seconds", "calendar": "calendar"}
_EXAMPLES = {
    "once": '{"run_at": "2026-12-24T15:00"}',
    "daily": '{"times": ["09:00"]}',
    "interval": '{"seconds": 3600}',
    "calendar": '{"calendar": "Mon..Fri 09:00"}',
}
_INSTANT = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt ]([0-9]{2}:[0-9]{2})(?::([0-9]{2})(\.[0-9]{1,9})?)?"
    r"\s?(Z|z|[+-][0-9]{2}:?[0-9]{2})?",
    re.ASCII,
)
_TIME = re.compile(r"([01]?[0-9]|2[0-3]):([0-5][0-9])", re.ASCII)
# Names that systemd takes for an abbreviation of the host's zone where they are one; these are the same zones' names.
_ABBREVIATIONS = {
    "CET": "Europe/Brussels",
    "MET": "Europe/Brussels",
    "EET": "Europe/Athens",
    "WET": "Europe/Lisbon",
    "EST": "America/Panama",
    "MST": "America/Phoenix",
    "HST": "Pacific/Honolulu",
    "GMT": "Etc/GMT",
    "UCT": "UTC",
}


class Once(msgspec.Struct, frozen=True):
    """At one moment, in seconds since the epoch."""

    at: float


class Daily(msgspec.Struct, frozen=True):
    """Every day at these local times, each HH:MM."""

    times: tuple[str, ...]


class Interval(msgspec.Struct, frozen=True):
    """Every so many seconds."""

    seconds: int


class Recurring(msgspec.Struct, frozen=True):
    """As an expression of systemd's says."""

    expression: str


Schedule = Once | Daily | Interval | Recurring


class Plan(msgspec.Struct):
    """What the timer is, as in `kai.interfaces.Timer`, and the next times, in seconds since the epoch.

    `read` is how systemd reads the schedule: the expressions without those that stand for gaps of the zone. `data` is
    the schedule as it is to be stored: the moment of a once-job has its offset from UTC.
    """

    calendar: list[str]
    every: int
    times: list[float]
    read: list[str]
    data: str


def parse(kind: str, data: str, zone: str, now: float) -> Schedule:
    """A schedule from its type and its JSON text, meant in this zone. Raises InvalidParameter."""
    if kind not in _KEYS:
        raise InvalidParameter(f"schedule_type: expected once, daily, interval or calendar, got {shown(kind)}")
    value, field = _value(kind, data), f"{_FIELD}.{_KEYS[kind]}"
    if kind == "once":
        return _once(value, field, zone, now)
    if kind == "daily":
        return _daily(value, field)
    if kind == "interval":
        return _interval(value, field)
    if not isinstance(value, str) or not is_sane(value.strip()):
        _refuse(field, f"an expression of at most {LONGEST} characters, such as Mon..Fri 09:00", value)
    return Recurring(value.strip())


def zone_of(name: str) -> str:
    """The zone as it is to be named to systemd. Raises InvalidParameter."""
    found = _ABBREVIATIONS.get(name, name)
    if not is_timezone(found) or found.startswith(("right/", "posix/")):
        _refuse("timezone", "an IANA time zone that this host knows, such as Europe/Berlin", name)
    return found


async def plan(schedule: Schedule, zone: str, now: float, calendar: Calendar, *, count: int = 1) -> Plan:
    """What systemd is to be told, and the next `count` times. Raises InvalidParameter, or Busy when it can't be asked.

    `zone` comes from `zone_of`.
    """
    if isinstance(schedule, Once):
        there = datetime.fromtimestamp(schedule.at, schedules.zone(zone))
        at = [expression(schedule.at)]
        return Plan(at, 0, [schedule.at], at, _encode("once", there.isoformat(timespec="seconds")))
    if isinstance(schedule, Interval):
        times = [now + schedule.seconds * number for number in range(1, count + 1)]
        return Plan([], schedule.seconds, times, [], _encode("interval", schedule.seconds))
    if isinstance(schedule, Daily):
        wanted = [Zoned(f"*-*-* {time}:00", zone) for time in schedule.times]
        data = _encode("daily", list(schedule.times))
    else:
        wanted = [_zoned(schedule.expression, zone)]
        data = _encode("calendar", schedule.expression)
    try:
        most = count if len(wanted) == 1 else min(count, count // len(wanted) + 3)  # all elapse on every day
        found = await calendar.elapses([str(each) for each in wanted], count=most, after=now)
        zoned = doubtful = [_normal(each, zone) for each in found]
        if isinstance(schedule, Recurring):
            # Without the zone: systemd forks for each time in one, and no zone brings times closer together.
            _check(found[0], *await calendar.elapses([f"{zoned[0].bare} UTC"], count=_LOOKED_AT, after=now))
        if isinstance(schedule, Daily):  # most need no look at the gaps of their zone
            doubtful = [each for time, each in zip(schedule.times, zoned, strict=True) if _is_jumped(time, zone, now)]
        jumps = await gaps.jumps(calendar, doubtful, now)
        added = await calendar.elapses(jumps, after=now)
    except BadExpression as error:
        field = "timezone" if isinstance(schedule, Daily) else f"{_FIELD}.calendar"
        raise InvalidParameter(f"{field}: systemd says: {error}") from None
    except Unusable as error:
        raise Busy(str(error)) from None
    times = next_times([*found, *added], count)
    return Plan([*map(str, zoned), *jumps], 0, times, [str(each) for each in zoned], data)


def next_times(found: Sequence[Elapses], count: int) -> list[float]:
    """The first times of several expressions together, each once."""
    merged: list[float] = []
    for time in heapq.merge(*(each.times for each in found)):
        if not merged or time > merged[-1]:
            merged.append(time)
    return merged[:count]


def _check(found: Elapses, bare: Elapses) -> None:
    """Raise InvalidParameter for an expression without a next time, or with times too close to each other."""
    if not found.times:
        raise InvalidParameter(f"{_FIELD}.calendar: never elapses from now on (systemd reads it as {found.normal})")
    for one, next_ in zip(bare.times, bare.times[1:], strict=False):
        if next_ - one < SHORTEST:
            raise InvalidParameter(
                f"{_FIELD}.calendar: elapses again after {next_ - one:g} s, expected at least {SHORTEST} s between "
                f"two times (systemd reads it as {found.normal})"
            )


def _zoned(text: str, zone: str) -> Zoned:
    """An expression with its own zone, or the job's."""
    bare, _, last = text.rpartition(" ")
    bare = bare.strip()
    if text.startswith("@"):  # seconds since the epoch
        return Zoned(text.removesuffix(f" {last}") if bare else text, "UTC")
    if bare and last.upper() == "UTC":
        return Zoned(bare, "UTC")
    if bare and (is_timezone(last) or last in _ABBREVIATIONS):
        try:
            return Zoned(bare, zone_of(last))
        except InvalidParameter:
            _refuse(f"{_FIELD}.calendar", "a time zone such as Europe/Berlin at its end", last)
    return Zoned(text, zone)


def _is_jumped(time: str, zone: str, now: float) -> bool:
    """Whether this time of the day doesn't exist on some day to come."""
    second = (int(time[:2]) * 60 + int(time[3:])) * 60
    return any((second - gap.local) % 86400 < gap.length for gap in gaps.gaps(zone, now))


def _normal(found: Elapses, zone: str) -> Zoned:
    """How systemd reads an expression; without a zone at its end it would mean another time to PID 1."""
    bare, _, last = found.normal.rpartition(" ")
    if not bare or (last != "UTC" and not is_timezone(last)):
        raise InvalidParameter(f"{_FIELD}.calendar: can't be meant in the zone {zone} (systemd reads {found.normal})")
    return Zoned(bare, last)


def _once(value: Any, field: str, zone: str, now: float) -> Once:
    expected = f"a date and a time such as 2026-12-24T15:00, in local time or with an offset, until {LAST_YEAR}"
    match = _INSTANT.fullmatch(value.strip()) if isinstance(value, str) else None
    if not match:
        _refuse(field, expected, value)
    date, clock, seconds, fraction, offset = match.groups()
    try:
        given = datetime.fromisoformat(f"{date}T{clock}:{seconds or '00'}{(offset or '').upper()}")
        at = gaps.moment(given, zone) if given.tzinfo is None else given.timestamp()
        there = schedules.stamp(at, zone)
    except (ValueError, OverflowError):
        _refuse(field, expected, value)
    if fraction and int(fraction[1:]):
        at += 1  # a timer elapses at whole seconds, and not before its time
    if at <= now:
        raise InvalidParameter(f"{field}: {there} has passed, expected a time after {schedules.stamp(now, zone)}")
    if given.year > LAST_YEAR:
        _refuse(field, expected, value)
    return Once(at)


def _daily(value: Any, field: str) -> Daily:
    times = [value] if isinstance(value, str) else value
    if not isinstance(times, list) or not 1 <= len(times) <= MOST_TIMES:
        got = f"{len(times)} of them" if isinstance(times, list) and times else None
        _refuse(field, f'a list of 1 to {MOST_TIMES} times, such as ["09:00", "18:30"]', value, got=got)
    found: list[str] = []
    for index, each in enumerate(times):
        place = field if isinstance(value, str) else f"{field}[{index}]"
        match = _TIME.fullmatch(each.strip()) if isinstance(each, str) else None
        if not match:
            _refuse(place, "a time from 00:00 to 23:59, as HH:MM", each)
        time = f"{match[1]:0>2}:{match[2]}"
        if time in found:
            raise InvalidParameter(f"{place}: {time} is there already, expected each time once")
        found.append(time)
    return Daily(tuple(sorted(found)))


def _interval(value: Any, field: str) -> Interval:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or not SHORTEST <= value <= LONGEST_INTERVAL:
        _refuse(field, f"a whole number of seconds from {SHORTEST} to {LONGEST_INTERVAL} (a year)", value)
    return Interval(value)


def _value(kind: str, data: str) -> Any:
    """The value of the one key that this type has."""
    if len(data.encode("utf-8", "replace")) > LONGEST_DATA:
        raise InvalidParameter(f"{_FIELD}: more than {LONGEST_DATA} bytes")
    try:
        found = json.loads(data, object_pairs_hook=_once_each, parse_constant=_no_number)
    except RecursionError:
        raise InvalidParameter(f"{_FIELD}: nested too deeply") from None
    except ValueError as error:
        raise InvalidParameter(f"{_FIELD}: not JSON, expected {_EXAMPLES[kind]}: {error}") from None
    if not isinstance(found, dict):
        _refuse(_FIELD, f"a JSON object such as {_EXAMPLES[kind]}", found)
    key = _KEYS[kind]
    for name in found:
        if name != key:
            raise InvalidParameter(f"{join(_FIELD, name)}: {unknown_key(name, [key], {})}")
    if key not in found:
        raise InvalidParameter(f"{_FIELD}.{key}: missing, expected {_EXAMPLES[kind]}")
    return found[key]


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {shown(key)} is there twice")
        found[key] = value
    return found


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number")


def _encode(kind: str, value: Any) -> str:
    return json.dumps({_KEYS[kind]: value}, ensure_ascii=False)


def _refuse(field: str, expected: str, value: Any, *, got: str | None = None) -> NoReturn:
    if isinstance(value, int | float) and not isinstance(value, bool) and not -1e15 < value < 1e15:
        got = "a number that is far too big"
    raise InvalidParameter(f"{field}: expected {expected}, got {got or shown(value)}")
