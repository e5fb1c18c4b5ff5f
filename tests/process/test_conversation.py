"""What a person in the chat sees: answers, order, commands, stop."""

import asyncio
import json
from pathlib import Path
from typing import Any

from kai.demo.botapi.faults import Fault

from .conftest import ALICE, BOB, STRANGER, Stage, Stages


def calls(stage: Stage, method: str, chat: int = ALICE) -> list[dict[str, Any]]:
    return [call.params for call in stage.api.calls(method) if str(call.params.get("chat_id")) == str(chat)]


async def test_a_message_is_answered_by_an_agent_that_really_runs_commands(stage: Stage) -> None:
    stage.say("! echo $((6 * 7))")
    answer = await stage.answer("42")
    assert [entity["type"] for entity in answer.entities] == ["pre"]
    assert len(stage.shown()) == 1, "the answer goes into the growing message"


async def test_the_chat_sees_typing_at_once_and_the_text_as_it_grows(stage: Stage) -> None:
    stage.say("slow 20")
    await stage.growing()
    answer = await stage.answer("word20")
    assert calls(stage, "sendChatAction")
    texts = [version.text for version in answer.versions]
    assert len(texts) >= 3, texts
    assert any("⏳" in (text or "") for text in texts[:-1])
    assert "⏳" not in (answer.text or "")


async def test_a_stranger_gets_nothing_at_all(stage: Stage) -> None:
    stage.say("hello", user=STRANGER)
    stage.say("/start", user=STRANGER)
    stage.say("! echo admitted")
    await stage.answer("admitted")
    assert stage.shown(STRANGER) == []
    touched = [call.method for call in stage.api.calls() if str(call.params.get("chat_id")) == str(STRANGER)]
    assert touched == []
    assert not stage.api.pending(), "the stranger's updates are acknowledged"


async def test_an_admitted_user_in_a_group_is_not_admitted(stage: Stage) -> None:
    stage.api.declare_group(-100)
    stage.api.say(ALICE, "! echo from the group", chat_id=-100)
    stage.say("! echo private")
    await stage.answer("private")
    assert not [m for m in stage.api.messages(-100) if m.by_bot]


async def test_turns_of_one_user_run_in_order_and_a_waiting_message_is_marked(stage: Stage) -> None:
    stage.say("slow 10")
    await stage.growing()
    second = stage.say("! echo second")
    third = stage.say("! echo third")

    def marked() -> bool:
        return {m.message_id for m in stage.api.messages(ALICE) if "👀" in m.reactions} == {second, third}

    await stage.api.wait_for(marked)
    await stage.api.wait_for(lambda: any("2 messages wait" in text for text in stage.shown()))
    await stage.answer("third")
    finals = [text for text in stage.shown() if "second" in text or "third" in text]
    assert len(finals) == 2
    assert "second" in finals[0]

    def cleared() -> bool:
        return not any("wait" in text for text in stage.shown()) and not any(
            m.reactions for m in stage.api.messages(ALICE)
        )

    await stage.api.wait_for(cleared)


async def test_users_never_wait_for_each_other(stage: Stage) -> None:
    stage.say("slow 30")
    await stage.growing()
    stage.say("! echo for bob", user=BOB)
    await stage.answer("for bob", user=BOB)
    assert await stage.growing(), "alice's turn is still running"


async def test_stop_ends_the_turn_keeps_the_part_and_the_session(stage: Stage) -> None:
    stage.say("slow 100")
    await stage.growing("word5")
    stage.say("/stop")
    stopped = await stage.answer("⏹ Stopped")
    assert "word5" in (stopped.text or "")
    stage.say("history")
    assert "slow 100" in ((await stage.answer("slow 100", after=stopped.message_id)).text or "")


async def test_the_stop_button_does_what_stop_does_and_is_answered(stage: Stage) -> None:
    stage.say("slow 100")
    message = await stage.growing("word3")
    query = stage.api.press(ALICE, message.message_id, index=0)
    await stage.answer("⏹ Stopped")
    await stage.api.wait_for(lambda: stage.api.callback(query.callback_id).answered)


async def test_a_stop_with_nothing_running_says_so_and_hits_no_later_turn(stage: Stage) -> None:
    stage.say("/stop")
    await stage.answer("Nothing is running")
    stage.say("! echo unharmed")
    await stage.answer("unharmed")


async def test_stop_all_drops_what_waits_too(stage: Stage, tmp_path: Path) -> None:
    stage.say("slow 100")
    await stage.growing("word3")
    for number in range(3):
        stage.say(f"! touch {tmp_path}/ran-{number}")
    await stage.api.wait_for(lambda: any("3 messages wait" in text for text in stage.shown()))
    stage.say("/stop all")
    await stage.answer("3 waiting dropped")
    stage.say("! echo next")
    await stage.answer("next")
    assert not list(tmp_path.glob("ran-*"))


async def test_new_starts_a_session_that_knows_nothing_of_the_one_before(stage: Stage) -> None:
    stage.say("! echo remember-me")
    await stage.answer("remember-me")
    stage.say("/new")
    reply = await stage.answer("fresh session")
    stage.say("history")
    answer = await stage.answer("", after=reply.message_id)
    assert "remember-me" not in (answer.text or "")


async def test_help_names_every_command_and_an_unknown_one_points_to_it(stage: Stage) -> None:
    stage.say("/help")
    text = (await stage.answer("/stats")).text or ""
    registered = {command["command"] for command in stage.api.calls("setMyCommands")[0].params["commands"]}
    assert {"start", "help", "new", "stop", "stats", "model", "settings", "workspace"} <= registered
    assert all(f"/{name}" in text for name in registered)
    stage.say("/nonsense")
    await stage.answer("There is no command /nonsense. /help")


async def test_stats_tells_turns_session_and_state(stage: Stage) -> None:
    stage.say("! echo one")
    await stage.answer("one")
    stage.say("/stats")
    assert "Turns: 1" in ((await stage.answer("Session:")).text or "")


async def test_a_long_answer_comes_in_parts_that_fit_and_in_order(stage: Stage) -> None:
    stage.say("! seq 1 3000")
    await stage.answer("3000")
    parts = [m for m in stage.api.messages(ALICE) if m.by_bot]
    assert len(parts) >= 3
    numbers = [int(word) for m in parts for word in (m.text or "").split() if word.isdigit()]
    assert numbers == sorted(numbers)
    assert set(range(1, 3001)) <= set(numbers)
    assert all(m.entities and m.entities[0]["type"] == "pre" for m in parts)


async def test_an_answer_survives_flood_limits_and_server_errors(stage: Stage) -> None:
    stage.api.add_fault(Fault(kind="flood", method="editMessageText", count=2, retry_after=1))
    stage.api.add_fault(Fault(kind="status", method="editMessageText", count=2, code=502, skip=2))
    stage.say("! echo through-the-flood")
    await stage.answer("through-the-flood", timeout=30)
    assert sum("through-the-flood" in text for text in stage.shown()) == 1


async def test_an_answer_whose_acknowledgement_is_lost_is_not_shown_twice(stage: Stage) -> None:
    stage.api.add_fault(Fault(kind="lose", method="editMessageText", count=1))
    stage.say("! echo once")
    await stage.answer("once")
    stage.say("! echo after")
    await stage.answer("after")
    assert sum("once" in text for text in stage.shown()) == 1


async def test_history_has_both_sides_and_is_written_once(stage: Stage) -> None:
    stage.say("! echo for-history")
    await stage.answer("for-history")
    directory = stage.launcher.directory / "state/users/alice/history"
    lines = [json.loads(line) for path in directory.glob("*.jsonl") for line in path.read_text().splitlines()]
    assert [(line["dir"], "for-history" in line["text"]) for line in lines] == [("user", True), ("assistant", True)]
    assert {line["turn"] for line in lines} == {f"1234567.{lines[0]['turn'].partition('.')[2]}"}
    assert all(line["ts"].endswith("+00:00") for line in lines)


async def test_one_turn_can_be_followed_through_all_units_by_its_id(stage: Stage) -> None:
    stage.say("! echo trace")
    await stage.answer("trace")
    agent = stage.launcher.logs("kai-agent@alice")
    turn = agent.partition("turn=")[2].split()[0]
    assert turn.startswith("1234567.")
    assert f"turn={turn} turn begins" in agent
    assert f"turn={turn} turn ended: ok" in agent


async def test_the_status_line_says_what_the_bot_does(stage: Stage) -> None:
    async with asyncio.timeout(20):
        while "polling as @" not in stage.status():
            await asyncio.sleep(0.05)
    assert "2 users, queue 0" in stage.status()


async def test_the_token_is_in_no_log(stages: Stages) -> None:
    stage: Stage = await stages(environment={"KAI_LOG_LEVEL": "DEBUG"})
    stage.api.add_fault(Fault(kind="drop", method="sendMessage", count=1))
    stage.api.add_fault(Fault(kind="status", method="getUpdates", count=1, code=502))
    stage.say("! echo x")
    await stage.answer("x", timeout=30)
    await asyncio.sleep(0.1)
    for unit in ("kai-bot", "kai-agent@alice"):
        assert "test-token" not in stage.launcher.logs(unit)
