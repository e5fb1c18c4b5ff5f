"""The Bot API stand-in as a program of its own, driven over `/control` by the client that other processes use."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from kai.demo.botapi.client import ControlClient, ControlError
from kai.demo.botapi.faults import Fault
from kai.demo.botapi.flood import FloodLimits
from kai.demo.botapi.images import grey_png

TOKEN = "4242:secret-of-the-test"
ALICE = 1001


class Program:
    """The running program, and a bot that speaks to it by hand."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process = process
        self.url = url
        self.control = ControlClient(url, TOKEN)
        self._bot = httpx.Client(trust_env=False, base_url=f"{url}/bot{TOKEN}", timeout=30)

    def call(self, method: str, **params: object) -> httpx.Response:
        return self._bot.post(f"/{method}", json=params)

    def close(self) -> None:
        self._bot.close()


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "kai.demo.botapi", "--token-file", tmp_path / "token", "--port-file", tmp_path / "port"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    running = Program(process, process.stdout.readline().strip())
    assert running.url == f"http://127.0.0.1:{(tmp_path / 'port').read_text().strip()}"
    yield running
    running.close()
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    process.stdout.close()


def test_a_conversation_goes_both_ways(program: Program) -> None:
    control = program.control
    control.declare_user(ALICE, first_name="Alice")
    said = control.say(ALICE, "/start")
    (update,) = program.call("getUpdates").json()["result"]
    assert update["update_id"] == said.update_id
    assert update["message"]["entities"] == [{"type": "bot_command", "offset": 0, "length": 6}]
    keyboard = {"inline_keyboard": [[{"text": "Go on", "callback_data": "go"}]]}
    sent = program.call("sendMessage", chat_id=ALICE, text="Hello", reply_markup=keyboard).json()["result"]
    program.call("editMessageText", chat_id=ALICE, message_id=sent["message_id"], text="Hello!", reply_markup=keyboard)
    seen = control.wait_message(ALICE, contains="Hello!", after=said.message_id)
    assert [one.text for one in seen.versions] == ["Hello", "Hello!"]
    assert seen.buttons == ["Go on"]
    pressed = control.press(ALICE, seen.message_id, index=0)
    assert not control.callback(pressed.callback_id).answered
    program.call("answerCallbackQuery", callback_query_id=pressed.callback_id, text="ok")
    assert control.callback(pressed.callback_id).text == "ok"
    control.edit(ALICE, said.message_id, "/help")
    control.delete(ALICE, seen.message_id)
    assert [one.text for one in control.messages(ALICE)] == ["/help"]
    assert [one.text for one in control.messages(ALICE, deleted=True)] == ["/help", "Hello!"]
    assert control.message(ALICE, seen.message_id).deleted


def test_everything_that_can_be_read_in_process_can_be_read_from_outside(program: Program) -> None:
    control = program.control
    control.say(ALICE, "hi")
    control.declare_group(-5, title="Team")
    program.call("sendChatAction", chat_id=ALICE, action="typing")
    program.call("sendMessageDraft", chat_id=ALICE, draft_id=1, text="gro")
    program.call("setMyCommands", commands=[{"command": "help", "description": "Help"}])
    assert [one.action for one in control.actions(ALICE)] == ["typing"]
    assert [one.text for one in control.drafts(ALICE)] == ["gro"]
    draft = control.draft_on_screen(ALICE)
    assert draft is not None
    assert draft.text == "gro"
    assert control.draft_on_screen(-5) is None
    assert control.commands()[0]["commands"] == [{"command": "help", "description": "Help"}]
    assert [one.update["message"]["text"] for one in control.pending()] == ["hi"]
    state = control.state()
    assert (state.pending, state.polling, state.bot["id"], state.chats) == (1, False, 4242, [ALICE, -5])
    assert [one.method for one in control.calls()] == ["sendChatAction", "sendMessageDraft", "setMyCommands"]
    assert control.calls("sendMessageDraft")[0].params["text"] == "gro"


def test_times_are_comparable_between_the_processes(program: Program) -> None:
    before = time.monotonic()
    program.call("getMe")
    (call,) = program.control.calls("getMe", answered=True)
    assert call.answered is not None
    assert before < call.at < call.answered < time.monotonic()


def test_files_go_through_as_bytes(program: Program) -> None:
    control = program.control
    photo = control.put_file(grey_png(200, 100), kind="photo")
    large = control.put_file(b"", name="film.mkv", declared_size=30 << 20)
    control.say(ALICE, "see", photo=photo)
    control.say(ALICE, document=large)
    assert control.file(photo) == grey_png(200, 100)
    assert program.call("getFile", file_id=large).json()["description"] == "Bad Request: file is too big"
    with pytest.raises(ControlError, match="given up"):
        control.file(large)


def test_a_change_is_waited_for_and_named(program: Program) -> None:
    control = program.control
    control.declare_user(ALICE)
    version = control.state().version
    assert control.changes(version, timeout=0.05).changes == []
    later = threading.Timer(0.2, lambda: program.call("sendMessage", chat_id=ALICE, text="late"))
    later.start()
    begin = time.monotonic()
    (change,) = control.changes(version, timeout=10, kinds=["message", "edit"]).changes
    later.join()
    assert 0.1 < time.monotonic() - begin < 5
    assert (change.kind, change.chat_id, change.data["text"]) == ("message", ALICE, "late")
    with httpx.Client(trust_env=False, headers={"Authorization": f"Bearer {TOKEN}"}) as client:
        answer = client.get(f"{program.url}/control/changes", params={"since": version, "timeout": 1})
        assert answer.json()["changes"][0]["data"]["text"] == "late"


def test_polling_and_calls_can_be_waited_for(program: Program) -> None:
    control = program.control
    poll = threading.Thread(target=lambda: program.call("getUpdates", timeout=5))
    threading.Timer(0.2, poll.start).start()
    assert control.wait_call("getupdates", timeout=10).method == "getUpdates"
    control.wait_polling()
    control.say(ALICE, "hi")
    assert control.wait_call("getUpdates", answered=True).status == 200
    poll.join()
    with pytest.raises(TimeoutError, match="last calls: getUpdates 200"):
        control.wait_message(ALICE, timeout=0.1)
    with pytest.raises(TimeoutError, match="no call of sendMessage"):
        control.wait_call("sendMessage", timeout=0.1)


def test_faults_limits_and_blocking_are_set_from_outside(program: Program) -> None:
    control = program.control
    control.declare_user(ALICE)
    control.fault(Fault("flood", "sendMessage", retry_after=9))
    assert program.call("sendMessage", chat_id=ALICE, text="x").json()["parameters"] == {"retry_after": 9}
    number = control.fault(Fault("status", count=None))
    assert program.call("getMe").status_code == 502
    assert [one.kind for one in control.faults()] == ["status"]
    control.remove_fault(number)
    control.seed(3)
    control.clear_faults()
    control.limits(FloodLimits(chat_rate=0.1, chat_burst=1))
    assert program.call("sendMessage", chat_id=ALICE, text="x").status_code == 200
    assert program.call("sendMessage", chat_id=ALICE, text="x").headers["Retry-After"] == "10"
    control.limits(FloodLimits())
    control.block(ALICE)
    assert program.call("sendMessage", chat_id=ALICE, text="x").status_code == 403
    control.block(ALICE, blocked=False)
    assert control.inject({"message": control.messages(ALICE)[0].wire}) > 0


MISTAKES: list[tuple[str, dict[str, object], str]] = [
    ("dance", {}, "no such verb"),
    ("say", {"user_id": "x", "text": "hi"}, "user_id"),
    ("say", {"user_id": 5, "text": "hi", "colour": "red"}, "colour"),
    ("say", {"text": "hi"}, "user_id"),
    ("press", {"user_id": 5, "message_id": 1, "index": 0}, "message 1: not in chat 5"),
    ("message", {"chat_id": 6, "message_id": 1}, "chat 6: not known"),
    ("fault", {"kind": "nonsense"}, "kind"),
    ("limits", {"chat_rate": "fast"}, "chat_rate"),
]


def test_a_mistake_is_answered_with_what_it_is(program: Program) -> None:
    with httpx.Client(trust_env=False, headers={"Authorization": f"Bearer {TOKEN}"}) as client:
        for verb, body, says in MISTAKES:
            answer = client.post(f"{program.url}/control/{verb}", json=body)
            assert answer.status_code == 400
            assert says in answer.json()["error"]


def test_control_wants_the_token(program: Program) -> None:
    with pytest.raises(ControlError, match="401"):
        ControlClient(program.url, "4242:guess").say(ALICE, "rm -rf ~")
    assert httpx.post(f"{program.url}/control/state", json={}, trust_env=False).status_code == 401
    assert program.control.messages(ALICE) == []


def test_a_server_that_isnt_there_is_said_so() -> None:
    with pytest.raises(ControlError, match="can't be reached"):
        ControlClient("http://127.0.0.1:9", TOKEN).state()


def test_garbage_on_the_wire_ends_only_its_own_connection(program: Program) -> None:
    parts = urlsplit(program.url)
    assert parts.hostname is not None
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=5)
    connection.connect()
    connection.sock.sendall(b"\x00\x01garbage\r\n\r\n")
    assert connection.sock.recv(100)[:12] in (b"", b"HTTP/1.1 400")
    connection.close()
    assert program.call("getMe").status_code == 200


def test_the_secret_is_in_no_argument(program: Program) -> None:
    shown = Path(f"/proc/{program.process.pid}/cmdline").read_bytes()
    assert b"kai.demo.botapi" in shown
    assert TOKEN.partition(":")[2].encode() not in shown


@pytest.mark.parametrize("content", [None, "", "no token"])
def test_without_a_token_it_says_why_it_cant_start(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "token").write_text(content)
    ended = subprocess.run(
        [sys.executable, "-m", "kai.demo.botapi", "--token-file", tmp_path / "token"],
        capture_output=True,
        check=False,
        text=True,
        timeout=20,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )
    assert ended.returncode == 1
    assert "botapi: can't start:" in ended.stderr
    assert "Traceback" not in ended.stderr
