"""The offline agent keeps the rules of the stream-json protocol that a driver must cope with."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.demo_driver import FLAGS, PARTIAL, SECONDS, starting, streamed

UNKNOWN = "11111111-1111-4111-8111-111111111111"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    with starting(tmp_path) as begin:
        yield begin


def is_gone(pid: int) -> bool:
    """Whether the process ends within a few seconds: being killed takes its moment."""
    until = time.monotonic() + 5
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.01)
    return False


def test_nothing_is_printed_before_the_first_input(start: Any) -> None:
    driver = start()
    assert driver.silent()
    driver.say("help")
    assert next(driver.messages())["subtype"] == "init"


def test_an_input_that_ends_at_once_ends_it_well(start: Any) -> None:
    driver = start()
    assert driver.close() == 0
    assert driver.process.stdout.read() == b""


def test_init_comes_at_every_turn_and_the_session_stays(start: Any) -> None:
    driver = start()
    sessions = set()
    for _ in range(2):
        driver.say("hello")
        seen = driver.until("result")
        assert [message["subtype"] for message in seen if message["type"] == "system"] == ["init", "status"]
        sessions |= {message["session_id"] for message in seen}
    assert len(sessions) == 1


def test_text_streams_in_the_order_of_the_real_program(start: Any) -> None:
    driver = start()
    driver.say("say **bold** and `code`")
    seen = driver.until("result")
    events = [m["event"]["type"] if m["type"] == "stream_event" else m["type"] for m in seen]
    unique = [kind for index, kind in enumerate(events) if index == 0 or kind != events[index - 1]]
    assert unique == [
        "system",
        "message_start",
        "content_block_start",
        "content_block_delta",
        "assistant",
        "content_block_stop",
        "message_delta",
        "message_stop",
        "result",
    ]
    assert streamed(seen) == seen[-1]["result"] == "**bold** and `code`"
    assert seen[-1]["is_error"] is False
    assert seen[-1]["num_turns"] == 1


def test_without_the_flag_there_are_no_partial_messages(start: Any) -> None:
    driver = start(base=FLAGS)
    driver.say("hello")
    assert {message["type"] for message in driver.until("result")} == {"system", "assistant", "result"}


def test_a_command_really_runs_in_the_workspace(start: Any) -> None:
    driver = start()
    driver.say("! pwd; echo oops >&2; touch here; exit 3")
    seen = driver.until("result")
    calls = [m for m in seen if m["type"] == "assistant" and m["message"]["content"][0]["type"] == "tool_use"]
    tool = calls[0]["message"]["content"][0]
    assert tool["name"] == "Bash"
    assert tool["input"]["command"] == "pwd; echo oops >&2; touch here; exit 3"
    [answer] = [m for m in seen if m["type"] == "user"]
    assert answer["message"]["content"][0]["tool_use_id"] == tool["id"]
    assert answer["message"]["content"][0]["is_error"] is True
    assert f"```\n{driver.workspace}\noops\n```" in seen[-1]["result"]
    assert seen[-1]["result"].endswith("Exit status 3.")
    assert (driver.workspace / "here").exists()


def test_output_of_a_command_cannot_break_out_of_its_code_block(start: Any) -> None:
    assert start().turn("! printf '```\\nx\\n````\\n'")["result"].startswith("`````\n```\nx\n````\n`````\n")


def test_long_output_keeps_its_beginning_and_its_end(start: Any) -> None:
    text = start().turn("! seq 1 100000")["result"]
    assert len(text) < 31_000
    assert text.startswith("```\n1\n2\n")
    assert "\n100000\n```" in text
    assert "bytes left out" in text


def test_a_background_child_does_not_hold_the_answer(start: Any) -> None:
    result = start().turn("! sleep 20 & echo $!")
    os.kill(int(result["result"].split()[1]), signal.SIGKILL)
    assert result["duration_ms"] < 5000


def test_an_interrupt_stops_the_words_and_the_process_goes_on(start: Any) -> None:
    driver = start()
    driver.say("slow 500")
    driver.until("stream_event")
    driver.control("int-1", "interrupt")
    seen = driver.until("result")
    answers = [message for message in seen if message["type"] == "control_response"]
    assert answers[0]["response"]["request_id"] == "int-1"
    assert seen[-1]["is_error"] is True
    assert seen[-1]["subtype"] == "error_during_execution"
    assert seen[-1]["terminal_reason"] == "aborted_streaming"
    assert "result" not in seen[-1]
    assert driver.turn("say still here")["result"] == "still here"
    assert driver.close() == 0


def test_an_interrupt_ends_the_whole_process_group_of_a_command(start: Any) -> None:
    driver = start()
    driver.say("! sleep 300 & echo $! > pid; wait")
    driver.until("assistant")
    pid_file = driver.workspace / "pid"
    while not (pid_file.exists() and pid_file.read_text(encoding="ascii").strip()):
        time.sleep(0.01)
    driver.control("int-2", "interrupt")
    assert driver.until("result")[-1]["terminal_reason"] == "aborted_tools"
    assert is_gone(int(pid_file.read_text(encoding="ascii")))


def test_an_interrupt_while_idle_brings_no_result(start: Any) -> None:
    driver = start()
    driver.turn("hello")
    driver.control("z", "interrupt")
    assert driver.until("control_response")[-1]["response"]["subtype"] == "success"
    assert driver.silent()


def test_messages_sent_while_busy_become_one_next_turn(start: Any) -> None:
    driver = start()
    driver.say("slow 3")
    driver.until("stream_event")
    driver.say("say one")
    driver.say("two")
    assert driver.until("result")[-1]["result"] == "word1 word2 word3 "
    assert driver.until("result")[-1]["result"] == "one\ntwo"
    assert driver.silent()


def test_a_message_with_an_id_is_followed_through_its_turn(start: Any) -> None:
    driver = start()
    driver.say("slow 2")
    for message_id in ("u-1", "u-2"):
        driver.send({"type": "user", "message": {"role": "user", "content": "say it"}, "uuid": message_id})
    driver.close()
    told = [m["state"] + m.get("command_uuid", "") for m in driver.messages() if m["type"] == "command_lifecycle"]
    assert told == ["queuedu-1", "queuedu-2", "startedu-1", "startedu-2", "completedu-1", "completedu-2"]


def test_a_session_is_resumed_by_another_process_even_after_a_kill(start: Any) -> None:
    first = start()
    session = first.turn("remember the blue one")["session_id"]
    first.say("slow 100")
    first.until("stream_event")
    first.process.kill()
    first.process.wait(SECONDS)
    second = start("--resume", session)
    result = second.turn("history")
    assert result["session_id"] == session
    assert result["result"] == "1. remember the blue one\n2. slow 100\n3. history\n"


def test_an_unknown_session_is_an_error_result_and_status_1_before_any_input(start: Any) -> None:
    driver = start("--resume", UNKNOWN)
    (result,) = driver.messages()
    text = f"No conversation found with session ID: {UNKNOWN}"
    assert (result["subtype"], result["is_error"], result["errors"]) == ("error_during_execution", True, [text])
    assert driver.process.wait(SECONDS) == 1
    assert driver.errors().strip() == text


def test_a_session_id_cannot_name_a_file_elsewhere(start: Any, tmp_path: Path) -> None:
    (tmp_path / "secret.jsonl").write_text('{"role": "user", "text": "x"}\n', encoding="utf-8")
    (result,) = start("--resume", "../secret").messages()
    assert result["is_error"] is True


def test_a_session_id_in_use_is_refused(start: Any) -> None:
    assert start("--session-id", UNKNOWN).turn("hi")["session_id"] == UNKNOWN
    again = start("--session-id", UNKNOWN)
    assert again.process.wait(SECONDS) == 1
    assert "already in use" in again.errors()


def test_control_requests_are_answered_as_the_real_program_does(start: Any) -> None:
    driver = start()
    driver.control("i", "initialize", appendSystemPrompt="Be brief.")
    driver.control("m", "set_model", model="tiny")
    driver.control("u", "nonsense")
    answers = [driver.until("control_response")[-1]["response"] for _ in range(3)]
    assert [answer["subtype"] for answer in answers] == ["success", "success", "error"]
    assert answers[1]["response"] == {"model": "tiny"}
    assert answers[2]["error_code"] == "unsupported_request"
    assert "Be brief." in driver.turn("prompt")["result"]
    driver.say("id")
    assert driver.until("system")[0]["model"] == "tiny"


def test_a_line_that_is_no_json_ends_it_with_status_1(start: Any) -> None:
    driver = start()
    driver.process.stdin.write(b"garbage!\n")
    driver.process.stdin.flush()
    assert driver.process.wait(SECONDS) == 1
    assert "Error parsing streaming input line" in driver.errors()


def test_an_input_that_ends_in_a_turn_lets_the_turn_finish(start: Any) -> None:
    driver = start()
    driver.say("slow 3")
    assert driver.close() == 0
    assert [m["result"] for m in driver.messages() if m["type"] == "result"] == ["word1 word2 word3 "]


def test_sigterm_ends_it_at_once_and_its_command_with_it(start: Any) -> None:
    driver = start()
    driver.say("! echo $$ > pid; sleep 300")
    driver.until("assistant")
    pid_file = driver.workspace / "pid"
    while not (pid_file.exists() and pid_file.read_text(encoding="ascii").strip()):
        time.sleep(0.01)
    driver.process.terminate()
    assert driver.process.wait(SECONDS) == 143
    assert is_gone(int(pid_file.read_text(encoding="ascii")))
    assert [m for m in driver.messages() if m["type"] == "result"] == []


def test_sigint_is_an_interrupt_that_also_leaves(start: Any) -> None:
    driver = start()
    driver.say("slow 500")
    driver.until("stream_event")
    driver.process.send_signal(signal.SIGINT)
    assert driver.until("result")[-1]["terminal_reason"] == "aborted_streaming"
    assert driver.process.wait(SECONDS) == 0


def test_die_ends_it_in_the_middle_of_the_answer(start: Any) -> None:
    driver = start()
    driver.say("die")
    assert driver.process.wait(SECONDS) == 70
    seen = list(driver.messages())
    assert streamed(seen) == "I am "
    assert "result" not in {message["type"] for message in seen}
    assert "told to `die`" in driver.errors()


@pytest.mark.parametrize(
    ("base", "reason"),
    [
        ([*PARTIAL, "--nonsense"], "unrecognized arguments: --nonsense"),
        ([flag for flag in PARTIAL if flag != "--verbose"], "requires --verbose"),
        (PARTIAL[1:], "only -p"),
    ],
)
def test_flags_it_does_not_know_or_misses_are_errors(start: Any, base: list[str], reason: str) -> None:
    driver = start(base=base)
    assert driver.process.wait(SECONDS) == 1
    assert reason in driver.errors()


def test_every_turn_that_begins_is_counted_once(start: Any, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    driver = start("--runs", str(runs))
    driver.turn("hello")
    driver.turn([{"type": "text", "text": "say"}, {"type": "text", "text": "this"}])
    texts = [json.loads(line)["text"] for line in runs.read_text(encoding="utf-8").splitlines()]
    assert texts == ["hello", "say\nthis"]


def test_it_starts_quickly(start: Any) -> None:
    best = 9.0
    for _ in range(3):
        began = time.monotonic()
        driver = start()
        driver.control("i", "initialize")
        driver.until("control_response")
        best = min(best, time.monotonic() - began)
    assert best < 0.3, "60 ms alone; the bound leaves room for a busy host"
