"""From the spool to the people: one after another, as they came, for as long as it takes.

A delivery leaves the spool when the bot has a notice for each recipient on disk. The bot knows a notice by the id of
its delivery, so that one which is handed over twice, because this process ended in between, is shown once. While the
bot can't be reached everything waits. What can't be delivered for a reason of its own is tried a few times, then it is
kept aside, and the admins are told.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from kai.config import Config
from kai.interfaces import Notify, Span
from kai.lib.client import Client, delays
from kai.lib.daemon import Daemon
from kai.lib.sparing import Sparing
from kai.lib.store import StoreError
from kai.lib.varlink import Busy, Fault, InvalidParameter, Misconfigured, Unavailable
from kai.webhook import notices, routing
from kai.webhook.notices import Ignored
from kai.webhook.records import Records
from kai.webhook.spool import Head, Spool, id_of
from kai.webhook.text import BadPayload, generic_text

TRIES = (5.0, 30.0, 120.0)
"""Seconds after which a delivery that failed is tried again."""
logger = logging.getLogger(__name__)


class Damaged(Exception):
    """A file of the spool can't be read."""


class Refused(Exception):
    """The bot doesn't take a notice for some of its recipients; the others have theirs."""


class Delivery:
    """One task, which runs while there is something in the spool; the daemon doesn't leave before."""

    def __init__(
        self, daemon: Daemon, config: Callable[[], Config], spool: Spool, records: Records, done: Callable[[str], None]
    ) -> None:
        self.daemon, self.config, self.spool, self.records, self.done = daemon, config, spool, records, done
        self.bot = Client(daemon.runtime_dir / "bot.sock")
        self.sparing = Sparing(logger)
        self.tried: dict[str, tuple[int, float]] = {}
        self.more = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self.trouble = ""

    def wake(self, name: str = "") -> None:
        """There is something to deliver; returns at once."""
        self.more.set()
        if self.task is None or self.task.done():
            self.task = asyncio.create_task(self._run())

    def close(self) -> None:
        if self.task:
            self.task.cancel()

    async def _run(self) -> None:
        with self.daemon.busy():
            waits = delays()
            while self.spool.names:
                self.more.clear()
                due = self._due()
                try:
                    if due:
                        await self._deliver(due)
                        waits = delays()
                        self._well()
                    else:
                        await self._wait(min(self.tried[name][1] for name in self.spool.names) - time.monotonic())
                except (Unavailable, Busy, Misconfigured, StoreError, OSError) as error:
                    self.trouble = str(error)
                    self.sparing.log("wait", logging.WARNING, "%d deliveries wait: %s", len(self.spool.names), error)
                    self._tell()
                    await asyncio.sleep(next(waits))
            self._well()

    def _due(self) -> str:
        """The oldest one that isn't waiting for another try, "" for none."""
        now = time.monotonic()
        return next((name for name in self.spool.names if self.tried.get(name, (0, 0.0))[1] <= now), "")

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(max(seconds, 0.0)):
                await self.more.wait()
        except TimeoutError:
            pass

    async def _deliver(self, name: str) -> None:
        """Raises Unavailable, Busy, Misconfigured, StoreError, OSError: then it stays, and so does everything else."""
        try:
            head, body = await self._read(name)
            await self._notify(head, body)
        except FileNotFoundError:
            logger.warning("%s: somebody has removed it", self.spool.path / name)
            self.spool.remove(name)
            self._forget(name)
            return
        except (Unavailable, Busy, Misconfigured, StoreError, OSError):
            raise
        except BadPayload as error:  # another try wouldn't help
            await self._give_up(name, str(error))
            return
        except Exception as error:
            count, _ = self.tried.get(name, (0, 0.0))
            if not isinstance(error, Fault | Refused | Damaged):
                logger.exception("delivery %s", id_of(name))
            why = str(error) or type(error).__name__
            if count >= len(TRIES):
                await self._give_up(name, why)
            else:
                logger.warning("delivery %s failed and is tried again in %g s: %s", id_of(name), TRIES[count], why)
                self.tried[name] = (count + 1, time.monotonic() + TRIES[count])
            return
        await self.records.done(head.id, head.endpoint, head.event, head.received)
        self.spool.remove(name)
        self._forget(name)

    async def _read(self, name: str) -> tuple[Head, bytes]:
        """Raises FileNotFoundError, and Damaged for what is this file's trouble alone."""
        try:
            return await asyncio.to_thread(self.spool.read, name)
        except FileNotFoundError:
            raise
        except (OSError, ValueError) as error:
            raise Damaged(f"{self.spool.path / name} can't be read: {error}") from None

    async def _notify(self, head: Head, body: bytes) -> None:
        config = self.config()
        users = {user.name: user for user in config.users}
        if head.endpoint == "generic":
            spans, names = [Span(generic_text(body))], [user.name for user in config.admins]
        else:
            notice = notices.notice(head.event, body)
            if isinstance(notice, Ignored):
                logger.info("delivery %s tells nobody anything: %s", head.id, notice.reason)
                return
            own = {
                user.name: routing.allowed(user, self.records.of(user.telegram_id).repositories)
                for user in config.users
            }
            spans, names = notice.spans, routing.recipients(notice, config, own)
        refused = []
        for name in names:
            user = users[name]
            chat = self.records.of(user.telegram_id).chat
            try:
                await self._send(head.id, name, spans, chat if chat in user.notify_chats else 0)
            except InvalidParameter as error:
                # Each reads the configuration at its own reload: the bot may not know him yet, or not any more.
                refused.append(f"the bot refuses the notice for {name}: {error}")
        if refused:
            raise Refused("; ".join(refused))
        logger.info(
            "delivery %s, %s, handed over for %s", head.id, head.event, ", ".join(names) or "nobody: there is no admin"
        )

    async def _send(self, key: str, user: str, spans: list[Span], chat: int) -> None:
        await self.bot.call(Notify(key=f"{key}/{user}", user=user, spans=spans, chat=chat))

    async def _give_up(self, name: str, why: str) -> None:
        """Keep it aside. Who is to know is told first: a kill in between tells it again, under the same key."""
        logger.error("delivery %s is given up: %s", id_of(name), why)
        text = [
            Span("⚠ A webhook delivery could not be delivered: "),
            Span(why[:300]),
            Span("\nIt is kept for 30 days; `kai webhooks` shows it, and tries it again with --retry. Its id: "),
            Span(id_of(name), code=True),
        ]
        for admin in self.config().admins:
            try:
                await self._send(f"failed/{id_of(name)}", admin.name, text, 0)
            except Fault as error:
                if isinstance(error, Busy | Misconfigured):
                    raise
                logger.error("%s is not told of it: %s", admin.name, error)
        self.spool.fail(name)
        self._forget(name)

    def _forget(self, name: str) -> None:
        self.tried.pop(name, None)
        self.done(name)

    def _well(self) -> None:
        if self.trouble:
            logger.info("deliveries go out again")
            self.trouble = ""
            self.sparing.over("wait")
        self._tell()

    def _tell(self) -> None:
        count = len(self.spool.names)
        self.daemon.status(f"{count} deliveries wait{f': {self.trouble}' if self.trouble else ''}" if count else "idle")
