"""Jobs in words: schedules, times, the list and one job as the chat shows them, and the button that cancels one."""

from __future__ import annotations

from typing import Any
from zoneinfo import ZoneInfo

import pytest

from kai.bot.joblist import ALL, controls, listed, whole
from kai.bot.jobnote import cancellable
from kai.bot.message import Body, Button, File, plain
from kai.bot.split import LIMIT
from kai.bot.text import length
from kai.interfaces import Job, JobDetails, RunRecord
from kai.lib.schedules import span, stamp, when, words

TOKYO, BERLIN = ZoneInfo("Asia/Tokyo"), ZoneInfo("Europe/Berlin")
NOW = 1_800_000_000.0
"""Fri 2027-01-15, 17:00 in Tokyo."""


def job(number: int = 7, **fields: Any) -> Job:
    given: dict[str, Any] = {
        "name": "backups", "job_type": "agent", "prompt": "check them", "schedule_type": "daily",
        "schedule_data": '{"times": ["09:00"]}', "auto_remove": False, "notify_on_check": False, "created_at": NOW,
        "state": "active", "timezone": "Asia/Tokyo", "next": NOW + 600, **fields,
    }  # fmt: skip
    return Job(id=number, user="alice", **given)


@pytest.mark.parametrize(
    ("kind", "data", "said"),
    [
        ("once", '{"run_at": "2026-11-24T15:00"}', "once, 2026-11-24 15:00"),
        ("once", '{"run_at": "2026-11-24T15:00:07+02:00"}', "once, 2026-11-24 15:00:07 UTC+02:00"),
        ("once", '{"run_at": "2026-11-24T15:00:00Z"}', "once, 2026-11-24 15:00 UTC"),
        ("daily", '{"times": ["09:00"]}', "daily at 09:00"),
        ("daily", '{"times": "09:00"}', "daily at 09:00"),
        ("daily", '{"times": ["09:00", "12:00", "18:30"]}', "daily at 09:00, 12:00 and 18:30"),
        ("interval", '{"seconds": 5400}', "every 1 h 30 min"),
        ("calendar", '{"calendar": "Mon..Fri 09:00"}', "at Mon..Fri 09:00"),
        ("once", '{"run_at": "soon"}', 'once {"run_at": "soon"}'),
        ("once", '{"run_at": 5}', 'once {"run_at": 5}'),
        ("daily", "{}", "daily {}"),
        ("daily", '{"times": []}', 'daily {"times": []}'),
        ("interval", "[", "interval ["),
        ("interval", '{"seconds": "x"}', 'interval {"seconds": "x"}'),
    ],
)
def test_a_schedule_is_told_in_words_and_what_cant_be_read_as_it_is(kind: str, data: str, said: str) -> None:
    assert words(kind, data) == said


@pytest.mark.parametrize(
    ("at", "said"),
    [
        (NOW, "today 17:00"),
        (NOW + 7, "today 17:00:07"),
        (NOW + 7 * 3600, "tomorrow 00:00"),
        (NOW - 18 * 3600, "yesterday 23:00"),
        (NOW + 5 * 86400, "Wed 20 Jan 17:00"),
        (NOW - 30 * 86400, "Wed 16 Dec 2026 17:00"),
    ],
)
def test_a_time_is_told_as_one_says_it(at: float, said: str) -> None:
    assert when(at, TOKYO, NOW) == said


def test_days_are_those_of_the_zone_that_is_told() -> None:
    assert when(NOW + 7 * 3600, BERLIN, NOW) == "today 16:00"
    assert stamp(NOW, "Europe/Berlin") == "Fri 2027-01-15 09:00:00 Europe/Berlin"
    for name in ("", "Nowhere/Land", "../../etc/passwd", "\0"):
        assert stamp(NOW, name) == "Fri 2027-01-15 08:00:00 UTC"


def test_a_span_has_every_unit_that_there_is_of() -> None:
    assert [span(s) for s in (0, 10, 90, 3600, 86400 + 61)] == ["0 s", "10 s", "1 min 30 s", "1 h", "1 d 1 min 1 s"]


# ---- the list ----


def test_the_list_has_two_lines_for_each_job_and_buttons_for_the_first_ten() -> None:
    made = [
        job(1, last=RunRecord(4, NOW - 86400, NOW - 86400, NOW - 86400 + 50, "delivered", cost_usd=0.0123)),
        job(2, job_type="reminder", state="paused", next=0.0, note="it failed 5 times in a row"),
        job(3, running=True, next=NOW + 3 * 86400),
        *(job(number) for number in range(4, 15)),
    ]
    message = listed(made, TOKYO, NOW)
    assert message.text.split("\n\n")[1:4] == [
        "1 backups – agent, daily at 09:00\nnext today 17:10 (in 10 min) · last: delivered yesterday 17:00, $0.0123",
        "2 backups – reminder, daily at 09:00\npaused: it failed 5 times in a row",
        "3 backups – agent, daily at 09:00\nrunning now, then Mon 18 Jan 17:00",
    ]
    data = [button.data for row in message.rows() for button in row]
    assert data == [f"job:{number}:info" for number in range(1, 11)]
    assert all(len(word.encode()) <= 64 for word in data)


@pytest.mark.parametrize("name", ["x", "😀" * 100, "a\nb" * 30, "*_[`"])
def test_a_list_of_very_many_jobs_is_one_message_that_names_the_rest(name: str) -> None:
    error = RunRecord(1, NOW, NOW, NOW, "failed", "😀" * 500)
    made = [job(10**17 + number, name=name, note="n" * 500, last=error) for number in range(1000)]
    message = listed(made, TOKYO, NOW, more=5000)
    assert length(message.text) <= LIMIT
    shown = message.text.count(" – agent, ")
    assert f"And {6000 - shown} more: 1000000000000000" in message.text
    assert {entity["type"] for entity in message.entities} == {"code"}
    assert len(message.rows()) <= 10


def test_names_of_jobs_are_code_and_a_label_is_never_empty() -> None:
    message = listed([job(name="/stop @bob\u202e\nhttps://example.org"), job(8, name="\u200b")], TOKYO, NOW)
    assert "7 /stop @bob https://example.org – " in message.text
    assert [button.text for row in message.rows() for button in row] == ["7 /stop @bob https://example.org", "8 \u200b"]
    assert {entity["type"] for entity in message.entities} <= {"code"}


# ---- one job ----


def text(found: Job, *runs: RunRecord, times: int = 5, done: str = "") -> str:
    following = [found.next + n * 86400 for n in range(times)] if found.next else []
    return whole(JobDetails(found, following, list(runs)), BERLIN, NOW, done=done).text


def test_a_job_is_shown_with_everything_that_is_not_usual() -> None:
    found = job(auto_remove=True, notify_on_check=True, workspace="site", model="opus", budget_usd=2.0)
    runs = [RunRecord(2, NOW, NOW), RunRecord(1, NOW, NOW - 3600, NOW - 3600, "quiet")]
    assert text(found, *runs, done="▶ Started.").splitlines() == [
        "▶ Started.",
        "",
        "Job 7 backups",
        "agent, daily at 09:00 (Asia/Tokyo)",
        "state: next today 09:10 (in 10 min)",
        "then: tomorrow 09:10; Sun 17 Jan 09:10; Mon 18 Jan 09:10; Tue 19 Jan 09:10",
        "ends when its condition is met; a check that finds it isn't is told too",
        "workspace site, model opus, budget $2.00",
        "last runs:",
        "– began today 09:00",
        "– nothing to tell today 08:00",
        "",
        "check them",
    ]
    assert "(Europe/Berlin)" not in text(job(timezone="Europe/Berlin"))
    assert "no run yet" in text(job())
    once: dict[str, Any] = {"schedule_type": "once", "schedule_data": '{"run_at": "2027-01-15T17:10:00+09:00"}'}
    assert "\nagent, once (Asia/Tokyo)\nstate: next today 09:10 (in 10 min)\n" in text(job(**once), times=1)
    over = text(job(**once, state="ended", next=0))
    assert "\nagent, once, 2027-01-15 17:10 UTC+09:00 (Asia/Tokyo)\nstate: ended\n" in over


@pytest.mark.parametrize("prompt", ["x" * 16384, "😀" * 8000, "a\u0301" * 5000, "\n" * 5000 + "x", "", "\u202e"])
def test_however_long_a_prompt_is_the_job_is_one_message(prompt: str) -> None:
    failed = RunRecord(1, NOW, NOW, NOW, "failed", "😀" * 500, 0.5)
    found = job(prompt=prompt, name="😀" * 100, note="😀" * 400, workspace="w" * 300, model="m" * 300)
    found.schedule_type, found.schedule_data = "calendar", '{"calendar": "' + "x" * 3000 + '"}'
    message = whole(JobDetails(found, [NOW] * 20, [failed] * 20), TOKYO, NOW, done="▶ Started.")
    assert length(message.text) <= LIMIT
    assert all(entity["offset"] + entity["length"] <= length(message.text) for entity in message.entities)
    if len(prompt) > 7000:
        assert message.text.endswith(f"({len(prompt.strip())} characters in all)")


@pytest.mark.parametrize(
    ("found", "verbs"),
    [
        (job(), ["run", "pause", "cancel", "list"]),
        (job(state="paused"), ["run", "resume", "cancel", "list"]),
        (job(running=True), ["info", "pause", "cancel", "list"]),
        (job(state="ended"), ["list"]),
    ],
)
def test_the_buttons_are_for_what_can_be_done(found: Job, verbs: list[str]) -> None:
    laid = Body("", [], controls(found)).rows()
    assert [button.data.split(":")[2] for row in laid for button in row] == verbs
    assert {button.data.split(":")[1] for row in laid for button in row if button != ALL} <= {"7"}


# ---- the button of a delivered message ----


def test_a_message_gets_the_button_where_its_settlement_fits_beside_it() -> None:
    button = Button("Cancel job 7", "jobnote:7:cancel")
    (one,) = cancellable([plain("x")], 7)
    assert one == Body("x", [], [button])
    first, last = cancellable([plain("a"), plain("b")], 7)
    assert (first.buttons, last.buttons) == ([], [button])
    for message in (plain("x" * (LIMIT - 10)), Body("caption", file=File("a.txt", text="x"))):
        kept, below = cancellable([message], 7)
        assert kept == message
        assert below == Body("This is of job 7.", [], [button])
