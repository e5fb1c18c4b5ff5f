"""What a user may choose for himself, and which value is in force of all that could be.

Pure: it sees the configuration and the stored choices, and neither reads nor writes anything. A choice is stored as
text. `approvals` is stored as `ask` or `auto`; an operator's `auto`, which alone may loosen what the configuration
asks for, is stored as `auto!`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from kai.config import Config, User, Workspace, rules
from kai.config.decode import Faults, decode, shown
from kai.interfaces import Setting

FIELDS = ("model", "budget", "timeout", "approvals", "streaming", "timezone")
WORKSPACE_FIELDS = ("model", "budget", "timeout")
"""What can be chosen for one workspace alone."""
VALUES = {"approvals": ["auto", "ask"], "streaming": ["edit", "draft", "off"]}
LOOSENED = "auto!"

Chosen = Mapping[tuple[str, str], str]
"""(path of the workspace or "" for all, field) → the stored text."""

_AMOUNT = re.compile(r"\$?\s*([0-9]{1,9}(?:\.[0-9]{1,6})?|\.[0-9]{1,6})\s*(?:\$|usd)?", re.IGNORECASE)
_SPAN = re.compile(r"([0-9]{1,9})\s*(s|sec|m|min|h)?", re.IGNORECASE)
_SECONDS = {"s": 1, "m": 60, "h": 3600}


class ChoiceError(Exception):
    """The choice can't be made; the message tells the user the field, the value and what was expected."""


class _Fields(msgspec.Struct, frozen=True):
    """The rules of the configuration files are those of a choice."""

    model: rules.Model | None = None
    budget: rules.Dollars | None = None
    timeout: rules.Timeout | None = None
    approvals: rules.Approvals | None = None
    streaming: rules.Streaming | None = None
    timezone: rules.Timezone | None = None


def checked(
    field: str, text: str, *, workspace: bool, config: Config, user: User, operator: bool, in_force: str
) -> str:
    """What is to be stored for a choice as it was typed; "" takes it back, and field "" stands for all fields.

    `in_force` is what `approvals` is now: only an operator may loosen it. Raises ChoiceError.
    """
    text = text.strip()
    known = WORKSPACE_FIELDS if workspace else FIELDS
    if field not in known and (field or text):
        if workspace and field in FIELDS:
            raise ChoiceError(
                f"{field}: is the same in all workspaces (/settings {field} …); "
                f"one of them alone can have its own {', '.join(known)}"
            )
        raise ChoiceError(f"{shown(field)} is no setting, expected one of {', '.join(known)}")
    if not workspace and field in ("", "approvals"):
        _check_approvals(field, text.lower(), config, user, operator=operator, in_force=in_force)
    if not text:
        return ""
    value = typed(field, text)
    if field == "budget":
        ceiling = config.ceiling(user)
        if value > ceiling:
            raise ChoiceError(
                f"budget: expected at most your ceiling of ${money(ceiling)}, got ${money(value)} "
                f"(the operator can raise it: max_budget of {user.name} in users.yaml)"
            )
    if field == "approvals" and value == "auto" and operator:
        return LOOSENED
    return str(value)


def effective(
    config: Config, user: User, chosen: Chosen, workspace_path: str, place: Workspace | None, field: str
) -> tuple[Any, str]:
    """A setting's value in a workspace and its source, in the words of `kai.interfaces.Setting`.

    `place` is what workspaces.yaml says of the workspace. The units are those of `Config.effective`; model None is the
    agent's own choice. The budget is cut to the user's ceiling, whoever set it. A choice that is no longer valid, such
    as a time zone that the host forgot, is passed over. A field that isn't in FIELDS raises KeyError.
    """
    if field not in FIELDS:
        raise KeyError(field)
    value, source = _first(config, user, chosen, workspace_path, place, field)
    return (min(value, config.ceiling(user)) if field == "budget" else value), source


def settings(config: Config, user: User, chosen: Chosen, workspace_path: str, place: Workspace | None) -> list[Setting]:
    """All settings as they are shown: the budget as "10.00", the timeout as "120 s", "" for the agent's own model."""
    found = []
    for field in FIELDS:
        value, source = effective(config, user, chosen, workspace_path, place, field)
        choices = ["ask"] if (field, value) == ("approvals", "ask") else VALUES.get(field, [])
        found.append(Setting(field, _shown(field, value), source, list(choices)))
    return found


def money(amount: float) -> str:
    """US dollars with cents, and what is less than a cent with as many digits as it takes."""
    return f"{amount:.2f}" if amount >= 0.01 else f"{amount:g}"


def _first(
    config: Config, user: User, chosen: Chosen, workspace_path: str, place: Workspace | None, field: str
) -> tuple[Any, str]:
    if field in WORKSPACE_FIELDS:
        own = _stored(field, chosen.get((workspace_path, field), "")) if workspace_path else None
        if own is not None:
            return own, "your choice for this workspace"
        given = getattr(place, field) if place else None
        if given is not None:
            return given, "workspaces.yaml"
    value, source = config.effective(user, field)
    text = chosen.get(("", field), "")
    if field == "approvals" and text == LOOSENED:
        return "auto", "your choice"
    own = _stored(field, text)
    if own is None or (field == "approvals" and own == "auto" and value == "ask"):
        return value, source
    return own, "your choice"


def _stored(field: str, text: str) -> Any:
    """The value of a stored choice, None when there is none or it isn't valid any more."""
    if not text:
        return None
    try:
        return typed(field, text)
    except ChoiceError:
        return None


def typed(field: str, text: str) -> Any:
    """What was typed, as a value that the field's rule takes. Raises ChoiceError with the rule's own words."""
    value: Any = text
    if field == "budget" and (amount := _AMOUNT.fullmatch(text)):
        value = float(amount[1])
    elif field == "timeout" and (span := _SPAN.fullmatch(text)):
        value = int(span[1]) * _SECONDS[(span[2] or "s")[0].lower()]
    elif field in VALUES:
        value = text.lower()
    elif field == "timezone" and not rules.is_timezone(text):
        value = _zone(text)
    faults = Faults("")
    found = decode(_Fields, {field: value}, "", faults)
    if found is None:
        raise ChoiceError(f"{field}: {faults.found[0].message}")
    return getattr(found, field)


def _zone(text: str) -> str:
    """The zone of that name in other case, else the text as it is."""
    from zoneinfo import available_timezones

    return next((name for name in available_timezones() if name.lower() == text.lower()), text)


def _check_approvals(field: str, text: str, config: Config, user: User, *, operator: bool, in_force: str) -> None:
    """Refuse what would loosen approvals from the chat: `auto`, or taking an own `ask` back."""
    if operator or in_force != "ask":
        return
    loosens = text == "auto" if text else config.effective(user, "approvals")[0] == "auto"
    if not loosens:
        return
    how = f"sudo kai settings {user.name} " + ("approvals auto" if text else "reset approvals")
    others = "" if field else "; the other settings can be taken back one by one: /settings reset FIELD"
    raise ChoiceError(f"approvals: it is ask now, and only the operator can make it auto again ({how}){others}")


def _shown(field: str, value: Any) -> str:
    if field == "budget":
        return money(value)
    if field == "timeout":
        return f"{value} s"
    return "" if value is None else str(value)
