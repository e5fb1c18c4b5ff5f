"""Who hears of an event: those whom it concerns, those who asked for it, and where there is nobody, the admins."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase

from kai.config import Config, User
from kai.webhook.notices import Notice


def recipients(notice: Notice, config: Config, own: Mapping[str, frozenset[str]]) -> list[str]:
    """Names of users, in the configuration's order. `own` has the repositories that each added himself, in small
    letters.
    """
    found = []
    for user in config.users:
        concerned = user.github is not None and user.github.lower() in notice.logins
        subscribed = {name.lower() for name in user.github_repos} | own.get(user.name, frozenset())
        if concerned or (notice.repository and notice.repository in subscribed):
            found.append(user.name)
    return found or [admin.name for admin in config.admins]


def may_add(user: User, name: str) -> bool:
    """Whether he may subscribe to this repository himself: an admin to any, others to what the admin named."""
    return user.admin or any(fnmatchcase(name.lower(), pattern.lower()) for pattern in user.github_repos_allowed)


def allowed(user: User, names: frozenset[str]) -> frozenset[str]:
    """Those of the repositories that he may have today."""
    return frozenset(name for name in names if may_add(user, name))
