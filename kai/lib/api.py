"""A client of kai-api(7) for the agent's side: `kai jobs`, `kai send`, `kai mcp`.

The MCP server lives as long as the agent, beside each agent on the host, so this imports next to nothing: http.client
alone would be 5 MiB. One connection is one request, and what answers is Kai itself, so little of HTTP is needed.
"""

# pathlib and typing would double what this imports:
# ruff: noqa: PTH118, PTH208
from __future__ import annotations

import json
import os
import socket
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

VARIABLE = "KAI_API"
DIRECTORY = "/run/kai/api"
SECONDS = 120.0
"""Until the answer is complete: a file of 50 MB, or a service that takes its time."""
LARGEST = 64 << 20
"""Bytes of an answer: a service's 10 MiB, all of them escaped."""
CHUNK = 1 << 16
SAFE = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~"


class Unreachable(Exception):
    """There is no API here, or nobody answers; the message says what to do."""


class Failed(Exception):
    """The API refused: `status` is HTTP's, the message what it said."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def place() -> str:
    """The API's socket: KAI_API, else the one that this account may open. Raises Unreachable."""
    given = os.environ.get(VARIABLE, "")
    if given:
        return given
    try:
        names = sorted(name for name in os.listdir(DIRECTORY) if name.endswith(".sock"))
    except OSError:
        names = []
    found = [path for path in (os.path.join(DIRECTORY, name) for name in names) if os.access(path, os.R_OK | os.W_OK)]
    if len(found) == 1:
        return found[0]
    if found:
        raise Unreachable(f"which user is meant? Set {VARIABLE} to one of {', '.join(found)}")
    raise Unreachable(
        f"this account is no agent's of Kai: it may open no socket in {DIRECTORY}, and {VARIABLE} isn't set. "
        "The operator needs root: run it with sudo"
    )


def ask(method: str, path: str, body: Any = None, *, data: bytes = b"", kind: str = "application/json") -> Any:
    """The JSON of an answer. `body` is sent as JSON, `data` as it is. Raises Failed and Unreachable."""
    where = place()
    if body is not None:
        data = json.dumps(body).encode()
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: kai\r\nConnection: close\r\n"
        f"Content-Type: {kind}\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    try:
        answer = _exchange(where, head.encode("ascii"), data)
    except OSError as error:
        raise Unreachable(f"{where}: {error.strerror or error}: Kai doesn't answer here") from None
    status, found = _parse(answer)
    if status == 200:
        return found
    text = found.get("error") if isinstance(found, dict) else None
    raise Failed(status, str(text or f"Kai answered with status {status}"))


def quoted(text: str) -> str:
    """A text as a step of a path or a value of a query."""
    return "".join(chr(byte) if chr(byte) in SAFE else f"%{byte:02X}" for byte in text.encode("utf-8", "replace"))


def _exchange(where: str, head: bytes, data: bytes) -> bytes:
    answer = bytearray()
    end = time.monotonic() + SECONDS
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(SECONDS)
        connection.connect(where)
        try:
            connection.sendall(head)
            connection.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            pass  # refused before all was sent; the answer says why
        while len(answer) < LARGEST:
            connection.settimeout(max(0.01, end - time.monotonic()))
            piece = connection.recv(CHUNK)
            if not piece:
                break
            answer += piece
    return bytes(answer)


def _parse(answer: bytes) -> tuple[int, Any]:
    head, _, body = answer.partition(b"\r\n\r\n")
    try:
        lines = head.decode("ascii").lower().split("\r\n")
        lengths = [line.partition(":")[2] for line in lines if line.startswith("content-length:")]
        if [int(length) for length in lengths] != [len(body)]:
            raise ValueError
        return int(lines[0].split(" ")[1]), json.loads(body)
    except (IndexError, ValueError, RecursionError):
        raise Unreachable("Kai closed the connection before its answer was complete; try again") from None
