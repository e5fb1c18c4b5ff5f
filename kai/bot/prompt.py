"""From inbox rows to what the agent is given: the words of a turn, what they refer to, and its files."""

from __future__ import annotations

import os
from collections.abc import Iterable

from kai.bot.content import continuation, decode, summary, words
from kai.bot.download import Download, NotFetched
from kai.bot.inbox import Inbox
from kai.bot.split import LIMIT
from kai.bot.tables import InboxRow
from kai.bot.text import length
from kai.interfaces import Part

__all__ = ["NotFetched", "Prompt", "close"]


class Prompt:
    """Makes the parts of a turn; `download` fetches its files from Telegram."""

    def __init__(self, inbox: Inbox, download: Download) -> None:
        self.inbox, self.download = inbox, download

    async def parts(self, row: InboxRow) -> tuple[list[Part], list[int]]:
        """A turn's parts and the descriptors of its files, which the caller closes.

        What may come is waited for. Raises NotFetched for a file that can't be had for good.
        """
        if row.target is not None:
            return [Part(kind="text", text=await self._continuation(row.target))], []
        rows = [row, *await self.inbox.members(row)]
        parts: list[Part] = []
        descriptors: list[int] = []
        gap = ""
        try:
            for each in rows:
                content = decode(each.content)
                _add(parts, gap, words(each.text, content))
                gap = _gap(each.text) if row.bundle == "long" else "\n\n"
                for file in content.files:
                    descriptors.append(await self.download.fetch(file))
                    parts.append(Part("file", name=file.name, mime=file.mime, descriptor=len(descriptors) - 1))
        except BaseException:
            close(descriptors)
            raise
        return parts, descriptors

    async def _continuation(self, target: int) -> str:
        """What a pressed Continue says; a continuation that was cut off too goes on from the first message."""
        row = await self.inbox.find(target)
        while row is not None and row.target is not None:
            row = await self.inbox.find(row.target)
        if row is None:  # forgotten after its seven days, while the button stood in the chat
            return continuation("", "")
        rows = [row, *await self.inbox.members(row)]
        return continuation(row.turn, "\n\n".join(summary(each.text, decode(each.content)) for each in rows))


def close(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _add(parts: list[Part], gap: str, text: str) -> None:
    """Neighbouring texts are one: a bundle reads like one message."""
    if text and parts and parts[-1].kind == "text":
        parts[-1] = Part(kind="text", text=f"{parts[-1].text}{gap}{text}")
    elif text:
        parts.append(Part(kind="text", text=text))


def _gap(text: str) -> str:
    """What stood between a part of a long text and the next one, as far as can be told: an app that cuts takes the
    blank or the line end away where it finds one, and else cuts at the limit."""
    return "" if length(text) >= LIMIT else "\n"
