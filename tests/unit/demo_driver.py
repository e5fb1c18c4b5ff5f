"""A driver for one process of the offline agent, line by line, as the supervisor's would be."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kai.demo import agent as offline

FLAGS = ["-p", "--input-format", "stream-json", "--output-format", "stream-json", "--verbose"]
PARTIAL = [*FLAGS, "--include-partial-messages", "--permission-mode", "bypassPermissions"]
ASKING = [*FLAGS, "--include-partial-messages", "--permission-mode", "default", "--permission-prompt-tool", "stdio"]
SECONDS = 10


class Driver:
    """Talks to one process of the agent, line by line."""

    def __init__(self, tmp_path: Path, *flags: str, base: list[str] = PARTIAL) -> None:
        self.workspace = tmp_path / "work space"
        self.workspace.mkdir(exist_ok=True)
        command = [sys.executable, "-I", "-S", offline.__file__, *base, "--state", str(tmp_path / "state")]
        self.process = subprocess.Popen(
            [*command, *flags],
            cwd=self.workspace,
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
            bufsize=0,  # what select sees is all there is
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def send(self, message: object) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(message).encode() + b"\n")
        self.process.stdin.flush()

    def say(self, text: object) -> None:
        self.send({"type": "user", "message": {"role": "user", "content": text}})

    def control(self, request_id: str, subtype: str, **more: str) -> None:
        request = {"subtype": subtype, **more}
        self.send({"type": "control_request", "request_id": request_id, "request": request})

    def decide(self, request: dict[str, Any], **decision: Any) -> None:
        response = {"subtype": "success", "request_id": request["request_id"], "response": decision}
        self.send({"type": "control_response", "response": response})

    def question(self, text: str) -> dict[str, Any]:
        """The control request that this prompt leads to."""
        self.say(text)
        return self.until("control_request")[-1]

    def messages(self) -> Iterator[dict[str, Any]]:
        assert self.process.stdout
        for line in self.process.stdout:
            yield json.loads(line)

    def until(self, kind: str) -> list[dict[str, Any]]:
        seen = []
        for message in self.messages():
            seen.append(message)
            if message["type"] == kind:
                return seen
        raise AssertionError(f"no {kind} came: {seen} {self.errors()}")

    def turn(self, text: object) -> dict[str, Any]:
        self.say(text)
        return self.until("result")[-1]

    def silent(self) -> bool:
        assert self.process.stdout
        return not select.select([self.process.stdout], [], [], 0.15)[0]

    def errors(self) -> str:
        assert self.process.stderr
        return self.process.stderr.read().decode()

    def end(self) -> None:
        self.process.kill()
        self.process.wait(SECONDS)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

    def close(self) -> int:
        assert self.process.stdin
        self.process.stdin.close()
        return self.process.wait(SECONDS)


@contextlib.contextmanager
def starting(tmp_path: Path) -> Iterator[Callable[..., Driver]]:
    """Starts agents that share their sessions, and ends them all."""
    drivers: list[Driver] = []

    def begin(*flags: str, base: list[str] = PARTIAL) -> Driver:
        drivers.append(Driver(tmp_path, *flags, base=base))
        return drivers[-1]

    try:
        yield begin
    finally:
        for driver in drivers:
            driver.end()


def streamed(messages: list[dict[str, Any]]) -> str:
    events = [message["event"] for message in messages if message["type"] == "stream_event"]
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    return "".join(delta.get("text", "") for delta in deltas)


def blocks(messages: list[dict[str, Any]], kind: str, block: str) -> list[dict[str, Any]]:
    """The content blocks of one type, in the messages of one type."""
    content = [each for m in messages if m["type"] == kind for each in m["message"]["content"]]
    return [each for each in content if isinstance(each, dict) and each["type"] == block]
