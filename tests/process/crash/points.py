"""The instants at which a daemon can be killed: before and after each commit, each request and each message.

Production code knows nothing of this: in a daemon's own process, functions of the libraries below it are wrapped from
outside. What is a kill's instant is counted, so that a plan can say "the third commit, after it".
"""

from __future__ import annotations

import os
import re
import signal
from collections import Counter
from typing import Any, Literal

import msgspec
from telegram.request import BaseRequest

import kai.lib.store
from kai.lib.wire import Wire

Kind = Literal["commit", "request", "call", "reply", "asked", "answer", "prompt", "said"]
Moment = Literal["before", "after"]
_METHOD = re.compile(rb'^\{"method":"([\w.]+)"')
_EVENT = re.compile(rb'^\{"parameters":\{"kind":"(\w+)"')
_ERROR = re.compile(rb'"error":"([\w.]+)"')
ALL = b"all\n"


class Point(msgspec.Struct, frozen=True):
    """The `number`th passing (from 1) of such an instant whose name has `name` in it.

    With `everyone`, the daemon only stops there, and says that the whole set is to be killed.
    """

    kind: Kind
    moment: Moment
    number: int
    name: str = ""
    everyone: bool = False


class Points:
    """Counts what this process passes and ends it at the first point of the plan that is reached.

    `where` names this life of the daemon; the kill is written down in the file `kills` before it happens.
    """

    def __init__(self, plan: list[Point], kills: str, where: str, report: int) -> None:
        self.plan, self.kills, self.where, self.report = plan, kills, where, report
        self.passed: Counter[Point] = Counter()

    def at(self, kind: Kind, moment: Moment, name: str) -> None:
        for point in self.plan:
            if point.kind == kind and point.moment == moment and point.name in name:
                self.passed[point] += 1
                if self.passed[point] == point.number:
                    self._kill(point, name)

    def _kill(self, point: Point, name: str) -> None:
        file = os.open(self.kills, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        how = "all " if point.everyone else ""
        os.write(file, f"{how}{self.where} {point.kind} {point.number} {point.moment}: {name}\n".encode())
        os.close(file)
        if point.everyone:
            os.write(self.report, ALL)
            os.kill(os.getpid(), signal.SIGSTOP)  # until the kill comes from outside
        os.kill(os.getpid(), signal.SIGKILL)

    # ---- where they are ----

    def install(self) -> None:
        """Wrap what this process will use."""
        self._commits()
        self._requests()
        self._messages()
        self._agent()

    def _commits(self) -> None:
        commit, at = kai.lib.store.Store._commit, self.at

        def wrapped(store: Any, group: list[Any]) -> None:
            name = f"{store.path.name} " + ", ".join(_name(job[0]) for job in group)
            if all("Store.read" in _name(job[0]) for job in group):
                commit(store, group)
                return
            held: list[Any] = []
            at("commit", "before", name)
            # What a commit leads to waits until it was known whether this process survives it.
            commit(store, [(*job[:-1], _Held(job[-1], held)) for job in group])
            at("commit", "after", name)
            for loop, callback, arguments in held:
                loop.call_soon_threadsafe(callback, *arguments)

        _replace(kai.lib.store.Store, _commit=wrapped)

    def _requests(self) -> None:
        """Below python-telegram-bot, above whatever carries its requests."""
        request, at = BaseRequest._request_wrapper, self.at

        async def wrapped(carrier: Any, url: str, *arguments: Any, **named: Any) -> bytes:
            name = url.rsplit("/", maxsplit=1)[-1]
            at("request", "before", name)
            try:
                return await request(carrier, url, *arguments, **named)
            finally:
                at("request", "after", name)

        _replace(BaseRequest, _request_wrapper=wrapped)

    def _messages(self) -> None:
        """Calls have a method, answers have none: so both ends of a connection are told apart."""
        send, receive, at = Wire.send, Wire.receive, self.at

        async def wrapped_send(wire: Any, message: bytes, *arguments: Any) -> None:
            kind: Kind = "call" if _METHOD.search(message) else "answer"
            at(kind, "before", _named(message))
            await send(wire, message, *arguments)
            at(kind, "after", _named(message))

        async def wrapped_receive(wire: Any) -> bytes | None:
            message = await receive(wire)
            if message is not None:
                at("asked" if _METHOD.search(message) else "reply", "after", _named(message))
            return message

        _replace(Wire, send=wrapped_send, receive=wrapped_receive)

    def _agent(self) -> None:
        from kai.agent.claude import ClaudeBackend

        send, line, at = ClaudeBackend._send, ClaudeBackend._line, self.at

        def wrapped_send(backend: Any, message: Any) -> None:
            name = str(message.get("type", message.get("verb", "")))
            at("prompt", "before", name)
            send(backend, message)
            at("prompt", "after", name)

        async def wrapped_line(backend: Any, text: bytes | None) -> None:
            at("said", "before", (text or b"")[:40].decode("utf-8", "replace"))
            await line(backend, text)
            at("said", "after", (text or b"")[:40].decode("utf-8", "replace"))

        _replace(ClaudeBackend, _send=wrapped_send, _line=wrapped_line)


def _replace(owner: type, **functions: Any) -> None:
    for name, function in functions.items():
        assert hasattr(owner, name), f"{owner.__name__}.{name} is gone: wrap what has taken its place"
        setattr(owner, name, function)


class _Held:
    """Takes a loop's place: keeps what is to be called there."""

    def __init__(self, loop: Any, held: list[Any]) -> None:
        self.loop, self.held = loop, held

    def call_soon_threadsafe(self, callback: Any, *arguments: Any) -> None:
        self.held.append((self.loop, callback, arguments))


def _name(work: Any) -> str:
    return (
        str(getattr(work, "__qualname__", work)).replace(".<locals>", "").replace(".<lambda>", "").replace(".work", "")
    )


def _named(message: bytes) -> str:
    """A call's method, or what an answer is."""
    found = _METHOD.search(message) or _EVENT.search(message) or _ERROR.search(message)
    return found[1].decode() if found else "answer"
