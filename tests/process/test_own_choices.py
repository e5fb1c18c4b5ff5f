"""What a user chooses in the chat holds in the whole set: model, settings, workspaces, memory, sessions."""

import signal
from pathlib import Path

import pytest

from kai.demo.botapi.views import MessageView

from .conftest import ALICE, Stage, Stages

AGENT = "kai-agent@alice"


@pytest.fixture
async def stage(stages: Stages, tmp_path: Path) -> Stage:
    (tmp_path / "base/website").mkdir(parents=True)
    users = [
        {"telegram_id": ALICE, "name": "alice", "workspace_base": str(tmp_path / "base"), "max_budget": 20},
        {"telegram_id": 1002, "name": "bob"},
    ]
    made: Stage = await stages(users=users)
    return made


async def press(stage: Stage, message: MessageView, label: str) -> None:
    query = stage.api.press(ALICE, message.message_id, label=label)
    await stage.api.wait_for(lambda: stage.api.callback(query.callback_id).answered)


async def restart(stage: Stage) -> None:
    """The supervisor leaves; the next message wakes another."""
    stage.launcher.kill(AGENT, signal.SIGTERM)
    await stage.launcher.wait_exit(AGENT)


async def test_a_model_is_chosen_from_the_list_and_the_session_goes_on(stage: Stage) -> None:
    stage.say("! echo before-the-choice")
    await stage.answer("before-the-choice")
    stage.say("/models")
    shown = await stage.growing("No model: answers by rule")
    assert "✓ Default" in shown.buttons
    await press(stage, shown, "Offline large")
    await stage.answer("model: offline-large (your choice), from the next message on. The session goes on.")
    stage.say("history")
    assert "before-the-choice" in ((await stage.answer("before-the-choice", after=shown.message_id)).text or "")
    await restart(stage)
    stage.say("/stats")
    await stage.answer("model: offline-large (your choice)")


async def test_settings_tell_where_they_come_from_and_take_choices_within_bounds(stage: Stage) -> None:
    stage.say("/settings")
    shown = await stage.growing("Settings in the workspace home")
    assert "budget: 10.00 USD (built-in, at most 20 USD)" in (shown.text or "")
    stage.say("/settings budget 25")
    await stage.answer("⚠ budget: expected at most your ceiling of $20.00")
    stage.say("/settings budget 15")
    await stage.answer("budget: 15.00 USD (your choice, at most 20 USD), from the next message on.")
    stage.say("/settings timezone pacific/kiritimati")
    await stage.answer("timezone: Pacific/Kiritimati (your choice, now ")
    await press(stage, shown, "approvals: ask")
    await stage.answer("approvals: ask (your choice), from the next message on.")
    stage.say("/settings approvals auto")
    await stage.answer("sudo kai settings alice approvals auto")
    stage.say("/settings reset budget")
    await stage.answer("Your choice is taken back. budget: 10.00 USD")


async def test_each_workspace_has_its_own_session_and_settings(stage: Stage, tmp_path: Path) -> None:
    stage.say("! echo said-at-home")
    home = await stage.answer("said-at-home")
    stage.say("/workspaces")
    shown = await stage.growing("Workspace: home")
    assert shown.buttons == ["✓ home", "website"]
    await press(stage, shown, "website")
    await stage.answer(f"Workspace: website\n{tmp_path}/base/website\nA fresh session begins there")
    stage.say("! pwd")
    there = await stage.answer(f"{tmp_path}/base/website", after=home.message_id + 4)
    stage.say("/workspace set timeout 300")
    await stage.answer("In the workspace website: timeout: 300 s (your choice for this workspace)")
    stage.say("/ws new my shop")
    await stage.answer(f"Made, and current now: my shop\n{tmp_path}/base/my shop")
    assert (tmp_path / "base/my shop/.git").is_dir()
    stage.say("/ws home")
    back = await stage.answer("Its session goes on with your next message.")
    await restart(stage)
    stage.say("history")
    answer = (await stage.answer("said-at-home", after=back.message_id)).text or ""
    assert "pwd" not in answer
    assert there.message_id < back.message_id


@pytest.mark.parametrize("name", ["../outside", "/etc", "~", "nowhere", "new", ".", "new ../x", "new home"])
async def test_a_workspace_that_cannot_be_is_refused_in_words(stage: Stage, name: str) -> None:
    stage.say(f"/workspace {name}")
    answer = await stage.answer("")
    assert (answer.text or "").startswith("⚠ ") or "Expected: /workspace" in (answer.text or "")
    stage.say("/ws")
    await stage.growing("Workspace: home")


async def test_a_broken_configuration_is_told_by_every_command_that_needs_the_agent(stage: Stage) -> None:
    (stage.launcher.directory / "etc/users.yaml").write_text("users: nonsense\n")
    for text in ("/settings", "/models", "/model opus", "/ws home", "/stats", "/memory", "/new"):
        before = stage.say(text)
        await stage.answer("⚠ The agent can't start: ", after=before)


async def test_memory_is_the_users_own_file(stage: Stage) -> None:
    stage.say("/memory")
    empty = await stage.answer("MEMORY.md")
    memory = stage.launcher.directory / "state/users/alice/memory/MEMORY.md"
    memory.write_text("# Alice\n\nLikes **tea**.\n")
    stage.say("/memory")
    answer = await stage.answer("Likes tea.", after=empty.message_id)
    assert (answer.text or "").startswith(str(memory))


async def test_new_gives_the_agent_time_for_its_memory_first(stage: Stage) -> None:
    stage.say("! echo remember-me")
    await stage.answer("remember-me")
    stage.say("/new")
    reply = await stage.answer("Memory is saved. A fresh session begins with your next message.", timeout=40)
    stage.say("history")
    assert "remember-me" not in ((await stage.answer("", after=reply.message_id)).text or "")


async def test_stats_count_the_session_the_day_and_the_month(stage: Stage) -> None:
    stage.say("! echo one")
    await stage.answer("one")
    stage.say("/stats")
    text = (await stage.answer("Turns: 1")).text or ""
    assert "of $10.00 in this session" in text
    assert "Workspace: home" in text
    assert "Agent: ready" in text
