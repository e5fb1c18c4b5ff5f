"""`kai users list|add|remove|apply`: who is admitted, and the accounts that it takes."""

from __future__ import annotations

import argparse
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from kai.cli import apply, usersfile
from kai.cli.fail import Failure, need_root
from kai.cli.host import Host
from kai.cli.paths import config_dir
from kai.config import Config, ConfigError, User, load
from kai.config.source import parse, read


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("users", help="list, add and remove users; make their accounts")
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    listed = actions.add_parser("list", help="the users and the state of their units")
    listed.set_defaults(run=run_list)
    added = actions.add_parser("add", help="admit a user: an entry in users.yaml, then apply")
    added.add_argument("id", type=int, metavar="ID", help="Telegram id, a number: @userinfobot tells it")
    added.add_argument("name", metavar="NAME", help="short name: a-z, 0-9 and -, at most 24 characters")
    added.add_argument("--os-user", metavar="ACCOUNT", help="existing account the agent works as (default: a new one)")
    added.add_argument("--admin", action="store_true", help="this user also gets what belongs to no user")
    added.set_defaults(run=run_add)
    removed = actions.add_parser("remove", help="cut a user's entry, then apply; account and data stay")
    removed.add_argument("name", metavar="NAME")
    removed.set_defaults(run=run_remove)
    applied = actions.add_parser("apply", help="make accounts, rules and sockets what users.yaml says")
    applied.add_argument("--dry-run", action="store_true", help="only say what would be done")
    applied.set_defaults(run=run_apply)


def run_list(_: argparse.Namespace) -> int:
    host = Host()
    rows = [("NAME", "TELEGRAM ID", "ROLE", "ACCOUNT", "STATE")]
    rows += [(u.name, str(u.telegram_id), u.role, u.work_account, _state(u, host)) for u in _load().users]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def run_add(arguments: argparse.Namespace) -> int:
    need_root("kai users add")
    file = config_dir() / "users.yaml"
    config = _load_if_any(file)
    new = User(telegram_id=arguments.id, name=arguments.name, os_user=arguments.os_user)
    if config is not None:  # before the file says it: an entry that can't be applied is none
        others = tuple(user for user in config.users if user.name != new.name)
        _refuse(apply.faults(msgspec.structs.replace(config, users=(*others, new)), Host()))
    entry = {
        "telegram_id": arguments.id,
        "name": arguments.name,
        "role": "admin" if arguments.admin else None,
        "os_user": arguments.os_user,
    }
    before = file.read_bytes() if file.exists() else None
    try:
        usersfile.add(file, entry)
    except ConfigError as error:
        raise Failure(str(error)) from None
    if config is None:  # the first user: only now is there a configuration to check
        try:
            _refuse(apply.faults(_load(), Host()))
        except Failure:
            file.unlink() if before is None else file.write_bytes(before)
            raise
    print(f"add {arguments.name} ({arguments.id}) to {file}")
    return _apply(dry_run=False)


def run_remove(arguments: argparse.Namespace) -> int:
    need_root("kai users remove")
    file = config_dir() / "users.yaml"
    before = file.read_bytes() if file.exists() else b""
    try:
        usersfile.remove(file, arguments.name)
    except ConfigError as error:
        raise Failure(str(error)) from None
    try:
        _load()
    except Failure:
        file.write_bytes(before)  # workspaces.yaml may name what was his: with half of it done, Kai wouldn't start
        raise
    print(f"cut {arguments.name} from {file}; the account and /var/lib/kai/users/{arguments.name} stay")
    return _apply(dry_run=False)


def run_apply(arguments: argparse.Namespace) -> int:
    need_root("kai users apply")
    return _apply(dry_run=arguments.dry_run)


def _apply(*, dry_run: bool) -> int:
    config, host = _load(), Host()
    with _alone():
        _refuse(apply.faults(config, host))
        try:
            steps = apply.plan(config, host)
        except (OSError, ValueError) as error:
            raise Failure(f"the sudoers file can't be made: {error}") from None
        for step in steps:
            for line in filter(None, step.text.splitlines()):
                print(f"would {line}" if dry_run else line, flush=True)
            if not dry_run:
                step.act()
        if not steps:
            print("nothing to change")
        if not dry_run:
            apply.reload(host)
    return 0


def _refuse(faults: list[str]) -> None:
    if faults:
        raise Failure("nothing was changed:\n  " + "\n  ".join(faults))


def _load() -> Config:
    try:
        return load(config_dir())
    except ConfigError as error:
        raise Failure(str(error)) from None
    except PermissionError as error:
        raise Failure(f"{error.filename}: only root and Kai's daemons may read it: run it with sudo") from None


def _load_if_any(file: Path) -> Config | None:
    """The configuration as it is; None when this is the first user. Raises Failure for one with faults."""
    text = read(file)
    if text is None:
        try:
            ids = ", ".join(str(user.telegram_id) for user in load(config_dir()).users)
        except ConfigError:
            return None
        raise Failure(f"kai.yaml admits {ids} by allowed_user_ids, which {file} would replace: list them there first")
    content = parse(text, str(file))
    if isinstance(content, dict) and content.get("users") in (None, []):
        return None
    return _load()


def _state(user: User, host: Host) -> str:
    if host.unit("is-active", f"kai-agent@{user.name}.service"):
        return "running"
    if host.unit("is-active", f"kai-agent@{user.name}.socket"):
        return "idle"
    if host.unit("is-enabled", f"kai-agent@{user.name}.socket"):
        return "stopped: systemctl start kai.target"
    return "not applied: kai users apply"


@contextmanager
def _alone() -> Iterator[None]:
    """One apply at a time."""
    directory = os.open("/run/kai" if Path("/run/kai").is_dir() else "/run", os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)
