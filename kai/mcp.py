"""`kai mcp`: Kai's functions as tools of the Model Context Protocol, on standard input and output.

Started by the agent, as the agent's account; all that it can do is what kai-api(7) lets that account do. Calls are
worked off one after the other, beside the rest of the conversation. Standard library only, and little of it: there is
one of these beside every agent. Source: modelcontextprotocol.io, versions 2024-11-05 to 2025-11-25; JSON-RPC 2.0.
"""

from __future__ import annotations

import json
import os
import sys
import threading

import kai
from kai.lib import api

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    Message = dict[str, Any]

VERSIONS = ("2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05")
"""The newest first. Only 2025-03-26 has batches."""
BATCHES = "2025-03-26"
LONGEST = 16 << 20
"""Bytes of a line; a longer one is thrown away while it is read."""
MOST_PARTS = 200_000
"""Values in a line: parsed, each takes a hundred times its byte."""
MOST_TOGETHER = 100
"""Messages of a batch, and calls that wait."""
CHUNK = 1 << 16
PARSE, REQUEST, METHOD, PARAMS, INTERNAL = -32700, -32600, -32601, -32602, -32603
INSTRUCTIONS = (
    "Kai connects you to your user's chat. Use schedule_job for reminders and for work at a later time or again and "
    "again, send_file for files, call_service for web services whose keys you don't see."
)


class RpcError(Exception):
    """An error of the protocol, with its code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


# ---- the tools ----

TEXT, FLAG = {"type": "string"}, {"type": "boolean"}
NUMBER = {"type": "integer", "minimum": 1, "description": "The job's number, as schedule_job and list_jobs give it."}
SCHEDULE: Message = {
    "schedule_type": {"type": "string", "enum": ["once", "daily", "interval", "calendar"]},
    "schedule_data": {
        "type": "object",
        "description": (
            'once: {"run_at": "2026-12-24T18:00"}; daily: {"times": ["09:00", "18:30"]}; interval: {"seconds": 3600}, '
            'at least 10; calendar: {"calendar": "Mon..Fri 09:00"}, an expression of systemd.time(7). '
            "Times are the user's local ones."
        ),
        "properties": {
            "run_at": TEXT,
            "times": {"type": "array", "items": TEXT},
            "seconds": {"type": "integer", "minimum": 10},
            "calendar": TEXT,
        },
    },
}
JOB: Message = {
    "prompt": {
        **TEXT,
        "description": "A reminder's text for the user; or what the agent is asked to do, complete in itself.",
    },
    **SCHEDULE,
    "job_type": {
        "type": "string",
        "enum": ["reminder", "agent"],
        "description": "reminder (default): the prompt goes to the user. agent: you work on it, he gets the answer.",
    },
    "name": {**TEXT, "description": "Short, for lists."},
    "auto_remove": {
        **FLAG,
        "description": "agent only: the prompt is a condition; the job ends, and tells the user, when it is met.",
    },
    "notify_on_check": {**FLAG, "description": "agent only: tell the user also when the condition isn't met yet."},
    "timezone": {**TEXT, "description": "IANA name, where the times aren't meant in the user's own zone."},
    "workspace": {**TEXT, "description": "agent only: the name of the workspace to work in."},
    "model": {**TEXT, "description": "agent only."},
    "budget_usd": {"type": "number", "minimum": 0, "description": "agent only: what one run may cost."},
}


def _tool(description: str, properties: Message, *required: str, **hints: bool) -> Message:
    schema: Message = {"type": "object", "properties": properties, "additionalProperties": False}
    if required:
        schema["required"] = list(required)
    return {"description": description, "inputSchema": schema, "annotations": {"openWorldHint": False, **hints}}


TOOLS: dict[str, Message] = {
    "schedule_job": _tool(
        "Make a job: a reminder for the user, or a prompt for yourself, at a time, daily, at intervals or by calendar.",
        JOB, "prompt", "schedule_type", "schedule_data", readOnlyHint=False, destructiveHint=False,
    ),
    "list_jobs": _tool(
        "The user's jobs, with their next times.",
        {"all": {**FLAG, "description": "Those that have ended too."}}, readOnlyHint=True,
    ),
    "get_job": _tool("One job whole, its next times and its last runs.", {"id": NUMBER}, "id", readOnlyHint=True),
    "update_job": _tool(
        "Change what is given of a job; a new schedule needs its type and its data.",
        {"id": NUMBER, **JOB, "paused": {**FLAG, "description": "Stop its timer, or start it again."}}, "id",
        readOnlyHint=False, destructiveHint=True, idempotentHint=True,
    ),
    "delete_job": _tool("Remove a job.", {"id": NUMBER}, "id", readOnlyHint=False, destructiveHint=True),
    "send_message": _tool(
        "Show a text (Markdown) in the user's chat now, before your answer is complete.",
        {"text": TEXT}, "text", readOnlyHint=False, destructiveHint=False,
    ),
    "send_file": _tool(
        "Send a file to the user's chat, an image as a photo; at most 50 MB.",
        {"path": {**TEXT, "description": "In the workspace, or below the user's files."}, "caption": TEXT}, "path",
        readOnlyHint=False, destructiveHint=False,
    ),
    "list_services": _tool("The web services that you may call, and what to know of them.", {}, readOnlyHint=True),
    "call_service": _tool(
        "Call a web service; Kai adds the key. Gives the HTTP status and the body.",
        {
            "name": {**TEXT, "description": "As list_services gives it."},
            "params": {"type": "object", "description": "For the query.", "additionalProperties": True},
            "body": {"description": "Any JSON, for the request's body."},
            "path_suffix": {**TEXT, "description": "Behind the service's address, where it allows that."},
        },
        "name", readOnlyHint=False, openWorldHint=True,
    ),
}  # fmt: skip


def call(name: str, given: Message) -> Any:
    """What a tool answers. Raises api.Failed and api.Unreachable."""
    schema = TOOLS[name]["inputSchema"]
    for field in schema.get("required", ()):
        if field not in given:
            raise api.Failed(400, f"{field}: missing")
    for field in given:
        if field not in schema["properties"]:
            known = ", ".join(schema["properties"]) or "nothing"
            raise api.Failed(400, f"{str(field)[:40]}: unknown, expected one of {known}")
    rest = {key: value for key, value in given.items() if key != "id"}
    match name:
        case "schedule_job":
            return api.ask("POST", "/api/schedule", given)
        case "list_jobs":
            return api.ask("GET", f"/api/jobs?all={'true' if given.get('all') else 'false'}")
        case "get_job":
            return api.ask("GET", f"/api/jobs/{_number(given['id'])}")
        case "update_job":
            return api.ask("PATCH", f"/api/jobs/{_number(given['id'])}", rest)
        case "delete_job":
            return api.ask("DELETE", f"/api/jobs/{_number(given['id'])}")
        case "send_message":
            return api.ask("POST", "/api/send-message", given)
        case "send_file":
            return api.ask("POST", "/api/send-file", given)
        case "list_services":
            return api.ask("GET", "/api/services")
    rest.pop("name")
    return api.ask("POST", f"/api/services/{api.quoted(str(given['name'])) or '-'}", rest)


def _number(value: Any) -> str:
    """Models write numbers as texts, too."""
    return api.quoted(str(value)) or "-"


# ---- the protocol ----


class Server:
    """One client, from its first message to the end of its input. `send` takes what goes back, a line at a time."""

    def __init__(self, send: Callable[[bytes], None]) -> None:
        self.send = send
        self.version = VERSIONS[0]
        self.methods: dict[str, Callable[[Message], Message]] = {
            "initialize": self.initialize,
            "ping": lambda params: {},
            "tools/list": self.list_tools,
        }
        self.calls: dict[str | int, Message] = {}
        """Those that wait or run, by their ids; one that is cancelled is no longer here."""
        self.changed = threading.Condition()
        self.closed = False

    def line(self, line: bytes | None) -> None:
        """Take a line. None stands for one that was too long."""
        if line is None:
            return self.answer(_error(None, REQUEST, f"a message has at most {LONGEST} bytes"))
        if not line.strip():
            return None
        if sum(map(line.count, (b",", b"[", b"{"))) > MOST_PARTS:
            return self.answer(_error(None, REQUEST, f"a message has at most {MOST_PARTS} values"))
        try:
            message = json.loads(line.decode(), parse_constant=_no_constant)
        except (ValueError, RecursionError):
            return self.answer(_error(None, PARSE, "not JSON"))
        if isinstance(message, list) and 0 < len(message) <= MOST_TOGETHER and self.version == BATCHES:
            return self.batch(message)
        return self.message(message)

    def batch(self, messages: list[Any]) -> None:
        """Its answers go back together, so its calls are worked off here."""
        answers: list[bytes] = []
        part = Server(lambda line: answers.append(line[:-1]))
        for each in messages:
            part.message(each)
        part.close()
        part.work_off()
        if answers:
            self.send(b"[" + b",".join(answers) + b"]\n")

    def answer(self, message: Message) -> None:
        self.send(json.dumps(message, separators=(",", ":")).encode("ascii") + b"\n")

    def message(self, message: Any) -> None:
        """Answer a message, now or when it has been worked off; notifications and answers have none."""
        if not isinstance(message, dict) or message.get("jsonrpc") != "2.0":
            return self.answer(_error(None, REQUEST, "expected a JSON-RPC 2.0 message"))
        method, number, params = message.get("method"), message.get("id"), message.get("params", {})
        if method is None and ("result" in message or "error" in message):
            return None
        good = isinstance(number, str | int) and not isinstance(number, bool)
        if not isinstance(method, str) or ("id" in message and not good):
            fault = "expected a method, and an id that is a text or a number"
            return self.answer(_error(number if good else None, REQUEST, fault))
        if "id" not in message:
            return self.cancel(params) if method == "notifications/cancelled" else None
        assert isinstance(number, str | int)
        if not isinstance(params, dict):
            return self.answer(_error(number, PARAMS, "params: expected an object"))
        if method == "tools/call":
            return self.take(number, params)
        if method not in self.methods:
            return self.answer(_error(number, METHOD, f"there is no method {method[:80]}"))
        return self.work(number, method, self.methods[method], params)

    def work(self, number: object, method: str, handler: Callable[[Message], Message], params: Message) -> None:
        try:
            answer = {"jsonrpc": "2.0", "id": number, "result": handler(params)}
        except RpcError as error:
            answer = _error(number, error.code, str(error))
        except Exception as error:  # the agent would wait for ever
            sys.stderr.write(f"kai mcp: {method[:80]!r}: {type(error).__name__}: {error}\n")
            answer = _error(number, INTERNAL, "kai mcp failed; its standard error says why")
        if method == "tools/call":
            with self.changed:
                if self.calls.get(number) is not params:  # type: ignore[call-overload]
                    return  # cancelled
                del self.calls[number]  # type: ignore[arg-type]
        self.answer(answer)

    # ---- calls, which another thread works off ----

    def take(self, number: str | int, params: Message) -> None:
        with self.changed:
            if number in self.calls or len(self.calls) >= MOST_TOGETHER:
                fault = "that id is in use" if number in self.calls else f"{MOST_TOGETHER} calls wait already"
                return self.answer(_error(number, REQUEST, fault))
            self.calls[number] = params
            self.changed.notify()
        return None

    def cancel(self, params: Any) -> None:
        """What runs already runs to its end; nobody hears of it."""
        number = params.get("requestId") if isinstance(params, dict) else None
        if isinstance(number, str | int):
            with self.changed:
                self.calls.pop(number, None)

    def close(self) -> None:
        """No more calls come; those that wait are worked off."""
        with self.changed:
            self.closed = True
            self.changed.notify()

    def work_off(self) -> None:
        """Answer the calls in their order, until `close`."""
        while True:
            with self.changed:
                while not self.calls and not self.closed:
                    self.changed.wait()
                if not self.calls:
                    return
                number, params = next(iter(self.calls.items()))
            self.work(number, "tools/call", self.call_tool, params)

    def initialize(self, params: Message) -> Message:
        wanted = params.get("protocolVersion")
        self.version = wanted if wanted in VERSIONS else VERSIONS[0]
        return {
            "protocolVersion": self.version,
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "kai", "title": "Kai", "version": kai.__version__},
            "instructions": INSTRUCTIONS,
        }

    def list_tools(self, params: Message) -> Message:
        if params.get("cursor") is not None:
            raise RpcError(PARAMS, "cursor: there is only one page")
        return {"tools": [{"name": name, **tool} for name, tool in TOOLS.items()]}

    def call_tool(self, params: Message) -> Message:
        """A tool's own failure is a result, so that the model reads it and can put it right."""
        name, given = params.get("name"), params.get("arguments")
        given = {} if given is None else given
        if not isinstance(name, str) or name not in TOOLS:
            raise RpcError(PARAMS, f"Unknown tool: {str(name)[:80]}")
        if not isinstance(given, dict):
            raise RpcError(PARAMS, "arguments: expected an object")
        try:
            return _said(json.dumps(call(name, given), ensure_ascii=False))
        except (api.Failed, api.Unreachable) as error:
            return _said(str(error), failed=True)


def _said(text: str, *, failed: bool = False) -> Message:
    return {"content": [{"type": "text", "text": text}], "isError": failed}


def _error(number: object, code: int, message: str) -> Message:
    return {"jsonrpc": "2.0", "id": number, "error": {"code": code, "message": message}}


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} is no JSON")


def lines(descriptor: int, longest: int = LONGEST) -> Iterator[bytes | None]:
    """The lines of a file, None for each that is too long; what comes after the last newline is one too."""
    rest, skipping = bytearray(), False
    while piece := os.read(descriptor, CHUNK):
        *ends, last = piece.split(b"\n")
        for end in ends:
            yield None if skipping or len(rest) + len(end) > longest else bytes(rest + end)
            rest, skipping = bytearray(), False
        if skipping or len(rest) + len(last) > longest:
            rest, skipping = bytearray(), True
        else:
            rest += last
    if rest:
        yield bytes(rest)


def main() -> None:
    """Serve until the end of the input, or until nobody reads the answers."""
    writing = threading.Lock()

    def send(line: bytes) -> None:
        rest = memoryview(line)
        with writing:
            while rest:
                rest = rest[os.write(1, rest) :]

    server = Server(send)
    worker = threading.Thread(target=server.work_off, daemon=True)
    worker.start()
    try:
        for line in lines(0):
            server.line(line)
        server.close()
        worker.join()
    except (BrokenPipeError, KeyboardInterrupt):
        return


if __name__ == "__main__":
    main()
