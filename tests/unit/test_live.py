"""A running turn as its followers see it, and how long it may take."""

from __future__ import annotations

import asyncio
import time

import pytest

from kai.agent.live import LiveTurn
from kai.agent.patience import Limits, overdue
from kai.interfaces import Event, Ran


def call(number: int, tool: str = "Bash", *, running: bool = True) -> Event:
    return Event(kind="tool", call=f"c{number}", tool=tool, summary=f"do {number}", running=running)


def question(name: str, *, running: bool = True) -> Event:
    return Event(kind="approval", approval=name, tool="Bash", running=running, answer="" if running else "deny")


async def seen(live: LiveTurn) -> list[Event]:
    """What somebody who follows only now is told, up to the end."""
    found: list[Event] = []

    async def emit(event: Event) -> None:
        found.append(event)

    live.finish(Event(kind="done", outcome="ok"))
    found.append(await live.follow(emit))
    return found


def test_the_newest_call_that_runs_is_told_and_those_that_ended_are_counted() -> None:
    live = LiveTurn("t")
    for event in (call(1), call(2, "Agent"), call(3, "Read"), call(3, "Read", running=False)):
        live.apply(event)
    assert live.tool is not None
    assert (live.tool.tool, live.tool.summary, live.tool.running) == ("Agent", "do 2", True)
    assert live.tool.ran == [Ran("Read", 1)]
    assert abs(live.tool.since - time.time()) < 1


def test_after_the_last_call_nothing_runs_and_the_counts_stay() -> None:
    live = LiveTurn("t")
    for number in range(3):
        live.apply(call(number))
        live.apply(call(number, running=False))
    assert live.tool == Event(kind="tool", ran=[Ran("Bash", 3)])


def test_an_agent_that_never_ends_its_calls_costs_no_memory() -> None:
    live = LiveTurn("t")
    for number in range(10_000):
        live.apply(call(number, f"tool {number}"))
        live.apply(call(number + 100_000, f"tool {number}", running=False))
    assert len(live.calls) <= 64
    assert len(live.ran) <= 33
    assert sum(live.ran.values()) == 10_000


async def test_who_follows_late_gets_the_whole_picture() -> None:
    live = LiveTurn("t")
    for event in (
        Event(kind="started", session="s"),
        Event(kind="text", text="one "),
        call(1),
        Event(kind="text", text="two"),
        question("a"),
        question("a", running=False),
        question("b"),
    ):
        live.apply(event)
    kinds = [(event.kind, event.text or event.summary or event.approval) for event in await seen(live)]
    assert kinds == [
        ("started", ""),
        ("text", "one two"),
        ("tool", "do 1"),
        ("approval", "a"),
        ("approval", "a"),
        ("approval", "b"),
        ("done", ""),
    ]


async def test_who_follows_from_the_start_gets_every_step_once() -> None:
    live, found = LiveTurn("t"), []

    async def emit(event: Event) -> None:
        found.append(event)

    following = asyncio.create_task(live.follow(emit))
    for text in ("a", "b", "c"):
        live.apply(Event(kind="text", text=text))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    live.finish(Event(kind="done", outcome="ok"))
    assert (await following).kind == "done"
    assert [(event.offset, event.text) for event in found] == [(0, "a"), (1, "b"), (2, "c")]


@pytest.mark.parametrize(
    ("limits", "events", "silent", "expected"),
    [
        (Limits(timeout=45), [], 44, ""),
        (Limits(timeout=45), [], 46, "The agent said nothing for 45 s (timeout) and was interrupted."),
        (Limits(timeout=45), [call(1)], 4600, ""),
        (Limits(timeout=45), [call(1), call(1, running=False)], 4600, "said nothing for 45 s"),
        (Limits(timeout=45), [question("a")], 4600, ""),
        (Limits(timeout=45), [question("a"), question("a", running=False)], 4600, "said nothing for 45 s"),
        (Limits(timeout=45, tool_timeout=60), [call(1)], 59, ""),
        (Limits(timeout=45, tool_timeout=60), [call(1)], 61, "Bash took longer than 60 s (tool_timeout)"),
        (Limits(timeout=45, tool_timeout=60), [call(1), question("a")], 61, ""),
        (Limits(timeout=45, max_turn=100), [call(1)], 101, "The turn took longer than 100 s (max_turn)"),
        (Limits(timeout=45, max_turn=100), [question("a")], 101, "The turn took longer than 100 s (max_turn)"),
    ],
)
def test_silence_is_bounded_and_work_is_not(
    limits: Limits, events: list[Event], silent: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = LiveTurn("t")
    for event in events:
        live.apply(event)
    heard = time.monotonic()
    now, clock = time.monotonic(), time.time()
    monkeypatch.setattr(time, "monotonic", lambda: now + silent)
    monkeypatch.setattr(time, "time", lambda: clock + silent)
    said = overdue(limits, live, heard)
    assert expected in said
    assert bool(said) == bool(expected)


def test_a_sign_of_life_begins_the_silence_anew() -> None:
    live = LiveTurn("t")
    live.last_call = time.monotonic() - 1000
    assert overdue(Limits(timeout=45), live, time.monotonic() - 1000)
    assert not overdue(Limits(timeout=45), live, time.monotonic() - 1)
