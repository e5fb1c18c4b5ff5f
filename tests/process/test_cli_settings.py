"""`kai settings`: what it asks of a user's supervisor, and how the answer looks."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from kai.cli import main, settings
from kai.interfaces import Set, Setting, Settings, SettingsInForce
from kai.lib.daemon import Daemon
from kai.lib.peers import Peer, Peers
from kai.lib.server import Server
from kai.lib.varlink import Call, InvalidParameter

IN_FORCE = SettingsInForce(
    workspace="site",
    settings=[
        Setting("model", "", "built-in"),
        Setting("budget", "7.50", "your choice for this workspace"),
        Setting("timezone", "Europe/Berlin\x1b[31m", "host"),
    ],
    ceiling_usd=25.0,
)
Kai = Callable[..., Awaitable[str]]


class Supervisor:
    """Answers as one does; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Call[SettingsInForce]] = []

    async def settings(self, peer: Peer, call: Settings) -> SettingsInForce:
        self.asked.append(call)
        return IN_FORCE

    async def set(self, peer: Peer, call: Set) -> SettingsInForce:
        self.asked.append(call)
        if call.field == "budget":
            raise InvalidParameter("budget: expected at most your ceiling of $25.00, got $30.00\x1b[31m")
        return IN_FORCE


@pytest.fixture
async def supervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Supervisor]:
    for name in ("etc", "run/agent"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "etc/users.yaml").write_text("users: [{telegram_id: 1, name: alice}, {telegram_id: 2, name: bob}]\n")
    monkeypatch.setenv("CONFIGURATION_DIRECTORY", os.fspath(tmp_path / "etc"))
    monkeypatch.setenv("KAI_RUNTIME_DIRECTORY", os.fspath(tmp_path / "run"))
    monkeypatch.setattr(settings, "need_root", lambda _: None)
    made = Supervisor()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.fspath(tmp_path / "run/agent/alice.sock"))
        listening.listen()
        listening.setblocking(False)
        daemon = Daemon("test", {"front": listening}, instance="alice", one_uid=True)
        Server(daemon, "front", Peers(one_uid=True), {Settings: made.settings, Set: made.set})
        yield made
        daemon.stopping.set()
        await asyncio.sleep(0)


@pytest.fixture
def kai(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Kai:
    """Runs `kai settings …`; what it printed."""

    def run(words: tuple[str, ...]) -> object:
        monkeypatch.setattr(sys, "argv", ["kai", "settings", *words])
        with pytest.raises(SystemExit) as caught:
            main.main()
        return caught.value.code

    async def call(*words: str, code: object = 0) -> str:
        ended = await asyncio.to_thread(run, words)
        captured = capsys.readouterr()
        assert ended == code if isinstance(code, int) else str(ended).startswith(str(code))
        return captured.out + captured.err + ("" if isinstance(ended, int) else str(ended))

    return call


async def test_what_is_in_force_is_shown_with_its_sources(supervisor: Supervisor, kai: Kai) -> None:
    assert await kai("alice") == (
        "model     the agent's default  built-in\n"
        "budget    7.50                 the user's choice for this workspace\n"
        "timezone  Europe/Berlin [31m   host\n"
        "in the workspace site; the budget may be up to $25.00\n"
    )
    assert supervisor.asked == [Settings()]


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        (("approvals", "auto"), Set(field="approvals", value="auto")),
        (("timeout", "2m"), Set(field="timeout", value="2m")),
        (("reset",), Set(field="", value="")),
        (("reset", "approvals"), Set(field="approvals", value="")),
    ],
)
async def test_the_operator_sets_and_resets(
    supervisor: Supervisor, kai: Kai, words: tuple[str, ...], asked: Set
) -> None:
    assert "in the workspace site" in await kai("alice", *words)
    assert supervisor.asked == [asked]


async def test_a_refusal_is_told_on_one_line(supervisor: Supervisor, kai: Kai) -> None:
    told = await kai("alice", "budget", "30", code="kai: ")
    assert told == "kai: budget: expected at most your ceiling of $25.00, got $30.00 [31m"


@pytest.mark.parametrize("words", [(), ("alice", "budget"), ("alice", "budget", ""), ("alice", "reset", "a", "b")])
async def test_wrong_usage_asks_nobody(supervisor: Supervisor, kai: Kai, words: tuple[str, ...]) -> None:
    assert "usage: kai settings [-h] USER [FIELD VALUE | reset [FIELD]]" in await kai(*words, code=2)
    assert supervisor.asked == []


async def test_an_unknown_user_and_a_missing_supervisor_are_told_apart(supervisor: Supervisor, kai: Kai) -> None:
    assert "no user named carol in " in await kai("carol", code="kai: ")
    assert "systemctl status kai-agent@bob.socket" in await kai("bob", code="kai: ")
    assert supervisor.asked == []
