"""`kai users apply`: make accounts, groups, directories, sudoers rules and sockets what users.yaml says.

First everything is looked at, and nothing is changed when there is a fault. Then a list of steps leads from what is
to what should be; on a host that is right already it is empty. What an earlier apply gave and the configuration no
longer asks for is taken back, except accounts and data: a uid that is used again would own what the old one left.

Root touches no path below a directory that isn't root's own: the agents' directories are theirs.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from kai.cli import accounts
from kai.cli.host import Host, is_directory
from kai.config import Config, User, check_accounts

GROUPS = (
    "kai-config",
    "kai-bot-clients",
    "kai-agent-clients",
    "kai-scheduler-clients",
    "kai-proxy-clients",
    "kai-webhook-clients",
    "kai-webhook-http",
    "kai-github-clients",
    "kai-model",
)
DAEMONS = (
    "kai-bot.service",
    "kai-scheduler.service",
    "kai-totp.service",
    "kai-proxy.service",
    "kai-webhook.service",
    "kai-agent@*.service",
)


class Step(msgspec.Struct, frozen=True):
    """One change: `text` says it to the operator, `act` makes it. Steps that only finish others have no text."""

    text: str
    act: Callable[[], None]


def faults(config: Config, host: Host) -> list[str]:
    """Why nothing may be changed, one line each; none is good."""
    found = list(check_accounts(config.users))
    if host.account("kai-bot") is None or any(host.group(name) is None for name in GROUPS):
        found.append("Kai's own accounts and groups are missing: run install.sh")
    if "/etc/sudoers.d" not in host.read(Path("/etc/sudoers")):
        found.append("/etc/sudoers doesn't include /etc/sudoers.d: install sudo, or add `@includedir /etc/sudoers.d`")
    for user in config.users:
        for account in (user.supervisor_account, user.work_account):
            if not accounts.is_plain(account):
                found.append(f"{user.name}: account {account}: expected at most {accounts.LONGEST} of a-z 0-9 _ . -")
        found += [
            f"{user.name}: {path}: a unit file can't name this path; use one without quotes and backslashes"
            for path in accounts.unquotable(config, user)
        ]
        found += [
            f"{user.name}: {path}: an account other than root and {user.work_account} may write to a directory above "
            "it, and could put a link to anywhere in its place: use a path of which that is not so"
            for path in accounts.visible(config, user)
            if _anchor(path, user, host) is None
        ]
        found += _foreign(user, host)
        found += _not_his(user, host)
    return found


def _foreign(user: User, host: Host) -> Iterator[str]:
    for wanted in accounts.accounts_of(user):
        there, group = host.account(wanted.name), host.group(wanted.name)
        if there is None and group is None:
            continue
        if there is None:
            yield (
                f"{user.name}: a group {wanted.name} exists and Kai didn't make it: remove it "
                f"(groupdel {wanted.name}) or give the user another name"
            )
        elif there.pw_gecos.partition(",")[0] != wanted.mark or there.pw_uid == 0:
            yield (
                f"{user.name}: an account {wanted.name} exists and Kai didn't make it (its comment isn't \""
                f'{wanted.mark}"): remove it or give the user another name'
            )
        elif group is None or group.gr_gid != there.pw_gid:
            yield f"{user.name}: the primary group of {wanted.name} isn't the group of that name: repair it by hand"


def _not_his(user: User, host: Host) -> Iterator[str]:
    """Directories that are there and belong to somebody else: his data must not change hands silently."""
    for wanted in accounts.directories_of(user, ""):
        status = host.stat(wanted.path)
        if status is None:
            continue
        owner = host.account(wanted.owner)
        if not is_directory(status):
            yield f"{wanted.path} is not a directory: move it away and apply again"
        elif owner is None or status.st_uid != owner.pw_uid:
            yield (
                f"{wanted.path} belongs to uid {status.st_uid}, expected {wanted.owner}: has his account changed? "
                f"Kai doesn't pass files on to another account; `mv {wanted.path} {wanted.path}.old` keeps them, "
                "then apply again"
            )


def _anchor(path: Path, user: User, host: Host) -> Path | None:
    """What the unit must bind so that `path` shows in it and nobody but root can put something else in its place.

    systemd binds as root and follows links. In a directory of its own the agent could leave one to /proc or to
    /run/user, so then that directory is bound, or the first one that isn't there yet; None when it is a stranger's.
    """
    account = host.account(user.work_account)
    for above in reversed(path.parents[:-1]):
        status = host.stat(above)
        if status is None or (account and status.st_uid == account.pw_uid and is_directory(status)):
            return above
        writable = status.st_mode & stat.S_IWOTH or (status.st_mode & stat.S_IWGRP and status.st_gid != 0)
        if status.st_uid != 0 or (writable and not stat.S_ISLNK(status.st_mode)):
            return None
    return path


def plan(config: Config, host: Host) -> list[Step]:
    """The steps that are left to do. Raises ValueError or OSError when the sudoers file can't be made."""
    users = config.users
    steps = _revoke(users, host)
    steps += _accounts(users, host)
    steps += _directories(config, host)
    steps += _file(
        host,
        accounts.SUDOERS,
        accounts.sudoers(accounts.sudoers_template(), users),
        mode=0o440,
        check=("visudo", "-c", "-q", "-f"),
    )
    steps += _drop_ins(config, host)
    steps += _moved(users, host)
    steps += _gone(users, host)
    steps += _sockets(users, host)
    return steps


def reload(host: Host) -> None:
    """Have running daemons read their configuration again, and a bot that it had stopped start."""
    host.run("systemctl", "try-reload-or-restart", *DAEMONS)
    if host.unit("is-active", "kai.target") and host.unit("is-failed", "kai-bot.service"):
        host.run("systemctl", "start", "kai-bot.service")


def _revoke(users: Sequence[User], host: Host) -> list[Step]:
    """Memberships that the last apply gave and this one doesn't."""
    wanted = {pair for user in users for pair in accounts.groups_of(user)}
    given = accounts.memberships(host.read(accounts.SYSUSERS))
    for user in users:
        given |= {(member, user.supervisor_account) for member in _strangers(user, host)}
    return [
        Step(f"take {account} out of the group {name}", _call(host, "gpasswd", "--delete", account, name))
        for account, name in sorted(given - wanted)
        if _is_member(account, name, host)
    ]


def _strangers(user: User, host: Host) -> set[str]:
    """Members of the group that reads the user's history, other than his work account: it is Kai's alone."""
    group = host.group(user.supervisor_account)
    return set(group.gr_mem if group else ()) - {user.work_account}


def _is_member(account: str, name: str, host: Host) -> bool:
    group = host.group(name)
    return group is not None and account in group.gr_mem


def _accounts(users: Sequence[User], host: Host) -> list[Step]:
    steps = _file(host, accounts.SYSUSERS, accounts.sysusers(users))
    missing = [
        f"make the account {each.name}"
        for user in users
        for each in accounts.accounts_of(user)
        if host.account(each.name) is None
    ]
    for user in users:
        missing += [
            f"add {account} to the group {name}"
            for account, name in sorted(accounts.groups_of(user))
            if not _is_member(account, name, host)
        ]
    if missing:
        steps.append(Step("\n".join(missing), _call(host, "systemd-sysusers", str(accounts.SYSUSERS))))
    return steps


def _directories(config: Config, host: Host) -> list[Step]:
    retention = config.kai.file_retention_days
    wanted = [
        each
        for user in config.users
        for each in accounts.directories_of(user, _work_group(user, host), retention=retention)
    ]
    steps = _file(host, accounts.TMPFILES, accounts.tmpfiles(wanted))
    new = {each.path for each in wanted if host.stat(each.path) is None}
    missing = [
        f"{'make' if each.path in new else 'correct'} the directory {each.path}"
        for each in wanted
        if not _is_right(each, host) and each.path.parent not in new
    ]
    if missing:
        make = _call(host, "systemd-tmpfiles", "--create", str(accounts.TMPFILES))
        steps.append(Step("\n".join(missing), make))
    return steps


def _work_group(user: User, host: Host) -> str:
    account = host.account(user.work_account)
    return user.work_account if account is None else host.group_name(account.pw_gid)


def _is_right(wanted: accounts.Directory, host: Host) -> bool:
    status, owner, group = host.stat(wanted.path), host.account(wanted.owner), host.group(wanted.group)
    if status is None or owner is None or group is None:
        return False
    have = (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode))
    return have == (owner.pw_uid, group.gr_gid, wanted.mode)


def _drop_ins(config: Config, host: Host) -> list[Step]:
    steps = []
    for user in config.users:
        hint = ""
        if host.unit("is-active", _service(user.name)):
            hint = f" (the agent that is running takes it up at its next start: kai retire {user.name})"
        anchors = (_anchor(path, user, host) for path in accounts.visible(config, user))
        text = accounts.drop_in(config, user, accounts.topmost(filter(None, anchors)))
        steps += _file(host, _drop_in_path(user.name), text, hint=hint)
    if steps:
        steps.append(Step("", _call(host, "systemctl", "daemon-reload")))
    return steps


def _moved(users: Sequence[User], host: Host) -> list[Step]:
    """A supervisor whose user has another account now still runs the agent as the old one."""
    units = [f"kai-agent@{user.name}.service" for user in users if _strangers(user, host)]
    return [
        Step(f"stop {unit}, whose account has changed", _call(host, "systemctl", "stop", unit))
        for unit in units
        if host.unit("is-active", unit)
    ]


def _gone(users: Sequence[User], host: Host) -> list[Step]:
    """Users whose accounts Kai made and who are in users.yaml no more. Account and data stay."""
    names = {user.name for user in users}
    known = (accounts.user_of(each.pw_name, each.pw_gecos.partition(",")[0]) for each in host.accounts())
    steps = []
    for name in sorted({name for name in known if name} - names):
        service, drop_in = _service(name), _drop_in_path(name)
        for socket in _sockets_of(name):
            if host.unit("is-enabled", socket) or host.unit("is-active", socket):
                steps.append(Step(f"close {socket}", _call(host, "systemctl", "disable", "--now", socket)))
        if host.unit("is-active", service):
            steps.append(Step(f"stop {service}", _call(host, "systemctl", "stop", service)))
        if host.read(drop_in):
            steps.append(Step(f"remove {drop_in}", _remove(host, drop_in)))
    return steps


def _sockets(users: Sequence[User], host: Host) -> list[Step]:
    steps = []
    running = host.unit("is-active", "kai.target")
    for user in users:
        for unit in _sockets_of(user.name):
            if not host.unit("is-enabled", unit):
                steps.append(Step(f"enable {unit}", _call(host, "systemctl", "enable", unit)))
            if running and not host.unit("is-active", unit):
                steps += _open(unit, _service(user.name), host)
    return steps


def _open(socket: str, service: str, host: Host) -> list[Step]:
    """systemd opens no socket of a service that runs already, so that has to end: its turn may finish first."""
    steps = [Step(f"open {socket}", _call(host, "systemctl", "start", socket))]
    if host.unit("is-active", service):
        text = f"stop {service}, which can't take up {socket} while it runs"
        steps.insert(0, Step(text, _call(host, "systemctl", "stop", service)))
    return steps


def _service(name: str) -> str:
    return f"kai-agent@{name}.service"


def _sockets_of(name: str) -> tuple[str, ...]:
    """The door for the daemons, and the one for his agent."""
    return f"kai-agent@{name}.socket", f"kai-agent-api@{name}.socket"


def _drop_in_path(name: str) -> Path:
    return accounts.DROPINS / f"kai-agent@{name}.service.d" / "kai.conf"


def _file(
    host: Host, path: Path, text: str, *, mode: int = 0o644, check: Sequence[str] = (), hint: str = ""
) -> list[Step]:
    if host.read(path) == text:
        return []

    def act() -> None:
        host.write(path, text, mode=mode, check=check)

    return [Step(f"write {path}{hint}", act)]


def _call(host: Host, *command: str) -> Callable[[], None]:
    return lambda: host.run(*command)


def _remove(host: Host, path: Path) -> Callable[[], None]:
    return lambda: host.remove(path)
