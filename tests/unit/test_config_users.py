"""users.yaml: who is admitted and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from kai.config import ConfigError, Limits, User, check, load

FULL = """
users:
  - telegram_id: 111
    name: alice
    role: admin
    github: Alice-1
    os_user: alice
    home_workspace: ~/notes
    workspace_base: /srv//alice/
    backend: acp
    model: claude-opus-4-5[1m]
    timeout: 45
    max_turn: 3600
    max_budget: 20
    timezone: Europe/Berlin
    approvals: ask
    streaming: off
    github_repos: [acme/site.js, a/b]
    github_repos_allowed: [acme/*, '*/kai']
    notify_chats: [-1001234567890, 5]
    pr_review: yes
    issue_triage: false
    limits:
      memory: 4.5G
      tasks: 512
      cpu_weight: 10000
    totp: required
"""


def users(directory: Path, text: str) -> tuple[User, ...]:
    (directory / "users.yaml").write_text(text)
    return load(directory).users


def fault(directory: Path, text: str) -> str:
    (directory / "users.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(directory)
    assert check(directory)[0] == str(caught.value)
    return str(caught.value).removeprefix(f"{directory}/")


def entry(directory: Path, field: str) -> str:
    """The fault of an entry that is right but for one field."""
    return fault(directory, f"users:\n- telegram_id: 1\n  name: alice\n  {field}\n")


def test_all_fields_are_read(tmp_path: Path) -> None:
    assert users(tmp_path, FULL) == (
        User(
            telegram_id=111,
            name="alice",
            role="admin",
            github="Alice-1",
            os_user="alice",
            home_workspace="~/notes",
            workspace_base="/srv/alice",
            backend="acp",
            model="claude-opus-4-5[1m]",
            timeout=45,
            max_turn=3600,
            max_budget=20.0,
            timezone="Europe/Berlin",
            approvals="ask",
            streaming="off",
            github_repos=("acme/site.js", "a/b"),
            github_repos_allowed=("acme/*", "*/kai"),
            notify_chats=(-1001234567890, 5),
            pr_review=True,
            issue_triage=False,
            limits=Limits(memory="4.5G", tasks=512, cpu_weight=10000),
            totp="required",
        ),
    )


def test_id_and_name_are_enough(tmp_path: Path) -> None:
    (user,) = users(tmp_path, "users:\n- telegram_id: 1\n  name: a\n  model:\n")
    assert user == User(telegram_id=1, name="a")
    assert (user.admin, user.work_account, user.supervisor_account) == (False, "kai-w-a", "kai-u-a")


def test_the_work_account_is_the_os_user_where_there_is_one() -> None:
    user = User(telegram_id=1, name="bob", os_user="robert")
    assert (user.work_account, user.supervisor_account) == ("robert", "kai-u-bob")


def test_the_fault_names_file_path_what_was_found_and_what_was_expected(tmp_path: Path) -> None:
    assert fault(tmp_path, "users:\n- {telegram_id: 1, name: a}\n- {telegram_id: abc, name: b}\n").startswith(
        'users.yaml: users[1].telegram_id: expected a positive integer, got "abc"'
    )


@pytest.mark.parametrize("value", ["0", "-5", "1.0", "true", "'5'", "[1]", "{}", "4503599627370496", "9" * 29])
def test_a_telegram_id_is_a_positive_integer(tmp_path: Path, value: str) -> None:
    text = f"users:\n- name: alice\n  telegram_id: {value}\n"
    assert fault(tmp_path, text).startswith("users.yaml: users[0].telegram_id: expected a positive integer, got ")


@pytest.mark.parametrize(
    "name", ["Alice", "1a", "-a", "a_b", "a.b", "ä", "a" * 25, "''", "'a\\n'", "../x", "'a b'", "5", "a@b", '"a\\n"']
)
def test_a_name_that_cant_be_part_of_unit_account_and_path_is_refused(tmp_path: Path, name: str) -> None:
    text = f"users:\n- telegram_id: 1\n  name: {name}\n"
    assert fault(tmp_path, text).startswith("users.yaml: users[0].name: ")


def test_a_name_of_24_characters_with_hyphens_is_taken(tmp_path: Path) -> None:
    (user,) = users(tmp_path, f"users:\n- telegram_id: 1\n  name: a-{'b' * 22}\n")
    assert len(user.supervisor_account) <= 31


@pytest.mark.parametrize("field", ["telegram_id", "name"])
def test_a_missing_required_field_is_named(tmp_path: Path, field: str) -> None:
    other = {"telegram_id": "name: alice", "name": "telegram_id: 1"}[field]
    assert fault(tmp_path, f"users:\n- {other}\n").startswith(f"users.yaml: users[0].{field}: missing, expected a ")
    assert fault(tmp_path, f"users:\n- {other}\n  {field}:\n").startswith(
        f"users.yaml: users[0].{field}: missing, expected a "
    )


@pytest.mark.parametrize(("field", "value"), [("telegram_id", "1"), ("name", "alice"), ("os_user", "al")])
def test_two_users_never_share_id_name_or_account(tmp_path: Path, field: str, value: str) -> None:
    rows = {"telegram_id": ("1", "2"), "name": ("alice", "bob"), "os_user": ("al", "bo")}
    rows[field] = (value, value)
    first, second = ("\n  ".join(f"{key}: {pair[index]}" for key, pair in rows.items()) for index in (0, 1))
    shown = value if field == "telegram_id" else f'"{value}"'
    assert fault(tmp_path, f"users:\n- {first}\n- {second}\n") == (
        f"users.yaml: users[1].{field}: {shown} is users[0]'s already, expected another one"
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("nmae: x", 'users[0].nmae: unknown key, expected "name" perhaps'),
        ("time_zone: UTC", 'users[0].time_zone: unknown key, expected "timezone" perhaps'),
        ("agent_backend: goose", "users[0].agent_backend: unknown key (it is called backend here"),
        ("github_notify_chat_id: 5", "users[0].github_notify_chat_id: unknown key (it is called notify_chats"),
        ("zzz: 1", "users[0].zzz: unknown key, expected one of telegram_id, name, role"),
        ('"a\\nb": 1', 'users[0]."a\\nb": unknown key'),
        ("limits: {cpu: 5}", "users[0].limits.cpu: unknown key (it is called cpu_weight)"),
        ("limits: {memroy: 1G}", 'users[0].limits.memroy: unknown key, expected "memory" perhaps'),
    ],
)
def test_an_unknown_key_is_refused_with_the_one_that_was_meant(tmp_path: Path, row: str, message: str) -> None:
    assert entry(tmp_path, row).startswith(f"users.yaml: {message}")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("role: root", 'role: expected admin or user, got "root"'),
        ("github: a b", 'github: expected a GitHub login, got "a b"'),
        ("github: 5", "github: expected a GitHub login, got 5 (put text in quotes)"),
        ("os_user: root", 'os_user: expected the name of a Unix account, got "root" (neither root nor one of Kai'),
        ("os_user: kai-bot", 'os_user: expected the name of a Unix account, got "kai-bot"'),
        ("os_user: kai", 'os_user: expected the name of a Unix account, got "kai"'),
        ("os_user: '#0'", 'os_user: expected the name of a Unix account, got "#0"'),
        ("os_user: ALL", 'os_user: expected the name of a Unix account, got "ALL"'),
        ("os_user: 'a,b'", 'os_user: expected the name of a Unix account, got "a,b"'),
        ("os_user: -x", 'os_user: expected the name of a Unix account, got "-x"'),
        ("home_workspace: notes", "home_workspace: expected an absolute path, or one that begins with ~/"),
        ("home_workspace: /srv/../etc", "home_workspace: expected an absolute path"),
        ("home_workspace: ~bob/x", "home_workspace: expected an absolute path"),
        ("workspace_base: /", "workspace_base: expected an absolute path"),
        ("workspace_base: []", "workspace_base: expected an absolute path, or one that begins with ~/, got an empty"),
        ("backend: goose", 'backend: expected claude or acp, got "goose"'),
        ("model: --help", "model: expected a model's name as the agent knows it, such as opus"),
        ("model: a b", "model: expected a model's name"),
        ("model: 4.5", "model: expected a model's name as the agent knows it, such as opus, got 4.5 (put text in"),
        ("timeout: 44", "timeout: expected a whole number of seconds, 45 or more, got 44"),
        ("timeout: 60.5", "timeout: expected a whole number of seconds, 45 or more, got 60.5"),
        ("timeout: true", "timeout: expected a whole number of seconds, 45 or more, got true"),
        ("max_turn: -1", "max_turn: expected a whole number of seconds, or off, got -1"),
        ("max_budget: 0", "max_budget: expected an amount of US dollars above 0, got 0"),
        ("max_budget: .inf", 'max_budget: expected an amount of US dollars above 0, got ".inf"'),
        ("max_budget: -0.5", "max_budget: expected an amount of US dollars above 0, got -0.5"),
        ("timezone: Europe/Berln", 'timezone: expected an IANA time zone such as Europe/Berlin, got "Europe/Berln"'),
        ("timezone: ../../etc/passwd", "timezone: expected an IANA time zone"),
        ("timezone: Europe", "timezone: expected an IANA time zone"),
        ("timezone: ''", "timezone: expected an IANA time zone"),
        ("approvals: maybe", 'approvals: expected auto or ask, got "maybe"'),
        ("streaming: on", 'streaming: expected edit, draft or off, got "on"'),
        ("github_repos: a/b", "github_repos: expected a list of repositories, each as OWNER/REPO, got"),
        ("github_repos: [a/b, a]", 'github_repos[1]: expected a repository as OWNER/REPO, got "a"'),
        ("github_repos: [a/*]", 'github_repos[0]: expected a repository as OWNER/REPO, got "a/*"'),
        ("github_repos: [a/..]", "github_repos[0]: expected a repository as OWNER/REPO"),
        ("github_repos_allowed: [a/b/c]", "github_repos_allowed[0]: expected a pattern as OWNER/REPO"),
        ("notify_chats: [5, 0]", "notify_chats[1]: expected an integer other than 0, got 0"),
        ("notify_chats: [x]", 'notify_chats[0]: expected an integer other than 0, got "x"'),
        ("pr_review: maybe", 'pr_review: expected true or false, got "maybe"'),
        ("issue_triage: 1", "issue_triage: expected true or false, got 1"),
        ("limits: 5", "limits: expected a mapping with memory, tasks, cpu_weight, got 5"),
        ("limits: {memory: 2GB}", "limits.memory: expected an amount of memory as systemd takes it"),
        ("limits: {memory: 0}", "limits.memory: expected an amount of memory"),
        ("limits: {memory: '2G\\nx'}", "limits.memory: expected an amount of memory"),
        ("limits: {memory: 101%}", "limits.memory: expected an amount of memory"),
        ("limits: {tasks: 0}", "limits.tasks: expected a number of tasks from 1 to"),
        ("limits: {cpu_weight: 10001}", "limits.cpu_weight: expected a weight from 1 to 10000, got 10001"),
        ("totp: true", "totp: expected the word required, got true"),
    ],
)
def test_a_wrong_value_is_refused_at_its_path(tmp_path: Path, row: str, message: str) -> None:
    assert entry(tmp_path, row).startswith(f"users.yaml: users[0].{message}")


@pytest.mark.parametrize("memory", ["2147483648", "512M", "1.5G", "50%", "100%", "0.5%", "infinity"])
def test_memory_is_taken_as_systemd_writes_it(tmp_path: Path, memory: str) -> None:
    text = f"users:\n- telegram_id: 1\n  name: a\n  limits: {{memory: {memory}}}\n"
    if memory == "0.5%":
        assert "limits.memory" in fault(tmp_path, text)
    else:
        assert users(tmp_path, text)[0].limits.memory == memory


def test_a_single_chat_needs_no_list(tmp_path: Path) -> None:
    assert users(tmp_path, "users:\n- {telegram_id: 1, name: a, notify_chats: -5}\n")[0].notify_chats == (-5,)


@pytest.mark.parametrize("text", ["", "users:\n", "users: []\n", "# users:\n"])
def test_a_file_that_lists_nobody_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "kai.yaml").write_text("allowed_user_ids: [1]\n")
    assert fault(tmp_path, text).startswith("users.yaml: users: no user is listed, expected at least one")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- telegram_id: 1\n  name: a\n", 'users.yaml: expected a mapping with the key "users", got a list'),
        ("user:\n- telegram_id: 1\n", 'users.yaml: user: unknown key, expected "users" perhaps'),
        ("users: 5\n", "users.yaml: users: expected a list of users, got 5"),
        ("users:\n- 5\n", "users.yaml: users[0]: expected a mapping with telegram_id, name"),
        ("users:\n  alice: {telegram_id: 1}\n", "users.yaml: users: expected a list of users, got a mapping"),
    ],
)
def test_a_wrong_shape_is_refused(tmp_path: Path, text: str, message: str) -> None:
    assert fault(tmp_path, text).startswith(message)


def test_check_finds_every_fault_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "users.yaml").write_text(
        "users:\n- {telegram_id: x, name: alice, timeout: 5}\n- {telegram_id: 2, name: alice, foo: 1}\n"
    )
    paths = [line.removeprefix(f"{tmp_path}/").split(": ")[1] for line in check(tmp_path)]
    assert paths == ["users[0].telegram_id", "users[0].timeout", "users[1].foo", "users[1].name"]


def test_a_token_in_the_wrong_place_is_not_shown(tmp_path: Path) -> None:
    token = "123456789:AAEhBOweik6ad9r_QXMENQjcrGbqCr4K-bc"
    message = entry(tmp_path, f"github: '{token}'")
    assert token not in message
    assert message.endswith("github: expected a GitHub login, got what looks like a secret")
