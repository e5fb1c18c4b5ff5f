"""What kai-inner is asked to run: the CLI's arguments."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from kai.agent.backend import Context
from kai.agent.claude import request

CONTEXT = Context(user="alice", door=("door",), command=("claude",), workspace=Path("/srv/demo"))


def command(**fields: object) -> list[str]:
    found = request(msgspec.structs.replace(CONTEXT, **fields))["command"]
    assert isinstance(found, list)
    return found


def after(words: list[str], flag: str) -> list[str]:
    """The arguments of a flag, up to the next one."""
    found = words[words.index(flag) + 1 :]
    end = next((number for number, word in enumerate(found) if word.startswith("--")), len(found))
    return found[:end]


@pytest.mark.parametrize(
    ("budget", "given"),
    [(0.5, "0.500000"), (1.0 - 10 * 0.0999999999, "0.000001"), (1.1e-16, "0.000001"), (12, "12.000000")],
)
def test_a_budget_is_never_so_small_that_the_cli_refuses_to_start(budget: float, given: str) -> None:
    assert budget > 0
    assert after(command(budget_usd=budget), "--max-budget-usd") == [given]


def test_no_budget_is_no_limit() -> None:
    assert "--max-budget-usd" not in command()


def test_rules_stored_by_an_older_kai_are_left_out_where_they_allow_more_than_they_show() -> None:
    stored = ("Bash(git commit *)", "Bash: ls", "Read(//etc/**)", "Bash(sh)", "Bash(x) Bash(*)", "Bash(*)", "--evil")
    assert after(command(ask=True, allowed=stored), "--allowedTools") == ["Bash(git commit *)", "Read(//etc/**)"]
