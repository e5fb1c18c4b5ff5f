"""`kai mcp` as a process, with the real API behind it: by hand, and by the official SDK's client."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from kai.demo.launcher import python

from .conftest import Stage, Stages
from .jobset import JobSet, at

START = "import sys; sys.argv = ['kai', 'mcp']; from kai.cli.entry import main; main()"
MOST_MIB = 12


class Served:
    """The server at the other end of two pipes."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.number = 0

    async def ask(self, method: str, **params: Any) -> Any:
        self.number += 1
        await self.say({"jsonrpc": "2.0", "id": self.number, "method": method, "params": params})
        return await self.hear()

    async def say(self, message: object) -> None:
        await self.write(json.dumps(message).encode() + b"\n")

    async def write(self, data: bytes) -> None:
        assert self.process.stdin
        self.process.stdin.write(data)
        await self.process.stdin.drain()

    async def hear(self) -> Any:
        assert self.process.stdout
        async with asyncio.timeout(30):
            return json.loads(await self.process.stdout.readline())

    async def tool(self, called: str, /, **arguments: Any) -> tuple[str, bool]:
        result = (await self.ask("tools/call", name=called, arguments=arguments))["result"]
        return result["content"][0]["text"], result["isError"]

    def memory(self) -> float:
        """MiB, proportional: what is shared with other processes counts in part."""
        rollup = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text()
        found = re.search(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)
        assert found
        return int(found[1]) / 1024


@asynccontextmanager
async def started(**environment: str) -> AsyncIterator[Served]:
    interpreter, more = python()
    process = await asyncio.create_subprocess_exec(
        *interpreter, "-c", START, env={"PATH": os.defpath, **more, **environment}, limit=1 << 24,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield Served(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.fixture
async def stage(stages: Stages) -> Stage:
    made: Stage = await stages()
    JobSet(made)
    return made


@pytest.fixture
async def served(stage: Stage) -> AsyncIterator[Served]:
    async with started(KAI_API=os.fspath(stage.launcher.runtime / "api/alice.sock")) as made:
        await made.ask("initialize", protocolVersion="2025-06-18", capabilities={}, clientInfo={})
        yield made


async def test_a_job_is_made_seen_changed_and_removed_by_tools(served: Served) -> None:
    job = {"prompt": "Tea is ready", "schedule_type": "once", "schedule_data": {"run_at": at(3600)}, "name": "tea"}
    made, failed = await served.tool("schedule_job", **job)
    assert not failed, made
    number = json.loads(made)["job_id"]
    assert json.loads((await served.tool("list_jobs"))[0])[0]["name"] == "tea"
    assert await served.tool("update_job", id=number, paused=True) == (json.dumps({"updated": number}), False)
    assert json.loads((await served.tool("get_job", id=number))[0])["state"] == "paused"
    assert await served.tool("delete_job", id=number) == (json.dumps({"deleted": number}), False)
    text, failed = await served.tool("get_job", id=number)
    assert failed
    assert "no such job" in text


async def test_a_reminder_that_a_tool_made_arrives(served: Served, stage: Stage) -> None:
    made, failed = await served.tool(
        "schedule_job", prompt="The tea!", schedule_type="once", schedule_data={"run_at": at(1)}
    )
    assert not failed, made
    await stage.answer("The tea!", timeout=30)


async def test_messages_and_files_reach_the_chat(served: Served, stage: Stage) -> None:
    await served.tool("send_message", text="half *done*")
    await stage.answer("half done")
    (stage.launcher.directory / "state/users/alice/work/plot.txt").write_text("1 2 3")
    assert await served.tool("send_file", path="plot.txt") == ('{"status": "sent", "file": "plot.txt"}', False)
    text, failed = await served.tool("send_file", path="/etc/shadow")
    assert failed
    assert text.startswith("path: ")


async def test_without_an_api_every_tool_says_so_and_the_server_lives(tmp_path: Path) -> None:
    async with started(KAI_API=os.fspath(tmp_path / "none.sock")) as served:
        for _ in range(2):
            text, failed = await served.tool("list_jobs")
            assert failed
            assert "none.sock" in text


async def test_it_stays_small_whatever_comes(served: Served) -> None:
    await served.ask("tools/list")
    small = served.memory()
    print(f"{small:.1f} MiB")
    assert small <= MOST_MIB
    await served.write(b"x" * (40 << 20) + b"\n")
    assert (await served.hear())["error"]["code"] == -32600
    await served.write(b"[" + b"[]," * 5_000_000 + b"[]]\n")
    assert (await served.hear())["error"]["code"] == -32600
    for line in (b"\n", b"\0\n", b"[" * 200_000 + b"\n", b'{"jsonrpc": "2.0"}\n'):
        await served.write(line)
        if line.strip():
            assert "error" in await served.hear()
    assert (await served.ask("ping"))["result"] == {}
    assert served.memory() < 60  # of which a line of 16 MiB is some part


async def test_a_ping_need_not_wait_for_a_call(tmp_path: Path) -> None:
    async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.set()
        await reader.read(-1)  # until it is killed
        writer.close()
        gone.set()

    path, came, gone = tmp_path / "api.sock", asyncio.Event(), asyncio.Event()
    async with await asyncio.start_unix_server(never, path):
        async with started(KAI_API=os.fspath(path)) as served:
            call = {"name": "list_services", "arguments": {}}
            await served.say({"jsonrpc": "2.0", "id": "slow", "method": "tools/call", "params": call})
            assert (await asyncio.wait_for(served.ask("ping"), 10))["result"] == {}
            await asyncio.wait_for(came.wait(), 10)
        await asyncio.wait_for(gone.wait(), 10)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n[1]",
        b"HTTP/1.1 200 OK\r\n\r\n[1]",
        b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n" + b"[" * 200_000,
        b"\xff\xfe",
        b"",
    ],
)
async def test_an_answer_that_is_cut_is_none(tmp_path: Path, answer: bytes) -> None:
    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    path = tmp_path / "api.sock"
    async with await asyncio.start_unix_server(cut, path), started(KAI_API=os.fspath(path)) as served:
        text, failed = await served.tool("list_services")
        assert failed
        assert "before its answer was complete" in text


async def test_the_end_of_its_input_ends_it(served: Served) -> None:
    assert served.process.stdin
    served.process.stdin.close()
    assert await asyncio.wait_for(served.process.wait(), 10) == 0


SDK = """
import asyncio, json, sys
from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client

async def main():
    command, *args = json.loads(sys.argv[1])
    server = StdioServerParameters(command=command, args=args, env=json.loads(sys.argv[2]))
    async with stdio_client(server) as (read, write):
        async with ClientSession(read, write) as session:
            hello = await session.initialize()
            tools = (await session.list_tools()).tools
            made = await session.call_tool("schedule_job", json.loads(sys.argv[3]))
            listed = await session.call_tool("list_jobs", {})
            wrong = await session.call_tool("get_job", {"id": 999})
            await session.send_ping()
            told = lambda r: [r.model_dump(by_alias=True)["isError"], r.content[0].text]
            print(json.dumps({
                "name": hello.model_dump(by_alias=True)["serverInfo"]["name"],
                "version": hello.model_dump(by_alias=True)["protocolVersion"],
                "tools": [tool.name for tool in tools],
                "made": told(made), "listed": told(listed), "wrong": told(wrong),
            }))

asyncio.run(main())
"""


async def test_the_official_sdk_understands_it(stage: Stage) -> None:
    interpreter, more = python()
    job = {"prompt": "x", "schedule_type": "interval", "schedule_data": {"seconds": 600}}
    environment = {**more, "KAI_API": os.fspath(stage.launcher.runtime / "api/alice.sock")}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SDK, json.dumps([*interpreter, "-c", START]), json.dumps(environment), json.dumps(job),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, err.decode()[-3000:]
    told = json.loads(out)
    assert told["name"] == "kai"
    assert "call_service" in told["tools"]
    assert told["made"][0] is False
    assert json.loads(told["listed"][1])[0]["schedule_data"] == {"seconds": 600}
    assert told["wrong"][0] is True
