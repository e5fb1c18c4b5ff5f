"""The set under a sweep: its sockets stay open here, its daemons come from the zygote and are killed again and again.

The rules are those of the units: a bot that ends is started again, at once; a supervisor is started when its socket
becomes readable; and all that a daemon has started ends with it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from kai.demo import service
from kai.demo.launcher import Launcher

from .points import ALL, Point
from .zygote import Start

ROOT = Path(__file__).resolve().parents[3]
BOT, WEBHOOK = "kai-bot", "kai-webhook"
MOST_FAILURES = 10
Plan = Callable[[str, int], list[Point]]


class Zygote:
    """The process that forks daemons."""

    def __init__(self) -> None:
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-m", "tests.process.crash.zygote", str(theirs.fileno())]
            environment = {**os.environ, "PYTHONPATH": os.fspath(ROOT)}
            self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], cwd=ROOT, env=environment)
        self.socket.settimeout(60)
        if self.socket.recv(16) != b"ready":
            raise RuntimeError("the zygote has ended while it started; its words are on standard error")

    def start(self, start: Start, fds: list[int]) -> None:
        socket.send_fds(self.socket, [msgspec.json.encode(start)], fds)

    def close(self) -> None:
        self.socket.close()
        self.process.wait(30)


class Unit:
    """One service: `pid` while its daemon runs, `lives` is how often it was started."""

    def __init__(self, units: Units, unit: service.Unit) -> None:
        self.units, self.unit, self.name = units, unit, unit.name
        self.listening: list[socket.socket] = []
        self.pid: int | None = None
        self.lives = 0
        self.report = -1
        self.gone = asyncio.Event()
        self.gone.set()
        self.loop = asyncio.get_running_loop()
        for _, path in unit.sockets:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            made.bind(os.fspath(path))
            made.listen(128)
            self.listening.append(made)
        self._watch()

    def _watch(self) -> None:
        for listening in self.listening:
            self.loop.add_reader(listening, self.start)

    def _unwatch(self) -> None:
        for listening in self.listening:
            self.loop.remove_reader(listening)

    def start(self) -> None:
        """Start the daemon, unless it runs, or none may be started now."""
        self._unwatch()
        if not self.gone.is_set() or self.units.held:
            return
        self.lives += 1
        self.gone.clear()
        _, _, module, *arguments = self.unit.command[self.unit.command.index("-m") - 1 :]
        start = Start(
            module=module,
            arguments=arguments,
            environment=dict(self.unit.environment),
            names=[name for name, _ in self.unit.sockets],
            where=f"{self.name}#{self.lives}",
            kills=os.fspath(self.units.kills),
            plan=self.units.plan(self.name, self.lives),
            boot=self.units.boot,
            broken=self.units.broken,
        )
        report, theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        log = os.open(self.units.log(self.name), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self.units.zygote.start(start, [theirs, log, *(listening.fileno() for listening in self.listening)])
        os.close(theirs)
        os.close(log)
        self.report = report
        self.loop.add_reader(report, self._told, report)

    def _told(self, report: int) -> None:
        """The keeper, or the daemon itself, says something; the end of both is the end of this life."""
        said = b""
        with suppress(BlockingIOError):
            while chunk := os.read(report, 4096):
                said += chunk
            if not said:
                self.loop.remove_reader(report)
                os.close(report)
                if report == self.report:
                    self._ended(None)
                return
        for line in said.splitlines(keepends=True):
            word, _, number = line.decode().strip().partition(" ")
            if word == "pid":
                self.pid = int(number)
            elif line == ALL:
                self.units.kill_all()
            elif word == "exit":
                self._ended(int(number))

    def _ended(self, status: int | None) -> None:
        if self.gone.is_set():
            return
        self.pid = None
        self.gone.set()
        self.units.ended(self, status)
        if not self.units.closing:
            self._watch()
            if self.unit.resident:
                self.start()

    def signal(self, number: signal.Signals) -> bool:
        """False when there is nobody to get it."""
        if self.pid is None:
            return False
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)
        return True

    def close(self) -> None:
        self._unwatch()
        for listening in self.listening:
            listening.close()


class Units:
    """All services of a set that `launcher` has laid out.

    `killed` counts daemons that ended by SIGKILL, `others` lists ends that are neither that nor clean.
    """

    def __init__(
        self,
        zygote: Zygote,
        launcher: Launcher,
        plan: Plan,
        *,
        broken: str = "",
        more: Sequence[service.Unit] = (),
    ) -> None:
        self.zygote, self.launcher, self.plan, self.broken = zygote, launcher, plan, broken
        self.kills = launcher.directory / "kills"
        self.boot = ""
        self.killed = 0
        self.starts = 0
        self.others: list[str] = []
        self.held = self.closing = False
        self.units = {unit.name: Unit(self, unit) for unit in [*launcher.units(), *more]}

    def log(self, name: str) -> Path:
        return self.launcher.directory / "logs" / f"{name}.log"

    def open(self) -> None:
        for unit in self.units.values():
            if unit.unit.resident:
                unit.start()

    def ended(self, unit: Unit, status: int | None) -> None:
        if status == -signal.SIGKILL:
            self.killed += 1
        elif status != 0:
            self.others.append(f"{unit.name}#{unit.lives} exit {status}")
            if len(self.others) > MOST_FAILURES:  # it would be started again for ever
                self.held = True

    def kill_all(self) -> None:
        for unit in self.units.values():
            unit.signal(signal.SIGKILL)

    async def power_cut(self, boot: str) -> None:
        """Kill all at once, and let the host come up with another boot id.

        Of a database without fsync the newest part may then be missing: here it always is.
        """
        self.held = True
        self.kill_all()
        await self._all_gone()
        for wal in self.launcher.directory.glob("state/users/*/state/turns.db-wal"):
            wal.unlink()
        self.boot, self.held = boot, False
        for unit in self.units.values():
            unit._watch()
        self.open()

    async def _all_gone(self) -> None:
        async with asyncio.timeout(60):
            for unit in self.units.values():
                while not unit.gone.is_set():
                    unit.signal(signal.SIGKILL)
                    with suppress(TimeoutError):  # of one that has just been forked the process id isn't known yet
                        await asyncio.wait_for(unit.gone.wait(), 0.05)

    async def restart(self, name: str) -> None:
        """End one daemon as systemd does, and start it."""
        unit = self.units[name]
        lives = unit.lives
        unit.signal(signal.SIGTERM)
        async with asyncio.timeout(60):
            while unit.lives == lives:
                await asyncio.sleep(0.01)

    async def close(self) -> None:
        """End the bot as systemd does, then the others, then the sockets."""
        self.closing = True
        try:
            for unit in self.units.values():
                unit.signal(signal.SIGTERM)
            async with asyncio.timeout(60):
                for unit in self.units.values():
                    await unit.gone.wait()
        finally:
            for unit in self.units.values():
                unit.signal(signal.SIGKILL)
                unit.close()
