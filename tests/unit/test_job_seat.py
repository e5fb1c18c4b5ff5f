"""Who may start a turn of a job, and whose turn is whose."""

from __future__ import annotations

import pytest

from kai.agent import budget
from kai.agent.jobs import check
from kai.interfaces import JobSeat, Start
from kai.lib.peers import BOT, OPERATOR, SCHEDULER, SUPERVISOR, Peer
from kai.lib.varlink import Fault, InvalidParameter, PermissionDenied

EVERY = frozenset({BOT, SCHEDULER, OPERATOR, SUPERVISOR})


def peer(*roles: str) -> Peer:
    return Peer(1000, 1, frozenset(roles))


@pytest.mark.parametrize(
    ("roles", "turn", "job", "fault"),
    [
        ({BOT}, "9.1", None, None),
        ({SCHEDULER}, "job:7:1", 7, None),
        (EVERY, "9.1", None, None),
        (EVERY, "job:7:1", 7, None),
        ({BOT}, "job:7:1", 7, PermissionDenied),
        ({BOT}, "9.1", 7, PermissionDenied),
        ({BOT}, "job:7:1", None, InvalidParameter),
        ({SCHEDULER}, "9.1", None, InvalidParameter),
        ({SCHEDULER}, "job:7:1", None, InvalidParameter),
        ({SCHEDULER}, "9.1", 7, InvalidParameter),
        ({SCHEDULER}, "job:70:1", 7, InvalidParameter),
        ({SCHEDULER}, "job:0:1", 0, InvalidParameter),
        ({SCHEDULER}, "job:-1:1", -1, InvalidParameter),
        (EVERY, "job:7:1", None, InvalidParameter),
    ],
)
def test_jobs_are_the_schedulers_and_the_chat_is_the_bots(
    roles: frozenset[str], turn: str, job: int | None, fault: type[Fault] | None
) -> None:
    call = Start(turn, [], JobSeat(job, "x") if job is not None else None)
    if fault is None:
        check(peer(*roles), call)
    else:
        with pytest.raises(fault, match=r"^(job|turn): "):
            check(peer(*roles), call)


def test_a_run_that_spent_its_budget_is_told_what_can_be_done() -> None:
    assert budget.spent_by_run(0.52, 0.5, 10) == (
        "This run has used the budget of one run: $0.52 of $0.50. The job can be given more (up to $10.00)."
    )
    assert "the operator's to give" in budget.spent_by_run(10.2, 10, 10)
