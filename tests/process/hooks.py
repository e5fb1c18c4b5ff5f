"""A set with kai-webhook in it: the real daemon, with sockets as systemd would hand them over, and requests to it."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec

from kai.demo.launcher import Launcher, python
from kai.demo.service import Unit
from kai.interfaces import IntakeState, ReadIntake
from kai.lib.client import Client
from kai.lib.varlink import Call

from .conftest import ALICE, Stage

SECRET, OLD, BEARER = "the-secret-of-github-hooks", "the-secret-before-that-one", "the-bearer-secret-of-all-others"
POINTS = Path(__file__).with_name("hook_points.py")
R = TypeVar("R", bound=msgspec.Struct)


def unit(launcher: Launcher, *, point: str = "") -> Unit:
    """With `point`, it is killed there while the file `kill` is in the set's directory."""
    interpreter, _ = python()
    program = (
        (os.fspath(POINTS), point, os.fspath(launcher.directory / "kill")) if point else ("-m", "kai.webhook.main")
    )
    return Unit(
        "kai-webhook",
        (*interpreter, *program, "--one-uid"),
        (
            ("intake", launcher.runtime / "intake.sock"),
            ("http", launcher.runtime / "http.sock"),
            ("local", launcher.runtime / "webhook.sock"),
        ),
        launcher._environment("webhook", CREDENTIALS_DIRECTORY=credentials(launcher)),
    )


def credentials(launcher: Launcher) -> Path:
    path = launcher.directory / "webhook-credentials"
    path.mkdir(mode=0o700, exist_ok=True)
    return path


class Response(NamedTuple):
    status: int
    headers: dict[str, str]
    text: str


class HookSet:
    """A stage that takes webhooks; `github` posts an event, `generic` a message."""

    def __init__(self, stage: Stage, *, point: str = "", **secrets: str) -> None:
        self.stage, self.launcher, self.api = stage, stage.launcher, stage.api
        for name, secret in (secrets or {"github": SECRET, "generic": BEARER}).items():
            self.secret(name.replace("_", "-"), secret)
        self.launcher.add(unit(self.launcher, point=point))
        self.socket = self.launcher.runtime / "webhook.sock"
        self.state = self.launcher.directory / "state/webhook"
        self.client = Client(self.launcher.runtime / "intake.sock")

    def secret(self, name: str, secret: str) -> None:
        (credentials(self.launcher) / f"webhook_{name}").write_text(f"{secret}\n")

    async def call(self, call: Call[R]) -> R:
        return await self.client.call(call)

    async def read(self) -> IntakeState:
        return await self.call(ReadIntake())

    async def request(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> Response:
        return await request(self.socket, method, path, headers, body)

    async def github(
        self, event: str, payload: Any, *, delivery: str = "", secret: str = SECRET, **headers: str
    ) -> Response:
        body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        given = signed(event, body, delivery=delivery, secret=secret)
        for name, value in headers.items():
            given[name.replace("_", "-")] = value
        return await self.request("POST", "/webhook/github", given, body)

    async def generic(self, payload: Any, **headers: str) -> Response:
        body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        given = {"Authorization": f"Bearer {BEARER}", "Content-Type": "application/json"}
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.request("POST", "/webhook", given, body)

    async def bot_leaves(self) -> None:
        """Its socket goes too."""
        await self.launcher.services.pop("kai-bot").close()

    def bot_returns(self) -> None:
        self.launcher.add(next(one for one in self.launcher.units() if one.name == "kai-bot"))
        self.launcher.services["kai-bot"].start()

    def spooled(self) -> list[str]:
        return sorted(path.name for path in (self.state / "spool").iterdir())

    def failed(self) -> list[str]:
        return sorted(path.name for path in (self.state / "failed").iterdir())

    async def delivered(self, contains: str, *, user: int = ALICE, timeout: float = 20) -> str:
        return (await self.stage.answer(contains, user=user, timeout=timeout)).text or ""

    async def empty(self, within: float = 20) -> None:
        async with asyncio.timeout(within):
            while self.spooled():
                await asyncio.sleep(0.02)

    def count(self, contains: str, *, user: int = ALICE) -> int:
        return sum(contains in text for text in self.stage.shown(user))

    @property
    def log(self) -> str:
        path = self.launcher.directory / "logs/kai-webhook.log"
        return path.read_text() if path.exists() else ""


def signature(body: bytes, secret: str = SECRET) -> str:
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def signed(event: str, body: bytes, *, delivery: str = "", secret: str = SECRET) -> dict[str, str]:
    """The headers that GitHub sends."""
    return {
        "User-Agent": "GitHub-Hookshot/044aadd",
        "Content-Type": "application/json",
        "X-GitHub-Event": event,
        "X-GitHub-Delivery": delivery or str(uuid.uuid4()),
        "X-GitHub-Hook-ID": "292430182",
        "X-Hub-Signature-256": signature(body, secret),
    }


async def request(
    socket: Path, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes | None = None
) -> Response:
    """One request on a connection of its own."""
    given = {"Host": "kai.example.org", "Connection": "close", **(headers or {})}
    if body is not None and "Transfer-Encoding" not in given:
        given.setdefault("Content-Length", str(len(body)))
    head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in given.items())
    reader, writer = await asyncio.open_unix_connection(socket)
    try:
        writer.write(head.encode("latin-1") + b"\r\n" + (body or b""))
        return await response(reader, head_only=method == "HEAD")
    finally:
        writer.close()


async def response(reader: asyncio.StreamReader, *, head_only: bool = False) -> Response:
    """The next response. An empty one, of status 0, where the connection ended without any."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return Response(0, {}, "")
    line, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (one.partition(":") for one in lines if one)}
    size = int(headers.get("content-length", "0")) if not head_only else 0
    text = await reader.readexactly(size)
    return Response(int(line.split()[1]), headers, text.decode())


def push(text: str, *, sender: str = "octo", repository: str = "acme/site") -> dict[str, Any]:
    """A push whose commit has this message."""
    owner = repository.partition("/")[0]
    return {
        "ref": "refs/heads/main",
        "compare": f"https://github.com/{repository}/compare/a...b",
        "commits": [{"id": "0123456789abcdef", "message": text, "url": f"https://github.com/{repository}/commit/0"}],
        "repository": {"full_name": repository, "owner": {"login": owner}},
        "sender": {"login": sender},
    }
