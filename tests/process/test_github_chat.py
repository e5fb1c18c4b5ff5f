"""/github and /webhooks, said in the chat, against the real kai-webhook."""

from __future__ import annotations

import json

import pytest

from .conftest import ALICE, BOB, STRANGER, Stages
from .hooks import BEARER, SECRET, HookSet, push

GROUP = -1005
USERS = [
    {"telegram_id": ALICE, "name": "alice", "role": "admin"},
    {
        "telegram_id": BOB, "name": "bob", "github_repos": ["acme/site"], "github_repos_allowed": ["acme/*", "bob/x"],
        "notify_chats": [GROUP],
    },
]  # fmt: skip


@pytest.fixture
async def hooks(stages: Stages) -> HookSet:
    return HookSet(await stages(users=USERS, settings={"webhook": {"url": "https://kai.example.org"}}))


async def asked(hooks: HookSet, text: str, contains: str, *, user: int = BOB) -> str:
    number = hooks.stage.say(text, user)
    return (await hooks.stage.answer(contains, user=user, after=number)).text or ""


async def test_what_he_is_subscribed_to_is_listed(hooks: HookSet) -> None:
    text = await asked(hooks, "/github", "You hear of")
    assert "acme/site" in text
    assert "Notices: this chat; it may be -1005" in text
    assert "Reviews: off\nTriage: off" in text
    assert text.endswith("You may add: acme/*, bob/x")
    assert (await asked(hooks, "/github", "You hear of", user=ALICE)).endswith("You may add: any repository")


async def test_adding_tells_address_events_and_where_the_secret_is_but_not_the_secret(hooks: HookSet) -> None:
    text = await asked(hooks, "/github add Acme/API", "✓")
    assert "https://kai.example.org/webhook/github" in text
    assert "push, pull_request, issues, issue_comment, pull_request_review, release, workflow_run" in text
    assert "/etc/credstore/kai-webhook/github" in text and "application/json" in text
    assert SECRET not in text
    assert "acme/api" in await asked(hooks, "/github", "You hear of")
    await hooks.github("push", push("of his own", repository="acme/api"))
    await hooks.delivered("of his own", user=BOB)
    await asked(hooks, "/github remove acme/API", "no more")
    assert "acme/api" not in await asked(hooks, "/github", "You hear of")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("/github add other/thing", "not among the repositories"),
        ("/github add nonsense", "expected a repository as OWNER/REPO"),
        ("/github add", "needs one word more"),
        ("/github add a/b c/d", "needs one word more"),
        ("/github remove acme/site", "stands in users.yaml"),
        ("/github remove acme/other", "You haven't added"),
        ("/github reviews maybe", "can be on or off"),
        ("/github notify 6666", "not one of"),
        ("/github notify @team", "named by its number"),
        ("/github dance now", "What is to be done"),
    ],
)
async def test_what_he_may_not_have_is_refused_with_a_reason(hooks: HookSet, text: str, says: str) -> None:
    before = await asked(hooks, "/github", "You hear of")
    await asked(hooks, text, says)
    assert await asked(hooks, "/github", "You hear of") == before


async def test_the_switches_are_kept(hooks: HookSet) -> None:
    assert "Reviews: on\nTriage: off" in await asked(hooks, "/github reviews on", "Reviews")
    assert "Reviews: on\nTriage: on" in await asked(hooks, "/github triage ON", "Reviews")
    await hooks.launcher.services["kai-webhook"].stop()
    assert "Reviews: off\nTriage: on" in await asked(hooks, "/github reviews off", "Reviews")


async def test_notices_can_be_sent_to_an_allowed_chat_and_back(hooks: HookSet) -> None:
    hooks.api.declare_group(GROUP, title="team")
    assert "Notices: chat -1005" in await asked(hooks, "/github notify -1005", "Notices")
    await hooks.github("push", push("for the team"))
    await hooks.delivered("for the team", user=GROUP)
    assert "Notices: this chat" in await asked(hooks, "/github notify reset", "Notices")
    await hooks.github("push", push("for him"))
    await hooks.delivered("for him", user=BOB)
    hooks.stage.say("hello, I'm in the group", STRANGER)
    await asked(hooks, "/webhooks", "Last event")
    assert hooks.stage.shown(STRANGER) == []


async def test_a_chat_that_is_no_more_allowed_gets_nothing_more(hooks: HookSet) -> None:
    hooks.api.declare_group(GROUP, title="team")
    await asked(hooks, "/github notify -1005", "Notices")
    path = hooks.launcher.directory / "etc/users.yaml"
    rows = json.loads(path.read_text())
    rows["users"][1]["notify_chats"] = []
    path.write_text(json.dumps(rows))
    for unit in ("kai-bot", "kai-webhook"):
        await hooks.launcher.services[unit].stop()
    hooks.launcher.services["kai-bot"].start()
    await hooks.github("push", push("for him again"))
    await hooks.delivered("for him again", user=BOB)
    assert hooks.count("for him again", user=GROUP) == 0


async def test_the_state_of_the_intake_is_told(hooks: HookSet) -> None:
    text = await asked(hooks, "/webhooks", "Webhooks:")
    assert "Webhooks: https://kai.example.org\nGitHub: open" not in text
    assert text.startswith("Webhooks: https://kai.example.org/webhook/github\nGitHub: open\nOther programs: open")
    assert "Last event: none yet\nTo be delivered: 0" in text
    await hooks.github("push", push("x"))
    await hooks.empty()
    assert "Last event: push, " in await asked(hooks, "/webhooks", "Webhooks:")
    assert SECRET not in text and BEARER not in text


async def test_an_intake_that_isnt_there_is_told(stages: Stages) -> None:
    stage = await stages(users=USERS)
    stage.say("/webhooks")
    await stage.answer("kai-webhook does not answer", timeout=20)
