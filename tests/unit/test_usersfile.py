"""`kai users add` and `remove` edit users.yaml: one entry, nothing else."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from kai.cli.usersfile import add, remove
from kai.config import ConfigError, User, load

TEXT = """\
# Who may talk to us.
users:
  # the boss
  - telegram_id: 1   # Alice
    name: alice
    limits:
      memory: 2G  # enough
    github_repos:
      - a/b
      - c/d

  # the other one
  - name: bob
    telegram_id: 2
# the end
"""


def file(directory: Path, text: str) -> Path:
    path = directory / "users.yaml"
    path.write_text(text)
    return path


def test_an_entry_goes_behind_the_last_and_every_other_line_stays(tmp_path: Path) -> None:
    path = file(tmp_path, TEXT)
    user = add(path, {"telegram_id": 3, "name": "carol", "role": "admin", "os_user": None, "max_budget": 2.5})
    assert user == User(telegram_id=3, name="carol", role="admin", max_budget=2.5)
    assert path.read_text() == TEXT.replace(
        "    telegram_id: 2\n",
        "    telegram_id: 2\n  - telegram_id: 3\n    name: carol\n    role: admin\n    max_budget: 2.5\n",
    )
    assert load(tmp_path).users[2] == user


def test_all_kinds_of_values_survive_the_way_through_the_file(tmp_path: Path) -> None:
    path = file(tmp_path, TEXT)
    user = add(
        path,
        {
            "telegram_id": 3,
            "name": "off",
            "home_workspace": "~/x y: #z",
            "github_repos": ["a/b", "c/d.e"],
            "github_repos_allowed": ["a/*"],
            "notify_chats": (-5,),
            "pr_review": False,
            "limits": {"memory": "50%", "tasks": 5},
            "streaming": "off",
        },
    )
    assert load(tmp_path).users[2] == user
    assert (user.name, user.home_workspace, user.streaming) == ("off", "~/x y: #z", "off")
    assert (user.notify_chats, user.limits.memory) == ((-5,), "50%")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "users:\n  - telegram_id: 3\n    name: carol\n"),
        ("# mine\n", "# mine\nusers:\n  - telegram_id: 3\n    name: carol\n"),
        ("# mine", "# mine\nusers:\n  - telegram_id: 3\n    name: carol\n"),
        ("users:\n#  - x\n", "users:\n  - telegram_id: 3\n    name: carol\n#  - x\n"),
        ("users:", "users:\n  - telegram_id: 3\n    name: carol\n"),
        ("users: []  # nobody yet\n# end\n", "users:  # nobody yet\n  - telegram_id: 3\n    name: carol\n# end\n"),
        ("users: null\n", "users:\n  - telegram_id: 3\n    name: carol\n"),
        (
            "users:\n- telegram_id: 1\n  name: a",
            "users:\n- telegram_id: 1\n  name: a\n- telegram_id: 3\n  name: carol\n",
        ),
        (
            "users:\n    -   name: a\n        telegram_id: 1\n        model:\n",
            "users:\n    -   name: a\n        telegram_id: 1\n        model:\n"
            "    - telegram_id: 3\n      name: carol\n",
        ),
        (
            "users:\n- telegram_id: 1\n  name: a\n  model: >-\n    opus\n",
            "users:\n- telegram_id: 1\n  name: a\n  model: >-\n    opus\n- telegram_id: 3\n  name: carol\n",
        ),
        (
            "users:\n  - {telegram_id: 1, name: a}\n",
            "users:\n  - {telegram_id: 1, name: a}\n  - telegram_id: 3\n    name: carol\n",
        ),
        (
            "users:\r\n- telegram_id: 1\r\n  name: a\r\n",
            "users:\r\n- telegram_id: 1\r\n  name: a\r\n- telegram_id: 3\r\n  name: carol\r\n",
        ),
    ],
)
def test_an_entry_takes_the_files_own_shape(tmp_path: Path, before: str, after: str) -> None:
    path = tmp_path / "users.yaml"
    path.write_bytes(before.encode())
    add(path, {"telegram_id": 3, "name": "carol"})
    assert path.read_bytes().decode() == after


def test_the_first_entry_makes_the_file_unreadable_for_others(tmp_path: Path) -> None:
    path = tmp_path / "users.yaml"
    add(path, {"telegram_id": 3, "name": "carol"})
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert load(tmp_path).users == (User(telegram_id=3, name="carol"),)


def test_the_shipped_example_takes_its_first_entry(tmp_path: Path) -> None:
    example = (Path(__file__).parents[2] / "etc/users.yaml").read_text()
    path = file(tmp_path, example)
    add(path, {"telegram_id": 3, "name": "carol"})
    assert path.read_text() == example.replace("\nusers:\n", "\nusers:\n  - telegram_id: 3\n    name: carol\n")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (TEXT, TEXT.replace("  - name: bob\n    telegram_id: 2\n", "")),
        (
            "users:\n- telegram_id: 1\n  name: bob\n  github_repos: [a/b,\n    c/d]\n  # his\n  role: user\n# next\n"
            "- {telegram_id: 2, name: c}\n",
            "users:\n# next\n- {telegram_id: 2, name: c}\n",
        ),
        (
            "users:\n- # first\n  telegram_id: 1\n  name: bob\n-\n  telegram_id: 2\n  name: c\n",
            "users:\n-\n  telegram_id: 2\n  name: c\n",
        ),
        (
            "users:\n- telegram_id: 2\n  name: c\n- {telegram_id: 1, name: bob}  # bye\n",
            "users:\n- telegram_id: 2\n  name: c\n",
        ),
        (
            "users:\n- telegram_id: 1\n  name: bob\n  model: >-\n    opus\n# next\n- telegram_id: 2\n  name: c\n",
            "users:\n# next\n- telegram_id: 2\n  name: c\n",
        ),
        (
            "users:\r\n- telegram_id: 1\r\n  name: bob\r\n- telegram_id: 2\r\n  name: c\r\n",
            "users:\r\n- telegram_id: 2\r\n  name: c\r\n",
        ),
    ],
)
def test_removing_cuts_the_entrys_own_lines_and_no_others(tmp_path: Path, before: str, after: str) -> None:
    path = tmp_path / "users.yaml"
    path.write_bytes(before.encode())
    remove(path, "bob")
    assert path.read_bytes().decode() == after


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"telegram_id": 1, "name": "carol"}, "users[2].telegram_id: 1 is users[0]'s already"),
        ({"telegram_id": 3, "name": "alice"}, 'users[2].name: "alice" is users[0]\'s already'),
        ({"telegram_id": 3, "name": "Carol"}, "users[2].name: expected a name such as alice"),
        ({"telegram_id": 3}, "users[2].name: missing"),
        ({"telegram_id": 3, "name": "carol", "colour": "red"}, "users[2].colour: unknown key"),
        ({"telegram_id": 3, "name": 'x"\n- telegram_id: 9'}, "users[2].name: expected a name such as alice"),
        ({"telegram_id": 3, "name": "carol", "model": "a: &x"}, "users[2].model: expected a model's name"),
    ],
)
def test_an_entry_with_a_fault_leaves_the_file_alone(tmp_path: Path, entry: dict[str, object], message: str) -> None:
    path = file(tmp_path, TEXT)
    with pytest.raises(ConfigError) as caught:
        add(path, entry)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert path.read_text() == TEXT
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("users: [{telegram_id: 1, name: bob}, {telegram_id: 2, name: c}]\n", "by hand, then run kai check"),
        ("{users: [{telegram_id: 1, name: bob}, {telegram_id: 2, name: c}]}\n", "by hand, then run kai check"),
    ],
)
def test_a_file_in_another_shape_is_left_to_the_operators_hand(tmp_path: Path, text: str, message: str) -> None:
    path = file(tmp_path, text)
    for edit in (lambda: add(path, {"telegram_id": 3, "name": "x"}), lambda: remove(path, "bob")):
        with pytest.raises(ConfigError, match=message):
            edit()
        assert path.read_text() == text


@pytest.mark.parametrize("text", ["users: [", "user:\n- telegram_id: 1\n", "users:\n- telegram_id: 1\n", "users: {}\n"])
def test_a_file_with_a_fault_is_refused_and_left_alone(tmp_path: Path, text: str) -> None:
    path = file(tmp_path, text)
    for edit in (lambda: add(path, {"telegram_id": 3, "name": "x"}), lambda: remove(path, "bob")):
        with pytest.raises(ConfigError):
            edit()
        assert path.read_text() == text


def test_removing_who_isnt_there_names_those_who_are(tmp_path: Path) -> None:
    path = file(tmp_path, TEXT)
    with pytest.raises(ConfigError, match='nobody is called "eve", known: alice, bob'):
        remove(path, "eve")


def test_the_last_user_is_not_removed(tmp_path: Path) -> None:
    path = file(tmp_path, "users:\n- telegram_id: 1\n  name: bob\n")
    with pytest.raises(ConfigError, match='"bob" is the only user'):
        remove(path, "bob")


def test_mode_and_owner_of_the_file_stay(tmp_path: Path) -> None:
    path = file(tmp_path, TEXT)
    path.chmod(0o604)
    if os.geteuid() == 0:
        os.chown(path, 12345, 23456)
    before = path.stat()
    remove(path, "bob")
    after = path.stat()
    assert (after.st_uid, after.st_gid, after.st_mode) == (before.st_uid, before.st_gid, before.st_mode)
    assert after.st_ino != before.st_ino


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir()
    target = file(real, TEXT)
    link = tmp_path / "users.yaml"
    link.symlink_to(target)
    remove(link, "bob")
    assert link.is_symlink()
    assert "bob" not in target.read_text()


def test_a_write_that_fails_leaves_the_old_file_and_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = file(tmp_path, TEXT)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match="can't be written: No space left on device; it is unchanged"):
        remove(path, "bob")
    assert path.read_text() == TEXT
    assert list(tmp_path.iterdir()) == [path]
