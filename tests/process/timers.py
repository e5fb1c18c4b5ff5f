"""kai-timers for a set without systemd: the real handlers above a systemd that is played here, rules included.

    launcher.add(timers.unit(launcher))             # before it is first called; or with the words of another kai-job
    timers.starts(launcher, job=7)                  # what it started so far

A daemon like any other: `timers.sock` in the set's runtime directory starts it. It plays PID 1 too, so it doesn't leave
when it is idle, and its end is the end of a boot: its timers are gone and what it started is killed, but the stamps of
persistent timers stay. Its state directory (`directory(launcher)`) holds

- `starts.jsonl`: a line for each start of a job, and one for its end;
- `job-7.log`: what its kai-job wrote, as the journal of kai-job@7 would have it;
- `stamps`: those of systemd;

and does as these files say, which a test may write at any time:

- `refuse`: the making of a timer is refused with the error that is named there, such as `InvalidArgs`;
- `unreachable`: it is there while systemd can't be reached;
- `strangers`: names of timers that somebody else made, one a line.

What it plays was measured on systemd 252: a name that exists is refused, also while the timer's service runs; a stop
takes time, and now and then the name is taken for a moment longer; a one-shot in the past never fires; what never
elapses is taken without a word; while the service runs no next elapse is told; one elapse that passed while the service
ran (calendars and intervals alike) or, where persistent, while the host was off, is made up for at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import re
import sys
import time
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import msgspec

from kai.demo.launcher import Launcher, python
from kai.demo.service import Unit
from kai.lib import daemon
from kai.lib.daemon import Daemon
from kai.lib.peers import Peers
from kai.lib.server import Server
from kai.lib.varlink import Misconfigured
from kai.timers.systemd import INVALID, NEVER, NO_SUCH_UNIT, UNIT_EXISTS, Clock, Loaded, Property, Refused, Unreachable
from kai.timers.timers import Timers

STOPPING = 0.02
"""Seconds that a stop takes."""
LINGERS, LINGERING = 4, 0.015
"""After each fourth stop the name is taken for so many seconds more."""
LONGEST_WAIT = 600.0
"""Seconds between two looks at the wall clock, which may be set."""
TYPES = {
    "Description": "s", "PartOf": "as", "AccuracyUSec": "t", "RandomizedDelayUSec": "t",
    "RemainAfterElapse": "b", "TimersCalendar": "a(ss)", "Persistent": "b", "TimersMonotonic": "a(st)",
}  # fmt: skip
PLAIN = re.compile(r"(\d{4}-\d\d-\d\d) (\d\d:\d\d:\d\d) UTC")
NEXT = re.compile(r"^ *Next elapse: \w+ (\d{4}-\d\d-\d\d) (\d\d:\d\d:\d\d) UTC$", re.M)

# ---- for tests ----


def unit(launcher: Launcher, *job: str) -> Unit:
    """The stand-in, for `launcher.add`. `job` is the command that plays kai-job@ID; %i in it is the job's id."""
    interpreter, _ = python()
    command = job or (*interpreter, "-m", "kai.scheduler.job", "%i")
    return Unit(
        "kai-timers",
        (*interpreter, os.fspath(Path(__file__).resolve()), "--one-uid", "--", *command),
        (("timers", launcher.runtime / "timers.sock"),),
        launcher._environment("timers"),
    )


def directory(launcher: Launcher) -> Path:
    return launcher.directory / "state/timers"


class Start(msgspec.Struct, omit_defaults=True):
    """A start of kai-job@JOB, by its `timer` or by `hand` (kai.Timers.Start). Times are seconds since the epoch.

    `ended` and `status` (the exit status, negative for a signal) are 0 while it runs.
    """

    job: int
    pid: int
    by: str
    began: float
    ended: float = 0.0
    status: int = 0


def starts(launcher: Launcher, job: int = 0) -> list[Start]:
    """All that it started, in all its lives; `job` for one job alone. The oldest first."""
    path = directory(launcher) / "starts.jsonl"
    found: dict[tuple[int, float], Start] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        start = msgspec.json.decode(line, type=Start)
        found[start.pid, start.began] = start
    return [start for start in found.values() if job in (0, start.job)]


def log_of(launcher: Launcher, job: int) -> str:
    """What kai-job@JOB wrote, over all its starts."""
    path = directory(launcher) / f"job-{job}.log"
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


# ---- the systemd that is played ----


class PlayedTimer:
    """A loaded timer unit. Times are seconds, pairs of them wall clock and monotonic clock."""

    def __init__(self, name: str, properties: list[Property]) -> None:
        self.name = name
        given = {key: value for key, (_, value) in properties}
        if len(given) < len(properties) or any(TYPES.get(key) != kind for key, (kind, _) in properties):
            raise Refused("PropertyReadOnly", f"{name}: a property is unknown, of another type, or there twice")
        self.description: str = given["Description"]
        self.service = name.removesuffix(".timer") + ".service"
        self.calendars = [expression for _, expression in given.get("TimersCalendar", [])]
        monotonic = dict(given.get("TimersMonotonic", []))
        self.first, self.every = monotonic.get("OnActiveSec", 0) / 1e6, monotonic.get("OnUnitActiveSec", 0) / 1e6
        self.persistent: bool = given.get("Persistent", False)
        if given["PartOf"] != ["kai.target"] or given["RemainAfterElapse"]:
            raise Refused(INVALID, f"{name}: not a timer as Kai makes them")
        if not self.calendars and not self.every:
            raise Refused("BadUnitSetting", f"{name}: has no setting that could elapse")
        self.active = "active"
        self.activated = (time.time(), time.monotonic())
        self.triggered = (0.0, 0.0)
        self.elapses = (0.0, 0.0)
        self.replan = asyncio.Event()
        self.task: asyncio.Task[None] | None = None


class PlayedSystemd:
    """Systemd, in memory, with kai-job@ID.service as processes of its own."""

    def __init__(self, state: Path, command: list[str]) -> None:
        self.state, self.command = state, command
        self.timers: dict[str, PlayedTimer] = {}
        self.lingering: set[str] = set()
        self.stops = 0
        self.running: dict[str, asyncio.Task[None]] = {}
        self.activated: dict[str, float] = {}
        self.stamps = state / "stamps"
        self.stamps.mkdir(exist_ok=True)

    # ---- what is asked ----

    async def make(self, unit: str, properties: list[Property]) -> None:
        self._reached()
        if (self.state / "refuse").exists():
            raise Refused((self.state / "refuse").read_text().strip(), f"{unit}: the test wants it so")
        if unit in self.timers or unit in self.lingering:
            raise Refused(UNIT_EXISTS, f"Unit {unit} was already loaded or has a fragment file.")
        timer = self.timers[unit] = PlayedTimer(unit, properties)
        stamp = self.stamps / f"stamp-{unit}"
        if timer.persistent and stamp.exists():
            timer.triggered = (stamp.stat().st_mtime, 0.0)
        elif timer.persistent:
            stamp.touch()
        try:
            await self._plan(timer)
        except BaseException:
            del self.timers[unit]
            raise
        timer.task = asyncio.create_task(self._live(timer))

    async def stop(self, unit: str) -> None:
        self._reached()
        if unit in self._strangers():
            names = [name for name in self._strangers() if name != unit]
            (self.state / "strangers").write_text("".join(f"{name}\n" for name in names))
            return
        timer = self.timers.get(unit)
        if not timer:
            raise Refused(NO_SUCH_UNIT, f"Unit {unit} not loaded.")
        timer.active = "deactivating"
        await asyncio.sleep(STOPPING)
        self._drop(timer)
        self.stops += 1
        if self.stops % LINGERS == 0:
            self.lingering.add(unit)
            asyncio.get_running_loop().call_later(LINGERING, self.lingering.discard, unit)

    async def start(self, unit: str) -> None:
        self._reached()
        self._start(unit, "hand")

    async def reset_failed(self, unit: str) -> None:
        self._reached()
        if unit not in self.timers and unit not in self.running:
            raise Refused(NO_SUCH_UNIT, f"Unit {unit} not loaded.")

    async def units(self, pattern: str) -> list[Loaded]:
        self._reached()
        own = [Loaded(timer.name, timer.description, timer.active) for timer in self.timers.values()]
        others = [Loaded(name, f"{name}, made by hand", "active") for name in self._strangers()]
        return [unit for unit in [*own, *others] if fnmatchcase(unit.name, pattern)]

    async def elapse(self, timer: str, clock: Clock) -> int:
        self._reached()
        found = self.timers.get(timer)
        if not found:
            return 0
        return round(found.elapses[clock == "Monotonic"] * 1e6) or NEVER

    def _reached(self) -> None:
        if (self.state / "unreachable").exists():
            raise Unreachable("systemd can't be reached: the test wants it so")

    def _strangers(self) -> list[str]:
        path = self.state / "strangers"
        return path.read_text().split() if path.exists() else []

    # ---- timers ----

    async def _live(self, timer: PlayedTimer) -> None:
        """Wait, start the service, wait for its end, plan again."""
        while any(timer.elapses):
            timer.replan.clear()
            if left := self._left(timer):
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(timer.replan.wait(), min(left, LONGEST_WAIT))
                    await self._plan(timer)
                continue
            timer.triggered = (time.time(), time.monotonic())
            if timer.persistent:
                (self.stamps / f"stamp-{timer.name}").touch()
            timer.elapses = (0.0, 0.0)
            self._start(timer.service, "timer")
            await asyncio.wait({self.running[timer.service]})
            await self._plan(timer)
        if timer.active == "active":  # RemainAfterElapse=no
            self._drop(timer)

    def _left(self, timer: PlayedTimer) -> float:
        """Seconds until it elapses; 0 when that is now."""
        wall, ticks = timer.elapses
        waits = [wall - time.time()] if wall else []
        waits += [ticks - time.monotonic()] if ticks else []
        return max(min(waits), 0.0)

    async def _plan(self, timer: PlayedTimer) -> None:
        wall = ticks = 0.0
        if timer.calendars:
            wall = await next_elapse(timer.calendars, timer.triggered[0] or timer.activated[0])
        else:
            last = max(self.activated.get(timer.service, 0.0), timer.triggered[1])
            choices = [last + timer.every] if last else []
            choices += [] if timer.triggered[1] else [timer.activated[1] + timer.first]
            ticks = min(choices)
        timer.elapses = (wall, ticks)

    def _drop(self, timer: PlayedTimer) -> None:
        if self.timers.get(timer.name) is timer:
            del self.timers[timer.name]
            if timer.service not in self.running:
                self.activated.pop(timer.service, None)  # nothing keeps an idle service loaded
        if timer.task and timer.task is not asyncio.current_task():
            timer.task.cancel()

    # ---- services ----

    def _start(self, unit: str, by: str) -> None:
        found = re.fullmatch(r"kai-job@([1-9]\d*)\.service", unit)
        if not found:
            raise Refused(NO_SUCH_UNIT, f"Unit {unit} not found.")
        if unit not in self.running:  # else the start joins the one under way
            self.activated[unit] = time.monotonic()
            self.running[unit] = asyncio.create_task(self._run(unit, int(found[1]), by))

    async def _run(self, unit: str, job: int, by: str) -> None:
        command = [word.replace("%i", str(job)) for word in self.command]
        with (self.state / f"job-{job}.log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log
            )
        start = Start(job, process.pid, by, time.time())
        self._note(start)
        start.status = await process.wait()
        start.ended = time.time()
        self._note(start)
        del self.running[unit]
        timer = self.timers.get(unit.replace(".service", ".timer"))
        if timer and by == "hand":
            timer.replan.set()

    def _note(self, start: Start) -> None:
        with (self.state / "starts.jsonl").open("ab") as file:
            file.write(msgspec.json.encode(start) + b"\n")


async def next_elapse(calendars: list[str], after: float) -> float:
    """The first of them after this moment, 0 for never. Raises Refused for one that systemd can't read."""
    times = []
    others = []
    for calendar in calendars:
        if plain := PLAIN.fullmatch(calendar):  # a one-shot as Kai writes it: no need to ask
            times.append(_seconds(*plain.groups()))
        else:
            others.append(calendar)
    if others:
        process = await asyncio.create_subprocess_exec(
            "systemd-analyze", "calendar", f"--base-time=@{int(after)}", "--", *others,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            env={"PATH": os.environ.get("PATH", os.defpath), "TZ": "UTC", "LC_ALL": "C"},
        )  # fmt: skip
        said, trouble = await process.communicate()
        if process.returncode:
            raise Refused(INVALID, trouble.decode(errors="replace").strip().splitlines()[0])
        times += [_seconds(*found) for found in NEXT.findall(said.decode())]
    return min((at for at in times if at > after), default=0.0)


def _seconds(day: Any, clock: Any) -> float:
    return datetime.fromisoformat(f"{day}T{clock}").replace(tzinfo=UTC).timestamp()


async def serve(command: list[str], d: Daemon) -> None:
    if not d.one_uid:
        raise Misconfigured("this stand-in is for tests: --one-uid")
    systemd = PlayedSystemd(d.state_dir, command)
    Server(d, "timers", Peers(one_uid=True), Timers(systemd, systemd.stamps).handlers())
    d.ready("systemd is played")
    await d.until_done()


if __name__ == "__main__":
    cut = sys.argv.index("--")
    command = sys.argv[cut + 1 :]
    del sys.argv[cut:]
    daemon.run("kai-timers", functools.partial(serve, command))
