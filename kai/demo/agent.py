"""The offline agent: speaks Claude Code's stream-json on its pipes and needs no model, no key and no network.

The demo and the process tests run it where a real host runs `claude`. It is strict where a driver could get
used to kindness: nothing is printed before the first input, `init` comes at every turn, an unknown flag is an
error, an interrupt is answered before the turn ends, messages sent meanwhile become one next turn. A prompt
that begins with `!` is a command and really runs, as the user who started this program. With a permission
mode that asks, it asks; without anybody to ask, nothing runs. Costs add up over a resumed session, and a
budget is this process's alone.

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
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NoReturn

if not __package__:  # an isolated script finds nothing of kai; behind the standard library, so that it hides none of it
    sys.path.append(str(Path(__file__).resolve().parents[2]))

from kai.demo.agent_io import (
    Bill,
    Command,
    Input,
    Message,
    Output,
    Session,
    allows,
    append,
    fail,
    fenced,
    is_below,
    new_id,
    parse,
    prompt_text,
    received,
    rules,
    usage,
    words,
)

MODEL = "offline"
WORD_DELAY = 0.2
"""Seconds between two words of `slow N`."""
TURN_COST = 0.0001
"""US dollars of a turn that doesn't name its price."""
MODELS = (
    ("default", "Default", "What the operator chose; here it is all the same"),
    (MODEL, "Offline", "No model: answers by rule"),
    ("offline-large", "Offline large", "No model either, under another name"),
)
COMMANDS = {
    "compact": "Make the conversation shorter",
    "context": "Show how full the conversation is",
    "clear": "Begin a new conversation",
    "cost": "Show what this session cost",
}
FIELDS = {"Bash": ("command",), "Write": ("file_path", "content")}
"""What a call needs, whoever changed its input."""
MEMORY = re.compile(r"file (/[^\n]*?/MEMORY\.md)|(/\S+/MEMORY\.md)")
SAVE_MEMORY = "[Kai] This session ends now"
PREFACE = re.compile(r"\[Kai\] [^\n]*(?:\n- [^\n]*)*\n+(?=\S)")
"""What stands before a job's prompt, or tells what jobs delivered: no rule is about it."""

HELP = """\
I am the **offline agent** of Kai's demo. There is no model behind me, but everything around me is the real \
thing: your message went through the queue, the bot and the supervisor, and so does this answer.

- `! ls -la` runs a command, really and as you; `edit PATH TEXT` writes a file (both ask first when they have to)
- `slow 20` answers with 20 words, one every 0.2 s: watch the message grow, then press Stop
- `say **Markdown**` repeats a text, so that you see how it is shown
- `history` lists what you wrote in this session, even after a restart; `remember TEXT` outlives the session
- `id` says who and where I am; `prompt` shows the instructions I was started with; `env` my environment
- `agent 5 TEXT` works quietly for 5 s; `tools 7` makes 7 tool calls; `cost 0.5` makes a turn cost that many dollars
- `silent 60` says nothing for a minute; `deaf 60` doesn't hear Stop either
- send a file or a photo: I say what I got
- `die` ends me in the middle of the answer, so that you see what Kai makes of it

`/help` lists Kai's own commands."""


class Interrupted(Exception):
    """The running turn is to end now, and the process goes on."""


class Refused(Exception):
    """A tool call came to nothing, and its result is told already; the message says why."""


class Agent:
    """The conversation: what comes in by `Input` is answered on `Output`."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.model: str = options.model
        self.mode: str = "bypassPermissions" if options.dangerously_skip_permissions else options.permission_mode
        self.asks: bool = options.permission_prompt_tool == "stdio"
        self.allowed: list[str] = rules(options.allowedTools)
        self.budget: float | None = options.max_budget_usd
        self.instructions: str = options.append_system_prompt
        self.runs: str = options.runs
        self.resumed: bool = bool(options.resume)
        self.session = Session(Path(options.state), options.resume or options.session_id or new_id())
        if not self.resumed and self.session.exists():
            fail(f"Error: Session ID {self.session.id} is already in use.")
        self.out = Output(self.session.id, partial=options.include_partial_messages)
        self.input = Input()
        self.waiting: list[tuple[str, str]] = []
        self.bill = Bill(self.session.cost() if self.resumed and self.session.exists() else {})
        self.price = TURN_COST
        self.command: Command | None = None
        self.call_id = ""  # of the tool call that has no result yet
        self.question = ""  # the id of the request that waits for an answer
        self.decision: Message | None = None
        self.denials: list[Message] = []
        self.busy = self.stopping = self.failed = False
        self.results = 0
        signal.signal(signal.SIGTERM, self.on_terminate)

    def on_terminate(self, _number: int, _frame: object) -> NoReturn:
        if self.command:
            self.command.kill()
        os._exit(128 + signal.SIGTERM)

    def serve(self) -> int:
        """Take turns until the input ends; the exit status is that of the last turn."""
        if self.resumed and not self.session.exists():
            error = f"No conversation found with session ID: {self.session.id}"
            self.result(began=time.monotonic(), errors=[error])
            fail(error)
        while self.waiting or not self.input.eof:
            if self.waiting:
                taken, self.waiting = self.waiting, []
                self.lifecycle("started", taken)
                self.take("\n".join(text for text, _ in taken))
                self.lifecycle("completed", taken)
            else:
                self.pump(None)
            if self.input.interrupted:
                break
        if self.session.exists():
            self.session.add("cost", json.dumps(self.bill.models))
        return 0 if self.input.interrupted else int(self.failed)

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
        elif kind == "control_response":
            response = message.get("response") or {}
            if self.question and response.get("request_id") == self.question:
                self.decision = response
        elif kind != "keep_alive":
            fail(f"Error: Expected message type 'user' or 'control', got '{kind}'")

    def lifecycle(self, state: str, messages: list[tuple[str, str]]) -> None:
        """Where a message stands, for those that came with an id of their own."""
        for _, message_id in messages:
            if message_id:
                self.out.told({"type": "command_lifecycle", "command_uuid": message_id, "state": state})

    def control(self, request_id: str, request: Message) -> None:
        subtype = request.get("subtype")
        answer: Message = {"still_queued": []}
        if subtype == "initialize":
            self.instructions = str(request.get("appendSystemPrompt", self.instructions))
            models = [{"value": value, "displayName": name, "description": told} for value, name, told in MODELS]
            about = {"argumentHint": "", "builtin": True}
            commands = [{"name": name, "description": told, **about} for name, told in COMMANDS.items()]
            answer = {"commands": commands, "agents": [], "output_style": "default", "models": models, "account": {}}
            answer |= {"pid": os.getpid(), "current_permission_mode": self.mode}
        elif subtype == "set_model":
            self.model = str(request.get("model") or MODEL)
            answer = {"model": self.model}
        elif subtype == "set_permission_mode":
            self.mode = str(request.get("mode", self.mode))
            answer = {"mode": self.mode}
        elif subtype != "interrupt":
            error = {"error": f"Unsupported control request subtype: {subtype}", "error_code": "unsupported_request"}
            refusal = {"subtype": "error", "request_id": request_id, **error}
            self.out.emit({"type": "control_response", "response": refusal})
            return
        success = {"subtype": "success", "request_id": request_id, "response": answer}
        self.out.emit({"type": "control_response", "response": success})
        self.stopping = self.stopping or subtype == "interrupt"

    def take(self, text: str) -> None:
        """Run one turn; it ends with exactly one result."""
        text = text.strip()
        command = text.split()[0] if text else ""
        local = command.startswith("/") and command[1:] in COMMANDS
        self.session.add("command" if local else "user", text)
        if self.runs:
            append(Path(self.runs), {"session": self.session.id, "pid": os.getpid(), "text": text})
        began, self.busy, self.stopping, self.failed = time.monotonic(), True, False, False
        self.price, self.denials = TURN_COST, []
        try:
            if self.is_spent():
                self.init()
                self.status("requesting")
                self.over_budget(began)
            elif local:
                self.local(command[1:], began)
            else:
                self.init()
                self.turn(text, began)
        finally:
            self.busy, self.command, self.call_id = False, None, ""

    def turn(self, text: str, began: float) -> None:
        """A turn that a model would answer."""
        try:
            answer = self.answer(text)
        except Interrupted:
            during = "tools" if self.call_id else "streaming"
            note = "[Request interrupted by user for tool use]" if self.call_id else "[Request interrupted by user]"
            if self.call_id:
                self.answered("The user stopped this call; what it did so far stays done.", rejected=True)
            self.out.user([{"type": "text", "text": note}])
            self.bill.add(self.model, usd=self.price, words_out=0)
            self.result(began=began, errors=["the turn was interrupted"], reason=f"aborted_{during}", calls=2)
            return
        self.session.add("assistant", answer)
        self.bill.add(self.model, usd=self.price, words_out=len(answer.split()))
        if self.is_spent():
            self.over_budget(began, stop_reason="end_turn", calls=1)
        else:
            self.result(began=began, text=answer, reason="completed", stop_reason="end_turn", calls=1)

    def local(self, name: str, began: float) -> None:
        """A slash command: the program answers it itself."""
        text = ""
        if name == "compact":
            self.status("compacting")
            self.status(None, compact_result="success")
            self.bill.add(self.model, usd=self.price, words_out=0)
        elif name == "clear":
            self.out.told({"type": "conversation_reset", "new_conversation_id": new_id(), "trigger": "clear"})
            self.session = Session(self.session.path.parent, new_id())
            self.session.add("command", "/clear")
            self.out.session, self.resumed, self.bill.models, self.bill.since = self.session.id, False, {}, {}
        elif name == "context":
            text = f"## Context\n\n{len(self.session.prompts())} prompts, and no tokens: there is no model."
        else:
            text = f"Cost of this session: ${self.bill.total():.4f}"
        self.init()
        if name == "compact":
            metadata = {"trigger": "manual", "pre_tokens": 0, "post_tokens": 0}
            self.out.told({"type": "system", "subtype": "compact_boundary", "compact_metadata": metadata})
            self.out.user("The conversation so far, made shorter.", isSynthetic=True)
        elif text:
            self.out.assistant(new_id(), "<synthetic>", {"type": "text", "text": text})
        self.result(began=began, text=text, local_command=name)

    def init(self) -> None:
        init: Message = {"type": "system", "subtype": "init", "cwd": str(Path.cwd()), "slash_commands": [*COMMANDS]}
        init |= {"tools": ["Task", "Bash", "Grep", "Read", "Write"], "mcp_servers": [], "agents": [], "skills": []}
        init |= {"model": self.model, "permissionMode": self.mode, "apiKeySource": "none"}
        self.out.told({**init, "claude_code_version": "0 (Kai offline agent)", "output_style": "default"})

    def status(self, status: str | None, **more: str) -> None:
        self.out.told({"type": "system", "subtype": "status", "status": status, **more})

    def is_spent(self) -> bool:
        """The budget is this process's alone, and looked at only when the money is gone."""
        return self.budget is not None and self.bill.spent >= self.budget

    def over_budget(self, began: float, *, stop_reason: str | None = None, calls: int = 0) -> None:
        amount = f"{self.budget or 0:.6f}".rstrip("0").rstrip(".")
        self.result(
            began=began,
            subtype="error_max_budget_usd",
            errors=[f"Reached maximum budget (${amount})"],
            reason="budget_exhausted",
            stop_reason=stop_reason,
            calls=calls,
        )

    def answer(self, text: str) -> str:
        """Say what belongs to this prompt, and return it."""
        if text.startswith(SAVE_MEMORY):
            return self.remember(f"saved at the end of session {self.session.id}", "done")
        text = PREFACE.sub("", text, count=1) if text.startswith("[Kai] ") else text
        word, _, rest = text.partition(" ")
        first, _, more = rest.partition(" ")
        if text.startswith("!") and text[1:].strip():
            return self.run(text[1:].strip())
        alone: dict[str, Callable[[], str]] = {
            "history": lambda: "".join(f"{n}. {prompt}\n" for n, prompt in enumerate(self.session.prompts(), 1)),
            "id": self.whoami,
            "prompt": lambda: fenced(self.instructions or "no instructions"),
            "env": lambda: fenced("\n".join(sorted(f"{name}={value}" for name, value in os.environ.items()))),
        }
        if text in alone:
            return self.say(words(alone[text]()))
        if word == "cost" and re.fullmatch(r"\d+(\.\d+)?", rest):
            self.price = float(rest)
            return self.say(words(f"This turn costs ${rest}."))
        if word in ("slow", "tools", "silent", "deaf") and rest.isdecimal():
            return self.count(word, int(rest))
        if word == "agent" and first.isdecimal() and more:
            return self.subagent(int(first), more)
        if word == "edit" and more:
            return self.edit(str(Path.cwd() / first), more)
        if word == "say" and rest:
            return self.say(words(rest))
        if word == "remember" and rest:
            return self.remember(rest, "I wrote it into my memory.")
        if text == "die":
            self.say(["I am "], whole=False)
            sys.stderr.write("the offline agent ends itself because it was told to `die`\n")
            sys.stderr.flush()
            os._exit(70)
        if told := received(text):
            return self.say(words(told))
        return self.say(words(HELP if text == "help" else f"I can't think about that: {HELP}"))

    def whoami(self) -> str:
        where = f"uid {os.getuid()}, pid {os.getpid()}, in `{Path.cwd()}`, session `{self.session.id}`"
        return f"{where}, model {self.model}."

    def count(self, word: str, number: int) -> str:
        """The prompts of a word and a number."""
        if word == "slow":
            return self.say((f"word{n} " for n in range(1, number + 1)), delay=WORD_DELAY)
        if word in ("silent", "deaf"):
            return self.say(self.silence(number, deaf=word == "deaf"))
        harmless = (
            ("Bash", {"command": "true", "description": "Does nothing"}),
            ("Read", {"file_path": os.devnull}),
            ("Grep", {"pattern": "nothing"}),
        )
        for n in range(number):
            self.call(*harmless[n % len(harmless)])
            self.pump(0)
            self.answered("")
        return self.say(words(f"That were {number} tool calls."))

    def silence(self, seconds: int, *, deaf: bool) -> Iterator[str]:
        """Words, and then none: a deaf agent doesn't even read what comes in."""
        yield "Before the silence."
        if deaf:
            time.sleep(seconds)
        else:
            self.pump_for(seconds)

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
        self.status("requesting")
        start = {"id": message_id, "type": "message", "role": "assistant", "model": self.model, "content": []}
        rest = {"stop_reason": None, "stop_sequence": None, "usage": usage()}
        self.out.event({"type": "message_start", "message": {**start, **rest}})
        return message_id, ""

    def close_message(self, stop_reason: str, words_out: int, also: Message | None = None) -> None:
        self.out.event({"type": "content_block_stop", "index": 0})
        delta = {"stop_reason": stop_reason, "stop_sequence": None}
        self.out.event({"type": "message_delta", "delta": delta, "usage": {"output_tokens": words_out}})
        if also:
            self.out.emit(also)
        self.out.event({"type": "message_stop"})

    def call(self, tool: str, inputs: Message, suggestions: list[Message] | None = None) -> Message:
        """A message with a tool call; with suggestions, one that needs a permission.

        Returns the input that it is to run with, which is not always that of the call. Raises Refused.
        """
        message_id, _ = self.open_message()
        self.call_id = f"toolu_{os.urandom(12).hex()}"
        block = {"type": "tool_use", "id": self.call_id, "name": tool, "input": inputs}
        self.out.event({"type": "content_block_start", "index": 0, "content_block": {**block, "input": {}}})
        delta = {"type": "input_json_delta", "partial_json": json.dumps(inputs)}
        self.out.event({"type": "content_block_delta", "index": 0, "delta": delta})
        self.out.assistant(message_id, self.model, block)
        if suggestions is None or self.may(tool, inputs):
            self.close_message("tool_use", 0)
            return inputs
        about = {"tool_name": tool, "tool_use_id": self.call_id}
        if not self.asks:
            self.close_message("tool_use", 0)
            reason = f"{tool} needs a permission, and there is nobody to ask."
            self.out.told({"type": "system", "subtype": "permission_denied", **about, "message": reason})
            raise self.denied(tool, inputs, reason)
        self.question, self.decision = new_id(), None
        request: Message = {"subtype": "can_use_tool", "display_name": tool, **about, "input": inputs}
        request |= {"permission_suggestions": suggestions}
        request |= {"description": inputs["description"]} if "description" in inputs else {}
        self.close_message("tool_use", 0, {"type": "control_request", "request_id": self.question, "request": request})
        return self.decided(tool, inputs)

    def may(self, tool: str, inputs: Message) -> bool:
        if self.mode == "bypassPermissions" or any(allows(rule, tool, inputs) for rule in self.allowed):
            return True
        return tool == "Write" and self.mode == "acceptEdits" and is_below(inputs["file_path"], str(Path.cwd()))

    def decided(self, tool: str, inputs: Message) -> Message:
        """Wait for the answer to the open question; an interrupt takes the question back. Raises Refused."""
        try:
            while self.decision is None:
                if self.input.eof:
                    raise self.denied(tool, inputs, "The input ended before anybody answered.")
                self.pump(None)
        except Interrupted:
            self.out.emit({"type": "control_cancel_request", "request_id": self.question})
            raise
        finally:
            self.question = ""
        answer = self.decision.get("response")
        if self.decision.get("subtype") != "success" or not isinstance(answer, dict):
            raise self.denied(tool, inputs, str(self.decision.get("error") or "The answer had no decision in it."))
        if answer.get("behavior") != "allow":
            raise self.denied(tool, inputs, str(answer.get("message") or "The answer was neither allow nor deny."))
        updated = answer.get("updatedInput")
        if not isinstance(updated, dict) or any(not isinstance(updated.get(key), str) for key in FIELDS[tool]):
            raise self.denied(tool, inputs, f"The permission had no updatedInput for {tool}.")
        for update in answer.get("updatedPermissions") or []:
            if update.get("type") == "addRules" and update.get("behavior") == "allow":
                self.allowed += [f"{rule['toolName']}({rule.get('ruleContent', '')})" for rule in update["rules"]]
            elif update.get("type") == "setMode":
                self.mode = str(update["mode"])
        return updated

    def denied(self, tool: str, inputs: Message, reason: str) -> Refused:
        self.denials.append({"tool_name": tool, "tool_use_id": self.call_id, "tool_input": inputs})
        self.answered(reason, error=True, told=f"Error: {reason}")
        return Refused(reason)

    def answered(self, content: str, *, error: bool = False, rejected: bool = False, told: object = None) -> None:
        """The result of the call that is open."""
        result = {"tool_use_id": self.call_id, "type": "tool_result", "content": content}
        self.call_id = ""
        self.out.user(
            [{**result, "is_error": error or rejected}],
            tool_use_result="User rejected tool use" if rejected else content if told is None else told,
        )

    def run(self, command: str) -> str:
        """A message with a tool call, the command itself, its result, and a message that shows it."""
        rule = {"toolName": "Bash", "ruleContent": command}
        suggestion: Message = {"type": "addRules", "rules": [rule], "behavior": "allow", "destination": "localSettings"}
        try:
            inputs = self.call("Bash", {"command": command, "description": "What you typed"}, [suggestion])
        except Refused as reason:
            return self.say(words(f"I did not run that: {reason}"))
        terminate = {signal.SIGTERM}
        signal.pthread_sigmask(signal.SIG_BLOCK, terminate)  # its handler has to know of the command
        try:
            shell = self.command = Command(inputs["command"])
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, terminate)
        try:
            self.wait(shell)
        finally:
            shell.close()
        self.command = None
        output, status = shell.text(), shell.status or 0
        content = output if status == 0 else f"Exit code {status}\n{output}"
        told = {"stdout": output, "stderr": "", "interrupted": False, "isImage": False}
        self.answered(content, error=status != 0, told=told)
        ending = f"Exit status {status}." if status >= 0 else f"Ended by {signal.Signals(-status).name}."
        shown = fenced(output) if output else "*(no output)*"
        return self.say(words(f"{shown}\n\n{ending}"))

    def edit(self, path: str, content: str) -> str:
        try:
            told = f"I wrote `{self.write(path, content)}`."
        except Refused as reason:
            told = f"I did not write that: {reason}"
        return self.say(words(told))

    def write(self, path: str, content: str) -> str:
        """A tool call that writes a whole file; returns where it was written. Raises Refused."""
        suggestion = {"type": "setMode", "mode": "acceptEdits", "destination": "session"}
        inputs = self.call("Write", {"file_path": path, "content": content}, [suggestion])
        target = Path(inputs["file_path"])
        told = {"type": "update" if target.exists() else "create", "filePath": str(target)}
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(inputs["content"], encoding="utf-8")
        except OSError as error:
            self.answered(str(error), error=True)
            raise Refused(str(error)) from None
        self.answered(f"{target} is written.", told={**told, "content": inputs["content"]})
        return str(target)

    def remember(self, line: str, answer: str) -> str:
        """Append to the memory file that the instructions name."""
        found = MEMORY.search(self.instructions)
        if not found:
            return self.say(words(answer if answer == "done" else "My instructions name no MEMORY.md."))
        path = Path(found[1] or found[2])
        try:
            before = path.read_text(encoding="utf-8") if path.exists() else ""
            gap = "\n" if before and not before.endswith("\n") else ""
            self.write(str(path), f"{before}{gap}{line}\n")
        except (Refused, OSError) as reason:
            return self.say(words(f"I did not write that into my memory: {reason}"))
        return self.say(words(answer))

    def subagent(self, seconds: int, task: str) -> str:
        self.call("Task", {"description": task, "prompt": task, "subagent_type": "general-purpose"})
        self.pump_for(seconds)
        self.answered(f"Done: {task}")
        return self.say(words(f"The agent is done with: {task}"))

    def wait(self, shell: Command) -> None:
        """Collect output until the shell is gone; raises Interrupted, which `close` then ends."""
        watched = [shell.output, shell.exited]
        while not select.select([shell.exited], [], [], 0)[0]:
            self.pump(None, watched)
            if shell.output in watched and not shell.collect():
                watched.remove(shell.output)
        shell.finish()

    def result(
        self,
        *,
        began: float,
        text: str = "",
        errors: list[str] | None = None,
        subtype: str = "error_during_execution",
        reason: str = "",
        stop_reason: str | None = None,
        calls: int = 0,
        **more: str,
    ) -> None:
        """The end of a turn; with errors, one that failed and has no text."""
        duration = round((time.monotonic() - began) * 1000)
        message: Message = {"type": "result", "subtype": "success", "is_error": False, "result": text}
        if errors is not None:
            message = {"type": "result", "subtype": subtype, "is_error": True, "errors": errors}
            self.failed = True
        message |= {"duration_ms": duration, "duration_api_ms": 0, "num_turns": calls, **self.bill.fields()}
        message |= {"usage": usage(len(text.split())), "permission_denials": self.denials}
        message |= {"terminal_reason": reason} if reason else {}
        message |= {"stop_reason": stop_reason, "result_index": self.results, **more}
        self.out.told(message)
        self.results += 1


def main(argv: list[str] | None = None) -> int:
    """Entry of the program."""
    agent = Agent(parse(argv, about=__doc__, model=MODEL))
    try:
        return agent.serve()
    except BrokenPipeError:
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
