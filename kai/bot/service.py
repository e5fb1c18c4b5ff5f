"""kai.Bot: what other units may ask of the bot."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress

from kai.bot.inbox import Inbox
from kai.bot.jobnote import cancellable
from kai.bot.lanes import Lanes
from kai.bot.message import File, bodies, captioned
from kai.bot.notify import Notices
from kai.bot.outbox import Outbox
from kai.bot.queue import QueueDesk
from kai.bot.sender import Sender
from kai.bot.spool import Spool, Unfit, display_name
from kai.config import Config
from kai.interfaces import Attachment, BotStatus, Deliver, Notify, Status, Stored, Taken, TakeUpdate
from kai.lib.peers import SCHEDULER, Peer
from kai.lib.server import Handlers
from kai.lib.store import StoreError
from kai.lib.varlink import Busy, InvalidParameter, PermissionDenied

LONGEST_KEY = 200
LARGEST_JOB = 10**18 - 1


class Service:
    """Answers on bot.sock."""

    def __init__(
        self,
        config: Callable[[], Config],
        inbox: Inbox,
        outbox: Outbox,
        lanes: Lanes,
        sender: Sender,
        spool: Spool,
        state: Callable[[], str],
        let_in: Callable[[], list[str]],
        take_update: Callable[[Peer, TakeUpdate], Awaitable[Taken]],
    ) -> None:
        self.config, self.lanes, self.outbox, self.sender, self.spool = config, lanes, outbox, sender, spool
        self.state, self.let_in, self.take_update = state, let_in, take_update
        self.desk = QueueDesk(config, inbox, outbox, lanes, sender)
        self.notices = Notices(config, outbox, sender)
        self.name = ""

    def handlers(self) -> Handlers:
        return {
            Deliver: self.deliver,
            TakeUpdate: self.take_update,
            Notify: self.notices.notify,
            Status: self.status,
            **self.desk.handlers(),
        }

    async def deliver(self, peer: Peer, call: Deliver, descriptors: list[int]) -> Stored:
        """On disk when this returns; the same key of the same caller again gives the same row."""
        if peer.user and peer.user != call.user:
            raise PermissionDenied(f"{peer} may deliver to its own user only, not to {call.user}")
        if call.job and SCHEDULER not in peer.roles:
            raise PermissionDenied(f"{peer} may not name a job: that is the scheduler's")
        if not 0 <= call.job <= LARGEST_JOB:
            raise InvalidParameter(f"job: expected a job's number, got {call.job}")
        user = self.config().user(call.user)
        if user is None:
            raise InvalidParameter(f"user: nobody is named {call.user}")
        if not call.key or len(call.key) > LONGEST_KEY:
            raise InvalidParameter(f"key: expected 1 to {LONGEST_KEY} characters")
        if not call.text.strip() and not call.file:
            raise InvalidParameter("text: expected some, or a file")
        caller = peer.user or (SCHEDULER if SCHEDULER in peer.roles else "operator")
        file = await self._spooled(call.file, descriptors) if call.file else None
        messages = captioned(call.text, file) if file else bodies(call.text)
        if call.job:
            messages = cancellable(messages, call.job)
        try:
            first, rows = await self.outbox.deliver(caller, call.key, user.name, user.telegram_id, messages)
        except StoreError as error:
            if file:
                await self._let_go(file)
            raise Busy(str(error)) from None
        if file and not rows:  # the same key again
            self.spool.remove(file.spool)
        self.sender.put(*rows)
        return Stored(id=first)

    async def _let_go(self, file: File) -> None:
        """Remove what could not be stored as a row, unless it was; what stays is swept at the next start."""
        with suppress(StoreError):
            if file.spool not in await self.outbox.spooled():
                self.spool.remove(file.spool)

    async def _spooled(self, attachment: Attachment, descriptors: list[int]) -> File:
        if not 0 <= attachment.descriptor < len(descriptors):
            raise InvalidParameter(f"file.descriptor: {attachment.descriptor} of {len(descriptors)} that came")
        name = display_name(attachment.name)
        try:
            taken = await self.spool.take(descriptors[attachment.descriptor])
        except Unfit as error:
            raise InvalidParameter(f"file: {name}: {error}") from None
        except OSError as error:
            raise Busy(f"{name} can't be stored now: {error.strerror or error}") from None
        return File(name, taken.kind, spool=taken.spool)

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
            dead=counts.get("dead", 0) + counts.get("unknown", 0),
            let_in=self.let_in(),
        )
