"""The supervisor's database: turns, sessions, choices, costs."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import AsyncIterator
from datetime import date
from pathlib import Path

import pytest

from kai.agent.turns import Session, Turns
from kai.interfaces import Event
from kai.lib.store import Store, StoreError

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


SECOND_VERSION = """
CREATE TABLE generation (id TEXT NOT NULL);
CREATE TABLE turns (id TEXT PRIMARY KEY, state TEXT NOT NULL, began REAL NOT NULL, ended REAL, answer TEXT)
    WITHOUT ROWID;
CREATE TABLE sessions (name TEXT NOT NULL, workspace TEXT NOT NULL, id TEXT NOT NULL, turns INTEGER NOT NULL,
    cost_usd REAL NOT NULL, since REAL NOT NULL, warned_usd REAL NOT NULL DEFAULT 0, used REAL NOT NULL DEFAULT 0,
    PRIMARY KEY (name, workspace)) WITHOUT ROWID;
CREATE TABLE allowed (name TEXT NOT NULL, workspace TEXT NOT NULL, pattern TEXT NOT NULL,
    PRIMARY KEY (name, workspace, pattern)) WITHOUT ROWID;
CREATE TABLE choices (workspace TEXT NOT NULL, field TEXT NOT NULL, value TEXT NOT NULL,
    PRIMARY KEY (workspace, field)) WITHOUT ROWID;
CREATE TABLE costs (day TEXT PRIMARY KEY, turns INTEGER NOT NULL, usd REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
INSERT INTO generation VALUES ('g2');
INSERT INTO turns VALUES ('9.1', 'running', 5000000000.0, NULL, NULL);
INSERT INTO sessions VALUES ('chat', '/home', 's2', 3, 0.5, 1000.0, 0, 0);
PRAGMA user_version = 2
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


async def test_a_database_of_the_second_version_is_taken_over_with_the_turn_that_was_running(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "turns.db") as db:
        db.executescript(SECOND_VERSION)
    db.close()
    turns = Turns(tmp_path)
    await turns.open("/home")
    assert turns.identity.generation == "g2"
    assert (await turns.session("/home")).id == "s2"
    cut = await turns.answer("9.1")
    assert cut is not None
    assert (cut.outcome, cut.reason, cut.text) == ("interrupted", "cut", "")
    await turns.begin("9.2")
    await turns.keep_part("9.2", "a part")
    turns.store.close()


async def test_a_database_of_the_third_version_is_taken_over_and_takes_notes(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "turns.db") as db:
        db.executescript(SECOND_VERSION)
        db.execute("ALTER TABLE turns ADD COLUMN part TEXT NOT NULL DEFAULT ''")
        db.execute("PRAGMA user_version = 3")
    db.close()
    turns = Turns(tmp_path)
    await turns.open("/home")
    assert (await turns.session("/home")).id == "s2"
    assert await turns.store.read("SELECT * FROM notes") == []
    turns.store.close()


async def test_a_job_has_sessions_of_its_own_that_can_be_forgotten(turns: Turns) -> None:
    for name, workspace in (("chat", "/home"), ("job:7", "/home"), ("job:7", "/srv/site"), ("job:70", "/home")):
        session = await turns.session(workspace, name)
        session.id = f"{name} in {workspace}"
        await turns.set_session(session)
        await turns.allow(session, ["Bash(make)"])
    await turns.forget("job:7")
    found = [(await turns.session("/home", name)).id for name in ("chat", "job:7", "job:70")]
    assert found == ["chat in /home", "", "job:70 in /home"]
    assert (await turns.session("/srv/site", "job:7")).id == ""
    assert await turns.allowed(await turns.session("/home", "job:7")) == set()
    assert list(await turns.used_workspaces()) == ["/home"]


async def test_a_turn_without_a_session_ends_and_is_paid(turns: Turns) -> None:
    await turns.begin("job:7:1")
    await turns.end("job:7:1", done(0.25), None, DAY)
    assert await turns.cost(DAY) == (0.25, 0.25)
    assert await turns.store.read("SELECT * FROM sessions") == []


async def test_a_program_of_the_second_version_can_still_read_what_this_one_wrote(tmp_path: Path) -> None:
    turns = Turns(tmp_path)
    await turns.open("/home")
    turns.store.close()
    Store(tmp_path / "turns.db", "", version=2, upgrades={1: "SELECT 1"}, durable=False).close()


async def test_a_turn_that_was_cut_off_gives_back_what_it_had_said(tmp_path: Path) -> None:
    before = Turns(tmp_path)
    await before.open("/home")
    for turn in ("9.1", "9.2"):
        await before.begin(turn)
    for text in ("one", "one two"):
        await before.keep_part("9.1", text)
    before.store.close()
    after = Turns(tmp_path)
    await after.open("/home")
    cut, silent = await after.answer("9.1"), await after.answer("9.2")
    assert cut is not None
    assert silent is not None
    assert (cut.outcome, cut.reason, cut.text) == ("interrupted", "cut", "one two")
    assert abs(cut.since - time.time()) < 60, "since when the turn ran"
    assert (silent.outcome, silent.reason, silent.text) == ("interrupted", "cut", "")
    assert await after.begin("9.1") == cut, "and is not run again"
    assert await after.parts() == {"9.1": "one two"}
    after.store.close()
    third = Turns(tmp_path)
    await third.open("/home")
    assert await third.parts() == {"9.1": "one two"}, "until somebody has entered it in the history"
    await third.drop_part("9.1")
    assert await third.parts() == {}
    assert await third.answer("9.1") == cut
    third.store.close()


async def test_a_turn_that_came_to_its_end_leaves_no_part(turns: Turns) -> None:
    await turns.begin("9.1")
    await turns.keep_part("9.1", "a par")
    await turns.end("9.1", Event(kind="done", outcome="interrupted", text="a part"), await turns.session("/home"), DAY)
    await turns.keep_part("9.1", "too late")
    assert await turns.parts() == {}
    stored = await turns.answer("9.1")
    assert stored is not None
    assert stored.text == "a part"


def test_a_database_of_a_later_version_is_left_alone(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "turns.db") as db:
        db.execute("PRAGMA user_version = 5")
    db.close()
    with pytest.raises(StoreError, match="version 5, this program knows 4"):
        Turns(tmp_path)
