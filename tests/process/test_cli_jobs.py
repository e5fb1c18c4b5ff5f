"""`kai jobs` and `kai doctor`: what they ask the scheduler, and how the answer looks to an operator."""

from __future__ import annotations

import asyncio
import io
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from kai.cli import check, doctor, jobs, main, webhooks
from kai.interfaces import (
    Add,
    EditJob,
    GetJob,
    IntakeState,
    ListJobs,
    PauseJob,
    PreviewJob,
    ReadIntake,
    Reconcile,
    RemoveJob,
    ResumeJob,
    RetryDeliveries,
    RunRecord,
    TriggerJob,
)
from kai.lib.peers import Peer

from .scheduling import Scheduler, answering, job, scheduler

Kai = Callable[..., Awaitable[str]]
DUE = 1_800_000_000.0
"""Fri 2027-01-15 08:00:00 UTC"""


@pytest.fixture
async def other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scheduler]:
    (tmp_path / "run").mkdir()
    monkeypatch.setenv("KAI_RUNTIME_DIRECTORY", os.fspath(tmp_path / "run"))
    for module in (jobs, doctor):
        monkeypatch.setattr(module, "need_root", lambda _: None)
    failed = RunRecord(3, DUE - 86400, DUE - 86400, DUE - 86390, "failed", "the agent\x1b[31m died", 0.25)
    async with scheduler(
        tmp_path / "run/scheduler.sock",
        job(7, name="back\x1b[31mups\n", next=DUE, job_type="agent", prompt="check\nthem\x1b[31m"),
        job(12, "bob", next=0.0, state="paused", note="it failed 5 times in a row", timezone="", last=failed),
    ) as made:
        made.runs[7] = [failed]
        yield made


@pytest.fixture
def kai(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Kai:
    """Runs `kai …`; what it printed."""

    def run(words: tuple[str, ...]) -> object:
        monkeypatch.setattr(sys, "argv", ["kai", *words])
        with pytest.raises(SystemExit) as caught:
            main.main()
        return caught.value.code

    async def call(*words: str, code: object = 0) -> str:
        ended = await asyncio.to_thread(run, words)
        captured = capsys.readouterr()
        assert ended == code if isinstance(code, int) else str(ended).startswith(str(code))
        return captured.out + captured.err + ("" if isinstance(ended, int) else str(ended))

    return call


# ---- list, show ----


@pytest.mark.parametrize("words", [("jobs",), ("jobs", "list")])
async def test_the_list_has_a_line_for_each_job_in_its_own_zone_and_paints_nothing(
    other: Scheduler, kai: Kai, words: tuple[str, ...]
) -> None:
    assert (await kai(*words)).splitlines() == [
        "ID  USER   STATE   NEXT                                KIND      LAST    NAME",
        "7   alice  active  Fri 2027-01-15 17:00:00 Asia/Tokyo  agent     -       back [31mups",
        "12  bob    paused  -                                   reminder  failed  [it failed 5 times in a row] job12",
    ]
    assert other.calls == [ListJobs()]


async def test_the_list_can_be_of_one_user_and_of_ended_jobs(other: Scheduler, kai: Kai) -> None:
    await kai("jobs", "--user", "bob", "--all")
    await kai("jobs", "list", "--user", "bob")
    assert other.calls == [ListJobs("bob", ended=True), ListJobs("bob")]
    assert await kai("jobs", "list", "--user", "carol\x1b") == "There is no job of carol .\n"
    other.more = 17
    assert "(17 later ones are left off" in (await kai("jobs")).splitlines()[-1]


async def test_a_job_is_shown_whole_with_its_times_and_runs(other: Scheduler, kai: Kai) -> None:
    lines = (await kai("jobs", "show", "7")).splitlines()
    assert lines[:4] == ["id         7", "user       alice", "name       back [31mups ", "kind       agent"]
    assert "schedule   daily at 09:00" in lines
    assert "unit       kai-job@7.timer" in lines
    at = lines.index("next       Fri 2027-01-15 17:00:00 Asia/Tokyo")
    assert lines[at + 4] == "           Tue 2027-01-19 17:00:00 Asia/Tokyo"
    assert lines[at + 5 :] == [
        "last runs  Thu 2027-01-14 17:00:00 Asia/Tokyo  failed, took 10 s, $0.2500: the agent [31m died",
        "",
        "check",
        "them [31m",
    ]
    assert other.calls == [GetJob(7)]


# ---- add, edit ----


@pytest.mark.parametrize(
    ("words", "kind", "data"),
    [
        (("--at", "2026-12-24T18:00"), "once", '{"run_at": "2026-12-24T18:00"}'),
        (("--daily", "09:00, 18:30"), "daily", '{"times": ["09:00", "18:30"]}'),
        (("--every", "1h 30min"), "interval", '{"seconds": 5400}'),
        (("--every", "90"), "interval", '{"seconds": 90}'),
        (("--calendar", "Mon..Fri 09:00"), "calendar", '{"calendar": "Mon..Fri 09:00"}'),
    ],
)
async def test_a_job_is_made_with_any_schedule(
    other: Scheduler, kai: Kai, words: tuple[str, ...], kind: str, data: str
) -> None:
    said = await kai("jobs", "add", "--user", "alice", "--prompt", "water", *words)
    assert said == "job 7: active, next Fri 2027-01-15 17:00:00 Asia/Tokyo\n"
    assert other.calls == [Add("", "water", kind, data, user="alice")]


async def test_all_of_a_job_can_be_given_and_its_prompt_comes_from_standard_input(
    other: Scheduler, kai: Kai, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("check the backups\nand tell\n"))
    await kai(
        "jobs", "add", "--user", "bob", "--prompt", "-", "--name", "b", "--agent", "--auto-remove", "--notify-on-check",
        "--timezone", "Asia/Tokyo", "--workspace", "w", "--model", "m", "--budget", "2.50", "--daily", "09:00",
    )  # fmt: skip
    assert other.calls == [
        Add(
            "b", "check the backups\nand tell", "daily", '{"times": ["09:00"]}', "agent", True, True, "bob",
            "Asia/Tokyo", "w", "m", 2.5,
        )
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "call"),
    [
        (("--name", "x"), EditJob(7, name="x")),
        (("--every", "1d"), EditJob(7, schedule_type="interval", schedule_data='{"seconds": 86400}')),
        (("--reminder", "--prompt", "p"), EditJob(7, job_type="reminder", prompt="p")),
        (
            ("--agent", "--no-auto-remove", "--notify-on-check"),
            EditJob(7, job_type="agent", auto_remove=False, notify_on_check=True),
        ),
        (("--timezone", "", "--budget", "0"), EditJob(7, timezone="", budget_usd=0.0)),
    ],
)
async def test_a_change_names_only_what_is_changed(
    other: Scheduler, kai: Kai, words: tuple[str, ...], call: EditJob
) -> None:
    assert (await kai("jobs", "edit", "7", *words)).startswith("job 7: active, next ")
    assert other.calls == [call]


@pytest.mark.parametrize(
    "words",
    [
        ("add", "--user", "alice", "--prompt", "x"),
        ("add", "--user", "alice", "--daily", "09:00"),
        ("add", "--prompt", "x", "--daily", "09:00"),
        ("add", "--user", "alice", "--prompt", "x", "--daily", "09:00", "--every", "1h"),
        ("add", "--user", "alice", "--prompt", "x", "--every", "soon"),
        ("add", "--user", "alice", "--prompt", "x", "--every", "1h 30"),
        ("add", "--user", "alice", "--prompt", "x", "--every", "1h", "--budget", "-1"),
        ("add", "--user", "alice", "--prompt", "x", "--every", "1h", "--budget", "nan"),
        ("edit", "7"),
        ("edit", "7", "--agent", "--reminder"),
        ("remove",),
        ("remove", "0"),
        ("remove", "../7"),
        ("run", "٧"),
        ("preview",),
        ("preview", "--daily", "09:00", "--count", "21"),
        ("burn", "7"),
    ],
)
async def test_wrong_usage_asks_nobody(other: Scheduler, kai: Kai, words: tuple[str, ...]) -> None:
    assert "usage: kai" in await kai("jobs", *words, code=2)
    assert other.calls == []


# ---- what is done with one ----


@pytest.mark.parametrize(
    ("word", "call", "said"),
    [
        ("remove", RemoveJob, "job 7: removed"),
        ("run", TriggerJob, "job 7: started; `journalctl -u kai-job@7` tells how it goes"),
        ("pause", PauseJob, "job 7: paused (paused by its user)"),
        ("resume", ResumeJob, "job 7: active, next "),
    ],
)
async def test_what_is_done_with_a_job_is_told(other: Scheduler, kai: Kai, word: str, call: Any, said: str) -> None:
    assert (await kai("jobs", word, "7")).startswith(said)
    assert other.calls == [call(7)]


async def test_what_the_scheduler_refuses_is_told_on_one_line(other: Scheduler, kai: Kai) -> None:
    assert await kai("jobs", "show", "99", code="kai: ") == "kai: there is no job 99: `kai jobs list --all` shows all"
    other.refuses = "schedule_data.run_at: that was\nan hour ago\x1b[31m"
    told = await kai("jobs", "add", "--user", "alice", "--prompt", "x", "--at", "2020-01-01T00:00", code="kai: ")
    assert told == "kai: schedule_data.run_at: that was an hour ago [31m"


async def test_a_scheduler_that_is_not_there_is_named(
    other: Scheduler, kai: Kai, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAI_RUNTIME_DIRECTORY", os.fspath(tmp_path / "nowhere"))
    assert "systemctl status kai-scheduler.socket" in await kai("jobs", code="kai: ")


async def test_jobs_are_for_root_alone(other: Scheduler, kai: Kai, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for words in (("jobs",), ("jobs", "add", "--user", "a", "--prompt", "-", "--every", "1h"), ("doctor",)):
        assert "needs root: run it with sudo" in await kai(*words, code="kai: ")
    assert other.calls == []


# ---- preview, check, doctor ----


async def test_a_preview_has_the_next_times_with_their_zone(other: Scheduler, kai: Kai) -> None:
    said = await kai("jobs", "preview", "--daily", "09:00", "--timezone", "Europe/Berlin", "--count", "2")
    assert said.splitlines() == [
        "systemd: *-*-* 09:00:00",
        "Fri 2027-01-15 09:00:00 Europe/Berlin",
        "Sat 2027-01-16 09:00:00 Europe/Berlin",
    ]
    await kai("jobs", "preview", "--every", "1h", "--user", "bob")
    assert other.calls == [
        PreviewJob("daily", '{"times": ["09:00"]}', timezone="Europe/Berlin", count=2),
        PreviewJob("interval", '{"seconds": 3600}', user="bob"),
    ]


async def test_a_check_finds_what_differs_and_repairs_it_when_asked_to(other: Scheduler, kai: Kai) -> None:
    assert await kai("jobs", "check") == "systemd's timers are those of the jobs\n"
    other.found = ["job 7 has no timer\x1b[31m"]
    told = await kai("jobs", "check", code=1)
    assert told == "job 7 has no timer [31m\n`kai jobs check --repair` puts that right\n"
    assert await kai("jobs", "check", "--repair") == "job 7 has no timer [31m\nput right\n"
    assert other.calls == [Reconcile(look=True), Reconcile(look=True), Reconcile()]


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A systemctl that says what stands in this file."""
    said = tmp_path / "said"
    said.write_text("")
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/systemctl"
    program.write_text(f'#!/bin/sh\n[ "$2" = --failed ] && cat {said}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("CONFIGURATION_DIRECTORY", os.fspath(tmp_path / "etc"))
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/users.yaml").write_text("users: []\n")
    return said


@pytest.fixture
async def intake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[IntakeState]:
    """What kai-webhook says of itself."""
    monkeypatch.setattr(webhooks, "need_root", lambda _: None)
    said = IntakeState(endpoint="https://kai.example.org/webhook/github", github=True)

    async def answer(peer: Peer, call: Any) -> IntakeState:
        if isinstance(call, RetryDeliveries):
            said.failed, said.given_up = 0, []
        return said

    async with answering(tmp_path / "run/intake.sock", {ReadIntake: answer, RetryDeliveries: answer}):
        yield said


async def test_the_state_of_the_intake_is_shown_and_what_was_given_up_tried_again(
    other: Scheduler, kai: Kai, intake: IntakeState
) -> None:
    assert (await kai("webhooks")).splitlines() == [
        "endpoint  https://kai.example.org/webhook/github",
        "github    open",
        "generic   closed: no secret in /etc/credstore/kai-webhook/generic",
        "last      none yet",
        "waiting   0",
        "given up  0",
    ]
    intake.failed, intake.given_up, intake.trouble = 2, ["a-b", "c\x1b[31m"], "the bot is away"
    intake.stored, intake.oldest_at, intake.last, intake.last_at = 5, time.time() - 600, "push", time.time() - 60
    lines = (await kai("webhooks", code=1)).splitlines()
    assert lines[3].startswith("last      push, 1 min") and lines[4].startswith("waiting   5, the oldest since 10 min")
    assert lines[5:] == [
        "given up  2: `kai webhooks --retry` tries again", "          a-b", "          c [31m",
        "trouble   the bot is away",
    ]  # fmt: skip
    intake.trouble = ""
    assert "given up  0" in await kai("webhooks", "--retry")


async def test_the_doctor_finds_nothing_where_nothing_is_wrong(
    other: Scheduler, kai: Kai, systemctl: Path, intake: IntakeState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "faults", lambda _: [])
    assert (await kai("doctor")).splitlines() == [
        f"ok     {name}" for name in ("configuration", "units", "jobs", "totp", "services", "webhooks")
    ]
    assert other.calls == [Reconcile(look=True)]


async def test_the_doctor_has_a_line_for_every_fault_and_looks_on(
    other: Scheduler, kai: Kai, systemctl: Path, intake: IntakeState, tmp_path: Path
) -> None:
    intake.failed, intake.endpoint = 3, ""
    (tmp_path / "etc/users.yaml").write_text("users: [{telegram_id: x, name: alice}, {telegram_id: 2, nome: bob}]\n")
    systemctl.write_text("kai-bot.service loaded failed failed Kai bot\nkai-job@7.service loaded failed failed x\n")
    other.found = ["job 7 has no timer"]
    lines = (await kai("doctor", code=1)).splitlines()
    assert sum(line.startswith("fault  configuration  ") for line in lines) >= 2
    assert [line for line in lines if "configuration" not in line] == [
        "fault  units          kai-bot.service has failed: see `systemctl status kai-bot.service`",
        "fault  units          kai-job@7.service has failed: see `systemctl status kai-job@7.service`",
        "fault  jobs           job 7 has no timer; `kai jobs check --repair` puts it right",
        "ok     totp",
        "ok     services",
        "fault  webhooks       3 deliveries were given up: see `kai webhooks`",
        "fault  webhooks       there is a secret for GitHub and no webhook.url in kai.yaml: /github add can't tell the "
        "address",
    ]


async def test_the_doctor_goes_on_where_somebody_does_not_answer(
    other: Scheduler, kai: Kai, systemctl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin/systemctl").write_text("#!/bin/sh\necho no bus >&2; exit 1\n")
    monkeypatch.setenv("KAI_RUNTIME_DIRECTORY", os.fspath(tmp_path / "nowhere"))
    told = await kai("doctor", code=1)
    assert "fault  units          systemctl: no bus\n" in told
    assert "fault  jobs           " in told


@pytest.mark.parametrize(("text", "said"), [("10min", 600), (" 2 h 5 s ", 7205), ("1w", 604800), ("1d12h", 129600)])
def test_a_span_is_read_as_systemd_writes_it(text: str, said: int) -> None:
    assert jobs.seconds(text) == said
    assert time.gmtime(DUE)[:4] == (2027, 1, 15, 8)
