"""What the offline agent is made of below the conversation: its pipes, its files, its shell, its bill.

Standard library only, and as little of it as possible, for the agent is to start in the time of an interpreter.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

OUTPUT_LIMIT = 30_000
"""Bytes of a command's output that are kept; of a longer one, the first and the last half."""
SESSION_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
Message = dict[str, Any]


def new_id() -> str:
    """A random UUID (version 4), without the 4 ms that importing `uuid` takes."""
    raw = bytearray(os.urandom(16))
    raw[6], raw[8] = raw[6] & 0x0F | 0x40, raw[8] & 0x3F | 0x80
    digits = raw.hex()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def fail(message: str) -> NoReturn:
    sys.stderr.write(f"{message}\n")
    raise SystemExit(1)


def fenced(text: str) -> str:
    """A code block that no line of the text can close."""
    longest = max((len(run) for run in re.findall("`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}\n{text}\n{fence}"


def words(text: str) -> Iterator[str]:
    """The text in pieces as a model would send it, each ending with its white space."""
    for match in re.finditer(r"\S*\s*", text):
        if match[0]:
            yield match[0]


class Output:
    """Everything that goes to standard output: one JSON object a line, written whole."""

    def __init__(self, session: str, *, partial: bool) -> None:
        self.session = session
        self.partial = partial

    def emit(self, message: dict[str, Any]) -> None:
        line = json.dumps(message).encode() + b"\n"
        while line:
            line = line[os.write(1, line) :]

    def told(self, message: dict[str, Any]) -> None:
        """A message of the conversation: with the session's id and one of its own."""
        self.emit({**message, "session_id": self.session, "uuid": new_id()})

    def event(self, event: dict[str, Any]) -> None:
        if self.partial:
            self.told({"type": "stream_event", "event": event, "parent_tool_use_id": None})

    def assistant(self, message_id: str, model: str, block: dict[str, Any]) -> None:
        content = {
            "id": message_id,
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [block],
        }
        rest = {"stop_reason": None, "stop_sequence": None, "usage": usage()}
        self.told({"type": "assistant", "message": {**content, **rest}, "parent_tool_use_id": None})

    def user(self, content: list[dict[str, Any]], **more: Any) -> None:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
        message = {"role": "user", "content": content}
        self.told({"type": "user", "message": message, "parent_tool_use_id": None, "timestamp": stamp, **more})


def usage(words_out: int = 0) -> dict[str, int]:
    """Nothing is counted here that costs: words stand for tokens."""
    return {
        "input_tokens": 0,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": words_out,
    }


class Session:
    """What was said, on disk: a file per session, which outlives even a killed process."""

    def __init__(self, directory: Path, session: str) -> None:
        self.id = session
        self.path = directory / f"{session}.jsonl"

    def exists(self) -> bool:
        return SESSION_ID.fullmatch(self.id) is not None and self.path.is_file()

    def add(self, role: str, text: str) -> None:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        append(self.path, {"role": role, "text": text})

    def prompts(self) -> list[str]:
        lines = self.path.read_text(encoding="utf-8").splitlines()
        return [entry["text"] for entry in map(json.loads, lines) if entry["role"] == "user"]


def append(path: Path, entry: dict[str, Any]) -> None:
    """One write for one line: whole lines even when several processes append."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, json.dumps(entry).encode() + b"\n")
    finally:
        os.close(fd)


class Input:
    """Standard input and signals, looked at without blocking: an interrupt comes while a turn runs."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.eof = False
        self.interrupted = False
        self.wake, tell = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
        signal.signal(signal.SIGINT, self.on_interrupt)

    def on_interrupt(self, _number: int, _frame: object) -> None:
        self.interrupted = True

    def lines(self, timeout: float | None, also: Iterable[int] = ()) -> list[bytes]:
        """Complete lines that come within `timeout` seconds; a descriptor in `also` ends the wait too."""
        watched = [self.wake, *also] if self.eof else [0, self.wake, *also]
        ready, _, _ = select.select(watched, [], [], timeout)
        if self.wake in ready:
            os.read(self.wake, 64)
        if 0 not in ready or self.eof:
            return []
        chunk = os.read(0, 1 << 16)
        *complete, rest = (b"".join(self.parts) + chunk).split(b"\n") if b"\n" in chunk else [chunk]
        if not chunk:
            self.eof, complete, rest = True, [b"".join(self.parts)], b""
        self.parts = [rest] if complete else [*self.parts, rest]
        return [line for line in complete if line.strip()]


class Command:
    """A shell command in a process group of its own, so that all of it can be ended."""

    def __init__(self, command: str) -> None:
        self.head, self.tail, self.left_out = b"", b"", 0
        self.output, pipe = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.output, False)
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, pipe, 1),
            (os.POSIX_SPAWN_DUP2, pipe, 2),
        ]
        argv = ["/bin/sh", "-c", command]
        defaults = [signal.SIGPIPE, signal.SIGINT, signal.SIGTERM]
        self.pid = os.posix_spawn(argv[0], argv, os.environ, file_actions=actions, setpgroup=0, setsigdef=defaults)
        os.close(pipe)
        self.exited = os.pidfd_open(self.pid)
        self.status: int | None = None

    def collect(self) -> bool:
        """Read what is there now; False at the end of the output."""
        try:
            chunk = os.read(self.output, 1 << 16)
        except BlockingIOError:
            return True
        room = OUTPUT_LIMIT // 2 - len(self.head)
        self.head += chunk[:room]
        self.tail += chunk[room:]
        self.left_out += max(0, len(self.tail) - OUTPUT_LIMIT // 2)
        self.tail = self.tail[-(OUTPUT_LIMIT // 2) :]
        return bool(chunk)

    def finish(self) -> None:
        """Reap the shell, and take what it wrote last; its background children are not waited for."""
        self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        while select.select([self.output], [], [], 0)[0] and self.collect():
            pass

    def kill(self) -> None:
        """End the shell and what is still in its process group."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            return

    def close(self) -> None:
        if self.status is None:
            self.kill()
            os.waitpid(self.pid, 0)
        os.close(self.exited)
        os.close(self.output)

    def text(self) -> str:
        left_out = f"\n… {self.left_out} bytes left out …\n".encode() if self.left_out else b""
        return (self.head + left_out + self.tail).decode(errors="replace").rstrip("\n")
