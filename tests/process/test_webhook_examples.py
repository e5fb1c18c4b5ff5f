"""What GitHub really sends: each of its example payloads gives a notice or is ignored on purpose, and none is lost."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from kai.webhook.notices import TABLE, Ignored, Notice, notice
from tests.github_examples import examples

from .conftest import ALICE, Stages
from .hooks import HookSet

NOTICES = {
    "issue_comment": 5, "issues": 8, "ping": 4, "pull_request": 17, "pull_request_review": 4, "push": 7, "release": 3,
}  # fmt: skip
"""How many of each event's examples tell somebody something. No workflow among them has failed."""


def test_every_example_is_a_notice_or_ignored_on_purpose() -> None:
    told: Counter[str] = Counter()
    given = examples()
    for event, payload in given:
        made = notice(event, json.dumps(payload).encode())
        if isinstance(made, Ignored):
            assert made.reason
            assert event not in TABLE or TABLE[event][1] or event == "workflow_run"
            continue
        told[event] += 1
        text = "".join(span.text for span in made.spans)
        assert 10 < len(text) < 1500
        assert payload["sender"]["login"].lower() in made.logins
        assert made.repository == payload.get("repository", {}).get("full_name", "").lower()
        assert all(span.url.startswith("https://github.com/") for span in made.spans if span.url)
    assert len(given) == 329
    assert told == NOTICES


def test_a_workflow_that_failed_is_told() -> None:
    run = next(payload for event, payload in examples() if event == "workflow_run" and payload["action"] == "completed")
    assert isinstance(notice("workflow_run", json.dumps(run).encode()), Ignored)
    run["workflow_run"]["conclusion"] = "failure"
    made = notice("workflow_run", json.dumps(run).encode())
    assert isinstance(made, Notice)
    assert "failed" in "".join(span.text for span in made.spans)


@pytest.mark.timeout(300)
async def test_all_of_them_go_through_the_daemon_and_leave_nothing_behind(stages: Stages) -> None:
    hooks = HookSet(await stages(users=[{"telegram_id": ALICE, "name": "alice", "role": "admin"}]))
    for event, payload in examples():
        answer = await hooks.github(event, payload)
        assert (answer.status, answer.text) == (202, "accepted\n"), event
    await hooks.empty(within=120)
    assert hooks.failed() == []
    assert hooks.log.count(", handed over for alice") == sum(NOTICES.values())
    assert hooks.log.count(" tells nobody anything: ") == 329 - sum(NOTICES.values())
