"""What an enrolment for TOTP is on disk: the secret in a credential store, and the marker. Written by root alone.

Each step is on disk when it returns, and a reader sees the old file or the new one.
"""

from __future__ import annotations

import grp
import os
import stat
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kai.cli.fail import Failure
from kai.config.rules import USER_NAME
from kai.lib import enrolment
from kai.lib.enrolment import Marker

SECONDS = 60
ENCRYPTED_NAME = "totpenc_{user}"
"""What systemd calls a file of the encrypted store's directory; it is decrypted under this name only."""
CREATE = "`sudo systemd-tmpfiles --create kai.conf` puts it right"


@dataclass(frozen=True)
class Files:
    """Where things are. Everything raises OSError or Failure."""

    markers: Path = enrolment.DIRECTORY
    plain: Path = Path("/etc/credstore/kai-totp")
    encrypted: Path = Path("/etc/credstore.encrypted/kai-totp")
    owner: int = 0
    group: str = "kai-config"

    def enrolled(self, user: str) -> bool:
        return enrolment.enrolled(self.markers, user)

    def users(self) -> list[str]:
        """All that have a marker; none where there is no directory yet."""
        return _names(self.markers)

    def secrets(self) -> list[str]:
        """All that have a secret, in either store."""
        return sorted({*_names(self.plain), *_names(self.encrypted)})

    def ready(self) -> None:
        """Raises Failure where a directory is missing."""
        for directory in (self.markers, self.plain, self.encrypted):
            if not directory.is_dir():
                raise Failure(f"{directory} is missing: {CREATE}")

    def put_secret(self, user: str, secret: str, *, encrypt: bool) -> None:
        """In one store, and out of the other."""
        if encrypt:
            _write(self.encrypted / user, encrypted(user, secret), mode=0o600)
            _remove(self.plain / user)
        else:
            _write(self.plain / user, f"{secret}\n".encode(), mode=0o600)
            _remove(self.encrypted / user)

    def put_marker(self, user: str, marker: Marker) -> None:
        _write(self.markers / user, enrolment.encode(marker), mode=0o640, group=self.gid())

    def remove_secret(self, user: str) -> bool:
        """Whether there was one."""
        return bool(sum([_remove(self.plain / user), _remove(self.encrypted / user)]))

    def remove_marker(self, user: str) -> bool:
        return _remove(self.markers / user)

    def gid(self) -> int:
        try:
            return grp.getgrnam(self.group).gr_gid
        except KeyError:
            raise Failure(f"there is no group {self.group}: `sudo systemd-sysusers kai.conf` makes it") from None

    def faults(self) -> list[str]:
        """Owners and modes that let others read a secret, or forge or remove a marker; halves of enrolments."""
        found, group = [], self.gid()
        wanted = [(self.markers.parent, 0o750, group), (self.markers, 0o750, group)]
        wanted += [(self.markers / user, 0o640, group) for user in self.users()]
        for store in (self.plain, self.encrypted):
            wanted.append((store, 0o700, -1))
            wanted += [(store / user, 0o600, -1) for user in _names(store)]
        for path, mode, gid in wanted:
            found += self._wrong(path, mode, gid)
        enrolled, secrets = set(self.users()), set(self.secrets())
        for user in sorted(enrolled - secrets):
            found.append(
                f"{user} is enrolled for TOTP, but his secret is missing, so nothing of him is let through: put it "
                f"back and `sudo kai totp unlock {user}`, or `sudo kai totp setup {user} --replace`"
            )
        for user in sorted(secrets - enrolled):
            found.append(f"{user} has a TOTP secret and isn't enrolled: `sudo kai totp setup {user}`, or reset him")
        for user in sorted({*_names(self.plain)} & {*_names(self.encrypted)}):
            found.append(f"{user} has two TOTP secrets: `sudo kai totp setup {user} --replace` makes one")
        return found

    def _wrong(self, path: Path, mode: int, gid: int) -> list[str]:
        try:
            status = path.lstat()
        except OSError as error:
            return [f"{path}: {error.strerror}: {CREATE}"]
        if stat.S_ISLNK(status.st_mode):
            return [f"{path} is a symbolic link: remove it"]
        now, wrong = stat.S_IMODE(status.st_mode), []
        if status.st_uid != self.owner or (gid >= 0 and status.st_gid != gid):
            group = f":{self.group}" if gid >= 0 else ""
            wrong.append(f"{path} belongs to {status.st_uid}:{status.st_gid}: `sudo chown root{group} {path}`")
        if now & ~mode or (gid >= 0 and now != mode):
            wrong.append(f"{path} has mode {now:04o}: `sudo chmod {mode:04o} {path}`")
        return wrong


FILES = Files()


def encrypted(user: str, secret: str) -> bytes:
    """The secret as systemd-creds encrypts it for this host. It goes there by a pipe and comes back by one."""
    command = ["systemd-creds", "encrypt", f"--name={ENCRYPTED_NAME.format(user=user)}", "-", "-"]
    try:
        done = subprocess.run(command, input=secret.encode(), capture_output=True, timeout=SECONDS, check=False)
    except FileNotFoundError:
        raise Failure("systemd-creds is not installed: leave --encrypt out") from None
    except subprocess.TimeoutExpired:
        raise Failure(f"systemd-creds took longer than {SECONDS} s") from None
    if done.returncode or not done.stdout:
        said = done.stderr.decode(errors="replace").strip() or f"exit status {done.returncode}"
        raise Failure(f"systemd-creds: {said}")
    return done.stdout


def _names(directory: Path) -> list[str]:
    """Files that are named like users; half-written ones begin with a dot."""
    try:
        return sorted(name for name in os.listdir(directory) if USER_NAME.fullmatch(name))  # noqa: PTH208
    except FileNotFoundError:
        return []


def _write(path: Path, data: bytes, *, mode: int, group: int | None = None) -> None:
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".new", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            if group is not None:
                os.fchown(file.fileno(), -1, group)
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        Path(name).replace(path)
    finally:
        with suppress(FileNotFoundError):
            Path(name).unlink()
    _sync(path.parent)


def _remove(path: Path) -> bool:
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    _sync(path.parent)
    return True


def _sync(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
