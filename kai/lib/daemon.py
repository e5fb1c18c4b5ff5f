"""One way for every daemon to start, to say what it does, and to leave.

    def main() -> None:
        daemon.run("kai-proxy", serve)

    async def serve(d: Daemon) -> None:
        …                                   # read configuration and credentials; Misconfigured is an answer
        Listener(d, "model", handle, peers)
        d.ready("waiting for calls")
        await d.until_done(idle_after=30)

Under systemd it takes over the sockets handed to it and reports READY, STATUS, WATCHDOG, RELOADING, STOPPING.
Without it, it works with given descriptors and standard error. Source: sd_listen_fds(3), sd_notify(3).
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import gc
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sdnotify import SystemdNotifier

from kai.lib import log
from kai.lib.peers import check_uid_map
from kai.lib.varlink import Misconfigured

EX_CONFIG = 78
FIRST_FD = 3
PR_SET_DUMPABLE = 4
SWITCH = 0.0005
"""Seconds after which a thread that computes lets another one run: a commit mustn't wait 5 ms for the loop."""
STATUS_DELAY = 0.1
INSTALLED = Path("/opt/kai/current")
logger = logging.getLogger(__name__)


class Daemon:
    """This process: its sockets, its state towards systemd, and whether it still has something to do."""

    def __init__(self, name: str, sockets: dict[str, socket.socket], *, instance: str, one_uid: bool) -> None:
        self.name = name
        self.instance = instance
        self.one_uid = one_uid
        self.sockets = sockets
        self.stopping = asyncio.Event()
        self.on_reload: list[Callable[[], None]] = []
        self.on_idle: list[Callable[[], None]] = []
        self.config_dir = Path(os.environ.get("CONFIGURATION_DIRECTORY", "/etc/kai"))
        self.runtime_dir = Path(os.environ.get("KAI_RUNTIME_DIRECTORY", "/run/kai"))
        self._notifier = SystemdNotifier() if os.environ.get("NOTIFY_SOCKET") else None
        self._busy = 0
        self._idle_since = time.monotonic()
        self._status = self._told = ""
        self._telling: asyncio.TimerHandle | None = None

    @property
    def state_dir(self) -> Path:
        """Where this daemon keeps what must survive it. Raises Misconfigured outside a unit that names one."""
        try:
            return Path(os.environ["STATE_DIRECTORY"])
        except KeyError:
            raise Misconfigured(f"{self.name}: STATE_DIRECTORY is not set: start it by its unit") from None

    def socket(self, name: str) -> socket.socket:
        """The listening socket that was handed over under this name. Raises Misconfigured when there is none."""
        if name not in self.sockets:
            got = ", ".join(sorted(self.sockets)) or "none"
            raise Misconfigured(f"{self.name}: no socket named {name} was handed over (got: {got})")
        return self.sockets[name]

    def notify(self, *lines: str) -> None:
        if self._notifier:  # it encodes in Latin-1, and says nothing of what it can't encode
            self._notifier.notify("\n".join(lines).encode().decode("latin-1"))

    def ready(self, status: str) -> None:
        """Tell systemd that the daemon is up, and what `systemctl status` is to show."""
        gc.collect()
        gc.freeze()  # what was imported stays; going through it at every full collection costs milliseconds
        self._status = self._told = log.printable(status, 200)
        self.notify("READY=1", f"STATUS={self._status}")

    def status(self, text: str) -> None:
        """What `systemctl status` shows, a moment later: a turn changes it several times, and must not wait for it."""
        self._status = text
        if self._telling is None:
            self._telling = asyncio.get_running_loop().call_later(STATUS_DELAY, self.tell)

    def tell(self) -> None:
        """Send the status now. Secrets and control characters are taken out."""
        if self._telling:
            self._telling.cancel()
        self._telling = None
        text = log.printable(log.redact(self._status), 200)
        if text != self._told:
            self._told = text
            self.notify(f"STATUS={text}")

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Keep the daemon alive for as long as this lasts."""
        self.hold()
        try:
            yield
        finally:
            self.release()

    def hold(self) -> None:
        self._busy += 1

    def release(self) -> None:
        self._busy -= 1
        self._idle_since = time.monotonic()

    async def until_done(self, *, idle_after: float | None = None) -> None:
        """Wait until told to stop or, with `idle_after` (seconds), until nothing was to do for that long.

        On idleness the listening sockets are let go of first and in the same step, so that a connection that
        comes now waits in the kernel for the next start and is not lost (measured: facts §5).
        """
        while not self.stopping.is_set():
            wait = None
            if idle_after is not None:
                left = self._idle_since + idle_after - time.monotonic()
                if not self._busy and left <= 0:
                    for let_go in self.on_idle:
                        let_go()
                    return
                wait = idle_after if self._busy else max(left, 0.001)
            try:
                await asyncio.wait_for(self.stopping.wait(), wait)
            except TimeoutError:
                continue

    def reload(self) -> None:
        """SIGHUP: a callback that raises keeps what was in force; it says so itself."""
        self.notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        for callback in self.on_reload:
            try:
                callback()
            except Exception:
                logger.exception("reload failed; the configuration read before stays in force")
        self.notify("READY=1")

    async def watchdog(self) -> None:
        period = int(os.environ.get("WATCHDOG_USEC", "0")) / 2e6
        while period:
            self.notify("WATCHDOG=1")
            await asyncio.sleep(period)


def run(name: str, serve: Callable[[Daemon], Awaitable[None]], *, instance: bool = False) -> None:
    """Run a daemon until it is done, and exit: 0, 78 for configuration, 1 for anything else."""
    parser = argparse.ArgumentParser(prog=name, description=f"{name}(8): started by its unit")
    if instance:
        parser.add_argument("instance", help="the user")
    parser.add_argument("--one-uid", action="store_true", help="the own uid is every role: demo and tests only")
    arguments = parser.parse_args()
    log.start(name)
    if arguments.one_uid and INSTALLED.exists():
        parser.exit(EX_CONFIG, f"{name}: --one-uid is refused on a host where Kai is installed\n")
    hide_memory()
    sys.setswitchinterval(SWITCH)
    try:
        if not arguments.one_uid:
            check_uid_map()
        sockets = take_sockets()
    except Misconfigured as error:
        parser.exit(EX_CONFIG, f"{name}: {error}\n")
    sys.exit(asyncio.run(_run(name, serve, sockets, getattr(arguments, "instance", ""), arguments.one_uid)))


async def _run(
    name: str,
    serve: Callable[[Daemon], Awaitable[None]],
    sockets: dict[str, socket.socket],
    instance: str,
    one_uid: bool,
) -> int:
    daemon = Daemon(name, sockets, instance=instance, one_uid=one_uid)
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, daemon.stopping.set)
    loop.add_signal_handler(signal.SIGHUP, daemon.reload)
    watchdog = asyncio.create_task(daemon.watchdog())
    try:
        await serve(daemon)
    except Misconfigured as error:
        logger.error("%s", error)
        daemon.status(str(error))
        return EX_CONFIG
    except Exception:
        logger.exception("ended by a fault")  # not the interpreter's own traceback: it redacts no secret
        return 1
    finally:
        watchdog.cancel()
        daemon.tell()
        daemon.notify("STOPPING=1")
    return 0


def take_sockets() -> dict[str, socket.socket]:
    """The sockets that systemd (or the demo's launcher) handed over, by their FileDescriptorName=."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return {}
    count = int(os.environ.get("LISTEN_FDS", "0"))
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    for variable in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(variable, None)  # a child must not take them for its own
    if len(names) != count or len(set(names)) != count:
        raise Misconfigured(f"{count} sockets were handed over with the names {names}: each needs its own name")
    sockets = {}
    for number, name in enumerate(names):
        os.set_inheritable(FIRST_FD + number, False)
        taken = socket.socket(fileno=FIRST_FD + number)
        taken.setblocking(False)
        sockets[name] = taken
    return sockets


def hide_memory() -> None:
    """No other process of this uid may read or rewrite this one through /proc, and it leaves no core file."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
