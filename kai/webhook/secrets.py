"""The secrets of the endpoints, as systemd handed them over: plain ones as webhook_NAME, encrypted as webhookenc_NAME.

`github` signs what GitHub sends; `github-old` is taken too while a new one is being entered at GitHub; `generic` is the
bearer secret of POST /webhook.
"""

from __future__ import annotations

import hmac
import logging

import msgspec

from kai.lib import credentials
from kai.lib.varlink import Misconfigured

STORES = {"webhook": "/etc/credstore/kai-webhook", "webhookenc": "/etc/credstore.encrypted/kai-webhook"}
"""Names of the credentials in the unit, and the directories that they come from."""
NAMES = ("github", "github-old", "generic")
SHORTEST = 16
"""Characters: a secret that can be guessed is none."""
logger = logging.getLogger(__name__)


class Secrets(msgspec.Struct, frozen=True):
    """What requests must prove to know. Empty: the endpoint is closed. `trouble` says what can't be used, and why."""

    github: tuple[bytes, ...] = ()
    generic: bytes = b""
    rotating: bool = False
    trouble: str = ""

    def signers(self) -> list[hmac.HMAC]:
        """A fresh HMAC-SHA256 for each secret that GitHub may sign with."""
        return [hmac.new(secret, digestmod="sha256") for secret in self.github]

    def is_generic(self, given: str) -> bool:
        """In constant time. False where there is no secret."""
        return bool(self.generic) and hmac.compare_digest(self.generic, given.encode("utf-8", "surrogateescape"))


def is_signed(signers: list[hmac.HMAC], signature: str) -> bool:
    """Whether one of them comes to `sha256=HEX`; all are compared, each in constant time."""
    given = signature.encode("utf-8", "surrogateescape")
    matches = [hmac.compare_digest(f"sha256={signer.hexdigest()}".encode(), given) for signer in signers]
    return any(matches)


def load() -> Secrets:
    """Whatever is wrong with one closes that endpoint only. Raises Misconfigured where nothing can be listed."""
    found: dict[str, bytes] = {}
    faults = []
    for credential, store in STORES.items():
        for name in credentials.of_directory(credential):
            try:
                found[name] = _read(credential, store, name, found)
            except (Misconfigured, ValueError) as error:
                faults.append(str(error))
    for fault in faults:
        logger.error("%s", fault)
    github = tuple(found[name] for name in ("github", "github-old") if name in found)
    return Secrets(github, found.get("generic", b""), "github-old" in found, "; ".join(faults))


def _read(credential: str, store: str, name: str, found: dict[str, bytes]) -> bytes:
    path = f"{store}/{name}"
    if name not in NAMES:
        raise ValueError(f"{path}: is not used: the names are {', '.join(NAMES)}")
    if name in found:
        raise ValueError(f"{path}: the same secret stands in {STORES['webhook']} too: remove one of them")
    text = credentials.read(f"{credential}_{name}", fix=f"write it to {path} (root, 0600) and restart kai-webhook")
    if len(text) < SHORTEST:
        raise ValueError(f"{path}: shorter than {SHORTEST} characters: take a random one, `openssl rand -hex 32`")
    return text.encode()
