"""The backend for Claude Code: one `claude -p` with stream-json on its pipes, for as many turns as come.

Measured rules that shape this file: nothing is printed before the first input, so the start is an `initialize` request
and its answer; `init` comes at every turn; `is_error` decides, not `subtype`; a message sent while the CLI is busy
waits there; and the CLI runs turns of its own too (a background command ended), whose results are not ours. Our message
carries a uuid, and `command_lifecycle` says when its turn begins and ends; CLIs without that are read in order. Only a
turn of ours may ask for approval: of the CLI's own, nobody knows.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Literal

import msgspec

from kai.agent import images, permission
from kai.agent.backend import API, SESSION_ID, AgentBackend, AgentDied, Context, Ending
from kai.agent.failures import TOO_LONG, failure, why_it_died
from kai.agent.process import MAX_LINE, AgentProcess
from kai.agent.questions import Questions
from kai.agent.stream import (
    Message,
    Meter,
    TurnReader,
    aborted,
    commands,
    errors,
    models,
    over_budget,
    parse,
    part,
    speaks,
    text,
)
from kai.interfaces import Event, Model, Part
from kai.lib.log import printable

LEAST_BUDGET = 1e-6
"""US dollars."""
SLOWEST_START = 30.0
"""Seconds until the answer to `initialize`; 0.3 is usual."""
LAST_WORDS = 2.0
"""Seconds between the end of the output and the process's, or between the end of a turn and its result."""
FLAGS = (
    *("-p", "--input-format", "stream-json", "--output-format", "stream-json"),
    *("--verbose", "--include-partial-messages"),
    *("--system-prompt-snapshot", "off"),  # else a resumed session keeps its old instructions
)
UNASKED = ("--permission-mode", "bypassPermissions")
ASKED = ("--permission-mode", "default", "--permission-prompt-tool", "stdio")
REPOSITORY_OFF = ("--setting-sources", "user", "--strict-mcp-config")
"""Without these, a cloned repository's hooks, MCP servers and ANTHROPIC_BASE_URL are obeyed."""
ENVIRONMENT = {
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "DISABLE_AUTOUPDATER": "1",
    "CLAUDE_CODE_MAX_RETRIES": "4",  # delays double from 0.6 s: 9 s of silence at a 401 instead of minutes
    "ENABLE_TOOL_SEARCH": "false",
    "CLAUDE_CODE_DISABLE_CRON": "1",  # its own jobs live in the process and would vanish with it; Kai's don't
}
OWN_TOOLS = (
    *("schedule_job", "list_jobs", "get_job", "update_job", "delete_job"),
    *("send_message", "send_file", "list_services"),
)
"""Kai's tools that need no approval: what they do stays between the agent and its user. `call_service` leaves the host.
"""
Reason = Literal["", "budget", "died"]
logger = logging.getLogger(__name__)


def request(context: Context) -> Message:
    """What kai-inner is asked for."""
    command = [*context.command, *FLAGS, *(ASKED if context.ask else UNASKED)]
    if context.ask:
        allowed = [pattern for pattern in context.allowed if permission.is_rule(pattern)]
        if context.memory:  # its memory is its own; `//` begins an absolute path in the CLI's rules
            allowed += [f"{tool}(/{context.memory}/**)" for tool in ("Read", "Edit", "Write")]
            command += ["--add-dir", str(context.memory)]
        allowed += [f"Read(/{context.files}/**)"] if context.files else []
        allowed += [f"mcp__kai__{name}" for name in OWN_TOOLS] if context.tools else []
        command += ["--allowedTools", *allowed] if allowed else []
    if context.budget_usd > 0:  # what a sum of floats leaves over would be printed as 0, and the CLI refuses to start
        command += ["--max-budget-usd", f"{max(context.budget_usd, LEAST_BUDGET):.6f}"]
    command += [] if context.trust_settings else REPOSITORY_OFF
    command += ["--mcp-config", _servers(context)] if context.tools else []
    command += ["--model", context.model] if context.model else []
    command += ["--resume", context.session] if context.session else []
    return {
        "verb": "agent",
        "command": command,
        "workspace": str(context.workspace),
        "environment": {**ENVIRONMENT, **dict(context.environment)},
        "model_door": context.model_door,
    }


def _servers(context: Context) -> str:
    """Kai's own MCP server, and with --strict-mcp-config no other."""
    program, *arguments = context.tools
    api = dict(context.environment).get(API, "")
    server = {"type": "stdio", "command": program, "args": arguments, "env": {API: api}}
    return json.dumps({"mcpServers": {"kai": server}})


async def _content(prompt: list[Part]) -> list[Message]:
    """A prompt as blocks. The CLI makes images smaller by itself, to what its model takes."""
    shown = await asyncio.to_thread(images.load, prompt) if any(piece.mime for piece in prompt) else {}
    content: list[Message] = []
    for piece in prompt:
        if piece.text:
            content.append({"type": "text", "text": piece.text})
        if piece.name in shown:
            source = {"type": "base64", "media_type": piece.mime, "data": shown[piece.name]}
            content.append({"type": "image", "source": source})
    return content


class _Turn:
    """The turn that was asked for. `begun`: what comes now belongs to it and not to a turn of the CLI's own."""

    def __init__(self, *, begun: bool) -> None:
        self.uuid = str(uuid.uuid4())
        self.reader = TurnReader()
        self.events: asyncio.Queue[Event] = asyncio.Queue(maxsize=1)
        self.begun = begun
        self.started = self.interrupting = self.skipped = self.left = False

    async def tell(self, *events: Event) -> None:
        """Hand over; waits for the listener, so that a slow one slows the agent down."""
        for event in events:
            if not self.left:
                await self.events.put(event)

    def leave(self) -> None:
        """Nobody listens any more: who waits to hand over goes on."""
        self.left = True
        while not self.events.empty():
            self.events.get_nowait()


class ClaudeBackend(AgentBackend):
    """One process of Claude Code. Make it, `start` it, give it turns one after another, `close` it.

    What the CLI's own turns cost is in `cost_usd` and in the next `done`, so that no budget misses it.
    """

    def __init__(self) -> None:
        self._process: AgentProcess | None = None
        self._reading: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None
        self._waiting: asyncio.Task[None] | None = None
        self._turn: _Turn | None = None
        self._meter = Meter(resumed=False)
        self._told_cost = 0.0
        self._session = ""
        self._heard = time.monotonic()
        self._models: list[Model] = []
        self._commands: list[str] = []
        self._resumed = self._alive = False
        self._own_turn = self._lifecycle = False
        self._requests = 0
        self._garbage: list[str] = []

    @property
    def alive(self) -> bool:
        return self._alive

    @property
    def session(self) -> str:
        return self._session

    @property
    def heard(self) -> float:
        return self._heard

    @property
    def models(self) -> list[Model]:
        return self._models

    @property
    def commands(self) -> list[str]:
        return self._commands

    @property
    def cost_usd(self) -> float:
        return self._meter.sum

    # ---- what the supervisor asks for ----

    async def start(self, context: Context) -> None:
        self._context = context
        self._session, self._resumed = context.session, bool(context.session)
        self._meter = Meter(resumed=self._resumed)
        self._questions = Questions(context, self._send)
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        try:
            self._process = await AgentProcess.spawn(context.door)
        except OSError as error:
            program = context.door[0]
            raise AgentDied(f"{program} can't be run: {error.strerror}; the operator can install Kai again.") from None
        self._reading = asyncio.create_task(self._read(self._process))
        self._send(request(context))
        self._control("initialize", appendSystemPrompt=context.system_prompt)
        try:
            async with asyncio.timeout(SLOWEST_START):
                await self._ready
        except TimeoutError:
            lines = [*self._garbage, *await self._process.last_words()]
            await self.close()
            raise AgentDied("\n".join((f"The agent said nothing for {SLOWEST_START:g} s.", *lines))) from None
        except BaseException:
            await self.close()
            raise

    async def turn(self, prompt: list[Part]) -> AsyncGenerator[Event, None]:
        if self._turn:
            raise RuntimeError("a turn is running already")
        if not self._alive:
            yield Event(kind="done", outcome="failed", error="The agent is not running.")
            return
        turn = self._turn = _Turn(begun=not (self._own_turn or self._lifecycle))
        self._questions.begin()
        try:
            content = await _content(prompt)
            if turn.interrupting:  # meanwhile
                await self._end(turn, Event(kind="done", outcome="interrupted"))
            else:
                self._send({"type": "user", "uuid": turn.uuid, "message": {"role": "user", "content": content}})
            while True:
                event = await turn.events.get()
                yield event
                if event.kind == "done":
                    return
        finally:
            turn.leave()
            if self._turn is turn:
                self._turn, self._own_turn = None, True  # it goes on without us, and its result is nobody's
                self._questions.end()

    async def interrupt(self) -> None:
        if self._turn and self._alive:  # an idle CLI answers an interrupt and does nothing
            self._turn.interrupting = True
            self._control("interrupt")

    async def answer(self, approval: str, *, allow: bool, remember: bool = False, message: str = "") -> None:
        if self._process:
            self._questions.answer(approval, allow=allow, remember=remember, message=message)

    async def close(self) -> Ending:
        self._alive = False
        ending: Ending = await self._process.close() if self._process else "left"
        if self._reading:
            await asyncio.wait({self._reading}, timeout=LAST_WORDS)
            self._reading.cancel()
        if self._waiting:
            self._waiting.cancel()
        if self._turn:  # not waited for: its listener may be the one who closes
            self._ending = asyncio.create_task(self._fail(self._turn, "The agent's process was ended."))
        return ending

    # ---- what the agent says ----

    async def _read(self, process: AgentProcess) -> None:
        """Takes in every line, in turns and between them, until the agent's end."""
        try:
            async for line in process.lines():
                await self._line(line)
        except Exception:
            logger.exception("what the agent said could not be read")
        self._alive = False
        with suppress(TimeoutError):
            await asyncio.wait_for(process.gone.wait(), LAST_WORDS)
        tail = await process.last_words()
        if not self._ready.done():
            self._ready.set_exception(why_it_died(process.status, tail, self._context))
        if self._turn:
            told = f"The agent ended in the middle of the turn ({process.status})."
            await self._fail(self._turn, told, *tail, reason="died")

    async def _line(self, line: bytes | None) -> None:
        if line is None:
            await self._too_long()
            return
        if not line.strip():
            return
        message = parse(line)
        if message is None:
            self._not_json(line)
            return
        self._hear(message)
        match message.get("type"):
            case "control_response":
                self._answered(part(message, "response"))
            case "control_request":
                turn, asked = self._turn, part(message, "request")
                listening = turn is not None and turn.begun and not turn.interrupting
                await self._tell(self._questions.take(text(message, "request_id"), asked, listening=listening))
            case "control_cancel_request":
                await self._tell(self._questions.withdraw(text(message, "request_id")))
            case "command_lifecycle":
                await self._step(text(message, "command_uuid"), text(message, "state"))
            case "result":
                await self._result(message)
            case kind:
                await self._said(kind, message)

    async def _tell(self, event: Event | None) -> None:
        if self._turn and event:
            await self._turn.tell(event)

    def _hear(self, message: Message) -> None:
        """Whether this is a sign of life: text that nobody will see is none."""
        unseen = self._turn is not None and self._turn.reader.full
        if speaks(message) and not (unseen and message.get("type") in ("stream_event", "assistant")):
            self._heard = time.monotonic()

    async def _said(self, kind: object, message: Message) -> None:
        turn = self._turn
        if kind == "conversation_reset":  # /clear: the next init names the new session
            self._session = ""
            self._meter.reset()
        if kind == "system" and message.get("subtype") == "init":
            self._follow_session(message)
            if turn and turn.begun:
                await self._started(turn)
            else:
                self._own_turn = True
        if turn and turn.begun:
            await turn.tell(*turn.reader.take(message))

    def _follow_session(self, message: Message) -> None:
        session = text(message, "session_id")
        if SESSION_ID.fullmatch(session):
            self._session = session

    async def _started(self, turn: _Turn) -> None:
        if not turn.started:
            turn.started = True
            event = Event(kind="started", session=self._session, resumed=self._resumed)
            self._resumed = False
            await turn.tell(event)

    async def _step(self, command: str, state: str) -> None:
        """How far the CLI is with a message."""
        self._lifecycle = True
        turn = self._turn
        if turn is None or command != turn.uuid:
            return
        if state == "started":
            turn.begun, self._own_turn = True, False
            if self._session:  # a message that the CLI takes into a turn of its own gets no init
                await self._started(turn)
            if turn.interrupting:  # the first one met the turn that ours waited for
                self._control("interrupt")
        elif state in ("completed", "cancelled", "discarded", "refused"):
            self._waiting = asyncio.create_task(self._without_result(turn, state))

    async def _without_result(self, turn: _Turn, state: str) -> None:
        """The CLI is done with our message. Its result comes about now, or it was too long to read, or never."""
        await asyncio.sleep(LAST_WORDS)
        if self._turn is not turn:
            return
        if turn.interrupting:
            await self._end(turn, Event(kind="done", outcome="interrupted"))
        elif turn.skipped:
            await self._fail(turn, TOO_LONG)
        else:
            await self._fail(turn, f"The agent ended the turn without a result ({state}).")

    async def _result(self, message: Message) -> None:
        self._meter.add(message)
        if not self._ready.done():
            self._ready.set_exception(why_it_died("", [errors(message)], self._context))
            return
        self._follow_session(message)
        turn = self._turn
        if turn is None or not turn.begun:
            logger.debug("the agent took a turn of its own")
            self._own_turn = False
            if turn and not self._lifecycle:
                turn.begun = True
                if turn.interrupting:
                    self._control("interrupt")
            return
        await self._started(turn)
        verdict = message.get("is_error")
        failed = verdict if isinstance(verdict, bool) else message.get("subtype") != "success"
        if not failed:
            await turn.tell(*turn.reader.whole(text(message, "result")))
            await self._end(turn, Event(kind="done", outcome="ok"))
        elif over_budget(message):
            await self._fail(turn, errors(message), reason="budget")
        elif aborted(message) or (turn.interrupting and message.get("subtype") == "error_during_execution"):
            await self._end(turn, Event(kind="done", outcome="interrupted"))
        else:
            await self._fail(turn, failure(message, self._context))

    async def _fail(self, turn: _Turn, *lines: str, reason: Reason = "") -> None:
        await self._end(turn, Event(kind="done", outcome="failed", error="\n".join(lines), reason=reason))

    async def _end(self, turn: _Turn, done: Event) -> None:
        self._turn = None
        self._questions.end()
        done.text, done.session = turn.reader.text, self._session
        done.cost_usd, self._told_cost = self._meter.sum - self._told_cost, self._meter.sum
        await turn.tell(done)

    async def _too_long(self) -> None:
        logger.warning("skipped a line of the agent that was longer than %d MiB", MAX_LINE >> 20)
        if self._turn and self._turn.begun:
            self._turn.skipped = True
            if not self._lifecycle:  # it may have been the result, and nothing else would tell: no further turn here
                self._alive = False
                await self._fail(self._turn, TOO_LONG)

    def _not_json(self, line: bytes) -> None:
        if not self._garbage:
            shown = printable(line[:400].decode("utf-8", "replace"), 200)
            self._garbage.append(f"It printed what is no stream-json: {shown}")
            logger.debug("ignored, as every line like it: %s", shown)

    # ---- what the agent is told ----

    def _answered(self, response: Message) -> None:
        if text(response, "request_id") != "kai-1" or self._ready.done():
            return
        if response.get("subtype") == "success":
            told = part(response, "response")
            self._models, self._commands = models(told), commands(told)
            self._alive = True
            self._ready.set_result(None)
        else:
            self._ready.set_exception(AgentDied(f"The agent refused to start: {text(response, 'error')}"))

    def _control(self, subtype: str, **fields: str) -> None:
        self._requests += 1
        asked = {"subtype": subtype, **fields}
        self._send({"type": "control_request", "request_id": f"kai-{self._requests}", "request": asked})

    def _send(self, message: Message) -> None:
        assert self._process
        self._process.write(msgspec.json.encode(message) + b"\n")
