"""Which instructions the real Claude Code CLI reads by itself: Kai gives the others, and none of them twice."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from kai.agent.claude import ClaudeBackend
from kai.agent.context import WORKSPACE_FILES, read_by_claude
from kai.demo.launcher import python
from tests import claude_cli
from tests.messages_api import MessagesAPI, Turn
from tests.process.agents import changed, context, talk

pytestmark = pytest.mark.timeout(900)  # the first run fetches the CLI


@pytest.mark.parametrize("trusted", [False, True])
async def test_claude_code_reads_exactly_the_files_that_kai_leaves_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trusted: bool
) -> None:
    for name, value in python()[1].items():
        monkeypatch.setenv(name, value)
    with MessagesAPI(key="k") as api:
        program = os.fspath(claude_cli.path())
        given = context(tmp_path, program, ANTHROPIC_BASE_URL=api.address, ANTHROPIC_API_KEY="k")
        home, workspace = Path(dict(given.environment)["HOME"]), given.workspace
        files = [place / name for place in (home, workspace, tmp_path) for name in WORKSPACE_FILES]
        for number, path in enumerate(files):
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"Mark of file {number}.\n")
        bodies: list[str] = []

        def keep(turn: Turn) -> None:
            bodies.append(msgspec.json.encode(turn.body).decode())

        api.rules.append(keep)
        backend = ClaudeBackend()
        try:
            await backend.start(changed(given, trust_settings=trusted))
            assert (await talk(backend, "say: hello")).text == "hello"
        finally:
            await backend.close()
    seen = {path for number, path in enumerate(files) if f"Mark of file {number}." in "".join(bodies)}
    assert seen == set(files) & read_by_claude(workspace, home, trusted=trusted)
    assert home / ".claude/CLAUDE.md" in seen
