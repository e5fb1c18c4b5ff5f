"""`kai queue` and `kai send-file`: what they ask, and how the answer looks to an operator."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from kai.cli import agentapi, main, queue
from kai.interfaces import Details, Drop, Entries, Entry, FileSent, Queue, Retry, SendFile, Show
from kai.lib.daemon import Daemon
from kai.lib.peers import Peer, Peers
from kai.lib.server import Handlers, Server
from kai.lib.varlink import InvalidParameter

Kai = Callable[..., Awaitable[str]]


class Other:
    """The bot and a supervisor, who remember what they were asked."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        now = time.time()
        self.entries = Entries(
            [
                Entry("i7", "alice", "queued", "turn", now - 42, turn="9.7", text="do it\nnow\x1b[31m " + "x" * 200),
                Entry("o12", "bob", "dead", "final", now - 3 * 86400 - 5, text="So it is.", error="chat not found"),
            ]
        )

    def bot(self) -> Handlers:
        return {Queue: self.queue, Show: self.show, Retry: self.decide, Drop: self.decide}

    def supervisor(self) -> Handlers:
        return {SendFile: self.send}

    async def queue(self, peer: Peer, call: Queue) -> Entries:
        self.asked.append(call)
        found = [each for each in self.entries.entries if call.user in ("", each.user)]
        return Entries(found, self.entries.more)

    async def show(self, peer: Peer, call: Show) -> Details:
        self.asked.append(call)
        if call.id != "i7":
            raise InvalidParameter(f"id: there is no row {call.id}; kai queue lists them\x1b[31m")
        first, second = self.entries.entries
        return Details(first, [second])

    async def decide(self, peer: Peer, call: Retry | Drop) -> Entry:
        self.asked.append(call)
        return Entry("o12", "bob", "stored" if isinstance(call, Retry) else "dropped", "final", time.time())

    async def send(self, peer: Peer, call: SendFile) -> FileSent:
        self.asked.append(call)
        if call.path.startswith("/"):
            raise InvalidParameter(f"path: {call.path}: files are sent from the current workspace")
        return FileSent(name="report.pdf", size=1234, id=5)


@pytest.fixture
async def other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Other]:
    for name in ("etc", "run/agent"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "etc/users.yaml").write_text("users: [{telegram_id: 1, name: alice}, {telegram_id: 2, name: bob}]\n")
    monkeypatch.setenv("CONFIGURATION_DIRECTORY", os.fspath(tmp_path / "etc"))
    monkeypatch.setenv("KAI_RUNTIME_DIRECTORY", os.fspath(tmp_path / "run"))
    monkeypatch.setattr(queue, "need_root", lambda _: None)
    monkeypatch.setattr(agentapi, "wanted", lambda: False)
    made = Other()
    daemons = []
    with ExitStack() as stack:
        for path, handlers in (("bot.sock", made.bot()), ("agent/alice.sock", made.supervisor())):
            listening = stack.enter_context(socket.socket(socket.AF_UNIX))
            listening.bind(os.fspath(tmp_path / "run" / path))
            listening.listen()
            listening.setblocking(False)
            daemon = Daemon("test", {"front": listening}, instance="alice", one_uid=True)
            Server(daemon, "front", Peers(one_uid=True), handlers)
            daemons.append(daemon)
        yield made
        for daemon in daemons:
            daemon.stopping.set()
        await asyncio.sleep(0)


@pytest.fixture
def kai(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Kai:
    """Runs `kai …`; what it printed."""

    def run(words: tuple[str, ...]) -> object:
        monkeypatch.setattr(sys, "argv", ["kai", *words])
        with pytest.raises(SystemExit) as caught:
            main.main()
        return caught.value.code

    async def call(*words: str, code: object = 0) -> str:
        ended = await asyncio.to_thread(run, words)
        captured = capsys.readouterr()
        assert ended == code if isinstance(code, int) else str(ended).startswith(str(code))
        return captured.out + captured.err + ("" if isinstance(ended, int) else str(ended))

    return call


@pytest.mark.parametrize("words", [("queue",), ("queue", "list")])
async def test_the_list_has_a_line_for_each_row_and_paints_nothing(
    other: Other, kai: Kai, words: tuple[str, ...]
) -> None:
    assert (await kai(*words)).splitlines() == [
        "ID   USER   STATE   AGE   KIND   TEXT",
        "i7   alice  queued  42 s  turn   do it now [31m " + "x" * 64 + "…",
        "o12  bob    dead    3 d   final  [chat not found] So it is.",
    ]
    assert other.asked == [Queue()]


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        (("--all",), Queue(everything=True)),
        (("--user", "bob"), Queue(user="bob")),
        (("--user", "bob", "list"), Queue(user="bob")),
        (("list", "--user", "bob", "--all"), Queue(user="bob", everything=True)),
        (("--all", "list", "--user", "bob"), Queue(user="bob", everything=True)),
    ],
)
async def test_the_list_can_be_of_one_user_and_of_all_states(
    other: Other, kai: Kai, words: tuple[str, ...], asked: Queue
) -> None:
    assert "o12" in await kai("queue", *words)
    assert other.asked == [asked]


async def test_an_empty_queue_says_so(other: Other, kai: Kai) -> None:
    other.entries = Entries([])
    assert await kai("queue") == "Nothing waits, and there is no dead letter.\n"
    assert await kai("queue", "--user", "bob") == "Nothing of bob waits, and there is no dead letter.\n"
    assert await kai("queue", "--all") == "Nothing is stored.\n"


async def test_what_is_left_off_is_counted(other: Other, kai: Kai) -> None:
    other.entries.more = 17
    assert (await kai("queue")).splitlines()[-1] == "(17 older ones are left off)"


async def test_a_row_is_shown_whole_with_what_belongs_to_it(other: Other, kai: Kai) -> None:
    lines = (await kai("queue", "show", "i7")).splitlines()
    assert lines[:2] == ["id      i7", "user    alice"]
    assert lines[2].startswith("state   queued, since 20")
    assert lines[3:5] == ["kind    turn", "turn    9.7"]
    assert lines[5:8] == ["", "do it", "now [31m " + "x" * 200]
    assert lines[8] == ""
    assert lines[10] == "o12  bob   dead   3 d  final  [chat not found] So it is."
    assert other.asked == [Show("i7")]


@pytest.mark.parametrize(("word", "call", "state"), [("retry", Retry, "stored"), ("drop", Drop, "dropped")])
async def test_a_decision_tells_what_has_come_of_it(
    other: Other, kai: Kai, word: str, call: type[Retry | Drop], state: str
) -> None:
    assert await kai("queue", word, "o12") == f"o12: {state}\n"
    assert other.asked == [call("o12")]


async def test_a_refusal_is_told_on_one_line(other: Other, kai: Kai) -> None:
    told = await kai("queue", "show", "i99", code="kai: ")
    assert told == "kai: id: there is no row i99; kai queue lists them [31m"


@pytest.mark.parametrize("words", [("queue", "show"), ("queue", "retry", "o1", "o2"), ("queue", "burn", "o1")])
async def test_wrong_usage_asks_nobody(other: Other, kai: Kai, words: tuple[str, ...]) -> None:
    assert "usage: kai" in await kai(*words, code=2)
    assert other.asked == []


async def test_a_bot_that_is_not_there_is_named(
    other: Other, kai: Kai, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAI_RUNTIME_DIRECTORY", os.fspath(tmp_path / "nowhere"))
    assert "systemctl status kai-bot" in await kai("queue", code="kai: ")


@pytest.mark.parametrize(
    ("seconds", "said"), [(-5, "0 s"), (59.9, "59 s"), (60, "1 min"), (3599, "59 min"), (86399, "23 h"), (86400, "1 d")]
)
def test_an_age_is_one_number_and_its_unit(seconds: float, said: str) -> None:
    assert queue.age(seconds) == said


# ---- kai send-file ----


async def test_a_file_goes_to_the_user_whose_agent_has_it(other: Other, kai: Kai) -> None:
    said = await kai("send-file", "--user", "alice", "out/report.pdf", "--caption", "the **report**")
    assert said == "report.pdf, 1234 bytes, is on its way as o5\n"
    assert other.asked == [SendFile(path="out/report.pdf", caption="the **report**")]


async def test_a_file_that_may_not_be_sent_is_refused_in_the_supervisors_words(other: Other, kai: Kai) -> None:
    told = await kai("send-file", "--user", "alice", "/etc/shadow", code="kai: ")
    assert told == "kai: path: /etc/shadow: files are sent from the current workspace"


async def test_a_user_who_is_not_there_and_one_whose_agent_is_not_are_told_apart(other: Other, kai: Kai) -> None:
    assert "no user named carol in " in await kai("send-file", "--user", "carol", "x", code="kai: ")
    assert "systemctl status kai-agent@bob.socket" in await kai("send-file", "--user", "bob", "x", code="kai: ")
    assert other.asked == []
