"""The configuration as a whole: reading the directory, what the files say of each other, and effective values."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import msgspec

from kai.config import kaiyaml, workspaces
from kai.config import services as servicelist
from kai.config import users as userlist
from kai.config.decode import Faults
from kai.config.kaiyaml import Kai
from kai.config.services import Service
from kai.config.source import ConfigError, parse, read
from kai.config.users import User
from kai.config.workspaces import Workspace

Source = Literal["users.yaml", "kai.yaml", "host", "built-in"]

# Where a value stands in kai.yaml; in users.yaml it has the name on the left.
_IN_KAI = {
    "model": "agent.model",
    "timeout": "agent.timeout",
    "backend": "agent.backend",
    "streaming": "streaming",
    "approvals": "approvals",
    "timezone": "timezone",
    "workspace_base": "workspace_base",
    "pr_review": "pr_review",
    "issue_triage": "issue_triage",
}


class Config(msgspec.Struct, frozen=True):
    """A configuration without faults. `given` has the dotted keys that kai.yaml sets."""

    kai: Kai
    users: tuple[User, ...]
    workspaces: tuple[Workspace, ...] = ()
    given: frozenset[str] = frozenset()
    services: tuple[Service, ...] = ()

    def user(self, name: str) -> User | None:
        """The user of that name."""
        return next((user for user in self.users if user.name == name), None)

    def by_telegram_id(self, telegram_id: int) -> User | None:
        """The user with that Telegram id; None is a stranger."""
        return next((user for user in self.users if user.telegram_id == telegram_id), None)

    @property
    def admins(self) -> tuple[User, ...]:
        """The users who get what no user owns."""
        return tuple(user for user in self.users if user.admin)

    def effective(self, user: User, key: str) -> tuple[Any, Source]:
        """A setting's value for a user and where it comes from: users.yaml, else kai.yaml, else built-in.

        Keys: model (None: the agent's own choice), timeout (s), budget (US dollars, cut to the user's ceiling),
        backend, streaming, approvals, timezone (IANA name, built-in is the host's), workspace_base, pr_review,
        issue_triage. Another key raises KeyError.
        """
        if key == "budget":
            if user.max_budget is not None and user.max_budget < self.kai.budget:
                return user.max_budget, "users.yaml"
            return self.kai.budget, "kai.yaml" if "budget" in self.given else "built-in"
        path = _IN_KAI[key]
        own = getattr(user, key)
        if own is not None:
            return own, "users.yaml"
        value: Any = self.kai
        for name in path.split("."):
            value = getattr(value, name)
        if key == "timezone" and value is None:
            return host_timezone(), "host"
        return value, "kai.yaml" if path in self.given else "built-in"

    def ceiling(self, user: User) -> float:
        """The most that the user may set as his budget, in US dollars: max_budget, else kai.yaml's budget."""
        return self.kai.budget if user.max_budget is None else user.max_budget

    def command(self, user: User) -> tuple[str, ...]:
        """The words that start this user's agent."""
        return self.kai.agent.argv(self.effective(user, "backend")[0])

    def workspaces_of(self, user: User, home: Path) -> dict[Path, Workspace]:
        """The settings of the workspaces that this user can reach, by path; `home` is his work account's."""
        return workspaces.reach(user, self.workspaces, self.kai.workspace_base, home)


def load(directory: Path) -> Config:
    """Read a directory's kai.yaml, users.yaml, workspaces.yaml, services.yaml. Raises ConfigError with the first fault.

    Nothing is half-configured: with a fault in any file there is no Config.
    """
    config, faults = _gather(directory, home=None)
    if config is None:
        raise faults[0]
    return config


def check(directory: Path, home: Callable[[User], Path | None] | None = None) -> list[str]:
    """Every fault of all files, one line each; none is a good configuration.

    With `home`, which gives the home directory of a user's work account (`home_of`), paths that begin with `~` are
    compared with those that don't.
    """
    return [str(fault) for fault in _gather(directory, home)[1]]


def host_timezone() -> str:
    """The IANA name of the host's zone, UTC where it has none."""
    try:
        target = os.path.realpath("/etc/localtime")
    except OSError:
        return "UTC"
    _, found, name = target.partition("/zoneinfo/")
    return name.removeprefix("posix/") if found and name else "UTC"


def _gather(directory: Path, home: Callable[[User], Path | None] | None) -> tuple[Config | None, list[ConfigError]]:
    kai_data, kai_faults, _ = _data(directory / kaiyaml.NAME)
    kai = None if kai_faults else kaiyaml.build(kai_data, kai_faults)
    user_data, user_faults, present = _data(directory / userlist.NAME)
    users: tuple[User, ...] | None = None
    if present and not user_faults:
        users = userlist.build(user_data, user_faults)
    elif not present and kai is not None:
        users = _without_file(kai, user_faults)
    if kai is not None and users is not None:
        users = _with_fallback(users, kai, kai_faults)
    place_data, place_faults, _ = _data(directory / workspaces.NAME)
    places = None if place_faults else workspaces.build(place_data, place_faults)
    if kai is not None and users is not None and places is not None:
        workspaces.outside(places, users, kai.workspace_base, place_faults, home)
    service_data, service_faults, _ = _data(directory / servicelist.NAME)
    services = None if service_faults else servicelist.build(service_data, service_faults)
    if users is not None and services is not None:
        servicelist.unknown_users(services, users, service_faults)
    faults = kai_faults.found + user_faults.found + place_faults.found + service_faults.found
    if kai is None or users is None or places is None or services is None or faults:
        return None, faults
    given = kaiyaml.given(kai_data)
    return Config(kai=kai, users=users, workspaces=places, given=given, services=services), []


def _data(file: Path) -> tuple[Any, Faults, bool]:
    """The plain data of a file, its faults so far, and whether the file exists."""
    faults = Faults(os.fspath(file))
    try:
        text = read(file)
        return (None if text is None else parse(text, faults.file)), faults, text is not None
    except ConfigError as error:
        faults.found.append(error)
        return None, faults, True


def _without_file(kai: Kai, faults: Faults) -> tuple[User, ...] | None:
    if kai.allowed_user_ids is None:
        faults.add(
            "",
            "doesn't exist and kai.yaml has no allowed_user_ids, expected one of them: nobody would be admitted "
            "(kai users add makes the file)",
        )
        return None
    return userlist.from_ids(kai.allowed_user_ids)


def _with_fallback(users: tuple[User, ...], kai: Kai, faults: Faults) -> tuple[User, ...]:
    """Give `agent.os_user` to the one user without an os_user; two users must never share an account."""
    account = kai.agent.os_user
    without = [user.name for user in users if user.os_user is None]
    if account is None or not without:
        return users
    served = without + [user.name for user in users if user.os_user == account]
    if len(served) > 1:
        faults.add(
            "agent.os_user",
            f'"{account}" would serve {len(served)} users ({", ".join(served)}), expected one '
            "(give each an os_user in users.yaml)",
        )
        return users
    return tuple(user if user.os_user is not None else msgspec.structs.replace(user, os_user=account) for user in users)
