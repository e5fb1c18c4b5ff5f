"""`kai import FILE.env`: the environment file of the original Kai (dcellison/kai) as a kai.yaml.

Secrets are never copied: for each one the operator is told which credential it is. Nothing is dropped silently:
what has no counterpart is named, with its line.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from kai.cli.fail import Failure
from kai.cli.yamltext import render
from kai.config import ConfigError, kaiyaml
from kai.config.decode import Faults, shown
from kai.config.source import parse, read

# The original's variables in Kai's keys. Where two lead to one key, the first is the newer name and wins.
KEYS: Mapping[str, str] = {
    "TELEGRAM_WEBHOOK_URL": "telegram.webhook_url",
    "ALLOWED_USER_IDS": "allowed_user_ids",
    "WORKSPACE_BASE": "workspace_base",
    "DEFAULT_BACKEND": "agent.backend",
    "AGENT_BACKEND": "agent.backend",
    "DEFAULT_MODEL": "agent.model",
    "CLAUDE_MODEL": "agent.model",
    "AGENT_TIMEOUT_SECONDS": "agent.timeout",
    "CLAUDE_TIMEOUT_SECONDS": "agent.timeout",
    "AGENT_IDLE_TIMEOUT": "agent.idle_timeout",
    "CLAUDE_IDLE_TIMEOUT": "agent.idle_timeout",
    "CLAUDE_USER": "agent.os_user",
    "BUDGET_CEILING": "budget",
    "CLAUDE_MAX_BUDGET_USD": "budget",
    "TOTP_SESSION_MINUTES": "totp.idle",
    "TOTP_CHALLENGE_SECONDS": "totp.challenge",
    "TOTP_LOCKOUT_ATTEMPTS": "totp.attempts",
    "TOTP_LOCKOUT_MINUTES": "totp.lockout",
    "FILE_RETENTION_DAYS": "file_retention_days",
    "PR_REVIEW_ENABLED": "pr_review",
    "ISSUE_TRIAGE_ENABLED": "issue_triage",
    "SPEC_DIR": "spec_dir",
}

SECRETS: Mapping[str, str] = {
    "TELEGRAM_BOT_TOKEN": "/etc/credstore/kai-telegram-token",
    "WEBHOOK_SECRET": "/etc/credstore/kai-webhook/github",
    "ANTHROPIC_API_KEY": "/etc/credstore/kai-model-key",
    "GITHUB_TOKEN": "/etc/credstore/kai-github/token",
    "GH_TOKEN": "/etc/credstore/kai-github/token",
}

_PER_USER = "set it for each user in users.yaml: {}"
_ON_PURPOSE = "Kai leaves this out on purpose, kai(7) says why"
_PATHS = "Kai's places are fixed: /etc/kai, /opt/kai, /var/lib/kai"

WITHOUT: Mapping[str, str] = {
    "ALLOWED_WORKSPACES": "every workspace lies beneath a workspace_base; home_workspace of a user may lie elsewhere",
    "CLAUDE_MAX_SESSION_HOURS": _ON_PURPOSE,
    "AGENT_MAX_SESSION_HOURS": _ON_PURPOSE,
    "CLAUDE_MAX_CONTEXT_WINDOW": _ON_PURPOSE,
    "CLAUDE_AUTOCOMPACT_PCT": _ON_PURPOSE,
    "CLAUDE_EFFORT_LEVEL": "it can be a part of the command: agent.command: [claude, --effort, high]",
    "LLM_PROVIDER": "the provider is a setting of the agent itself, in its account's home",
    "CODEX_BIN": "kai.yaml names the agent's program in agent.command",
    "OPENCODE_BIN": "kai.yaml names the agent's program in agent.command",
    "GOOSE_BIN": "kai.yaml names the agent's program in agent.command",
    "GITHUB_NOTIFY_CHAT_ID": _PER_USER.format("notify_chats"),
    "GITHUB_REPO": "the original ignored it too",
    "PR_REVIEW_COOLDOWN": "Kai has no cooldown: a newer push supersedes a running review",
    "PR_REVIEW_TIMEOUT_S": "kai.yaml has no such key",
    "PR_REVIEW_BUDGET_USD": "kai.yaml has no such key",
    "WEBHOOK_PORT": "the port stands in the socket unit: systemctl edit kai-webhook-http.socket",
    "TELEGRAM_WEBHOOK_SECRET": "kai-bot makes a secret of its own and tells Telegram",
    "VOICE_ENABLED": "kai.yaml has no key for voice",
    "TTS_ENABLED": "kai.yaml has no key for voice",
    "KAI_DATA_DIR": _PATHS,
    "KAI_INSTALL_DIR": _PATHS,
    "KAI_USERS_YAML": _PATHS,
}

_LINE = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*)")
_QUOTED = re.compile(r"""'([^']*)'|"((?:[^"\\]|\\.)*)\"""")
_ESCAPES = {"n": "\n", "t": "\t"}
_YES = frozenset({"1", "true", "yes", "on"})
_NO = frozenset({"0", "false", "no", "off"})
_AGENTS = {"goose": ("GOOSE_BIN", "goose"), "opencode": ("OPENCODE_BIN", "opencode")}
_LEAST_TIMEOUT = 45
_DAY = 86400


class _Variable(msgspec.Struct, frozen=True):
    name: str
    value: str
    line: int


class _Setting(msgspec.Struct, frozen=True):
    """A value for kai.yaml and the variable that it comes from."""

    value: Any
    origin: _Variable


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("import", help="convert the environment file of the original Kai to a kai.yaml")
    parser.add_argument("file", type=Path, metavar="FILE.env", help="the original's .env or /etc/kai/env")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """The kai.yaml goes to standard output, what the operator should know to standard error."""
    try:
        text = read(arguments.file)
    except ConfigError as error:
        raise Failure(str(error)) from None
    if text is None:
        raise Failure(f"{arguments.file}: there is no such file, expected the original's environment file")
    converted, warnings = convert(text)
    sys.stdout.write(converted)
    for warning in warnings:
        print(f"{arguments.file}: {warning}", file=sys.stderr)
    return 0


def convert(text: str) -> tuple[str, list[str]]:
    """The text of a kai.yaml, valid as it stands, and one line for everything that wasn't carried over as it was.

    The lines begin with `line N: VARIABLE:` and hold no secret; neither does the text.
    """
    warnings: list[str] = []
    variables = _variables(text, warnings)
    settings: dict[str, _Setting] = {}
    for name, key in KEYS.items():
        if name in variables and variables[name].value:
            _carry(key, variables[name], variables, settings, warnings)
    used = _programs(variables, settings)
    for variable in variables.values():
        if variable.name not in KEYS and variable.name not in used:
            _explain(variable, warnings)
    _check(settings, warnings)
    warnings.sort(key=_line_number)
    return _text(settings), warnings


def _line_number(warning: str) -> int:
    return int(warning.removeprefix("line ").partition(":")[0])


def _warn(warnings: list[str], variable: _Variable, message: str) -> None:
    warnings.append(f"line {variable.line}: {variable.name}: {message}")


def _variables(text: str, warnings: list[str]) -> dict[str, _Variable]:
    """The file's variables, read as python-dotenv and the original's own reader read them: the last one wins."""
    found: dict[str, _Variable] = {}
    for number, raw in enumerate(text.removeprefix("\ufeff").split("\n"), start=1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            warnings.append(f"line {number}: not NAME=VALUE, not carried over")
            continue
        name, rest = match.groups()
        variable = _Variable(name, "", number)
        if rest.startswith(("'", '"')):
            quoted = _QUOTED.match(rest)
            if quoted is None:
                _warn(warnings, variable, "the quote isn't closed in this line, not carried over")
                continue
            value = quoted[1] if quoted[1] is not None else _unescape(quoted[2])
        else:
            value = re.split(r"(?:^|\s)#", rest, maxsplit=1)[0].strip()
        if name in found:
            _warn(warnings, variable, f"stands in line {found[name].line} too, this one counts")
        found[name] = _Variable(name, value, number)
    return found


def _unescape(text: str) -> str:
    return re.sub(r"\\(.)", lambda match: _ESCAPES.get(match[1], match[1]), text)


def _carry(
    key: str,
    variable: _Variable,
    variables: Mapping[str, _Variable],
    settings: dict[str, _Setting],
    warnings: list[str],
) -> None:
    if key in settings:
        _warn(warnings, variable, f"{settings[key].origin.name} is the newer name and counts, not carried over")
        return
    try:
        value = _CONVERTERS.get(key, str)(variable.value)
    except ValueError as error:
        _warn(warnings, variable, f"expected {error}, got {shown(variable.value)}, not carried over")
        return
    if key == "agent.backend":
        _carry_backend(value, variable, variables, settings, warnings)
        return
    if key == "agent.timeout" and 0 < value < _LEAST_TIMEOUT:
        _warn(warnings, variable, f"{value} is too short for Kai, {_LEAST_TIMEOUT} written instead")
        value = _LEAST_TIMEOUT
    if key == "agent.idle_timeout" and value == 0:
        _warn(warnings, variable, f"Kai always ends an idle agent (its session goes on), {_DAY} written instead")
        value = _DAY
    if key == "workspace_base" and value.startswith("~"):
        _warn(warnings, variable, "~ is the home of each user's own work account here")
    if key == "allowed_user_ids":
        _warn(
            warnings,
            variable,
            f"{value[0]} becomes the admin; with a users.yaml, which can do more, this key is not used",
        )
    if key == "telegram.webhook_url":
        settings["telegram.mode"] = _Setting("webhook", variable)
        _warn(
            warnings,
            variable,
            "mode webhook needs the reverse proxy to lead this address to kai-webhook: kai-webhook(8)",
        )
    if key == "agent.os_user" and _ids_count(variables) > 1:
        _warn(
            warnings,
            variable,
            "one account for several users is refused here, not carried over: each user gets a work account of his "
            "own, or the os_user that users.yaml gives him",
        )
        return
    settings[key] = _Setting(value, variable)


def _carry_backend(
    name: str,
    variable: _Variable,
    variables: Mapping[str, _Variable],
    settings: dict[str, _Setting],
    warnings: list[str],
) -> None:
    if name == "claude":
        settings["agent.backend"] = _Setting("claude", variable)
    elif name in _AGENTS:
        path_variable, program = _AGENTS[name]
        if path_variable in variables and variables[path_variable].value:
            program = variables[path_variable].value
        settings["agent.backend"] = _Setting("acp", variable)
        settings["agent.command"] = _Setting([program, "acp"], variable)
    else:
        _warn(
            warnings,
            variable,
            f"Kai has no backend {shown(name)}: claude is used until agent.backend is acp and agent.command starts "
            "an agent that speaks the Agent Client Protocol",
        )


def _programs(variables: Mapping[str, _Variable], settings: Mapping[str, _Setting]) -> set[str]:
    """The variables whose value has gone into the agent's command."""
    words = settings["agent.command"].value if "agent.command" in settings else []
    return {name for name, _ in _AGENTS.values() if name in variables and variables[name].value in words}


def _explain(variable: _Variable, warnings: list[str]) -> None:
    name = variable.name
    if name in SECRETS:
        if variable.value:
            _warn(
                warnings,
                variable,
                f"a secret, not written here: put it into {SECRETS[name]} (owner root, mode 0600)",
            )
    elif name in WITHOUT:
        _warn(warnings, variable, f"not carried over: {WITHOUT[name]}")
    elif name.startswith(("MEMORY_", "EPISODE_")):
        _warn(warnings, variable, "not carried over: the agent keeps its memory itself, in memory/MEMORY.md")
    elif name.endswith(("_API_KEY", "_TOKEN", "_SECRET", "_PASSWORD")):
        _warn(
            warnings,
            variable,
            "a secret, not carried over: a key of the agent's own goes in by kai login USER, a service's key into "
            "a file of its own in /etc/credstore (owner root, mode 0600)",
        )
    else:
        _warn(warnings, variable, "unknown to Kai, not carried over")


def _check(settings: dict[str, _Setting], warnings: list[str]) -> None:
    """Take out every setting that kai.yaml would be refused for."""
    while True:
        faults = Faults("kai.yaml")
        kaiyaml.build(_nested(settings), faults)
        if not faults.found:
            return
        fault = faults.found[0]
        key = re.sub(r"\[.*", "", fault.path)
        origin = settings[key].origin
        _warn(warnings, origin, f"{fault.message}, not carried over")
        for other in [name for name, setting in settings.items() if setting.origin is origin]:
            del settings[other]


def _nested(settings: Mapping[str, _Setting]) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for key, setting in settings.items():
        *parents, last = key.split(".")
        place = data
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = setting.value
    return data


def _text(settings: Mapping[str, _Setting]) -> str:
    lines = [
        "# kai.yaml, converted from the environment file of the original Kai.",
        "# kai.yaml(5) describes every key; secrets stand in /etc/credstore.",
        "",
    ]
    for field in msgspec.structs.fields(kaiyaml.Kai):
        if field.name in settings:
            lines.append(_row(field.name, settings[field.name], ""))
        inner = {key: setting for key, setting in settings.items() if key.startswith(f"{field.name}.")}
        if inner:
            lines.append(f"{field.name}:")
            lines += [_row(key.partition(".")[2], setting, "  ") for key, setting in inner.items()]
    text = "\n".join(lines) + "\n"
    faults = Faults("kai.yaml")
    if kaiyaml.build(parse(text, "kai.yaml"), faults) is None:
        raise faults.found[0]
    return text


def _row(name: str, setting: _Setting, indent: str) -> str:
    return f"{indent}{name}: {render(setting.value)}  # {setting.origin.name}"


def _ids_count(variables: Mapping[str, _Variable]) -> int:
    ids = variables.get("ALLOWED_USER_IDS")
    return len(set(filter(None, re.split(r"[,\s]+", ids.value)))) if ids else 0


def _whole(value: str) -> int:
    if not re.fullmatch(r"-?[0-9]{1,18}", value):
        raise ValueError("a whole number")
    return int(value)


def _number(value: str) -> float:
    if not re.fullmatch(r"-?[0-9]{1,18}(\.[0-9]{0,18})?", value):
        raise ValueError("a number")
    return float(value)


def _bool(value: str) -> bool:
    if value.lower() not in _YES | _NO:
        raise ValueError("true or false")
    return value.lower() in _YES


def _ids(value: str) -> list[int]:
    parts = [part.strip() for part in value.split(",") if part.strip()]
    if not parts or not all(re.fullmatch(r"[0-9]{1,18}", part) for part in parts):
        raise ValueError("numeric Telegram ids with commas between")
    return list(dict.fromkeys(int(part) for part in parts))


_CONVERTERS: Mapping[str, Callable[[str], Any]] = {
    "allowed_user_ids": _ids,
    "agent.backend": lambda value: value.strip().lower(),
    "agent.timeout": _whole,
    "agent.idle_timeout": _whole,
    "budget": _number,
    "totp.idle": lambda value: 60 * _whole(value),
    "totp.challenge": _whole,
    "totp.attempts": _whole,
    "totp.lockout": lambda value: 60 * _whole(value),
    "file_retention_days": _whole,
    "pr_review": _bool,
    "issue_triage": _bool,
}
