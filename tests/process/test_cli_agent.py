"""The agent's side of `kai`, called as an agent calls it: real command, real API, and what the user sees."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from kai.demo.launcher import python

from .conftest import BOB, Stage, Stages
from .jobset import JobSet, at


class Shell:
    """The agent's shell: its environment, its directory."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.work = stage.launcher.directory / "state/users/alice/work"
        self.api = stage.launcher.runtime / "api/alice.sock"

    async def run(self, *words: str, code: int = 0, input: str = "", cwd: Path | None = None) -> str:
        interpreter, more = python()
        process = await asyncio.create_subprocess_exec(
            *interpreter, "-m", "kai", *words, cwd=cwd or "/", stdin=asyncio.subprocess.PIPE,
            env={"PATH": os.defpath, **more, "KAI_API": os.fspath(self.api)},
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        out, _ = await asyncio.wait_for(process.communicate(input.encode()), 60)
        assert process.returncode == code, out.decode()
        return out.decode().rstrip("\n")

    async def json(self, *words: str, **options: Any) -> Any:
        return json.loads(await self.run(*words, "--json", **options))


@pytest.fixture
async def shell(stages: Stages) -> Shell:
    stage = await stages()
    JobSet(stage)
    return Shell(stage)


async def test_a_job_is_made_listed_changed_and_removed(shell: Shell) -> None:
    said = await shell.run("jobs", "add", "--prompt", "Tea is ready", "--at", at(3600), "--name", "tea")
    assert said.startswith("job 1: tea, next 20")
    table = (await shell.run("jobs")).splitlines()
    assert table[0].split() == ["ID", "STATE", "NEXT", "KIND", "NAME"]
    assert table[1].split()[0:2] + table[1].split()[-2:] == ["1", "active", "reminder", "tea"]
    assert (
        await shell.run("jobs", "edit", "1", "--daily", "09:00,18:30", "--prompt", "-", input="More tea\n")
        == "job 1: changed"
    )
    shown = await shell.run("jobs", "show", "1")
    assert '{"times": ["09:00", "18:30"]}' in shown
    assert shown.endswith("More tea")
    assert await shell.json("jobs", "pause", "1") == {"updated": 1}
    assert (await shell.json("jobs", "list"))[0]["state"] == "paused"
    assert await shell.run("jobs", "resume", "1") == "job 1: resumed"
    assert await shell.json("jobs", "remove", "1") == {"deleted": 1}
    assert await shell.run("jobs", "list") == "There is no job."


async def test_a_fault_says_what_is_wrong_and_ends_with_1(shell: Shell) -> None:
    said = await shell.run("jobs", "add", "--prompt", "x", "--at", "2001-01-01T00:00", code=1)
    assert said.startswith("kai: schedule_data.run_at: ")
    assert "no such job" in await shell.run("jobs", "remove", "7", code=1)
    assert "nothing to change" in await shell.run("jobs", "edit", "7", code=2)
    assert "needs root" in await shell.run("jobs", "check", code=1) or os.geteuid() == 0


async def test_another_user_is_refused(shell: Shell) -> None:
    said = await shell.run("jobs", "add", "--user", "bob", "--prompt", "x", "--every", "1h", code=1)
    assert "isn't yours" in said
    assert "isn't yours" in await shell.run("send", "--user", "bob", "hello", code=1)
    assert "root's" in await shell.run("jobs", "list", "--user", "bob", code=1)
    assert shell.stage.shown(BOB) == []


async def test_a_text_and_a_file_reach_the_chat(shell: Shell) -> None:
    assert await shell.run("send", "half *done*") == "sent"
    await shell.stage.answer("half done")
    assert await shell.json("send", "-", input="from a pipe\n") == {"status": "sent"}
    await shell.stage.answer("from a pipe")
    deep = shell.work / "deep"
    deep.mkdir()
    (deep / "plot.txt").write_text("1 2 3")
    assert await shell.run("send-file", "plot.txt", "--caption", "a plot", cwd=deep) == "plot.txt is on its way"
    await shell.stage.answer("a plot")
    assert "no such file" in await shell.run("send-file", "gone.txt", code=1, cwd=shell.work)
    assert "files are sent from" in await shell.run("send-file", "/etc/passwd", code=1)


async def test_without_kai_it_says_so(shell: Shell, tmp_path: Path) -> None:
    shell.api = tmp_path / "none.sock"
    for words in (("jobs",), ("send", "x"), ("send-file", "x"), ("service", "list")):
        assert "none.sock: No such file" in await shell.run(*words, code=1)


async def test_a_bad_option_is_named(shell: Shell) -> None:
    assert "expected NAME=VALUE" in await shell.run("service", "call", "x", "--param", "novalue", code=2)
    assert "isn't JSON" in await shell.run("service", "call", "x", "--body", "{", code=1)
