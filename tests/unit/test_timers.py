"""kai.Timers against a systemd that is a few lines: what becomes of a timer, and what is never asked of systemd."""

from __future__ import annotations

import asyncio
import re
import time
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kai.interfaces import ListTimers, RemoveTimers, SetTimers, StartJobs, Timer
from kai.lib.peers import SCHEDULER, Peer
from kai.lib.varlink import Busy, Call, Internal, InvalidParameter
from kai.timers import timers as under_test
from kai.timers.systemd import NEVER, Clock, Loaded, Property, Refused, Unreachable
from kai.timers.timers import AT_ONCE, MOST, MOST_CALENDARS, Timers, fault_in, properties, recognised, when

CALLER = Peer(990, 1, frozenset({SCHEDULER}))
ALLOWED = {
    "Description", "PartOf", "AccuracyUSec", "RandomizedDelayUSec", "RemainAfterElapse", "TimersCalendar",
    "TimersMonotonic", "Persistent",
}  # fmt: skip


class Fake:
    """Units by name, and all that was asked. `stubborn` units are still there after so many stops."""

    def __init__(self) -> None:
        self.loaded: dict[str, Loaded] = {}
        self.made: dict[str, list[Property]] = {}
        self.asked: list[tuple[str, str]] = []
        self.refuses: dict[str, Refused] = {}
        self.elapses: dict[tuple[str, str], int] = {}
        self.stubborn = 0
        self.lost = False
        self.busy = self.busiest = 0

    def _ask(self, what: str, unit: str) -> None:
        self.asked.append((what, unit))
        if self.lost:
            raise Unreachable("the bus is gone")
        if unit in self.refuses:
            raise self.refuses[unit]

    def add(self, name: str, description: str, active: str = "active") -> None:
        self.loaded[name] = Loaded(name, description, active)

    async def make(self, unit: str, properties: list[Property]) -> None:
        self._ask("make", unit)
        self.busy += 1
        self.busiest = max(self.busiest, self.busy)
        await asyncio.sleep(0)
        self.busy -= 1
        if unit in self.loaded:
            if self.stubborn and ("stop", unit) in self.asked:
                self.stubborn -= 1
                if not self.stubborn:
                    del self.loaded[unit]
            raise Refused("UnitExists", f"Unit {unit} was already loaded")
        self.made[unit] = properties
        self.add(unit, dict(properties)["Description"][1])

    async def stop(self, unit: str) -> None:
        self._ask("stop", unit)
        if unit not in self.loaded:
            raise Refused("NoSuchUnit", f"Unit {unit} not loaded.")
        if not self.stubborn:
            del self.loaded[unit]

    async def start(self, unit: str) -> None:
        self._ask("start", unit)

    async def reset_failed(self, unit: str) -> None:
        self._ask("reset", unit)
        if unit not in self.loaded:
            raise Refused("NoSuchUnit", f"Unit {unit} not loaded.")

    async def units(self, pattern: str) -> list[Loaded]:
        self._ask("units", pattern)
        return [unit for unit in self.loaded.values() if fnmatchcase(unit.name, pattern)]

    async def elapse(self, timer: str, clock: Clock) -> int:
        self._ask("elapse", timer)
        return self.elapses.get((timer, clock), NEVER)


@pytest.fixture
def fake() -> Fake:
    return Fake()


@pytest.fixture
def stamps(tmp_path: Path) -> Path:
    (tmp_path / "stamp-kai-job@7.timer").touch()
    (tmp_path / "stamp-logrotate.timer").touch()
    return tmp_path


@pytest.fixture
def timers(fake: Fake, stamps: Path) -> Timers:
    return Timers(fake, stamps)


def daily(job: int = 7, revision: int = 1, **more: Any) -> Timer:
    return Timer(job=job, revision=revision, calendar=["*-*-* 09:00:00 Europe/Berlin"], **more)


# ---- what a timer becomes ----


def test_a_calendar_timer_has_these_properties_and_no_other() -> None:
    assert properties(daily(revision=3, persistent=True)) == [
        ("Description", ("s", "Kai job 7, revision 3")),
        ("PartOf", ("as", ["kai.target"])),
        ("AccuracyUSec", ("t", 100_000)),
        ("RandomizedDelayUSec", ("t", 0)),
        ("RemainAfterElapse", ("b", False)),
        ("TimersCalendar", ("a(ss)", [("OnCalendar", "*-*-* 09:00:00 Europe/Berlin")])),
        ("Persistent", ("b", True)),
    ]


def test_an_interval_begins_with_its_first_time() -> None:
    made = dict(properties(Timer(job=7, revision=1, every=3600, first=5)))
    assert made["TimersMonotonic"] == ("a(st)", [("OnActiveSec", 5_000_000), ("OnUnitActiveSec", 3_600_000_000)])
    assert "TimersCalendar" not in made


@pytest.mark.parametrize(
    "calendar",
    ["2026-12-24 12:00:00 UTC", "Mon..Fri *-*-* 10:00/15:00", "*-*~3", "@1798113600", "daily", "*:0/5 Etc/GMT+5",
     "Sat,Sun 12-*-* 08:05:40 America/Port-au-Prince", "2003..2006-*-* 00:00:00.5"],
)  # fmt: skip
def test_what_systemd_calls_a_calendar_is_let_through(calendar: str) -> None:
    assert fault_in(Timer(job=1, revision=1, calendar=[calendar])) == ""


WRONG = {
    "job 0": daily(job=0),
    "a negative job": daily(job=-1),
    "a huge job": daily(job=2**63),
    "a negative revision": daily(revision=-1),
    "a huge revision": daily(revision=MOST),
    "neither": Timer(job=1, revision=1),
    "both": daily(every=60, first=1),
    "a first time of a calendar": daily(first=60),
    "an empty expression": Timer(job=1, revision=1, calendar=["daily", ""]),
    "a long expression": Timer(job=1, revision=1, calendar=["x" * 257]),
    "many expressions": Timer(job=1, revision=1, calendar=["daily"] * (MOST_CALENDARS + 1)),
    "a line break": Timer(job=1, revision=1, calendar=["daily\nExecStart=/bin/sh"]),
    "a line break at the end": Timer(job=1, revision=1, calendar=["daily\n"]),
    "a specifier": Timer(job=1, revision=1, calendar=["%n %H"]),
    "NUL": Timer(job=1, revision=1, calendar=["daily\0"]),
    "a quote": Timer(job=1, revision=1, calendar=['"daily"']),
    "another script's digits": Timer(job=1, revision=1, calendar=["*-*-* ٠٩:00:00"]),
    "a negative interval": Timer(job=1, revision=1, every=-5, first=1),
    "a huge interval": Timer(job=1, revision=1, every=2**62, first=1),
    "no first time": Timer(job=1, revision=1, every=60),
    "a persistent interval": Timer(job=1, revision=1, every=60, first=1, persistent=True),
}


@pytest.mark.parametrize("timer", WRONG.values(), ids=WRONG)
async def test_what_is_no_plain_timer_is_a_fault_and_never_reaches_systemd(
    timer: Timer, timers: Timers, fake: Fake
) -> None:
    answer = await timers.set_timers(CALLER, SetTimers([timer]))
    assert [fault.error.split(":")[0] for fault in answer.faults] == ["InvalidArgs"]
    assert not answer.timers
    assert not fake.asked


@given(
    st.builds(
        Timer,
        job=st.integers(-2, 10) | st.integers(),
        revision=st.integers(0, 10) | st.integers(),
        calendar=st.lists(st.text() | st.sampled_from(["daily", "%h", "a\nb", "*:0/5 UTC"]), max_size=3),
        every=st.integers(0, 100) | st.integers(),
        first=st.integers(0, 100) | st.integers(),
        persistent=st.booleans(),
    )
)
def test_whatever_is_asked_for_only_plain_words_come_of_it(timer: Timer) -> None:
    try:
        made = dict(properties(timer))
    except ValueError:
        return
    assert set(made) <= ALLOWED
    assert re.fullmatch(r"Kai job [1-9]\d*, revision \d+", made["Description"][1])
    assert re.fullmatch(r"kai-job@[1-9]\d*\.timer", under_test.timer_unit(timer.job))
    for name, expression in made.get("TimersCalendar", ("", []))[1]:
        assert name == "OnCalendar"
        assert expression.isascii()
        assert expression.isprintable()
        assert not set(expression) & set("%\"'\\$=;")
    assert all(0 < seconds < 2**63 for _, seconds in made.get("TimersMonotonic", ("", []))[1])


def test_a_next_elapse_is_told_in_seconds_of_the_wall_clock() -> None:
    assert when(1_798_113_600_500_000, "Realtime") == 1_798_113_600.5
    assert when(round((time.monotonic() + 60) * 1e6), "Monotonic") == pytest.approx(time.time() + 60, abs=1)
    assert when(0, "Realtime") == when(NEVER, "Realtime") == when(NEVER, "Monotonic") == 0


# ---- set ----


async def test_set_makes_timers_and_tells_their_next_times(timers: Timers, fake: Fake) -> None:
    fake.elapses["kai-job@7.timer", "Realtime"] = 1_798_113_600_000_000
    fake.elapses["kai-job@8.timer", "Monotonic"] = round((time.monotonic() + 60) * 1e6)
    answer = await timers.set_timers(CALLER, SetTimers([daily(7), Timer(job=8, revision=2, every=60, first=60)]))
    assert set(fake.made) == {"kai-job@7.timer", "kai-job@8.timer"}
    told = {timer.job: (timer.revision, timer.next) for timer in answer.timers}
    assert told[7] == (1, 1_798_113_600.0)
    assert told[8][0] == 2
    assert told[8][1] == pytest.approx(time.time() + 60, abs=1)


async def test_a_timer_that_is_there_is_stopped_and_made_anew_without_its_stamp(
    timers: Timers, fake: Fake, stamps: Path
) -> None:
    fake.add("kai-job@7.timer", "Kai job 7, revision 1")
    answer = await timers.set_timers(CALLER, SetTimers([daily(revision=2)]))
    assert [timer.revision for timer in answer.timers] == [2]
    assert [asked for asked, _ in fake.asked if asked in ("make", "stop")] == ["make", "stop", "make"]
    assert [path.name for path in stamps.iterdir()] == ["stamp-logrotate.timer"]


async def test_a_new_timer_keeps_its_stamp_so_that_what_was_missed_is_made_up_for(timers: Timers, stamps: Path) -> None:
    await timers.set_timers(CALLER, SetTimers([daily(persistent=True)]))
    assert (stamps / "stamp-kai-job@7.timer").exists()


async def test_a_name_that_is_taken_for_a_moment_longer_is_tried_again(timers: Timers, fake: Fake) -> None:
    fake.add("kai-job@7.timer", "Kai job 7, revision 1")
    fake.stubborn = 4
    answer = await timers.set_timers(CALLER, SetTimers([daily(revision=2)]))
    assert [timer.revision for timer in answer.timers] == [2]


async def test_a_name_that_stays_taken_is_a_fault_before_long(
    timers: Timers, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(under_test, "REPLACING", 0.1)
    fake.add("kai-job@7.timer", "made by hand")
    fake.stubborn = 1 << 30
    answer = await timers.set_timers(CALLER, SetTimers([daily(7), daily(8)]))
    assert [(fault.job, fault.error.split(":")[0]) for fault in answer.faults] == [(7, "UnitExists")]
    assert [timer.job for timer in answer.timers] == [8]


async def test_what_systemd_refuses_is_a_fault_of_that_timer_alone(timers: Timers, fake: Fake) -> None:
    fake.refuses["kai-job@7.timer"] = Refused("InvalidArgs", "Invalid calendar\nspec")
    answer = await timers.set_timers(CALLER, SetTimers([daily(7), daily(8)]))
    assert [(fault.job, fault.error) for fault in answer.faults] == [(7, "InvalidArgs: Invalid calendar spec")]
    assert [timer.job for timer in answer.timers] == [8]


async def test_a_job_can_have_one_timer_only(timers: Timers, fake: Fake) -> None:
    with pytest.raises(InvalidParameter):
        await timers.set_timers(CALLER, SetTimers([daily(7), daily(7, 2)]))
    assert not fake.asked


async def test_without_systemd_every_method_says_busy(timers: Timers, fake: Fake) -> None:
    fake.lost = True
    calls: list[Call[Any]] = [
        SetTimers([daily(7), daily(8)]),
        ListTimers(),
        RemoveTimers([7]),
        RemoveTimers(strangers=True),
        StartJobs([7]),
    ]
    for call in calls:
        with pytest.raises(Busy, match="the bus is gone"):
            await timers.handlers()[type(call)](CALLER, call)


async def test_many_timers_are_made_side_by_side_but_not_all_at_once(timers: Timers, fake: Fake) -> None:
    answer = await timers.set_timers(CALLER, SetTimers([daily(job) for job in range(1, 301)]))
    assert len(answer.timers) == 300
    assert fake.busiest == AT_ONCE
    assert AT_ONCE < 128, "what a bus daemon allows"


# ---- list ----


@pytest.mark.parametrize(
    ("name", "description"),
    [
        ("kai-job@evil.timer", "Kai job 7, revision 1"),
        ("kai-job@0.timer", "Kai job 0, revision 1"),
        ("kai-job@07.timer", "Kai job 7, revision 1"),
        ("kai-job@-7.timer", "Kai job -7, revision 1"),
        ("kai-job@٧.timer", "Kai job ٧, revision 1"),
        ("kai-job@.timer", "Kai job 7, revision 1"),
        ("kai-job@7.timer", "/bin/true"),
        ("kai-job@7.timer", "Kai job 8, revision 1"),
        ("kai-job@7.timer", "Kai job 7, revision 01"),
        ("kai-job@7.timer", "Kai job 7, revision 1\n"),
        ("kai-job@7.timer", "Kai job 7"),
        ("kai-job@7\n.timer", "Kai job 7, revision 1"),
    ],
)
async def test_what_kai_did_not_make_is_a_stranger_and_can_be_stopped(
    name: str, description: str, timers: Timers, fake: Fake
) -> None:
    fake.add(name, description)
    fake.add("kai-job@3.timer", "Kai job 3, revision 9")
    fake.add("kai-job@3.service", "Job 3")
    fake.add("logrotate.timer", "Rotate logs")
    found = await timers.list_timers(CALLER, ListTimers())
    assert [(timer.job, timer.revision) for timer in found.timers] == [(3, 9)]
    assert len(found.strangers) == 1
    assert not (await timers.remove_timers(CALLER, RemoveTimers(strangers=True))).faults
    assert set(fake.loaded) == {"kai-job@3.timer", "kai-job@3.service", "logrotate.timer"}
    assert [unit for what, unit in fake.asked if what == "stop"] == [name]


async def test_a_timer_that_failed_or_stopped_is_none(timers: Timers, fake: Fake) -> None:
    fake.add("kai-job@1.timer", "Kai job 1, revision 1", "failed")
    fake.add("kai-job@x.timer", "by hand", "inactive")
    found = await timers.list_timers(CALLER, ListTimers())
    assert (found.timers, found.strangers) == ([], [])
    assert recognised(Loaded("kai-job@1.timer", "Kai job 1, revision 0", "active"))


async def test_list_looks_up_the_next_time_of_those_that_are_named(timers: Timers, fake: Fake) -> None:
    for job in (1, 2, 3):
        fake.add(f"kai-job@{job}.timer", f"Kai job {job}, revision 1")
        fake.elapses[f"kai-job@{job}.timer", "Realtime"] = job * 1_000_000
    found = await timers.list_timers(CALLER, ListTimers([2, 4]))
    assert {timer.job: timer.next for timer in found.timers} == {1: 0, 2: 2, 3: 0}
    assert {unit for what, unit in fake.asked if what == "elapse"} == {"kai-job@2.timer"}


# ---- remove and start ----


async def test_remove_stops_the_timer_and_forgets_it_where_that_is_asked_for(
    timers: Timers, fake: Fake, stamps: Path
) -> None:
    for forget in (False, True):
        fake.add("kai-job@7.timer", "Kai job 7, revision 1")
        answer = await timers.remove_timers(CALLER, RemoveTimers([7, 8], forget=forget))
        assert not answer.faults, "one that isn't there is removed already"
        assert not fake.loaded
        assert (stamps / "stamp-kai-job@7.timer").exists() is not forget
    assert (stamps / "stamp-logrotate.timer").exists()


async def test_without_stamps_a_timer_is_forgotten_too(fake: Fake, tmp_path: Path) -> None:
    answer = await Timers(fake, tmp_path / "missing").remove_timers(CALLER, RemoveTimers([7], forget=True))
    assert not answer.faults


async def test_what_cannot_be_stopped_is_a_fault(timers: Timers, fake: Fake) -> None:
    fake.refuses["kai-job@7.timer"] = Refused("AccessDenied", "no")
    answer = await timers.remove_timers(CALLER, RemoveTimers([7, 8]))
    assert [(fault.job, fault.error) for fault in answer.faults] == [(7, "AccessDenied: no")]


async def test_start_starts_services_of_jobs(timers: Timers, fake: Fake) -> None:
    await timers.start_jobs(CALLER, StartJobs([7, 8, 7]))
    assert sorted(fake.asked) == [("start", "kai-job@7.service"), ("start", "kai-job@8.service")]
    fake.refuses["kai-job@9.service"] = Refused("NoSuchUnit", "not found")
    with pytest.raises(Internal, match="kai-job@9"):
        await timers.start_jobs(CALLER, StartJobs([9, 10]))
    assert ("start", "kai-job@10.service") in fake.asked


@pytest.mark.parametrize("job", [0, -3, 2**63])
async def test_what_is_no_job_is_refused_by_every_method(job: int, timers: Timers, fake: Fake) -> None:
    calls: list[Call[Any]] = [ListTimers([1, job]), RemoveTimers([1, job]), StartJobs([1, job])]
    for call in calls:
        with pytest.raises(InvalidParameter):
            await timers.handlers()[type(call)](CALLER, call)
    assert not fake.asked
