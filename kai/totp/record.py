"""What is kept of each user, on disk before anyone hears of it: one transaction for each code."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from kai.config import Totp
from kai.interfaces import Doubtful, Verdict
from kai.lib import codes
from kai.lib.store import Store
from kai.totp import counting
from kai.totp.counting import State

DATABASE = "totp.db"
SCHEMA = """
CREATE TABLE users (
    name TEXT PRIMARY KEY,
    enrolment TEXT NOT NULL,
    step INTEGER NOT NULL,
    failures INTEGER NOT NULL,
    level INTEGER NOT NULL,
    locked_until REAL NOT NULL,
    accepted REAL NOT NULL
) STRICT
"""
FRESH = 2
"""So many steps after an enrolment, no code but its own can have been used."""


class Enrolment(msgspec.Struct, frozen=True):
    """A user whose marker and secret are there and belong together."""

    user: str
    id: str
    step: int
    secret: str


class Record:
    """The counters. The store works on one function after another: that is what makes a user's codes wait in line.

    Everything raises Doubtful where it can't be told what holds, and StoreError where nothing can be written.
    """

    def __init__(self, directory: Path, clock: Callable[[], float] = time.time) -> None:
        self.clock = clock
        self.store = Store(directory / DATABASE, SCHEMA)

    async def standing(self, enrolment: Enrolment, limits: Totp) -> Verdict:
        def work(db: sqlite3.Connection) -> Verdict:
            now = self.clock()
            return counting.standing(_sound(db, enrolment, now), limits, now)

        return await self.store.write(work)

    async def tries(self, enrolment: Enrolment, code: str, limits: Totp) -> tuple[Verdict, bool]:
        """What comes of a code, and whether it was looked at: none is while there is a lock."""

        def work(db: sqlite3.Connection) -> tuple[Verdict, bool]:
            now = self.clock()
            before = _sound(db, enrolment, now)
            state, verdict = counting.tried(before, enrolment.secret, code, limits, now)
            if state is before:
                return verdict, False
            _write(db, enrolment.user, state)
            return verdict, True

        return await self.store.write(work)

    async def state(self, enrolment: Enrolment) -> State:
        return await self.store.write(lambda db: _sound(db, enrolment, self.clock()))

    async def states(self) -> dict[str, State]:
        rows = await self.store.read("SELECT * FROM users")
        return {row["name"]: _state(row) for row in rows}

    async def unlock(self, enrolment: Enrolment) -> None:
        """Forget failures and lock; where there is no state for this enrolment, make one."""

        def work(db: sqlite3.Connection) -> None:
            found, step = _read(db, enrolment.user), codes.step_at(self.clock())
            if found is None or found.enrolment != enrolment.id:
                # Which codes were used isn't known any more: those of this minute are used up.
                used = enrolment.step if 0 <= step - enrolment.step <= FRESH else max(step + 1, enrolment.step)
                found = State(enrolment.id, used)
            _write(db, enrolment.user, counting.unlocked(found))

        await self.store.write(work)

    def close(self) -> None:
        self.store.close()


def _state(row: sqlite3.Row) -> State:
    return msgspec.convert({name: row[name] for name in State.__struct_fields__}, State)


def _read(db: sqlite3.Connection, user: str) -> State | None:
    row = db.execute("SELECT * FROM users WHERE name = ?", (user,)).fetchone()
    return _state(row) if row else None


def _sound(db: sqlite3.Connection, enrolment: Enrolment, now: float) -> State:
    """The state as it holds at this time. Raises Doubtful."""
    state = _read(db, enrolment.user)
    unlock = f"`sudo kai totp unlock {enrolment.user}`"
    if state is None:
        raise Doubtful(f"what was counted for {enrolment.user} is lost: {unlock} begins anew")
    if state.enrolment != enrolment.id:
        raise Doubtful(f"the enrolment of {enrolment.user} isn't finished: {unlock} finishes it")
    state = msgspec.structs.replace(state, step=max(state.step, enrolment.step))
    if counting.behind(state, now):
        raise Doubtful(
            f"the clock is behind the code that {enrolment.user} used last: set it right; where it was wrong before "
            f"and is right now, `sudo kai totp setup {enrolment.user} --replace`"
        )
    return state


def _write(db: sqlite3.Connection, user: str, state: State) -> None:
    db.execute(
        "INSERT OR REPLACE INTO users (name, enrolment, step, failures, level, locked_until, accepted) "
        "VALUES (?, ?, ?, ?, ?, ?, ?)",
        (user, *msgspec.structs.astuple(state)),
    )
