"""`/control/<verb>`: the in-process door to the stand-in, spoken over HTTP in JSON.

A verb takes the arguments of the function behind it, from the query or from a JSON object in the body; what is unknown
or of the wrong type is refused with {"error": …}. `put_file` takes the file's bytes as the body, `file` answers with
bytes. `changes` and `calls` may wait.
"""

from __future__ import annotations

import asyncio
import inspect
import typing
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl

import msgspec
from tornado import httputil

from kai.demo.botapi.answers import ApiError, JsonDict, encode
from kai.demo.botapi.faults import Fault
from kai.demo.botapi.flood import FloodLimits, realistic
from kai.demo.botapi.people import People
from kai.demo.botapi.views import CallView, Changes, UpdateView

Answer = Callable[[int, bytes, str], None]  # HTTP status, body, content type

_JSON = "application/json"
_BYTES = "application/octet-stream"
_MAX_WAIT = 60.0  # seconds


async def changes(world: People, *, since: int = 0, timeout: float = 0.0, kinds: str = "") -> Changes:
    """Changes after version `since`; waits up to `timeout` seconds for one. `kinds`: names with commas."""
    wanted = [kind for kind in kinds.split(",") if kind]

    def look() -> Changes | None:
        found = world.journal.changes(since, wanted)
        return found if found.changes else None

    found = await world.journal.wait_for(look, min(timeout, _MAX_WAIT))
    return found or world.journal.changes(since, wanted)


async def calls(
    world: People,
    *,
    since: int = 0,
    timeout: float = 0.0,
    method: str | None = None,
    limit: int | None = None,
    answered: bool = False,
) -> list[CallView]:
    """API calls after number `since`; waits up to `timeout` seconds for one."""

    def look() -> list[CallView] | None:
        return world.journal.calls(method=method, since=since, limit=limit, answered=answered) or None

    return await world.journal.wait_for(look, min(timeout, _MAX_WAIT)) or []


def pending(world: People) -> list[UpdateView]:
    """Updates that the bot hasn't acknowledged."""
    return world.updates.pending()


def commands(world: People) -> list[JsonDict]:
    """Everything that setMyCommands set, per scope and language."""
    return [
        {"scope": scope, "language_code": language, "commands": found}
        for (scope, language), found in world.commands.items()
    ]


def faults(world: People) -> list[Fault]:
    """The faults that still apply."""
    return world.faults.left()


def remove_fault(world: People, fault_id: int) -> None:
    """Take one fault away."""
    world.faults.remove(fault_id)


def clear_faults(world: People) -> None:
    """Take all faults away."""
    world.faults.clear()


def seed(world: People, seed: int) -> None:
    """Begin the row of chances anew."""
    world.faults.seed(seed)


def realistic_limits(world: People) -> None:
    """Flood limits as bots meet them."""
    world.flood.set(realistic())


def file(world: People, file_id: str) -> bytes:
    """The bytes of a file."""
    return world.file_bytes(file_id)


_VERBS: dict[str, Callable[..., Any]] = {
    "declare_user": People.declare_user,
    "declare_group": People.declare_group,
    "open_topic": People.open_topic,
    "close_topic": People.close_topic,
    "say": People.say,
    "edit": People.edit,
    "press": People.press,
    "block": People.block,
    "delete": People.delete,
    "inject": People.inject,
    "messages": People.messages,
    "message": People.message_view,
    "actions": People.actions,
    "drafts": People.drafts,
    "draft_on_screen": People.draft_on_screen,
    "callback": People.callback,
    "state": People.state,
    "changes": changes,
    "calls": calls,
    "pending": pending,
    "commands": commands,
    "faults": faults,
    "remove_fault": remove_fault,
    "clear_faults": clear_faults,
    "seed": seed,
    "realistic_limits": realistic_limits,
    "file": file,
}


def _arguments_of(function: Callable[..., Any]) -> type[msgspec.Struct]:
    """The arguments of a function (without the world) as a type that JSON can be checked against."""
    hints = typing.get_type_hints(function)
    fields: list[Any] = []
    for name, parameter in list(inspect.signature(function).parameters.items())[1:]:
        default = parameter.default
        fields.append((name, hints[name]) if default is parameter.empty else (name, hints[name], default))
    return msgspec.defstruct(f"arguments of {function.__name__}", fields, kw_only=True, forbid_unknown_fields=True)


_ARGUMENTS = {verb: _arguments_of(function) for verb, function in _VERBS.items()}


class Control:
    """The verbs for one world."""

    def __init__(self, world: People) -> None:
        self._world = world
        self._tasks: set[asyncio.Task[None]] = set()

    def handle(self, verb: str, query: str, headers: httputil.HTTPHeaders, body: bytes, answer: Answer) -> None:
        """Answer one request, at once or when its waiting is over."""
        try:
            arguments: JsonDict = dict(parse_qsl(query, keep_blank_values=True))
            if verb == "put_file":
                result = self._put_file(arguments, body, headers.get("Content-Type", ""))
            else:
                if body:
                    arguments.update(msgspec.json.decode(body, type=dict[str, Any]))
                result = self._run(verb, arguments)
        except (msgspec.MsgspecError, ValueError, KeyError, ApiError) as fault:
            _refuse(fault, answer)
            return
        if inspect.iscoroutine(result):
            task = asyncio.get_running_loop().create_task(self._answer_later(result, answer))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif isinstance(result, bytes):
            answer(200, result, _BYTES)
        else:
            answer(200, encode(result), _JSON)

    def stop(self) -> None:
        """End everything that waits."""
        for task in self._tasks:
            task.cancel()

    def _run(self, verb: str, arguments: JsonDict) -> Any:
        # these two take a struct of their own
        if verb == "fault":
            return self._world.faults.add(msgspec.convert(arguments, Fault, strict=False))
        if verb == "limits":
            self._world.flood.set(msgspec.convert(arguments, FloodLimits, strict=False))
            return None
        if verb not in _VERBS:
            known = ", ".join(sorted((*_VERBS, "fault", "limits", "put_file")))
            raise ValueError(f"/control/{verb}: no such verb; there are {known}")
        checked = msgspec.convert(arguments, _ARGUMENTS[verb], strict=False)
        return _VERBS[verb](self._world, **{name: getattr(checked, name) for name in checked.__struct_fields__})

    def _put_file(self, arguments: JsonDict, body: bytes, mime: str) -> str:
        size = arguments.get("declared_size")
        return self._world.put_file(
            body,
            name=arguments.get("name", ""),
            mime=arguments.get("mime", mime),
            kind=arguments.get("kind", "document"),
            declared_size=int(size) if size else None,
        )

    async def _answer_later(self, result: Any, answer: Answer) -> None:
        try:
            answer(200, encode(await result), _JSON)
        except (ValueError, KeyError) as fault:
            _refuse(fault, answer)


def _refuse(fault: Exception, answer: Answer) -> None:
    what = fault.args[0] if isinstance(fault, KeyError) and fault.args else fault
    answer(400, encode({"error": str(what)}), _JSON)
