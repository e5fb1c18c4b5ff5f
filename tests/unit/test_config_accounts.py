"""What the host says of the users' accounts."""

from __future__ import annotations

import grp
import pwd
from pathlib import Path

import pytest

from kai.config import User, check_accounts, home_of

ACCOUNTS = {
    "root": (0, 0),
    "toor": (0, 0),
    "alice": (1001, 1001),
    "bob": (1002, 1002),
    "alice2": (1001, 1001),
    "daemonlike": (998, 998),
    "kai-bot": (990, 990),
    "twin": (990, 1009),
    "nobody": (65534, 65534),
}
GROUPS = {
    "alice": (1001, []),
    "bob": (1002, []),
    "kai-config": (980, ["kai-bot", "bob"]),
    "kai-model": (981, ["alice", "bob"]),
    "kai-u-alice": (982, ["alice"]),
    "kai-bot": (990, []),
    "kai-agent-clients": (998, []),
}


@pytest.fixture(autouse=True)
def _host(monkeypatch: pytest.MonkeyPatch) -> None:
    def account(name: str) -> pwd.struct_passwd:
        uid, gid = ACCOUNTS[name]
        return pwd.struct_passwd((name, "x", uid, gid, "", f"/home/{name}", "/bin/sh"))

    groups = [grp.struct_group((name, "x", gid, members)) for name, (gid, members) in GROUPS.items()]
    monkeypatch.setattr(pwd, "getpwnam", account)
    monkeypatch.setattr(pwd, "getpwall", lambda: [account(name) for name in ACCOUNTS])
    monkeypatch.setattr(grp, "getgrall", lambda: groups)


def user(os_user: str | None, name: str = "alice") -> User:
    return User(telegram_id=1, name=name, os_user=os_user)


def test_a_persons_account_and_a_user_without_one_are_no_fault() -> None:
    assert check_accounts([user("alice"), user(None, "bob")]) == []


@pytest.mark.parametrize(
    ("os_user", "message"),
    [
        ("eve", "eve doesn't exist on this host"),
        ("root", "root has uid 0"),
        ("toor", "toor has uid 0"),
        ("nobody", "nobody has uid 65534"),
        ("kai-bot", "kai-bot is Kai's own account kai-bot"),
        ("twin", "twin is Kai's own account kai-bot"),
        ("bob", "bob is in the group kai-config"),
        ("daemonlike", "daemonlike is in the group kai-agent-clients"),
    ],
)
def test_an_account_that_no_agent_may_have_is_named(os_user: str, message: str) -> None:
    (fault,) = check_accounts([user(os_user)], "users.yaml")
    assert fault.startswith(f"users.yaml: users[0].os_user: {message}")


def test_the_group_of_another_user_is_refused() -> None:
    faults = check_accounts([user("alice", "bob")], "users.yaml")
    assert [fault.split(",")[0] for fault in faults] == [
        "users.yaml: users[0].os_user: alice is in the group kai-u-alice"
    ]


def test_two_names_of_one_uid_are_one_account() -> None:
    faults = check_accounts([user("alice"), user("alice2", "bob")])
    assert faults == [
        "/etc/kai/users.yaml: users[1].os_user: alice2 has the same uid 1001 as alice, "
        "expected one account for each user"
    ]


def test_the_home_is_that_of_the_work_account() -> None:
    assert home_of(user("bob")) == Path("/home/bob")
    assert home_of(user(None)) is None
