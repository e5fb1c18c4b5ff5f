"""kai.Bot.Notify: notices of the units that hear from outside. What they pass on is a stranger's word.

A piece is text, whatever it holds: its link stands beside it. Telegram makes commands and mentions of what
looks like them by itself; a stranger's shall be none, or a tap would send the command.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import urlsplit

from kai import interfaces
from kai.bot.message import Body, body
from kai.bot.outbox import Outbox
from kai.bot.sender import Sender
from kai.bot.split import LIMIT, split
from kai.bot.text import Span, assemble, clean
from kai.config import Config
from kai.interfaces import Notify, Stored
from kai.lib.peers import GITHUB, WEBHOOK, Peer
from kai.lib.store import StoreError
from kai.lib.varlink import Busy, InvalidParameter

LONGEST_KEY = 200
MOST_SPANS = 200
LONGEST_URL = 2000
_CUT = "…"
_TAPPED = re.compile(r"(?<![\w/@<>])([/@])(?=[A-Za-z])")
_JOINER = "\u2060"


class Notices:
    """Stores notices and has them sent."""

    def __init__(self, config: Callable[[], Config], outbox: Outbox, sender: Sender) -> None:
        self.config, self.outbox, self.sender = config, outbox, sender

    async def notify(self, peer: Peer, call: Notify) -> Stored:
        """On disk when this returns; the same key of the same caller again gives the same row."""
        user = self.config().user(call.user)
        if user is None:
            raise InvalidParameter(f"user: nobody is named {call.user}")
        if call.chat and call.chat not in user.notify_chats:
            raise InvalidParameter(f"chat: {call.chat} is not one of {user.name}'s notify_chats")
        if not call.key or len(call.key) > LONGEST_KEY:
            raise InvalidParameter(f"key: expected 1 to {LONGEST_KEY} characters")
        if len(call.spans) > MOST_SPANS:
            raise InvalidParameter(f"spans: {len(call.spans)}, {MOST_SPANS} are the most")
        shown = composed(call.spans)
        caller = GITHUB if peer.roles == {GITHUB} else WEBHOOK
        try:
            first, rows = await self.outbox.deliver(caller, call.key, user.name, call.chat or user.telegram_id, [shown])
        except StoreError as error:
            raise Busy(str(error)) from None
        self.sender.put(*rows)
        return Stored(id=first)


def composed(pieces: list[interfaces.Span]) -> Body:
    """One message of the pieces, cut to what fits. Raises InvalidParameter: nothing is visible, or a url is none."""
    text, spans = "", []
    for piece in pieces:
        start, shown = len(text), clean(piece.text)
        if not (piece.url or piece.code):
            shown = _TAPPED.sub(rf"\1{_JOINER}", shown)
        text += shown
        if piece.url:
            spans.append(Span("text_link", start, len(text), url=_checked(piece.url)))
        if piece.bold:
            spans.append(Span("bold", start, len(text)))
        if piece.code:
            spans.append(Span("code", start, len(text)))
    cut = split(assemble(text, spans), LIMIT - len(_CUT))
    if not cut:
        raise InvalidParameter("spans: there is nothing to see")
    first = body(cut[0])
    return first if len(cut) == 1 else Body(first.text + _CUT, first.entities)


def _checked(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme != "https" or not parts.hostname or len(url) > LONGEST_URL or not url.isprintable() or " " in url:
        raise InvalidParameter("spans: a url isn't an https:// address")
    return url
