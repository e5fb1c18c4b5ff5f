"""What the accounts of users are: names, marks, groups and directories, and the files that describe them to others.

Everything here is a function of the configuration; `kai.cli.apply` compares it with the host and makes it so.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from kai.config import Config, User, expand, home_of

STATE = Path("/var/lib/kai/users")
SYSUSERS = Path("/etc/sysusers.d/kai-users.conf")
TMPFILES = Path("/etc/tmpfiles.d/kai-users.conf")
SUDOERS = Path("/etc/sudoers.d/kai")
DROPINS = Path("/etc/systemd/system")

PER_USER = "# --- for each user ---\n"
"""Divides sudoers.d/kai: what comes after this line is repeated for each user."""
LONGEST = 31
"""Characters of an account name: what utmp(5) and useradd(8) allow."""
DRAIN_IN_UNIT = 120
"""Seconds of `drain` that the unit's own TimeoutStopSec= covers, with MARGIN."""
MARGIN = 30

_MEMBER = re.compile(r"m\s+(\S+)\s+(\S+)\s*")
_UNQUOTABLE = re.compile(r'["\\\x00-\x1f\x7f]')
_WRITTEN = "# Written by `kai users apply` from the configuration in /etc/kai: edit that, not this.\n"


class Account(msgspec.Struct, frozen=True):
    """An account that Kai makes. `mark` stands in its GECOS field and says that Kai made it."""

    name: str
    mark: str
    home: str
    shell: str


class Directory(msgspec.Struct, frozen=True):
    """A directory and whose it is. `age` is systemd-tmpfiles' (tmpfiles.d(5)), "-" for never."""

    path: Path
    mode: int
    owner: str
    group: str
    age: str = "-"


def accounts_of(user: User) -> list[Account]:
    """The accounts that Kai makes for this user: his supervisor's and, without os_user, a work account."""
    made = [Account(user.supervisor_account, f"Kai supervisor of {user.name}", "/nonexistent", "/usr/sbin/nologin")]
    if user.os_user is None:
        home = str(STATE / user.name / "work")
        made.append(Account(user.work_account, f"Kai work account of {user.name}", home, "/bin/bash"))
    return made


def user_of(account: str, mark: str) -> str | None:
    """The user whose supervisor an account is, by its name and its mark; None when it isn't one that Kai made."""
    name = account.removeprefix("kai-u-")
    return name if name != account and mark == f"Kai supervisor of {name}" else None


def groups_of(user: User) -> set[tuple[str, str]]:
    """(account, group): what apply adds. The supervisor is in the group of its own name by birth."""
    return {
        (user.work_account, user.supervisor_account),
        (user.work_account, "kai-model"),
        (user.supervisor_account, "kai-config"),
        (user.supervisor_account, "kai-bot-clients"),
        (user.supervisor_account, "kai-scheduler-clients"),
        (user.supervisor_account, "kai-proxy-clients"),
    }


def directories_of(user: User, work_group: str, *, retention: int = 0) -> list[Directory]:
    """The user's directories, parents first. `work_group` is the primary group of the work account.

    Received files are kept for `retention` days since they came, 0 for good.
    """
    base, own, work = STATE / user.name, user.supervisor_account, user.work_account
    received = f"mM:{retention}d" if retention else "-"
    return [
        Directory(base, 0o750, "root", own),
        Directory(base / "state", 0o700, own, own),
        Directory(base / "history", 0o2750, own, own),
        Directory(base / "files", 0o2750, own, own, age=received),
        Directory(base / "memory", 0o2770, own, own),
        Directory(base / "work", 0o700, work, work_group),
        Directory(base / "tmp", 0o700, work, work_group, age="10d"),  # as the host's /tmp
    ]


def sysusers(users: Sequence[User]) -> str:
    """sysusers.d(5) lines for all accounts and memberships."""
    lines = [
        f'u {each.name} - "{each.mark}" {each.home} {each.shell}\n' for user in users for each in accounts_of(user)
    ]
    lines += [f"m {account} {group}\n" for user in users for account, group in sorted(groups_of(user))]
    return _WRITTEN + "".join(lines)


def memberships(text: str) -> set[tuple[str, str]]:
    """(account, group) of a file that `sysusers` wrote: what an earlier apply gave."""
    found = (_MEMBER.fullmatch(line) for line in text.splitlines())
    return {(match[1], match[2]) for match in found if match}


def tmpfiles(directories: Iterable[Directory]) -> str:
    """tmpfiles.d(5) lines. Each parent is root's, so nobody else can put something else in a directory's place."""
    return _WRITTEN + "".join(
        f"d {each.path} {each.mode:04o} {each.owner} {each.group} {each.age}\n" for each in directories
    )


def sudoers(template: str, users: Sequence[User]) -> str:
    """The rules for all users. Raises ValueError for an account name that sudoers(5) would read otherwise."""
    head, divider, each = template.partition(PER_USER)
    if not divider:
        raise ValueError(f"the pattern of the sudoers file has no line {PER_USER.strip()!r}: install Kai again")
    text = head
    for user in users:
        for account in (user.supervisor_account, user.work_account):
            if not is_plain(account):
                raise ValueError(f"{account!r} can't stand in a sudoers file")
        text += each.replace("KAI_SUPERVISOR", user.supervisor_account).replace("KAI_ACCOUNT", user.work_account)
    return text


def is_plain(account: str) -> bool:
    """Whether an account name means itself everywhere that apply writes it."""
    return len(account) <= LONGEST and bool(re.fullmatch(r"[a-z_][a-z0-9_.-]*", account))


def sudoers_template() -> str:
    """sudoers.d/kai, from the installation or, in a checkout, from there. Raises FileNotFoundError."""
    installed = Path(sys.prefix) / "share/kai/sudoers.d/kai"
    checkout = Path(__file__).resolve().parents[2] / "sudoers.d/kai"
    return (installed if installed.exists() else checkout).read_text(encoding="utf-8")


def drop_in(config: Config, user: User, paths: Iterable[Path] | None = None) -> str:
    """What the unit of this user has beyond the template: what it shows of the host, his limits, a longer drain.

    `paths` are the directories shown, `visible` when not given.
    """
    shown = visible(config, user) if paths is None else paths
    lines = ["[Service]", *(f'BindPaths="-{_quoted(path)}"' for path in shown)]
    limits: Mapping[str, object] = {
        "MemoryMax": user.limits.memory,
        "TasksMax": user.limits.tasks,
        "CPUWeight": user.limits.cpu_weight,
    }
    lines += [f"{name}={value}" for name, value in limits.items() if value is not None]
    if config.kai.drain > DRAIN_IN_UNIT:
        lines.append(f"TimeoutStopSec={config.kai.drain + MARGIN}")
    return _WRITTEN + "\n".join(lines) + "\n"


def visible(config: Config, user: User) -> list[Path]:
    """Directories that the unit must show beside the user's own in STATE: his home and his workspaces."""
    home = home_of(user) or STATE / user.name / "work"
    base = config.effective(user, "workspace_base")[0]
    chosen = [home, *(expand(path, home) for path in (user.home_workspace, base) if path)]
    chosen += config.workspaces_of(user, home)
    return topmost(path for path in chosen if path != Path("/") and not path.is_relative_to("/var/lib/kai"))


def topmost(paths: Iterable[Path]) -> list[Path]:
    """Those that lie beneath no other one, sorted."""
    found = set(paths)
    return sorted(path for path in found if not any(parent in found for parent in path.parents))


def unquotable(config: Config, user: User) -> list[Path]:
    """Of `visible`, the paths that a unit file can't name."""
    return [path for path in visible(config, user) if _UNQUOTABLE.search(str(path))]


def _quoted(path: Path) -> str:
    return str(path).replace("%", "%%")
