"""`kai totp`: who must give a code of his authenticator before the bot does anything for him.

The secret is shown on a terminal and written to a credential store, and nowhere else.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import msgspec

from kai.cli import totpfiles
from kai.cli.fail import Failure, need_root
from kai.cli.host import Host
from kai.cli.paths import config_dir, runtime_dir
from kai.config import Config, ConfigError, load
from kai.config.rules import USER_NAME
from kai.interfaces import ListTotp, TotpState, Unlock
from kai.lib import log
from kai.lib.client import Client
from kai.lib.enrolment import Marker
from kai.lib.log import printable
from kai.lib.schedules import stamp
from kai.lib.varlink import Call, Fault, Unavailable

SECONDS = 30.0
TRIES = 3
ISSUER = "Kai"
UNIT = "kai-totp.service"
R = TypeVar("R", bound=msgspec.Struct)


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("totp", help="a second factor for users: set up, look, reset, unlock")
    below = parser.add_subparsers(metavar="setup | status | reset | unlock", required=True)
    setup = below.add_parser("setup", help="make a secret for an authenticator and enrol the user with it")
    setup.add_argument("--replace", action="store_true", help="make a new secret for one who is enrolled")
    setup.add_argument("--encrypt", action="store_true", help="keep the secret encrypted, see systemd-creds(1)")
    setup.set_defaults(run=_setup)
    for name, help_, run in (
        ("status", "who is enrolled, and what is wrong", _status),
        ("reset", "take a user's enrolment away", _reset),
        ("unlock", "forget a user's failures and his lock", _unlock),
    ):
        below.add_parser(name, help=help_).set_defaults(run=run)
    for each in below.choices.values():
        each.add_argument("user", metavar="USER", nargs="?", help="may be left out where there is just one")


# ---- setup ----


def _setup(arguments: argparse.Namespace) -> int:
    need_root("kai totp")
    files, config = totpfiles.FILES, _config()
    user = _one(config, arguments.user)
    if config.user(user) is None:
        raise Failure(f"no user named {user}, known: {', '.join(each.name for each in config.users)}")
    files.ready()
    files.gid()
    try:
        replaced = files.enrolled(user)
    except OSError as error:
        raise Failure(f"{files.markers / user}: {error.strerror}: {totpfiles.CREATE}") from None
    if replaced and not arguments.replace:
        raise Failure(f"{user} is enrolled already: --replace makes a new secret, and the one he has is void then")
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise Failure("kai totp setup shows a secret and asks for a code: it needs a terminal (with ssh: ssh -t)")
    secret, step = _agree(user)
    if arguments.encrypt:
        totpfiles.encrypted(user, secret)  # what doesn't work is known before anything has changed
    _put(user, secret, step, encrypt=arguments.encrypt, replaced=replaced)
    print(f"{user} is enrolled. The bot asks for a code from now on, at once and then after each pause.")
    print("Clear this terminal: what it showed is the secret.")
    return 0


def _agree(user: str) -> tuple[str, int]:
    """A new secret that the user's authenticator has too, and the step of the code that showed it. Raises Failure."""
    try:
        import pyotp
    except ImportError:
        raise Failure("pyotp is not installed: run install.sh again, or install kai[totp]") from None
    secret = pyotp.random_base32()
    log.secret(secret)
    name = f"{user}@{os.uname().nodename}"
    _show(pyotp.TOTP(secret).provisioning_uri(name=name, issuer_name=ISSUER))
    print(f"Scan this with an authenticator, or type it in: account {name}, issuer {ISSUER}, secret")
    print("\n    " + " ".join(secret[at : at + 4] for at in range(0, len(secret), 4)) + "\n")
    try:
        return secret, _confirmed(secret)
    except KeyboardInterrupt:
        print("\nNothing was stored.")
        raise


def _show(address: str) -> None:
    """A QR code in half blocks, black on white whatever the terminal's colours are. Text alone where it has none."""
    try:
        import segno

        drawn = io.StringIO()
        segno.make(address, error="m", micro=False).terminal(out=drawn, border=2, compact=True)
        text = drawn.getvalue().rstrip("\n")
        text.encode(sys.stdout.encoding or "ascii")
    except (ImportError, UnicodeEncodeError) as error:
        print(f"(no QR code: {'segno is not installed' if isinstance(error, ImportError) else 'no UTF-8 here'})")
        return
    for line in text.split("\n"):
        print(f"\x1b[40;97m{line}\x1b[0m")


def _confirmed(secret: str) -> int:
    """The step of the first right code. Raises Failure."""
    from kai.lib import codes

    for left in range(TRIES - 1, -1, -1):
        print("The six digits that it shows now: ", end="", flush=True)
        line = sys.stdin.readline()
        if not line:
            print()
            raise Failure("no code was given: nothing was stored")
        code = "".join(line.split())
        step = codes.matching(secret, code, codes.step_at(time.time())) if codes.CODE.fullmatch(code) else -1
        if step >= 0:
            return step
        again = "Try again." if left else ""
        print(f"That isn't right. The clock of this host says {time.strftime('%H:%M:%S %Z')}. {again}".rstrip())
    raise Failure("no code was right: nothing was stored")


def _put(user: str, secret: str, step: int, *, encrypt: bool, replaced: bool) -> None:
    """Each step is on disk before the next; whatever fails leaves nobody in who wasn't, and says what holds now."""
    from kai.lib import codes

    files, again = totpfiles.FILES, f"`sudo kai totp setup {user}{' --replace' if replaced else ''}`"
    denied = f"{user} is gated and nothing of him is let through"
    before = f"The enrolment from before may be void; where codes are refused: {again}" if replaced else ""
    with _holds(before or f"{user} isn't enrolled: {again}"):
        files.put_secret(user, secret, encrypt=encrypt)
    with _holds(f"{denied}: {again}" if replaced else f"{user} isn't enrolled and isn't gated: {again}"):
        files.put_marker(user, Marker(step, codes.fingerprint(secret)))
    with _holds(f"{denied}: repair that, then `sudo kai totp unlock {user}`"):
        stop_verifier()
        _ask(Unlock(user))


# ---- reset, unlock ----


def _reset(arguments: argparse.Namespace) -> int:
    need_root("kai totp")
    files, config = totpfiles.FILES, _config()
    user = _one(config, arguments.user)
    with _holds(f"As long as his marker is there, {user} is gated"):
        there = files.remove_secret(user)
    with _holds(f"{user} has no secret any more and is gated: nothing of him is let through"):
        enrolled = files.remove_marker(user)
    if not (there or enrolled):
        raise Failure(f"{user} isn't enrolled")
    with _holds(f"{user} isn't enrolled any more; the verifier forgets his secret when it leaves"):
        stop_verifier()
    row = config.user(user)
    if row is not None and row.totp == "required":
        print(f"{user} isn't enrolled any more. users.yaml requires TOTP of him: he can do nothing until he is set up.")
    else:
        print(f"{user} isn't enrolled any more: whoever has his Telegram account has his agent.")
    return 0


def _unlock(arguments: argparse.Namespace) -> int:
    need_root("kai totp")
    user = _one(_config(), arguments.user)
    stop_verifier()  # the next one has the secret that is in the store now
    _ask(Unlock(user))
    trouble = next((each.trouble for each in _ask(ListTotp()).users if each.user == user), "")
    if trouble:
        raise Failure(printable(f"{user}'s failures and lock are forgotten, but {trouble}", 500))
    print(f"{user}: no failure is counted and there is no lock; a code that was used stays used")
    return 0


def stop_verifier() -> None:
    """The next call starts it, with the credentials of then."""
    Host().run("systemctl", "stop", UNIT)


# ---- status ----


def _status(arguments: argparse.Namespace) -> int:
    """Exit status 1 where a code can't be checked."""
    need_root("kai totp")
    config, marked = _config(), totpfiles.FILES.users()
    found, why = states() if marked else ({}, "")
    names = [each.name for each in config.users] + [name for name in marked if config.user(name) is None]
    if arguments.user:
        names = [_named(arguments.user)]
    rows = [("USER", "TOTP", "LAST CODE", "FAILURES", "LOCKED UNTIL", "TROUBLE")]
    troubled = False
    for name in names:
        user = config.user(name)
        zone = config.effective(user, "timezone")[0] if user else ""
        state = found.get(name, TotpState(name))
        trouble = (state.trouble or why) if name in marked else ""
        troubled = troubled or bool(trouble)
        locked = stamp(state.locked_until, zone) if state.locked_until > time.time() else "-"
        accepted = stamp(state.accepted, zone) if state.accepted else "-"
        failures = str(state.failures) if name in found else "-"
        rows.append((name, _is(config, name, marked), accepted, failures, locked, printable(trouble, 500) or "-"))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for row in rows:
        cells = [f"{cell:{width}}" for cell, width in zip(row[:5], widths, strict=True)]
        print("  ".join([*cells, row[5]]).rstrip())
    return int(troubled)


def _is(config: Config, name: str, marked: list[str]) -> str:
    user = config.user(name)
    if name in marked:
        return "on" if user else "on, not in users.yaml"
    return "required, not set up" if user and user.totp == "required" else "off"


def states() -> tuple[Mapping[str, TotpState], str]:
    """What the verifier says of each enrolled user; or why it says nothing."""
    try:
        return {each.user: each for each in _ask(ListTotp()).users}, ""
    except Failure as failure:
        return {}, str(failure)


def faults() -> list[str]:
    """For `kai doctor`. Raises Failure."""
    files = totpfiles.FILES
    try:
        users = load(config_dir()).users
    except ConfigError:
        users = ()  # told as a fault of its own
    marked = files.users()
    waiting = [user.name for user in users if user.totp == "required" and user.name not in marked]
    found = [f"{name} can do nothing: TOTP is required of him: `sudo kai totp setup {name}`" for name in waiting]
    if not (marked or waiting or files.secrets()):
        return []
    found += files.faults()
    if marked:
        known, why = states()
        found += [why] if why else []
        silent = {fault.partition(" ")[0] for fault in found}
        found += [each.trouble for each in known.values() if each.trouble and each.user not in silent]
        found += _clock()
    return found


def _clock() -> list[str]:
    try:
        said = Host().ask("timedatectl", "show", "--property=NTPSynchronized", "--value")
    except Failure as failure:
        return [f"whether the clock is right, which TOTP needs, isn't known: {failure}"]
    if said == "yes":
        return []
    return ["the clock isn't synchronised, and codes are right for a minute only: `sudo timedatectl set-ntp true`"]


# ---- what they share ----


def _config() -> Config:
    try:
        return load(config_dir())
    except ConfigError as error:
        raise Failure(str(error)) from None


def _named(name: str) -> str:
    if not USER_NAME.fullmatch(name):
        raise Failure(f"{printable(name, 40)!r} is no user's name")
    return name


def _one(config: Config, name: str | None) -> str:
    """The user who is meant; one who is gone from users.yaml may be named too."""
    if name is not None:
        return _named(name)
    if len(config.users) != 1:
        raise Failure(f"which user? There are {', '.join(each.name for each in config.users)}")
    return config.users[0].name


@contextmanager
def _holds(words: str) -> Iterator[None]:
    """Whatever fails inside is told together with what holds now."""
    try:
        yield
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise Failure(f"{where}{error.strerror}. {words}") from None
    except Failure as failure:
        raise Failure(f"{failure}. {words}") from None


def _ask(call: Call[R]) -> R:
    try:
        return asyncio.run(Client(runtime_dir() / "totp.sock").call(call, timeout=SECONDS))
    except Fault as error:
        raise Failure(printable(str(error), 500)) from None
    except Unavailable as error:
        raise Failure(f"{printable(str(error))}: see `systemctl status kai-totp.socket kai-totp`") from None
