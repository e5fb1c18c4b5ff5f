"""A room: the directory that one container lives in, what is mounted there, and the clean-up after aborted runs.

machines/NAME.lock     held as long as the room is used; a lock that nobody holds means an aborted run
machines/NAME/         root (what the container sees), upper and work (the overlay), processes, console.log
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.cache import cache_dir, locked
from tests.machine.base_root import remove_tree

_ARCHIVES = "var/cache/apt/archives"


class Room:
    """One container's directory. `root` is writable and throws nothing into the base it was made from."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.root = path / "root"
        self._processes = path / "processes"

    @classmethod
    @contextlib.contextmanager
    def open(cls, name: str, base: Path, *, downloads: Path, overlay: bool = True) -> Iterator[Room]:
        """A new room over a base; leaving it removes everything.

        `downloads` keeps apt's packages from one room to the next. Rooms get links to them and not a directory in
        common, since two apts can't work in one.
        """
        machines = cache_dir() / "machines"
        machines.mkdir(mode=0o700, exist_ok=True)  # the roots hold set-uid programs and files of any uid
        lock_file = machines / f"{name}.lock"
        with contextlib.ExitStack() as stack:
            with locked(machines / "all"):
                sweep(machines)
                lock = stack.enter_context(lock_file.open("w"))
                fcntl.flock(lock, fcntl.LOCK_EX)
            room = cls(machines / name)
            try:
                room._fill(base, downloads, overlay=overlay)
                yield room
                room._keep_downloads(downloads)
            finally:
                room.remove()
                lock_file.unlink()

    def note_process(self, pid: int) -> None:
        """Writes down a process of this container, so that a later run can end it if this one can't."""
        with self._processes.open("a") as file:
            file.write(f"{pid} {_start_time(pid)}\n")

    def kill_processes(self) -> None:
        """SIGKILL to the processes noted, and to nothing that merely got the same number since."""
        noted = self._processes.read_text().splitlines() if self._processes.exists() else []
        # The container's own PID 1, noted last, goes first: it outlives a systemd-nspawn that is killed, while
        # systemd-nspawn tidies up after a PID 1 that is.
        for line in reversed(noted):
            number, _, start = line.partition(" ")
            if start and _start_time(int(number)) == start:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(number), signal.SIGKILL)
                _wait_until_gone(int(number), start)

    def remove(self) -> None:
        """Ends what runs, unmounts and deletes. Safe to repeat."""
        self.kill_processes()
        for attempt in range(50):
            if not os.path.ismount(self.root):
                break
            lazily = ["--lazy"] if attempt == 49 else []
            subprocess.run(["umount", *lazily, os.fspath(self.root)], capture_output=True, check=False)
            time.sleep(0.1 if os.path.ismount(self.root) else 0)
        remove_tree(self.path)

    def _fill(self, base: Path, downloads: Path, *, overlay: bool) -> None:
        for part in ("root", "upper", "work"):
            (self.path / part).mkdir(parents=True)
        upper, work = self.path / "upper", self.path / "work"
        upper.chmod(0o755)
        _link_all(downloads, upper / _ARCHIVES)
        options = f"lowerdir={base},upperdir={upper},workdir={work}"
        argv = ["mount", "-t", "overlay", "overlay", "-o", options, os.fspath(self.root)]
        if overlay and subprocess.run(argv, capture_output=True, check=False).returncode == 0:
            return
        copied = ["cp", "--archive", "--reflink=auto", f"{base}/.", os.fspath(self.root)]
        subprocess.run(copied, check=True)
        _link_all(downloads, self.root / _ARCHIVES)

    def _keep_downloads(self, downloads: Path) -> None:
        mounted = os.path.ismount(self.root)
        _link_all((self.path / "upper" if mounted else self.root) / _ARCHIVES, downloads)


def sweep(machines: Path) -> None:
    """Removes what aborted runs left. Called with the lock on `machines` held: nobody is just making a room."""
    for lock_file in machines.glob("*.lock"):
        with lock_file.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            Room(machines / lock_file.stem).remove()
            lock_file.unlink()


def _link_all(source: Path, target: Path) -> None:
    """Gives `target` every package in `source` that it lacks, by hard links: both are in the cache directory."""
    target.mkdir(parents=True, exist_ok=True)
    for package in source.glob("*.deb"):
        with contextlib.suppress(FileExistsError):
            (target / package.name).hardlink_to(package)


def _start_time(pid: int) -> str:
    """When the process started, in the kernel's ticks since boot; empty when there is none."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if after_name[0] == "Z" else after_name[19]


def _wait_until_gone(pid: int, start: str) -> None:
    deadline = time.monotonic() + 10
    while _start_time(pid) == start and time.monotonic() < deadline:
        time.sleep(0.02)
