"""What `kai users apply` asks the host and does to it. Tests put another one in its place."""

from __future__ import annotations

import grp
import os
import pwd
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from kai.cli.fail import Failure

SECONDS = 300
"""How long one program may take: stopping an agent waits for its turn."""


class Host:
    """The running host."""

    def account(self, name: str) -> pwd.struct_passwd | None:
        try:
            return pwd.getpwnam(name)
        except KeyError:
            return None

    def accounts(self) -> list[pwd.struct_passwd]:
        return pwd.getpwall()

    def group(self, name: str) -> grp.struct_group | None:
        try:
            return grp.getgrnam(name)
        except KeyError:
            return None

    def group_name(self, gid: int) -> str:
        try:
            return grp.getgrgid(gid).gr_name
        except KeyError:
            return str(gid)

    def stat(self, path: Path) -> os.stat_result | None:
        """Of the path itself, never of what it points to."""
        try:
            return path.lstat()
        except FileNotFoundError:
            return None

    def read(self, path: Path) -> str:
        """The text of a root-owned file, "" when there is none."""
        try:
            return path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return ""

    def write(self, path: Path, text: str, *, mode: int = 0o644, check: Sequence[str] = ()) -> None:
        """Put a file in place at once or not at all. `check` is a command that the new file's path is added to.

        Raises Failure with the command's own words when it refuses the file.
        """
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".new", dir=path.parent)
        new = Path(name)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            new.chmod(mode)
            if check:
                self.run(*check, str(new), why=f"{path} is left as it was")
            new.replace(path)
        finally:
            new.unlink(missing_ok=True)

    def remove(self, path: Path) -> None:
        """A file and its directory when that is then empty."""
        path.unlink(missing_ok=True)
        if not any(path.parent.iterdir()):
            path.parent.rmdir()

    def run(self, *command: str, why: str = "") -> None:
        """Run a program without a shell. Raises Failure with what it said."""
        self.ask(*command, why=why)

    def ask(self, *command: str, why: str = "") -> str:
        """`run`, and what the program answers."""
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS, check=False
            )
        except FileNotFoundError:
            raise Failure(f"{command[0]} is not installed") from None
        except subprocess.TimeoutExpired:
            raise Failure(f"`{' '.join(command)}` took longer than {SECONDS} s") from None
        if done.returncode:
            said = (done.stderr or done.stdout).strip() or f"exit status {done.returncode}"
            raise Failure(f"`{' '.join(command)}` failed: {said}" + (f" ({why})" if why else ""))
        return done.stdout.strip()

    def unit(self, question: str, unit: str) -> bool:
        """Ask systemctl: `is-active`, `is-enabled` or `is-failed`."""
        return (
            subprocess.run(["systemctl", "--quiet", question, unit], capture_output=True, check=False).returncode == 0
        )


def is_directory(status: os.stat_result) -> bool:
    return stat.S_ISDIR(status.st_mode)
