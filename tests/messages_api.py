"""A scripted stand-in for the Anthropic Messages API, for tests with a real agent and without a real model.

In a test:      with MessagesAPI(key="k") as api: …; api.address, api.requests, api.rules.append(rule)
As a program:   python3 tests/messages_api.py [--port N] [--key KEY]     prints its address; plain Python, no packages

Without a rule of the test's own, the user's text says what the model does:

    say: TEXT           streams TEXT                        run: COMMAND     calls Bash, then answers with its output
    slow: N TEXT        streams TEXT over N seconds         write: PATH TEXT calls Write, then tells its result
    echo-system         answers with the system prompt      echo-history     lists the user's texts of the session
    hang                never answers                       fail: STATUS     answers 401, 500, 529, …
    call: TOOL JSON     calls that tool, then tells its result
    anything else       answers "You said: …"

`GET /_log` gives the requests seen, keys included: it is a stand-in, so is the key. Requests are checked as strictly
as the real service checks them, because a test must not pass with a request that the service would refuse.
"""

from __future__ import annotations

import argparse
import base64
import collections
import contextlib
import json
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, ClassVar
from urllib.parse import urlsplit

LARGEST = 32 * 2**20  # bytes of a request, the service's own limit
LARGEST_IMAGE = 5 * 2**20  # bytes of an image as base64, likewise
KEPT = 1000  # requests in the log
SHOWN = 4000  # characters of any one text in the log
PIECE = 12  # characters of one text_delta

_NOT_SAID = re.compile(  # what the client puts among the user's words
    r"<(?P<tag>system-reminder|command-[a-z]+|local-command-[a-z]+)>.*?</(?P=tag)>"
    r"|\[Request interrupted by user[^\]]*\]"
    r"|\[Image: source: [^\]]*\]",
    re.DOTALL,
)
_CONVENTION = re.compile(
    r"^(?:(?P<name>say|run|write|fail|call):[ ]?|slow:[ ]?(?P<seconds>[0-9.]+)[ ]"
    r"|(?P<word>echo-system|echo-history|hang)$)",
    re.MULTILINE,
)
_IMAGES = {
    "image/jpeg": b"\xff\xd8\xff",
    "image/png": b"\x89PNG\r\n\x1a\n",
    "image/gif": b"GIF8",
    "image/webp": b"RIFF",
}
_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    529: "overloaded_error",
}


@dataclass(frozen=True)
class Text:
    """An answer in words, streamed in pieces over `seconds`."""

    text: str
    seconds: float = 0.0


@dataclass(frozen=True)
class Tool:
    """A tool call; the client runs it and comes back with its result."""

    name: str
    input: dict[str, Any]


@dataclass(frozen=True)
class Tools:
    """Several tool calls in one message."""

    calls: tuple[Tool, ...]


@dataclass(frozen=True)
class Error:
    """An answer in the service's error shape."""

    status: int
    message: str = "The script says so."


@dataclass(frozen=True)
class Hang:
    """No answer at all until the client goes away or the stand-in ends."""


Reply = Text | Tool | Tools | Error | Hang


@dataclass(frozen=True)
class Turn:
    """What a rule decides by."""

    user: str  # the last text of the user, without what the client added to it
    tool_result: str | None  # the result of the tool call that this request brings back
    system: str  # all blocks of the system prompt
    history: tuple[str, ...]  # every text of the user in this request
    body: dict[str, Any]  # the request as it came


Rule = Callable[[Turn], Reply | None]


@dataclass
class Request:
    """One line of the log."""

    method: str
    path: str
    headers: dict[str, str]  # names in lower case
    body: Any = None  # long texts cut, tools as names only
    status: int = 0
    answer: str = ""  # what kind of answer it got
    finished: bool = False  # false while it is being answered, and for ever when the client went away before
    at: float = field(default_factory=time.time)  # Unix time


class Refusal(Exception):
    """The request is not one that the service would take."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class MessagesAPI:
    """The stand-in on a port of 127.0.0.1, answering from the moment it is made until `close`.

    `key` is the only key it takes; None takes any. `rules` are asked in order before the conventions.
    """

    def __init__(self, *, key: str | None = None, port: int = 0, rules: tuple[Rule, ...] = ()) -> None:
        self.key = key
        self.rules = list(rules)
        self.requests: collections.deque[Request] = collections.deque(maxlen=KEPT)
        self.closing = threading.Event()
        self._server = _Server(self, port)
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def __enter__(self) -> MessagesAPI:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Breaks off the answers under way and gives the port back."""
        self.closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.hang_up()
        self._server.server_close()

    def decide(self, turn: Turn) -> Reply:
        """What the script answers: the first rule that has an answer, else the conventions."""
        for rule in self.rules:
            if (reply := rule(turn)) is not None:
                return reply
        return by_convention(turn)


def by_convention(turn: Turn) -> Reply:
    """The answers that need no rule; see the top of this file."""
    found = _CONVENTION.search(turn.user)
    if turn.tool_result is not None:
        return Text(turn.tool_result or "(no output)")
    if found is None:
        return Text(f"You said: {turn.user}")
    rest = turn.user[found.end() :].strip()
    match found["name"] or found["word"] or "slow":
        case "say":
            return Text(rest)
        case "run":
            return Tool("Bash", {"command": rest, "description": "What the user asked for"})
        case "write":
            path, _, content = rest.partition(" ")
            return Tool("Write", {"file_path": path, "content": content})
        case "call":
            name, _, given = rest.partition(" ")
            return Tool(name, json.loads(given or "{}"))
        case "fail":
            known = rest.isdigit() and 400 <= int(rest) < 600
            return Error(int(rest)) if known else Error(400, f"fail: {rest!r} is not an error's status")
        case "echo-system":
            return Text(turn.system or "(no system prompt)")
        case "echo-history":
            return Text("\n".join(f"{n}. {text}" for n, text in enumerate(turn.history, 1)))
        case "hang":
            return Hang()
        case _:
            return Text(rest, seconds=float(found["seconds"]))


def read_turn(body: dict[str, Any]) -> Turn:
    """What matters in a checked request."""
    texts: list[str] = []
    result: str | None = None
    for message in body["messages"]:
        for block in _blocks(message["content"]) if message["role"] == "user" else []:
            if block["type"] == "tool_result":
                result = _plain(block.get("content") or "")
            elif block["type"] == "text" and (said := _NOT_SAID.sub("", block["text"]).strip()):
                # Words after a result, as when a tool was interrupted, are what has to be answered now.
                texts.append(said)
                result = None
    return Turn(
        user=texts[-1] if texts else "",
        tool_result=result,
        system=_plain(body.get("system") or ""),
        history=tuple(texts),
        body=body,
    )


def check(body: Any) -> None:
    """Raises `Refusal` for what the service refuses, in its words as far as a test could care."""
    if not isinstance(body, dict):
        raise Refusal(400, "The request body is not a JSON object")
    for name, kind in (("model", str), ("max_tokens", int), ("messages", list)):
        if name not in body:
            raise Refusal(400, f"{name}: Field required")
        if not isinstance(body[name], kind) or not body[name] or isinstance(body[name], bool):
            raise Refusal(400, f"{name}: Input should be a valid, non-empty {kind.__name__}")
    if body["max_tokens"] < 1:
        raise Refusal(400, "max_tokens: must be greater than or equal to 1")
    _check_texts("system", body.get("system", []))
    open_calls: set[str] = set()
    for number, message in enumerate(body["messages"]):
        where = f"messages.{number}"
        if not isinstance(message, dict) or message.get("role") not in ("user", "assistant", "system"):
            raise Refusal(400, f"{where}.role: Input should be 'user', 'assistant' or 'system'")
        if number == 0 and message["role"] != "user":
            raise Refusal(400, 'messages: first message must use the "user" role')
        _check_texts(f"{where}.content", message.get("content"))
        blocks = _blocks(message["content"])
        answered = {block.get("tool_use_id") for block in blocks if block["type"] == "tool_result"}
        if open_calls - answered:
            missing = ", ".join(sorted(open_calls - answered))
            raise Refusal(
                400, f"{where}: `tool_use` ids were found without `tool_result` blocks immediately after: {missing}"
            )
        if answered - open_calls:
            raise Refusal(400, f"{where}: unexpected `tool_use_id` found in `tool_result` blocks")
        open_calls = {block["id"] for block in blocks if block["type"] == "tool_use"}


def _check_texts(where: str, content: Any) -> None:
    """A string, or a list of typed blocks; texts must not be empty."""
    if isinstance(content, str):
        return
    if not isinstance(content, list):
        raise Refusal(400, f"{where}: Input should be a valid string or list")
    for number, block in enumerate(content):
        if not isinstance(block, dict) or not isinstance(block.get("type"), str):
            raise Refusal(400, f"{where}.{number}.type: Field required")
        if block["type"] == "text" and not block.get("text"):
            raise Refusal(400, f"{where}.{number}: text content blocks must be non-empty")
        if block["type"] == "image":
            _check_image(f"{where}.{number}.image.source", block.get("source"))


def _check_image(where: str, source: Any) -> None:
    """An image as base64, of the type that it says it has."""
    if not isinstance(source, dict) or source.get("type") != "base64":
        raise Refusal(400, f"{where}.type: only base64 is known here")
    data, kind = str(source.get("data")), source.get("media_type")
    if kind not in _IMAGES:
        raise Refusal(400, f"{where}.media_type: Input should be {', '.join(_IMAGES)}")
    if len(data) > LARGEST_IMAGE:
        raise Refusal(400, f"{where}.base64: image exceeds 5 MB maximum: {len(data)} bytes > {LARGEST_IMAGE} bytes")
    try:
        raw = base64.b64decode(data, validate=True)
    except ValueError:
        raise Refusal(400, f"{where}.base64: invalid base64 data") from None
    if not raw.startswith(_IMAGES[kind]):
        raise Refusal(400, f"{where}: The image was specified using the {kind} media type, but does not appear to be")


def _blocks(content: Any) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)


def _plain(content: Any) -> str:
    return "\n".join(block["text"] for block in _blocks(content) if block["type"] == "text")


def _cut(value: Any) -> Any:
    """A request's body for the log."""
    if isinstance(value, str):
        return value if len(value) <= SHOWN else f"{value[:SHOWN]}… ({len(value)} characters)"
    if isinstance(value, list):
        return [_cut(item) for item in value]
    if isinstance(value, dict):
        return {
            name: [tool.get("name") for tool in item] if name == "tools" else _cut(item) for name, item in value.items()
        }
    return value


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # so that server_close waits for them
    api: MessagesAPI

    def __init__(self, api: MessagesAPI, port: int) -> None:
        self.api = api
        self._open: set[socket.socket] = set()
        super().__init__(("127.0.0.1", port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        """Ends the connections that clients keep for their next request."""
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away in mid-answer is what tests do; anything else is a fault of this file."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server
    seen: Request
    _numbers: ClassVar[Iterator[int]] = iter(range(1, sys.maxsize))

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the log is `/_log`."""

    def do_HEAD(self) -> None:
        self._get()

    def do_GET(self) -> None:
        self._get()

    def _get(self) -> None:
        path = urlsplit(self.path).path
        self._note(keep=path != "/_log")
        if path == "/_log":
            self._json(200, [asdict(request) for request in list(self.server.api.requests)])
        elif path == "/":
            self._json(200, {"status": "ok"})
        else:
            self._error(404, f"Not Found: {path}")

    def do_POST(self) -> None:
        self._note()
        length = self.headers.get("content-length", "")
        if not length.isdigit() or int(length) > LARGEST:
            self.close_connection = True
            self._error(413 if length.isdigit() else 400, "Request exceeds the maximum size, or does not say its size")
            return
        raw = self.rfile.read(int(length))
        path = urlsplit(self.path).path
        try:
            if path not in ("/v1/messages", "/v1/messages/count_tokens"):
                raise Refusal(404, f"Not Found: {path}")
            body = self._checked(raw, counting=path.endswith("count_tokens"))
        except Refusal as refusal:
            self._error(refusal.status, str(refusal))
            return
        if path.endswith("count_tokens"):
            self._json(200, {"input_tokens": _tokens(raw)})
            return
        reply = self._side_answer(body) or self.server.api.decide(read_turn(body))
        offered = [tool.get("name") for tool in body.get("tools", [])]
        missing = [call.name for call in _calls(reply) if call.name not in offered]
        if missing:
            reply = Text(
                f"The script asks for the tool {missing[0]}, but was offered only: {', '.join(offered) or 'none'}"
            )
        self.seen.answer = type(reply).__name__
        match reply:
            case Error():
                self._error(reply.status, reply.message)
            case Hang():
                self.server.api.closing.wait()
                self.close_connection = True
            case Text() | Tool() | Tools() if body.get("stream"):
                self._stream(body["model"], _tokens(raw), reply)
            case Text() | Tool() | Tools():
                self._whole(body["model"], _tokens(raw), reply)

    def _checked(self, raw: bytes, *, counting: bool) -> dict[str, Any]:
        bearer = self.headers.get("authorization", "").removeprefix("Bearer ").strip()
        key = self.headers.get("x-api-key", "") or bearer
        if not key:
            raise Refusal(401, "x-api-key header is required")
        if self.server.api.key not in (None, key):
            raise Refusal(401, "invalid x-api-key")
        if self.headers.get("anthropic-version") != "2023-06-01":
            raise Refusal(400, "anthropic-version: header is required, and must be 2023-06-01")
        if self.headers.get_content_type() != "application/json":
            raise Refusal(400, "content-type: must be application/json")
        try:
            body = json.loads(raw)
        except ValueError:
            raise Refusal(400, "The request body is not valid JSON") from None
        self.seen.body = _cut(body)
        check({"max_tokens": 1} | body if counting and isinstance(body, dict) else body)
        return dict(body)

    def _side_answer(self, body: dict[str, Any]) -> Reply | None:
        """What a client asks for itself and not for its user (a title for the session) gets something harmless."""
        system = _plain(body.get("system") or "")
        if not body.get("tools") and "title" in system:
            return Text(json.dumps({"title": "A test", "isNewTopic": False}))
        return None

    def _stream(self, model: str, tokens: int, reply: Text | Tool | Tools) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        self.seen.status = 200
        message = _message(model, tokens, next(self._numbers))
        self._event("message_start", message=message)
        if isinstance(reply, Text):
            pieces = _pieces(reply)
            self._event("content_block_start", index=0, content_block={"type": "text", "text": ""})
            self._event("ping")
            for number, piece in enumerate(pieces):
                if number and self.server.api.closing.wait(reply.seconds / (len(pieces) - 1)):
                    raise ConnectionAbortedError("The stand-in ends.")
                self._event("content_block_delta", index=0, delta={"type": "text_delta", "text": piece})
            self._event("content_block_stop", index=0)
        for index, call in enumerate(_calls(reply)):
            self._event("content_block_start", index=index, content_block=_block(message, index, call) | {"input": {}})
            whole = json.dumps(call.input)
            for piece in ("", whole[: len(whole) // 2], whole[len(whole) // 2 :]):
                delta = {"type": "input_json_delta", "partial_json": piece}
                self._event("content_block_delta", index=index, delta=delta)
            self._event("content_block_stop", index=index)
        ended = {"stop_reason": _stop_reason(reply), "stop_sequence": None}
        self._event("message_delta", delta=ended, usage={"output_tokens": 20})
        self._event("message_stop")
        self.wfile.write(b"0\r\n\r\n")
        self.seen.finished = True

    def _whole(self, model: str, tokens: int, reply: Text | Tool | Tools) -> None:
        message = _message(model, tokens, next(self._numbers))
        if isinstance(reply, Text):
            self.server.api.closing.wait(reply.seconds)
            message["content"] = [{"type": "text", "text": reply.text}]
        else:
            message["content"] = [_block(message, index, call) for index, call in enumerate(_calls(reply))]
        message["stop_reason"] = _stop_reason(reply)
        message["usage"]["output_tokens"] = 20
        self._json(200, message)

    def _event(self, kind: str, **data: Any) -> None:
        event = f"event: {kind}\ndata: {json.dumps({'type': kind} | data)}\n\n".encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))

    def _note(self, *, keep: bool = True) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.seen = Request(self.command, self.path, headers)
        if keep:
            self.server.api.requests.append(self.seen)

    def _error(self, status: int, message: str) -> None:
        self.seen.answer = f"Error: {message}"
        error = {"type": _KINDS.get(status, "api_error"), "message": message}
        self._json(status, {"type": "error", "error": error, "request_id": "req_test"})

    def _json(self, status: int, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.seen.status, self.seen.finished = status, True


def _message(model: str, tokens: int, number: int) -> dict[str, Any]:
    usage = {"input_tokens": tokens, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": 1}
    return {
        "id": f"msg_{number:024d}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage,
    }


def _calls(reply: Reply) -> tuple[Tool, ...]:
    return reply.calls if isinstance(reply, Tools) else (reply,) if isinstance(reply, Tool) else ()


def _block(message: dict[str, Any], index: int, call: Tool) -> dict[str, Any]:
    number = f"_{index}" if index else ""
    return {"type": "tool_use", "id": f"toolu_{message['id']}{number}", "name": call.name, "input": call.input}


def _pieces(reply: Text) -> list[str]:
    if reply.seconds:
        return re.findall(r"\s*\S+\s*$|\s*\S+", reply.text) or [reply.text]
    return [reply.text[start : start + PIECE] for start in range(0, len(reply.text), PIECE)] or [""]


def _stop_reason(reply: Text | Tool | Tools) -> str:
    return "end_turn" if isinstance(reply, Text) else "tool_use"


def _tokens(raw: bytes) -> int:
    return max(1, len(raw) // 4)


def main() -> None:
    """Serves until SIGTERM or Ctrl-C."""
    parser = argparse.ArgumentParser(description="A scripted stand-in for the Anthropic Messages API on 127.0.0.1.")
    parser.add_argument("--port", type=int, default=0, help="0, the default, takes a free one")
    parser.add_argument("--key", help="the only key that is taken; without it any")
    arguments = parser.parse_args()
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    with MessagesAPI(key=arguments.key, port=arguments.port) as api:
        print(api.address, flush=True)
        ended.wait()


if __name__ == "__main__":
    main()
