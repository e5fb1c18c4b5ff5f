"""The fields of a job besides its schedule. Every fault is an InvalidParameter that begins with the field."""

from __future__ import annotations

import math
from typing import NoReturn

from kai.config.decode import looks_secret, shown
from kai.config.rules import MODEL_NAME
from kai.lib.log import printable
from kai.lib.varlink import InvalidParameter
from kai.scheduler.jobs import JobType

LONGEST_PROMPT = 16 * 1024
"""Bytes in UTF-8."""
LONGEST_NAME = 100
"""Characters."""
LONGEST_WORKSPACE = 200
_DEFAULT_NAME = 60
_KINDS: dict[str, JobType] = {"reminder": "reminder", "agent": "agent", "claude": "agent"}
AGENTS_ONLY = ("auto_remove", "notify_on_check", "workspace", "model", "budget_usd")
"""Fields that a reminder can't have."""


def job_type(value: str) -> JobType:
    """`claude` is what the original Kai calls an agent job."""
    if value not in _KINDS:
        _refuse("job_type", "reminder or agent", value)
    return _KINDS[value]


def prompt(value: str) -> str:
    if not value.strip():
        raise InvalidParameter("prompt: empty, expected what is to be said or done")
    size = len(value.encode("utf-8", "replace"))
    if size > LONGEST_PROMPT:
        raise InvalidParameter(f"prompt: {size} bytes, expected at most {LONGEST_PROMPT} (16 KiB)")
    if "\0" in value:
        raise InvalidParameter("prompt: has a NUL character, expected text")
    return value


def name(value: str, the_prompt: str) -> str:
    """The name, or where none was given the first line of the prompt."""
    if not value:
        line = printable(the_prompt.strip().splitlines()[0], LONGEST_PROMPT).strip()
        return (line if len(line) <= _DEFAULT_NAME else f"{line[: _DEFAULT_NAME - 1].rstrip()}…") or "job"
    value = value.strip()
    if not 0 < len(value) <= LONGEST_NAME:
        raise InvalidParameter(f"name: {len(value)} characters, expected 1 to {LONGEST_NAME}")
    if not value.isprintable():
        raise InvalidParameter("name: has a control character or a line break, expected one line of text")
    return value


def workspace(value: str) -> str:
    """Whether there is one of this name is seen when the job runs: only the agent's account can look."""
    value = value.strip()
    odd = value.startswith(("/", "~", "-")) or any(part in ("", ".", "..") for part in value.split("/"))
    if value and (odd or not value.isprintable() or len(value) > LONGEST_WORKSPACE):
        _refuse("workspace", "home, or a workspace's path below the base", value)
    return value


def model(value: str) -> str:
    value = value.strip()
    if value and (not MODEL_NAME.fullmatch(value) or looks_secret(value)):
        _refuse("model", "a model's name as the agent knows it, such as opus", value)
    return value


def budget_usd(value: float, ceiling: float) -> float:
    """US dollars; 0 is what is in force for the user."""
    if not math.isfinite(value) or value < 0:
        raise InvalidParameter("budget_usd: expected an amount of US dollars above 0, or 0 for the user's own")
    if value > ceiling:
        raise InvalidParameter(f"budget_usd: expected at most ${ceiling:g}, the user's ceiling, got ${value:g}")
    return value


def together(kind: JobType, **values: object) -> None:
    """Raise InvalidParameter for what only an agent job can have."""
    for field in AGENTS_ONLY:
        if kind == "reminder" and values[field]:
            raise InvalidParameter(f"{field}: only a job of job_type agent can have it, and this is a reminder")


def _refuse(field: str, expected: str, value: object) -> NoReturn:
    raise InvalidParameter(f"{field}: expected {expected}, got {shown(value)}")
