"""Accepting: whether a delivery is a new one, and when it counts as taken.

What is accepted stands in the spool until it is delivered, and in the records after that: one of the two knows its id
at any moment, whatever ends this process in between.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from kai.webhook.records import Records
from kai.webhook.spool import Head, Incoming, Spool, explain, id_of


class Intake:
    """`accepted` is called with the name of each delivery that was, `again` when storing works that didn't.

    `last` is the head of the newest, `trouble` why nothing can be stored.
    """

    def __init__(
        self, spool: Spool, records: Records, accepted: Callable[[str], None], again: Callable[[], None]
    ) -> None:
        self.spool, self.records, self.accepted, self.again = spool, records, accepted, again
        self.coming: dict[str, asyncio.Future[None]] = {}
        self.waiting = {id_of(name) for name in spool.names}
        self.trouble = ""
        self.last: Head | None = None

    def open(self) -> None:
        """Let go of what is done with and still stands in the spool, as after a kill. Raises OSError."""
        for name in [name for name in self.spool.names if id_of(name) in self.records.seen]:
            self.spool.remove(name)
            self.waiting.discard(id_of(name))

    def begin(self, head: Head) -> Incoming:
        """Raises Full, which is an OSError."""
        try:
            return self.spool.begin(head)
        except OSError as error:
            self.unwritable(error)
            raise

    def unwritable(self, error: OSError) -> str:
        """Why nothing can be stored now, in words."""
        self.trouble = f"nothing can be stored: {self.spool.path}: {explain(error)}"
        return self.trouble

    async def accept(self, incoming: Incoming) -> bool:
        """On disk when this returns; False for one that is there already. Raises OSError."""
        head = incoming.head
        while coming := self.coming.get(head.id):  # the same one at the same time: its fate is this one's
            await asyncio.wait({coming})
        if head.id in self.waiting or head.id in self.records.seen:
            return False
        self.coming[head.id] = coming = asyncio.get_running_loop().create_future()
        try:
            await self.spool.store(incoming)
            self.waiting.add(head.id)
        finally:
            del self.coming[head.id]
            coming.set_result(None)
        self.last = head
        if self.trouble:
            self.trouble = ""
            self.again()
        self.accepted(incoming.name)
        return True

    def retry(self) -> int:
        """Take back what was given up; returns how many that are. Raises OSError."""
        count = self.spool.retry()
        self.waiting |= {id_of(name) for name in self.spool.names}
        return count

    def done(self, name: str) -> None:
        """It has left the spool."""
        self.waiting.discard(id_of(name))
