"""What one process of Claude Code asks of Kai: questions that wait for a person, and those that nobody is asked."""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec

from kai.agent import permission
from kai.agent.backend import Context
from kai.agent.stream import Message, part, text
from kai.interfaces import Event

LONGEST_ID = 128
"""Characters of a request's id: no honest one is longer, and answers that nobody reads stay in our memory."""
MOST_OPEN, LONGEST = 16, 1 << 20
"""Questions that wait at the same time, and bytes of one: more is nothing that a person can decide."""
MOST_ANSWERED = 4 << 20
"""Bytes of answers in one turn that no person gave: an agent that asks without end gets none any more."""
NOBODY = "Nobody can be asked now, so this is denied."
TOO_MANY = "Too many questions at the same time: ask one after another."
TOO_LONG = "This is too long to be shown to the user: do it in smaller steps."
NO_LISTS = "The user can't choose from a list here: end your turn with the question as text, and he writes back."
logger = logging.getLogger(__name__)


class Questions:
    """`send` takes the answers to the process. What `context.allowed` stands for is not asked again."""

    def __init__(self, context: Context, send: Callable[[Message], None]) -> None:
        self._ask, self._send = context.ask, send
        self._open: dict[str, tuple[str, Message]] = {}
        self._remembered = set(context.allowed)
        self._asked = self._answered = 0

    def take(self, request_id: str, request: Message, *, listening: bool) -> Event | None:
        """A control request of the agent: answered here, or the event of a question that now waits for `answer`.

        `listening`: there is a turn of the user's in which he can be asked.
        """
        if len(request_id) > LONGEST_ID or any(request_id == known for known, _ in self._open.values()):
            return None
        if text(request, "subtype") != "can_use_tool" or not self._ask:
            self._refuse(request_id)
        elif not listening:
            self._forbid(request_id, NOBODY)
        elif text(request, "tool_name") == "AskUserQuestion":
            self._forbid(request_id, NO_LISTS)
        else:
            try:
                return self._question(request_id, request)
            except RecursionError:
                self._forbid(request_id, TOO_LONG)
        return None

    def _question(self, request_id: str, request: Message) -> Event | None:
        if len(self._open) >= MOST_OPEN:
            self._forbid(request_id, TOO_MANY)
        elif len(msgspec.json.encode(request)) > LONGEST:
            self._forbid(request_id, TOO_LONG)
        elif permission.exact(request) in self._remembered:
            self._decide(request_id, _permission(request, []), nobody=True)
        else:
            asked = permission.question(request, f"q{self._asked + 1}")
            self._asked += 1
            self._open[asked.approval] = request_id, request
            return asked
        return None

    def answer(self, approval: str, *, allow: bool, remember: bool, message: str) -> None:
        """A person's decision. An unknown id is ignored."""
        if approval not in self._open:
            return
        request_id, request = self._open.pop(approval)
        if not allow:
            self._decide(request_id, _denial(message or "The user denied this."))
            return
        if remember:
            self._remembered.add(permission.exact(request))
        self._decide(request_id, _permission(request, permission.rules(request) if remember else []))

    def withdraw(self, request_id: str) -> Event | None:
        """The agent no longer asks."""
        for approval, (known, _) in self._open.items():
            if known == request_id:
                del self._open[approval]
                return Event(kind="approval", approval=approval, answer="withdrawn")
        return None

    def begin(self) -> None:
        """A turn begins."""
        self._answered = 0

    def end(self) -> None:
        """The turn is over, and nobody answers what is open; an agent that still waits goes on without it."""
        for request_id, _ in self._open.values():
            self._forbid(request_id, NOBODY)
        self._open.clear()

    def _refuse(self, request_id: str) -> None:
        """The agent asks for something that was not offered to it; without an answer it would wait for ever."""
        error = "Kai does not answer this request."
        self._reply({"subtype": "error", "request_id": request_id, "error": error}, nobody=True)

    def _forbid(self, request_id: str, message: str) -> None:
        self._decide(request_id, _denial(message), nobody=True)

    def _decide(self, request_id: str, decision: Message, *, nobody: bool = False) -> None:
        self._reply({"subtype": "success", "request_id": request_id, "response": decision}, nobody=nobody)

    def _reply(self, response: Message, *, nobody: bool) -> None:
        if nobody:
            before, self._answered = self._answered, self._answered + len(msgspec.json.encode(response))
            if self._answered > MOST_ANSWERED:
                if before <= MOST_ANSWERED:
                    logger.warning("the agent asks without end; it gets no answer any more in this turn")
                return
        self._send({"type": "control_response", "response": response})


def _permission(request: Message, rules: list[Message]) -> Message:
    decision: Message = {"behavior": "allow", "updatedInput": part(request, "input")}
    if rules:
        update = {"type": "addRules", "rules": rules, "behavior": "allow", "destination": "session"}
        decision["updatedPermissions"] = [update]
    return decision


def _denial(message: str) -> Message:
    return {"behavior": "deny", "message": message}
