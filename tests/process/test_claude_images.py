"""A file of the user's, with the real Claude Code CLI and a scripted model: the model sees it and can read it."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import struct
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from datetime import date
from pathlib import Path

import pytest

from kai.agent import files, images
from kai.agent.backend import Context
from kai.agent.claude import ClaudeBackend
from kai.demo.launcher import python
from kai.interfaces import Event, Part
from tests import claude_cli
from tests.messages_api import MessagesAPI, Reply, Text, Tool, Turn
from tests.process.agents import changed, context

pytestmark = pytest.mark.timeout(900)  # the first run fetches the CLI


def png(width: int, height: int) -> bytes:
    """A black picture."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress((b"\0" + bytes(width * 3)) * height)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def blocks(turn: Turn, kind: str) -> list[str]:
    """What the user's blocks of one type hold, images as their bytes in base64."""
    found = []
    for message in turn.body["messages"]:
        for block in (
            message["content"] if message["role"] == "user" and not isinstance(message["content"], str) else []
        ):
            if block["type"] == kind:
                found.append(block["text"] if kind == "text" else block["source"]["data"])
    return found


@pytest.fixture
def api() -> Iterator[MessagesAPI]:
    with MessagesAPI(key="k") as standing:
        yield standing


@pytest.fixture
def claude(tmp_path: Path, api: MessagesAPI, monkeypatch: pytest.MonkeyPatch) -> Context:
    for name, value in python()[1].items():
        monkeypatch.setenv(name, value)
    (tmp_path / "files").mkdir()
    program = os.fspath(claude_cli.path())
    given = context(tmp_path, program, ANTHROPIC_BASE_URL=api.address, ANTHROPIC_API_KEY="k")
    return changed(given, ask=True, files=tmp_path / "files")


@pytest.fixture
async def backend(claude: Context) -> AsyncIterator[ClaudeBackend]:
    made = ClaudeBackend()
    await made.start(claude)
    yield made
    await made.close()


async def sent(tmp_path: Path, content: bytes, name: str, caption: str) -> list[Part]:
    """The prompt of a file with a caption, as the supervisor makes it."""
    (tmp_path / "given").write_bytes(content)
    given = os.open(tmp_path / "given", os.O_RDONLY)
    prompt = [Part(kind="text", text=caption), Part(kind="file", name=name, mime="text/plain", descriptor=0)]
    return await files.store(tmp_path / "files", prompt, [given], turn="7.1", day=date(2026, 11, 22))


async def events(backend: ClaudeBackend, prompt: list[Part]) -> list[Event]:
    async with aclosing(backend.turn(prompt)) as turn:
        return [event async for event in turn]


async def test_an_image_reaches_the_model_with_its_path_and_caption(
    backend: ClaudeBackend, api: MessagesAPI, tmp_path: Path
) -> None:
    seen: list[Turn] = []

    def look(turn: Turn) -> Reply:
        seen.append(turn)
        return Text("a black picture")

    api.rules.append(look)
    picture = png(30, 20)
    done = (await events(backend, await sent(tmp_path, picture, "cat.png", "what is this?")))[-1]
    assert (done.outcome, done.text) == ("ok", "a black picture")
    assert [base64.b64decode(data) for data in blocks(seen[-1], "image")] == [picture]
    texts = [text for text in blocks(seen[-1], "text") if not text.startswith("<system-reminder>")]
    path = tmp_path / "files/2026-11-22/7.1-cat.png"
    assert texts[:2] == ["what is this?", f"[File: {path} (image/png, {len(picture)} bytes)]"]


async def test_the_agent_reads_what_its_user_sent_without_asking(
    backend: ClaudeBackend, api: MessagesAPI, tmp_path: Path
) -> None:
    path = tmp_path / "files/2026-11-22/7.1-notes.txt"

    def read(turn: Turn) -> Reply:
        return Text(turn.tool_result) if turn.tool_result else Tool("Read", {"file_path": str(path)})

    api.rules.append(read)
    async with asyncio.timeout(60):
        found = await events(backend, await sent(tmp_path, b"the secret word is plum\n", "notes.txt", "read it"))
    assert [event for event in found if event.kind == "approval"] == []
    assert "the secret word is plum" in found[-1].text


async def test_an_image_that_the_model_cannot_take_is_named_only(
    backend: ClaudeBackend, api: MessagesAPI, tmp_path: Path
) -> None:
    def look(turn: Turn) -> Reply:
        return Text(json.dumps([len(blocks(turn, "image")), blocks(turn, "text")[-1]]))

    api.rules.append(look)
    for content in (b"II*\0a picture of another kind", b"\xff\xd8\xff" + bytes(images.IMAGE_LIMIT)):
        done = (await events(backend, await sent(tmp_path, content, "scan.jpg", "look")))[-1]
        shown, last = json.loads(done.text)
        assert shown == 0
        assert last.startswith(f"[File: {tmp_path}/files/2026-11-22/7.1-scan.jpg (")
