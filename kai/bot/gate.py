"""The TOTP gate: what of a user's passes while he hasn't shown a code (S9). The one place where that is decided.

It stands between admission and the inbox: what it holds back is stored as held back, and nothing behind it asks again.
Who is let in is known in memory only, so that a restart of the bot locks everybody out.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, Protocol

import msgspec
import telegram

from kai.bot.commands import parse
from kai.bot.content import decode
from kai.bot.inbox import CODE, LOCKED, Arrival
from kai.config import Config

PASSING = frozenset({"start", "help", "stop"})
"""Commands that tell nothing of a user, and the emergency brake."""
BUTTON = "🔒 Locked: send your code, then press again."
EDITED = "🔒 Locked: an edit isn't taken now."
DOUBTFUL = "🔒 Locked: whether you need a code can't be told now. The operator is told; nothing was taken."
FORGOTTEN = "🔒 Kai was restarted before it had checked this code. Send a new one."
_CODE = re.compile(r"\s*([0-9]{3}[\s-]?[0-9]{3}|[0-9]{2}([\s-][0-9]{2}){2})\s*")
_MISTYPED = re.compile(r"[\s-]*([0-9][\s-]*){4,10}")
_LATE = 90.0
"""Seconds after somebody was let in, for which another code is known as one: who waits impatiently sends two."""
Standing = Literal["free", "open", "closed", "missing", "doubtful"]
"""Not gated; let in; to show a code; gated without being enrolled; not to be told."""


class Sorter(Protocol):
    def sort(self, updates: list[telegram.Update]) -> list[Arrival]: ...


class Window(msgspec.Struct):
    """A user is let in, until a moment of CLOCK_BOOTTIME, and as the one who was enrolled by this marker."""

    until: float
    marker: tuple[int, int]
    since: float


class Gate:
    """`sort` gives arrivals that are marked. `enrolled` is the directory of the markers, `arrivals` comes before."""

    def __init__(self, config: Callable[[], Config], arrivals: Sorter, enrolled: Path) -> None:
        self.config, self.arrivals, self.enrolled = config, arrivals, enrolled
        self.windows: dict[str, Window] = {}
        self.asked: set[str] = set()
        """Users whom a code was asked of, and who may send one."""
        self.codes: dict[int, str] = {}
        """What was sent as a code, by update; "" for a mistyped one. It is stored nowhere else."""

    def sort(self, updates: list[telegram.Update]) -> list[Arrival]:
        arrivals = self.arrivals.sort(updates)
        self.judge(arrivals)
        return arrivals

    def judge(self, arrivals: Sequence[Arrival]) -> None:
        """Mark what doesn't pass. What can't be stored is asked of Telegram again, and judged again."""
        for arrival in arrivals:
            standing = self.standing(arrival.user)
            if standing == "open":
                window = self.windows[arrival.user]
                window.until = _boottime() + self.config().kai.totp.idle
                if _boottime() < window.since + _LATE and (code := self._typed(arrival)):
                    self._is_code(arrival, code)
            elif standing != "free" and not _passes(arrival):
                self._hold_back(arrival, standing)

    def standing(self, name: str) -> Standing:
        user = self.config().user(name)
        try:
            marker = self.marker(name)
        except OSError:
            return "doubtful"
        if marker is None:
            self.windows.pop(name, None)
            return "missing" if user is None or user.totp == "required" else "free"
        window = self.windows.get(name)
        if window and window.marker == marker and _boottime() < window.until:
            return "open"
        self.windows.pop(name, None)
        return "closed"

    def marker(self, name: str) -> tuple[int, int] | None:
        """What tells this enrolment of the user from any other, None when he isn't enrolled. Raises OSError."""
        try:
            found = (self.enrolled / name).stat()
        except FileNotFoundError:
            self.enrolled.stat()  # without the directory nothing is known of anybody
            return None
        return found.st_ino, found.st_mtime_ns

    def let_in(self, name: str, marker: tuple[int, int] | None) -> bool:
        """A code was right while this was the user's marker. False when he has been enrolled anew, or is no more."""
        if marker is None or self.marker(name) != marker:
            return False
        self.windows[name] = Window(_boottime() + self.config().kai.totp.idle, marker, _boottime())
        return True

    def inside(self) -> list[str]:
        """Who has shown a code and is still let in."""
        return [name for name in sorted(self.windows) if self.standing(name) == "open"]

    def forget(self, name: str) -> None:
        """This name stands for somebody else now."""
        self.windows.pop(name, None)
        self.asked.discard(name)

    def _hold_back(self, arrival: Arrival, standing: Standing) -> None:
        arrival.locked, arrival.journal = True, None
        told = {"missing": _missing(arrival.user), "doubtful": DOUBTFUL}.get(standing, "")
        if arrival.callback:
            arrival.kind, arrival.refused = "control", told or BUTTON
            return
        if arrival.kind == "edit":
            arrival.refused = told or EDITED
        elif told or arrival.refused:
            arrival.kind, arrival.bundle, arrival.refused = "control", "", told or LOCKED
        elif (typed := self._typed(arrival)) is not None:
            self._is_code(arrival, typed)
        else:
            return  # the first of these is held: the inbox knows which one that is
        arrival.text = arrival.content = ""

    def _is_code(self, arrival: Arrival, typed: str) -> None:
        self.codes[arrival.update_id] = typed
        arrival.kind, arrival.bundle, arrival.refused = "control", CODE, FORGOTTEN
        arrival.text = arrival.content = ""
        arrival.journal = None

    def _typed(self, arrival: Arrival) -> str | None:
        """The code that a message is, "" for one that is none but was meant as such, None for any other message."""
        if arrival.kind != "turn" or arrival.bundle or decode(arrival.content).files:
            return None
        if found := _CODE.fullmatch(arrival.text):
            return "".join(one for one in found[0] if one.isdigit())
        if arrival.user not in self.asked or not _MISTYPED.fullmatch(arrival.text):
            return None
        digits = "".join(one for one in arrival.text if one.isdigit())
        return digits if len(digits) == 6 else ""


def _passes(arrival: Arrival) -> bool:
    command = parse(arrival.text) if arrival.kind == "control" and not arrival.callback else None
    return command is not None and command[0].name in PASSING and not arrival.refused


def _missing(user: str) -> str:
    return f"🔒 Locked: you need TOTP, and it isn't set up: the operator runs `sudo kai totp setup {user}`."


def _boottime() -> float:
    """Seconds that go on while the host sleeps, and that nobody sets."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
