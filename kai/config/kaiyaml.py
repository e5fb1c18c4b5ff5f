"""kai.yaml: what concerns the whole installation. Every key has a default; kai.yaml(5) describes them."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from kai.config import rules
from kai.config.decode import Faults, decode, join

NAME = "kai.yaml"

_ELSEWHERE = "secrets don't stand here: put it into {}, root-owned with mode 0600"

_RENAMED = {
    "telegram.token": _ELSEWHERE.format("/etc/credstore/kai-telegram-token"),
    "telegram.bot_token": _ELSEWHERE.format("/etc/credstore/kai-telegram-token"),
    "telegram.webhook_secret": "kai-bot makes it itself, and tells Telegram",
    "webhook.secret": _ELSEWHERE.format("/etc/credstore/kai-webhook/github"),
    "webhook.port": "it stands in the socket unit: systemctl edit kai-webhook-http.socket",
    "github.token": _ELSEWHERE.format("/etc/credstore/kai-github/token"),
    "proxy.model.key": _ELSEWHERE.format("/etc/credstore/kai-model-key"),
    "proxy.model.api_key": _ELSEWHERE.format("/etc/credstore/kai-model-key"),
    "agent.api_key": _ELSEWHERE.format("/etc/credstore/kai-model-key"),
    "model": "it is agent.model",
    "timeout": "it is agent.timeout",
    "backend": "it is agent.backend",
    "command": "it is agent.command",
    "os_user": "it is agent.os_user",
    "idle_timeout": "it is agent.idle_timeout",
    "tool_timeout": "it is agent.tool_timeout",
    "agent.budget": "it is budget, at the top level",
    "agent.drain": "it is drain, at the top level",
    "users": "users have a file of their own, users.yaml",
    "workspaces": "workspaces have a file of their own, workspaces.yaml",
}

_COMMANDS = {"claude": ("claude",), "acp": ("goose", "acp")}


class Telegram(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the bot reaches Telegram, and how updates reach the bot."""

    api_base: rules.Url = "https://api.telegram.org"
    mode: rules.Mode = "polling"
    webhook_url: rules.Url | None = None


class Agent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The agent program and its limits. Times are seconds; `tool_timeout` 0 is off."""

    backend: rules.Backend = "claude"
    command: rules.Command | None = None
    model: rules.Model | None = None
    timeout: rules.Timeout = 120
    idle_timeout: rules.Seconds = 1800
    tool_timeout: rules.OptionalSeconds = 0
    os_user: rules.Account | None = None
    jobs_parallel: Annotated[int, rules.count(1, 64, "a number of jobs")] = 2
    model_door: rules.Door = "auto"

    def argv(self, backend: str) -> tuple[str, ...]:
        """The command of a backend: `command` belongs to `backend`, another one has its usual command."""
        return self.command if self.command and backend == self.backend else _COMMANDS[backend]


class Model(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the model door leads to."""

    url: rules.Url = "https://api.anthropic.com"


class Proxy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What kai-proxy does."""

    model: Model = Model()


class Api(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an agent may ask of Kai in a minute: requests of all kinds, and messages and files to its user's chat."""

    requests: Annotated[int, rules.count(1, 100000, "a number of requests a minute")] = 300
    messages: Annotated[int, rules.count(1, 100000, "a number of messages a minute")] = 30


class Webhook(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The public https:// address of the reverse proxy before kai-webhook; below it are its paths, /webhook/github."""

    url: rules.Url | None = None


class Github(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where GitHub's API is, and the number of the GitHub App whose key kai-github holds, if there is one."""

    api_base: rules.Url = "https://api.github.com"
    app_id: Annotated[int, rules.count(1, 2**53, "the number of a GitHub App")] | None = None


class Jobs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is scheduled. `limit` is how many active jobs a user may have."""

    limit: Annotated[int, rules.count(1, 10000, "a number of jobs")] = 100


class Totp(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The gate's times (seconds) and how many failures lock it."""

    idle: rules.Seconds = 1800
    challenge: Annotated[int, rules.seconds(10, 3600)] = 120
    attempts: Annotated[int, rules.count(1, 10, "a number of attempts")] = 3
    lockout: Annotated[int, rules.seconds(1, 86400)] = 900


class Kai(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of kai.yaml. `budget` is US dollars, `drain` seconds; `timezone` None is the host's."""

    telegram: Telegram = Telegram()
    allowed_user_ids: rules.TelegramIds | None = None
    workspace_base: rules.Directory | None = None
    agent: Agent = Agent()
    proxy: Proxy = Proxy()
    budget: rules.Dollars = 10.0
    approvals: rules.Approvals = "auto"
    streaming: rules.Streaming = "edit"
    timezone: rules.Timezone | None = None
    api: Api = Api()
    jobs: Jobs = Jobs()
    webhook: Webhook = Webhook()
    github: Github = Github()
    totp: Totp = Totp()
    file_retention_days: Annotated[int, rules.count(0, 36500, "a number of days")] = 0
    pr_review: rules.Switch = False
    issue_triage: rules.Switch = False
    spec_dir: rules.RelativePath = "specs"
    drain: Annotated[int, rules.seconds(0, 3600)] = 120


def build(data: Any, faults: Faults) -> Kai | None:
    """The struct from the file's plain data, or None with the reasons in `faults`. An empty file is all defaults."""
    kai = decode(Kai, {} if data is None else data, "", faults, _RENAMED)
    if kai is not None and kai.telegram.mode == "webhook" and kai.telegram.webhook_url is None:
        faults.add("telegram.webhook_url", "missing, expected the public https:// address for mode webhook")
        return None
    return kai


def given(data: Any, path: str = "") -> frozenset[str]:
    """The dotted keys that the file sets: what comes from it and not from the built-in defaults."""
    if not isinstance(data, dict):
        return frozenset({path}) if data is not None and path else frozenset()
    return frozenset(key for name, value in data.items() for key in given(value, join(path, name)))
