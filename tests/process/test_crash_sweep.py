"""The delivery contract, proved by killing: nothing lost, nothing run twice, nothing answered twice (kai-queue(5)).

Each sweep is a set of its own, with a stand-in for Telegram that has bad days, and daemons that are killed at instants
that its seed chooses. `tests/bench/bench_crash.py` does the same for as long as one likes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from .crash.broken import RULES
from .crash.points import Kind, Moment, Point
from .crash.sweep import Report, Sweep
from .crash.units import BOT, Plan, Zygote

SEEDS = range(1, 17)
BY_WEBHOOK = range(17, 21)
KILLS = 65
"""Of each seed: with sixteen of them, more than a thousand."""
OF_BOT = [(kind, moment) for kind in ("commit", "request", "call") for moment in ("before", "after")]
OF_AGENT = [(kind, moment) for kind in ("commit", "answer", "prompt", "said") for moment in ("before", "after")]
INSTANTS: dict[str, list[tuple[Kind, Moment]]] = {
    "kai-bot": [*OF_BOT, ("reply", "after"), ("asked", "after"), ("answer", "before")],  # type: ignore[list-item]
    "kai-agent": [*OF_AGENT, ("asked", "after")],  # type: ignore[list-item]
}


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    made = Zygote()
    yield made
    made.close()


def each_in_its_turn(unit: str, life: int) -> list[Point]:
    """The instants one after another; the third occurrence of each, so that something happens in between."""
    instants = INSTANTS[unit.partition("@")[0]]
    return [Point(*instants[(life - 1) % len(instants)], number=3)]


async def test_daemons_end_before_and_after_each_commit_request_and_message(zygote: Zygote) -> None:
    """Where a wrapper no longer wraps anything, nobody is killed."""
    kinds = {f"{unit} {kind} {moment}" for unit, instants in INSTANTS.items() for kind, moment in instants}
    report = await Sweep(zygote, 0, wanted=70, plan=each_in_its_turn, within=60).run()
    assert not report.wrong, str(report)
    assert not kinds - report.points.keys()


@pytest.mark.parametrize("seed", SEEDS)
async def test_whatever_is_killed_nothing_is_lost_and_nothing_happens_twice(zygote: Zygote, seed: int) -> None:
    report = await Sweep(zygote, seed, wanted=KILLS, within=80).run()
    assert not report.wrong, str(report)
    assert report.killed >= KILLS, f"only {report.killed} kills in {report.seconds:.0f} s"
    assert report.verdict.answered > len(report.said.prompts) / 8, "most prompts were only cut off: it tells too little"


@pytest.mark.parametrize("seed", BY_WEBHOOK)
async def test_that_holds_where_telegram_posts_the_updates_too(zygote: Zygote, seed: int) -> None:
    report = await Sweep(zygote, seed, wanted=KILLS, within=80, webhook=True).run()
    assert not report.wrong, str(report)
    assert report.killed >= KILLS, f"only {report.killed} kills in {report.seconds:.0f} s"
    assert any(point.startswith("kai-webhook") for point in report.points), "the door was killed too"
    assert report.verdict.answered > len(report.said.prompts) / 8, "most prompts were only cut off: it tells too little"


def ends_at(unit: str, kind: Kind, moment: Moment, name: str) -> Plan:
    """Each life of one daemon ends at the first or second such instant."""

    def plan(of: str, life: int) -> list[Point]:
        return [Point(kind, moment, 1 + life % 2, name)] if of.startswith(unit) else []

    return plan


@pytest.mark.parametrize(
    ("rule", "plan", "found"),
    [
        ("acknowledge_first", ends_at(BOT, "commit", "before", "Inbox.receive"), "lost"),
        ("forget_running_turns", ends_at("kai-agent", "said", "after", "assistant"), "run_twice"),
        ("send_again", ends_at(BOT, "request", "after", "sendMessage"), "answered_twice"),
        ("forget_answers", ends_at(BOT, "request", "before", "editMessageText"), "lost"),
    ],
)
async def test_a_broken_rule_is_found(zygote: Zygote, rule: str, plan: Plan, found: str) -> None:
    """A sweep that could not fail would prove nothing. With the rule in force, the same kills do no harm."""
    assert rule in RULES
    sound = await Sweep(zygote, 0, wanted=12, plan=plan, within=15).run()
    assert not sound.wrong, str(sound)
    reports: list[Report] = []
    for seed in range(5):
        reports.append(await Sweep(zygote, seed, wanted=12, plan=plan, broken=rule, within=15).run())
        if getattr(reports[-1].verdict, found):
            return
    kills = sum((report.points for report in reports), Counter())
    pytest.fail(f"{rule}: nothing {found} in {sum(r.killed for r in reports)} kills: {dict(kills)}")
