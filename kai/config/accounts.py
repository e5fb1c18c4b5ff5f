"""What the host knows of the users' accounts: the part of the checks that can't be told from the files alone."""

from __future__ import annotations

import grp
import pwd
from collections.abc import Sequence
from pathlib import Path

from kai.config.users import User

NOBODY = 65534


def home_of(user: User) -> Path | None:
    """The home directory of the user's work account, None while the account doesn't exist."""
    try:
        return Path(pwd.getpwnam(user.work_account).pw_dir)
    except KeyError:
        return None


def check_accounts(users: Sequence[User], file: str = "/etc/kai/users.yaml") -> list[str]:
    """One line for each os_user that no agent may run as: missing, uid 0, Kai's own, shared, in a group of Kai's."""
    faults: list[str] = []
    holders: dict[int, str] = {}
    owners = {entry.pw_uid: entry.pw_name for entry in pwd.getpwall() if _is_own(entry.pw_name)}
    for index, user in enumerate(users):
        if user.os_user is None:
            continue
        where = f"{file}: users[{index}].os_user: {user.os_user}"
        try:
            account = pwd.getpwnam(user.os_user)
        except KeyError:
            faults.append(f"{where} doesn't exist on this host, expected an account (adduser {user.os_user})")
            continue
        uid = account.pw_uid
        if uid == 0:
            faults.append(f"{where} has uid 0, expected an account that isn't root")
        elif uid == NOBODY:
            faults.append(f"{where} has uid {NOBODY}, which belongs to nobody, expected a real account")
        elif _is_own(account.pw_name) or uid in owners:
            own = owners.get(uid, account.pw_name)
            faults.append(f"{where} is Kai's own account {own}, expected a person's")
        elif uid in holders:
            faults.append(f"{where} has the same uid {uid} as {holders[uid]}, expected one account for each user")
        else:
            faults += [
                f"{where} is in the group {group}, which gives more than an agent may have "
                f"(gpasswd -d {user.os_user} {group})"
                for group in _foreign_groups(account, user)
            ]
        holders.setdefault(uid, user.os_user)
    return faults


def _is_own(name: str) -> bool:
    return name == "kai" or name.startswith("kai-")


def _foreign_groups(account: pwd.struct_passwd, user: User) -> list[str]:
    """Groups of Kai's that the account is in, but for the two that `kai users apply` puts it into."""
    given = {"kai-model", user.supervisor_account}
    return sorted(
        group.gr_name
        for group in grp.getgrall()
        if _is_own(group.gr_name)
        and group.gr_name not in given
        and (account.pw_name in group.gr_mem or group.gr_gid == account.pw_gid)
    )
