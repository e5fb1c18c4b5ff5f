"""One round: what GitHub couldn't deliver in the last days, and asking it to try again.

GitHub doesn't repeat a delivery by itself. kai-webhook knows what it has had, so one that is repeated in vain does no
harm; but each costs GitHub and us a request, so what can't succeed isn't repeated for ever.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Protocol
from urllib.parse import urlsplit

from kai.github.api import Attempt, GitHubError, Hook, Stop
from kai.interfaces import Redelivered

WINDOW = timedelta(days=3)
"""How far GitHub itself looks back."""
REFUSED, MOST_REFUSED = frozenset({400, 401, 404, 405, 411, 413, 415}), 5
"""What was judged and not wanted is tried so many times, GitHub's own first try included."""
LONGEST = timedelta(hours=4)
"""The longest pause between two tries of what was not answered, or by a 5xx: each is as long as it took so far."""
MOST_ASKED = 500
"""Redeliveries that one round asks for: GitHub's limit is 5,000 requests an hour."""
FRESH = timedelta(minutes=2)
"""A try that is so new may have its answer on the way."""
PATH = "/webhook/github"
logger = logging.getLogger(__name__)


class Deliveries(Protocol):
    """What a round needs of the API."""

    def hooks(self, repository: str) -> list[Hook]: ...
    def attempts(self, place: str) -> Iterable[Attempt]: ...
    def redeliver(self, place: str, attempt: int) -> None: ...


class Round:
    """Looks at each place once; `seen`, `asked` and `faults` are what came of it."""

    def __init__(self, endpoint: str, now: datetime | None = None) -> None:
        self.endpoint, self.now = endpoint, now or datetime.now(UTC)
        self.seen = self.asked = 0
        self.faults: list[str] = []

    @property
    def result(self) -> Redelivered:
        return Redelivered(seen=self.seen, asked=self.asked)

    def repositories(self, api: Deliveries, names: Iterable[str]) -> None:
        """One that can't be looked at is no other's trouble. Raises Stop."""
        for name in names:
            try:
                for hook in api.hooks(name):
                    if hook.active and is_ours(hook.config.url, self.endpoint):
                        self.place(api, f"/repos/{name}/hooks/{hook.id}")
            except Stop:
                raise
            except GitHubError as error:
                self.faults.append(str(error))

    def place(self, api: Deliveries, place: str) -> None:
        """A webhook. Raises GitHubError."""
        recent = []
        for attempt in api.attempts(place):
            if moment(attempt.delivered_at) < self.now - WINDOW:
                break
            recent.append(attempt)
        for attempt in failed(recent, self.now):
            if self.asked >= MOST_ASKED:
                logger.warning("%s: more deliveries failed than one round repeats; the next one goes on", place)
                break
            try:
                api.redeliver(place, attempt.id)
            except Stop:
                raise
            except GitHubError as error:
                self.faults.append(str(error))
                continue
            self.asked += 1
            logger.info("asked GitHub to deliver %s again, a %s event", attempt.guid, attempt.event)
        self.seen += len({attempt.guid for attempt in recent})


def failed(attempts: Iterable[Attempt], now: datetime) -> list[Attempt]:
    """The newest try of each delivery that never arrived and is worth another one, the oldest delivery first."""
    tries: dict[str, list[Attempt]] = {}
    for attempt in attempts:
        tries.setdefault(attempt.guid, []).append(attempt)
    found = []
    for several in tries.values():
        newest = max(several, key=lambda one: (moment(one.delivered_at), one.id))
        first = min(moment(one.delivered_at) for one in several)
        pause = min(max(moment(newest.delivered_at) - first, FRESH), LONGEST)
        arrived = any(200 <= one.status_code < 300 for one in several)
        refused = sum(one.status_code in REFUSED for one in several) >= MOST_REFUSED
        whole = any(not one.redelivery for one in several)  # else the first try is older than what is looked at
        if whole and not arrived and not refused and moment(newest.delivered_at) <= now - pause:
            found.append(newest)
    return sorted(found, key=lambda one: (moment(one.delivered_at), one.id))


def is_ours(url: str, endpoint: str) -> bool:
    """Whether a webhook of this address leads to kai-webhook; where no endpoint is configured, by its path."""
    try:
        given, own = urlsplit(url), urlsplit(endpoint)
    except ValueError:
        return False
    if not endpoint:
        return given.path.rstrip("/").endswith(PATH)
    return (given.netloc.lower(), given.path.rstrip("/")) == (own.netloc.lower(), own.path.rstrip("/"))


def moment(text: str) -> datetime:
    """GitHub's ISO 8601. What can't be read counts as long ago."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return datetime.min.replace(tzinfo=UTC)
    return found if found.tzinfo else found.replace(tzinfo=UTC)
