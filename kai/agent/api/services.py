"""Services over the API: kai-proxy calls them, with keys that never come here."""

from __future__ import annotations

import asyncio
import base64
import os
from pathlib import Path
from typing import Any

import msgspec

from kai.agent.api.fields import Body, read
from kai.agent.api.http import Request
from kai.agent.setup import Setup
from kai.interfaces import CallService, ListServices
from kai.lib.client import Client

SECONDS, SECONDS_CALL = 10.0, 40.0
"""For a list; for a call, which kai-proxy gives up after 30."""
AT_ONCE = 2
"""Calls at a time: each may take 10 MiB."""
Plain = str | int | float | bool


class ServiceCall(Body):
    """POST /api/services/NAME. `body` is any JSON."""

    body: msgspec.Raw = msgspec.Raw(b"")
    params: dict[str, Plain] = msgspec.field(default_factory=dict)
    path_suffix: str = ""


class Services:
    """Those that one user may call."""

    def __init__(self, proxy: Path, setup: Setup) -> None:
        self.proxy, self.setup = Client(proxy), setup
        self.calls = asyncio.Semaphore(AT_ONCE)

    async def list(self, request: Request) -> Any:
        found = await self.proxy.call(ListServices(self.setup.user.name), timeout=SECONDS)
        return [
            {
                "name": each.name,
                "description": each.description,
                "notes": each.notes,
                "method": each.method,
                "url": each.url,
                "allow_path_suffix": each.suffix,
            }
            for each in found.services
        ]

    async def call(self, request: Request, name: str) -> Any:
        asked = await read(request, ServiceCall, self.setup.user)
        params = {key: _text(value) for key, value in asked.params.items()}
        call = CallService(name=name, params=params, path_suffix=asked.path_suffix)
        async with self.calls:
            up, down = _memory("kai-request"), _memory("kai-answer")
            try:
                _fill(up, b"" if bytes(asked.body) == b"null" else bytes(asked.body))
                answer = await self.proxy.call(call, descriptors=[up, down], timeout=SECONDS_CALL)
                data = os.pread(down, answer.size, 0)
            finally:
                os.close(up)
                os.close(down)
        return {"status": answer.status, **_shown(data, answer.type)}


def _shown(data: bytes, kind: str) -> dict[str, Any]:
    """An answer as JSON has it: a value, a text, or base64 with a word about that."""
    kind = kind.partition(";")[0].strip().lower()
    if kind.endswith(("/json", "+json")):
        try:
            msgspec.json.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pass
        else:
            return {"body": msgspec.Raw(data)}
    try:
        return {"body": data.decode()}
    except UnicodeDecodeError:
        return {"body": base64.b64encode(data).decode(), "encoding": "base64", "content_type": kind}


def _text(value: Plain) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _memory(name: str) -> int:
    return os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def _fill(descriptor: int, data: bytes) -> None:
    os.write(descriptor, data)
    os.lseek(descriptor, 0, os.SEEK_SET)
