"""The queue of updates and the long poll at its end: acknowledged by offset, handed out again until then."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kai.demo.botapi.answers import ApiError, JsonDict, conflict, encode
from kai.demo.botapi.params import Params
from kai.demo.botapi.views import UpdateView

MAX_POLL = 50  # seconds, Telegram's own bound
_OTHER_POLLER = "terminated by other getUpdates request; make sure that only one bot instance is running"
_ONLY_ON_REQUEST = ("chat_member", "message_reaction", "message_reaction_count")

Reply = Callable[[int, bytes], None]  # HTTP status, body


@dataclass(slots=True)
class Queued:
    """An update, and how often it was handed out."""

    update_id: int
    update: JsonDict
    encoded: bytes
    queued: float
    renumbered: bool  # its id is below one that was given before: no offset may hide it
    handed_out: int = 0

    def wanted(self, offset: int) -> bool:
        return self.update_id >= offset or (self.renumbered and not self.handed_out)


@dataclass(slots=True)
class _Poll:
    """The one getUpdates that waits."""

    offset: int
    limit: int
    reply: Reply
    timer: asyncio.TimerHandle


class Updates:
    """Updates of one bot. Only for the event loop that runs it."""

    def __init__(self, *, first_id: int, wake: Callable[[], None]) -> None:
        self._next_id = first_id
        self._wake = wake
        self._queue: deque[Queued] = deque()
        self._allowed: frozenset[str] | None = None
        self._poll: _Poll | None = None
        self._flush_planned = False

    @property
    def polling(self) -> bool:
        """Whether a getUpdates waits right now."""
        return self._poll is not None

    @property
    def allowed(self) -> list[str]:
        """The kinds the bot asked for, empty for the default."""
        return sorted(self._allowed or ())

    def __len__(self) -> int:
        return len(self._queue)

    def push(self, kind: str, payload: JsonDict) -> int | None:
        """Queue an update; None when the bot doesn't want this kind."""
        unwanted = kind not in self._allowed if self._allowed else kind in _ONLY_ON_REQUEST
        if unwanted:
            return None
        return self.inject({kind: payload})

    def inject(self, update: JsonDict) -> int:
        """Queue an update as given, whatever its kind. Without `update_id` it gets the next one.

        An id below the next one (a repeated or renumbered update) is handed out once, whatever the offset says.
        """
        update_id = int(update.get("update_id", self._next_id))
        renumbered = update_id < self._next_id
        self._next_id = max(self._next_id, update_id + 1)
        whole = {"update_id": update_id, **update}
        self._queue.append(Queued(update_id, whole, encode(whole), time.monotonic(), renumbered))
        self._wake()
        if self._poll and not self._flush_planned:
            # later in this turn of the loop, so that what is said in one go is handed out in one answer
            self._flush_planned = True
            asyncio.get_running_loop().call_soon(self._flush)
        return update_id

    def clear(self) -> None:
        """Forget everything that waits (drop_pending_updates)."""
        self._queue.clear()

    def waiting(self) -> list[Queued]:
        """What is to be posted to a webhook, the oldest first."""
        return list(self._queue)

    def remove(self, one: Queued) -> None:
        """It was posted, and taken."""
        if one in self._queue:
            self._queue.remove(one)
        self._wake()

    def pending(self) -> list[UpdateView]:
        """What the bot hasn't acknowledged, oldest first."""
        return [UpdateView(one.update_id, one.queued, one.handed_out, one.update) for one in self._queue]

    def allow(self, kinds: Any) -> None:
        """Remember allowed_updates: None leaves it as it is, an empty array means the default."""
        if isinstance(kinds, list):
            self._allowed = frozenset(str(kind) for kind in kinds) or None

    def poll(self, params: Params, reply: Reply) -> None:
        """getUpdates: answer now, or when something comes, or when the time is over."""
        offset = params.integer("offset")
        limit = min(100, max(1, params.integer("limit", 100)))
        timeout = min(MAX_POLL, max(0, params.integer("timeout")))
        self.allow(params.structure("allowed_updates", what="allowed_updates"))
        self.end_poll(conflict(_OTHER_POLLER))
        self._acknowledge(offset)
        if timeout == 0 or any(one.wanted(offset) for one in self._queue):
            reply(200, self._hand_out(offset, limit))
            return
        timer = asyncio.get_running_loop().call_later(timeout, self._flush)
        self._poll = _Poll(offset, limit, reply, timer)
        self._wake()

    def end_poll(self, refusal: ApiError) -> None:
        """Answer the waiting getUpdates, if there is one, with a refusal."""
        poll = self._take_poll()
        if poll:
            poll.reply(refusal.code, refusal.body())

    def forget_poll(self, reply: Reply) -> None:
        """The caller of a waiting getUpdates is gone."""
        if self._poll and self._poll.reply == reply:
            self._take_poll()

    def _flush(self) -> None:
        self._flush_planned = False
        poll = self._take_poll()
        if poll:
            poll.reply(200, self._hand_out(poll.offset, poll.limit))

    def _take_poll(self) -> _Poll | None:
        poll, self._poll = self._poll, None
        if poll:
            poll.timer.cancel()
            self._wake()
        return poll

    def _acknowledge(self, offset: int) -> None:
        """A positive offset confirms everything before it, a negative one all but the last ones."""
        if offset < 0:
            while len(self._queue) > -offset:
                self._queue.popleft()
        while self._queue and offset > 0 and not self._queue[0].wanted(offset):
            self._queue.popleft()

    def _hand_out(self, offset: int, limit: int) -> bytes:
        found = [one for one in self._queue if one.wanted(offset)][:limit]
        for one in found:
            one.handed_out += 1
        return b'{"ok":true,"result":[' + b",".join(one.encoded for one in found) + b"]}"
