"""The offline agent: speaks Claude Code's stream-json on its pipes and needs no model, no key and no network.

The demo and the process tests run it where a real host runs `claude`. It is strict where a driver could get
used to kindness: nothing is printed before the first input, `init` comes at every turn, an unknown flag is an
error, an interrupt is answered before the turn ends, messages sent meanwhile become one next turn. A prompt
that begins with `!` is a command and really runs, as the user who started this program.

Beside Claude's flags it knows `--state DIR` (sessions, else $KAI_DEMO_AGENT_STATE, else
~/.local/share/kai-demo-agent) and `--runs FILE` (else $KAI_DEMO_AGENT_RUNS): one JSON line is appended there
for every turn that begins, so that a test can count runs without asking whom it tests. Standard library only,
and as little of it as possible: it starts in the time of an interpreter.
"""

from __future__ import annotations

import argparse
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

MODEL = "offline"
OUTPUT_LIMIT = 30_000
"""Bytes of a command's output that are kept; of a longer one, the first and the last half."""
WORD_DELAY = 0.2
"""Seconds between two words of `slow N`."""
SESSION_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

HELP = """\
I am the **offline agent** of Kai's demo. There is no model behind me, but everything around me is the real \
thing: your message went through the queue, the bot and the supervisor, and so does this answer.

- `! ls -la` runs a command, really and as you
- `slow 20` answers with 20 words, one every 0.2 s: watch the message grow, then press Stop
- `say **Markdown**` repeats a text, so that you see how it is shown
- `history` lists what you wrote in this session, even after a restart
- `id` says who and where I am; `prompt` shows the instructions I was started with
- `die` ends me in the middle of the answer, so that you see what Kai makes of it

`/help` lists Kai's own commands."""


class Interrupted(Exception):
    """The running turn is to end now, and the process goes on."""


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


class Agent:
    """The conversation: what comes in by `Input` is answered on `Output`."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.model: str = options.model
        self.mode: str = options.permission_mode
        self.instructions: str = options.append_system_prompt
        self.runs: str = options.runs
        self.resumed: bool = bool(options.resume)
        self.session = Session(Path(options.state), options.resume or options.session_id or new_id())
        if not self.resumed and self.session.exists():
            fail(f"Error: Session ID {self.session.id} is already in use.")
        self.out = Output(self.session.id, partial=options.include_partial_messages)
        self.input = Input()
        self.waiting: list[tuple[str, str]] = []
        self.command: Command | None = None
        self.busy = self.stopping = self.failed = False
        self.results = 0
        signal.signal(signal.SIGTERM, self.on_terminate)

    def on_terminate(self, _number: int, _frame: object) -> NoReturn:
        if self.command:
            self.command.kill()
        os._exit(128 + signal.SIGTERM)

    def serve(self) -> int:
        """Take turns until the input ends; the exit status is that of the last turn."""
        while self.waiting or not self.input.eof:
            if self.waiting:
                taken, self.waiting = self.waiting, []
                self.lifecycle("started", taken)
                self.take("\n".join(text for text, _ in taken))
                self.lifecycle("completed", taken)
            else:
                self.pump(None)
            if self.input.interrupted:
                return 0
        return int(self.failed)

    def pump(self, timeout: float | None, also: Iterable[int] = ()) -> None:
        """Handle what comes in; raises Interrupted when the running turn is to end."""
        for line in self.input.lines(timeout, also):
            self.handle(line)
        if self.busy and (self.stopping or self.input.interrupted):
            raise Interrupted

    def handle(self, line: bytes) -> None:
        try:
            message = json.loads(line)
            kind = message["type"]
        except (ValueError, TypeError, KeyError):
            fail(f"Error parsing streaming input line (type=unknown, {len(line)} chars): SyntaxError")
        if kind == "user":
            self.waiting.append((prompt_text(message), str(message.get("uuid") or "")))
            self.lifecycle("queued", self.waiting[-1:])
        elif kind == "control_request":
            self.control(str(message.get("request_id", "")), message.get("request") or {})
        elif kind not in ("control_response", "keep_alive"):
            fail(f"Error: Expected message type 'user' or 'control', got '{kind}'")

    def lifecycle(self, state: str, messages: list[tuple[str, str]]) -> None:
        """Where a message stands, for those that came with an id of their own."""
        for _, message_id in messages:
            if message_id:
                self.out.told({"type": "command_lifecycle", "command_uuid": message_id, "state": state})

    def control(self, request_id: str, request: dict[str, Any]) -> None:
        subtype = request.get("subtype")
        answer: dict[str, Any] = {"still_queued": []}
        if subtype == "initialize":
            self.instructions = str(request.get("appendSystemPrompt", self.instructions))
            models = [{"value": MODEL, "displayName": "Offline", "description": "No model: answers by rule"}]
            answer = {
                "commands": [],
                "agents": [],
                "output_style": "default",
                "models": models,
                "account": {},
            }
            answer |= {"pid": os.getpid(), "current_permission_mode": self.mode}
        elif subtype == "set_model":
            self.model = str(request.get("model") or MODEL)
            answer = {"model": self.model}
        elif subtype == "set_permission_mode":
            self.mode = str(request.get("mode", self.mode))
            answer = {"mode": self.mode}
        elif subtype != "interrupt":
            error = {"error": f"Unsupported control request subtype: {subtype}"}
            refusal = {
                "subtype": "error",
                "request_id": request_id,
                **error,
                "error_code": "unsupported_request",
            }
            self.out.emit({"type": "control_response", "response": refusal})
            return
        success = {"subtype": "success", "request_id": request_id, "response": answer}
        self.out.emit({"type": "control_response", "response": success})
        self.stopping = self.stopping or subtype == "interrupt"

    def take(self, text: str) -> None:
        """Run one turn; it ends with exactly one result."""
        if self.resumed and not self.session.exists():
            error = f"No conversation found with session ID: {self.session.id}"
            self.result(errors=[error], reason="", began=time.monotonic(), turns=0)
            fail(error)
        self.session.add("user", text)
        if self.runs:
            append(Path(self.runs), {"session": self.session.id, "pid": os.getpid(), "text": text})
        began, self.busy, self.stopping, self.failed = time.monotonic(), True, False, False
        tools = {"tools": ["Bash"], "mcp_servers": [], "slash_commands": [], "agents": [], "skills": []}
        about = {"model": self.model, "permissionMode": self.mode, "apiKeySource": "none"}
        init = {"type": "system", "subtype": "init", "cwd": str(Path.cwd()), **tools, **about}
        self.out.told({**init, "claude_code_version": "0 (Kai offline agent)", "output_style": "default"})
        try:
            answer = self.answer(text.strip())
        except Interrupted:
            during = "tools" if self.command else "streaming"
            note = "[Request interrupted by user for tool use]" if self.command else "[Request interrupted by user]"
            self.out.user([{"type": "text", "text": note}])
            self.result(errors=["the turn was interrupted"], reason=f"aborted_{during}", began=began, turns=2)
        else:
            self.session.add("assistant", answer)
            self.result(text=answer, reason="completed", began=began, turns=1)
        finally:
            self.busy, self.command = False, None

    def answer(self, text: str) -> str:
        """Say what belongs to this prompt, and return it."""
        word, _, rest = text.partition(" ")
        if text.startswith("!") and text[1:].strip():
            return self.run(text[1:].strip())
        if word == "slow" and rest.isdecimal():
            return self.say((f"word{n} " for n in range(1, int(rest) + 1)), delay=WORD_DELAY)
        if word == "say" and rest:
            return self.say(words(rest))
        if text == "history":
            prompts = self.session.prompts()
            return self.say(f"{n}. {prompt}\n" for n, prompt in enumerate(prompts, 1))
        if text == "id":
            where = f"uid {os.getuid()}, pid {os.getpid()}, in `{Path.cwd()}`, session `{self.session.id}`"
            return self.say(words(f"{where}, model {self.model}."))
        if text == "prompt":
            return self.say(words(fenced(self.instructions or "no instructions")))
        if text == "die":
            self.say(["I am "], whole=False)
            sys.stderr.write("the offline agent ends itself because it was told to `die`\n")
            sys.stderr.flush()
            os._exit(70)
        return self.say(words(HELP if text == "help" else f"I can't think about that: {HELP}"))

    def say(self, pieces: Iterable[str], *, delay: float = 0, whole: bool = True) -> str:
        """Stream one message of text, `delay` seconds before each piece; not `whole` leaves it open."""
        message_id, text = self.open_message()
        self.out.event({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}})
        try:
            for piece in pieces:
                self.pump_for(delay)
                delta = {"type": "text_delta", "text": piece}
                self.out.event({"type": "content_block_delta", "index": 0, "delta": delta})
                text += piece
        except Interrupted:
            if text:
                self.out.assistant(message_id, self.model, {"type": "text", "text": text})
            raise
        if whole:
            self.out.assistant(message_id, self.model, {"type": "text", "text": text})
            self.close_message("end_turn", len(text.split()))
        return text

    def pump_for(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        self.pump(0)
        while (left := until - time.monotonic()) > 0:
            self.pump(left)

    def open_message(self) -> tuple[str, str]:
        message_id = f"msg_{os.urandom(12).hex()}"
        self.out.told({"type": "system", "subtype": "status", "status": "requesting"})
        start = {"id": message_id, "type": "message", "role": "assistant", "model": self.model, "content": []}
        rest = {"stop_reason": None, "stop_sequence": None, "usage": usage()}
        self.out.event({"type": "message_start", "message": {**start, **rest}})
        return message_id, ""

    def close_message(self, stop_reason: str, words_out: int) -> None:
        self.out.event({"type": "content_block_stop", "index": 0})
        delta = {"stop_reason": stop_reason, "stop_sequence": None}
        self.out.event({"type": "message_delta", "delta": delta, "usage": {"output_tokens": words_out}})
        self.out.event({"type": "message_stop"})

    def run(self, command: str) -> str:
        """A message with a tool call, the command itself, its result, and a message that shows it."""
        message_id, _ = self.open_message()
        tool_id, inputs = (
            f"toolu_{os.urandom(12).hex()}",
            {"command": command, "description": "What you typed"},
        )
        block = {"type": "tool_use", "id": tool_id, "name": "Bash", "input": inputs}
        self.out.event({"type": "content_block_start", "index": 0, "content_block": {**block, "input": {}}})
        delta = {"type": "input_json_delta", "partial_json": json.dumps(inputs)}
        self.out.event({"type": "content_block_delta", "index": 0, "delta": delta})
        self.out.assistant(message_id, self.model, block)
        self.close_message("tool_use", 0)
        shell = self.command = Command(command)
        answer: dict[str, Any] = {"tool_use_id": tool_id, "type": "tool_result"}
        try:
            self.wait(shell)
        except Interrupted:
            stopped = {**answer, "content": "The command was stopped by the user.", "is_error": True}
            self.out.user([stopped], tool_use_result="User rejected tool use")
            raise
        finally:
            shell.close()
        self.command = None
        output, status = shell.text(), shell.status or 0
        content = output if status == 0 else f"Exit code {status}\n{output}"
        told = {"stdout": output, "stderr": "", "interrupted": False, "isImage": False}
        self.out.user([{**answer, "content": content, "is_error": status != 0}], tool_use_result=told)
        ending = f"Exit status {status}." if status >= 0 else f"Ended by {signal.Signals(-status).name}."
        shown = fenced(output) if output else "*(no output)*"
        return self.say(words(f"{shown}\n\n{ending}"))

    def wait(self, shell: Command) -> None:
        """Collect output until the shell is gone; raises Interrupted, which `close` then ends."""
        watched = [shell.output, shell.exited]
        while not select.select([shell.exited], [], [], 0)[0]:
            self.pump(None, watched)
            if shell.output in watched and not shell.collect():
                watched.remove(shell.output)
        shell.finish()

    def result(self, *, began: float, reason: str, turns: int, text: str = "", errors: list[str] | None = None) -> None:
        duration = round((time.monotonic() - began) * 1000)
        message: dict[str, Any] = {"type": "result", "subtype": "success", "is_error": False, "result": text}
        if errors is not None:
            message = {
                "type": "result",
                "subtype": "error_during_execution",
                "is_error": True,
                "errors": errors,
            }
            self.failed = True
        message |= {"duration_ms": duration, "duration_api_ms": 0, "num_turns": turns, "total_cost_usd": 0.0}
        message |= {"usage": usage(len(text.split())), "modelUsage": {}, "permission_denials": []}
        message |= {"terminal_reason": reason} if reason else {}
        message |= {"stop_reason": None if errors else "end_turn", "result_index": self.results}
        self.out.told(message)
        self.results += 1


def prompt_text(message: dict[str, Any]) -> str:
    """The words of a user message: a string, or the text blocks of a list."""
    try:
        if message["message"]["role"] != "user":
            fail(f"Error: Expected message role 'user', got '{message['message']['role']}'")
        content = message["message"]["content"]
        if isinstance(content, str):
            return content
        return "\n".join(str(block["text"]) for block in content if block["type"] == "text")
    except (TypeError, KeyError) as error:
        fail(f"Error: malformed user message: {error!r}")


class Parser(argparse.ArgumentParser):
    """Exit status 1 as the real program has it, where argparse has 2."""

    def error(self, message: str) -> NoReturn:
        fail(f"error: {message}")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The flags of the real program that mean something here; any other one is an error."""
    parser = Parser(prog="kai-demo-agent", allow_abbrev=False, description=__doc__)
    parser.add_argument("-p", "--print", action="store_true")
    parser.add_argument("--input-format", choices=["text", "stream-json"], default="text")
    parser.add_argument("--output-format", choices=["text", "json", "stream-json"], default="text")
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--include-partial-messages", action="store_true")
    parser.add_argument("--permission-mode", default="default")
    parser.add_argument("--dangerously-skip-permissions", action="store_true")
    parser.add_argument("--permission-prompt-tool", choices=["stdio"])
    parser.add_argument("--allowedTools", nargs="+", default=[])
    parser.add_argument("--add-dir", action="append", default=[])
    parser.add_argument("--max-budget-usd", type=float, default=0.0)
    parser.add_argument("--resume", default="")
    parser.add_argument("--session-id", default="")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--append-system-prompt", default="")
    parser.add_argument("--append-system-prompt-file", type=Path)
    parser.add_argument("--system-prompt-snapshot", choices=["on", "off"], default="on")
    parser.add_argument("--setting-sources", default="")
    parser.add_argument("--strict-mcp-config", action="store_true")
    parser.add_argument("--state", default=os.environ.get("KAI_DEMO_AGENT_STATE", ""))
    parser.add_argument("--runs", default=os.environ.get("KAI_DEMO_AGENT_RUNS", ""))
    options = parser.parse_args(argv)
    if not options.print or options.input_format != "stream-json" or options.output_format != "stream-json":
        fail("Error: only -p --input-format stream-json --output-format stream-json is spoken here")
    if not options.verbose:
        fail("Error: When using --print, --output-format=stream-json requires --verbose")
    if options.session_id and not SESSION_ID.fullmatch(options.session_id):
        fail("Error: Invalid session ID. Must be a valid UUID.")
    if options.append_system_prompt_file:
        options.append_system_prompt = options.append_system_prompt_file.read_text(encoding="utf-8")
    options.state = options.state or str(Path.home() / ".local/share/kai-demo-agent")
    return options


def main(argv: list[str] | None = None) -> int:
    """Entry of the program."""
    agent = Agent(parse(argv))
    try:
        return agent.serve()
    except BrokenPipeError:
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
