"""The commands of the chat, against a supervisor that does as the test says."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from kai.demo.botapi.views import MessageView
from kai.interfaces import Model, NewSession, Set, Stop, SwitchWorkspace

from .conftest import ALICE, BOB, Stage
from .scripted import Supervisor, supervisor

Scene = tuple[Stage, Supervisor]


@pytest.fixture
async def scene(stage: Stage) -> AsyncIterator[Scene]:
    async with supervisor(stage.launcher.runtime / "agent/alice.sock") as agent:
        yield stage, agent


async def picker(stage: Stage, contains: str) -> MessageView:
    """A message with buttons, which `answer` takes for one that still grows."""
    return await stage.growing(contains)


def answers(stage: Stage, callback: str) -> int:
    return sum(call.params.get("callback_query_id") == callback for call in stage.api.calls("answerCallbackQuery"))


async def press(stage: Stage, message: int, *, user: int = ALICE, **which: Any) -> str:
    """Press a button and wait until its query is answered."""
    callback = stage.api.press(user, message, **which).callback_id
    await stage.api.wait_for(lambda: stage.api.callback(callback).answered)
    return callback


# ---- the table ----


async def test_the_menu_of_telegram_and_help_are_the_table(stage: Stage) -> None:
    stage.say("/help")
    text = (await stage.answer("/stats")).text or ""
    registered = [command["command"] for command in stage.api.calls("setMyCommands")[0].params["commands"]]
    assert registered == [
        "start", "help", "new", "stop", "models", "model", "settings", "workspace", "workspaces", "jobs", "job",
        "github", "webhooks", "stats", "memory",
    ]  # fmt: skip
    assert [line.split()[0].removeprefix("/") for line in text.split("\n\n")[0].splitlines()] == registered
    stage.say("/help ws")
    detail = (await stage.answer("Example: /workspace new website")).text or ""
    assert detail.startswith("/workspace [NAME | home | new NAME | set FIELD VALUE | reset [FIELD]]\n")
    assert "Also: /ws" in detail
    stage.say("/start")
    await stage.answer("Kai connects this chat")


@pytest.mark.parametrize("text", ["/model haiku", "/model\nhaiku", "/Model@kai_test_bot   haiku  "])
async def test_a_command_is_understood_however_it_is_written(scene: Scene, text: str) -> None:
    stage, agent = scene
    stage.say(text)
    answer = await stage.answer("model: haiku (your choice), from the next message on. The session goes on.")
    assert agent.calls == [Set("model", "haiku")]
    assert [entity["type"] for entity in answer.entities] == ["code"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("/model opus 4", "A model's name is one word. Expected: /model [NAME | reset], for example /model opus"),
        ("/settings nonsense", "There are: model, budget, approvals, streaming, timezone."),
        ("/settings reset a b", "for example /settings budget 5"),
        ("/workspace new", "A new workspace needs a name."),
        ("/workspace set model", "as in /workspace set model opus"),
        ("/help nonsense", "There is no command /nonsense."),
    ],
)
async def test_a_command_that_is_written_wrongly_is_answered_by_how_it_is_written(
    scene: Scene, text: str, said: str
) -> None:
    stage, agent = scene
    stage.say(text)
    await stage.answer(said)
    assert agent.calls == []


async def test_a_slash_command_that_is_not_kais_is_the_agents(scene: Scene) -> None:
    stage, agent = scene
    stage.say("/compact keep the plan")
    await stage.answer("did /compact keep the plan")
    stage.say("/etc/passwd is a file")
    await stage.answer("did /etc/passwd is a file")
    assert len(agent.turns) == 2


async def test_a_look_never_waits_and_a_change_keeps_its_place(scene: Scene) -> None:
    stage, agent = scene
    stage.say("wait")
    await stage.growing()
    await stage.api.wait_for(lambda: agent.turns)
    stage.say("/model haiku")
    stage.say("after")
    for text, shown in [("/models", "for hard work"), ("/settings", "approvals:"), ("/ws", "/base/home")]:
        stage.say(text)
        await picker(stage, shown)
    stage.say("/stats")
    await stage.answer("2 waiting")
    stage.say("/memory")
    await stage.answer("likes tea")
    assert agent.calls == []
    stage.say("/stop")
    await stage.answer("did after")
    assert [type(call) for call in agent.calls] == [Stop, Set]


async def test_what_the_supervisor_refuses_is_told_as_it_says_it(scene: Scene) -> None:
    stage, agent = scene
    agent.refuses = "budget: at most 20.0 USD"
    stage.say("/settings budget 500")
    await stage.answer("⚠ budget: at most 20.0 USD")
    stage.say("/workspace ../../etc")
    await stage.answer("⚠ budget: at most 20.0 USD", after=2)
    assert agent.calls == [Set("budget", "500"), SwitchWorkspace("../../etc")]


async def test_an_agent_that_cannot_be_reached_is_told_soon(scene: Scene) -> None:
    stage, _ = scene
    (stage.launcher.runtime / "agent/alice.sock").unlink()
    stage.say("/stats")
    await stage.answer("⚠ The agent's supervisor does not answer: ", timeout=10)
    assert any(call.params["action"] == "typing" for call in stage.api.calls("sendChatAction")), "while it is asked"


# ---- /model, /settings ----


async def test_a_press_does_what_the_typed_command_does_and_its_query_is_answered_once(scene: Scene) -> None:
    stage, agent = scene
    stage.say("/models")
    shown = await picker(stage, "Model: opus (kai.yaml)")
    assert shown.buttons == ["✓ Opus", "haiku"]
    callback = await press(stage, shown.message_id, label="haiku")
    await stage.answer("model: haiku (your choice)")
    assert agent.calls == [Set("model", "haiku")]

    def renewed() -> MessageView | None:
        message = stage.api.message_view(ALICE, shown.message_id)
        return message if "✓ haiku" in message.buttons else None

    assert "↩ take my choice back" in (await stage.api.wait_for(renewed)).buttons
    await press(stage, shown.message_id, label="↩ take my choice back")
    await stage.answer("Your choice is taken back.")
    assert agent.calls[1:] == [Set("model", "")]
    assert answers(stage, callback) == 1


async def test_a_model_whose_name_is_no_button_is_listed_as_text(scene: Scene) -> None:
    stage, agent = scene
    agent.models += [Model("x" * 60), Model("two words"), Model("reset"), Model("*mark_up* [x](http://e.org)", "\n")]
    stage.say("/models")
    shown = await picker(stage, "Those without a button")
    assert shown.buttons == ["✓ Opus", "haiku"]
    assert "x" * 60 in (shown.text or "")
    assert "*mark_up* [x](http://e.org)" in (shown.text or "")
    assert {entity["type"] for entity in shown.entities} == {"code"}


async def test_settings_show_each_value_with_its_source_and_buttons_for_few_choices(scene: Scene) -> None:
    stage, agent = scene
    stage.say("/settings")
    shown = await picker(stage, "Settings in the workspace home")
    lines = (shown.text or "").splitlines()
    assert "model: opus (kai.yaml)" in lines
    assert "budget: 10.0 USD (kai.yaml, at most 20 USD)" in lines
    assert any(line.startswith("timezone: Pacific/Kiritimati (your choice, now ") for line in lines)
    keyboard = (shown.reply_markup or {})["inline_keyboard"]
    assert [[button["text"] for button in row] for row in keyboard] == [
        ["✓ approvals: auto", "approvals: ask"],
        ["✓ streaming: edit", "streaming: draft"],
        ["streaming: off"],
    ]
    await press(stage, shown.message_id, label="approvals: ask")
    await stage.answer("approvals: ask (your choice), from the next message on.")
    stage.say("/settings reset streaming")
    await stage.answer("Your choice is taken back. streaming: reset (built-in)")
    stage.say("/settings reset")
    await picker(stage, "Your choices are taken back.")
    assert agent.calls == [Set("approvals", "ask"), Set("streaming", ""), Set("", "")]


async def test_a_choice_that_something_else_goes_before_says_so(scene: Scene) -> None:
    stage, agent = scene
    agent.values["model"] = ("opus", "workspaces.yaml", [])
    agent.overruled = True
    stage.say("/model haiku")
    await stage.answer("Your choice is noted. In the workspace home, workspaces.yaml goes first: model: opus")


# ---- /workspace ----


async def test_workspaces_are_shown_switched_made_and_set(scene: Scene) -> None:
    stage, agent = scene
    agent.values["model"] = ("haiku", "your choice for this workspace", [])
    stage.say("/workspaces")
    shown = await picker(stage, "Workspace: home\n/base/home\nmodel: haiku (your choice for this workspace)")
    assert shown.buttons == ["✓ home", "website", "notes"]
    await press(stage, shown.message_id, label="website")
    await stage.answer("Workspace: website\n/base/website\nIts session goes on")
    stage.say("/ws new my shop")
    await stage.answer("Made, and current now: my shop\n/base/my shop\nWith a git repository.\nA fresh session")
    stage.say("/ws set timeout 300")
    stage.say("/ws reset")
    await stage.answer("all of your choices are taken back")
    assert agent.calls == [
        SwitchWorkspace("website"),
        SwitchWorkspace("my shop", create=True),
        Set("timeout", "300", workspace=True),
        Set("", "", workspace=True),
    ]


async def test_names_of_workspaces_are_text_and_never_markup_or_another_command(scene: Scene) -> None:
    stage, agent = scene
    odd = [
        "*bold*",
        "new shop",
        "reset",
        "a  b",
        "x\ny",
        "<b>html</b>",
        "@everyone /stop",
        "é" * 40,
        " pad",
        "\u202eevil",
    ]
    agent.places = odd
    stage.say("/workspaces")
    shown = await picker(stage, "Others:")
    assert shown.buttons == ["*bold*", "a  b", "x y", "<b>html</b>", "@everyone /stop", "evil"]
    assert {entity["type"] for entity in shown.entities} == {"code"}
    for label in shown.buttons:
        await press(stage, shown.message_id, label=label)
    await stage.api.wait_for(lambda: len(agent.calls) == len(shown.buttons))
    assert [call.name for call in agent.calls] == [
        "*bold*",
        "a  b",
        "x\ny",
        "<b>html</b>",
        "@everyone /stop",
        "\u202eevil",
    ]


# ---- /stats, /memory ----


async def test_stats_are_in_the_users_own_time_and_tell_the_cost(scene: Scene) -> None:
    stage, _ = scene
    stage.say("/stats")
    text = (await stage.answer("Session: 5e55-10, since 2023-11-15 12:13")).text or ""
    assert "Cost: $0.2500 of $10.00 in this session, $1.50 today, $20.00 this month" in text
    assert "Turns: 7" in text
    assert "model: opus (kai.yaml)" in text
    assert "kai-agent@alice.service" in text


async def test_memory_is_shown_as_answers_are_with_its_path_and_what_is_missing(scene: Scene) -> None:
    stage, agent = scene
    stage.say("/memory")
    shown = await stage.answer("likes tea")
    assert (shown.text or "").startswith("/state/memory/MEMORY.md\n\nMemory\n")
    assert {entity["type"] for entity in shown.entities} >= {"code", "bold"}
    agent.memory.text, agent.memory.note = "word " * 2000 + "end.", "the file is longer: 64 KiB of it are shown"
    stage.say("/memory")
    last = await stage.answer("end.")
    assert last.message_id > (await stage.answer("64 KiB of it")).message_id
    agent.memory.text, agent.memory.note = "", ""
    stage.say("/memory")
    await stage.answer("Nothing is in it yet.")


# ---- /new, /stop ----


async def test_a_new_session_that_saves_its_memory_tells_so_in_one_message(scene: Scene) -> None:
    stage, agent = scene
    agent.ending = 1.5
    stage.say("/new")
    saving = await stage.growing("memory is being saved")
    answer = await stage.answer("Memory is saved. A fresh session begins with your next message.")
    assert answer.message_id == saving.message_id
    assert len(stage.shown()) == 1


async def test_a_stop_while_memory_is_saved_cuts_that_short(scene: Scene) -> None:
    stage, agent = scene
    agent.ending = 60
    stage.say("/new")
    await stage.growing("memory is being saved")
    stage.say("after")
    stage.say("/stop")
    await stage.answer("A fresh session begins with your next message. It was stopped.")
    await stage.answer("did after")
    new, stop = agent.calls
    assert isinstance(new, NewSession)
    assert stop == Stop(new.turn)
    stage.say("/new")
    await press(stage, (await stage.growing("memory is being saved")).message_id, index=0)
    await stage.api.wait_for(lambda: sum("It was stopped" in text for text in stage.shown()) == 2)


async def test_a_stop_that_overtakes_its_command_is_repeated(scene: Scene) -> None:
    stage, agent = scene
    agent.ending, agent.deaf = 60, 2
    stage.say("/new")
    await stage.growing("memory is being saved")
    stage.say("/stop")
    await stage.answer("It was stopped.")
    assert [type(call) for call in agent.calls] == [NewSession, Stop, Stop, Stop]


async def test_a_bot_that_ends_while_memory_is_saved_answers_once(scene: Scene) -> None:
    stage, agent = scene
    agent.ending = 3
    stage.say("/new")
    await stage.growing("memory is being saved")
    await asyncio.sleep(0.3)  # Telegram's answer is stored, or the message can't be found again
    stage.launcher.kill("kai-bot", signal.SIGKILL)
    await stage.answer("fresh session", timeout=20)
    stage.say("after")
    await stage.answer("did after")
    assert len(stage.shown()) == 2


async def test_stop_is_quick_however_much_waits_and_stop_all_drops_turns_and_commands(scene: Scene) -> None:
    stage, agent = scene
    stage.say("wait")
    await stage.api.wait_for(lambda: agent.turns)
    for number in range(99):
        stage.say(f"queued {number}")
    stage.say("/model haiku")
    await stage.api.wait_for(lambda: any("100 messages wait" in text for text in stage.shown()), timeout=30)
    began = time.monotonic()
    stage.say("/stop all")
    await stage.answer("⏹ Stopped")
    assert time.monotonic() - began < 5
    await stage.answer("100 waiting dropped")
    stage.say("after")
    await stage.answer("did after")
    assert list(agent.turns.values()) == ["wait", "after"]
    assert [type(call) for call in agent.calls] == [Stop]


# ---- buttons and their limits ----


@pytest.mark.parametrize(
    "data", ["do:/new", "do:/stop all", "do:/memory", "do:/help", "/new", "do:new", "do:hello", "do:", "x"]
)
async def test_a_button_can_do_nothing_but_what_buttons_are_for(scene: Scene, data: str) -> None:
    stage, agent = scene
    stage.say("/models")
    message = await picker(stage, "Model:")
    callback = await press(stage, message.message_id, data=data)
    assert stage.api.callback(callback).text == "This button is of an older version."
    stage.say("/stats")
    await stage.answer("Turns: 7")
    assert agent.calls == []
    assert agent.turns == {}
    assert len(stage.shown()) == 2


async def test_a_button_acts_for_whoever_presses_it_and_touches_nobody_else(scene: Scene) -> None:
    stage, agent = scene
    stage.say("wait")
    await stage.growing()
    await stage.api.wait_for(lambda: agent.turns)
    (turn,) = agent.turns
    stage.say("/help", user=BOB)
    bobs = await stage.answer("/stats", user=BOB)
    callback = await press(stage, bobs.message_id, user=BOB, data=f"stop:{turn}")
    assert stage.api.callback(callback).text == "That turn has already ended."
    await press(stage, bobs.message_id, user=BOB, data="do:/model haiku")
    await stage.answer("model", user=BOB)
    assert agent.calls == [], "alice's agent was asked for nothing"
    assert await stage.growing(), "alice's turn still runs"


async def test_a_press_that_waits_is_answered_at_once_and_survives_a_restart(scene: Scene) -> None:
    stage, agent = scene
    stage.say("/models")
    message = await picker(stage, "Model:")
    stage.say("wait")
    await stage.api.wait_for(lambda: agent.turns)
    callback = await press(stage, message.message_id, label="haiku")
    assert stage.api.callback(callback).text == "This waits for the running turn."
    assert agent.calls == []
    await stage.launcher.restart("kai-bot")
    stage.say("/stop")
    await stage.answer("model: haiku (your choice)", timeout=20)
    assert agent.calls.count(Set("model", "haiku")) == 1
    assert sum("model: haiku" in text for text in stage.shown()) == 1


async def test_a_query_that_is_too_old_costs_nothing(scene: Scene) -> None:
    stage, _ = scene
    stage.api.callback_timeout = 0.0
    stage.say("/models")
    message = await picker(stage, "Model:")
    stage.api.press(ALICE, message.message_id, label="haiku")
    await stage.answer("model: haiku (your choice)")
    stage.api.press(ALICE, message.message_id, data="stop:1.1")
    await asyncio.sleep(0.3)
    stage.say("after")
    await stage.answer("did after")
