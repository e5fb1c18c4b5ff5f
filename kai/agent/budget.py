"""What the user is told of his budget, which counts since /new, or for one run of a job. Money is US dollars."""

from __future__ import annotations

WARNED_AT = 0.8
OF_WORKSPACE = ("your choice for this workspace", "workspaces.yaml")
"""Sources of a budget that a choice for all workspaces doesn't overrule."""


def spent(cost: float, budget: float, ceiling: float, *, source: str) -> str:
    """The refusal of a turn, or the note under the answer that reached the cap, with what can be done."""
    return f"This session has used its budget: ${cost:.2f} of ${budget:.2f}. {_way_on(budget, ceiling, source)}"


def spent_by_run(cost: float, budget: float, ceiling: float) -> str:
    """Why the run of a job was ended, with what can be done."""
    told = f"This run has used the budget of one run: ${cost:.2f} of ${budget:.2f}."
    if budget >= ceiling:
        return f"{told} More than ${ceiling:.2f} is the operator's to give (max_budget in users.yaml)."
    return f"{told} The job can be given more (up to ${ceiling:.2f})."


def nearly(cost: float, budget: float) -> str:
    return f"This session has used {cost / budget:.0%} of its budget: ${cost:.2f} of ${budget:.2f}."


def _way_on(budget: float, ceiling: float, source: str) -> str:
    fresh = "/new starts a fresh session with a full one."
    if budget >= ceiling:
        return f"{fresh} More than ${ceiling:.2f} is the operator's to give (max_budget in users.yaml)."
    command = "/workspace set" if source in OF_WORKSPACE else "/settings"
    return f"{command} budget {min(2 * budget, ceiling):g} goes on in this one (up to ${ceiling:.2f}); {fresh}"
