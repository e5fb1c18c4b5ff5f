"""A job's schedule and its times in a few words, for chats and terminals. What can't be read is shown as it is."""

from __future__ import annotations

import json
from datetime import UTC, datetime, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

_UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
_NEAR = {-1: "yesterday", 0: "today", 1: "tomorrow"}


def words(schedule_type: str, schedule_data: str) -> str:
    """`once, 2026-11-24 15:00`, `daily at 09:00 and 18:30`, `every 1 h 30 min`, `at Mon..Fri 09:00`."""
    try:
        data = json.loads(schedule_data)
        if schedule_type == "once":
            return f"once, {_moment(data['run_at'])}"
        if schedule_type == "daily":
            return f"daily at {_list(data['times'])}"
        if schedule_type == "interval":
            return f"every {span(data['seconds'])}"
        return f"at {data['calendar']}"
    except (ValueError, TypeError, KeyError):
        return f"{schedule_type} {schedule_data}"


def span(seconds: float) -> str:
    """`1 h 30 min`: every unit that has some."""
    left, found = int(seconds), []
    for unit, size in _UNITS:
        count, left = divmod(left, size)
        if count:
            found.append(f"{count} {unit}")
    return " ".join(found) or "0 s"


def when(at: float, where: tzinfo, now: float) -> str:
    """A moment as one says it: `today 15:00`, `tomorrow 09:00:30`, `Wed 25 Nov 09:00`, `Wed 24 Nov 2027 09:00`."""
    moment, today = datetime.fromtimestamp(at, where), datetime.fromtimestamp(now, where)
    clock = f"{moment:%H:%M:%S}" if moment.second else f"{moment:%H:%M}"
    near = _NEAR.get((moment.date() - today.date()).days)
    year = f" {moment.year}" if moment.year != today.year else ""
    return f"{near or f'{moment:%a} {moment.day} {moment:%b}{year}'} {clock}"


def stamp(at: float, name: str) -> str:
    """A moment as a log has it, with the zone that it is told in: `Tue 2026-11-24 09:00:00 Europe/Berlin`."""
    where = zone(name)
    return f"{datetime.fromtimestamp(at, where):%a %Y-%m-%d %H:%M:%S} {name if isinstance(where, ZoneInfo) else 'UTC'}"


def zone(name: str) -> tzinfo:
    """A time zone by its IANA name; UTC where there is none of that name."""
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        return UTC


def _moment(text: str) -> str:
    moment = datetime.fromisoformat(text)
    clock = f"{moment:%H:%M:%S}" if moment.second else f"{moment:%H:%M}"
    return f"{moment:%Y-%m-%d} {clock}{f' {moment:%Z}' if moment.tzinfo else ''}"


def _list(times: Any) -> str:
    *first, last = [times] if isinstance(times, str) else [str(each) for each in times]
    return f"{', '.join(first)} and {last}" if first else last
