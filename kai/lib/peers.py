"""Who is calling: the peer's uid, told by the kernel, mapped to a unit, a user's supervisor or the operator.

The one place where a uid becomes a name. An unknown uid is nobody, and nobody may call nothing. A unit that asks
this must not run with PrivateUsers=yes: every peer then reads as 65534 (measured), which is refused here.
"""

from __future__ import annotations

import os
import pwd
import socket
import struct
from collections.abc import Mapping
from pathlib import Path

import msgspec

from kai.lib.varlink import Misconfigured

OPERATOR = "operator"
BOT = "kai-bot"
SCHEDULER = "kai-scheduler"
PROXY = "kai-proxy"
WEBHOOK = "kai-webhook"
GITHUB = "kai-github"
SUPERVISOR = "supervisor"
INNER = "inner"

UNIT_ACCOUNTS = frozenset({BOT, SCHEDULER, PROXY, WEBHOOK, GITHUB})
SUPERVISOR_PREFIX = "kai-u-"
NOBODY = 65534
FEWEST_UIDS = 65536


class Peer(msgspec.Struct, frozen=True):
    """A caller. `roles` has one entry, but for the one-uid mode of the demo; `user` is set for user accounts."""

    uid: int
    pid: int
    roles: frozenset[str]
    user: str = ""

    def __str__(self) -> str:
        name = "/".join(sorted(self.roles)) if len(self.roles) == 1 else "one-uid"
        return f"{name}{'@' + self.user if self.user else ''} (uid {self.uid}, pid {self.pid})"


class Peers:
    """Maps uids to peers.

    `inner` gives the work account of each user (account name → user). With `one_uid`, the own uid is every role:
    the demo and the process tests run like that, no unit does.
    """

    def __init__(self, inner: Mapping[str, str] | None = None, *, one_uid: bool = False) -> None:
        self.inner = dict(inner or {})
        self.one_uid = one_uid

    def identify(self, connection: socket.socket) -> Peer | None:
        """The peer of a connected Unix socket, or None for a stranger."""
        pid, uid, _gid = struct.unpack(
            "3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        )
        if self.one_uid:
            every = UNIT_ACCOUNTS | {OPERATOR, SUPERVISOR, INNER}
            return Peer(uid, pid, frozenset(every)) if uid == os.geteuid() else None
        if uid == 0:
            return Peer(uid, pid, frozenset({OPERATOR}))
        if uid in (NOBODY, -1):
            return None
        try:
            account = pwd.getpwuid(uid).pw_name
        except KeyError:
            return None
        if account in UNIT_ACCOUNTS:
            return Peer(uid, pid, frozenset({account}))
        if account.startswith(SUPERVISOR_PREFIX):
            return Peer(uid, pid, frozenset({SUPERVISOR}), account.removeprefix(SUPERVISOR_PREFIX))
        if account in self.inner:
            return Peer(uid, pid, frozenset({INNER}), self.inner[account])
        return None


def check_uid_map(text: str | None = None) -> None:
    """Refuse to work in a user namespace that hides uids; `text` is /proc/self/uid_map when not given.

    Raises Misconfigured: under PrivateUsers=yes every foreign caller looks like 65534 and identity means nothing. A
    container whose namespace holds a whole host's accounts is fine: they are told apart in there.
    """
    if text is None:
        text = Path("/proc/self/uid_map").read_text(encoding="ascii")
    if sum(int(line.split()[2]) for line in text.splitlines()) < FEWEST_UIDS:
        raise Misconfigured(
            "this process sees only a few of the host's uids (/proc/self/uid_map), so callers can't be told apart: "
            "remove PrivateUsers= from its unit"
        )
