"""The offline agent asks, counts its costs, answers slash commands, falls silent: as the real program, by rule."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.demo_driver import ASKING, FLAGS, SECONDS, blocks, starting


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    with starting(tmp_path) as begin:
        yield begin


# ---- permissions ----


def test_a_command_asks_after_its_call_and_runs_only_when_allowed(start: Any) -> None:
    driver = start(base=ASKING)
    driver.say("! touch here")
    seen = driver.until("control_request")
    [call] = blocks(seen, "assistant", "tool_use")
    request = seen[-1]["request"]
    assert (request["subtype"], request["tool_name"], request["display_name"]) == ("can_use_tool", "Bash", "Bash")
    assert (request["input"], request["tool_use_id"]) == (call["input"], call["id"])
    rule = {"toolName": "Bash", "ruleContent": "touch here"}
    [suggestion] = request["permission_suggestions"]
    assert suggestion == {
        "type": "addRules",
        "rules": [rule],
        "behavior": "allow",
        "destination": "localSettings",
    }
    assert not (driver.workspace / "here").exists()
    driver.decide(seen[-1], behavior="allow", updatedInput=request["input"])
    result = driver.until("result")[-1]
    assert result["result"].endswith("Exit status 0.")
    assert result["permission_denials"] == []
    assert (driver.workspace / "here").exists()


def test_the_command_that_runs_is_the_one_that_was_allowed(start: Any) -> None:
    driver = start(base=ASKING)
    request = driver.question("! echo asked")
    driver.decide(request, behavior="allow", updatedInput={"command": "echo changed"})
    assert "changed" in driver.until("result")[-1]["result"]


def test_a_denied_command_does_not_run_and_its_reason_is_repeated(start: Any) -> None:
    driver = start(base=ASKING)
    request = driver.question("! touch here")
    driver.decide(request, behavior="deny", message="The user denied this.")
    seen = driver.until("result")
    [answer] = blocks(seen, "user", "tool_result")
    assert (answer["is_error"], answer["content"]) == (True, "The user denied this.")
    assert "The user denied this." in seen[-1]["result"]
    assert seen[-1]["is_error"] is False
    assert seen[-1]["permission_denials"][0]["tool_input"]["command"] == "touch here"
    assert not (driver.workspace / "here").exists()


@pytest.mark.parametrize(
    "decision", [{}, {"behavior": "perhaps"}, {"behavior": "allow"}, {"behavior": "allow", "updatedInput": {"x": 1}}]
)
def test_an_answer_that_is_no_decision_allows_nothing(start: Any, decision: dict[str, Any]) -> None:
    driver = start(base=ASKING)
    driver.decide(driver.question("! touch here"), **decision)
    assert "I did not run that" in driver.until("result")[-1]["result"]
    assert not (driver.workspace / "here").exists()


def test_an_answer_to_another_question_decides_nothing(start: Any) -> None:
    driver = start(base=ASKING)
    request = driver.question("! true")
    driver.until("stream_event")
    driver.decide({"request_id": "another"}, behavior="allow", updatedInput={"command": "true"})
    assert driver.silent()
    driver.decide(request, behavior="deny", message="no")
    driver.until("result")
    assert driver.question("! true")["request_id"] != request["request_id"]


def test_an_interrupt_takes_the_open_question_back(start: Any) -> None:
    driver = start(base=ASKING)
    request = driver.question("! touch here")
    driver.control("int-3", "interrupt")
    seen = [message for message in driver.until("result") if message["type"] != "stream_event"]
    assert [message["type"] for message in seen] == [
        "control_response",
        "control_cancel_request",
        "user",
        "user",
        "result",
    ]
    assert seen[0]["response"]["request_id"] == "int-3"
    assert seen[1]["request_id"] == request["request_id"]
    assert seen[-1]["terminal_reason"] == "aborted_tools"
    driver.decide(request, behavior="allow", updatedInput={"command": "touch here"})
    assert driver.turn("say still here")["result"] == "still here"
    assert not (driver.workspace / "here").exists()


def test_with_nobody_to_ask_a_command_is_denied(start: Any) -> None:
    driver = start(base=FLAGS)
    driver.say("! touch here")
    seen = driver.until("result")
    assert [m["tool_name"] for m in seen if m.get("subtype") == "permission_denied"] == ["Bash"]
    assert len(seen[-1]["permission_denials"]) == 1
    assert not (driver.workspace / "here").exists()


def test_an_input_that_ends_leaves_an_open_question_denied(start: Any) -> None:
    driver = start(base=ASKING)
    driver.question("! touch here")
    assert driver.close() == 0
    assert not (driver.workspace / "here").exists()


def test_a_rule_that_came_with_a_permission_is_remembered(start: Any) -> None:
    driver = start(base=ASKING)
    request = driver.question("! echo one")
    update = {**request["request"]["permission_suggestions"][0], "destination": "session"}
    driver.decide(request, behavior="allow", updatedInput=request["request"]["input"], updatedPermissions=[update])
    driver.until("result")
    assert "one" in driver.turn("! echo one")["result"]
    assert driver.question("! echo two")["request"]["input"]["command"] == "echo two"


def test_an_edit_asks_and_then_really_writes(start: Any) -> None:
    driver = start(base=ASKING)
    request = driver.question("edit notes/a.txt some words")
    asked = request["request"]
    path = driver.workspace / "notes/a.txt"
    assert (asked["tool_name"], asked["input"]) == ("Write", {"file_path": str(path), "content": "some words"})
    assert asked["permission_suggestions"] == [{"type": "setMode", "mode": "acceptEdits", "destination": "session"}]
    assert not path.exists()
    driver.decide(request, behavior="allow", updatedInput=asked["input"])
    assert str(path) in driver.until("result")[-1]["result"]
    assert path.read_text(encoding="utf-8") == "some words"


def test_an_edit_that_fails_says_why(start: Any, tmp_path: Path) -> None:
    driver = start()
    driver.say(f"edit {tmp_path} words")
    seen = driver.until("result")
    assert blocks(seen, "user", "tool_result")[0]["is_error"] is True
    assert "directory" in seen[-1]["result"]


@pytest.mark.parametrize("form", ["Edit({})", "Write({})", "Bash(echo (a), b),Edit({}) Read"])
def test_a_rule_lets_edits_below_its_directory_pass_and_no_others(start: Any, tmp_path: Path, form: str) -> None:
    rule = form.format(f"/{tmp_path}/memory/**")
    driver = start("--allowedTools", "Read", rule, "--strict-mcp-config", base=ASKING)
    driver.turn(f"edit {tmp_path}/memory/deep/a.md words")
    assert (tmp_path / "memory/deep/a.md").read_text(encoding="utf-8") == "words"
    for path in (f"{tmp_path}/memory/../outside", f"{tmp_path}/memory-too/a"):
        driver.decide(driver.question(f"edit {path} words"), behavior="deny", message="no")
        driver.until("result")
    assert not (tmp_path / "outside").exists()


# ---- models, commands ----


def test_initialize_offers_models_and_commands_and_init_lists_the_commands(start: Any) -> None:
    driver = start("--model", "offline-large")
    driver.control("i", "initialize")
    offered = driver.until("control_response")[-1]["response"]["response"]
    assert [model["value"] for model in offered["models"]] == ["default", "offline", "offline-large"]
    assert all(model["displayName"] and model["description"] for model in offered["models"])
    names = [command["name"] for command in offered["commands"]]
    assert names == ["compact", "context", "clear", "cost"]
    assert all(command["description"] for command in offered["commands"])
    driver.say("id")
    seen = driver.until("result")
    assert seen[0]["slash_commands"] == names
    assert "model offline-large" in seen[-1]["result"]


def test_clear_begins_a_new_session_at_its_init_and_counts_costs_anew(start: Any) -> None:
    driver = start()
    old = driver.turn("cost 0.5")["session_id"]
    driver.say("/clear")
    seen = driver.until("result")
    assert [m.get("subtype", m["type"]) for m in seen] == ["conversation_reset", "init", "success"]
    assert seen[0]["session_id"] == old != seen[1]["session_id"] == seen[2]["session_id"]
    assert seen[0]["new_conversation_id"] != seen[1]["session_id"], "the real program's isn't the session either"
    assert (seen[2]["total_cost_usd"], seen[2]["model_usage_since_last_result"]) == (0, {})
    assert seen[2]["result"] == ""
    assert driver.turn("history")["result"] == "1. history\n"
    assert driver.close() == 0
    assert start("--resume", seen[2]["session_id"]).turn("say here")["result"] == "here"


def test_compact_tells_of_its_boundary_and_costs_something(start: Any) -> None:
    driver = start()
    before = driver.turn("hello")
    driver.say("/compact keep the names")
    seen = driver.until("result")
    told = [(m.get("subtype") or m["type"], m.get("status")) for m in seen]
    assert told == [
        ("status", "compacting"),
        ("status", None),
        ("init", None),
        ("compact_boundary", None),
        ("user", None),
        ("success", None),
    ]
    assert seen[-1]["session_id"] == before["session_id"]
    assert seen[-1]["total_cost_usd"] > before["total_cost_usd"]


@pytest.mark.parametrize("command", ["/context", "/cost"])
def test_a_command_that_shows_something_comes_whole_and_free(start: Any, command: str) -> None:
    driver = start()
    driver.turn("cost 0.5")
    driver.say(command)
    seen = driver.until("result")
    assert [m["type"] for m in seen] == ["system", "assistant", "result"]
    assert seen[1]["message"]["content"][0]["text"] == seen[2]["result"] != ""
    assert (seen[2]["total_cost_usd"], seen[2]["local_command"]) == (0.5, command[1:])


def test_an_unknown_command_is_a_prompt_like_any_other(start: Any) -> None:
    assert start().turn("/nonsense")["result"].startswith("I can't think about that")


# ---- costs ----


def test_costs_add_up_and_each_result_names_its_own_share(start: Any) -> None:
    driver = start()
    first, second = driver.turn("hello"), driver.turn("cost 0.5")
    assert 0 < first["total_cost_usd"] < 0.01
    assert second["total_cost_usd"] == pytest.approx(first["total_cost_usd"] + 0.5)
    assert second["modelUsage"]["offline"]["costUSD"] == second["total_cost_usd"]
    assert second["model_usage_since_last_result"]["offline"]["costUSD"] == 0.5
    assert driver.turn("hello")["model_usage_since_last_result"]["offline"]["costUSD"] < 0.01


def test_the_total_goes_on_after_a_clean_end_and_is_lost_by_a_kill(start: Any) -> None:
    first = start()
    session = first.turn("cost 0.5")["session_id"]
    assert first.close() == 0
    second = start("--resume", session)
    result = second.turn("cost 0.25")
    assert result["total_cost_usd"] == 0.75
    assert result["model_usage_since_last_result"]["offline"]["costUSD"] == 0.25
    second.process.kill()
    second.process.wait(SECONDS)
    assert start("--resume", session).turn("cost 0.125")["total_cost_usd"] == 0.125


def test_a_budget_stops_after_the_turn_that_crosses_it_and_at_once_from_then_on(start: Any) -> None:
    driver = start("--max-budget-usd", "0.600000")
    assert driver.turn("cost 0.5")["is_error"] is False
    driver.say("cost 0.25")
    crossing = driver.until("result")
    assert blocks(crossing, "assistant", "text")[0]["text"] == "This turn costs $0.25."
    driver.say("! touch here")
    later = driver.until("result")
    assert [m["type"] for m in later] == ["system", "system", "result"]
    for result in (crossing[-1], later[-1]):
        assert (result["subtype"], result["is_error"]) == ("error_max_budget_usd", True)
        assert result["errors"] == ["Reached maximum budget ($0.6)"]
        assert (result["terminal_reason"], result["total_cost_usd"]) == ("budget_exhausted", 0.75)
        assert "result" not in result
    assert crossing[-1]["model_usage_since_last_result"]["offline"]["costUSD"] == 0.25
    assert later[-1]["model_usage_since_last_result"] == {}
    assert not (driver.workspace / "here").exists()
    assert driver.close() == 1
    resumed = start("--resume", later[-1]["session_id"], "--max-budget-usd", "0.6").turn("hello")
    assert resumed["is_error"] is False, "the budget counts one process, whatever the session cost before"


@pytest.mark.parametrize("amount", ["0", "-1", "nan", "much"])
def test_a_budget_that_is_none_is_an_error(start: Any, amount: str) -> None:
    driver = start(f"--max-budget-usd={amount}")
    assert driver.process.wait(SECONDS) == 1
    assert "max-budget-usd" in driver.errors()


# ---- tools, silence, memory ----


def test_a_sub_agent_is_quiet_between_its_call_and_its_result(start: Any) -> None:
    driver = start()
    driver.say("agent 1 look around")
    call = blocks(driver.until("assistant"), "assistant", "tool_use")[0]
    assert (call["name"], call["input"]["description"]) == ("Task", "look around")
    while not driver.silent():
        next(driver.messages())
    seen = driver.until("result")
    assert blocks(seen, "user", "tool_result")[0]["tool_use_id"] == call["id"]
    assert "look around" in seen[-1]["result"]
    assert seen[-1]["duration_ms"] >= 1000


def test_an_interrupt_ends_a_sub_agent_as_a_tool(start: Any) -> None:
    driver = start()
    driver.say("agent 300 look around")
    driver.until("assistant")
    driver.control("int-4", "interrupt")
    seen = driver.until("result")
    assert blocks(seen, "user", "tool_result")[0]["is_error"] is True
    assert seen[-1]["terminal_reason"] == "aborted_tools"


def test_many_tools_are_called_in_turn_and_each_has_its_result(start: Any) -> None:
    driver = start(base=ASKING)
    driver.say("tools 4")
    seen = driver.until("result")
    calls, results = blocks(seen, "assistant", "tool_use"), blocks(seen, "user", "tool_result")
    assert [call["name"] for call in calls] == ["Bash", "Read", "Grep", "Bash"]
    assert [result["tool_use_id"] for result in results] == [call["id"] for call in calls]
    assert len({call["id"] for call in calls}) == 4


def test_silence_comes_after_its_words_and_hears_an_interrupt(start: Any) -> None:
    driver = start()
    driver.say("silent 300")
    while not driver.silent():
        last = next(driver.messages())
    assert last["event"]["delta"]["text"] == "Before the silence."
    driver.control("int-5", "interrupt")
    seen = driver.until("result")
    assert blocks(seen, "assistant", "text")[0]["text"] == "Before the silence."
    assert seen[-1]["terminal_reason"] == "aborted_streaming"
    assert driver.turn("silent 0")["result"] == "Before the silence."


def test_the_deaf_do_not_hear_an_interrupt(start: Any) -> None:
    driver = start()
    driver.say("deaf 1")
    while "delta" not in driver.until("stream_event")[-1]["event"]:
        continue
    driver.control("int-6", "interrupt")
    seen = driver.until("result")
    assert seen[-1]["result"] == "Before the silence."
    assert "control_response" not in {message["type"] for message in seen}
    assert seen[-1]["duration_ms"] >= 1000
    assert driver.turn("say again")["result"] == "again"


def test_it_shows_its_whole_environment(start: Any, tmp_path: Path) -> None:
    text = start().turn("env")["result"]
    lines = text.removeprefix("```\n").removesuffix("\n```").splitlines()
    assert lines == sorted(lines)
    assert {f"HOME={tmp_path}", f"PATH={os.environ['PATH']}"} <= set(lines)
    assert len(lines) <= 3, "nothing but what it was given, and LC_CTYPE by the interpreter"


def test_it_remembers_in_the_file_that_its_instructions_name(start: Any, tmp_path: Path) -> None:
    memory = tmp_path / "my memory" / "MEMORY.md"
    memory.parent.mkdir()
    memory.write_text("older", encoding="utf-8")
    driver = start("--allowedTools", f"Edit(/{memory.parent}/**)", base=ASKING)
    driver.control("i", "initialize", appendSystemPrompt=f"Be kind. The file {memory} is yours.")
    driver.turn("remember the blue one")
    result = driver.turn("[Kai] This session ends now. Write what is worth it.")
    assert result["result"] == "done"
    lines = memory.read_text(encoding="utf-8").splitlines()
    assert lines == ["older", "the blue one", f"saved at the end of session {result['session_id']}"]


def test_without_a_memory_file_it_says_so(start: Any) -> None:
    driver = start()
    assert "no MEMORY.md" in driver.turn("remember the blue one")["result"]
    assert driver.turn("[Kai] This session ends now.")["result"] == "done"


# ---- files ----


def test_files_and_images_that_came_are_told_and_a_caption_is_obeyed(start: Any, tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(b"meow")
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "bWVvdw=="}}
    line = {"type": "text", "text": f"[File: {tmp_path}/cat.png (image/png, 4 bytes)]"}
    gone = {"type": "text", "text": "[File: /nowhere/x (1 bytes)]"}
    driver = start()
    told = driver.turn([line, image, gone])["result"].splitlines()
    assert told == [
        f"I can read `{tmp_path}/cat.png`: 4 bytes.",
        "I was shown an image: image/png, 4 bytes.",
        "I can't read `/nowhere/x`: No such file or directory.",
    ]
    assert driver.turn([{"type": "text", "text": "say hello"}, line])["result"].startswith("hello\n[File: ")


@pytest.mark.parametrize("block", [{"type": "video"}, {"type": "image"}, {"type": "image", "source": {"type": "url"}}])
def test_a_block_that_is_neither_text_nor_image_ends_the_program(start: Any, block: object) -> None:
    driver = start()
    driver.say([block])
    assert driver.process.wait(SECONDS) == 1
    assert "Error: " in driver.errors()
