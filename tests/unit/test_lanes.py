"""What the queue of a user knows of messages that come in several parts or are edited while they wait."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from types import SimpleNamespace
from typing import cast

from kai.bot.inbox import RESTART, SETTLE
from kai.bot.lanes import Lane, Lanes, settled
from kai.bot.tables import InboxRow, InboxState


def row(number: int, state: InboxState = "queued", *, text: str = "", settles: float = 0.0) -> InboxRow:
    return InboxRow(
        number, 7, 100 + number, "alice", 1001, 200 + number, "turn", text, "", None, state, "", "", settles=settles
    )


def lane(*waiting: InboxRow) -> Lane:
    made = Lane(cast(Lanes, SimpleNamespace(agents=Path("/nonexistent"))), "alice")
    made.waiting.extend(waiting)
    return made


async def took(waiting: InboxRow) -> float:
    """Seconds for which a row is held back."""
    began = time.monotonic()
    await asyncio.wait_for(settled(waiting), 5)
    return time.monotonic() - began


def test_an_edit_reaches_the_message_that_waits_and_no_other() -> None:
    first, second = row(1, text="one"), row(2, text="two")
    edit = row(3, "replaced", text="changed")
    edit.target, edit.content = 2, '{"origin":"x"}'
    lane(first, second).changed(edit)
    assert (first.text, second.text, second.content) == ("one", "changed", '{"origin":"x"}')


async def test_each_part_that_comes_holds_its_bundle_back_once_more() -> None:
    leader = row(1, settles=time.time() + 0.2)
    queue = lane(leader)
    holding = asyncio.ensure_future(took(leader))
    await asyncio.sleep(0.1)
    part = row(2, "grouped", settles=time.time() + 0.4)
    part.leader = leader.id
    queue.changed(part)
    assert await holding >= 0.45


async def test_a_plain_message_is_not_held_back_and_nor_is_one_that_runs() -> None:
    assert await took(row(1)) < 0.1
    assert await took(row(1, "running", settles=time.time() + SETTLE)) < 0.1


async def test_a_clock_that_was_set_back_holds_nothing_up() -> None:
    assert await took(row(1, settles=time.time() + RESTART + 3600)) < 0.1
