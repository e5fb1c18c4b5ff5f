"""A unit of the launcher at work: its sockets listen, a connection starts its daemon, its end is supervised.

The rules are those of the real units: a clean exit leaves the sockets listening, a failure is followed by a restart
after a second, exit status 78 takes the sockets down, and so does a daemon that leaves again and again without taking
the connection that waits (TriggerLimitBurst=). Sources: systemd.service(5), systemd.socket(5), sd_notify(3).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kai.lib.daemon import EX_CONFIG

RESTART_AFTER = 1.0
"""Seconds between a failure and the next start, RestartSec= of the units."""
STOP_PATIENCE = 10.0
"""Seconds that a daemon gets after SIGTERM."""
TRIGGERS, TRIGGER_INTERVAL = 20, 2.0
"""More starts by connections than this many in so many seconds, and the sockets are taken down."""
CLEAN = {0, -signal.SIGHUP, -signal.SIGINT, -signal.SIGTERM, -signal.SIGPIPE}
KEEPER = Path(__file__).with_name("keeper.py")


@dataclass(frozen=True)
class Unit:
    """What a service and its sockets say: `sockets` are pairs of FileDescriptorName= and path."""

    name: str
    command: tuple[str, ...]
    sockets: tuple[tuple[str, Path], ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    resident: bool = False


class Service:
    """One unit at work.

    `state` is listening, starting, running, stopping, restarting or failed; `status` is what the daemon says of itself;
    `ready` is set from READY=1 to its end, `exited` while there is no process, `failed` for good.
    """

    def __init__(self, unit: Unit, *, log: Path, notify: Path, stop_patience: float) -> None:
        self.unit, self.log, self.notify_path, self.stop_patience = unit, log, notify, stop_patience
        self.sockets: list[socket.socket] = []
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.state = "listening"
        self.status = ""
        self.pid: int | None = None
        self.exit_status: int | None = None
        self.starts = 0
        self.ready = asyncio.Event()
        self.failed = asyncio.Event()
        self.exited = asyncio.Event()
        self.exited.set()
        self.stopping = self.closed = False
        self.triggers: deque[float] = deque(maxlen=TRIGGERS)
        self.keeper: asyncio.subprocess.Process | None = None
        self.task: asyncio.Task[None] | None = None
        self.loop = asyncio.get_running_loop()

    def open(self) -> None:
        """Make the sockets; they listen from now on, whoever serves them later."""
        for _, path in self.unit.sockets:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            self.sockets.append(listening)
            listening.bind(os.fspath(path))
            path.chmod(0o600)
            listening.listen(128)
        self.notify_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.notify_path.unlink(missing_ok=True)
        self.notify.bind(os.fspath(self.notify_path))
        self.notify_path.chmod(0o600)
        self.loop.add_reader(self.notify, self._told)
        self._watch()

    def start(self) -> None:
        """Start the daemon now, if it isn't running."""
        if self.task is None and self.state != "failed" and not self.stopping:
            self._unwatch()
            self.exited.clear()  # here and not in the task: who waits for the exit next waits for this life's
            self.task = self.loop.create_task(self._run())

    def _watch(self) -> None:
        self.state, self.status = "listening", ""
        for listening in self.sockets:
            self.loop.add_reader(listening, self._trigger)

    def _trigger(self) -> None:
        """A connection waits."""
        now = time.monotonic()
        if len(self.triggers) == TRIGGERS and now - self.triggers[0] < TRIGGER_INTERVAL:
            self._fail(f"started {TRIGGERS} times in {TRIGGER_INTERVAL:g} s")
            return
        self.triggers.append(now)
        self.start()

    def _unwatch(self) -> None:
        for listening in self.sockets:
            self.loop.remove_reader(listening)

    def _fail(self, status: str) -> None:
        self.state, self.status = "failed", status
        self.failed.set()
        self._take_down()

    def _take_down(self) -> None:
        self._unwatch()
        for listening in self.sockets:
            listening.close()
        for _, path in self.unit.sockets:
            path.unlink(missing_ok=True)
        self.sockets.clear()

    async def _run(self) -> None:
        """Run the daemon, again after failures, until it leaves for good or for now."""
        try:
            while True:
                status = await self._once()
                if status == EX_CONFIG:
                    self._fail(self.status or "exit status 78")
                    return
                if self.stopping or status in CLEAN:
                    return
                self.state = "restarting"
                await asyncio.sleep(RESTART_AFTER)
        except OSError as error:
            self._fail(f"can't be started: {error}")
        finally:
            self.task = None
            self.exited.set()
            if self.state != "failed" and not self.closed:
                self._watch()

    async def _once(self) -> int:
        """One life of the daemon; its exit status."""
        fds = [listening.fileno() for listening in self.sockets]
        names = ":".join(name for name, _ in self.unit.sockets)
        keeper = [sys.executable, "-I", "-S", os.fspath(KEEPER), str(self.stop_patience), names]
        self.state, self.status, self.exit_status = "starting", "", None
        self.starts += 1
        self.exited.clear()
        self.log.touch(mode=0o600)
        with self.log.open("ab") as log:
            self.keeper = await asyncio.create_subprocess_exec(
                *[*keeper, ":".join(map(str, fds)), "--", *self.unit.command],
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                pass_fds=fds,
                env={**self.unit.environment, "NOTIFY_SOCKET": os.fspath(self.notify_path)},
                start_new_session=True,
            )
        assert self.keeper.stdout
        if self.stopping:
            self.end()
        async for line in self.keeper.stdout:
            word, _, number = line.decode().strip().partition(" ")
            if word == "pid":
                self.pid = int(number)
            elif word == "exit":
                self.exit_status = int(number)
        await self.keeper.wait()
        self.end()
        self._told()
        self.ready.clear()
        self.keeper = self.pid = None
        self.exited.set()
        return -signal.SIGKILL if self.exit_status is None else self.exit_status

    def end(self) -> None:
        """Ask the keeper to end the daemon: SIGTERM, and later SIGKILL."""
        if self.keeper and self.keeper.stdin:
            self.keeper.stdin.close()

    def _told(self) -> None:
        """Messages of sd_notify(3), all that wait."""
        with contextlib.suppress(BlockingIOError):
            while message := self.notify.recv(1 << 16).decode(errors="replace"):
                for line in message.splitlines():
                    self._take(*line.partition("=")[::2])

    def _take(self, key: str, value: str) -> None:
        if key == "STATUS":
            self.status = value
        elif key == "STOPPING":
            self.state = "stopping"
        elif key == "READY" and self.state == "starting":
            self.state = "running"
            self.ready.set()

    async def stop(self) -> None:
        """End the daemon and wait for it; the sockets go on listening."""
        self.stopping = True
        self.end()
        if self.task:
            if self.state == "restarting":
                self.task.cancel()
            await asyncio.wait({self.task})
        self.stopping = False

    async def close(self) -> None:
        """The end of all of it, sockets included."""
        self.closed = True
        self._unwatch()
        await self.stop()
        self._take_down()
        self.loop.remove_reader(self.notify)
        self.notify.close()
        self.notify_path.unlink(missing_ok=True)
