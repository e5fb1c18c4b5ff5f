"""kai.Bot: what other units may ask of the bot."""

from __future__ import annotations

from collections.abc import Callable

from kai.bot.lanes import Lanes
from kai.bot.message import bodies
from kai.bot.outbox import Outbox
from kai.bot.sender import Sender
from kai.config import Config
from kai.interfaces import BotStatus, Deliver, Status, Stored
from kai.lib.peers import SCHEDULER, Peer
from kai.lib.server import Handlers
from kai.lib.varlink import InvalidParameter, PermissionDenied

LONGEST_KEY = 200


class Service:
    """Answers on bot.sock."""

    def __init__(
        self, config: Callable[[], Config], lanes: Lanes, outbox: Outbox, sender: Sender, state: Callable[[], str]
    ) -> None:
        self.config, self.lanes, self.outbox, self.sender, self.state = config, lanes, outbox, sender, state
        self.name = ""

    def handlers(self) -> Handlers:
        return {Deliver: self.deliver, Status: self.status}

    async def deliver(self, peer: Peer, call: Deliver) -> Stored:
        """On disk when this returns; the same key of the same caller again gives the same row."""
        if peer.user and peer.user != call.user:
            raise PermissionDenied(f"{peer} may deliver to its own user only, not to {call.user}")
        user = self.config().user(call.user)
        if user is None:
            raise InvalidParameter(f"user: nobody is named {call.user}")
        if not call.key or len(call.key) > LONGEST_KEY or not call.text.strip():
            raise InvalidParameter(f"key: 1 to {LONGEST_KEY} characters, text: not empty")
        caller = peer.user or (SCHEDULER if SCHEDULER in peer.roles else "operator")
        first, rows = await self.outbox.deliver(caller, call.key, user.name, user.telegram_id, bodies(call.text))
        self.sender.put(*rows)
        return Stored(id=first)

    async def status(self, peer: Peer, call: Status) -> BotStatus:
        running, queued = self.lanes.counts()
        counts = await self.outbox.counts()
        return BotStatus(
            name=self.name,
            state=self.state(),
            users=len(self.config().users),
            queued=queued,
            running=running,
            unsent=counts.get("stored", 0) + counts.get("sending", 0),
        )
