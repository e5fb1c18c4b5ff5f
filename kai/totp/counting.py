"""What a code does to a user's counters: failures, locks that grow, steps that are used up. No clock, no disk."""

from __future__ import annotations

import msgspec

from kai.config import Totp
from kai.interfaces import Verdict
from kai.lib import codes

LONGEST_LOCK = 86400.0
"""Seconds at which a lock stops doubling."""
HIGHEST_LEVEL = 20
"""Doubled so often, the shortest lock is the longest too."""


class State(msgspec.Struct, frozen=True):
    """Of one user. `step` is the last one used up, `level` how many locks there were since the last right code.

    `enrolment` says which secret this counts for. Times are seconds since the epoch, 0 for never.
    """

    enrolment: str
    step: int
    failures: int = 0
    level: int = 0
    locked_until: float = 0.0
    accepted: float = 0.0


def standing(state: State, limits: Totp, now: float) -> Verdict:
    """How things are without a code: locked, or how many wrong ones there may be yet."""
    if now < state.locked_until:
        return Verdict("locked", until=state.locked_until)
    return Verdict("bad", remaining=max(limits.attempts - state.failures, 1))


def tried(state: State, secret: str, code: str, limits: Totp, now: float) -> tuple[State, Verdict]:
    """What becomes of a code. One that comes while there is a lock isn't looked at, and changes nothing."""
    before = standing(state, limits, now)
    if before.state == "locked":
        return state, before
    step = codes.matching(secret, code, codes.step_at(now))
    if step > state.step:
        return State(state.enrolment, step, accepted=now), Verdict("ok")
    failures = state.failures + 1
    if failures < limits.attempts:
        return msgspec.structs.replace(state, failures=failures), Verdict("bad", remaining=limits.attempts - failures)
    until = now + min(limits.lockout * 2.0 ** min(state.level, HIGHEST_LEVEL), LONGEST_LOCK)
    locked = msgspec.structs.replace(state, failures=0, level=state.level + 1, locked_until=until)
    return locked, Verdict("locked", until=until)


def unlocked(state: State) -> State:
    """Without failures and lock; steps that were used stay used."""
    return State(state.enrolment, state.step, accepted=state.accepted)


def behind(state: State, now: float) -> bool:
    """Whether the clock is behind the step that was used last.

    The step after the present one may have been used: a phone's clock may be a little fast.
    """
    return state.step > codes.step_at(now) + 1
