"""Linters are tests. A program that is missing fails its test and names the package to install; nothing is skipped."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kai.cli import accounts
from kai.config import User

ROOT = Path(__file__).resolve().parents[2]
UNITS = sorted(path for path in (ROOT / "units").iterdir() if path.is_file())
MAN = sorted((ROOT / "man").iterdir())
PACKAGES = {
    "ruff": "ruff (pip install '.[test]')",
    "mypy": "mypy (pip install '.[test]')",
    "shellcheck": "shellcheck",
    "mandoc": "mandoc",
    "visudo": "sudo",
    "systemd-analyze": "systemd",
}
EXPOSURE = {
    "kai-bot.service": 1.5,
    "kai-proxy.service": 1.5,
    "kai-scheduler.service": 0.5,
    "kai-totp.service": 0.5,
    "kai-webhook.service": 0.5,
    "kai-github.service": 1.5,
    "kai-job@.service": 0.5,
    "kai-timers.service": 1.0,
    "kai-agent@.service": 3.0,
}
"""The most that `systemd-analyze security` may find; a unit without network may have 0.5."""


def tool(name: str) -> str:
    beside = Path(sys.executable).parent
    found = shutil.which(name, path=os.pathsep.join([str(beside), os.environ.get("PATH", ""), "/usr/sbin"]))
    if found is None:
        pytest.fail(f"{name} is missing: install {PACKAGES[name]}")
    return found


def lint(name: str, *arguments: object, expect: int = 0) -> str:
    """Run a linter in the checkout and give what it said; fails unless it exits with `expect`."""
    command = [tool(name), *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == expect, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def shell_files() -> Iterator[Path]:
    for path in sorted([*ROOT.glob("*.sh"), *ROOT.glob(".ci/*"), *ROOT.glob("tests/**/*")]):
        if path.is_file() and path.suffix in ("", ".sh"):
            with path.open("rb") as file:
                first = file.readline()
            if first.startswith(b"#!") and first.split(b"/")[-1].split()[0] in (b"sh", b"bash"):
                yield path


def test_ruff_finds_nothing() -> None:
    lint("ruff", "check", "--quiet", ".")


def test_the_code_is_formatted() -> None:
    lint("ruff", "format", "--check", "--quiet", ".")


@pytest.mark.timeout(300)
def test_mypy_finds_nothing() -> None:
    lint("mypy")


@pytest.mark.parametrize("path", [*shell_files()], ids=lambda path: str(path.relative_to(ROOT)))
def test_shellcheck_finds_nothing(path: Path) -> None:
    lint("shellcheck", path)


def test_shell_programs_are_found() -> None:
    names = {str(path.relative_to(ROOT)) for path in shell_files()}
    assert {"install.sh", ".ci/run", "tests/run"} <= names


@pytest.mark.parametrize("path", MAN, ids=lambda path: path.name)
def test_mandoc_finds_nothing_in_the_manual(path: Path) -> None:
    # "referenced manual not found" is about the pages that this host happens to have.
    said = lint("mandoc", "-Tlint", "-Wwarning", path).splitlines()
    assert [line for line in said if "referenced manual not found" not in line] == []


def test_visudo_takes_the_rules_of_users(tmp_path: Path) -> None:
    people = [User(telegram_id=1, name="alice", os_user="alice"), User(telegram_id=2, name="bob")]
    file = tmp_path / "kai"
    file.write_text(accounts.sudoers(accounts.sudoers_template(), people))
    assert "warning" not in lint("visudo", "-c", "-f", file).lower()
    file.write_text(file.read_text() + "kai-u-bob ALL=\n")
    lint("visudo", "-c", "-f", file, expect=1)


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The units where programs exist: systemd-analyze looks for them, and Kai need not be installed here."""
    for path in UNITS:
        text = path.read_text()
        text = re.sub(r"/opt/kai/current/bin/kai-[a-z]+", "/bin/true", text)
        (tmp_path / path.name).write_text(text)
    shutil.copy(tmp_path / "kai-agent@.service", tmp_path / "kai-agent@alice.service")
    shutil.copy(tmp_path / "kai-agent@.socket", tmp_path / "kai-agent@alice.socket")
    shutil.copy(tmp_path / "kai-agent-api@.socket", tmp_path / "kai-agent-api@alice.socket")
    shutil.copy(tmp_path / "kai-job@.service", tmp_path / "kai-job@7.service")
    return tmp_path


def test_systemd_takes_every_unit(installed: Path) -> None:
    units = sorted(path for path in installed.iterdir() if "@." not in path.name)
    said = lint("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *units)
    assert [line for line in said.splitlines() if any(path.name in line for path in units)] == []


@pytest.mark.parametrize("unit", EXPOSURE)
def test_a_unit_is_no_more_exposed_than_the_design_allows(unit: str) -> None:
    path = ROOT / "units" / unit
    # --threshold counts in tenths.
    lint("systemd-analyze", "security", "--offline=true", f"--threshold={round(EXPOSURE[unit] * 10)}", path)


def test_every_service_has_a_threshold() -> None:
    assert {path.name for path in UNITS if path.suffix == ".service"} == set(EXPOSURE)


@pytest.mark.parametrize("path", [path for path in UNITS if path.suffix == ".socket"], ids=lambda path: path.name)
def test_a_socket_stops_with_kai_and_leaves_nothing_behind(path: Path) -> None:
    lines = path.read_text().splitlines()
    tcp = "ListenStream=127.0.0.1:8080" in lines
    for line in ("PartOf=kai.target", "WantedBy=kai.target", *(() if tcp else ("RemoveOnStop=yes", "SocketMode=0660"))):
        assert line in lines
    assert tcp or any(line.startswith("ListenStream=/run/kai/") for line in lines)
    assert sum(line.startswith("FileDescriptorName=") for line in lines) == 1


@pytest.mark.parametrize("path", [path for path in UNITS if path.suffix == ".service"], ids=lambda path: path.name)
def test_a_service_survives_crashes_and_leaves_no_memory_on_disk(path: Path) -> None:
    lines = path.read_text().splitlines()
    wanted = ["StartLimitIntervalSec=0", "LimitCORE=0"]
    if (
        "Type=oneshot" not in lines
    ):  # a run of a job goes on by itself where it was; what failed waits for its next time
        wanted += ["Restart=on-failure", "RestartSec=1", "Type=notify"]
    for line in wanted:
        assert line in lines
    # In a user namespace every caller reads as nobody; an environment is readable by all of the same account.
    assert not any(line.startswith(("PrivateUsers=", "Environment")) for line in lines)
