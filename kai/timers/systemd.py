"""What kai-timers asks of systemd, whoever plays it: PID 1 behind D-Bus (`bus.py`), or a test's own.

Source: org.freedesktop.systemd1(5).
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

import msgspec

Property = tuple[str, tuple[str, Any]]
"""A property of a transient unit: its name, and its value with the value's D-Bus type."""
UNIT_EXISTS = "UnitExists"
NO_SUCH_UNIT = "NoSuchUnit"
INVALID = "InvalidArgs"
NEVER = (1 << 64) - 1


class Refused(Exception):
    """systemd said no. `name` is the last part of the error's name, such as `UnitExists`."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"{name}: {message}")
        self.name = name


class Unreachable(Exception):
    """systemd can't be asked, or went away before it answered: nothing is known of what it did."""


class Loaded(msgspec.Struct, frozen=True):
    """A unit that systemd has in memory. `active` is `active`, `inactive`, `failed`, or on the way between them."""

    name: str
    description: str
    active: str


Clock = Literal["Realtime", "Monotonic"]
"""The wall clock, for calendars, or CLOCK_MONOTONIC, for intervals."""


class Systemd(Protocol):
    """Every method raises Refused and Unreachable. Many may be called at once; a unit is named in full."""

    async def make(self, unit: str, properties: list[Property]) -> None:
        """Make a transient unit, and start it; returns when it is started."""

    async def stop(self, unit: str) -> None:
        """Returns when it is stopped. systemd may take it for there for a moment longer."""

    async def start(self, unit: str) -> None:
        """Returns when the start is begun."""

    async def reset_failed(self, unit: str) -> None:
        """Forget that it failed: only then a transient unit goes."""

    async def units(self, pattern: str) -> list[Loaded]:
        """All that are loaded and match."""

    async def elapse(self, timer: str, clock: Clock) -> int:
        """When a timer elapses next by this clock, in microseconds: 0 or NEVER for not at all, as while its service
        runs; 0 for a timer that isn't there."""
