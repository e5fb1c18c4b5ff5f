"""Schedules: what is refused and in which words, what systemd is told, and local times that don't exist.

systemd-analyze is played by a stand-in that answers from a table; tests/process/test_calendar.py asks the real one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kai.lib.varlink import Busy, InvalidParameter
from kai.scheduler import fields, gaps
from kai.scheduler.calendar import BadExpression, Calendar, Elapses, Unusable, expression
from kai.scheduler.calendar import parse as read
from kai.scheduler.schedule import Daily, Interval, Once, Plan, Recurring, Schedule, next_times, parse, plan, zone_of

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC).timestamp()
BERLIN = "Europe/Berlin"


class Fake(Calendar):
    """Answers from a table of expression → normal form and times; remembers what it was asked."""

    def __init__(self, table: dict[str, tuple[str, list[float]]], *, fault: Exception | None = None) -> None:
        super().__init__()
        self.table, self.fault = table, fault
        self.asked: list[str] = []

    async def elapses(self, expressions: Sequence[str], *, count: int = 1, after: float | None = None) -> list[Elapses]:
        if self.fault:
            raise self.fault
        self.asked += expressions
        return [Elapses(self.table[each][0], self.table[each][1][:count]) for each in expressions]


def at(year: int, month: int, day: int, hour: int = 0, minute: int = 0, second: int = 0, *, zone: str = "UTC") -> float:
    return datetime(year, month, day, hour, minute, second, tzinfo=ZoneInfo(zone)).timestamp()


def looked_at(kind: str, data: object, zone: str = BERLIN) -> Schedule:
    return parse(kind, data if isinstance(data, str) else json.dumps(data), zone, NOW)


# ---- what is refused: every field of every kind ----

MANY = [f"{number:02}:00" for number in range(24)] + ["00:30"]
BAD: list[tuple[str, Any, str]] = [
    ("weekly", {"times": "09:00"}, 'schedule_type: expected once, daily, interval or calendar, got "weekly"'),
    ("", {}, "schedule_type: expected once"),
    ("once", "", "schedule_data: not JSON"),
    ("once", "2026-12-24T15:00", "schedule_data: not JSON"),
    ("once", "{'run_at': 1}", "schedule_data: not JSON"),
    ("once", '{"run_at": "2027-01-01T00:00", "run_at": "2028-01-01T00:00"}', "schedule_data: not JSON"),
    ("once", "[" * 4000, "schedule_data: nested too deeply"),
    ("once", " " * 5000, "schedule_data: more than 4096 bytes"),
    ("once", [], "schedule_data: expected a JSON object"),
    ("once", None, "schedule_data: expected a JSON object"),
    ("once", '"2026-12-24T15:00"', "schedule_data: expected a JSON object"),
    ("once", {}, "schedule_data.run_at: missing"),
    ("once", {"at": "2027-01-01T00:00"}, "schedule_data.at: unknown key"),
    ("once", {"run_at": "2027-01-01T00:00", "x\ny": 1}, r'schedule_data\."x\\ny": unknown key'),
    ("once", {"run_at": None}, "schedule_data.run_at: expected a date and a time"),
    ("once", {"run_at": 1800000000}, "schedule_data.run_at: expected a date and a time"),
    ("once", {"run_at": True}, "schedule_data.run_at: expected a date and a time"),
    ("once", {"run_at": ["2027-01-01T00:00"]}, "schedule_data.run_at: expected a date and a time"),
    ("once", {"run_at": ""}, "schedule_data.run_at: expected a date and a time"),
    ("once", {"run_at": "tomorrow"}, 'schedule_data.run_at: expected a date and a time .*got "tomorrow"'),
    ("once", {"run_at": "2027-01-01"}, "schedule_data.run_at: expected a date and a time"),
    ("once", {"run_at": "15:00"}, "schedule_data.run_at: expected a date and a time"),
    ("once", {"run_at": "2027-02-30T15:00"}, "schedule_data.run_at: expected a date and a time"),
    ("once", {"run_at": "2027-01-01T25:00"}, "schedule_data.run_at: expected a date and a time"),
    ("once", {"run_at": "2027-01-01T10:00:61"}, "schedule_data.run_at: expected a date and a time"),
    ("once", {"run_at": "2027-01-01T10:00 Europe/Berlin"}, "schedule_data.run_at: expected a date and a time"),
    ("once", {"run_at": "２０２７-01-01T10:00"}, "schedule_data.run_at: expected a date and a time"),
    ("once", {"run_at": "2200-01-01T10:00"}, "schedule_data.run_at: expected .* until 2199"),
    ("once", {"run_at": "9999-12-31T23:59-14:00"}, "schedule_data.run_at: expected .* until 2199"),
    ("once", {"run_at": "0001-01-01T00:00+14:00"}, "schedule_data.run_at: expected"),
    ("once", {"run_at": "2026-11-22T15:00"}, "schedule_data.run_at: Sun 2026-11-22 15:00:00 Europe/Berlin has passed"),
    ("once", {"run_at": "2026-11-23T13:00"}, "schedule_data.run_at: Mon 2026-11-23 13:00:00 Europe/Berlin has passed"),
    ("once", {"run_at": "2026-11-23T12:00Z"}, "schedule_data.run_at: Mon 2026-11-23 13:00:00 Europe/Berlin has passed"),
    ("once", {"run_at": "1970-01-01T00:00"}, "schedule_data.run_at: Thu 1970-01-01 00:00:00 Europe/Berlin has passed"),
    ("daily", {}, "schedule_data.times: missing"),
    ("daily", {"time": "09:00"}, 'schedule_data.time: unknown key, expected "times" perhaps'),
    ("daily", {"times": []}, "schedule_data.times: expected a list of 1 to 24 times"),
    ("daily", {"times": MANY}, "schedule_data.times: expected a list of 1 to 24 times.*got 25 of them"),
    ("daily", {"times": 9}, "schedule_data.times: expected a list"),
    ("daily", {"times": None}, "schedule_data.times: expected a list"),
    ("daily", {"times": {"a": 1}}, "schedule_data.times: expected a list"),
    ("daily", {"times": ["09:00", 9]}, r"schedule_data.times\[1\]: expected a time from 00:00 to 23:59"),
    ("daily", {"times": ["09:00", "24:00"]}, r"schedule_data.times\[1\]: expected a time"),
    ("daily", {"times": ["9am"]}, r"schedule_data.times\[0\]: expected a time"),
    ("daily", {"times": ["09:00:00"]}, r"schedule_data.times\[0\]: expected a time"),
    ("daily", {"times": ["09:60"]}, r"schedule_data.times\[0\]: expected a time"),
    ("daily", {"times": ["٠٩:00"]}, r"schedule_data.times\[0\]: expected a time"),
    ("daily", {"times": ["09:00", "9:00"]}, r"schedule_data.times\[1\]: 09:00 is there already"),
    ("daily", {"times": "noon"}, "schedule_data.times: expected a time"),
    ("interval", {}, "schedule_data.seconds: missing"),
    ("interval", {"second": 60}, 'schedule_data.second: unknown key, expected "seconds" perhaps'),
    ("interval", {"seconds": 9}, "schedule_data.seconds: expected a whole number of seconds from 10 .*got 9"),
    ("interval", {"seconds": 0}, "schedule_data.seconds: expected a whole number"),
    ("interval", {"seconds": -60}, "schedule_data.seconds: expected a whole number"),
    ("interval", {"seconds": 60.5}, "schedule_data.seconds: expected a whole number"),
    ("interval", {"seconds": True}, "schedule_data.seconds: expected a whole number.*got true"),
    ("interval", {"seconds": "60"}, 'schedule_data.seconds: expected a whole number.*got "60"'),
    ("interval", {"seconds": None}, "schedule_data.seconds: expected a whole number.*got nothing"),
    ("interval", {"seconds": [60]}, "schedule_data.seconds: expected a whole number"),
    ("interval", {"seconds": 366 * 86400 + 1}, "schedule_data.seconds: expected a whole number"),
    ("interval", '{"seconds": 1e999}', "schedule_data.seconds: expected .* far too big"),
    ("interval", '{"seconds": ' + "9" * 4000 + "}", "schedule_data.seconds: expected .* far too big"),
    ("interval", '{"seconds": NaN}', "schedule_data: not JSON.*NaN"),
    ("calendar", {}, "schedule_data.calendar: missing"),
    ("calendar", {"cron": "0 9 * * *"}, "schedule_data.cron: unknown key"),
    ("calendar", {"calendar": ""}, "schedule_data.calendar: expected an expression"),
    ("calendar", {"calendar": "   "}, "schedule_data.calendar: expected an expression"),
    ("calendar", {"calendar": "daily\nExecStart=/bin/sh"}, "schedule_data.calendar: expected an expression"),
    ("calendar", {"calendar": "täglich"}, "schedule_data.calendar: expected an expression"),
    ("calendar", {"calendar": "0" * 201}, "schedule_data.calendar: expected an expression"),
    ("calendar", {"calendar": 5}, "schedule_data.calendar: expected an expression"),
    ("calendar", {"calendar": ["daily"]}, "schedule_data.calendar: expected an expression"),
    ("calendar", {"calendar": None}, "schedule_data.calendar: expected an expression"),
]


@pytest.mark.parametrize(("kind", "data", "said"), BAD)
def test_what_is_wrong_is_told_with_the_field_first(kind: str, data: Any, said: str) -> None:
    with pytest.raises(InvalidParameter) as fault:
        looked_at(kind, data)
    assert re.match(said, fault.value.message), fault.value.message
    assert len(fault.value.message) < 400
    assert fault.value.message.isprintable()


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["09:00", "2027-01-01T09:00"]),
    lambda inner: st.lists(inner, max_size=30) | st.dictionaries(st.text() | st.sampled_from(["times"]), inner),
    max_leaves=40,
)
KINDS = {"once": "run_at", "daily": "times", "interval": "seconds", "calendar": "calendar"}


@settings(max_examples=300, deadline=None)
@given(
    kind=st.sampled_from([*KINDS, "other"]), value=JSON, wrapped=st.booleans(), zone=st.sampled_from([BERLIN, "UTC"])
)
def test_any_json_is_a_schedule_or_a_clear_refusal(kind: str, value: Any, wrapped: bool, zone: str) -> None:
    data = json.dumps({KINDS[kind]: value} if wrapped and kind in KINDS else value)
    try:
        found = parse(kind, data, zone, NOW)
    except InvalidParameter as fault:
        assert re.match(r"schedule_(type|data)\S*( \S+)*: \S", fault.message), fault.message
    else:
        assert isinstance(found, Once | Daily | Interval | Recurring)


@settings(max_examples=200, deadline=None)
@given(kind=st.sampled_from([*KINDS]), data=st.text() | st.binary().map(lambda raw: raw.decode("utf-8", "replace")))
def test_any_text_is_a_schedule_or_a_clear_refusal(kind: str, data: str) -> None:
    try:
        parse(kind, data, BERLIN, NOW)
    except InvalidParameter as fault:
        assert fault.message.startswith("schedule_data")


@settings(max_examples=300, deadline=None)
@given(
    moment=st.datetimes(min_value=datetime(2020, 1, 1), max_value=datetime(2300, 1, 1)),
    zone=st.sampled_from([BERLIN, "America/St_Johns", "Australia/Lord_Howe", "Africa/Casablanca", "Asia/Kolkata"]),
)
def test_a_local_time_is_the_moment_that_the_clock_there_shows_or_the_first_after_it(
    moment: datetime, zone: str
) -> None:
    moment = moment.replace(microsecond=0)
    try:
        found = parse("once", json.dumps({"run_at": moment.isoformat()}), zone, NOW)
    except InvalidParameter as fault:
        assert "has passed" in fault.message or "until 2199" in fault.message
        return
    assert isinstance(found, Once)
    there = datetime.fromtimestamp(found.at, ZoneInfo(zone)).replace(tzinfo=None)
    if there != moment:
        jumped = [gap for gap in gaps.gaps(zone, found.at - 86400, 2 * 86400) if gap.at == found.at]
        assert jumped
        assert jumped[0].local <= moment.replace(tzinfo=UTC).timestamp() < jumped[0].local + jumped[0].length


# ---- what is taken ----


@pytest.mark.parametrize(
    ("run_at", "zone", "expected"),
    [
        ("2026-12-24T15:00", BERLIN, at(2026, 12, 24, 14, 0)),
        ("2026-12-24 15:00:30", BERLIN, at(2026, 12, 24, 14, 0, 30)),
        ("2026-12-24T15:00:30.001", BERLIN, at(2026, 12, 24, 14, 0, 31)),
        ("2026-12-24T15:00Z", BERLIN, at(2026, 12, 24, 15, 0)),
        ("2026-12-24t15:00z", BERLIN, at(2026, 12, 24, 15, 0)),
        ("2026-12-24T15:00+05:30", BERLIN, at(2026, 12, 24, 9, 30)),
        ("2026-12-24T15:00-0330", BERLIN, at(2026, 12, 24, 18, 30)),
        (" 2026-12-24T15:00 ", "America/New_York", at(2026, 12, 24, 20, 0)),
        ("2027-03-28T02:30", "Europe/Paris", at(2027, 3, 28, 1, 0)),  # doesn't exist: the transition
        ("2027-10-31T02:30", "Europe/Paris", at(2027, 10, 31, 0, 30)),  # exists twice: the first
    ],
)
def test_a_moment_is_local_or_has_an_offset(run_at: str, zone: str, expected: float) -> None:
    assert looked_at("once", {"run_at": run_at}, zone) == Once(expected)


def test_times_of_the_day_are_a_list_or_one_and_come_out_in_order() -> None:
    assert looked_at("daily", {"times": ["18:30", "9:05"]}) == Daily(("09:05", "18:30"))
    assert looked_at("daily", {"times": "09:00"}) == Daily(("09:00",))
    assert len(looked_at("daily", {"times": MANY[:24]}).times) == 24  # type: ignore[union-attr]


def test_an_interval_is_from_ten_seconds_to_a_year() -> None:
    assert looked_at("interval", {"seconds": 10}) == Interval(10)
    assert looked_at("interval", {"seconds": 366 * 86400}) == Interval(366 * 86400)


@pytest.mark.parametrize(
    "zone", ["", "Europe/Nowhere", "europe/berlin", "../../etc/passwd", "right/UTC", "Mars", "a b"]
)
def test_a_zone_that_this_host_does_not_know_is_refused_by_its_field(zone: str) -> None:
    with pytest.raises(InvalidParameter, match=r"^timezone: expected an IANA time zone"):
        zone_of(zone)


@pytest.mark.parametrize(("given_", "named"), [("CET", "Europe/Brussels"), ("UTC", "UTC"), (BERLIN, BERLIN)])
def test_a_zone_is_never_an_abbreviation_that_systemd_takes_for_the_hosts(given_: str, named: str) -> None:
    assert zone_of(given_) == named


# ---- what systemd is told ----


async def planned(schedule: Schedule, table: dict[str, tuple[str, list[float]]] | None = None, count: int = 1) -> Plan:
    return await plan(schedule, BERLIN, NOW, Fake(table or {}), count=count)


async def test_a_once_job_is_one_moment_in_utc_and_its_data_keep_the_moment() -> None:
    found = await planned(looked_at("once", {"run_at": "2026-12-24T15:00"}))
    assert (found.calendar, found.every) == (["2026-12-24 14:00:00 UTC"], 0)
    assert found.times == [at(2026, 12, 24, 14, 0)]
    assert json.loads(found.data) == {"run_at": "2026-12-24T15:00:00+01:00"}
    again = parse("once", found.data, "Asia/Tokyo", NOW)
    assert again == Once(at(2026, 12, 24, 14, 0))


async def test_an_interval_begins_after_its_first_length() -> None:
    found = await planned(Interval(60), count=3)
    assert (found.calendar, found.every) == ([], 60)
    assert found.times == [NOW + 60, NOW + 120, NOW + 180]


async def test_daily_times_are_meant_in_the_zone_and_come_in_their_order() -> None:
    table = {
        f"*-*-* 09:00:00 {BERLIN}": (f"*-*-* 09:00:00 {BERLIN}", [100.0, 300.0]),
        f"*-*-* 18:30:00 {BERLIN}": (f"*-*-* 18:30:00 {BERLIN}", [200.0, 400.0]),
    }
    found = await planned(Daily(("09:00", "18:30")), table, count=2)
    assert found.calendar == list(table)
    assert found.times == [100.0, 200.0]


@pytest.mark.parametrize(
    ("written", "asked", "normal"),
    [
        ("Mon..Fri 09:00", f"Mon..Fri 09:00 {BERLIN}", f"Mon..Fri *-*-* 09:00:00 {BERLIN}"),
        ("Mon", f"Mon {BERLIN}", f"Mon *-*-* 00:00:00 {BERLIN}"),
        ("09:00 Asia/Tokyo", "09:00 Asia/Tokyo", "*-*-* 09:00:00 Asia/Tokyo"),
        ("daily utc", "daily UTC", "*-*-* 00:00:00 UTC"),
        ("09:00 CET", "09:00 Europe/Brussels", "*-*-* 09:00:00 Europe/Brussels"),
        ("@1900000000", "@1900000000 UTC", "2030-03-17 17:46:40 UTC"),
    ],
)
async def test_an_expression_has_its_own_zone_or_gets_the_jobs(written: str, asked: str, normal: str) -> None:
    bare = f"{normal.rpartition(' ')[0]} UTC"
    fake = Fake({asked: (normal, [NOW + 60]), bare: (bare, [NOW + 60])})
    fake.table.setdefault(bare, (bare, [NOW + 60]))
    found = await plan(Recurring(written), BERLIN, NOW, fake)
    assert fake.asked[0] == asked
    assert found.read == [normal]


async def test_what_never_elapses_or_too_often_is_refused() -> None:
    normal, bare = f"*-*-* 00:00:00 {BERLIN}", "*-*-* 00:00:00 UTC"
    with pytest.raises(InvalidParameter, match=r"^schedule_data.calendar: never elapses"):
        await planned(Recurring("x"), {f"x {BERLIN}": (normal, []), bare: (bare, [])})
    with pytest.raises(InvalidParameter, match=r"^schedule_data.calendar: elapses again after 9 s"):
        await planned(Recurring("x"), {f"x {BERLIN}": (normal, [1.0]), bare: (bare, [1.0, 3600.0, 3609.0])})
    await planned(Recurring("x"), {f"x {BERLIN}": (normal, [1.0]), bare: (bare, [1.0, 11.0, 21.0])})


async def test_an_expression_that_systemd_would_read_without_its_zone_is_refused() -> None:
    with pytest.raises(InvalidParameter, match=r"^schedule_data.calendar: can't be meant in the zone"):
        await planned(Recurring("x"), {f"x {BERLIN}": ("*-*-* 00:00:00", [1.0])})


async def test_systemds_own_words_are_told_and_its_absence_is_not_the_callers_fault() -> None:
    with pytest.raises(InvalidParameter, match=r"^schedule_data.calendar: systemd says: Failed to parse 'x'"):
        await plan(Recurring("x"), BERLIN, NOW, Fake({}, fault=BadExpression("x", "Failed to parse 'x'")))
    with pytest.raises(Busy, match="no next time"):
        await plan(Recurring("x"), BERLIN, NOW, Fake({}, fault=Unusable("no next time")))


# ---- gaps of local time ----


def test_the_gaps_of_a_zone_are_its_jumps_forward() -> None:
    (spring, later) = gaps.gaps("Europe/Paris", NOW)
    assert spring == gaps.Gap(at=int(at(2027, 3, 28, 1)), local=int(at(2027, 3, 28, 2)), length=3600)
    assert later.at == int(at(2028, 3, 26, 1))
    assert [gap.length for gap in gaps.gaps("Australia/Lord_Howe", NOW)] == [1800, 1800]
    assert gaps.gaps("UTC", NOW) == gaps.gaps("Asia/Kolkata", NOW) == []
    assert gaps.gaps("Pacific/Apia", at(2011, 12, 1), 60 * 86400) == [
        gaps.Gap(at=int(at(2011, 12, 30, 10)), local=int(at(2011, 12, 30)), length=86400)
    ]


def test_a_gap_is_after_the_moment_that_was_named() -> None:
    transition = at(2027, 3, 28, 1)
    assert gaps.gaps("Europe/Paris", transition - 1, 10)[0].at == transition
    assert gaps.gaps("Europe/Paris", transition, 10) == []


async def test_only_a_time_of_the_day_that_lies_in_a_gap_costs_a_look() -> None:
    paris = "Europe/Paris"
    nine = f"*-*-* 09:00:00 {paris}"
    fake = Fake({nine: (nine, [1.0])})
    await plan(Daily(("09:00",)), paris, NOW, fake)
    assert fake.asked == [nine]


def test_times_of_several_expressions_are_one_line_without_doubles() -> None:
    found = [Elapses("a", [1.0, 3.0]), Elapses("b", [2.0, 3.0, 4.0]), Elapses("c", [])]
    assert next_times(found, 9) == [1.0, 2.0, 3.0, 4.0]
    assert next_times(found, 2) == [1.0, 2.0]


# ---- what systemd-analyze prints ----

OF_252 = """\
  Original form: daily
Normalized form: *-*-* 00:00:00
    Next elapse: Tue 2026-11-24 00:00:00 UTC
       From now: 20h left
       Iter. #2: Wed 2026-11-25 00:00:00 UTC
       From now: 1 day 20h left

Normalized form: 2020-01-01 00:00:00
    Next elapse: never

"""
OF_257 = """\
  Original form: daily
Normalized form: *-*-* 00:00:00
    Next elapse: Tue 2026-11-24 00:00:00 UTC
       From now: 20h left
   Iteration #2: Wed 2026-11-25 00:00:00 UTC
       From now: 1 day 20h left

  Original form: 2020-01-01
Normalized form: 2020-01-01 00:00:00
    Next elapse: never
"""


@pytest.mark.parametrize("output", [OF_252, OF_257])
def test_the_output_of_several_versions_is_understood(output: str) -> None:
    assert read(output) == [
        Elapses("*-*-* 00:00:00", [at(2026, 11, 24), at(2026, 11, 25)]),
        Elapses("2020-01-01 00:00:00", []),
    ]


@pytest.mark.parametrize(
    "line", ["Next elapse: Tue 2026-11-24 00:00:00 CET", "Next elapse: tomorrow", "Next elapse: 2026-11-24 00:00 UTC"]
)
def test_a_time_that_is_not_understood_is_never_guessed(line: str) -> None:
    with pytest.raises(Unusable):
        read(f"Normalized form: x\n    {line}\n")
    with pytest.raises(Unusable):
        read(f"    {line}\n")


def test_the_expression_of_a_moment_is_in_utc() -> None:
    assert expression(at(2026, 12, 24, 15, zone=BERLIN)) == "2026-12-24 14:00:00 UTC"


# ---- the other fields ----


def test_a_name_is_given_or_the_first_line_of_the_prompt() -> None:
    assert fields.name("", "\n  water the plants\nand the cat") == "water the plants"
    assert fields.name("", "x" * 99) == "x" * 59 + "…"
    assert fields.name("", "\u200b") == "job"
    assert fields.name(" backups ", "p") == "backups"
    assert len(fields.name("n" * 100, "p")) == 100


def test_claude_is_another_word_for_an_agent_job() -> None:
    assert fields.job_type("claude") == fields.job_type("agent") == "agent"
    assert fields.job_type("reminder") == "reminder"


@pytest.mark.parametrize(
    ("check", "value", "said"),
    [
        (fields.job_type, "script", "job_type: expected reminder or agent"),
        (fields.job_type, "", "job_type: expected"),
        (fields.prompt, "", "prompt: empty"),
        (fields.prompt, " \n\t", "prompt: empty"),
        (fields.prompt, "x" * 16385, "prompt: 16385 bytes, expected at most 16384"),
        (fields.prompt, "ü" * 8193, "prompt: 16386 bytes"),
        (fields.prompt, "a\0b", "prompt: has a NUL"),
        (lambda value: fields.name(value, "p"), "x" * 101, "name: 101 characters"),
        (lambda value: fields.name(value, "p"), "  ", "name: 0 characters"),
        (lambda value: fields.name(value, "p"), "a\nb", "name: has a control character"),
        (lambda value: fields.name(value, "p"), "a\x1b[31mb", "name: has a control character"),
        (fields.workspace, "/etc", "workspace: expected"),
        (fields.workspace, "~/x", "workspace: expected"),
        (fields.workspace, "a/../b", "workspace: expected"),
        (fields.workspace, "a\nb", "workspace: expected"),
        (fields.workspace, "x" * 201, "workspace: expected"),
        (fields.model, "-x", "model: expected"),
        (fields.model, "a b", "model: expected"),
        (fields.model, "sk-ant-0123456789abcdef", "model: expected .*got what looks like a secret"),
    ],
)
def test_a_field_that_is_wrong_is_named(check: Any, value: str, said: str) -> None:
    with pytest.raises(InvalidParameter, match=f"^{said}"):
        check(value)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), 10.01])
def test_a_budget_is_at_most_the_users_ceiling(value: float) -> None:
    with pytest.raises(InvalidParameter, match=r"^budget_usd: expected"):
        fields.budget_usd(value, 10.0)


def test_good_values_stay_as_they_are() -> None:
    assert fields.prompt("ü" * 8192) == "ü" * 8192
    assert fields.workspace("home") == "home"
    assert fields.workspace("acme/site") == "acme/site"
    assert fields.model("opus[1m]") == "opus[1m]"
    assert fields.budget_usd(10.0, 10.0) == 10.0
    assert fields.budget_usd(0.0, 10.0) == 0.0


@pytest.mark.parametrize("field", fields.AGENTS_ONLY)
def test_what_belongs_to_agent_jobs_is_refused_for_a_reminder(field: str) -> None:
    values: dict[str, object] = dict.fromkeys(fields.AGENTS_ONLY, 0)
    fields.together("reminder", **values)
    values[field] = "x"
    fields.together("agent", **values)
    with pytest.raises(InvalidParameter, match=f"^{field}: only a job of job_type agent"):
        fields.together("reminder", **values)
