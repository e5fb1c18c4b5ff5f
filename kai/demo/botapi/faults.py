"""Bad days on demand: delays, dropped connections, lost answers, and refusals that only load or mistakes bring.

Each fault is set for a method (or all), for a number of calls, and may come by chance from a seeded generator, so
that a test that failed fails again.
"""

from __future__ import annotations

import random
from typing import get_args

import msgspec

from kai.demo.botapi.answers import ApiError, conflict, too_many
from kai.demo.botapi.views import FaultKind

_OTHER_POLLER = "terminated by other getUpdates request; make sure that only one bot instance is running"

# What Telegram's front server sends while the Bot API behind it is away: HTML, which is no JSON.
_FRONT_PAGES = {
    500: "Internal Server Error",
    502: "Bad Gateway",
    503: "Service Temporarily Unavailable",
    504: "Gateway Time-out",
}

_REFUSALS = {400: "Bad Request: ", 403: "Forbidden: "}


class Fault(msgspec.Struct, forbid_unknown_fields=True):
    """One fault.

    - delay: acts at once, answers `seconds` later
    - hold: waits `seconds`, then acts
    - drop: closes the connection without acting
    - lose: acts, then closes the connection instead of answering
    - status: answers `code` with an HTML page (for 5xx); acts before that where `acted`
    - flood: 429 with `retry_after`
    - conflict: 409, as for a second getUpdates
    - unauthorized: 401
    - refuse: any other refusal, `code` (400 or 403) with `description`
    """

    kind: FaultKind
    method: str = "*"
    count: int | None = 1  # calls it applies to, None for all
    skip: int = 0  # matching calls that pass before
    probability: float = 1.0
    seconds: float = 0.0
    retry_after: int = 1
    code: int = 502
    description: str = ""
    acted: bool = False
    chat_id: int | None = None  # only calls with this chat_id
    fault_id: int = 0

    def refusal(self) -> ApiError | None:
        """The API error this fault answers with, if it does."""
        if self.kind == "flood":
            return too_many(self.retry_after)
        if self.kind == "conflict":
            return conflict(_OTHER_POLLER)
        if self.kind == "unauthorized":
            return ApiError(401, "Unauthorized")
        if self.kind == "refuse":
            return ApiError(self.code, self.description)
        return None

    def page(self) -> bytes:
        """The front server's page for kind status."""
        title = f"{self.code} {_FRONT_PAGES.get(self.code, 'Error')}"
        page = f"<html>\r\n<head><title>{title}</title></head>\r\n<body>\r\n<center><h1>{title}</h1></center>\r\n"
        return (page + "<hr><center>nginx/1.18.0</center>\r\n</body>\r\n</html>\r\n").encode()


class Faults:
    """The faults that are set."""

    def __init__(self, *, seed: int = 0) -> None:
        self._random = random.Random(seed)  # noqa: S311  (chance for tests, no secret)
        self._faults: list[Fault] = []
        self._last_id = 0

    def seed(self, seed: int) -> None:
        """Begin the row of chances anew."""
        self._random.seed(seed)

    def add(self, fault: Fault) -> int:
        """Set a fault; the number takes it away again. ValueError for one that could never apply."""
        if fault.kind not in get_args(FaultKind):
            raise ValueError(f"fault kind {fault.kind!r}: expected one of {', '.join(get_args(FaultKind))}")
        if fault.kind == "status" and not 400 <= fault.code <= 599:
            raise ValueError(f"fault code {fault.code}: expected 400 to 599")
        begins = _REFUSALS.get(fault.code)
        if fault.kind == "refuse" and (begins is None or not fault.description.startswith(begins)):
            raise ValueError(f"fault refuse: expected one of {_REFUSALS} as code and beginning of the description")
        if fault.count is not None and fault.count < 1:
            raise ValueError(f"fault count {fault.count}: expected 1 or more, or None for all calls")
        if not 0 <= fault.probability <= 1:
            raise ValueError(f"fault probability {fault.probability}: expected 0 to 1")
        self._last_id += 1
        fault.fault_id = self._last_id
        self._faults.append(fault)
        return fault.fault_id

    def remove(self, fault_id: int) -> None:
        """Take one away; it may be used up already."""
        self._faults = [fault for fault in self._faults if fault.fault_id != fault_id]

    def clear(self) -> None:
        """Take all away."""
        self._faults.clear()

    def left(self) -> list[Fault]:
        """Those that still apply to something."""
        return list(self._faults)

    def matching(self, method: str, chat_id: str) -> list[Fault]:
        """The faults that hit this call; each is counted."""
        if not self._faults:
            return []
        return [fault for fault in list(self._faults) if self._hits(fault, method.lower(), chat_id)]

    def _hits(self, fault: Fault, method: str, chat_id: str) -> bool:
        if fault.method != "*" and fault.method.lower() != method:
            return False
        if fault.chat_id is not None and str(fault.chat_id) != chat_id:
            return False
        if fault.skip > 0:
            fault.skip -= 1
            return False
        if fault.probability < 1 and self._random.random() >= fault.probability:
            return False
        if fault.count is not None:
            fault.count -= 1
            if fault.count <= 0:
                self._faults.remove(fault)
        return True
