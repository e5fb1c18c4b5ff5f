"""users.yaml: who is admitted, and what each of them may have."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from kai.config import rules
from kai.config.decode import Faults, decode, shown, unknown_key

NAME = "users.yaml"

_RENAMED = {
    "agent_backend": "it is called backend here; goose is backend acp",
    "default_backend": "it is called backend here; goose is backend acp",
    "github_notify_chat_id": "it is called notify_chats here and takes a list",
    "llm_provider": "the provider is the agent's own setting, see kai-users.yaml(5)",
    "context_window": "left out on purpose: the agent manages its own context",
    "budget": "a user has a ceiling, max_budget; the default is budget in kai.yaml",
    "id": "it is called telegram_id",
    "limits.cpu": "it is called cpu_weight",
}


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the user's agent unit may use, in systemd's terms: MemoryMax=, TasksMax=, CPUWeight=."""

    memory: rules.Memory | None = None
    tasks: Annotated[int, rules.count(1, 4194304, "a number of tasks")] | None = None
    cpu_weight: Annotated[int, rules.count(1, 10000, "a weight")] | None = None


class User(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One row of users.yaml. None is "not given"; times are seconds, money is US dollars, `max_turn` 0 is off.

    Paths may begin with `~`, the home of the work account: `kai.config.expand` puts it in.
    """

    telegram_id: rules.TelegramId
    name: rules.UserName
    role: rules.Role = "user"
    github: rules.Login | None = None
    os_user: rules.Account | None = None
    home_workspace: rules.Directory | None = None
    workspace_base: rules.Directory | None = None
    backend: rules.Backend | None = None
    model: rules.Model | None = None
    timeout: rules.Timeout | None = None
    max_turn: rules.OptionalSeconds = 0
    max_budget: rules.Dollars | None = None
    timezone: rules.Timezone | None = None
    approvals: rules.Approvals | None = None
    streaming: rules.Streaming | None = None
    github_repos: rules.Repositories = ()
    github_repos_allowed: rules.Patterns = ()
    notify_chats: rules.ChatIds = ()
    pr_review: rules.Switch | None = None
    issue_triage: rules.Switch | None = None
    limits: Limits = Limits()
    totp: rules.Totp | None = None

    @property
    def admin(self) -> bool:
        """Whether this user gets what no user owns."""
        return self.role == "admin"

    @property
    def work_account(self) -> str:
        """The Unix account that the user's inner agent runs as."""
        return self.os_user or f"kai-w-{self.name}"

    @property
    def supervisor_account(self) -> str:
        """The Unix account of kai-agent@NAME.service."""
        return f"kai-u-{self.name}"


def build(data: Any, faults: Faults) -> tuple[User, ...] | None:
    """The users from the file's plain data, or None with the reasons in `faults`."""
    if not isinstance(data, dict) and data is not None:
        faults.add("", f'expected a mapping with the key "users", got {shown(data)}')
        return None
    before = len(faults)
    content = data or {}
    for key in content:
        if key != "users":
            faults.add(key if key.isidentifier() else shown(key), unknown_key(key, ["users"], {}))
    entries = content.get("users")
    if entries is None or entries == []:
        faults.add("users", "no user is listed, expected at least one entry with telegram_id and name")
        return None
    if not isinstance(entries, list):
        faults.add("users", f"expected a list of users, got {shown(entries)}")
        return None
    users = [decode(User, entry, f"users[{index}]", faults, _RENAMED) for index, entry in enumerate(entries)]
    for field in ("telegram_id", "name", "os_user"):
        _check_unique(entries, field, faults)
    return tuple(user for user in users if user is not None) if len(faults) == before else None


def from_ids(ids: tuple[int, ...]) -> tuple[User, ...]:
    """The users that `allowed_user_ids` of kai.yaml stands for: `u<ID>` each, the first an admin."""
    return tuple(
        User(telegram_id=each, name=f"u{each}", role="user" if index else "admin") for index, each in enumerate(ids)
    )


def _check_unique(entries: list[Any], field: str, faults: Faults) -> None:
    first: dict[object, int] = {}
    for index, entry in enumerate(entries):
        value = entry.get(field) if isinstance(entry, dict) else None
        if not isinstance(value, int | str):
            continue
        if value in first:
            holder = f"users[{first[value]}]"
            faults.add(f"users[{index}].{field}", f"{shown(value)} is {holder}'s already, expected another one")
        else:
            first[value] = index
