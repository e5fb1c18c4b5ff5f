"""Asks for codes and has them checked: a challenge for each user who is locked out, and the one message that it holds.

A held message is on disk as held; only a right code makes it wait like any other, and after some time it is given up.
The verifier is kai-totp(8). Whatever it says but `ok`, and whatever goes wrong on the way, leaves the gate closed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

from telegram.error import RetryAfter, TelegramError

from kai.bot import notices
from kai.bot.api import Api, seconds
from kai.bot.content import decode
from kai.bot.gate import BUTTON, DOUBTFUL, FORGOTTEN, Gate
from kai.bot.inbox import CODE, LOCKED, Inbox
from kai.bot.message import Body, plain
from kai.bot.outbox import Outbox
from kai.bot.sender import Sender
from kai.bot.tables import InboxRow
from kai.bot.tools import shorten
from kai.config import Config
from kai.interfaces import Doubtful, Verdict, Verify
from kai.lib import log
from kai.lib.client import Client, delays
from kai.lib.schedules import span, when, zone
from kai.lib.store import StoreError
from kai.lib.varlink import Fault, Unavailable

PATIENCE = 10.0
"""Seconds for an answer of the verifier."""
DELETIONS, RECENT = 12, 600.0
"""Tries to delete a code's message, and the seconds after it for which a restarted bot tries again."""
QUOTED, ASKED = 100, 1500
"""Characters of a held message that are quoted when it is given up, and when a code is asked for."""
SETTLED = 5.0
"""Seconds for which the parts of a held message are waited for, at the most."""
logger = logging.getLogger(__name__)


Work = Callable[[], Coroutine[Any, Any, None]]


class Denied(Exception):
    """Whether a code is right can't be told; the message says why, for the journal and admins."""


class Challenge:
    """A code was asked for; `row` is what it lets through, `ends` a moment of time.monotonic()."""

    def __init__(self, origin: InboxRow, row: InboxRow | None, ends: float) -> None:
        self.origin, self.row, self.ends = origin, row, ends
        self.told = False


class Unlock:
    """All users' challenges. `take` gets what a code has let through; `spawn` runs something beside the rest."""

    def __init__(
        self,
        gate: Gate,
        config: Callable[[], Config],
        api: Api,
        inbox: Inbox,
        outbox: Outbox,
        sender: Sender,
        verifier: Path,
        *,
        take: Callable[[list[InboxRow]], None],
        spawn: Callable[[Coroutine[Any, Any, object]], None],
    ) -> None:
        self.gate, self.config, self.api, self.inbox, self.outbox, self.sender = (
            gate, config, api, inbox, outbox, sender,
        )  # fmt: skip
        self.totp, self.take, self.spawn = Client(verifier), take, spawn
        self.challenges: dict[str, Challenge] = {}
        self.guards: dict[str, asyncio.Lock] = {}

    def takes(self, row: InboxRow, *, rejoin: bool = False) -> bool:
        """Whether a row that was stored is worked on here and nowhere else."""
        if row.state == "held":
            self._do(row, partial(self._challenge, row, row))
        elif row.bundle == CODE and row.state == "received":
            code = self.gate.codes.pop(row.update_id, None)
            self._do(row, partial(self._forgotten, row) if rejoin or code is None else partial(self._check, row, code))
        elif row.error == LOCKED and row.state == "refused":
            self._do(row, partial(self._tell_once, row))
        else:
            if row.error == BUTTON and not rejoin:
                self._do(row, partial(self._challenge, row, None))
            elif row.error == DOUBTFUL and not rejoin:
                self._do(row, partial(self._alarm, row, f"{self.gate.enrolled}: who is enrolled can't be read"))
            return False
        return True

    async def resume(self) -> None:
        """After a start: what was held is still held, for as long as it was to be, and asks again."""
        for row in await self.inbox.held():
            age = time.time() - row.arrived
            left = self.config().kai.totp.challenge - max(0.0, age)  # a clock that was set back gives no more
            self._do(row, partial(self._challenge, row, row, left=left))
        for row in await self.inbox.codes(time.time() - RECENT):  # this process's predecessor may have ended before it
            self.spawn(self._delete(row))

    def forget(self, user: str) -> None:
        """This name stands for somebody else now; what was held of it is given up with his other rows."""
        self.gate.forget(user)
        self.challenges.pop(user, None)

    def _do(self, row: InboxRow, work: Work) -> None:
        self.spawn(self._one(row, work))

    async def _one(self, row: InboxRow, work: Work) -> None:
        """One thing at a time for each user, in order of arrival. A fault of the disk opens nothing."""
        with log.fields(KAI_USER=row.user, KAI_UPDATE=str(row.update_id)):
            async with self.guards.setdefault(row.user, asyncio.Lock()):
                try:
                    await work()
                except StoreError as error:
                    logger.error("the gate of %s stays as it is: %s", row.user, error)

    # ---- asking ----

    async def _challenge(self, origin: InboxRow, row: InboxRow | None, *, left: float | None = None) -> None:
        """Ask for a code, `row` being held until it comes; one that asks without a row doesn't ask twice."""
        user, standing = origin.user, self.gate.standing(origin.user)
        if standing == "open":  # a code came while this was stored
            if released := await self._released(user, origin.chat):
                self.take([released])
            return
        if standing != "closed" or (left is not None and left <= 0):  # nothing runs since the gate has gone meanwhile
            await self._expire(row, "No code came in time")
            return
        if row is None and user in self.challenges:
            return
        try:
            verdict = await self._ask(user)
        except Denied as fault:
            await self._deny(origin, row, fault)
            return
        if verdict.state == "locked":
            words = self._locked(user, verdict.until)
            await self._expire(row, words)
            if row is None:
                self.sender.put(*await self.outbox.note(origin, "denied", plain(f"🔒 {words}.")))
            return
        shown = f"\n\nHeld until then: {_whole(row, await self._parts(row))}" if row else ""
        left = self.config().kai.totp.challenge if left is None else left
        challenge = self.challenges[user] = Challenge(origin, row, time.monotonic() + left)
        self.gate.asked.add(user)
        self.spawn(self._watch(challenge))  # first: what can't be told is given up too
        tries = " A wrong one locks you out." if verdict.remaining == 1 else ""
        words = f"🔒 Send the six digits of your authenticator within {span(round(left))}.{tries}{shown}"
        self.sender.put(*await self.outbox.note(origin, "challenge", plain(words)))

    async def _parts(self, row: InboxRow) -> list[InboxRow]:
        """The parts of what is held. None joins it any more: a code lets nothing through that wasn't shown."""
        end = time.monotonic() + SETTLED
        while row.bundle and time.monotonic() < end:
            left = await self.inbox.settling(row)
            if left <= 0:
                break
            await asyncio.sleep(min(left, 1.0))
        return await self.inbox.settle(row)

    async def _watch(self, challenge: Challenge) -> None:
        await asyncio.sleep(max(0.0, challenge.ends - time.monotonic()))
        await self._one(challenge.origin, partial(self._end_of, challenge))

    async def _end_of(self, challenge: Challenge) -> None:
        if self.challenges.get(challenge.origin.user) is challenge:
            self._over(challenge.origin.user)
            await self._expire(challenge.row, "No code came in time")

    async def _tell_once(self, row: InboxRow) -> None:
        """What isn't taken beside the one that is held is told of once for each challenge."""
        challenge = self.challenges.get(row.user)
        if challenge is None or not challenge.told:
            words = "🔒 Locked: one message waits for your code already, others aren't taken. Send it again then."
            self.sender.put(*await self.outbox.note(row, "locked", plain(words)))
        if challenge:
            challenge.told = True

    # ---- checking ----

    async def _check(self, row: InboxRow, code: str) -> None:
        self.spawn(self._delete(row))
        if self.gate.standing(row.user) in ("open", "free"):
            await self._say(row, "🔓 You are let in already, this code was not taken.")
            return
        if not code:
            await self._say(row, "🔒 A code has six digits. This one hasn't, and isn't counted.")
            return
        try:
            marker = self.gate.marker(row.user)
            verdict = await self._ask(row.user, code)
            if verdict.state == "ok":
                await self._open(row, marker)
                return
        except OSError as error:
            verdict, fault = Verdict("off"), Denied(f"{self.gate.enrolled}: {error.strerror or error}")
        except Denied as denied:
            verdict, fault = Verdict("off"), denied
        challenge = self.challenges.get(row.user)
        held = challenge.row if challenge else None
        if verdict.state == "bad":
            more = "1 more wrong one locks" if verdict.remaining == 1 else f"{verdict.remaining} more wrong ones lock"
            await self._say(row, f"🔒 Wrong code; {more} you out.")
        elif verdict.state == "locked":
            words = self._locked(row.user, verdict.until)
            await self._expire(held, words)
            self._over(row.user)
            await self._say(row, f"🔒 {words}.")
            self.sender.put(*await self.outbox.tell(notices.of_lock(self.config(), row.user, verdict.until)))
        else:
            await self._deny(row, held, fault)
            self._over(row.user)

    async def _open(self, row: InboxRow, marker: tuple[int, int] | None) -> None:
        """The code was right: what was held goes on, and what comes passes."""
        if not self.gate.let_in(row.user, marker):
            raise Denied(f"{row.user} was enrolled anew while a code was checked")
        try:
            released = await self._released(row.user, row.chat)
        except StoreError:
            self.gate.forget(row.user)
            raise
        self._over(row.user)
        logger.info("%s showed a right code", row.user)
        idle = span(self.config().kai.totp.idle)
        try:
            await self._say(row, f"🔓 Let in. It locks again after {idle} without a message from you.")
        finally:
            if released:  # it waits on disk already: it must not run at the next start, when nobody is let in
                self.take([released])

    async def _released(self, user: str, chat: int) -> InboxRow | None:
        """What was held of this account waits like any other message now. What should be given up by now is."""
        since = time.time() - self.config().kai.totp.challenge - PATIENCE
        released = await self.inbox.release(user, chat, since)
        for row in await self.inbox.held():
            if (row.user, row.chat) == (user, chat):
                await self._expire(row, "No code came in time")
        return released

    async def _forgotten(self, row: InboxRow) -> None:
        self.spawn(self._delete(row))
        self.sender.put(*await self.outbox.reply(row, [plain(FORGOTTEN)]))

    async def _ask(self, user: str, code: str = "") -> Verdict:
        """What the verifier says of a user who is enrolled. Raises Denied for what can't be relied on."""
        try:
            verdict = await self.totp.call(Verify(user=user, code=code), timeout=PATIENCE)
        except Doubtful as fault:
            raise Denied(str(fault)) from None
        except (Unavailable, Fault, OSError) as error:
            raise Denied(f"kai-totp can't be asked: {error}; see `systemctl status kai-totp.socket`") from None
        if verdict.state == "off" or (verdict.state == "ok" and not code):
            raise Denied(f"kai-totp says {verdict.state} of {user}, who is enrolled: run `kai doctor`")
        return verdict

    # ---- what is said ----

    async def _say(self, row: InboxRow, words: str) -> None:
        """Answer a code; its row is done with then."""
        row.error = ""
        self.sender.put(*await self.outbox.reply(row, [plain(words)]))

    async def _deny(self, origin: InboxRow, row: InboxRow | None, fault: Denied) -> None:
        words = "Your code can't be checked now, so nothing is let in. The operator is told"
        await self._expire(row, words)
        if origin.bundle == CODE:
            await self._say(origin, f"🔒 {words}.")
        elif row is None:
            self.sender.put(*await self.outbox.note(origin, "denied", plain(f"🔒 {words}.")))
        await self._alarm(origin, str(fault))

    async def _alarm(self, row: InboxRow, reason: str) -> None:
        logger.error("nothing of %s is let in: %s", row.user, reason)
        self.sender.put(*await self.outbox.tell(notices.of_doubt(self.config(), row.user, reason)))

    async def _expire(self, row: InboxRow | None, why: str) -> None:
        """Give up what was held, if there is something, and say so."""
        if row is None:
            return
        words = plain(f"⌛ {why}. This was not taken, send it again: {quoted(row)}")
        try:
            self.sender.put(*await self.outbox.expire(row, words))
        except StoreError:
            self.spawn(self._expire_later(row, words))
            raise

    async def _expire_later(self, row: InboxRow, words: Body) -> None:
        """The disk was full: what nobody may let through any more doesn't stay as if it waited."""
        for delay in delays():
            await asyncio.sleep(delay)
            try:
                self.sender.put(*await self.outbox.expire(row, words))
            except StoreError as error:
                logger.debug("%s", error)
            else:
                return

    def _locked(self, user: str, until: float) -> str:
        person = self.config().user(user)
        name = str(self.config().effective(person, "timezone")[0]) if person else "UTC"
        return f"Locked after too many wrong codes, until {when(until, zone(name), time.time())} ({name})"

    def _over(self, user: str) -> None:
        self.challenges.pop(user, None)
        self.gate.asked.discard(user)

    async def _delete(self, row: InboxRow) -> None:
        """Take a code's message out of the chat; where that can't be, its user is told to."""
        for number, delay in enumerate(delays()):
            try:
                await self.api.delete(row.chat, row.message)
            except RetryAfter as error:
                await asyncio.sleep(min(seconds(error), PATIENCE))
            except TelegramError as error:
                if "not found" in str(error):
                    return
                logger.info("the message of a code stays: %s", error)
                await asyncio.sleep(delay)
            else:
                return
            if number + 1 >= DELETIONS:
                break
        words = "🔒 Telegram didn't let me delete your code's message: please delete it yourself."
        try:
            self.sender.put(*await self.outbox.note(row, "undeleted", plain(words)))
        except StoreError as fault:
            logger.error("%s", fault)


def quoted(row: InboxRow, most: int = QUOTED) -> str:
    """What is held, in words: its files, and at most so many characters of its text."""
    text = " ".join(row.text.split())
    files = [f"{'an' if file.kind[0] in 'aeiou' else 'a'} {file.kind}" for file in decode(row.content).files]
    words = f"“{shorten(text, most)}”" if text and most else ""
    return " with ".join(part for part in (" and ".join(files), words) if part) or "a message"


def _whole(row: InboxRow, parts: list[InboxRow]) -> str:
    """What is held, as its challenge shows it: whose it is, its user must see before he sends a code for it."""
    lines, left, hidden = [], ASKED, 0
    for each in (row, *parts):
        lines.append(quoted(each, left))
        size = len(" ".join(each.text.split()))
        hidden += max(size - left, 0)
        left = max(left - size, 0)
    more = f"\n⚠ {hidden} more characters of it don't fit here: send a code only if you wrote them." if hidden else ""
    return "\n".join(lines) + more
