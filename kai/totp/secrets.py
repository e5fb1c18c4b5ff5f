"""The users' secrets, as systemd handed them over: plain ones as totp_USER, encrypted ones as totpenc_USER."""

from __future__ import annotations

import msgspec

from kai.lib import codes, credentials
from kai.lib.varlink import Misconfigured

PLAIN, ENCRYPTED = "totp", "totpenc"
"""Names of the credentials in the unit."""
STORES = {PLAIN: "/etc/credstore/kai-totp", ENCRYPTED: "/etc/credstore.encrypted/kai-totp"}


class Secret(msgspec.Struct, frozen=True):
    """A user's secret, or why it can't be used."""

    text: str = ""
    trouble: str = ""


def load() -> dict[str, Secret]:
    """Whatever is wrong with one user's is no other's trouble. Raises Misconfigured where nothing can be listed."""
    found: dict[str, Secret] = {}
    for name in STORES:
        for user in credentials.of_directory(name):
            other = user in found
            found[user] = Secret(trouble=two(user)) if other else _read(name, user)
    return found


def two(user: str) -> str:
    paths = " and ".join(f"{store}/{user}" for store in STORES.values())
    return f"there are two secrets, {paths}: `sudo kai totp setup {user} --replace` makes one"


def _read(name: str, user: str) -> Secret:
    path, fix = f"{STORES[name]}/{user}", f"`sudo kai totp setup {user} --replace` makes a new secret"
    try:
        text = credentials.read(f"{name}_{user}", fix=fix)
    except (Misconfigured, ValueError) as error:
        return Secret(trouble=f"{path}: {error}")
    wrong = codes.fault(text)
    return Secret(trouble=f"{path}: {wrong}: {fix}") if wrong else Secret(text)
