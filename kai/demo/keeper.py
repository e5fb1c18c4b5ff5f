"""Keeps one daemon for the launcher, as systemd keeps a unit: nothing that the daemon started outlives it.

    python -I -S keeper.py SECONDS NAMES FDS -- COMMAND…

NAMES and FDS are the listening sockets (`bot:front` and `7:8`, empty for none); the command finds them from
descriptor 3 on, with LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES. On standard output the keeper says `pid N`, and at
the end `exit STATUS` (negative: the signal). When its standard input ends, because it is asked to stop or because the
launcher is gone, the command gets SIGTERM, and SIGKILL after SECONDS. Whatever is left when the command has exited is
killed, sessions and process groups of its own notwithstanding (KillMode=mixed): orphans come back to the keeper.

The daemon writes to the keeper's standard error. Standard library only; it runs by its path.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

PR_SET_CHILD_SUBREAPER = 36
FIRST_FD = 3
ABOVE = 64
"""Lowest number for the copies that are made while descriptors are put in order."""


def children() -> list[int]:
    """Own children, those that came back as orphans among them."""
    me, found = os.getpid(), []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            fields = (entry / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            continue  # gone meanwhile
        if int(fields[1]) == me:
            found.append(int(entry.name))
    return found


def end_children() -> None:
    """Kill and reap, generation by generation, until nothing is left."""
    while found := children():
        for pid in found:
            os.kill(pid, signal.SIGKILL)
        for pid in found:
            os.waitpid(pid, 0)


def execute(command: list[str], names: list[str], fds: list[int]) -> NoReturn:
    """In the child: put everything where sd_listen_fds(3) says, and become the command."""
    try:
        copies = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, ABOVE) for fd in fds]
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        os.dup2(null, 0)
        os.dup2(2, 1)
        for number, fd in enumerate(copies):
            os.dup2(fd, FIRST_FD + number)
        os.closerange(FIRST_FD + len(copies), os.sysconf("SC_OPEN_MAX"))
        listen = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(fds)), "LISTEN_FDNAMES": ":".join(names)}
        for number in (signal.SIGPIPE, signal.SIGCHLD, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        os.execvpe(command[0], command, {**os.environ, **(listen if fds else {})})  # noqa: S606
    except OSError as error:
        os.write(2, f"{command[0]}: {error.strerror}\n".encode())
    os._exit(203)


def keep(main: int, patience: float, wake: int) -> int:
    """Wait for the command; its exit status. The end of standard input ends it."""
    until: float | None = None
    while True:
        while (reaped := os.waitpid(-1, os.WNOHANG))[0]:
            if reaped[0] == main:
                return os.waitstatus_to_exitcode(reaped[1])
        watched = [wake] if until else [0, wake]
        ready, _, _ = select.select(watched, [], [], None if until is None else max(0.0, until - time.monotonic()))
        if wake in ready:
            os.read(wake, 512)
        elif 0 in ready and not os.read(0, 512):
            os.kill(main, signal.SIGTERM)
            until = time.monotonic() + patience
        elif until and time.monotonic() >= until:
            os.kill(main, signal.SIGKILL)
            until = time.monotonic() + patience


def main(argv: list[str]) -> int:
    """Entry of the program."""
    patience, names, fds, _, *command = argv
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    wake, tell = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)  # only the launcher, by closing the input, ends a keeper
    daemon = os.fork()
    if daemon == 0:
        execute(command, names.split(":"), [int(fd) for fd in fds.split(":") if fd])
    for fd in fds.split(":"):
        if fd:
            os.close(int(fd))
    say(f"pid {daemon}")
    status = keep(daemon, float(patience), wake)
    end_children()
    say(f"exit {status}")
    return 0


def say(line: str) -> None:
    try:
        os.write(1, f"{line}\n".encode())
    except BrokenPipeError:
        return  # the launcher is gone; its end has closed the input too


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
