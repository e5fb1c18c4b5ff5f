"""The scripted model: the real Claude Code CLI works with it, and it refuses what the real service refuses."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import claude_cli, messages_api
from tests.messages_api import Error, MessagesAPI, Text, Turn

KEY = "test-key"
HEADERS = {"x-api-key": KEY, "anthropic-version": "2023-06-01"}
BASH = {"name": "Bash", "description": "Runs a command", "input_schema": {"type": "object"}}

pytestmark = pytest.mark.timeout(900)  # the first run fetches the CLI


@pytest.fixture
def api() -> Iterator[MessagesAPI]:
    with MessagesAPI(key=KEY) as standing:
        yield standing


class Claude:
    """The real CLI on the stand-in, one turn at a time."""

    def __init__(self, api: MessagesAPI, home: Path, *arguments: str, key: str = KEY) -> None:
        argv = [os.fspath(claude_cli.path()), "--print", "--verbose", "--dangerously-skip-permissions"]
        argv += ["--input-format", "stream-json", "--output-format", "stream-json", "--include-partial-messages"]
        env = {"PATH": os.environ["PATH"], "HOME": os.fspath(home), "IS_SANDBOX": "1", "DISABLE_AUTOUPDATER": "1"}
        env |= {"ANTHROPIC_BASE_URL": api.address, "ANTHROPIC_API_KEY": key, "CLAUDE_CODE_MAX_RETRIES": "1"}
        env |= {"CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1"}
        self._popen = subprocess.Popen(
            [*argv, *arguments], env=env, cwd=home, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def turn(self, text: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Says it, and gives the result and everything that came before it."""
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        said = {"type": "user", "message": {"role": "user", "content": text}}
        self._popen.stdin.write(json.dumps(said) + "\n")
        self._popen.stdin.flush()
        before: list[dict[str, Any]] = []
        for line in self._popen.stdout:
            message: dict[str, Any] = json.loads(line)
            if message["type"] == "result":
                return message, before
            before.append(message)
        raise AssertionError(f"the CLI ended without a result: {before}")

    def leave(self) -> int:
        """Closes its input; its exit code."""
        self._popen.communicate(timeout=30)
        return self._popen.returncode

    def kill(self) -> None:
        """For a test that failed before it left; does nothing after that."""
        self._popen.kill()
        with self._popen:
            pass


@pytest.fixture
def start(api: MessagesAPI, tmp_path: Path) -> Iterator[Callable[..., Claude]]:
    with contextlib.ExitStack() as stack:

        def begin(*arguments: str, key: str = KEY) -> Claude:
            claude = Claude(api, tmp_path, *arguments, key=key)
            stack.callback(claude.kill)
            return claude

        yield begin


def test_the_real_cli_has_a_text_streamed_to_it(api: MessagesAPI, start: Callable[..., Claude]) -> None:
    claude = start()
    result, before = claude.turn("say: The quick brown fox jumps.")
    assert (result["result"], result["is_error"]) == ("The quick brown fox jumps.", False)
    events = [message["event"] for message in before if message["type"] == "stream_event"]
    deltas = [event["delta"]["text"] for event in events if event["type"] == "content_block_delta"]
    assert len(deltas) > 1
    assert "".join(deltas) == "The quick brown fox jumps."
    assert claude.leave() == 0
    assert [request.headers["x-api-key"] for request in api.requests] == [KEY]


def test_the_real_cli_really_runs_the_bash_tool_and_brings_its_output_back(
    start: Callable[..., Claude], tmp_path: Path
) -> None:
    claude = start()
    result, before = claude.turn("run: id -un; touch made; pwd")
    assert result["result"].splitlines() == [getpass.getuser(), os.fspath(tmp_path)]
    assert (tmp_path / "made").exists()
    calls = [block for message in before if message["type"] == "assistant" for block in message["message"]["content"]]
    assert ("Bash", "id -un; touch made; pwd") in [
        (block["name"], block["input"]["command"]) for block in calls if block["type"] == "tool_use"
    ]
    assert claude.leave() == 0


def test_the_system_prompt_and_the_history_of_a_resumed_session_can_be_seen(start: Callable[..., Claude]) -> None:
    claude = start("--append-system-prompt", "You are called Kai-4711.")
    assert "You are called Kai-4711." in claude.turn("echo-system")[0]["result"]
    session = claude.turn("run: echo one")[0]["session_id"]
    claude.leave()
    again = start("--resume", session)
    listed = again.turn("echo-history")[0]["result"]
    again.leave()
    assert listed.splitlines() == ["1. echo-system", "2. run: echo one", "3. echo-history"]


def test_the_real_cli_reports_a_refused_key_and_an_overload(start: Callable[..., Claude]) -> None:
    wrong = start(key="wrong")
    result, _ = wrong.turn("say: hello")
    wrong.leave()
    assert (result["is_error"], result["api_error_status"]) == (True, 401)
    claude = start()
    result, _ = claude.turn("fail: 529")
    assert (result["is_error"], result["api_error_status"]) == (True, 529)
    assert claude.turn("say: better")[0]["result"] == "better"
    claude.leave()


def test_words_after_an_interrupted_tool_are_answered_and_not_the_tool(api: MessagesAPI) -> None:
    call = {"type": "tool_use", "id": "t1", "name": "Bash", "input": {"command": "sleep 9"}}
    after = [
        {"type": "tool_result", "tool_use_id": "t1", "content": "stopped"},
        {"type": "text", "text": "[Request interrupted by user for tool use]"},
        {"type": "text", "text": "say: on we go"},
        {"type": "text", "text": "<system-reminder>\nsay: wrong\n</system-reminder>"},
    ]
    messages = [_user("run: sleep 9"), {"role": "assistant", "content": [call]}, {"role": "user", "content": after}]
    assert _text(_post(api, messages=messages)) == "on we go"


def test_a_slow_answer_takes_its_time_word_by_word(api: MessagesAPI) -> None:
    begun = time.monotonic()
    arrivals: list[float] = []
    body = {"model": "m", "max_tokens": 9, "stream": True, "messages": [_user("slow: 0.6 one two three four")]}
    with httpx.stream("POST", f"{api.address}/v1/messages", headers=HEADERS, json=body) as answer:
        for line in answer.iter_lines():
            if '"text_delta"' in line:
                arrivals.append(time.monotonic() - begun)
    assert len(arrivals) == 4
    assert arrivals[0] < 0.3
    assert arrivals[-1] >= 0.6
    assert arrivals[1] < arrivals[-1] - 0.3


def test_a_rule_of_the_test_goes_before_the_conventions(api: MessagesAPI) -> None:
    def rule(turn: Turn) -> messages_api.Reply | None:
        return Error(500, "out of order") if turn.user == "say: hello" else None

    api.rules.append(rule)
    refused = _post(api, messages=[_user("say: hello")])
    assert refused.status_code == 500
    assert refused.json()["error"] == {"type": "api_error", "message": "out of order"}
    assert _text(_post(api, messages=[_user("say: bye")])) == "bye"


def test_an_answer_that_hangs_is_marked_unfinished_and_holds_up_nobody(api: MessagesAPI) -> None:
    with pytest.raises(httpx.ReadTimeout):
        _post(api, messages=[_user("hang")], timeout=0.3)
    assert _text(_post(api, messages=[_user("say: next")])) == "next"
    assert [(request.answer, request.finished) for request in api.requests] == [("Hang", False), ("Text", True)]


def test_a_tool_that_was_not_offered_is_not_called(api: MessagesAPI) -> None:
    assert "offered only: none" in _text(_post(api, messages=[_user("run: id")]))
    answer = _post(api, messages=[_user("run: id")], tools=[BASH]).json()
    assert (answer["stop_reason"], answer["content"][0]["input"]["command"]) == ("tool_use", "id")


def _picture(kind: str, data: str) -> dict[str, Any]:
    source = {"type": "base64", "media_type": kind, "data": data}
    return {"role": "user", "content": [{"type": "image", "source": source}]}


@pytest.mark.parametrize(
    ("change", "status", "complaint"),
    [
        ({"model": None}, 400, "model"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"max_tokens": True}, 400, "max_tokens"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, 400, "messages.0.role"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, 400, "first message"),
        ({"messages": [{"role": "user", "content": 7}]}, 400, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, 400, "messages.0.content.0.type"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": ""}]}]}, 400, "non-empty"),
        ({"messages": [_picture("image/tiff", "SUkqAA==")]}, 400, "media_type"),
        ({"messages": [_picture("image/png", "SUkqAA==")]}, 400, "does not appear to be"),
        ({"messages": [_picture("image/png", "no base64!")]}, 400, "invalid base64"),
        ({"messages": [_picture("image/png", "A" * (5 * 2**20 + 4))]}, 400, "exceeds 5 MB"),
        ({"system": [{"type": "text"}]}, 400, "system.0"),
        (
            {
                "messages": [
                    {"role": "user", "content": "x"},
                    {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "Bash", "input": {}}]},
                    {"role": "user", "content": "and?"},
                ]
            },
            400,
            "without `tool_result`",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t"}]}]}, 400, "unexpected"),
    ],
)
def test_a_malformed_request_is_refused_as_the_service_refuses_it(
    api: MessagesAPI, change: dict[str, Any], status: int, complaint: str
) -> None:
    answer = _post(api, **change)
    assert answer.status_code == status
    assert answer.json()["type"] == "error"
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert complaint in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"anthropic-version": "2023-06-01"}, 401),
        ({"anthropic-version": "2023-06-01", "x-api-key": "wrong"}, 401),
        ({"anthropic-version": "2023-06-01", "authorization": "Bearer wrong"}, 401),
        ({"anthropic-version": "2023-06-01", "authorization": f"Bearer {KEY}"}, 200),
        ({"x-api-key": KEY}, 400),
        ({"x-api-key": KEY, "anthropic-version": "1"}, 400),
        (HEADERS | {"content-type": "text/plain"}, 400),
    ],
)
def test_key_and_version_are_checked(api: MessagesAPI, headers: dict[str, str], status: int) -> None:
    answer = _post(api, headers=headers)
    assert answer.status_code == status
    if status != 200:
        assert answer.json()["error"]["type"] == {401: "authentication_error", 400: "invalid_request_error"}[status]


def test_the_other_paths_answer_as_a_client_expects(api: MessagesAPI) -> None:
    assert httpx.head(api.address).status_code == 200
    assert httpx.get(f"{api.address}/").json() == {"status": "ok"}
    assert httpx.get(f"{api.address}/v1/nothing").status_code == 404
    body = {"model": "m", "messages": [_user("how long is this?")]}
    counted = httpx.post(f"{api.address}/v1/messages/count_tokens", headers=HEADERS, json=body)
    assert counted.json()["input_tokens"] > 1
    title = _post(api, system="Find a short title for this session.", messages=[_user("say: x")])
    assert json.loads(_text(title))["title"] == "A test"


def test_as_a_program_it_prints_its_address_takes_one_key_and_shows_its_log() -> None:
    argv = [sys.executable, "-I", messages_api.__file__, "--key", KEY]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as program, contextlib.ExitStack() as stack:
        stack.callback(program.kill)
        assert program.stdout is not None
        address = program.stdout.readline().strip()
        url = f"{address}/v1/messages"
        body = {"model": "m", "max_tokens": 9, "messages": [_user("x" * 100_000)], "tools": [BASH]}
        assert httpx.post(url, headers=HEADERS | {"x-api-key": "wrong"}, json=body).status_code == 401
        assert httpx.post(url, headers=HEADERS, json=body).status_code == 200
        log = httpx.get(f"{address}/_log").json()
        program.terminate()
        assert program.wait(10) == 0
    assert [(entry["status"], entry["headers"]["x-api-key"]) for entry in log] == [(401, "wrong"), (200, KEY)]
    assert log[1]["body"]["tools"] == ["Bash"]
    assert len(json.dumps(log)) < 20_000


def test_closing_it_breaks_off_what_is_under_way(api: MessagesAPI) -> None:
    body = {"model": "m", "max_tokens": 9, "stream": True, "messages": [_user("slow: 60 a b c")]}
    with httpx.stream("POST", f"{api.address}/v1/messages", headers=HEADERS, json=body) as answer:
        lines = answer.iter_lines()
        assert next(lines)
        begun = time.monotonic()
        api.close()
        with pytest.raises(httpx.RemoteProtocolError):
            list(lines)
        assert time.monotonic() - begun < 5


def test_text_and_rules_are_plain_values() -> None:
    assert messages_api.by_convention(Turn("run: x", "", "", (), {})) == Text("(no output)")
    assert messages_api.by_convention(Turn("fail: x", None, "", (), {})) == Error(
        400, "fail: 'x' is not an error's status"
    )
    assert messages_api.by_convention(Turn("please\nsay: a\nb", None, "", (), {})) == Text("a\nb")


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _post(
    api: MessagesAPI, *, headers: dict[str, str] | None = None, timeout: float = 10, **changes: Any
) -> httpx.Response:
    body = {"model": "m", "max_tokens": 9, "messages": [_user("say: hello")]} | changes
    kind = {"content-type": "application/json"}
    sent = kind | (HEADERS if headers is None else headers)
    return httpx.post(f"{api.address}/v1/messages", headers=sent, content=json.dumps(body), timeout=timeout)


def _text(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["content"][0]["text"])
