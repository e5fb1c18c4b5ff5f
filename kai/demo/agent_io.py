"""What the offline agent is made of below the conversation: its flags, pipes, files, shell and bill.

Standard library only, and as little of it as possible, for the agent is to start in the time of an interpreter.
"""

from __future__ import annotations

import argparse
import binascii
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
FILE = re.compile(r"\[File: (/.+) \([^()]*\)\]")
IMAGE = re.compile(r"\[Image: (.+)\]")
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

    def emit(self, message: Message) -> None:
        line = json.dumps(message).encode() + b"\n"
        while line:
            line = line[os.write(1, line) :]

    def told(self, message: Message) -> None:
        """A message of the conversation: with the session's id and one of its own."""
        self.emit({**message, "session_id": self.session, "uuid": new_id()})

    def event(self, event: Message) -> None:
        if self.partial:
            self.told({"type": "stream_event", "event": event, "parent_tool_use_id": None})

    def assistant(self, message_id: str, model: str, block: Message) -> None:
        content = {
            "id": message_id,
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [block],
        }
        rest = {"stop_reason": None, "stop_sequence": None, "usage": usage()}
        self.told({"type": "assistant", "message": {**content, **rest}, "parent_tool_use_id": None})

    def user(self, content: list[Message] | str, **more: Any) -> None:
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


def rules(arguments: list[str]) -> list[str]:
    """`Tool` and `Tool(…)`, one or several to an argument, with commas or spaces between them."""
    return [rule for each in arguments for rule in re.findall(r"[^,\s(]+(?:\((?:[^()]|\([^()]*\))*\))?", each)]


def allows(rule: str, tool: str, inputs: Message) -> bool:
    """Whether a permission rule covers this call: a whole command, or a file below a directory (`//` is absolute)."""
    name, _, content = rule.removesuffix(")").partition("(")
    if tool == "Write" and name in ("Edit", "Write"):
        below = content.startswith("//") and content.endswith("/**")
        return not content or (below and is_below(inputs["file_path"], content[1:-3]))
    return name == tool and content in ("", inputs.get("command"))


def is_below(path: str, directory: str) -> bool:
    return Path(os.path.realpath(directory)) in Path(os.path.realpath(path)).parents


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

    def entries(self) -> list[Message]:
        return [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]

    def prompts(self) -> list[str]:
        return [entry["text"] for entry in self.entries() if entry["role"] == "user"]

    def cost(self) -> Message:
        """The use of models up to a clean end: after any other end, it is forgotten, as by the real program."""
        last = self.entries()[-1:]
        return json.loads(last[0]["text"]) if last and last[0]["role"] == "cost" else {}


class Bill:
    """What was used: over the session (`models`), since the last result (`since`), by this process (`spent`, USD)."""

    def __init__(self, models: Message) -> None:
        self.models = models
        self.since: Message = {}
        self.spent = 0.0

    def add(self, model: str, *, usd: float, words_out: int) -> None:
        self.spent += usd
        for used in (self.models, self.since):
            entry = used.setdefault(model, {"inputTokens": 0, "outputTokens": 0, "costUSD": 0.0})
            entry["outputTokens"] += words_out
            entry["costUSD"] += usd

    def total(self) -> float:
        return sum(float(used["costUSD"]) for used in self.models.values())

    def fields(self) -> Message:
        """For a result; the next one tells only of what comes after it."""
        since, self.since = self.since, {}
        total = self.total()
        return {"total_cost_usd": total, "modelUsage": self.models, "model_usage_since_last_result": since}


def append(path: Path, entry: Message) -> None:
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
        self.pid = os.posix_spawn(
            argv[0],
            argv,
            os.environ,
            file_actions=actions,
            setpgroup=0,
            setsigdef=[signal.SIGPIPE, signal.SIGINT, signal.SIGTERM],
            setsigmask=[],
        )
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


def prompt_text(message: Message) -> str:
    """The words of a user message: a string, or the text blocks of a list; a line in brackets stands for an image."""
    try:
        if message["message"]["role"] != "user":
            fail(f"Error: Expected message role 'user', got '{message['message']['role']}'")
        content = message["message"]["content"]
        if isinstance(content, str):
            return content
        return "\n".join(map(block_text, content))
    except (TypeError, KeyError) as error:
        fail(f"Error: malformed user message: {error!r}")


def block_text(block: Message) -> str:
    """A block of a prompt as text."""
    if block["type"] == "text":
        return str(block["text"])
    if block["type"] != "image" or block["source"]["type"] != "base64":
        fail(f"Error: unknown content block: {block['type']}")
    size = len(binascii.a2b_base64(block["source"]["data"]))
    return f"[Image: {block['source']['media_type']}, {size} bytes]"


def received(text: str) -> str:
    """What is to be told of the files and images in a prompt, "" when it has none."""
    told = []
    for line in text.splitlines():
        if file := FILE.fullmatch(line):
            try:
                told.append(f"I can read `{file[1]}`: {len(Path(file[1]).read_bytes())} bytes.")
            except OSError as error:
                told.append(f"I can't read `{file[1]}`: {error.strerror}.")
        elif image := IMAGE.fullmatch(line):
            told.append(f"I was shown an image: {image[1]}.")
    return "\n".join(told)


class Parser(argparse.ArgumentParser):
    """Exit status 1 as the real program has it, where argparse has 2."""

    def error(self, message: str) -> NoReturn:
        fail(f"error: {message}")


def parse(argv: list[str] | None, *, about: str | None, model: str) -> argparse.Namespace:
    """The flags of the real program that mean something here; any other one is an error."""
    parser = Parser(prog="kai-demo-agent", allow_abbrev=False, description=about)
    parser.add_argument("-p", "--print", action="store_true")
    parser.add_argument("--input-format", choices=["text", "stream-json"], default="text")
    parser.add_argument("--output-format", choices=["text", "json", "stream-json"], default="text")
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--include-partial-messages", action="store_true")
    parser.add_argument("--permission-mode", default="default")
    parser.add_argument("--dangerously-skip-permissions", action="store_true")
    parser.add_argument("--permission-prompt-tool", choices=["stdio"])
    parser.add_argument("--allowedTools", nargs="+", action="extend", default=[])
    parser.add_argument("--add-dir", action="append", default=[])
    parser.add_argument("--max-budget-usd", type=float)
    parser.add_argument("--resume", default="")
    parser.add_argument("--session-id", default="")
    parser.add_argument("--model", default=model)
    parser.add_argument("--append-system-prompt", default="")
    parser.add_argument("--append-system-prompt-file", type=Path)
    parser.add_argument("--system-prompt-snapshot", choices=["on", "off"], default="on")
    parser.add_argument("--setting-sources", default="")
    parser.add_argument("--strict-mcp-config", action="store_true")
    parser.add_argument("--mcp-config", default="")  # taken as the CLI takes it; this agent calls no tools of others
    parser.add_argument("--state", default=os.environ.get("KAI_DEMO_AGENT_STATE", ""))
    parser.add_argument("--runs", default=os.environ.get("KAI_DEMO_AGENT_RUNS", ""))
    options = parser.parse_args(argv)
    if not options.print or options.input_format != "stream-json" or options.output_format != "stream-json":
        fail("Error: only -p --input-format stream-json --output-format stream-json is spoken here")
    if not options.verbose:
        fail("Error: When using --print, --output-format=stream-json requires --verbose")
    if options.max_budget_usd is not None and not options.max_budget_usd > 0:
        fail("error: --max-budget-usd must be a positive number")
    if options.session_id and not SESSION_ID.fullmatch(options.session_id):
        fail("Error: Invalid session ID. Must be a valid UUID.")
    if options.append_system_prompt_file:
        options.append_system_prompt = options.append_system_prompt_file.read_text(encoding="utf-8")
    options.state = options.state or str(Path.home() / ".local/share/kai-demo-agent")
    return options
