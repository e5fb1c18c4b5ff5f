"""An agent that misbehaves as its prompt says. A program: `python -I -S misbehaving.py --state DIR …flags of claude…`.

It speaks as much stream-json as Kai listens to. A session is a file in DIR whose length is the number of its turns, so
that an answer tells whether the session was resumed. `--state DIR` is in the command line of every process that it
makes, so they can be counted. A prompt is a name from WAYS and its arguments; every other one is answered.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

COST = 0.25
"""US dollars that each turn costs."""
NEXT = Path("next-start")
"""In the workspace: how the next start of the agent goes wrong."""
SAVING = Path("saving")
"""In the workspace: the way that the agent goes when it is to save its memory."""
rest = b""


def put(data: bytes, fd: int = 1) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def say(**message: Any) -> None:
    put(json.dumps(message).encode() + b"\n")


def hear(timeout: float | None = None) -> dict[str, Any] | None:
    """The next message, None when there is none within so many seconds. Ends the process at the end of input."""
    global rest
    until = None if timeout is None else time.monotonic() + timeout
    while b"\n" not in rest:
        left = None if until is None else max(0.0, until - time.monotonic())
        if not select.select([0], [], [], left)[0]:
            return None
        chunk = os.read(0, 1 << 16)
        if not chunk:
            os._exit(0)
        rest += chunk
    line, _, rest = rest.partition(b"\n")
    found: dict[str, Any] = json.loads(line)
    return found


class Agent:
    """One process. `turn` is the number of the running turn in its session."""

    def __init__(self) -> None:
        state = Path(sys.argv[sys.argv.index("--state") + 1])
        state.mkdir(exist_ok=True)
        resumed = "--resume" in sys.argv
        self.id = sys.argv[sys.argv.index("--resume") + 1] if resumed else os.urandom(8).hex()
        self.path = state / self.id
        if resumed and not self.path.exists():
            sys.exit(f"No conversation found with session ID: {self.id}")
        self.uuid = ""
        self.turn = self.taken = 0

    def serve(self) -> None:
        while True:
            message = hear()
            if message and message["type"] == "control_request":
                self.control(message)
            elif message and message["type"] == "user":
                self.take(message)

    def control(self, message: dict[str, Any]) -> bool:
        """Answer a request; whether it was an interrupt."""
        say(type="control_response", response={"subtype": "success", "request_id": message["request_id"]})
        return bool(message["request"]["subtype"] == "interrupt")

    def take(self, message: dict[str, Any]) -> None:
        self.begin(str(message.get("uuid", "")))
        prompt = message["message"]["content"][0]["text"]
        if prompt.startswith("[Kai] This session ends now") and SAVING.exists():
            prompt = SAVING.read_text()
        way, *arguments = prompt.split()
        WAYS.get(way, Agent.answer)(self, *arguments)

    def begin(self, uuid: str) -> None:
        self.uuid = uuid
        with self.path.open("a") as file:
            self.turn, _ = file.tell() + 1, file.write("x")
        say(type="command_lifecycle", command_uuid=uuid, state="started")
        say(type="system", subtype="init", session_id=self.id)

    def text(self, words: str) -> None:
        content = [{"type": "text", "text": words}]
        say(type="assistant", message={"id": os.urandom(4).hex(), "content": content}, parent_tool_use_id=None)

    def result(self, **more: Any) -> None:
        self.taken += 1
        cost = {"total_cost_usd": COST * self.taken, "model_usage_since_last_result": {"x": {"costUSD": COST}}}
        end = {"subtype": "success", "is_error": False, "result": "", **cost}
        say(type="result", session_id=self.id, **{**end, **more})
        say(type="command_lifecycle", command_uuid=self.uuid, state="completed")

    def interrupted(self) -> None:
        self.result(subtype="error_during_execution", is_error=True, terminal_reason="aborted_streaming")

    def obey(self) -> None:
        """Do nothing until the interrupt."""
        while True:
            message = hear()
            if message and message["type"] == "control_request" and self.control(message):
                return self.interrupted()

    def told_to_stop(self) -> bool:
        """Whether there is an interrupt in what has come so far."""
        while message := hear(0):
            if message["type"] == "control_request" and self.control(message):
                return True
        return False

    # ---- the ways ----

    def answer(self, *_: str) -> None:
        self.text(f"this is turn {self.turn}")
        self.result()

    def lingering(self) -> None:
        """The answer, and then a second in which nothing is seen, not even the end of input."""
        self.answer()
        time.sleep(1)

    def silent(self) -> None:
        self.obey()

    def half(self) -> None:
        self.text("so far")
        put(b'{"type": "assistant", "message": {"id": "x", "content": [{"type": "te')
        self.obey()

    def trickle(self) -> None:
        """Something always comes, and it never makes a line."""
        self.text("so far")
        while not self.told_to_stop():
            put(b"x")
            time.sleep(0.05)
        put(b"\n")
        self.interrupted()

    def deaf(self) -> None:
        """Takes no interrupt, and leaves at the end of its input."""
        self.text("so far")
        while True:
            hear()

    def immortal(self) -> None:
        """Takes no interrupt, doesn't see the end of its input and isn't moved by SIGTERM."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self.text("so far")
        while True:
            time.sleep(60)

    def tool(self, seconds: str = "60") -> None:
        """A tool call that says nothing for so long."""
        block = {"type": "tool_use", "id": "t1", "name": "Bash", "input": {"command": "sleep"}}
        say(type="assistant", message={"id": "m", "content": [block]}, parent_tool_use_id=None)
        until = time.monotonic() + float(seconds)
        while time.monotonic() < until:
            message = hear(until - time.monotonic())
            if message and message["type"] == "control_request" and self.control(message):
                return self.interrupted()
        done = {"type": "tool_result", "tool_use_id": "t1", "content": ""}
        say(type="user", message={"content": [done]}, parent_tool_use_id=None)
        return self.answer()

    def ask(self) -> None:
        """Ask whether a command may be run, and tell what came of it."""
        asked = {"subtype": "can_use_tool", "tool_name": "Bash", "input": {"command": "make"}}
        say(type="control_request", request_id="mine", request=asked)
        while True:
            message = hear()
            if message and message["type"] == "control_response":
                decision = message["response"]["response"]
                self.text(f"{decision['behavior']}: {decision.get('message', '')}")
                return self.result()
            if message and message["type"] == "control_request" and self.control(message):
                return self.interrupted()

    def exit(self, status: str) -> None:
        self.text("so far")
        print("my last words", file=sys.stderr, flush=True)
        os._exit(int(status))

    def kill(self, number: str) -> None:
        self.text("so far")
        os.kill(os.getpid(), int(number))

    def mute(self) -> None:
        self.text("so far")
        os.close(1)
        self.deaf_and_mute()

    def deaf_and_mute(self) -> None:
        while True:
            hear()

    def garble(self) -> None:
        """Invalid UTF-8, as a line of its own and inside of one."""
        put(b"\xff\xfe\xc0\n")
        put(b'{"type": "assistant", "message": {"id": "m", "content": [{"type": "text", "text": "fi\xc3ne"}]}}\n')
        self.result()

    def twice(self) -> None:
        self.answer()
        self.text("a ghost")
        self.result()

    def unasked(self) -> None:
        """The answer, and then a turn that nobody asked for."""
        self.answer()
        time.sleep(0.3)
        say(type="system", subtype="init", session_id=self.id)
        self.text("a ghost")
        self.uuid = "none-of-yours"
        self.result()

    def children(self, *then: str) -> None:
        """Leave processes behind that are in sessions of their own and ignore SIGTERM; then go another way."""
        for _ in range(3):
            if os.fork() == 0:
                os.setsid()
                for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                    signal.signal(number, signal.SIG_IGN)
                if os.fork() == 0:
                    while True:
                        time.sleep(60)
                os._exit(0)
        way, *arguments = then or ("answer",)
        WAYS.get(way, Agent.answer)(self, *arguments)

    def next(self, way: str) -> None:
        """The next start goes wrong, and then all is well again."""
        NEXT.write_text(way)
        self.text("so far")
        os._exit(9)

    def flood(self, kind: str) -> None:
        """As much as the reader takes, until the interrupt."""
        put(b'{"type": "stream_event", "event": {"type": "message_start", "message": {"id": "m"}}}\n')
        count = 0
        while not self.told_to_stop():
            if count == 0 or kind in ("tools", "requests", "questions"):
                block = b"".join(FLOODS[kind](count + n) for n in range(100))
            count += 100
            put(block, 2 if kind == "stderr" else 1)
        put(b"\n")
        self.interrupted()


def _line(**message: Any) -> bytes:
    return json.dumps(message).encode() + b"\n"


def _event(**event: Any) -> bytes:
    return _line(type="stream_event", event=event)


def _call(number: int) -> bytes:
    block = {"type": "tool_use", "id": f"t{number}", "name": f"Tool{number}", "input": {"command": "x" * 300}}
    return _line(type="assistant", message={"id": "m", "content": [block]})


FLOODS: dict[str, Callable[[int], bytes]] = {
    "text": lambda n: _event(type="content_block_delta", delta={"type": "text_delta", "text": "flood " * 100}),
    "blocks": lambda n: _event(type="content_block_start", content_block={"type": "text", "text": "block"}),
    "tools": _call,
    "garbage": lambda n: b"\xff" * 1000 + b"\n",
    "endless": lambda n: b"z" * 1000,
    "long": lambda n: _line(type="x", y="z" * 200_000),
    "stderr": lambda n: b"e" * 1000 + b"\n",
    "requests": lambda n: _line(type="control_request", request_id=f"r{n}", request={"subtype": "mcp_message"}),
    "questions": lambda n: _line(
        type="control_request",
        request_id=f"r{n}",
        request={"subtype": "can_use_tool", "tool_name": "Bash", "input": {"command": f"make {n}"}},
    ),
    "results": lambda n: _line(type="result", is_error=False, result="a ghost", session_id=f"other-{n}"),
}
WAYS: dict[str, Callable[..., None]] = {
    name: getattr(Agent, name)
    for name in (
        *(
            "lingering",
            "silent",
            "half",
            "trickle",
            "deaf",
            "immortal",
            "tool",
            "ask",
            "exit",
            "kill",
            "mute",
            "garble",
            "twice",
        ),
        *("unasked", "children", "next", "flood"),
    )
}


def main() -> None:
    agent = Agent()
    way = NEXT.read_text() if NEXT.exists() else ""
    NEXT.unlink(missing_ok=True)
    if way == "exit":
        sys.exit("no licence for this machine")
    while way == "never":
        time.sleep(60)
    agent.serve()


if __name__ == "__main__":
    main()
