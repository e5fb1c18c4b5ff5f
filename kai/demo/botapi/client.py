"""A client of `/control` for other processes: tests that run the real daemons, and the demo's chat in the terminal.

Standard library and msgspec only, synchronous, one request per call. Not to be shared between threads that wait.
"""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from typing import Any, TypeVar
from urllib.parse import urlencode

import msgspec

from kai.demo.botapi.answers import JsonDict
from kai.demo.botapi.faults import Fault
from kai.demo.botapi.flood import FloodLimits
from kai.demo.botapi.views import (
    ActionView,
    CallbackView,
    CallView,
    Changes,
    DraftView,
    MessageView,
    Pressed,
    Said,
    StateView,
    UpdateView,
)

T = TypeVar("T")

# mypy has no type for "a type expression" yet
_MAYBE_INT: Any = int | None
_MAYBE_DRAFT: Any = DraftView | None
_NOTHING: Any = None

_LONGEST_WAIT = 30.0  # seconds per request; longer waits are several requests


class ControlError(Exception):
    """The stand-in refused, or can't be reached."""


class ControlClient:
    """Drives a stand-in at `url` (http://127.0.0.1:PORT). Arguments and results are those of `BotApi`."""

    def __init__(self, url: str, token: str, *, timeout: float = 10.0) -> None:
        self._url = url.rstrip("/")
        self._token = token
        self._timeout = timeout
        # a proxy from the environment has no business between two processes of one machine
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    # people

    def declare_user(
        self,
        user_id: int,
        *,
        first_name: str | None = None,
        last_name: str | None = None,
        username: str | None = None,
        language_code: str | None = None,
        started: bool = True,
    ) -> JsonDict:
        """See `People.declare_user`."""
        arguments: JsonDict = {name: value for name, value in locals().items() if name != "self"}
        return self._ask("declare_user", dict[str, Any], **arguments)

    def declare_group(self, chat_id: int, *, title: str = "Group") -> None:
        """See `People.declare_group`."""
        self._ask("declare_group", _NOTHING, chat_id=chat_id, title=title)

    def open_topic(self, chat_id: int, thread: int) -> None:
        """See `People.open_topic`."""
        self._ask("open_topic", _NOTHING, chat_id=chat_id, thread=thread)

    def close_topic(self, chat_id: int, thread: int) -> None:
        """See `People.close_topic`."""
        self._ask("close_topic", _NOTHING, chat_id=chat_id, thread=thread)

    def put_file(
        self, data: bytes, *, name: str = "", mime: str = "", kind: str = "document", declared_size: int | None = None
    ) -> str:
        """See `People.put_file`."""
        query = {"name": name, "mime": mime, "kind": kind}
        if declared_size is not None:
            query["declared_size"] = str(declared_size)
        answer = self._request(f"put_file?{urlencode(query)}", data, "application/octet-stream", self._timeout)
        return msgspec.json.decode(answer, type=str)

    def say(
        self,
        user_id: int,
        text: str | None = None,
        *,
        chat_id: int | None = None,
        entities: list[JsonDict] | None = None,
        document: str | None = None,
        photo: str | None = None,
        voice: str | None = None,
        duration: int = 1,
        media_group_id: str | None = None,
        reply_to: int | None = None,
        quote: str | None = None,
        forward_from: int | str | None = None,
        forward_origin: JsonDict | None = None,
        date: int | None = None,
        thread: int | None = None,
    ) -> Said:
        """See `People.say`."""
        arguments: JsonDict = {name: value for name, value in locals().items() if name != "self"}
        return self._ask("say", Said, **arguments)

    def edit(self, user_id: int, message_id: int, text: str, *, chat_id: int | None = None) -> Said:
        """See `People.edit`."""
        return self._ask("edit", Said, user_id=user_id, message_id=message_id, text=text, chat_id=chat_id)

    def press(
        self,
        user_id: int,
        message_id: int,
        *,
        index: int | None = None,
        label: str | None = None,
        data: str | None = None,
        chat_id: int | None = None,
    ) -> Pressed:
        """See `People.press`."""
        arguments: JsonDict = {name: value for name, value in locals().items() if name != "self"}
        return self._ask("press", Pressed, **arguments)

    def block(self, user_id: int, *, blocked: bool = True) -> int | None:
        """See `People.block`."""
        update_id: int | None = self._ask("block", _MAYBE_INT, user_id=user_id, blocked=blocked)
        return update_id

    def delete(self, chat_id: int, message_id: int) -> None:
        """See `People.delete`."""
        self._ask("delete", _NOTHING, chat_id=chat_id, message_id=message_id)

    def inject(self, update: JsonDict) -> int:
        """See `People.inject`."""
        return self._ask("inject", int, update=update)

    # looking on

    def messages(self, chat_id: int, *, deleted: bool = False, history: bool = True) -> list[MessageView]:
        """See `People.messages`."""
        return self._ask("messages", list[MessageView], chat_id=chat_id, deleted=deleted, history=history)

    def message(self, chat_id: int, message_id: int) -> MessageView:
        """One message, deleted or not."""
        return self._ask("message", MessageView, chat_id=chat_id, message_id=message_id)

    def actions(self, chat_id: int) -> list[ActionView]:
        """See `People.actions`."""
        return self._ask("actions", list[ActionView], chat_id=chat_id)

    def drafts(self, chat_id: int) -> list[DraftView]:
        """See `People.drafts`."""
        return self._ask("drafts", list[DraftView], chat_id=chat_id)

    def draft_on_screen(self, chat_id: int) -> DraftView | None:
        """See `People.draft_on_screen`."""
        draft: DraftView | None = self._ask("draft_on_screen", _MAYBE_DRAFT, chat_id=chat_id)
        return draft

    def callback(self, callback_id: str) -> CallbackView:
        """See `People.callback`."""
        return self._ask("callback", CallbackView, callback_id=callback_id)

    def file(self, file_id: str) -> bytes:
        """The bytes of a file that either side sent."""
        return self._request(f"file?{urlencode({'file_id': file_id})}", None, "", self._timeout)

    def state(self) -> StateView:
        """See `People.state`."""
        return self._ask("state", StateView)

    def pending(self) -> list[UpdateView]:
        """Updates that the bot hasn't acknowledged."""
        return self._ask("pending", list[UpdateView])

    def commands(self) -> list[JsonDict]:
        """What setMyCommands set: objects with scope (JSON text), language_code, commands."""
        return self._ask("commands", list[dict[str, Any]])

    def calls(
        self, method: str | None = None, *, since: int = 0, limit: int | None = None, answered: bool = False
    ) -> list[CallView]:
        """API calls after number `since`, oldest first."""
        return self._ask("calls", list[CallView], method=method, since=since, limit=limit, answered=answered, timeout=0)

    def wait_call(self, method: str, *, since: int = 0, answered: bool = False, timeout: float = 10.0) -> CallView:
        """Wait for a call of a method with a number above `since`; TimeoutError when none comes."""
        end = time.monotonic() + timeout
        while True:
            wait = min(_LONGEST_WAIT, max(0.0, end - time.monotonic()))
            arguments: JsonDict = {"method": method, "since": since, "answered": answered, "timeout": wait}
            found = self._ask("calls", list[CallView], wait=wait, **arguments)
            if found:
                return found[0]
            if time.monotonic() >= end:
                raise TimeoutError(f"no call of {method} within {timeout} s")

    def changes(self, since: int, *, timeout: float = 0.0, kinds: Iterable[str] = ()) -> Changes:
        """Changes after version `since`; waits up to `timeout` seconds (60 at most) for one."""
        names = ",".join(kinds)
        return self._ask("changes", Changes, wait=timeout, since=since, timeout=timeout, kinds=names)

    # waiting

    def wait_for(self, look: Callable[[], T | None], *, timeout: float = 10.0) -> T:
        """Look after every change until `look` returns something truthy, and return that.

        TimeoutError after `timeout` seconds names the bot's last calls.
        """
        end = time.monotonic() + timeout
        version = self.state().version
        while not (found := look()):
            left = end - time.monotonic()
            if left <= 0:
                last = [f"{call.method} {call.status}" for call in self.calls(limit=8)]
                raise TimeoutError(f"not seen within {timeout} s; the bot's last calls: {', '.join(last) or 'none'}")
            version = self.changes(version, timeout=min(left, _LONGEST_WAIT)).version
        return found

    def wait_message(self, chat_id: int, *, contains: str = "", after: int = 0, timeout: float = 10.0) -> MessageView:
        """Wait for a message of the bot in a chat that says `contains`, with an id above `after`."""

        def look() -> MessageView | None:
            for message in self.messages(chat_id, history=False):
                if message.by_bot and message.message_id > after and contains in (message.text or ""):
                    return self.message(chat_id, message.message_id)
            return None

        return self.wait_for(look, timeout=timeout)

    def wait_polling(self, *, timeout: float = 10.0) -> None:
        """Wait until a getUpdates waits at the server."""
        end = time.monotonic() + timeout
        since = 0
        while not (state := self.state()).polling:
            since = max(since, state.calls)
            left = end - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"no getUpdates waits within {timeout} s")
            wait = min(left, 0.2)  # a call may be over before its polling is seen: look again soon
            self._ask("calls", list[CallView], wait=wait, method="getUpdates", since=since, timeout=wait)

    # faults and limits

    def fault(self, fault: Fault) -> int:
        """Set a fault; the number takes it away."""
        return self._ask("fault", int, **msgspec.to_builtins(fault))

    def remove_fault(self, fault_id: int) -> None:
        """Take one fault away."""
        self._ask("remove_fault", _NOTHING, fault_id=fault_id)

    def clear_faults(self) -> None:
        """Take all faults away."""
        self._ask("clear_faults", _NOTHING)

    def faults(self) -> list[Fault]:
        """The faults that still apply."""
        return self._ask("faults", list[Fault])

    def seed(self, seed: int) -> None:
        """Begin the row of chances anew."""
        self._ask("seed", _NOTHING, seed=seed)

    def limits(self, limits: FloodLimits) -> None:
        """Set flood limits; FloodLimits() takes them away."""
        self._ask("limits", _NOTHING, **msgspec.to_builtins(limits))

    # transport

    def _ask(self, verb: str, kind: type[T], /, *, wait: float = 0.0, **arguments: Any) -> T:
        answer = self._request(verb, msgspec.json.encode(arguments), "application/json", self._timeout + wait)
        return msgspec.json.decode(answer, type=kind)

    def _request(self, path: str, body: bytes | None, content_type: str, timeout: float) -> bytes:
        request = urllib.request.Request(f"{self._url}/control/{path}", data=body)  # noqa: S310  (http, loopback)
        request.add_header("Authorization", f"Bearer {self._token}")
        if content_type:
            request.add_header("Content-Type", content_type)
        try:
            with self._opener.open(request, timeout=timeout) as response:
                return bytes(response.read())
        except urllib.error.HTTPError as fault:
            text = fault.read().decode("utf-8", "replace")
            raise ControlError(f"/control/{path}: {fault.code} {text}") from None
        except OSError as fault:
            raise ControlError(
                f"the Bot API stand-in at {self._url} can't be reached: {fault}; is it running?"
            ) from fault
