"""kai-proxy behind its socket, started by the first connection as systemd would."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import httpx

from kai.demo.launcher import python
from kai.demo.service import Service, Unit

KEY = "sk-ant-the-true-key-0123456789"
USERS = {"users": [{"telegram_id": 1, "name": "alice"}]}


class Door:
    """kai-proxy behind its socket."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.socket = directory / "run/model.sock"

    def configure(self, url: str, *, key: str | None = KEY, users: object = USERS) -> None:
        for name in ("etc", "credentials", "run"):
            (self.directory / name).mkdir(exist_ok=True)
        (self.directory / "etc/kai.yaml").write_text(json.dumps({"proxy": {"model": {"url": url}}}))
        (self.directory / "etc/users.yaml").write_text(json.dumps(users))
        if key is not None:
            (self.directory / "credentials/kai-model-key").write_text(f"{key}\n")

    def listen(self, *arguments: str, idle: float = 30) -> None:
        interpreter, environment = python()
        program = f"import kai.proxy.main as m; m.IDLE = m.IDLE_BROKEN = {idle}; m.main()"
        unit = Unit(
            "kai-proxy",
            (*interpreter, "-c", program, *arguments),
            (("model", self.socket),),
            {
                "CONFIGURATION_DIRECTORY": os.fspath(self.directory / "etc"),
                "CREDENTIALS_DIRECTORY": os.fspath(self.directory / "credentials"),
                "PATH": os.environ["PATH"],
                **environment,
            },
        )
        self.log = self.directory / "log"
        self.service = Service(unit, log=self.log, notify=self.directory / "run/notify", stop_patience=10)
        self.service.open()

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=os.fspath(self.socket)), base_url="http://model.invalid", timeout=20
        )

    async def logged(self, text: str) -> str:
        async with asyncio.timeout(5):
            while text not in self.log.read_text():
                await asyncio.sleep(0.02)
        return self.log.read_text()
