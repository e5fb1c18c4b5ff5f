"""What counts as a sign of life, and what the CLI says that it offers."""

from __future__ import annotations

from typing import Any

import pytest

from kai.agent.stream import models, speaks
from kai.interfaces import Model


def event(kind: Any, **fields: Any) -> dict[str, Any]:
    return {"type": "stream_event", "event": {"type": kind, **fields}}


@pytest.mark.parametrize(
    "message",
    [
        event("message_start"),
        event("content_block_delta", delta={"type": "text_delta", "text": "a"}),
        event("content_block_delta", delta={"type": "thinking_delta", "thinking": "hm"}),
        event("content_block_delta", delta={"type": "input_json_delta", "partial_json": "{"}),
        {"type": "assistant", "message": {"content": [{"type": "text", "text": "a"}]}},
        {"type": "assistant", "parent_tool_use_id": "toolu_1", "message": {"content": [{"type": "text", "text": "a"}]}},
        {"type": "user", "message": {"content": [{"type": "tool_result"}]}},
        {"type": "result"},
        {"type": "system", "subtype": "status"},
        {"type": "system", "subtype": "api_retry"},
        {"type": "tool_progress", "tool_use_id": "toolu_1", "elapsed_time_seconds": 30},
        {"type": "control_request", "request_id": "r", "request": {"subtype": "can_use_tool"}},
        {"type": "control_response", "response": {"request_id": "kai-2", "subtype": "success"}},
    ],
)
def test_what_tells_of_work_is_a_sign_of_life(message: dict[str, Any]) -> None:
    assert speaks(message)


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"type": None},
        {"type": ["system"]},
        {"type": "keep_alive"},
        {"type": "unheard-of", "text": "a"},
        {"type": "stream_event"},
        {"type": "stream_event", "event": "x"},
        event("ping"),
        event(["message_start"]),
        event("content_block_delta"),
        event("content_block_delta", delta={"type": "text_delta", "text": ""}),
        event("content_block_delta", delta={"type": "text_delta", "text": 7}),
        {"type": "assistant"},
        {"type": "assistant", "message": {"content": []}},
        {"type": "user", "message": 7},
        {"type": "system"},
        {"type": "system", "subtype": ["init"]},
        {"type": "system", "subtype": "ui_invalidate"},
        {"type": "tool_progress"},
        {"type": "control_request"},
        {"type": "control_request", "request": {"subtype": 7}},
        {"type": "control_response", "response": {}},
    ],
)
def test_noise_is_no_sign_of_life(message: dict[str, Any]) -> None:
    assert not speaks(message)


def test_a_model_that_is_told_twice_is_offered_once() -> None:
    told = [{"value": "opus", "displayName": "Opus"}, {"value": "sonnet"}, {"value": "opus", "displayName": "Another"}]
    assert models({"models": told}) == [Model("opus", "Opus"), Model("sonnet")]
