"""The pieces that stream-json is read with: lines, texts, calls, prices. Without a process and without a backend."""

from __future__ import annotations

import gc
import json
import tracemalloc
from collections.abc import Iterable
from typing import Any

import pytest

from kai.agent.process import LineSplitter
from kai.agent.stream import MOST_CALLS, MOST_TEXT, Meter, TurnReader, commands, models, parse, summary
from kai.interfaces import Model


def whole(text: str) -> dict[str, Any]:
    content = [{"type": "text", "text": text}]
    return {"type": "assistant", "message": {"id": "m", "content": content}, "parent_tool_use_id": None}


def test_text_that_never_ends_is_cut() -> None:
    reader = TurnReader()
    for _ in range(20):
        reader.take(whole("x" * (MOST_TEXT // 10)))
    assert len(reader.text) == MOST_TEXT


def call(number: int) -> dict[str, Any]:
    block = {"type": "tool_use", "id": f"{number:0200}"[::-1], "name": "n" * 200, "input": {"x": "b" * 500}}
    return {"type": "assistant", "message": {"id": "m", "content": [block]}}


def grown(reader: TurnReader, messages: Iterable[dict[str, Any]]) -> int:
    """Bytes by which the memory grows while these are read."""
    gc.collect()
    tracemalloc.start()
    try:
        for message in messages:
            reader.take(message)
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def test_what_never_ends_is_not_kept() -> None:
    reader = TurnReader()
    piece = {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "x" * 1000}}
    empty = {"type": "content_block_delta", "delta": {"type": "text_delta", "text": ""}}
    start = {"type": "content_block_start", "content_block": {"type": "text", "text": ""}}
    for event, most in ((empty, 10_000), (start, 200_000), (piece, 4 * MOST_TEXT)):
        same = {"type": "stream_event", "event": event}
        assert grown(reader, (json.loads(json.dumps(same)) for _ in range(5000))) < most
    assert reader.full
    assert grown(reader, (call(n) for n in range(5 * MOST_CALLS))) < 1000 * MOST_CALLS


def test_of_calls_that_never_end_the_newest_are_remembered() -> None:
    reader = TurnReader()
    for number in range(MOST_CALLS + 1):
        (began,) = reader.take(call(number))
        assert began.running
    results = [{"type": "tool_result", "tool_use_id": f"{number:0200}"[::-1]} for number in (0, MOST_CALLS)]
    (ended,) = reader.take({"type": "user", "message": {"content": results}})
    assert (ended.running, ended.call, len(ended.tool)) == (False, began.call, 80)


def test_what_the_agent_offers_is_what_can_be_chosen() -> None:
    offered = [
        {"value": "opus", "displayName": "Opus\x1b[1m", "description": "d" * 500},
        {"value": "--dangerous"},
        {"value": "a b"},
        {"value": 7},
        "sonnet",
        {"displayName": "nameless"},
        {"value": "haiku", "displayName": None, "description": []},
    ]
    found = models({"models": offered})
    assert [model.name for model in found] == ["opus", "haiku"]
    assert found[0] == Model("opus", "Opus [1m", "d" * 199 + "…")
    assert found[1] == Model("haiku", "", "")
    assert len(models({"models": [{"value": f"m{n}"} for n in range(1000)]})) == 50
    listed = [{"name": name} for name in ("compact", "mcp:do-it", "../x", "a b", "", "é", "x" * 65)]
    assert commands({"commands": [*listed, 7, {"name": 7}]}) == ["compact", "mcp:do-it"]
    wrongs: list[Any] = [None, 7, "x", {}, [[]]]
    for wrong in wrongs:
        assert (models({"models": wrong}), commands({"commands": wrong})) == ([], [])


def test_a_block_streamed_in_part_is_completed_by_its_whole() -> None:
    reader = TurnReader()
    events = [{"type": "message_start", "message": {"id": "m"}}]
    events.append({"type": "content_block_start", "content_block": {"type": "text", "text": ""}})
    events.append({"type": "content_block_delta", "delta": {"type": "text_delta", "text": "one "}})
    for event in events:
        reader.take({"type": "stream_event", "event": event})
    assert [event.text for event in reader.take(whole("one two"))] == ["two"]


def test_a_message_that_broke_off_and_comes_whole_is_a_block_of_its_own() -> None:
    reader = TurnReader()
    start = {"type": "message_start", "message": {"id": "first"}}
    delta = {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "hal"}}
    for event in (start, {"type": "content_block_start", "content_block": {"type": "text"}}, delta):
        reader.take({"type": "stream_event", "event": event})
    reader.take(whole("half and whole"))
    assert reader.text == "hal\n\nhalf and whole"


@pytest.mark.parametrize(
    ("tool", "given", "line"),
    [
        ("Bash", {"description": "d", "command": "pytest -q\n  -x"}, "pytest -q -x"),
        ("Edit", {"file_path": "/a/b.py", "old_string": "x"}, "/a/b.py"),
        ("Grep", {"pattern": "def ", "path": "/a"}, "def"),
        ("mcp__kai__echo", {"n": 7, "text": "hi"}, "hi"),
        ("Read", {"file_path": 7}, ""),
        ("mcp__kai__echo", {"n": 7, "text": "hi", "": "x"}, "hi"),
        ("Bash", {"command": "\x1b[31mred" + "y" * 500}, " [31mred" + "y" * 191 + "…"),
    ],
)
def test_a_tool_call_is_told_in_one_short_line(tool: str, given: dict[str, Any], line: str) -> None:
    assert summary(tool, given) == line


def test_costs_of_an_older_cli_that_resumes_begin_with_the_second_result() -> None:
    meter = Meter(resumed=True)
    assert meter.add({"total_cost_usd": 3.0}) == 0.0
    assert meter.add({"total_cost_usd": 3.5}) == 0.5
    assert meter.add({"total_cost_usd": 0.25}) == 0.25  # it began anew
    assert meter.add({"total_cost_usd": float("nan")}) == 0.0
    assert meter.add({"total_cost_usd": 1e308}) == 1e6  # no price, and sums of it would be no numbers


@pytest.mark.parametrize("step", [1, 3, 1000])
def test_lines_are_cut_the_same_however_they_arrive(step: int) -> None:
    data = b"one\n\ntwo\n" + b"z" * 50 + b"\nthree\nrest"
    splitter = LineSplitter(limit=20)
    lines: list[bytes | None] = []
    for at in range(0, len(data), step):
        lines += splitter.feed(data[at : at + step])
        assert len(splitter.rest) <= 20
    assert lines == [b"one", b"", b"two", None, b"three"]
    assert bytes(splitter.rest) == b"rest"


def test_only_an_object_is_a_message() -> None:
    assert parse(b'{"a":1}\r') == {"a": 1}
    assert parse(b"7") is None
    assert parse(b"") is None
