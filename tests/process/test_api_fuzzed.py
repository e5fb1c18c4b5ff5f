"""The API fuzzed from its own description: no 5xx, and nothing that the description doesn't say."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from kai.agent.api import routes

from .conftest import Stages
from .jobset import JobSet

ROOT = Path(__file__).resolve().parents[2]
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
SETTINGS = {"api": {"requests": 100_000, "messages": 100_000}}


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    except OSError:
        writer.transport.abort()


@asynccontextmanager
async def forwarded(path: Path) -> AsyncIterator[int]:
    """A TCP port on loopback for a Unix socket: the fuzzer knows no others."""

    open_ones: set[asyncio.Task[None]] = set()

    def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(forward(reader, writer))
        open_ones.add(task)
        task.add_done_callback(open_ones.discard)

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there = await asyncio.open_unix_connection(os.fspath(path))
        try:
            await asyncio.gather(_pump(reader, there), _pump(there_reader, writer))
        finally:
            there.transport.abort()
            writer.transport.abort()

    server = await asyncio.start_server(accepted, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in open_ones:
            task.cancel()
        await asyncio.gather(*open_ones, return_exceptions=True)


async def test_a_fuzzer_that_reads_the_description_finds_no_5xx_and_nothing_undescribed(
    stages: Stages, tmp_path: Path
) -> None:
    stage = await stages(settings=SETTINGS)
    JobSet(stage)
    async with forwarded(stage.launcher.runtime / "api" / "alice.sock") as port:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "schemathesis.cli", "run", os.fspath(routes.OPENAPI),
            "--url", f"http://127.0.0.1:{port}", "--checks", CHECKS, "--phases", "examples,coverage,fuzzing,stateful",
            "--max-examples", "40", "--seed", "7", "--no-color",
            cwd=tmp_path, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": os.fspath(ROOT)},
        )  # fmt: skip
        out, _ = await asyncio.wait_for(process.communicate(), 300)
    assert process.returncode == 0, out.decode()[-6000:]
    passed = re.search(r"(\d+) generated, (\d+) passed", out.decode())
    assert passed, out.decode()[-2000:]
    assert int(passed[1]) == int(passed[2]) > 500


def test_the_description_the_page_and_the_routes_are_of_one_mind() -> None:
    described = json.loads(routes.OPENAPI.read_text())["paths"]
    found = {(method.upper(), path) for path, methods in described.items() for method in methods}
    page = (ROOT / "man/kai-api.7").read_text()
    assert found == {
        (one.upper(), path) for one, path in re.findall(r"^\.It Li (GET|POST|PATCH|DELETE) (\S+)$", page, re.M)
    }
    assert page.count("curl --unix-socket") >= len(found)


async def test_each_described_route_is_there(stages: Stages) -> None:
    stage = await stages(settings=SETTINGS)
    JobSet(stage)
    for path, methods in json.loads(routes.OPENAPI.read_text())["paths"].items():
        reader, writer = await asyncio.open_unix_connection(os.fspath(stage.launcher.runtime / "api/alice.sock"))
        target = path.replace("{id}", "1").replace("{name}", "x")
        writer.write(f"TRACE {target} HTTP/1.1\r\nHost: kai\r\nConnection: close\r\n\r\n".encode())
        answer = (await reader.read(-1)).decode()
        writer.transport.abort()
        allowed = re.search(r"^Allow: (.*)\r$", answer, re.MULTILINE | re.IGNORECASE)
        assert allowed, answer
        assert set(allowed[1].split(", ")) == {method.upper() for method in methods}
