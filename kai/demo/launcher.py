"""Plays systemd for the set: the daemons in one directory, started by their sockets, under one uid and without root.

    async with Launcher(directory, api_base=…, token=…, users=[{"telegram_id": 1, "name": "alice"}]) as launcher:
        await launcher.wait_ready("kai-bot")

As on a real host, `kai-bot` runs and everything else is a socket until someone connects. The rules are those of the
units: a clean exit leaves the socket listening, a failure is followed by a restart after a second, exit status 78
takes the socket down, and when a daemon ends, nothing that it started goes on (see `keeper`). What isn't here is the
isolation: one uid is every role, so this is for the demo and for tests, and is refused where Kai is installed.
"""

from __future__ import annotations

import asyncio
import fcntl
import functools
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import kai
from kai.demo.service import STOP_PATIENCE, Service, Unit
from kai.lib.daemon import INSTALLED

LONGEST_SOCKET_PATH = 107
AGENT = Path(__file__).with_name("agent.py")


class LauncherError(Exception):
    """The set can't be started here, or a daemon does not come up; the message says why."""


def refuse_where_installed() -> None:
    """Raises LauncherError on a host with an installation: there one uid must never be every role."""
    if INSTALLED.exists():
        raise LauncherError(
            f"Kai is installed on this host ({INSTALLED} exists), and the demo's daemons take their own uid for every "
            "role. Use the installation (`kai status`), or run the demo on another host or in a container."
        )


@functools.cache
def python() -> tuple[tuple[str, ...], dict[str, str]]:
    """The interpreter for a daemon, and the environment it needs to find this very copy of kai.

    Isolated where kai is installed in the environment of this interpreter; from a mere checkout, by PYTHONPATH.
    """
    here = Path(kai.__file__).resolve()
    probe = [sys.executable, "-I", "-c", "import kai; print(kai.__file__)"]
    found = subprocess.run(probe, capture_output=True, text=True, check=False).stdout.strip()
    if found and Path(found).resolve() == here:
        return (sys.executable, "-I"), {}
    return (sys.executable,), {"PYTHONPATH": os.fspath(here.parent.parent), "PYTHONSAFEPATH": "1"}


def offline_agent(state: Path, *, runs: Path | None = None) -> list[str]:
    """The command of the offline agent, which keeps its sessions in `state` and counts its turns in `runs`."""
    command = [sys.executable, "-I", "-S", os.fspath(AGENT), "--state", os.fspath(state)]
    return [*command, "--runs", os.fspath(runs)] if runs else command


class Launcher:
    """The set in one directory: etc, credentials, run, state, logs.

    `users` are rows of users.yaml, `settings` is merged into kai.yaml. Without `agent_command` the offline agent
    runs. Times are seconds. Names are those of the units: `kai-bot`, `kai-agent@alice`.
    """

    def __init__(
        self,
        directory: Path,
        *,
        api_base: str,
        token: str,
        users: Sequence[Mapping[str, Any]],
        agent_command: Sequence[str] | None = None,
        settings: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
        stop_patience: float = STOP_PATIENCE,
    ) -> None:
        self.directory = directory.absolute()
        self.token = token
        self.users = [dict(user) for user in users]
        self.stop_patience = stop_patience
        command = list(agent_command or offline_agent(self.directory / "agent"))
        self.settings = merged({"telegram": {"api_base": api_base}, "agent": {"command": command}}, settings or {})
        self.extra_environment = dict(environment or {})
        self.runtime = self.directory / "run"
        self.borrowed: Path | None = None
        self.lock: int | None = None
        self.services: dict[str, Service] = {}

    # ---- begin and end ----

    async def start(self) -> None:
        """Write the configuration, open all sockets, start what is resident. Raises LauncherError."""
        refuse_where_installed()
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._claim()
        try:
            self._lay_out()
            for unit in self.units():
                self.add(unit)
        except BaseException:
            await self.stop()
            raise
        for service in self.services.values():
            if service.unit.resident:
                service.start()

    async def stop(self) -> None:
        """End every daemon and whatever it started, and remove the sockets; safe to call twice."""
        await asyncio.gather(*(service.close() for service in self.services.values()))
        self.services.clear()
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None
        if self.borrowed:
            shutil.rmtree(self.borrowed, ignore_errors=True)
            self.borrowed = None

    async def __aenter__(self) -> Launcher:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def units(self) -> list[Unit]:
        """The set: the bot, a supervisor for each user, and the proxy for services."""
        interpreter, _ = python()
        bot = Unit(
            "kai-bot",
            (*interpreter, "-m", "kai.bot.main", "--one-uid"),
            (("bot", self.runtime / "bot.sock"),),
            self._environment("bot", CREDENTIALS_DIRECTORY=self.directory / "credentials"),
            resident=True,
        )
        agents = [
            Unit(
                f"kai-agent@{user['name']}",
                (*interpreter, "-m", "kai.agent.main", str(user["name"]), "--one-uid"),
                (
                    ("front", self.runtime / "agent" / f"{user['name']}.sock"),
                    ("api", self.runtime / "api" / f"{user['name']}.sock"),
                ),
                self._environment(f"users/{user['name']}/state"),
            )
            for user in self.users
        ]
        proxy = Unit(
            "kai-proxy",
            (*interpreter, "-m", "kai.proxy.main", "--one-uid"),
            (("services", self.runtime / "proxy.sock"),),
            self._environment("proxy", CREDENTIALS_DIRECTORY=self.directory / "credentials"),
        )
        return [bot, *agents, proxy]

    def add(self, unit: Unit) -> None:
        """Open one more unit's sockets; it is started by its first connection, or by `restart`."""
        log = self.directory / "logs" / f"{unit.name}.log"
        notify = self.runtime / "notify" / unit.name
        self.services[unit.name] = Service(unit, log=log, notify=notify, stop_patience=self.stop_patience)
        self.services[unit.name].open()

    def _environment(self, state: str, **directories: Path) -> dict[str, str]:
        """The whole environment of a daemon: as under systemd, nothing comes along from who started this."""
        directory = self.directory / "state" / state
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        account = pwd.getpwuid(os.geteuid())
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": account.pw_dir,
            "USER": account.pw_name,
            "LOGNAME": account.pw_name,
            "LANG": "C.UTF-8",
            "CONFIGURATION_DIRECTORY": os.fspath(self.directory / "etc"),
            "STATE_DIRECTORY": os.fspath(directory),
            "KAI_RUNTIME_DIRECTORY": os.fspath(self.runtime),
            **{name: os.fspath(path) for name, path in directories.items()},
            **python()[1],
            **self.extra_environment,
        }

    def _lay_out(self) -> None:
        self.directory.chmod(0o700)
        longest = max(len(os.fsencode(path)) for path in self._paths())
        if longest > LONGEST_SOCKET_PATH:  # the kernel's limit; a directory deep in a tree is no fault of the caller's
            self.runtime = self.borrowed = Path(tempfile.mkdtemp(prefix="kai-run-", dir="/tmp"))
        for name in ("etc", "credentials", "run", "state", "logs"):
            (self.directory / name).mkdir(mode=0o700, exist_ok=True)
        for name in ("totp", "totp/enrolled"):  # nobody is
            (self.directory / "state" / name).mkdir(mode=0o700, exist_ok=True)
        # JSON is YAML too, and the plainest kind of it
        self._write("etc/kai.yaml", json.dumps(self.settings, indent=2, ensure_ascii=False))
        self._write("etc/users.yaml", json.dumps({"users": self.users}, indent=2, ensure_ascii=False))
        self._write("credentials/kai-telegram-token", self.token)

    def _claim(self) -> None:
        """Two sets in one directory would take each other's sockets away."""
        self.lock = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self.lock)
            self.lock = None
            raise LauncherError(f"another set runs in {self.directory}: end it, or take another directory") from None

    def _paths(self) -> list[Path]:
        names = ["kai-bot", *(f"kai-agent@{user['name']}" for user in self.users)]
        return [self.runtime / "notify" / name for name in names]

    def _write(self, name: str, text: str) -> None:
        path = self.directory / name
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(f"{text}\n")

    # ---- looking and meddling ----

    def pid(self, name: str) -> int | None:
        """The daemon's process id, None while it doesn't run."""
        return self.services[name].pid

    def starts(self, name: str) -> int:
        """How often it was started."""
        return self.services[name].starts

    def logs(self, name: str) -> str:
        """What the daemon wrote to standard error, over all its lives."""
        log = self.services[name].log
        return log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""

    def status(self) -> dict[str, str]:
        """A line for each unit: its state, and what it says of itself."""
        return {
            name: f"{service.state}: {service.status}" if service.status else service.state
            for name, service in self.services.items()
        }

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to the daemon. After a deadly one, `wait_ready` waits for the next start."""
        service = self.services[name]
        if service.pid is None:
            raise LauncherError(f"{name} doesn't run")
        if number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGABRT):
            service.ready.clear()
        os.kill(service.pid, number)

    async def wait_ready(self, name: str, within: float = 10.0) -> None:
        """Wait until the daemon says READY. Raises LauncherError with the end of its log when it doesn't."""
        service = self.services[name]
        waits = [asyncio.ensure_future(event.wait()) for event in (service.ready, service.failed)]
        try:
            await asyncio.wait(waits, timeout=within, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if not service.ready.is_set():
            raise LauncherError(f"{name} is not ready: {self.status()[name]}\n{self.end_of_log(name)}".rstrip())

    async def wait_exit(self, name: str, within: float = 10.0) -> int | None:
        """Wait until the daemon's process is gone; its exit status, negative for a signal."""
        service = self.services[name]
        await asyncio.wait_for(service.exited.wait(), within)
        return service.exit_status

    async def restart(self, name: str) -> None:
        """What `systemctl restart` does: SIGTERM, wait, start, wait until it is ready."""
        service = self.services[name]
        await service.stop()
        service.start()
        await self.wait_ready(name)

    def end_of_log(self, name: str, lines: int = 10) -> str:
        return "\n".join(self.logs(name).splitlines()[-lines:])


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings put together at every depth; what is not a mapping comes from `over`."""
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        result[key] = merged(below, value) if isinstance(below, dict) and isinstance(value, Mapping) else value
    return result
