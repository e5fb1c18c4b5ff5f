"""A booted Debian in a container: the stand-in for a user's server in the machine ring. Needs root.

    with Machine.create("bookworm") as machine:
        machine.boot()
        machine.push_checkout("/root/kai")
        machine.run("./install.sh --yes", cwd="/root/kai", timeout=600)
        assert machine.systemctl("is-active", "kai.target").out == "active\\n"

systemd-nspawn boots an overlay over a base root (`base_root.py`), or a copy of it where overlays can't be mounted.
What happens inside survives `reboot()` and `stop()` + `boot()`; leaving the `with` block throws it away. The network
is the host's, loopback included: servers inside and outside have to take free ports.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from tests.cache import cache_dir
from tests.machine import registries
from tests.machine.base_root import base_root
from tests.machine.rooms import Room

ROOT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
USER_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games"
CHECKOUT = Path(__file__).resolve().parents[2]

_TAIL = 4000  # characters of output that an error carries
_POLL = 0.05  # seconds
_T = TypeVar("_T")


class MachineFailed(AssertionError):
    """A container, or something in it, did not do what the test relies on; the text carries what was printed."""


class BootFailed(MachineFailed):
    """The container did not come up; the text carries its console."""


class CommandFailed(MachineFailed):
    """A command inside failed or took too long."""

    def __init__(self, why: str, result: Result) -> None:
        super().__init__(f"{why}\n--- its output\n{result.out[-_TAIL:]}\n--- its errors\n{result.err[-_TAIL:]}")
        self.result = result


@dataclass(frozen=True)
class Result:
    """What a command left: its exit code (128 + N when signal N ended it), its output and its errors."""

    code: int
    out: str
    err: str


class Process:
    """A command that keeps running in the container (`Machine.spawn`); it ends with the machine at the latest."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], out: Path, err: Path) -> None:
        self._files = (out, err)
        with out.open("wb") as out_file, err.open("wb") as err_file:
            self._popen = subprocess.Popen(
                argv, env=env, stdin=subprocess.DEVNULL, stdout=out_file, stderr=err_file, start_new_session=True
            )

    @property
    def out(self) -> str:
        """What it has printed so far."""
        return self._files[0].read_text(errors="replace")

    @property
    def err(self) -> str:
        """What it has printed to its standard error so far."""
        return self._files[1].read_text(errors="replace")

    def running(self) -> bool:
        """Whether it hasn't ended yet."""
        return self._popen.poll() is None

    def wait(self, timeout: float = 60.0) -> Result:
        """Waits for its end; `CommandFailed` after `timeout` seconds, and the process goes on."""
        try:
            code = self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise CommandFailed(f"Still running after {timeout} s.", Result(-1, self.out, self.err)) from None
        return Result(_shell_code(code), self.out, self.err)

    def stop(self, timeout: float = 10.0) -> Result:
        """SIGTERM to the command, after `timeout` seconds SIGKILL to everything that it started."""
        for child in _children(self._popen.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(timeout)
        _kill_group(self._popen)
        return self.wait()


class Machine:
    """One container. Made by `create`; all times are seconds, all paths inside are absolute."""

    def __init__(self, suite: str, name: str, room: Room, options: Sequence[str]) -> None:
        self.suite = suite
        self.name = name
        self._room = room
        self._options = list(options)
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._leader: int | None = None
        self._spawned: list[Process] = []

    @classmethod
    @contextlib.contextmanager
    def create(
        cls, suite: str, *, binds: Mapping[str | Path, str] | None = None, overlay: bool = True
    ) -> Iterator[Machine]:
        """A fresh machine, not booted yet. `binds` shows files or directories of the host inside, read-only.

        `overlay=False` copies the base even where an overlay could be mounted. Raises `Unable` when this host can't
        build containers.
        """
        base = base_root(suite)
        known = registries.of_this_host(suite)
        name = f"kai-{suite}-{secrets.token_hex(3)}"
        pip_cache = cache_dir() / "pip"
        pip_cache.mkdir(exist_ok=True)
        options = [f"--bind={pip_cache}:/root/.cache/pip", *(f"--bind-ro={path}" for path in known.binds)]
        options += [f"--bind-ro={os.fspath(host)}:{inside}" for host, inside in (binds or {}).items()]
        with Room.open(name, base, downloads=cache_dir() / "apt" / suite, overlay=overlay) as room:
            machine = cls(suite, name, room, options)
            (room.root / "etc/hostname").write_text(f"{name}\n")
            (room.root / "etc/hosts").write_text(registries.hosts(name))
            (room.root / "etc/resolv.conf").write_text(registries.resolver())
            # With an id of its own this isn't systemd's "first boot", which would enable every unit it finds.
            (room.root / "etc/machine-id").write_text(f"{uuid.uuid4().hex}\n")
            try:
                yield machine
            finally:
                machine._end()

    @property
    def console(self) -> str:
        """What the machine has printed to its console, over all its boots."""
        file = self._room.path / "console.log"
        return file.read_text(errors="replace") if file.exists() else ""

    def boot(self, *, timeout: float = 60.0, degraded_ok: bool = False) -> None:
        """Boots until systemd says `running`; raises `BootFailed` with the console. Failed units fail the boot too."""
        if self._nspawn is not None:
            raise MachineFailed(f"{self.name} is running already.")
        argv = ["systemd-nspawn", "--quiet", f"--directory={self._room.root}", f"--machine={self.name}", "--boot"]
        argv += ["--register=no", "--settings=no", "--resolv-conf=off", "--timezone=off", "--link-journal=no"]
        argv += ["--console=read-only"]
        if not Path("/run/systemd/system").is_dir():
            argv += ["--keep-unit"]  # nobody on this host could give it a unit of its own
        with (self._room.path / "console.log").open("ab") as console:
            self._nspawn = subprocess.Popen(
                [*argv, *self._options],
                env={"PATH": os.environ.get("PATH", ROOT_PATH)},
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,  # a Ctrl-C at the tests is for the tests
            )
        self._room.note_process(self._nspawn.pid)
        self._wait_until_up(time.monotonic() + timeout, degraded_ok=degraded_ok)

    def stop(self, timeout: float = 60.0) -> None:
        """Shuts down in order. `boot` may follow."""
        self.run(["systemctl", "--no-block", "poweroff"])
        self._wait_until_down(time.monotonic() + timeout)

    def reboot(self, *, timeout: float = 60.0, degraded_ok: bool = False) -> None:
        """Shuts down in order and boots again with everything that is on disk."""
        deadline = time.monotonic() + timeout
        leader = self._leader
        self.run(["systemctl", "--no-block", "reboot"])
        while self._nspawn is not None and self._nspawn.poll() is None and self._find_leader() in (leader, None):
            if time.monotonic() > deadline:
                raise BootFailed(f"{self.name} did not go down in {timeout} s.\n{self.console[-_TAIL:]}")
            time.sleep(_POLL)
        left = max(10.0, deadline - time.monotonic())
        if self._nspawn is not None and self._nspawn.poll() is None:
            # systemd-nspawn with a unit of its own boots the next round itself.
            self._wait_until_up(time.monotonic() + left, degraded_ok=degraded_ok)
            return
        self._forget()
        self.boot(timeout=left, degraded_ok=degraded_ok)

    def run(
        self,
        command: str | Sequence[str],
        *,
        user: str | None = None,
        check: bool = True,
        input: str | bytes | IO[bytes] | None = None,
        timeout: float = 120.0,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> Result:
        """Runs a program (a list), or a line for bash (a string), with an environment that comes from here alone.

        `user` runs it as that account with its groups; else it is root. With `check`, an exit code other than 0
        raises `CommandFailed`; so does the timeout always, and everything that the command started is killed.
        What a command leaves running in the background does not hold it up.
        """
        argv, environment = self._command(command, user=user, env=env, cwd=cwd)
        # Files and not pipes: a daemon that keeps an inherited pipe open would keep us waiting for its end.
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, _stdin(input) as stdin:
            for file in (out, err):
                os.fchmod(file.fileno(), 0o666)  # an account inside may open /dev/stderr by name
            running = subprocess.Popen(
                argv, env=environment, stdin=stdin, stdout=out, stderr=err, start_new_session=True
            )
            late = False
            try:
                running.wait(timeout)
            except subprocess.TimeoutExpired:
                late = True
            finally:
                if running.poll() is None:
                    _kill_group(running)
            out.seek(0)
            err.seek(0)
            result = Result(
                _shell_code(running.returncode),
                out.read().decode(errors="replace"),
                err.read().decode(errors="replace"),
            )
        said = command if isinstance(command, str) else shlex.join(command)
        who = f" as {user}" if user else ""
        if late:
            raise CommandFailed(f"`{said}`{who} on {self.name} took longer than {timeout} s.", result)
        if check and result.code != 0:
            raise CommandFailed(f"`{said}`{who} on {self.name} ended with {result.code}.", result)
        return result

    def spawn(
        self,
        command: str | Sequence[str],
        *,
        user: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> Process:
        """Starts a command as `run` does and returns at once."""
        argv, environment = self._command(command, user=user, env=env, cwd=cwd)
        number = len(self._spawned)
        files = [self._room.path / f"spawned-{number}.{kind}" for kind in ("out", "err")]
        process = Process(argv, environment, *files)
        self._spawned.append(process)
        return process

    def enter(self, command: str | Sequence[str], *, user: str | None = None, cwd: str | None = None) -> int:
        """Runs a command on the terminal of this process, for a developer; returns its exit code."""
        if sys.stdin.isatty():
            # A terminal of the container's own: the host's has no name inside, and job control needs one.
            line = command if isinstance(command, str) else shlex.join(command)
            command = ["script", "--quiet", "--return", "--command", line, "/dev/null"]
        argv, env = self._command(command, user=user, env={"TERM": os.environ.get("TERM", "dumb")}, cwd=cwd)
        return _shell_code(subprocess.run(argv, env=env, check=False).returncode)

    def systemctl(self, *arguments: str, check: bool = True, timeout: float = 120.0) -> Result:
        """`systemctl` inside, without a pager."""
        return self.run(["systemctl", "--no-pager", *arguments], check=check, timeout=timeout)

    def journal(self, unit: str | None = None, **fields: str) -> list[dict[str, Any]]:
        """The journal's entries of a unit, or with these fields (`KAI_TURN="7"`), oldest first, over all boots."""
        self.run(["journalctl", "--sync"])
        matches = [f"--unit={unit}"] if unit else []
        matches += [f"{name}={value}" for name, value in fields.items()]
        listed = self.run(["journalctl", "--no-pager", "--quiet", "--all", "--output=json", *matches]).out
        return [json.loads(line) for line in listed.splitlines()]

    def write(self, path: str, text: str | bytes, mode: int = 0o644, owner: str = "root") -> None:
        """Writes a file, parents included. `owner` is an account (with its own group) or `account:group`."""
        account, _, group = owner.partition(":")
        group = group or self.run(["id", "-gn", account]).out.strip()
        argv = ["install", "-D", f"--mode={mode:o}", f"--owner={account}", f"--group={group}"]
        self.run([*argv, "/dev/stdin", path], input=text)

    def read(self, path: str) -> str:
        """The text of a file inside."""
        return self.run(["cat", "--", path]).out

    def push(self, src: str | Path, dst: str) -> None:
        """Copies a file or a directory of the host to exactly `dst`, owned by root, with its modes."""
        source = Path(src)
        if source.is_dir():
            self._unpack(["--directory", os.fspath(source), "."], dst)
            return
        mode = f"{source.stat().st_mode & 0o7777:o}"
        with source.open("rb") as file:
            self.run(["install", "-D", f"--mode={mode}", "/dev/stdin", dst], input=file)

    def push_checkout(self, dst: str) -> None:
        """Copies this checkout as a clone of it would be: what git knows or would add, without `.git`."""
        if shutil.which("git") is None or not (CHECKOUT / ".git").exists():
            skipped = ["--exclude=__pycache__", "--exclude=.*cache", "--exclude=.venv", "--exclude=*.egg-info"]
            self._unpack([*skipped, "--directory", os.fspath(CHECKOUT), "."], dst)
            return
        # As root in somebody's checkout git would rather refuse.
        git = ["git", "-c", f"safe.directory={CHECKOUT}", "-C", os.fspath(CHECKOUT)]
        argv = [*git, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--deduplicate"]
        listing = subprocess.run(argv, capture_output=True, check=True).stdout
        names = [os.fsdecode(name) for name in listing.split(b"\0") if name]
        present = [os.fsencode(name) for name in names if os.path.lexists(CHECKOUT / name)]
        with tempfile.NamedTemporaryFile() as listed:
            listed.write(b"\0".join(present))
            listed.flush()
            self._unpack(["--directory", os.fspath(CHECKOUT), "--null", f"--files-from={listed.name}"], dst)

    def wait_for(self, predicate: Callable[[], _T], timeout: float = 30.0, *, what: str = "") -> _T:
        """Asks until the answer is true, and returns it; else `MachineFailed` with the end of the journal."""
        deadline = time.monotonic() + timeout
        while not (answer := predicate()):
            if time.monotonic() > deadline:
                what = what or getattr(predicate, "__name__", "what was waited for")
                raise MachineFailed(f"{self.name}: {what}: not so after {timeout} s.\n{self._symptoms()}")
            time.sleep(_POLL)
        return answer

    def _command(
        self, command: str | Sequence[str], *, user: str | None, env: Mapping[str, str] | None, cwd: str | None
    ) -> tuple[list[str], dict[str, str]]:
        """The command line on the host and the environment for it."""
        if self._leader is None:
            raise MachineFailed(f"{self.name} is not running.")
        argv = ["/bin/bash", "-c", command] if isinstance(command, str) else list(command)
        account = ("root", "/root", "/bin/bash")
        if user is not None:
            asked = ["getent", "passwd", user]
            fields = self.run(asked).out.rstrip("\n").split(":")
            account = (user, fields[5], fields[6])
            argv = ["setpriv", f"--reuid={fields[2]}", f"--regid={fields[3]}", "--init-groups", "--", *argv]
        if cwd is not None:
            argv = ["env", f"--chdir={cwd}", *argv]
        name, home, shell = account
        environment = {"PATH": USER_PATH if user else ROOT_PATH, "LANG": "C.UTF-8", "HOME": home}
        environment |= {"USER": name, "LOGNAME": name, "SHELL": shell}
        environment |= registries.environment() | dict(env or {})
        nsenter = shutil.which("nsenter") or "/usr/bin/nsenter"
        return [nsenter, f"--target={self._leader}", "--all", "--", *argv], environment

    def _unpack(self, tar: list[str], dst: str) -> None:
        self.run(["mkdir", "--parents", "--", dst])
        with subprocess.Popen(["tar", "--create", "--numeric-owner", *tar], stdout=subprocess.PIPE) as packing:
            assert packing.stdout is not None
            argv = ["tar", "--extract", "--same-permissions", "--no-same-owner", f"--directory={dst}"]
            self.run(argv, input=packing.stdout)
        if packing.returncode != 0:
            raise MachineFailed(f"tar of {' '.join(tar)} ended with {packing.returncode}.")

    def _find_leader(self) -> int | None:
        """The container's PID 1 as the host counts it; None as long as systemd isn't there."""
        if self._nspawn is None:
            return None
        for child in _children(self._nspawn.pid):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{child}/comm").read_text() == "systemd\n":
                    return child
        return None

    def _wait_until_up(self, deadline: float, *, degraded_ok: bool) -> None:
        state = "no systemd"
        self._leader = None
        while True:
            if self._nspawn is None or self._nspawn.poll() is not None:
                self._forget()
                raise BootFailed(f"{self.name} ended while it booted. Its console:\n{self.console[-_TAIL:]}")
            if self._leader is None and (leader := self._find_leader()) is not None:
                self._leader = leader
                self._room.note_process(leader)
            if self._leader is not None:
                said = self.run(["systemctl", "is-system-running"], check=False)
                state = said.out.strip() or said.err.strip()
                if state == "running" or (state == "degraded" and degraded_ok):
                    return
            if state == "degraded" or time.monotonic() > deadline:
                symptoms = self._symptoms() if self._leader else ""
                raise BootFailed(f"{self.name} is {state!r}.\n{symptoms}\nConsole:\n{self.console[-_TAIL:]}")
            time.sleep(_POLL)

    def _wait_until_down(self, deadline: float) -> None:
        while self._nspawn is not None and self._nspawn.poll() is None:
            if time.monotonic() > deadline:
                raise MachineFailed(f"{self.name} did not shut down.\n{self.console[-_TAIL:]}")
            time.sleep(_POLL)
        self._forget()

    def _symptoms(self) -> str:
        """Failed units and the end of the journal, for an error's text."""
        failed = self.run("systemctl --failed --plain --no-legend --no-pager", check=False).out
        journal = self.run("journalctl --no-pager --quiet --boot --lines=60 --output=short-precise", check=False).out
        return f"Failed units:\n{failed or 'none'}\nEnd of the journal:\n{journal[-2 * _TAIL :]}"

    def _forget(self) -> None:
        self._nspawn = None
        self._leader = None

    def _end(self) -> None:
        """Ends what is left, at once: nothing inside is worth an orderly shutdown any more."""
        self._room.kill_processes()
        for process in self._spawned:
            process.stop(timeout=0.0)
        if self._nspawn is not None:
            self._nspawn.wait(30)
        self._forget()


@contextlib.contextmanager
def _stdin(given: str | bytes | IO[bytes] | None) -> Iterator[int | IO[bytes]]:
    if given is None:
        yield subprocess.DEVNULL
    elif isinstance(given, str | bytes):
        with tempfile.TemporaryFile() as file:
            file.write(given.encode() if isinstance(given, str) else given)
            file.seek(0)
            os.fchmod(file.fileno(), 0o666)
            yield file
    else:
        yield given


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to nsenter's command and to what it started, unless that made itself a session of its own."""
    # The command first, so that nsenter collects it: as an orphan it would belong to the host's PID 1, and a host
    # whose PID 1 collects nobody would never let the container end.
    for child in _children(process.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(2)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _shell_code(code: int) -> int:
    return 128 - code if code < 0 else code
