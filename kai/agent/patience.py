"""How long a turn may take. Silence is bounded, work is not: a quiet tool call and an open question are no silence."""

from __future__ import annotations

import time

import msgspec

from kai.agent.live import LiveTurn


class Limits(msgspec.Struct, frozen=True):
    """Seconds: of silence, of one tool call, of a whole turn. 0 is off."""

    timeout: float
    tool_timeout: float = 0
    max_turn: float = 0


def overdue(limits: Limits, live: LiveTurn, heard: float) -> str:
    """Why the turn is to be interrupted, in words for the user; "" while it may go on.

    `heard` is when the agent gave its last sign of life (time.monotonic()).
    """
    now = time.monotonic()
    if limits.max_turn and now - live.began > limits.max_turn:
        return f"The turn took longer than {limits.max_turn:g} s (max_turn) and was interrupted."
    if live.approvals:
        return ""
    if live.calls:
        call, began = min(live.call_began.items(), key=lambda each: each[1])
        if limits.tool_timeout and now - began > limits.tool_timeout:
            tool = live.calls[call].tool
            return f"{tool} took longer than {limits.tool_timeout:g} s (tool_timeout) and was interrupted."
        return ""
    if now - max(heard, live.last_call) > limits.timeout:
        return f"The agent said nothing for {limits.timeout:g} s (timeout) and was interrupted."
    return ""
