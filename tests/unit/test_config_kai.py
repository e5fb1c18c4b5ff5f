"""kai.yaml, and what the files say of each other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kai.config import Config, ConfigError, Kai, User, check, host_timezone, load

ALICE = "users:\n- {telegram_id: 1, name: alice, role: admin}\n"
TWO = "users:\n- {telegram_id: 1, name: alice}\n- {telegram_id: 2, name: bob}\n"


def config(directory: Path, kai: str | None = None, users: str | None = ALICE) -> Config:
    for name, text in (("kai.yaml", kai), ("users.yaml", users)):
        if text is not None:
            (directory / name).write_text(text)
    return load(directory)


def fault(directory: Path, kai: str | None = None, users: str | None = ALICE) -> str:
    with pytest.raises(ConfigError) as caught:
        config(directory, kai, users)
    return str(caught.value).removeprefix(f"{directory}/")


def test_without_kai_yaml_everything_is_default(tmp_path: Path) -> None:
    found = config(tmp_path)
    assert found.kai == Kai()
    assert found.given == frozenset()
    kai = found.kai
    assert kai.telegram.api_base == "https://api.telegram.org"
    assert (kai.agent.timeout, kai.agent.idle_timeout, kai.agent.jobs_parallel) == (120, 1800, 2)
    assert (kai.budget, kai.drain, kai.agent.tool_timeout) == (10.0, 120, 0)
    assert kai.proxy.model.url == "https://api.anthropic.com"
    assert (kai.totp.idle, kai.totp.challenge, kai.totp.attempts, kai.totp.lockout) == (1800, 120, 3, 900)


def test_values_are_read_and_what_is_given_is_known(tmp_path: Path) -> None:
    found = config(
        tmp_path,
        "telegram: {api_base: 'http://127.0.0.1:8081/', mode: polling}\n"
        "agent: {command: claude --verbose, tool_timeout: off, model_door: off, model: }\n"
        "workspace_base: ~/projects/\nbudget: 3\ntimezone: UTC\nfile_retention_days: 30\npr_review: on\n",
    )
    assert found.kai.telegram.api_base == "http://127.0.0.1:8081"
    assert found.kai.agent.command == ("claude", "--verbose")
    assert (found.kai.agent.tool_timeout, found.kai.agent.model_door) == (0, "off")
    assert (found.kai.workspace_base, found.kai.budget, found.kai.pr_review) == ("~/projects", 3.0, True)
    assert "agent.command" in found.given
    assert "agent.model" not in found.given


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("budgte: 1", 'budgte: unknown key, expected "budget" perhaps'),
        ("agent: {timout: 100}", 'agent.timout: unknown key, expected "timeout" perhaps'),
        ("model: opus", "model: unknown key (it is agent.model)"),
        ("telegram: {token: x}", "telegram.token: unknown key (secrets don't stand here: put it into /etc/credstore"),
        ("proxy: {model: {key: x}}", "proxy.model.key: unknown key (secrets don't stand here"),
        ("agent: claude", "agent: expected a mapping with backend, command, model"),
        ("agent: {timeout: 44}", "agent.timeout: expected a whole number of seconds, 45 or more, got 44"),
        ("agent: {idle_timeout: 0}", "agent.idle_timeout: expected a whole number of seconds, 1 or more, got 0"),
        ("agent: {jobs_parallel: 0}", "agent.jobs_parallel: expected a number of jobs from 1 to 64, got 0"),
        ("agent: {tool_timeout: never}", 'agent.tool_timeout: expected a whole number of seconds, or off, got "never"'),
        ("agent: {model_door: yes}", 'agent.model_door: expected auto or off, got "yes"'),
        ("agent: {command: []}", "agent.command: expected a list of words, the first a program's name or absolute"),
        ("agent: {command: bin/claude}", "agent.command: expected a list of words"),
        ("agent: {command: [-x]}", "agent.command: expected a list of words"),
        ("agent: {command: 'sh -c \"x\"'}", "agent.command: expected a list of words"),
        (
            "agent: {command: [claude, 5]}",
            "agent.command[1]: expected a word of the command, got 5 (put text in quotes)",
        ),
        ("agent: {os_user: root}", "agent.os_user: expected the name of a Unix account"),
        ("telegram: {api_base: 'http://example.org'}", "telegram.api_base: expected an https:// address"),
        ("telegram: {api_base: 'https://u:p@example.org'}", "telegram.api_base: expected an https:// address"),
        ("telegram: {api_base: 'https://example.org:x'}", "telegram.api_base: expected an https:// address"),
        ("telegram: {api_base: 'https://'}", "telegram.api_base: expected an https:// address"),
        ("telegram: {api_base: 'ftp://example.org'}", "telegram.api_base: expected an https:// address"),
        ("telegram: {api_base: 'http://127.0.0.1.example.org'}", "telegram.api_base: expected an https:// address"),
        ("telegram: {mode: push}", 'telegram.mode: expected polling or webhook, got "push"'),
        ("telegram: {mode: webhook}", "telegram.webhook_url: missing, expected the public https:// address"),
        ("budget: 0", "budget: expected an amount of US dollars above 0, got 0"),
        ("drain: 3601", "drain: expected a whole number of seconds from 0 to 3600, got 3601"),
        ("totp: {attempts: 11}", "totp.attempts: expected a number of attempts from 1 to 10, got 11"),
        ("totp: {challenge: 5}", "totp.challenge: expected a whole number of seconds from 10 to 3600, got 5"),
        ("file_retention_days: -1", "file_retention_days: expected a number of days from 0 to 36500, got -1"),
        ("spec_dir: ../x", 'spec_dir: expected a path inside the repository, got "../x" (without ..)'),
        ("spec_dir: /x", "spec_dir: expected a path inside the repository"),
        ("timezone: Mars", 'timezone: expected an IANA time zone such as Europe/Berlin, got "Mars"'),
        ("allowed_user_ids: [1, x]", 'allowed_user_ids[1]: expected a positive integer, got "x"'),
        (
            "allowed_user_ids: [1, 1]",
            "allowed_user_ids: expected a list of Telegram ids, such as [111, 222], got a list",
        ),
        ("allowed_user_ids: []", "allowed_user_ids: expected a list of Telegram ids"),
        ("allowed_user_ids: a", "allowed_user_ids: expected a list of Telegram ids"),
        ("- budget", "expected a mapping with telegram, allowed_user_ids"),
    ],
)
def test_a_fault_in_kai_yaml_is_named_with_its_path(tmp_path: Path, text: str, message: str) -> None:
    assert fault(tmp_path, text).startswith(f"kai.yaml: {message}")


def test_a_refused_address_is_not_repeated_because_it_may_hold_a_password(tmp_path: Path) -> None:
    assert "hunter2" not in fault(tmp_path, "telegram: {api_base: 'https://u:hunter2@example.org'}")


def test_allowed_user_ids_stand_for_users_of_whom_the_first_is_an_admin(tmp_path: Path) -> None:
    found = config(tmp_path, "allowed_user_ids: [55, 7]\n", None)
    assert found.users == (
        User(telegram_id=55, name="u55", role="admin"),
        User(telegram_id=7, name="u7", role="user"),
    )
    assert config(tmp_path, "allowed_user_ids: 9\n", None).admins == (User(telegram_id=9, name="u9", role="admin"),)


def test_allowed_user_ids_are_not_used_beside_users_yaml(tmp_path: Path) -> None:
    found = config(tmp_path, "allowed_user_ids: [55]\n", ALICE)
    assert [user.name for user in found.users] == ["alice"]
    assert found.by_telegram_id(55) is None


def test_broken_users_yaml_never_falls_back_to_allowed_user_ids(tmp_path: Path) -> None:
    assert fault(tmp_path, "allowed_user_ids: [55]\n", "users: [").startswith("users.yaml:2:1: not valid YAML")


def test_a_users_yaml_that_cant_be_opened_never_falls_back_either(tmp_path: Path) -> None:
    (tmp_path / "users.yaml").mkdir()
    assert fault(tmp_path, "allowed_user_ids: [55]\n", None).startswith("users.yaml: is not a regular file")


@pytest.mark.parametrize("kai", [None, "budget: 5\n"])
def test_without_any_user_kai_refuses_to_start(tmp_path: Path, kai: str | None) -> None:
    assert fault(tmp_path, kai, None).startswith(
        "users.yaml: doesn't exist and kai.yaml has no allowed_user_ids, expected one of them"
    )


def test_check_collects_the_faults_of_all_files_and_only_real_ones(tmp_path: Path) -> None:
    (tmp_path / "kai.yaml").write_text("drain: x\nbudget: y\n")
    (tmp_path / "workspaces.yaml").write_text("workspaces: {/srv/x: {modle: a}}\n")
    assert [line.removeprefix(f"{tmp_path}/").split(": ")[:2] for line in check(tmp_path)] == [
        ["kai.yaml", "drain"],
        ["kai.yaml", "budget"],
        ["workspaces.yaml", "workspaces[/srv/x].modle"],
    ]
    (tmp_path / "kai.yaml").unlink()
    (tmp_path / "workspaces.yaml").unlink()
    (tmp_path / "users.yaml").write_text(ALICE)
    assert check(tmp_path) == []


def test_agent_os_user_serves_the_one_user_without_an_account(tmp_path: Path) -> None:
    found = config(tmp_path, "agent: {os_user: al}\n", TWO.replace("name: bob", "name: bob, os_user: bob"))
    assert [user.work_account for user in found.users] == ["al", "bob"]


@pytest.mark.parametrize("users", [TWO, TWO.replace("name: bob", "name: bob, os_user: al")])
def test_agent_os_user_is_refused_where_it_would_serve_two_users(tmp_path: Path, users: str) -> None:
    assert fault(tmp_path, "agent: {os_user: al}\n", users).startswith(
        'kai.yaml: agent.os_user: "al" would serve 2 users (alice, bob), expected one'
    )


def test_agent_os_user_that_nobody_needs_is_no_fault(tmp_path: Path) -> None:
    users = ALICE.replace("role: admin", "os_user: al")
    assert config(tmp_path, "agent: {os_user: bo}\n", users).users[0].work_account == "al"


def test_agent_os_user_serves_the_short_form_too_but_only_one(tmp_path: Path) -> None:
    found = config(tmp_path, "allowed_user_ids: [5]\nagent: {os_user: al}\n", None)
    assert found.users[0].work_account == "al"
    assert "would serve 2 users" in fault(tmp_path, "allowed_user_ids: [5, 6]\nagent: {os_user: al}\n", None)


def test_users_are_found_by_name_and_by_id(tmp_path: Path) -> None:
    found = config(tmp_path, None, TWO)
    assert found.user("bob") is found.by_telegram_id(2)
    assert found.user("eve") is None
    assert found.by_telegram_id(3) is None


@pytest.mark.parametrize(
    ("key", "kai", "in_kai", "in_users", "built_in"),
    [
        ("model", "agent: {model: opus}", "opus", "haiku", None),
        ("timeout", "agent: {timeout: 200}", 200, 300, 120),
        ("backend", "agent: {backend: claude}", "claude", "acp", "claude"),
        ("streaming", "streaming: draft", "draft", "off", "edit"),
        ("approvals", "approvals: ask", "ask", "auto", "auto"),
        ("timezone", "timezone: Europe/Paris", "Europe/Paris", "Asia/Tokyo", None),
        ("workspace_base", "workspace_base: /srv", "/srv", "/home", None),
        ("pr_review", "pr_review: true", True, False, False),
        ("issue_triage", "issue_triage: true", True, False, False),
    ],
)
def test_users_yaml_comes_before_kai_yaml_and_that_before_the_built_in(
    tmp_path: Path, key: str, kai: str, in_kai: object, in_users: object, built_in: object
) -> None:
    plain = config(tmp_path, "", ALICE)
    expected = (host_timezone(), "host") if key == "timezone" else (built_in, "built-in")
    assert plain.effective(plain.users[0], key) == expected
    middle = config(tmp_path, kai, ALICE)
    assert middle.effective(middle.users[0], key) == (in_kai, "kai.yaml")
    value = str(in_users).lower() if isinstance(in_users, bool) else in_users
    top = config(tmp_path, kai, ALICE.replace("role: admin", f"{key}: {value}"))
    assert top.effective(top.users[0], key) == (in_users, "users.yaml")


def test_the_budget_is_cut_to_the_users_ceiling_and_no_further(tmp_path: Path) -> None:
    def budget(kai: str, ceiling: str) -> tuple[object, ...]:
        users = ALICE if not ceiling else ALICE.replace("role: admin", f"max_budget: {ceiling}")
        found = config(tmp_path, kai, users)
        return *found.effective(found.users[0], "budget"), found.ceiling(found.users[0])

    assert budget("", "") == (10.0, "built-in", 10.0)
    assert budget("budget: 4", "") == (4.0, "kai.yaml", 4.0)
    assert budget("budget: 4", "20") == (4.0, "kai.yaml", 20.0)
    assert budget("budget: 4", "3") == (3.0, "users.yaml", 3.0)


def test_an_unknown_setting_has_no_effective_value(tmp_path: Path) -> None:
    found = config(tmp_path)
    with pytest.raises(KeyError):
        found.effective(found.users[0], "colour")


def test_the_command_belongs_to_its_backend(tmp_path: Path) -> None:
    users = TWO.replace("name: bob", "name: bob, backend: acp")
    found = config(tmp_path, "agent: {command: [/opt/claude, -x]}\n", users)
    assert [found.command(user) for user in found.users] == [("/opt/claude", "-x"), ("goose", "acp")]
    assert [config(tmp_path, "", users).command(user) for user in found.users] == [("claude",), ("goose", "acp")]


def test_the_host_has_a_time_zone() -> None:
    from zoneinfo import ZoneInfo

    assert ZoneInfo(host_timezone())


def test_importing_the_configuration_brings_no_daemon_with_it() -> None:
    code = "import sys, kai.config; print([m for m in ('telegram', 'tornado', 'httpx', 'asyncio') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
