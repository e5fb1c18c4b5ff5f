"""Messages and files to the user's own chat."""

from __future__ import annotations

import asyncio
import os
import uuid
from typing import Any

from kai.agent import sending
from kai.agent.api.fields import Body, read
from kai.agent.api.http import Refused, Request
from kai.agent.files import safe_name
from kai.agent.supervisor import Supervisor
from kai.interfaces import Deliver
from kai.lib.varlink import InvalidParameter

LONGEST_TEXT = 40_000
"""Characters: ten of Telegram's messages."""
LONGEST_CAPTION = 4096
AT_ONCE = 2
"""Files that are taken in at a time; each is in memory until the bot has stored it."""


class Text(Body):
    """POST /api/send-message."""

    text: str


class FilePath(Body):
    """POST /api/send-file."""

    path: str
    caption: str = ""


class Messages:
    """One user's chat."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.supervisor = supervisor
        self.files = asyncio.Semaphore(AT_ONCE)

    async def text(self, request: Request) -> Any:
        text = (await read(request, Text, self.supervisor.setup.user)).text
        if not text.strip():
            raise Refused(400, "text: empty, expected what is to be said")
        if len(text) > LONGEST_TEXT:
            raise Refused(400, f"text: {len(text)} characters, expected at most {LONGEST_TEXT}; send a file instead")
        call = Deliver(key=f"message:{uuid.uuid4().hex}", user=self.supervisor.setup.user.name, text=text)
        await sending.deliver(self.supervisor.bot, call)
        return {"status": "sent"}

    async def file(self, request: Request) -> Any:
        """A path in JSON, or the file itself with its name in the query."""
        async with self.files:
            if request.type == "application/json":
                return await self._by_path(await read(request, FilePath, self.supervisor.setup.user))
            return await self._by_bytes(request)

    async def _by_path(self, asked: FilePath) -> Any:
        _check_caption(asked.caption)
        try:
            sent = await self.supervisor.send(asked.path, asked.caption)
        except sending.Unsendable as fault:
            raise Refused(fault.status, str(fault)) from None
        return {"status": "sent", "file": sent.name}

    async def _by_bytes(self, request: Request) -> Any:
        name = safe_name(request.query.get("name", ""))
        if "name" not in request.query:
            raise Refused(400, "name: missing, expected ?name=FILE in the address, or JSON with a path")
        caption = request.query.get("caption", "")
        _check_caption(caption)
        copy = os.memfd_create("kai-file", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            if not await request.into(copy, sending.MOST):
                raise Refused(400, "body: empty, expected the file's bytes")
            sending.seal(copy)
            await sending.deliver_file(self.supervisor.bot, self.supervisor.setup.user.name, name, caption, copy)
        finally:
            os.close(copy)
        return {"status": "sent", "file": name}


def _check_caption(caption: str) -> None:
    if len(caption) > LONGEST_CAPTION:
        raise InvalidParameter(f"caption: {len(caption)} characters, expected at most {LONGEST_CAPTION}")
