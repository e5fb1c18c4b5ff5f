"""What happened, in order: changes and API calls, both bounded, and a way to wait for the next one."""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from kai.demo.botapi.answers import JsonDict
from kai.demo.botapi.files import Upload
from kai.demo.botapi.views import CallView, Change, Changes

T = TypeVar("T")

_JSON_PARAMS = (
    "entities", "caption_entities", "reply_markup", "reply_parameters", "link_preview_options", "reaction",
    "commands", "scope", "allowed_updates",
)  # fmt: skip


class CallRecord:
    """One API call while it is on its way and after."""

    __slots__ = ("answer", "answered", "at", "fault", "files", "lost", "method", "params", "seq", "status", "weight")

    def __init__(self, seq: int, method: str, params: dict[str, Any], files: dict[str, Upload]) -> None:
        self.seq = seq
        self.method = method
        self.params = params
        # the bytes belong to the file store; the log names them
        self.files = {
            name: {"name": file.name, "mime": file.mime, "size": len(file.data)} for name, file in files.items()
        }
        self.at = time.monotonic()
        self.answered: float | None = None
        self.status = 0
        self.answer = b""
        self.lost = False
        self.fault = ""
        self.weight = sum(len(value) for value in params.values() if isinstance(value, str))

    def view(self) -> CallView:
        """The record with parameters and answer decoded."""
        params: JsonDict = {}
        for name, value in self.params.items():
            params[name] = _decoded(value) if name in _JSON_PARAMS and isinstance(value, str) else value
        params.update(self.files)
        answer = _decoded(self.answer) if self.answer.startswith(b"{") else None
        return CallView(
            seq=self.seq,
            method=self.method,
            params=params,
            at=self.at,
            answered=self.answered,
            status=self.status,
            answer=answer,
            lost=self.lost,
            fault=self.fault,
        )


class Journal:
    """The log of one stand-in. Only for the event loop that runs it."""

    def __init__(self, *, max_calls: int, max_call_bytes: int, max_changes: int) -> None:
        self.version = 0
        self.calls_total = 0
        self._changes: deque[Change] = deque(maxlen=max_changes)
        self._calls: deque[CallRecord] = deque()
        self._calls_weight = 0
        self._max_calls = max_calls
        self._max_call_bytes = max_call_bytes
        self._waiters: list[asyncio.Future[None]] = []

    def note(
        self, kind: str, *, chat_id: int | None = None, message_id: int | None = None, data: JsonDict | None = None
    ) -> None:
        """Write a change down and wake whoever waits."""
        self.version += 1
        self._changes.append(Change(self.version, kind, time.monotonic(), chat_id, message_id, data or {}))
        self.wake()

    def call(self, method: str, params: dict[str, Any], files: dict[str, Upload]) -> CallRecord:
        """Write down that a call came in."""
        self.calls_total += 1
        record = CallRecord(self.calls_total, method, params, files)
        self._calls.append(record)
        self._calls_weight += record.weight
        self.wake()
        return record

    def answered(self, record: CallRecord, status: int, answer: bytes, *, lost: bool) -> None:
        """Write down how a call ended."""
        record.status = status
        record.answer = answer
        record.lost = lost
        record.answered = time.monotonic()
        if record.seq >= self._calls[0].seq:
            record.weight += len(answer)
            self._calls_weight += len(answer)
        while len(self._calls) > self._max_calls or (
            self._calls_weight > self._max_call_bytes and len(self._calls) > 1
        ):
            self._calls_weight -= self._calls.popleft().weight
        self.wake()

    def wake(self) -> None:
        """Let everyone who waits look again."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def next(self, timeout: float) -> bool:
        """Wait for anything to happen; False when `timeout` seconds pass."""
        if timeout <= 0:
            return False
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        done, _ = await asyncio.wait({waiter}, timeout=timeout)
        if not done:
            waiter.cancel()
            self._waiters = [other for other in self._waiters if other is not waiter]
        return bool(done)

    async def wait_for(self, look: Callable[[], T | None], timeout: float) -> T | None:
        """Look after every happening until something truthy is seen; None when `timeout` seconds pass first."""
        end = time.monotonic() + timeout
        while not (found := look()):
            if not await self.next(end - time.monotonic()):
                return look() or None
        return found

    def changes(self, since: int, kinds: Iterable[str] = ()) -> Changes:
        """What changed after version `since`, all kinds or the named ones."""
        wanted = frozenset(kinds)
        missed = bool(self._changes) and since < self._changes[0].version - 1
        found: list[Change] = []
        for change in reversed(self._changes):
            if change.version <= since:
                break
            if not wanted or change.kind in wanted:
                found.append(change)
        found.reverse()
        return Changes(self.version, missed, found)

    def calls(
        self, *, method: str | None = None, since: int = 0, limit: int | None = None, answered: bool = False
    ) -> list[CallView]:
        """Calls after number `since`, oldest first, all methods or one (any case); at most the last `limit`.

        With `answered` only those that are over.
        """
        wanted = method.lower() if method else None
        found: list[CallRecord] = []
        for record in reversed(self._calls):
            if record.seq <= since or (limit is not None and len(found) >= limit):
                break
            if wanted not in (None, record.method.lower()) or (answered and record.answered is None):
                continue
            found.append(record)
        return [record.view() for record in reversed(found)]


def _decoded(source: str | bytes) -> Any:
    try:
        return json.loads(source)
    except ValueError:
        return source if isinstance(source, str) else source.decode("utf-8", "replace")
