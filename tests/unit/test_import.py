"""`kai import`: the original's environment file becomes a kai.yaml."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from kai.cli import imports
from kai.cli.fail import Failure
from kai.cli.imports import KEYS, SECRETS, WITHOUT, convert
from kai.config import Kai, kaiyaml
from kai.config.decode import Faults
from kai.config.source import parse

TOKEN = "123456789:AAEhBOweik6ad9r_QXMENQjcrGbqCr4K-bc"


def kai(text: str) -> Kai:
    faults = Faults("kai.yaml")
    found = kaiyaml.build(parse(convert(text)[0], "kai.yaml"), faults)
    assert found is not None, faults.found
    return found


def warnings(text: str) -> list[str]:
    return convert(text)[1]


def test_an_installation_is_carried_over() -> None:
    text, said = convert(
        "# Kai\n"
        f"TELEGRAM_BOT_TOKEN={TOKEN}\n"
        "ALLOWED_USER_IDS=111\n"
        "CLAUDE_MODEL=opus\n"
        "CLAUDE_TIMEOUT_SECONDS=200\n"
        "CLAUDE_MAX_BUDGET_USD=7.5\n"
        "CLAUDE_IDLE_TIMEOUT=600\n"
        "CLAUDE_USER=daniel\n"
        "WORKSPACE_BASE=/srv/work\n"
        "PR_REVIEW_ENABLED=true\n"
        "ISSUE_TRIAGE_ENABLED=0\n"
        "SPEC_DIR=docs/specs\n"
        "FILE_RETENTION_DAYS=30\n"
        "TOTP_SESSION_MINUTES=10\nTOTP_CHALLENGE_SECONDS=60\nTOTP_LOCKOUT_ATTEMPTS=5\nTOTP_LOCKOUT_MINUTES=20\n"
    )
    assert text.partition("\n\n")[2] == (
        "allowed_user_ids: [111]  # ALLOWED_USER_IDS\n"
        "workspace_base: /srv/work  # WORKSPACE_BASE\n"
        "agent:\n"
        "  model: opus  # CLAUDE_MODEL\n"
        "  timeout: 200  # CLAUDE_TIMEOUT_SECONDS\n"
        "  idle_timeout: 600  # CLAUDE_IDLE_TIMEOUT\n"
        "  os_user: daniel  # CLAUDE_USER\n"
        "budget: 7.5  # CLAUDE_MAX_BUDGET_USD\n"
        "totp:\n"
        "  idle: 600  # TOTP_SESSION_MINUTES\n"
        "  challenge: 60  # TOTP_CHALLENGE_SECONDS\n"
        "  attempts: 5  # TOTP_LOCKOUT_ATTEMPTS\n"
        "  lockout: 1200  # TOTP_LOCKOUT_MINUTES\n"
        "file_retention_days: 30  # FILE_RETENTION_DAYS\n"
        "pr_review: true  # PR_REVIEW_ENABLED\n"
        "issue_triage: false  # ISSUE_TRIAGE_ENABLED\n"
        "spec_dir: docs/specs  # SPEC_DIR\n"
    )
    assert [line.split(": ")[1] for line in said] == ["TELEGRAM_BOT_TOKEN", "ALLOWED_USER_IDS"]


@pytest.mark.parametrize("variable", SECRETS)
def test_a_secret_is_never_copied_and_its_credential_is_named(variable: str) -> None:
    text, (said,) = convert(f"\n{variable}='{TOKEN}'\n")
    assert TOKEN not in text + said
    assert said.startswith(f"line 2: {variable}: a secret, not written here: put it into {SECRETS[variable]} ")


@pytest.mark.parametrize(
    "text",
    [
        f"DEFAULT_MODEL={TOKEN}",
        f"UNHEARD_OF={TOKEN}",
        f"PERPLEXITY_API_KEY={TOKEN}",
        f"CLAUDE_MAX_BUDGET_USD={TOKEN}",
        f"ALLOWED_USER_IDS={TOKEN}",
        f"AGENT_BACKEND={TOKEN}",
        f'WEBHOOK_SECRET="{TOKEN}',
        f"{TOKEN}",
    ],
)
def test_a_secret_in_the_wrong_place_is_not_copied_either(text: str) -> None:
    kai_yaml, (said,) = convert(text)
    assert TOKEN not in kai_yaml + said
    assert said.startswith("line 1: ")


@pytest.mark.parametrize("variable", WITHOUT)
def test_what_has_no_counterpart_is_said_with_its_line(variable: str) -> None:
    (said,) = warnings(f"# x\n\n{variable}=1\n")
    assert said == f"line 3: {variable}: not carried over: {WITHOUT[variable]}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("FOO=bar", "line 1: FOO: unknown to Kai, not carried over"),
        ("MEMORY_SEARCH_LIMIT=10", "line 1: MEMORY_SEARCH_LIMIT: not carried over: the agent keeps its memory"),
        ("PERPLEXITY_API_KEY=x", "line 1: PERPLEXITY_API_KEY: a secret, not carried over"),
        ("what is this", "line 1: not NAME=VALUE, not carried over"),
        ("A='open", "line 1: A: the quote isn't closed in this line, not carried over"),
        ("CLAUDE_TIMEOUT_SECONDS=soon", 'line 1: CLAUDE_TIMEOUT_SECONDS: expected a whole number, got "soon"'),
        ("BUDGET_CEILING=-1", "line 1: BUDGET_CEILING: expected an amount of US dollars above 0, got -1"),
        ("PR_REVIEW_ENABLED=perhaps", 'line 1: PR_REVIEW_ENABLED: expected true or false, got "perhaps"'),
        ("ALLOWED_USER_IDS=your-telegram-user-id", "line 1: ALLOWED_USER_IDS: expected numeric Telegram ids"),
        ("DEFAULT_MODEL=so nice", "line 1: DEFAULT_MODEL: expected a model's name"),
        ("CLAUDE_USER=root", "line 1: CLAUDE_USER: expected the name of a Unix account"),
        ("AGENT_BACKEND=codex", 'line 1: AGENT_BACKEND: Kai has no backend "codex"'),
        ("TELEGRAM_WEBHOOK_URL=http://x.org/hook", "line 1: TELEGRAM_WEBHOOK_URL: mode webhook needs"),
    ],
)
def test_what_is_not_carried_over_is_said_and_the_file_stays_valid(text: str, said: str) -> None:
    assert warnings(text)[0].startswith(said)
    assert kai(text) == Kai()


def test_empty_variables_count_as_unset() -> None:
    assert kai("WORKSPACE_BASE=\nCLAUDE_USER=''\nTELEGRAM_BOT_TOKEN=\n") == Kai()
    assert warnings("WORKSPACE_BASE=\nCLAUDE_USER=''\nTELEGRAM_BOT_TOKEN=\n") == []


def test_quotes_exports_comments_and_windows_lines_are_read_as_the_original_did() -> None:
    text = "\ufeffexport DEFAULT_MODEL=\"opus\"  # large\r\nWORKSPACE_BASE='/srv/a # b'\r\n  SPEC_DIR = docs # here\r\n"
    found = kai(text)
    assert (found.agent.model, found.workspace_base, found.spec_dir) == ("opus", "/srv/a # b", "docs")
    assert warnings(text) == []


def test_the_newer_name_wins_and_the_older_is_said() -> None:
    text = "CLAUDE_MODEL=haiku\nDEFAULT_MODEL=opus\n"
    assert kai(text).agent.model == "opus"
    assert warnings(text) == ["line 1: CLAUDE_MODEL: DEFAULT_MODEL is the newer name and counts, not carried over"]


def test_of_a_variable_that_stands_twice_the_last_counts_and_that_is_said() -> None:
    text = "DEFAULT_MODEL=haiku\nDEFAULT_MODEL=opus\n"
    assert kai(text).agent.model == "opus"
    assert warnings(text) == ["line 2: DEFAULT_MODEL: stands in line 1 too, this one counts"]


def test_a_timeout_below_kais_least_is_raised_and_said() -> None:
    assert kai("AGENT_TIMEOUT_SECONDS=30").agent.timeout == 45
    assert "30 is too short for Kai, 45 written instead" in warnings("AGENT_TIMEOUT_SECONDS=30")[0]


def test_no_eviction_becomes_a_day_and_is_said() -> None:
    assert kai("AGENT_IDLE_TIMEOUT=0").agent.idle_timeout == 86400
    assert "86400 written instead" in warnings("AGENT_IDLE_TIMEOUT=0")[0]


def test_one_account_for_several_users_is_not_carried_over() -> None:
    text = "ALLOWED_USER_IDS=1,2\nCLAUDE_USER=daniel\n"
    assert kai(text).agent.os_user is None
    assert warnings(text)[1].startswith("line 2: CLAUDE_USER: one account for several users is refused here")


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("AGENT_BACKEND=goose", ("goose", "acp")),
        ("DEFAULT_BACKEND=Goose\nGOOSE_BIN=/opt/bin/goose", ("/opt/bin/goose", "acp")),
        ("AGENT_BACKEND=opencode", ("opencode", "acp")),
    ],
)
def test_agents_that_speak_acp_become_the_acp_backend(text: str, command: tuple[str, ...]) -> None:
    found = kai(text)
    assert (found.agent.backend, found.agent.command) == ("acp", command)
    assert warnings(text) == []


def test_a_webhook_address_chooses_the_mode_and_names_what_it_needs() -> None:
    text = "TELEGRAM_WEBHOOK_URL=https://kai.example.org/webhook/telegram\n"
    assert kai(text).telegram == kaiyaml.Telegram(
        mode="webhook", webhook_url="https://kai.example.org/webhook/telegram"
    )
    assert "kai-webhook(8)" in warnings(text)[0]


def command(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    imports.register(parser.add_subparsers())
    return parser.parse_args(["import", *arguments])


def test_the_command_writes_the_file_to_its_output_and_the_rest_beside_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "old.env"
    file.write_text(f"TELEGRAM_BOT_TOKEN={TOKEN}\nDEFAULT_MODEL=opus\n")
    arguments = command(str(file))
    assert arguments.run(arguments) == 0
    out, err = capsys.readouterr()
    assert out == convert(file.read_text())[0]
    assert err.startswith(f"{file}: line 1: TELEGRAM_BOT_TOKEN: a secret")
    assert TOKEN not in out + err


def test_the_command_fails_with_the_reason_when_the_file_is_missing_or_no_text(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\xff")
    for name, reason in (("y", "there is no such file"), ("x", "is not UTF-8 text")):
        arguments = command(str(tmp_path / name))
        with pytest.raises(Failure, match=reason):
            arguments.run(arguments)


def test_every_variable_has_one_fate() -> None:
    assert len(KEYS.keys() | SECRETS.keys() | WITHOUT.keys()) == len(KEYS) + len(SECRETS) + len(WITHOUT)
    example = (Path(__file__).parents[2] / "etc/kai.yaml").read_text()
    known = kaiyaml.given(parse(re.sub(r"^#(?! ?$| \S)", "", example, flags=re.MULTILINE), "x"))
    assert set(KEYS.values()) <= known
