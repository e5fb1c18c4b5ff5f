"""A process that has imported the daemons and forks one for each request: a start costs milliseconds of processor.

    python -m tests.process.crash.zygote FD

On FD, a SOCK_SEQPACKET socket, come requests (`Start`, JSON) with descriptors: a pipe to report to, the log, and the
daemon's listening sockets. For each, a keeper is forked, and by it the daemon. The keeper reports `pid N`, and `exit
STATUS` when the daemon and everything that it started is gone, as systemd ends a control group. All ends with FD.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import importlib
import os
import select
import signal
import socket
import ssl
import sys
from contextlib import suppress
from typing import NoReturn

import msgspec

import kai.agent.claude
import kai.agent.main
import kai.agent.turns
import kai.bot.main
import kai.bot.markdown
import kai.lib.client
import kai.webhook.main
from kai.demo.keeper import PR_SET_CHILD_SUBREAPER, end_children

from . import broken
from .points import Point, Points

PR_SET_PDEATHSIG = 1
FIRST_FD, REPORT, ABOVE = 3, 60, 64
MOST_FDS = 16
PAUSES = {"LONGEST_DELAY": 0.4, "CONFLICT_PERIOD": 0.2, "NOTE_PERIOD": 0.3, "EDIT_PERIOD": 0.1}
"""Seconds between tries, shortened: how long Kai waits is other tests' matter, and a thousand kills have to fit."""


LATE = ("anyio._backends._asyncio", "certifi", "concurrent.futures.thread", "h11", "httpcore")
"""What a bot imports after its start."""


class Start(msgspec.Struct):
    """A daemon to be started. `boot` takes the place of the host's boot id, `broken` names a rule to be broken."""

    module: str
    arguments: list[str]
    environment: dict[str, str]
    names: list[str]
    where: str
    kills: str
    plan: list[Point] = []
    boot: str = ""
    broken: str = ""


def main() -> None:
    requests = socket.socket(fileno=int(sys.argv[1]))
    for name, seconds in PAUSES.items():
        modules = [module for key, module in sys.modules.items() if key.startswith("kai.") and hasattr(module, name)]
        assert modules, f"{name} is gone: shorten what has taken its place"
        for module in modules:
            setattr(module, name, seconds)
    for late in LATE:
        importlib.import_module(late)
    kai.bot.markdown.render("a *word*")
    # The most expensive step of a start, for connections that the stand-in has none of.
    ssl.create_default_context = functools.cache(ssl.create_default_context)  # type: ignore[assignment]
    ssl.create_default_context()
    gc.collect()
    gc.freeze()
    keepers: set[int] = set()
    requests.send(b"ready")
    while True:
        select.select([requests], [], [], 1.0)
        with suppress(ChildProcessError):
            while pid := os.waitpid(-1, os.WNOHANG)[0]:
                keepers.discard(pid)
        try:
            message, fds, _, _ = socket.recv_fds(requests, 1 << 17, MOST_FDS, socket.MSG_DONTWAIT)
        except BlockingIOError:
            continue
        if not message:
            break
        if (keeper := os.fork()) == 0:
            requests.close()
            keep(msgspec.json.decode(message, type=Start), fds)
        keepers.add(keeper)
        for fd in fds:
            os.close(fd)
    for keeper in keepers:
        os.kill(keeper, signal.SIGTERM)


def keep(start: Start, fds: list[int]) -> NoReturn:
    """In the keeper: one life of one daemon."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    os.setsid()
    report = fds[0]
    daemon = os.fork()
    if daemon == 0:
        become(start, fds)
    for fd in fds[1:]:
        os.close(fd)
    signal.signal(signal.SIGTERM, lambda *_: os.kill(daemon, signal.SIGKILL))
    _tell(report, f"pid {daemon}\n")
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == daemon:
            break
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
        end_children()
    _tell(report, f"exit {os.waitstatus_to_exitcode(status)}\n")
    os._exit(0)


def _tell(report: int, line: str) -> None:
    with suppress(BrokenPipeError):
        os.write(report, line.encode())


def become(start: Start, fds: list[int]) -> NoReturn:
    """In the daemon: what systemd gives a service, then its own main."""
    status = 1
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        report, log, *sockets = [os.dup2(fd, ABOVE + n, inheritable=False) for n, fd in enumerate(fds)]
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (log, 1), (log, 2), (report, REPORT)):
            os.dup2(source, target, inheritable=target < FIRST_FD)
        for number, listening in enumerate(sockets):
            os.dup2(listening, FIRST_FD + number)
        os.closerange(FIRST_FD + len(sockets), REPORT)
        os.closerange(REPORT + 1, ABOVE + MOST_FDS)
        listen = {
            "LISTEN_PID": str(os.getpid()),
            "LISTEN_FDS": str(len(sockets)),
            "LISTEN_FDNAMES": ":".join(start.names),
        }
        os.environ.clear()
        os.environ.update({**start.environment, **listen})
        if start.boot:
            kai.agent.turns.boot_id = lambda: start.boot
        if start.broken:
            broken.RULES[start.broken]()
        Points(start.plan, start.kills, start.where, REPORT).install()
        sys.argv = [start.module, *start.arguments]
        importlib.import_module(start.module).main()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException as error:
        os.write(2, f"{start.where}: {error!r}\n".encode())
    finally:
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
