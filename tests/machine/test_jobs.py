"""Jobs on a server: systemd's own timers, reboots, a hand at systemctl, and callers who mean harm."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

from kai.demo.botapi.views import MessageView
from tests.machine.host import USERS, Host, host

TIMERS = "systemctl list-timers --all --plain --no-legend 'kai-job@*'"
SCHEDULER, DOOR = "/run/kai/scheduler.sock", "/run/kai/timers.sock"


@pytest.fixture(scope="module")
def kai(suite: str) -> Iterator[Host]:
    """Installed once per Debian; the tests of this file share it, in their order."""
    with host(suite) as made:
        made.first_install()
        made.configure(proxy={"model": {"url": made.model.address}})
        yield made


def add(kai: Host, *options: str, user: str = "alice") -> int:
    """`kai jobs add`; gives the job's id."""
    said = kai.machine.run(["kai", "jobs", "add", "--user", user, *options]).out
    found = re.search(r"\b(?:job )?(\d+)\b", said)
    assert found, said
    return int(found[1])


def local(kai: Host, seconds: float) -> str:
    """The host's local time so many seconds from now, to the second."""
    return kai.machine.run(["date", "-d", f"@{time.time() + seconds:.0f}", "+%Y-%m-%dT%H:%M:%S"]).out.strip()


def delivered(kai: Host, text: str, user: str = "alice") -> list[MessageView]:
    return [m for m in kai.telegram.messages(USERS[user]) if m.by_bot and text in (m.text or "")]


def wait_delivered(kai: Host, text: str, user: str = "alice", timeout: float = 60) -> MessageView:
    def look() -> MessageView | None:
        return next(iter(delivered(kai, text, user)), None)

    try:
        return kai.telegram.wait_for(look, timeout=timeout)
    except TimeoutError:
        journal = kai.machine.run("journalctl -n 60 --no-pager -o short-precise -u 'kai-*'", check=False).out
        raise AssertionError(f"{user} was never told {text!r}\n{kai.machine.run(TIMERS).out}\n{journal}") from None


def timers(kai: Host) -> set[str]:
    return set(re.findall(r"kai-job@\S+\.timer", kai.machine.run(TIMERS).out))


def remove(kai: Host, *jobs: int) -> None:
    for job in jobs:
        kai.machine.run(["kai", "jobs", "remove", str(job)])


def gone(kai: Host, unit: str) -> bool:
    return kai.active(unit) in ("inactive", "failed", "unknown")


def test_at_rest_no_process_of_the_scheduler_runs(kai: Host) -> None:
    kai.machine.wait_for(lambda: gone(kai, "kai-scheduler.service"), 60, what="the scheduler left")
    kai.machine.wait_for(lambda: gone(kai, "kai-timers.service"), 60, what="kai-timers left")
    assert kai.active("kai-scheduler.socket") == kai.active("kai-timers.socket") == "active"
    assert kai.machine.systemctl("show", "-P", "Result", "kai-scheduler").out.strip() == "success"


def test_a_reminder_is_a_timer_and_comes_at_its_time(kai: Host) -> None:
    due = time.time() + 8
    job = add(kai, "--prompt", "water the plants", "--at", local(kai, 8))
    assert f"kai-job@{job}.timer" in timers(kai)
    wait_delivered(kai, "water the plants", timeout=30)
    assert time.time() - due < 10
    assert len(delivered(kai, "water the plants")) == 1
    kai.machine.wait_for(lambda: f"kai-job@{job}.timer" not in timers(kai), 20, what="the timer is gone")
    assert kai.machine.journal(f"kai-job@{job}.service"), "its unit has a log"


def test_what_a_job_said_is_known_in_the_next_chat_turn(kai: Host) -> None:
    kai.ask("alice", "echo-history", "water the plants")
    lines = kai.machine.run("cat /var/lib/kai/users/alice/history/*.jsonl").out
    assert "water the plants" in lines


def test_an_agent_job_runs_the_real_cli_in_a_session_of_its_own(kai: Host) -> None:
    kai.ask("alice", "say: words of the chat", "words of the chat")
    job = add(kai, "--agent", "--prompt", "run: id -un > job-ran; echo it-ran-as-$(id -un)", "--every", "1h")
    kai.machine.systemctl("start", f"kai-job@{job}.service")  # waits for the run
    wait_delivered(kai, "it-ran-as-alice")
    asked = add(kai, "--agent", "--prompt", "echo-history", "--every", "1h")
    kai.machine.systemctl("start", f"kai-job@{asked}.service")
    wait_delivered(kai, "echo-history")
    assert "words of the chat" not in (delivered(kai, "echo-history")[-1].text or "")
    log = " ".join(entry["MESSAGE"] for entry in kai.machine.journal(f"kai-job@{job}.service"))
    assert "it-ran-as" not in log, "what users say is not for the journal"
    remove(kai, job, asked)


def test_a_conditional_job_is_quiet_until_its_condition_is_met(kai: Host) -> None:
    options = ("--agent", "--auto-remove", "--every", "1h", "--name", "disk", "--prompt")
    quiet = add(kai, *options, "say: CONDITION_NOT_MET all is well")
    loud = add(kai, *options, "say: CONDITION_MET: the disk is full")
    kai.machine.systemctl("start", f"kai-job@{quiet}.service", f"kai-job@{loud}.service")
    wait_delivered(kai, "the disk is full")
    assert not delivered(kai, "all is well")
    assert not delivered(kai, "CONDITION")
    assert f"kai-job@{quiet}.timer" in timers(kai)
    kai.machine.wait_for(lambda: f"kai-job@{loud}.timer" not in timers(kai), 20, what="the job that is met ended")
    remove(kai, quiet)


def test_jobs_are_shown_and_cancelled_in_the_chat(kai: Host) -> None:
    job = add(kai, "--name", "backups", "--agent", "--prompt", "say: fine", "--daily", "09:00")
    others = add(kai, "--name", "of-bob", "--prompt", "say: fine", "--daily", "09:00", user="bob")
    after = kai.say("alice", "/jobs")

    def listing() -> MessageView | None:
        found = kai.telegram.messages(USERS["alice"])
        return next((m for m in found if m.by_bot and m.message_id > after and "backups" in (m.text or "")), None)

    assert "of-bob" not in (kai.telegram.wait_for(listing, timeout=30).text or "")
    after = kai.say("alice", f"/job cancel {others}")
    kai.telegram.wait_for(
        lambda: next((m for m in kai.telegram.messages(USERS["alice"]) if m.by_bot and m.message_id > after), None),
        timeout=30,
    )
    assert f"kai-job@{others}.timer" in timers(kai), "another's job isn't hers to cancel"
    kai.say("alice", f"/job cancel {job}")
    kai.machine.wait_for(lambda: f"kai-job@{job}.timer" not in timers(kai), 30, what="cancelled")
    remove(kai, others)


def test_preview_is_systemds_own_calculation(kai: Host) -> None:
    said = kai.machine.run(
        ["kai", "jobs", "preview", "--calendar", "Mon..Fri 09:00", "--timezone", "Europe/Berlin", "--count", "3"]
    ).out
    command = ["systemd-analyze", "calendar", "--iterations=3", "Mon..Fri 09:00 Europe/Berlin"]
    theirs = kai.machine.run(command).out
    for day in re.findall(r"(\d{4}-\d\d-\d\d) \d\d:\d\d:\d\d UTC", theirs):
        assert day in said, (said, theirs)


@pytest.mark.parametrize("command", ["daemon-reload", "daemon-reexec"])
def test_timers_survive_what_happens_to_pid_1(kai: Host, command: str) -> None:
    text = f"after the {command}"
    add(kai, "--prompt", text, "--at", local(kai, 8))
    kai.machine.systemctl(command)
    wait_delivered(kai, text, timeout=30)
    assert len(delivered(kai, text)) == 1


def test_a_timer_stopped_by_hand_is_shown_and_made_again(kai: Host) -> None:
    job = add(kai, "--prompt", "x", "--daily", "09:00")
    kai.machine.systemctl("stop", f"kai-job@{job}.timer")
    shown = kai.machine.run(["kai", "jobs", "check"], check=False)
    assert shown.code == 1
    assert str(job) in shown.out
    doctor = kai.machine.run(["kai", "doctor"], check=False)
    assert doctor.code == 1
    assert str(job) in doctor.out
    kai.machine.systemctl("start", "kai-scheduler.service")
    kai.machine.systemctl("restart", "kai-scheduler.service")
    kai.machine.wait_for(lambda: f"kai-job@{job}.timer" in timers(kai), 30, what="made again")
    assert kai.machine.run(["kai", "jobs", "check"], check=False).code == 0
    remove(kai, job)


def test_strangers_among_the_timers_are_removed(kai: Host) -> None:
    for name in ("evil", "0", "99999"):
        kai.machine.run(
            ["systemd-run", f"--unit=kai-job@{name}", "--on-calendar=2099-01-01", "--timer-property=AccuracySec=1s"]
        )
    assert {"kai-job@evil.timer", "kai-job@0.timer", "kai-job@99999.timer"} <= timers(kai)
    kai.machine.systemctl("restart", "kai-scheduler.service")
    kai.machine.wait_for(lambda: not timers(kai) & {"kai-job@evil.timer", "kai-job@0.timer", "kai-job@99999.timer"}, 30)


def test_a_stop_of_the_target_stops_the_timers_and_a_start_brings_them_back(kai: Host) -> None:
    job = add(kai, "--prompt", "x", "--daily", "09:00")
    kai.machine.systemctl("stop", "kai.target")
    kai.machine.wait_for(lambda: not timers(kai), 30, what="no timer of Kai's is left")
    kai.machine.systemctl("start", "kai.target")
    kai.machine.wait_for(lambda: f"kai-job@{job}.timer" in timers(kai), 30, what="the timer is back")
    kai.wait_status("polling as @")
    remove(kai, job)


def test_a_reminder_that_is_due_while_telegram_is_away_comes_later_and_once(kai: Host) -> None:
    kai.machine.systemctl("stop", "kai-bot.service", "kai-bot.socket")
    job = add(kai, "--prompt", "while the bot was away", "--at", local(kai, 6))
    kai.machine.wait_for(
        lambda: kai.active(f"kai-job@{job}.service") in ("activating", "active"), 30, what="its run waits for the bot"
    )
    assert not delivered(kai, "while the bot was away")
    kai.machine.systemctl("start", "kai.target")
    wait_delivered(kai, "while the bot was away")
    time.sleep(2)
    assert len(delivered(kai, "while the bot was away")) == 1


def test_a_reboot_loses_no_job(kai: Host) -> None:
    """What was missed while the host was off: a once-job comes and says it is late, a recurring one comes once."""
    once = add(kai, "--prompt", "missed once", "--at", local(kai, 12))
    minutely = add(kai, "--prompt", "missed calendar", "--calendar", "*:*:0/20")
    spaced = add(kai, "--prompt", "an hour between", "--every", "1h")
    daily = add(kai, "--prompt", "x", "--daily", "09:00")
    before = len(delivered(kai, "missed calendar"))
    kai.machine.stop()
    time.sleep(75)
    stopped = len(delivered(kai, "missed calendar"))
    assert stopped - before <= 2
    assert not delivered(kai, "missed once")
    kai.machine.boot()
    kai.wait_status("polling as @")
    late = wait_delivered(kai, "missed once")
    assert "late" in (late.text or "")
    kai.telegram.wait_for(lambda: len(delivered(kai, "missed calendar")) > stopped, timeout=40)
    kai.machine.run(["kai", "jobs", "remove", str(minutely)])
    assert len(delivered(kai, "missed calendar")) - stopped <= 3, "made up for once, then at its own times"
    assert {f"kai-job@{job}.timer" for job in (spaced, daily)} <= timers(kai)
    assert not delivered(kai, "an hour between")
    assert len(delivered(kai, "missed once")) == 1
    remove(kai, spaced, daily)
    assert f"kai-job@{once}.timer" not in timers(kai)


def test_an_upgrade_keeps_the_jobs_and_a_run_in_progress(kai: Host) -> None:
    job = add(kai, "--agent", "--prompt", "slow: 15 " + " ".join(f"word{n}" for n in range(40)), "--every", "1h")
    kai.machine.systemctl("start", "--no-block", f"kai-job@{job}.service")
    kai.machine.wait_for(lambda: kai.active("kai-agent@alice.service") == "active", 30)
    time.sleep(3)
    kai.machine.run('sed -i -E \'s/^(__version__ = "[^"]*)"/\\1.post2"/\' kai/__init__.py', cwd="/root/kai")
    kai.install()
    wait_delivered(kai, "word39", timeout=120)
    assert len(delivered(kai, "word39")) == 1
    assert f"kai-job@{job}.timer" in timers(kai)
    remove(kai, job)


# ---- callers who mean harm ----


def call(kai: Host, account: str, socket: str, method: str, **parameters: Any) -> str:
    return kai.varlink(account, socket, method, parameters)


def test_nobody_but_its_owner_sees_or_touches_a_job(kai: Host) -> None:
    job = add(kai, "--prompt", "a secret of bob's", "--daily", "09:00", user="bob")
    for method in ("Get", "Remove", "Pause", "Resume", "Trigger", "Edit"):
        answer = call(kai, "kai-u-alice", SCHEDULER, f"kai.Scheduler.{method}", id=job)
        assert answer == "kai.Scheduler.NoSuchJob", method
        named = call(kai, "kai-u-alice", SCHEDULER, f"kai.Scheduler.{method}", id=job, user="bob")
        assert named in ("kai.Scheduler.NoSuchJob", "org.varlink.service.PermissionDenied"), method
    for account in ("alice", "bob", "kai-w-carol", "kai-proxy", "nobody"):
        assert call(kai, account, SCHEDULER, "kai.Scheduler.List") == "PermissionError"
        read = kai.machine.run("cat /var/lib/kai/scheduler/*", user=account, check=False)
        assert read.code != 0
        assert not read.out
        shown = kai.machine.run(
            f"systemctl show kai-job@{job}.timer kai-job@{job}.service; systemctl list-timers --all", user=account
        )
        assert "secret of bob" not in shown.out
    assert call(kai, "kai-u-alice", SCHEDULER, "kai.Scheduler.List", user="bob") != "ok"
    assert call(kai, "kai-u-alice", SCHEDULER, "kai.Scheduler.List") == "ok"
    made = {"name": "x", "prompt": "x", "schedule_type": "interval", "schedule_data": '{"seconds": 3600}'}
    assert call(kai, "kai-u-alice", SCHEDULER, "kai.Scheduler.Add", user="bob", **made) != "ok"
    assert f"kai-job@{job}.timer" in timers(kai)
    remove(kai, job)


HOSTILE_TIMERS: list[dict[str, Any]] = [
    {"job": 0, "revision": 1, "calendar": ["daily"]},
    {"job": -1, "revision": 1, "calendar": ["daily"]},
    {"job": 2**63, "revision": 1, "calendar": ["daily"]},
    {"job": "1; reboot", "revision": 1, "calendar": ["daily"]},
    {"job": "../../evil", "revision": 1, "calendar": ["daily"]},
    {"job": 1, "revision": 1, "calendar": ["daily\nExecStart=/bin/touch /run/pwned"]},
    {"job": 1, "revision": 1, "calendar": ["*-*-* 00:00:00", "x" * 5000]},
    {"job": 1, "revision": 1, "calendar": ["daily\u0000evil"]},
    {"job": 1, "revision": 1, "calendar": ["%n %H"]},
    {"job": 1, "revision": 1, "calendar": ["daily"] * 5000},
    {"job": 1, "revision": 1, "every": 0},
    {"job": 1, "revision": 1, "every": -5, "first": 1},
    {"job": 1, "revision": 1, "every": 2**62, "first": 1},
    {"job": 1, "revision": 1},
    {"job": 1, "revision": -1, "calendar": ["daily"]},
    {"job": 1, "revision": 1, "calendar": ["daily"], "every": 60},
    {"job": 1, "revision": 1, "calendar": "daily"},
]


def reply(kai: Host, account: str, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """The whole answer of kai-timers to one call."""
    program = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.settimeout(30)\n"
        "s.connect(sys.argv[1]); s.sendall(sys.argv[2].encode() + b'\\0'); data = b''\n"
        "while not data.endswith(b'\\0'):\n"
        "    piece = s.recv(65536)\n"
        "    if not piece: break\n"
        "    data += piece\n"
        "print(data.rstrip(b'\\0').decode() or '{\"error\": \"closed\"}')"
    )
    call = json.dumps({"method": method, "parameters": parameters})
    answer = kai.machine.run(["python3", "-I", "-c", program, DOOR, call], user=account).out
    found: dict[str, Any] = json.loads(answer)
    return found


@pytest.mark.parametrize("timer", HOSTILE_TIMERS, ids=[str(number) for number in range(len(HOSTILE_TIMERS))])
def test_kai_timers_makes_nothing_of_what_isnt_a_plain_timer(kai: Host, timer: dict[str, Any]) -> None:
    """As the scheduler's own account, the only caller: even a scheduler that was taken over gets no more."""
    before = timers(kai)
    answer = reply(kai, "kai-scheduler", "kai.Timers.Set", {"timers": [timer]})
    assert answer.get("error") or answer["parameters"]["faults"], answer
    assert timers(kai) == before
    assert kai.machine.run("test -e /run/pwned", check=False).code == 1


@pytest.mark.parametrize("method", ["Set", "Remove", "Start", "List"])
@pytest.mark.parametrize("account", ["root", "kai-bot", "kai-u-alice", "alice", "kai-proxy", "nobody"])
def test_only_the_scheduler_may_ask_kai_timers(kai: Host, account: str, method: str) -> None:
    refused = call(kai, account, DOOR, f"kai.Timers.{method}", timers=[], jobs=[])
    assert refused == ("org.varlink.service.PermissionDenied" if account == "root" else "PermissionError")


def test_kai_timers_starts_nothing_but_jobs(kai: Host) -> None:
    """Start with a job that isn't there starts kai-job@, which the scheduler refuses: nothing else happens."""
    for jobs in ([0], [-3], ["kai-bot"], [[1]]):
        assert "error" in reply(kai, "kai-scheduler", "kai.Timers.Start", {"jobs": jobs})
    reply(kai, "kai-scheduler", "kai.Timers.Start", {"jobs": [4711]})
    kai.machine.wait_for(lambda: gone(kai, "kai-job@4711.service"), 90, what="refused")
    said = " ".join(entry["MESSAGE"] for entry in kai.machine.journal("kai-job@4711.service"))
    assert "4711" in said
    kai.machine.systemctl("reset-failed", check=False)


def test_the_only_root_has_no_capability_and_no_network(kai: Host) -> None:
    reply(kai, "kai-scheduler", "kai.Timers.List", {})
    pid = kai.machine.systemctl("show", "-P", "MainPID", "kai-timers.service").out.strip()
    status = kai.machine.read(f"/proc/{pid}/status")
    assert re.search(r"^CapEff:\s*0+$", status, re.M)
    assert re.search(r"^CapBnd:\s*0+$", status, re.M)
    assert re.search(r"^NoNewPrivs:\s*1$", status, re.M)
    assert re.search(r"^Seccomp:\s*2$", status, re.M)
    shown = kai.machine.systemctl("show", "-p", "RestrictAddressFamilies", "-p", "PrivateNetwork", "kai-timers").out
    assert sorted(shown.split()) == ["PrivateNetwork=yes", "RestrictAddressFamilies=AF_UNIX"]
    # systemd 257 goes on without where it lacks the privilege, as in a container; the filter of families holds anyway.
    probe = ["systemd-run", "--quiet", "--wait", "--pipe", "-p", "PrivateNetwork=yes", "readlink", "/proc/self/ns/net"]
    if kai.machine.run(probe).out != kai.machine.run(["readlink", "/proc/1/ns/net"]).out:
        devices = kai.machine.read(f"/proc/{pid}/net/dev").splitlines()[2:]
        assert [line.split(":")[0].strip() for line in devices] == ["lo"]
