"""The harness itself: a container boots, and what goes in and comes out of it arrives whole."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cache import cache_dir
from tests.machine.container import CHECKOUT, BootFailed, CommandFailed, Machine, MachineFailed


def test_a_fresh_debian_boots_until_it_is_running(machine: Machine, suite: str) -> None:
    assert machine.systemctl("is-system-running").out == "running\n"
    assert f"VERSION_CODENAME={suite}\n" in machine.read("/etc/os-release")


def test_a_fresh_debian_has_none_of_what_the_installer_must_bring(machine: Machine) -> None:
    for program in ("python3", "sudo", "curl", "gcc"):
        assert machine.run(f"command -v {program}", check=False).code != 0


def test_exit_code_output_and_errors_of_a_command_come_through(machine: Machine) -> None:
    done = machine.run("cat; echo trouble >&2; exit 7", input="čaj\n", check=False)
    assert (done.code, done.out, done.err) == (7, "čaj\n", "trouble\n")
    assert machine.run("kill -TERM $$", check=False).code == 128 + 15
    with pytest.raises(CommandFailed, match=r"(?s)`exit 3`.* ended with 3"):
        machine.run("exit 3")


def test_a_command_sees_only_the_environment_that_the_harness_gives_it(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_THE_HOST", "x")
    seen = machine.run("env", env={"GIVEN": "y"}).out.splitlines()
    assert "GIVEN=y" in seen
    assert "HOME=/root" in seen
    assert not [line for line in seen if line.startswith(("SECRET_OF_THE_HOST", "PYTEST"))]


def test_a_command_runs_as_an_account_with_its_groups_and_home(machine: Machine) -> None:
    machine.run("useradd --create-home --groups users alice")
    said = machine.run('id -un; id -Gn; echo "$HOME"; grep CapEff /proc/self/status', user="alice").out.splitlines()
    assert said == ["alice", "alice users", "/home/alice", "CapEff:\t0000000000000000"]


def test_a_command_that_takes_too_long_is_killed_with_its_children(machine: Machine) -> None:
    with pytest.raises(CommandFailed, match="took longer than"):
        machine.run("echo begun; sleep 4711 & sleep 4712", timeout=0.5)
    machine.wait_for(lambda: machine.run("pgrep -f 'sleep 471'", check=False).code == 1, what="no sleep is left")


def test_a_command_left_in_the_background_does_not_hold_up_its_caller(machine: Machine) -> None:
    begun = time.monotonic()
    machine.run("setsid sleep 20 & echo done")
    assert time.monotonic() - begun < 10


def test_a_spawned_command_goes_on_until_it_is_stopped(machine: Machine) -> None:
    process = machine.spawn("trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.1; done")
    machine.wait_for(lambda: process.out == "up\n", what="the command is up")
    assert process.running()
    left = process.stop()
    assert (left.code, left.out) == (5, "up\nbye\n")


def test_files_and_directories_arrive_as_they_were(machine: Machine, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "deep").mkdir(parents=True)
    (tree / "deep/run.sh").write_bytes(bytes(range(256)) * 5000)
    (tree / "deep/run.sh").chmod(0o750)
    (tree / "link").symlink_to("deep/run.sh")
    digest = subprocess.run(["sha256sum", tree / "link"], capture_output=True, text=True, check=True).stdout[:64]
    machine.push(tree, "/srv/tree")
    machine.push(tree / "deep/run.sh", "/srv/other/name")
    for path in ("/srv/tree/link", "/srv/other/name"):
        assert machine.run(["sha256sum", path]).out.startswith(digest)
        assert machine.run(["stat", "-Lc", "%a %U", path]).out == "750 root\n"
    machine.write("/srv/own/note", "čaj", mode=0o640, owner="nobody")
    assert machine.read("/srv/own/note") == "čaj"
    assert machine.run("stat -c '%a %U:%G' /srv/own/note").out == "640 nobody:nogroup\n"


def test_the_checkout_arrives_as_a_clone_would_be(machine: Machine) -> None:
    machine.push_checkout("/srv/kai")
    assert machine.read("/srv/kai/pyproject.toml") == (CHECKOUT / "pyproject.toml").read_text()
    assert machine.run("test -x /srv/kai/tests/machine/boot").code == 0
    found = machine.run("find /srv/kai -name .git -o -name __pycache__ -o -name '.*_cache'").out
    assert found == ""


def test_the_journal_is_read_by_unit_and_by_field(machine: Machine) -> None:
    machine.run("systemd-run --wait --quiet --unit=speaker echo 'it spoke'")
    assert "it spoke" in [entry["MESSAGE"] for entry in machine.journal("speaker.service")]
    assert "it spoke" in [entry["MESSAGE"] for entry in machine.journal(SYSLOG_IDENTIFIER="echo")]


def test_what_is_on_disk_survives_a_reboot_and_what_is_in_run_does_not(machine: Machine) -> None:

    machine.run("touch /var/kept /run/lost")
    machine.reboot()
    machine.run("test -e /var/kept && test ! -e /run/lost")
    assert machine.systemctl("is-system-running").out == "running\n"
    machine.stop()
    with pytest.raises(MachineFailed, match="not running"):
        machine.run("true")
    machine.boot()
    machine.run("test -e /var/kept")


def test_a_boot_with_a_failed_unit_fails_and_shows_the_unit_and_the_console(machine: Machine) -> None:
    unit = "[Service]\nType=oneshot\nExecStart=/bin/false\n[Install]\nWantedBy=multi-user.target\n"
    machine.write("/etc/systemd/system/broken.service", unit)
    machine.systemctl("enable", "broken.service")
    with pytest.raises(BootFailed, match=r"(?s)Failed units:\nbroken\.service.*Console:.*broken\.service"):
        machine.reboot()
    machine.systemctl("disable", "broken.service")
    machine.reboot()


def test_the_package_registries_are_reached_from_inside(machine: Machine) -> None:
    machine.run("apt-get update && apt-get install --yes --no-install-recommends python3-venv", timeout=600)
    machine.run("python3 -m venv /opt/try && /opt/try/bin/pip install --quiet sdnotify==0.3.2", timeout=300)
    assert machine.run("/opt/try/bin/python -c 'import sdnotify; print(1)'").out == "1\n"


def test_two_machines_run_side_by_side_and_a_copied_root_does_as_well(machine: Machine) -> None:
    with Machine.create(machine.suite, overlay=False) as second:
        second.boot()
        second.run("touch /var/mine")
        assert second.run("hostname").out != machine.run("hostname").out
        machine.run("test ! -e /var/mine")


def test_an_aborted_run_is_tidied_up_by_the_next(suite: str) -> None:
    abort = f"""
import os
from tests.machine.container import Machine
with Machine.create({suite!r}) as machine:
    machine.boot()
    print(machine.name, flush=True)
    os.kill(os.getpid(), 9)
"""
    aborted = subprocess.run([sys.executable, "-c", abort], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    name = aborted.stdout.strip()
    assert name, aborted.stderr
    assert _is_running(name)
    with Machine.create(suite):
        assert not _is_running(name)
        assert name not in Path("/proc/mounts").read_text()
        assert not list((cache_dir() / "machines").glob(f"{name}*"))


def test_boot_runs_a_command_in_the_checkout_and_hands_on_its_exit_code(suite: str) -> None:
    script = [os.fspath(CHECKOUT / "tests/machine/boot"), suite, "--", "sh", "-c", "pwd; ls pyproject.toml; exit 9"]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (9, "/root/kai\npyproject.toml\n")


def _is_running(name: str) -> bool:
    listed = subprocess.run(["pgrep", "--full", f"machine={name}"], capture_output=True, check=False)
    return listed.returncode == 0
