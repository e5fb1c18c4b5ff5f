"""The real systemd-analyze: what it says is what jobs run by."""

from __future__ import annotations

import asyncio
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from kai.lib.varlink import Busy, InvalidParameter
from kai.scheduler import gaps
from kai.scheduler.calendar import BadExpression, Calendar, Unusable
from kai.scheduler.gaps import Zoned
from kai.scheduler.schedule import Daily, Plan, Recurring, parse, plan

PARIS = "Europe/Paris"


def at(text: str, zone: str = "UTC") -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


WINTER = at("2027-02-01 12:00")
SPRING, AUTUMN = at("2027-03-28 01:00"), at("2027-10-31 01:00")


async def planned(expression: str, *, zone: str = PARIS, now: float = WINTER, count: int = 1) -> Plan:
    return await plan(Recurring(expression), zone, now, Calendar(), count=count)


async def test_next_times_are_those_after_the_moment_that_was_named() -> None:
    (found,) = await Calendar().elapses(["Mon..Fri 09:00 Europe/Berlin"], count=3, after=at("2026-11-27 08:00"))
    assert found.normal == "Mon..Fri *-*-* 09:00:00 Europe/Berlin"
    assert found.times == [at(f"{day} 09:00", "Europe/Berlin") for day in ("2026-11-30", "2026-12-01", "2026-12-02")]


async def test_without_a_moment_it_is_now() -> None:
    (found,) = await Calendar().elapses(["*:*:0/10"])
    assert 0 < found.times[0] - time.time() < 11


async def test_many_expressions_are_answered_in_their_order() -> None:
    expressions = [f"*-*-* {number % 24:02}:{number // 24:02}:00 UTC" for number in range(150)]
    found = await Calendar().elapses(expressions, after=at("2027-01-01 23:59:59"))
    assert [each.normal for each in found] == expressions
    assert [each.times[0] for each in found] == [
        at(f"2027-01-02 {number % 24:02}:{number // 24:02}") for number in range(150)
    ]


async def test_what_never_elapses_has_no_time_and_spoils_no_other() -> None:
    found = await Calendar().elapses(["2020-01-01", "*-02-30", "daily"])
    assert [bool(each.times) for each in found] == [False, False, True]


@pytest.mark.parametrize(
    "expression", ["garbage", "25:00", "Mon..Someday", "--help", "--version", "-h", "*-*-* 09:00 Mars/X"]
)
async def test_what_systemd_cannot_read_is_told_in_its_own_words(expression: str) -> None:
    with pytest.raises(BadExpression, match="Failed to parse calendar") as fault:
        await Calendar().elapses(["daily", expression, "weekly"])
    assert fault.value.expression == expression
    assert expression in str(fault.value)


@pytest.mark.parametrize("expression", ["", "a\nb", "täglich", "x" * 201, "\0"])
async def test_what_is_no_line_of_ascii_never_reaches_systemd(expression: str) -> None:
    with pytest.raises(BadExpression, match="printable ASCII"):
        await Calendar("/nonexistent").elapses([expression])


async def test_the_environment_of_the_daemon_changes_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TZ": "Asia/Tokyo", "LC_ALL": "de_DE.UTF-8", "SYSTEMD_LOG_LEVEL": "debug"}.items():
        monkeypatch.setenv(name, value)
    (found,) = await Calendar().elapses(["*-*-* 09:00:00"], after=at("2027-01-01 00:00"))
    assert found.times == [at("2027-01-01 09:00")]


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return os.fspath(path)


async def test_a_search_without_an_end_is_ended(tmp_path: Path) -> None:
    calendar = Calendar(script(tmp_path / "slow", f"echo $$ > {tmp_path}/pid; exec sleep 60"), patience=0.5)
    with pytest.raises(Unusable, match=r"no next time within 0.5 s for daily"):
        await calendar.elapses(["daily"])
    pid = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_caller_who_goes_away_leaves_no_process(tmp_path: Path) -> None:
    calendar = Calendar(script(tmp_path / "slow", f"echo $$ > {tmp_path}/pid; exec sleep 60"))
    task = asyncio.create_task(calendar.elapses(["daily"]))
    async with asyncio.timeout(10):
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


async def test_a_host_without_it_and_words_nobody_knows_are_no_fault_of_the_expression(tmp_path: Path) -> None:
    with pytest.raises(Unusable, match="it comes with systemd"):
        await Calendar("/nonexistent/systemd-analyze").elapses(["daily"])
    with pytest.raises(Unusable, match="and no times: nothing was said"):
        await Calendar("/bin/true").elapses(["daily"])
    odd = script(tmp_path / "odd", "echo 'Normalized form: x'; echo '    Next elapse: heute'")
    with pytest.raises(Unusable, match="heute"):
        await Calendar(odd).elapses(["daily"])
    with pytest.raises(Busy):
        await plan(Daily(("09:00",)), PARIS, WINTER, Calendar("/nonexistent/systemd-analyze"))


# ---- clocks that are put forward and back ----


async def test_systemd_skips_a_time_that_does_not_exist() -> None:
    """The fact that gaps.py stands on; were it to change, jobs would run twice that day."""
    (found,) = await Calendar().elapses([f"*-*-* 02:30:00 {PARIS}"], count=2, after=at("2027-03-27 12:00"))
    assert found.times == [at("2027-03-29 02:30", PARIS), at("2027-03-30 02:30", PARIS)]


@pytest.mark.parametrize(
    ("expression", "extra"),
    [
        ("*-*-* 02:30:00", True),
        ("*-*-* 02:00:00", True),
        ("*-*-* 02:59:59", True),
        ("Sun 02:15", True),
        ("Sat,Sun 02:15", True),
        ("*-*-* 03:00:00", False),
        ("*-*-* 01:59:59", False),
        ("Mon..Fri 02:30", False),
        ("hourly", False),
        ("*:0/20", False),
        ("*-*-* 02,03:30", False),
        ("*-*-01 02:30", False),
    ],
)
async def test_a_time_in_the_gap_of_spring_runs_at_the_transition(expression: str, extra: bool) -> None:
    found = await planned(expression)
    assert found.calendar == found.read + (["2027-03-28 01:00:00 UTC", "2028-03-26 01:00:00 UTC"] if extra else [])


async def test_a_daily_job_has_the_same_gaps() -> None:
    found = await plan(Daily(("02:30", "09:00")), PARIS, WINTER, Calendar())
    assert found.calendar == [
        f"*-*-* 02:30:00 {PARIS}", f"*-*-* 09:00:00 {PARIS}", "2027-03-28 01:00:00 UTC", "2028-03-26 01:00:00 UTC",
    ]  # fmt: skip


async def test_the_days_around_spring_have_one_run_each() -> None:
    found = await planned("02:30", now=at("2027-03-26 12:00"), count=4)
    assert found.times == [
        at("2027-03-27 02:30", PARIS), SPRING, at("2027-03-29 02:30", PARIS), at("2027-03-30 02:30", PARIS),
    ]  # fmt: skip


async def test_the_days_around_autumn_have_one_run_each() -> None:
    found = await planned("02:30", now=at("2027-10-29 12:00"), count=4)
    days = [datetime.fromtimestamp(each, ZoneInfo(PARIS)) for each in found.times]
    assert [f"{day:%d %H:%M}" for day in days] == ["30 02:30", "31 02:30", "01 02:30", "02 02:30"]
    assert AUTUMN - 3600 <= found.times[1] <= AUTUMN + 3600


async def test_an_expression_with_a_zone_of_its_own_has_that_zones_gaps() -> None:
    berlin = await planned("02:30 Europe/Berlin", zone="UTC")
    assert berlin.calendar[1:] == ["2027-03-28 01:00:00 UTC", "2028-03-26 01:00:00 UTC"]
    assert (await planned("02:30 UTC")).calendar == ["*-*-* 02:30:00 UTC"]
    assert (await planned("02:30", zone="America/New_York")).calendar[1] == "2027-03-14 07:00:00 UTC"


async def test_a_gap_of_half_an_hour_and_one_before_midnight_are_gaps_too() -> None:
    howe = await planned("02:15", zone="Australia/Lord_Howe")
    assert at("2027-10-02 15:30") in {at(each.removesuffix(" UTC")) for each in howe.calendar[1:]}
    assert (await planned("02:45", zone="Australia/Lord_Howe")).calendar[1:] == []
    for zone in ("Africa/Cairo", "Asia/Beirut", "America/Santiago"):
        assert len((await planned("00:00", zone=zone)).calendar) > 1, zone


async def test_what_is_added_is_what_the_gap_took() -> None:
    for zone in (PARIS, "America/St_Johns", "Africa/Casablanca", "Australia/Lord_Howe"):
        for gap in gaps.gaps(zone, WINTER):
            middle = datetime.fromtimestamp(gap.local + gap.length // 2, UTC)
            added = await gaps.jumps(Calendar(), [Zoned(f"{middle:%Y-%m-%d %H:%M:%S}", zone)], WINTER)
            assert added == [f"{datetime.fromtimestamp(gap.at, UTC):%Y-%m-%d %H:%M:%S} UTC"]


# ---- whole schedules ----


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("*-02-30", "never elapses"),
        ("2020-01-01", "never elapses"),
        ("@1500000000", "never elapses"),
        ("*:*:*", "elapses again after 1 s"),
        ("*:*:0/5", "elapses again after 5 s"),
        ("*:*:0/9.5", "elapses again after [69] s"),
        ("*:*:0/7 Asia/Tokyo", "elapses again after [47] s"),
        ("09:00:00,05", "elapses again after 5 s"),
        ("*:*:02,57", "elapses again after 5 s"),
        ("0 9 * * *", "systemd says: Failed to parse calendar specification"),
        ("every day", "systemd says: Failed to parse calendar specification"),
        ("2300-01-01", "(systemd says|never elapses)"),
        ("daily right/UTC", "expected a time zone"),
    ],
)
async def test_a_calendar_that_no_job_can_have_is_refused_by_its_field(expression: str, said: str) -> None:
    with pytest.raises(InvalidParameter, match=rf"^schedule_data\.calendar: {said}"):
        await planned(expression)


@pytest.mark.parametrize(
    "expression", ["*:*:0/10", "*:*:0/15", "daily", "Mon *-*~07/1", "*-02-29", "2027-06-01 12:00", "@1900000000"]
)
async def test_what_systemd_makes_of_an_expression_it_reads_the_same_way_again(expression: str) -> None:
    found = await planned(expression)
    again = await Calendar().elapses(found.read)
    assert [each.normal for each in again] == found.read
    assert all(each.rpartition(" ")[2] in (PARIS, "UTC") for each in found.read)


async def test_the_next_times_of_many_a_day_are_all_there() -> None:
    hours = tuple(f"{hour:02}:30" for hour in range(24))
    found = await plan(Daily(hours), PARIS, at("2027-03-27 12:00"), Calendar(), count=20)
    assert found.times[:2] == [at("2027-03-27 13:30", PARIS), at("2027-03-27 14:30", PARIS)]
    assert SPRING in found.times
    assert found.times == sorted({*(at("2027-03-27 12:30") + 3600 * hour for hour in range(20)), SPRING})[:20]


async def test_a_once_job_asks_nobody() -> None:
    once = parse("once", '{"run_at": "2027-06-01T12:00"}', PARIS, WINTER)
    found = await plan(once, PARIS, WINTER, Calendar("/nonexistent"))
    assert found.calendar == ["2027-06-01 10:00:00 UTC"]
    (systemds,) = await Calendar().elapses(found.calendar, after=WINTER)
    assert systemds.times == found.times
