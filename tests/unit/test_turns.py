"""The supervisor's database: turns, sessions, choices, costs."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from datetime import date
from pathlib import Path

import pytest

from kai.agent.turns import Session, Turns
from kai.interfaces import Event
from kai.lib.store import StoreError

DAY = date(2026, 3, 14)
FIRST_VERSION = """
CREATE TABLE generation (id TEXT NOT NULL);
CREATE TABLE turns (id TEXT PRIMARY KEY, state TEXT NOT NULL, began REAL NOT NULL, ended REAL, answer TEXT)
    WITHOUT ROWID;
CREATE TABLE sessions (name TEXT PRIMARY KEY, id TEXT NOT NULL, turns INTEGER NOT NULL, cost_usd REAL NOT NULL,
    since REAL NOT NULL) WITHOUT ROWID;
INSERT INTO generation VALUES ('g1');
INSERT INTO sessions VALUES ('chat', 's1', 7, 1.25, 1000.0);
PRAGMA user_version = 1
"""


@pytest.fixture
async def turns(tmp_path: Path) -> AsyncIterator[Turns]:
    made = Turns(tmp_path)
    await made.open("/home")
    yield made
    made.store.close()


def done(cost: float) -> Event:
    return Event(kind="done", outcome="ok", cost_usd=cost)


async def run(turns: Turns, name: str, cost: float, day: date, session: Session) -> None:
    await turns.begin(name)
    session.turns += 1
    session.cost_usd += cost
    await turns.end(name, done(cost), session, day)


async def test_costs_are_summed_by_day_and_month(turns: Turns) -> None:
    session = await turns.session("/home")
    for number, (day, cost) in enumerate(
        [(date(2026, 2, 28), 8.0), (date(2026, 3, 1), 1.0), (DAY, 0.25), (DAY, 0.5), (date(2026, 3, 15), 4.0)]
    ):
        await run(turns, str(number), cost, day, session)
    assert await turns.cost(DAY) == (0.75, 1.75)
    assert (await turns.session("/home")).cost_usd == 13.75


async def test_a_turn_that_is_asked_for_twice_costs_once(turns: Turns) -> None:
    session = await turns.session("/home")
    await run(turns, "1", 0.5, DAY, session)
    stored = await turns.begin("1")
    assert stored is not None
    assert stored.cost_usd == 0.5
    assert await turns.cost(DAY) == (0.5, 0.5)


async def test_each_workspace_has_its_own_session(turns: Turns) -> None:
    for workspace in ("/home", "/srv/site"):
        session = await turns.session(workspace)
        session.id = f"session of {workspace}"
        await turns.set_session(session)
    assert (await turns.session("/home")).id == "session of /home"
    assert (await turns.session("/srv/site")).id == "session of /srv/site"
    assert (await turns.session("/srv/other")).id == ""


async def test_a_new_session_forgets_what_the_old_one_allowed_and_keeps_the_days_cost(turns: Turns) -> None:
    session, other = await turns.session("/home"), await turns.session("/srv/site")
    await run(turns, "1", 0.5, DAY, session)
    for one in (session, other):
        await turns.allow(one, ["Bash(make)", "Edit(/x)"])
    fresh = await turns.end_session(session, DAY, 0.25)
    assert (fresh.id, fresh.turns, fresh.cost_usd) == ("", 0, 0.0)
    assert await turns.allowed(fresh) == set()
    assert await turns.allowed(other) == {"Bash(make)", "Edit(/x)"}
    assert await turns.cost(DAY) == (0.75, 0.75)


async def test_a_lost_session_keeps_what_it_has_cost(turns: Turns) -> None:
    session = await turns.session("/home")
    session.id = "s"
    await run(turns, "1", 0.5, DAY, session)
    await turns.allow(session, ["Bash(make)"])
    await turns.lose_session(session)
    again = await turns.session("/home")
    assert (again.id, again.cost_usd, await turns.allowed(again)) == ("", 0.5, set())


async def test_choices_are_kept_and_taken_back(turns: Turns) -> None:
    for workspace, field, value in (("", "model", "opus"), ("/w", "model", "sonnet"), ("/w", "timeout", "90")):
        await turns.choose(workspace, field, value)
    await turns.choose("", "model", "haiku")
    assert await turns.choices() == {("", "model"): "haiku", ("/w", "model"): "sonnet", ("/w", "timeout"): "90"}
    await turns.choose("/w", "timeout", "")
    assert await turns.choices() == {("", "model"): "haiku", ("/w", "model"): "sonnet"}
    await turns.choose("/w", "", "")
    assert await turns.choices() == {("", "model"): "haiku"}


async def test_a_database_of_the_first_version_is_taken_over(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "turns.db") as db:
        db.executescript(FIRST_VERSION)
    db.close()
    turns = Turns(tmp_path)
    await turns.open("/home")
    session = await turns.session("/home")
    assert (session.id, session.turns, session.cost_usd, session.since) == ("s1", 7, 1.25, 1000.0)
    assert turns.identity.generation == "g1"
    turns.store.close()
    again = Turns(tmp_path)
    await again.open("/home")
    assert (await again.session("/home")).id == "s1"
    again.store.close()


def test_a_database_of_a_later_version_is_left_alone(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "turns.db") as db:
        db.execute("PRAGMA user_version = 3")
    db.close()
    with pytest.raises(StoreError, match="version 3, this program knows 2"):
        Turns(tmp_path)
