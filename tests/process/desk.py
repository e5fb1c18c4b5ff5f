"""kai-proxy behind its services socket, started by the first call as systemd would, and a service that it can call."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from kai.demo.launcher import python
from kai.demo.service import Service, Unit
from kai.interfaces import CallService, ListServices, ServiceAnswer
from kai.lib.client import Client

KEY = "key-0123/4567+89=ab"
USERS = {"users": [{"telegram_id": 1, "name": "alice"}, {"telegram_id": 2, "name": "bob"}]}
PROGRAM = """
import sys
from pathlib import Path
import kai.proxy.main as m
from kai.lib.peers import Peer, Peers
who = Path(sys.argv.pop())
def identify(self, connection):
    role, _, user = who.read_text().partition(" ")
    return Peer(1, 1, frozenset({role}), user) if role else None
Peers.identify = identify
"""
"""Only the kernel's word is replaced: the file says whom it would name."""


class Asked:
    """A request as it arrived."""

    def __init__(self, line: str, headers: list[tuple[str, str]], body: bytes) -> None:
        self.method, self.target, _ = line.split(" ")
        self.headers, self.body = headers, body

    def header(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name]


Answer = Callable[[Asked, asyncio.StreamWriter], Awaitable[None]]


def whole(body: bytes, *headers: str, status: str = "200 OK", kind: str = "application/json") -> Answer:
    """An answer in one piece."""

    async def answer(asked: Asked, writer: asyncio.StreamWriter) -> None:
        lines = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", f"content-type: {kind}", *headers]
        writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + body)

    return answer


class Upstream:
    """A service on the loopback address: keeps what was asked; `answer` writes what comes back."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.context = context
        self.asked: list[Asked] = []
        self.tasks: set[asyncio.Task[Any]] = set()
        self.answer: Answer = whole(b'{"ok":true}')
        self.left = asyncio.Event()
        """Set when a caller hung up before its answer was complete."""

    async def start(self) -> None:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self.context)
        self.port = self.server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    async def stop(self) -> None:
        self.server.close()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self.tasks.add(task)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in head[1:-2])]
            asked = Asked(head[0], headers, b"")
            asked.body = await reader.readexactly(int((asked.header("content-length") or ["0"])[0]))
            self.asked.append(asked)
            answering = asyncio.ensure_future(self.answer(asked, writer))
            leaving = asyncio.ensure_future(reader.read(1))
            await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                self.left.set()
            answering.cancel()
            leaving.cancel()
            await asyncio.gather(answering, leaving, return_exceptions=True)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self.tasks.discard(task)
            writer.transport.abort() if task.cancelling() else writer.close()


class Desk:
    """kai-proxy with services. `call` is what a supervisor does."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.socket = directory / "run/proxy.sock"
        for name in ("etc", "credentials", "run"):
            (directory / name).mkdir(exist_ok=True)
        (directory / "etc/kai.yaml").write_text("{}")
        (directory / "etc/users.yaml").write_text(json.dumps(USERS))
        self.who("supervisor alice")

    def who(self, text: str) -> None:
        """Whom the kernel names: a role, and its user."""
        (self.directory / "who").write_text(text)

    def services(self, **services: dict[str, Any]) -> None:
        text = json.dumps({"services": {name.replace("_", "-"): settings for name, settings in services.items()}})
        (self.directory / "etc/services.yaml").write_text(text)

    def key(self, name: str, key: str = KEY) -> None:
        (self.directory / f"credentials/service_{name}").write_text(f"{key}\n")

    def listen(self, *patches: str, idle: float = 30, environment: dict[str, str] | None = None) -> None:
        interpreter, own = python()
        program = f"{PROGRAM}\nm.IDLE = m.WINDOW = {idle}\n" + "\n".join([*patches, "m.main()"])
        unit = Unit(
            "kai-proxy",
            (*interpreter, "-c", program, "--one-uid", os.fspath(self.directory / "who")),
            (("services", self.socket),),
            {
                "CONFIGURATION_DIRECTORY": os.fspath(self.directory / "etc"),
                "CREDENTIALS_DIRECTORY": os.fspath(self.directory / "credentials"),
                "PATH": os.environ["PATH"],
                **own,
                **(environment or {}),
            },
        )
        self.log = self.directory / "log"
        self.service = Service(unit, log=self.log, notify=self.directory / "run/notify", stop_patience=10)
        self.service.open()

    async def close(self) -> None:
        if hasattr(self, "service"):
            await self.service.close()

    async def names(self, user: str = "") -> list[str]:
        return [each.name for each in (await Client(self.socket).call(ListServices(user))).services]

    async def call(
        self, name: str, body: bytes = b"", suffix: str = "", params: dict[str, str] | None = None, **more: str
    ) -> tuple[ServiceAnswer, bytes]:
        """The answer and its body, which has exactly the size that is told."""
        up, down = os.memfd_create("up"), os.memfd_create("down")
        try:
            os.write(up, body)
            call = CallService(name=name, params={**(params or {}), **more}, path_suffix=suffix)
            answer = await Client(self.socket).call(call, descriptors=[up, down], timeout=45)
            data = os.pread(down, 20 << 20, 0)
            assert len(data) == answer.size
            return answer, data
        except Exception:
            assert os.fstat(down).st_size == 0
            raise
        finally:
            os.close(up)
            os.close(down)

    async def logged(self, text: str) -> str:
        async with asyncio.timeout(5):
            while text not in self.log.read_text():
                await asyncio.sleep(0.02)
        return self.log.read_text()

    def peak(self) -> int:
        """The most memory that the daemon has had, in KiB."""
        with suppress(FileNotFoundError):
            lines = Path(f"/proc/{self.service.pid}/status").read_text().splitlines()
            return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
        raise AssertionError("it doesn't run")
