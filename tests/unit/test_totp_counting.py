"""Failures, locks and used steps of one user, without a clock and without a disk."""

from __future__ import annotations

import pyotp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kai.config import Totp
from kai.interfaces import Verdict
from kai.lib import codes
from kai.totp.counting import LONGEST_LOCK, State, behind, standing, tried, unlocked

SECRET = "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP"
NOW = 1_800_000_000.0
STEP = codes.step_at(NOW)
LIMITS = Totp()
BEGIN = State("e", STEP - 10)


def code(step: int) -> str:
    return pyotp.TOTP(SECRET).generate_otp(step)


def wrong(step: int) -> str:
    right = {code(step + drift) for drift in (-1, 0, 1)}
    return next(text for text in map("{:06}".format, range(9)) if text not in right)


def fail(state: State, times: int, now: float = NOW, limits: Totp = LIMITS) -> tuple[State, Verdict]:
    verdict = standing(state, limits, now)
    for _ in range(times):
        state, verdict = tried(state, SECRET, wrong(codes.step_at(now)), limits, now)
    return state, verdict


def test_a_right_code_passes_once() -> None:
    state, verdict = tried(BEGIN, SECRET, code(STEP), LIMITS, NOW)
    assert verdict == Verdict("ok")
    assert (state.step, state.accepted) == (STEP, NOW)
    again, verdict = tried(state, SECRET, code(STEP), LIMITS, NOW)
    assert verdict == Verdict("bad", remaining=2)
    assert again.step == STEP


@pytest.mark.parametrize("used", [-1, 0, 1])
@pytest.mark.parametrize("later", [0, 1, 2])
def test_a_code_that_was_used_and_those_before_it_pass_at_no_later_step(used: int, later: int) -> None:
    state, verdict = tried(BEGIN, SECRET, code(STEP + used), LIMITS, NOW)
    assert verdict.state == "ok"
    for older in range(-3, used + 1):
        assert tried(state, SECRET, code(STEP + older), LIMITS, NOW + later * 30)[1].state == "bad"


def test_the_next_code_passes_after_one_that_was_used() -> None:
    state, _ = tried(BEGIN, SECRET, code(STEP), LIMITS, NOW)
    state, verdict = tried(state, SECRET, code(STEP + 1), LIMITS, NOW)
    assert verdict.state == "ok"
    assert state.step == STEP + 1


def test_three_failures_lock_for_a_quarter_of_an_hour() -> None:
    state, verdict = fail(BEGIN, 2)
    assert verdict == Verdict("bad", remaining=1)
    state, verdict = fail(state, 1)
    assert verdict == Verdict("locked", until=NOW + 900)
    assert standing(state, LIMITS, NOW + 899).state == "locked"
    assert standing(state, LIMITS, NOW + 900) == Verdict("bad", remaining=3)


def test_a_code_that_comes_while_locked_is_not_looked_at_and_not_counted() -> None:
    state, _ = fail(BEGIN, 3)
    for text in (code(STEP), wrong(STEP)):
        after, verdict = tried(state, SECRET, text, LIMITS, NOW + 1)
        assert after == state
        assert verdict == Verdict("locked", until=NOW + 900)


def test_each_lock_is_twice_as_long_up_to_a_day() -> None:
    state, now, lengths = BEGIN, NOW, []
    for _ in range(12):
        state, verdict = fail(state, 3, now)
        lengths.append(verdict.until - now)
        now = verdict.until
    assert lengths == [900 * 2.0**n for n in range(7)] + [LONGEST_LOCK] * 5


def test_a_right_code_makes_the_next_lock_a_short_one_again() -> None:
    state, verdict = fail(BEGIN, 3)
    now = verdict.until
    state, verdict = tried(state, SECRET, code(codes.step_at(now)), LIMITS, now)
    assert verdict.state == "ok"
    state, verdict = fail(state, 3, now)
    assert verdict.until == now + 900


def test_one_attempt_means_the_first_failure_locks() -> None:
    assert fail(BEGIN, 1, limits=Totp(attempts=1))[1].state == "locked"


def test_fewer_attempts_than_were_failed_leave_one() -> None:
    state, _ = fail(BEGIN, 2)
    assert standing(state, Totp(attempts=1), NOW) == Verdict("bad", remaining=1)
    assert fail(state, 1, limits=Totp(attempts=1))[1].state == "locked"


def test_unlocking_forgets_failures_and_keeps_what_was_used() -> None:
    state, _ = tried(BEGIN, SECRET, code(STEP), LIMITS, NOW)
    state, _ = fail(state, 3)
    free = unlocked(state)
    assert standing(free, LIMITS, NOW) == Verdict("bad", remaining=3)
    assert free.step == STEP
    assert fail(free, 3)[1].until == NOW + 900


def test_a_clock_that_went_back_behind_a_used_code_is_noticed() -> None:
    state, _ = tried(BEGIN, SECRET, code(STEP + 1), LIMITS, NOW)
    assert not behind(state, NOW)
    assert behind(state, NOW - 30)
    assert not behind(BEGIN, NOW)


DEEDS = st.lists(st.tuples(st.integers(-40, 4000), st.sampled_from(["wrong", "right", "old", "next"])), max_size=40)


@given(DEEDS, st.integers(1, 10), st.integers(1, 86400))
@settings(max_examples=150, deadline=None)
def test_whatever_is_tried_and_however_the_clock_goes(
    deeds: list[tuple[int, str]], attempts: int, lockout: int
) -> None:
    """No step counts twice, no more failures than allowed lie between two locks, and no lock is entered."""
    limits, state, now, failures = Totp(attempts=attempts, lockout=lockout), BEGIN, NOW, 0
    used: set[int] = set()
    for gap, what in deeds:
        now += gap
        step = codes.step_at(now)
        text = {"wrong": wrong(step), "right": code(step), "old": code(step - 1), "next": code(step + 1)}[what]
        before = state
        state, verdict = tried(state, SECRET, text, limits, now)
        assert state.step >= before.step
        if now < before.locked_until:
            assert (verdict.state, state) == ("locked", before)
        elif verdict.state == "ok":
            assert state.step > before.step
            assert state.step not in used
            assert what != "wrong"
            used.add(state.step)
            failures = 0
        elif verdict.state == "bad":
            failures += 1
            assert verdict.remaining == attempts - failures > 0
        else:
            assert failures + 1 == attempts
            failures = 0
            assert min(lockout, LONGEST_LOCK) <= verdict.until - now <= LONGEST_LOCK
