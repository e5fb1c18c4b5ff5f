"""The endpoints: what a request must bring, what its body is checked against, and what is answered.

An endpoint judges a request by its head first, so that what can't be right is refused before its body comes. The body
then goes, piece by piece, into what `open` gave; `end` says what became of it.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Protocol

from kai.interfaces import TakeUpdate
from kai.lib.client import Client
from kai.lib.varlink import Fault, Unavailable
from kai.webhook.intake import Intake
from kai.webhook.secrets import Secrets, is_signed
from kai.webhook.spool import ID, Head, Incoming

LARGEST = 25 << 20
"""Bytes of a body: GitHub sends no more."""
LARGEST_UPDATE = 256 << 10
"""Bytes of an update of Telegram: messages are small, and it goes to the bot in one."""
RETRY_AFTER = 10
"""Seconds that a client is asked to wait."""
TELEGRAM_PATIENCE = 15.0
"""Seconds that the bot gets to store an update."""
_EVENT = re.compile(r"[a-z][a-z0-9_]{0,63}")
_SIGNATURE = re.compile(r"sha256=[0-9a-f]{64}")
logger = logging.getLogger(__name__)


class Answer(Exception):
    """What the client is told; raised where that is a refusal. `why` is for the journal, "" for nothing to log."""

    def __init__(self, status: int, text: str, why: str = "", headers: Mapping[str, str] | None = None) -> None:
        super().__init__(text)
        self.status, self.text, self.why, self.headers = status, text, why, dict(headers or {})


class Body(Protocol):
    """A body that is coming in."""

    def write(self, data: bytes) -> None: ...
    async def end(self) -> Answer: ...
    def close(self) -> None: ...


class Endpoint(Protocol):
    """`open` raises Answer for what the head alone rules out."""

    largest: int

    def open(self, headers: Mapping[str, str]) -> Body: ...


def busy(why: str) -> Answer:
    return Answer(503, "not now: try again later", why, {"Retry-After": str(RETRY_AFTER)})


def closed(what: str, file: str) -> Answer:
    return Answer(404, "there is nothing here", f"{what} came, and there is no secret for it: write one to {file}")


def check_json(headers: Mapping[str, str], hint: str) -> None:
    """Raises Answer for another type than JSON, and for a body that is compressed."""
    kind = headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Answer(415, f"expected Content-Type: application/json, got {kind[:80] or 'none'}: {hint}")
    if headers.get("Content-Encoding", "identity").strip().lower() != "identity":
        raise Answer(415, "a body with a Content-Encoding isn't taken: send it as it is")


class Unusable:
    """Stands for an endpoint while this unit can't work."""

    largest = LARGEST

    def __init__(self, why: str) -> None:
        self.why = why

    def open(self, headers: Mapping[str, str]) -> Body:
        raise busy(self.why)


class GitHub:
    """POST /webhook/github: signed by a secret over the raw bytes, known by X-GitHub-Delivery."""

    largest = LARGEST

    def __init__(self, intake: Intake, secrets: Secrets) -> None:
        self.intake, self.secrets = intake, secrets

    def open(self, headers: Mapping[str, str]) -> Body:
        if not self.secrets.github:
            raise closed("a webhook of GitHub's", "/etc/credstore/kai-webhook/github")
        signature = headers.get("X-Hub-Signature-256", "")
        if not _SIGNATURE.fullmatch(signature):
            what = "a malformed" if signature else "no"
            raise Answer(401, "expected X-Hub-Signature-256: enter the secret in the webhook's settings at GitHub",
                         f"a request had {what} signature")  # fmt: skip
        check_json(headers, "choose it in the webhook's settings at GitHub")
        event, delivery = headers.get("X-GitHub-Event", ""), headers.get("X-GitHub-Delivery", "")
        if not _EVENT.fullmatch(event):
            raise Answer(400, "X-GitHub-Event: expected the name of an event")
        if not ID.fullmatch(delivery):
            raise Answer(400, "X-GitHub-Delivery: expected the delivery's id")
        head = Head(delivery, "github", event, time.time())
        return _Stored(self.intake, head, signers=self.secrets.signers(), signature=signature)


class Generic:
    """POST /webhook: JSON from anything that knows the bearer secret."""

    largest = LARGEST

    def __init__(self, intake: Intake, secrets: Secrets) -> None:
        self.intake, self.secrets = intake, secrets

    def open(self, headers: Mapping[str, str]) -> Body:
        if not self.secrets.generic:
            raise closed("a request to /webhook", "/etc/credstore/kai-webhook/generic")
        scheme, _, token = headers.get("Authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else headers.get("X-Webhook-Secret", "").strip()
        if not self.secrets.is_generic(given):
            raise Answer(401, "expected Authorization: Bearer SECRET, or X-Webhook-Secret: SECRET",
                         f"a request to /webhook had {'a wrong' if given else 'no'} secret",
                         {"WWW-Authenticate": "Bearer"})  # fmt: skip
        check_json(headers, "send JSON")
        return _Stored(self.intake, Head(uuid.uuid4().hex, "generic", "message", time.time()))


class _Stored:
    """A body on its way into the spool."""

    def __init__(
        self, intake: Intake, head: Head, *, signers: list[hmac.HMAC] | None = None, signature: str = ""
    ) -> None:
        self.intake, self.head = intake, head
        self.signers, self.signature = signers, signature
        try:
            self.incoming: Incoming = intake.begin(head)
        except OSError as error:
            raise busy(intake.trouble or str(error)) from None

    def write(self, data: bytes) -> None:
        for signer in self.signers or ():
            signer.update(data)
        try:
            self.incoming.write(data)
        except OSError as error:
            raise busy(self.intake.unwritable(error)) from None

    async def end(self) -> Answer:
        if self.signers is not None and not is_signed(self.signers, self.signature):
            why = f"delivery {self.head.id} has a wrong signature: is the secret at GitHub the one in the credstore?"
            return Answer(401, "the signature is wrong", why)
        try:
            new = await self.intake.accept(self.incoming)
        except OSError as error:
            return busy(self.intake.unwritable(error))
        return Answer(202, "accepted") if new else Answer(200, "was here before")

    def close(self) -> None:
        self.incoming.close()


class Telegram:
    """POST /webhook/telegram: an update, which the bot judges and stores before it is answered."""

    largest = LARGEST_UPDATE

    def __init__(self, bot: Client, is_on: Callable[[], bool]) -> None:
        self.bot, self.is_on = bot, is_on
        self.good = b""
        """A digest of the secret that the bot took last."""

    def open(self, headers: Mapping[str, str]) -> Body:
        if not self.is_on():
            raise Answer(404, "there is nothing here", "an update of Telegram's came, and telegram.mode isn't webhook")
        secret = headers.get("X-Telegram-Bot-Api-Secret-Token", "")
        if not secret:
            raise Answer(401, "expected X-Telegram-Bot-Api-Secret-Token", "an update came without a secret token")
        check_json(headers, "send JSON")
        return _Update(self, secret)

    async def take(self, update: str, secret: str) -> bool:
        """Whether the secret is right; then the update is on disk. Raises Unavailable, Fault.

        Of a secret that isn't known as right the bot is asked alone: what strangers send isn't its load.
        """
        digest = hashlib.sha256(secret.encode("utf-8", "replace")).digest()
        if not hmac.compare_digest(digest, self.good):
            if not (await self.bot.call(TakeUpdate(update="", secret=secret), timeout=TELEGRAM_PATIENCE)).taken:
                return False
            self.good = digest
        return (await self.bot.call(TakeUpdate(update=update, secret=secret), timeout=TELEGRAM_PATIENCE)).taken


class _Update:
    def __init__(self, telegram: Telegram, secret: str) -> None:
        self.telegram, self.secret = telegram, secret
        self.body = bytearray()

    def write(self, data: bytes) -> None:
        self.body += data

    async def end(self) -> Answer:
        try:
            update = self.body.decode()
        except UnicodeDecodeError:
            return Answer(400, "expected UTF-8")
        try:
            taken = await self.telegram.take(update, self.secret)
        except (Unavailable, Fault) as error:
            return busy(f"an update stays at Telegram for now: {error}")
        if not taken:
            return Answer(401, "the secret token is wrong", "an update came with a wrong secret token")
        return Answer(200, "stored")

    def close(self) -> None:
        self.body.clear()
