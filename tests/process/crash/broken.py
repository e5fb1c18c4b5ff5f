"""Rules of the delivery contract, each broken on purpose in a daemon: a sweep that sees nothing then would see nothing.

Each function changes the process that calls it, before its daemon begins.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

import kai.agent.turns
import kai.bot.outbox
import kai.bot.polling


def acknowledge_first() -> None:
    """The bot tells Telegram that it has received what isn't on disk yet."""
    receive = kai.bot.polling.Polling._receive

    async def wrong(self: Any, updates: list[dict[str, Any]], offset: int) -> None:
        await self.api.bot.do_api_request("getUpdates", {"offset": offset, "timeout": 0, "limit": 1})
        await receive(self, updates, offset)

    kai.bot.polling.Polling._receive = wrong  # type: ignore[method-assign]


def forget_running_turns() -> None:
    """A supervisor that starts forgets what its predecessor had begun, so that it runs again."""
    opened = kai.agent.turns.Turns.open

    async def wrong(self: Any, home: str) -> None:
        await self.store.write(lambda db: db.execute("DELETE FROM turns WHERE state = 'running'"))
        await opened(self, home)

    kai.agent.turns.Turns.open = wrong  # type: ignore[method-assign]


def send_again() -> None:
    """The bot sends again what Telegram may have taken."""
    recover = kai.bot.outbox.Outbox.recover

    async def wrong(self: Any) -> Any:
        def work(db: sqlite3.Connection) -> None:
            db.execute("UPDATE outbox SET state = 'stored' WHERE state = 'sending'")

        await self.store.write(work)
        return await recover(self)

    kai.bot.outbox.Outbox.recover = wrong  # type: ignore[method-assign]


def forget_answers() -> None:
    """The bot counts an answer as delivered before it was sent."""
    answer = kai.bot.outbox.Outbox.answer

    async def wrong(self: Any, *arguments: Any, **named: Any) -> Any:
        stored = await answer(self, *arguments, **named)
        await self.store.write(lambda db: db.execute("UPDATE outbox SET state = 'sent' WHERE state = 'stored'"))
        await self.store.write(lambda db: db.execute("UPDATE inbox SET state = 'delivered' WHERE state = 'answered'"))
        return stored

    kai.bot.outbox.Outbox.answer = wrong  # type: ignore[method-assign]


RULES: dict[str, Callable[[], None]] = {
    rule.__name__: rule for rule in (acknowledge_first, forget_running_turns, send_again, forget_answers)
}
