"""Claude Code's stream-json, read into Events: text, tools, results, costs. No pipes, no processes.

What the CLI prints was measured, not promised, so the reader takes what it knows and leaves the rest: unknown kinds of
message are ignored, a field of the wrong type counts as missing, key order means nothing.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

import msgspec

from kai.config.rules import MODEL_NAME
from kai.interfaces import Event, Model
from kai.lib.log import printable

MOST_TEXT = 1 << 18
"""Characters of one turn's text that are kept and passed on."""
LONGEST_ID = 128
SUMMARY = 200
"""Characters of a tool call's summary."""
MOST_MODELS, MOST_COMMANDS, LONGEST_NAME = 50, 500, 64
MOST_CALLS = 1000
"""Tool calls of one turn that are remembered as running."""
MOST_BLOCKS = 1000
"""Blocks of one message that are compared with what was streamed."""
MOST_COST = 1e6
"""US dollars that one result can cost: sums stay numbers."""
_COMMAND_NAME = re.compile(r"[A-Za-z0-9_:-]{1,64}")
_STEPS = frozenset(("message_start", "content_block_start", "content_block_stop", "message_delta", "message_stop"))
_WORK = frozenset(
    (
        *("init", "status", "api_retry", "compact_boundary", "thinking_tokens", "permission_denied", "local_command"),
        *("hook_started", "hook_progress", "hook_response"),
        *("task_started", "task_progress", "task_updated", "task_notification"),
    )
)
"""System messages that tell of work. Waiting for the next try at the model (api_retry) is among them: Kai bounds the
tries, see `CLAUDE_CODE_MAX_RETRIES`."""
_SHOWN = {
    "Bash": "command",
    "Read": "file_path",
    "Edit": "file_path",
    "Write": "file_path",
    "NotebookEdit": "notebook_path",
    "Glob": "pattern",
    "Grep": "pattern",
    "WebFetch": "url",
    "WebSearch": "query",
    "Agent": "description",
    "Task": "description",
}
Message = dict[str, Any]


def parse(line: bytes) -> Message | None:
    """The object on a line, or None when it holds something else. Broken UTF-8 and half surrogates become marks."""
    try:
        value = msgspec.json.decode(line)
    except (ValueError, RecursionError):
        try:
            loose = json.loads(line.decode("utf-8", "replace"), strict=False)
            value = msgspec.json.decode(json.dumps(loose, ensure_ascii=False).encode("utf-8", "replace"))
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, dict) else None


def part(message: Message, key: str) -> Message:
    value = message.get(key)
    return value if isinstance(value, dict) else {}


def text(message: Message, key: str) -> str:
    value = message.get(key)
    return value if isinstance(value, str) else ""


def parts(message: Message, key: str) -> list[Message]:
    value = message.get(key)
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def number(message: Message, key: str) -> float:
    """A finite number, 0 for anything else."""
    value = message.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0.0
    try:
        found = float(value)
    except OverflowError:  # JSON has integers that no float holds
        return 0.0
    return found if math.isfinite(found) else 0.0


def errors(result: Message) -> str:
    """What a result says went wrong, without the CLI's notes to itself."""
    told = result.get("errors")
    lines = [line for line in told if isinstance(line, str)] if isinstance(told, list) else []
    lines = [line for line in lines if not line.startswith("[ede_diagnostic]")]
    return text(result, "result") or "; ".join(lines)


def aborted(result: Message) -> bool:
    """Whether the result is that of an interrupt."""
    return text(result, "terminal_reason").startswith("aborted")


def over_budget(result: Message) -> bool:
    """Whether the process has spent what it may."""
    return text(result, "subtype") == "error_max_budget_usd" or text(result, "terminal_reason") == "budget_exhausted"


def speaks(message: Message) -> bool:
    """Whether a message tells of work done or tried. What is empty, unknown or only keeps a line open tells of none."""
    match message.get("type"):
        case "result":
            return True
        case "stream_event":
            event = part(message, "event")
            if event.get("type") == "content_block_delta":
                delta = part(event, "delta")
                return any(key != "type" and value and isinstance(value, str) for key, value in delta.items())
            return text(event, "type") in _STEPS
        case "assistant" | "user":
            return bool(part(message, "message").get("content"))
        case "system":
            return text(message, "subtype") in _WORK
        case "tool_progress":
            return bool(text(message, "tool_use_id"))
        case "control_request":
            return bool(text(part(message, "request"), "subtype"))
        case "control_response":
            return bool(text(part(message, "response"), "request_id"))
        case _:
            return False


def models(told: Message) -> list[Model]:
    """What the CLI says at its start of the models that it offers."""
    found: dict[str, Model] = {}
    for model in parts(told, "models")[:MOST_MODELS]:
        name, title, description = (text(model, key) for key in ("value", "displayName", "description"))
        if MODEL_NAME.fullmatch(name):
            found.setdefault(name, Model(name, printable(title, LONGEST_NAME), printable(description, SUMMARY)))
    return list(found.values())


def commands(told: Message) -> list[str]:
    """What the CLI says at its start of its slash commands."""
    names = [text(command, "name") for command in parts(told, "commands")[:MOST_COMMANDS]]
    return [name for name in names if _COMMAND_NAME.fullmatch(name)]


def summary(tool: str, given: Message) -> str:
    """One short line that tells what a tool call does."""
    value = text(given, _SHOWN[tool]) if tool in _SHOWN else ""
    if not value:
        value = next((item for item in given.values() if isinstance(item, str) and item), "")
    return printable(" ".join(value[: 4 * SUMMARY].split()), SUMMARY)


class Meter:
    """What turns cost, in US dollars.

    The CLI's total is one over the process and, after a clean end, over the session before it too; only the difference
    of two results means something. Newer ones say themselves what was used since the last result.
    """

    def __init__(self, *, resumed: bool) -> None:
        self.sum = 0.0
        self._total: float | None = None if resumed else 0.0

    def reset(self) -> None:
        """The CLI began to count anew (/clear)."""
        self._total = 0.0

    def add(self, result: Message) -> float:
        """The cost since the result before this one."""
        total, before = number(result, "total_cost_usd"), self._total
        since = result.get("model_usage_since_last_result")
        if isinstance(since, dict):
            cost = sum(number(used, "costUSD") for used in since.values() if isinstance(used, dict))
        elif before is None:
            cost = 0.0  # its share in a total that includes the session before is unknown: rather none than all of it
        else:
            cost = total - before if total >= before else total
        self._total = total
        cost = min(max(cost, 0.0), MOST_COST)
        self.sum += cost
        return cost


class TurnReader:
    """One turn: what its messages say, as Events.

    The text is that of the top level, without sub-agents; its blocks are set apart by a blank line. A block comes in
    pieces and once more as a whole, or as a whole only: either way it counts once.
    """

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._length = 0
        self._gap = False
        self._message = ""
        self._streamed: list[list[str]] = []
        self._tools: dict[str, tuple[str, str]] = {}

    @property
    def full(self) -> bool:
        """Whether no more text is kept."""
        return self._length >= MOST_TEXT

    @property
    def text(self) -> str:
        """The turn's text so far."""
        return "".join(self._pieces)

    def take(self, message: Message) -> list[Event]:
        """Any message but a result."""
        if message.get("parent_tool_use_id") is not None:
            return []
        match message.get("type"):
            case "stream_event":
                return self._piece(part(message, "event"))
            case "assistant":
                return self._assistant(message)
            case "user":
                return self._tool_results(part(message, "message"))
            case _:
                return []

    def whole(self, given: str) -> list[Event]:
        """The text of a result, for a turn that printed nothing else."""
        return [] if self._pieces else self._emit(given)

    def _piece(self, event: Message) -> list[Event]:
        match event.get("type"):
            case "message_start":
                self._message = text(part(event, "message"), "id")
                self._streamed.clear()  # blocks of a message that broke off and comes again stay as they are
            case "content_block_start":
                block = part(event, "content_block")
                if block.get("type") == "text":
                    if len(self._streamed) < MOST_BLOCKS:
                        self._streamed.append([])
                    self._gap = True
                    return self._stream(text(block, "text"))
            case "content_block_delta":
                delta = part(event, "delta")
                if delta.get("type") == "text_delta":
                    if not self._streamed:
                        self._streamed.append([])
                    return self._stream(text(delta, "text"))
        return []

    def _stream(self, piece: str) -> list[Event]:
        if not piece or self.full:
            return []
        self._streamed[-1].append(piece)
        return self._emit(piece)

    def _assistant(self, message: Message) -> list[Event]:
        body = part(message, "message")
        blocks = parts(body, "content")
        if message.get("is_api_error_message") is True:
            return []  # the result says it too
        if text(body, "id") != self._message:
            self._streamed.clear()
        found: list[Event] = []
        for block in blocks:
            if block.get("type") == "text":
                found += self._block(text(block, "text"))
            elif block.get("type") == "tool_use":
                found.append(self._tool(block))
        return found

    def _block(self, whole: str) -> list[Event]:
        if not self._streamed:
            self._gap = True
            return self._emit(whole)
        streamed = "".join(self._streamed.pop(0))
        if self._streamed or not whole.startswith(streamed):
            return []  # the next block has begun, or it was streamed otherwise: what is on the screen stays
        return self._emit(whole[len(streamed) :])

    def _emit(self, piece: str) -> list[Event]:
        if not piece:
            return []
        if self._gap and self._length:
            piece = f"\n\n{piece}"
        self._gap = False
        piece = piece[: MOST_TEXT - self._length]
        if not piece:
            return []
        event = Event(kind="text", offset=self._length, text=piece)
        self._pieces.append(piece)
        self._length += len(piece)
        return [event]

    def _tool(self, block: Message) -> Event:
        name = printable(text(block, "name"), 80)
        line = summary(name, part(block, "input"))
        call = text(block, "id")[:LONGEST_ID]
        if len(self._tools) >= MOST_CALLS:
            del self._tools[next(iter(self._tools))]
        self._tools[call] = name, line
        return Event(kind="tool", call=call, tool=name, summary=line, running=True)

    def _tool_results(self, body: Message) -> list[Event]:
        found = []
        for block in parts(body, "content"):
            call = text(block, "tool_use_id")[:LONGEST_ID]
            known = self._tools.pop(call, None)
            if known and block.get("type") == "tool_result":
                found.append(Event(kind="tool", call=call, tool=known[0], summary=known[1], running=False))
        return found
