"""The contract of backends, kept by the offline agent and by the real Claude Code CLI with a scripted model."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kai.agent.claude import ClaudeBackend
from kai.demo.launcher import offline_agent, python
from tests import claude_cli
from tests.messages_api import MessagesAPI
from tests.process.agents import context

pytest.register_assert_rewrite("tests.process.backend_contract")

from tests.process.backend_contract import GIVEN, BackendContract, Engine  # noqa: E402

KEY = "of-the-scripted-model"


@pytest.fixture(autouse=True)
def _door(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in python()[1].items():
        monkeypatch.setenv(name, value)


class TestTheOfflineAgent(BackendContract):
    @pytest.fixture
    def engine(self, tmp_path: Path) -> Engine:
        return Engine(
            make=ClaudeBackend,
            context=context(tmp_path, *offline_agent(tmp_path / "agent"), TOLD=GIVEN),
            say=lambda words: f"say {words}",
            run=lambda command: f"! {command}",
            write=lambda path, text: f"edit {path} {text}",
            slow="slow 100",
            silent="silent 60",
            history="history",
            instructions="prompt",
            clear="/clear",
            command="/context",
            costly="cost 0.5",
            budget=0.25,
        )


@pytest.mark.timeout(900)  # the first run fetches the CLI
class TestClaudeCode(BackendContract):
    @pytest.fixture
    def engine(self, tmp_path: Path) -> Iterator[Engine]:
        with MessagesAPI(key=KEY) as model:
            login = {"ANTHROPIC_BASE_URL": model.address, "ANTHROPIC_API_KEY": KEY}
            yield Engine(
                make=ClaudeBackend,
                context=context(tmp_path, os.fspath(claude_cli.path()), TOLD=GIVEN, **login),
                say=lambda words: f"say: {words}",
                run=lambda command: f"run: {command}",
                write=lambda path, text: f"write: {path} {text}",
                slow="slow: 20 " + "word " * 100,
                silent="hang",
                history="echo-history",
                instructions="echo-system",
                clear="/clear",
                command="/context",
                costly="say: dear",
                budget=0.01,
            )
