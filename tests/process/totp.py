"""The real verifier on its socket, with markers and credentials of the test's."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TypeVar

import msgspec
import pyotp

from kai.demo.launcher import python
from kai.demo.service import Service, Unit
from kai.interfaces import ListTotp, TotpState, Unlock, Verdict, Verify
from kai.lib import codes, enrolment
from kai.lib.client import Client
from kai.lib.enrolment import Marker
from kai.lib.varlink import Call

SECRET, OTHER = "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP", "KRSXG5CTMVRXEZLUKRSXG5CTMVRXEZLU"
LIMITS = {"attempts": 3, "lockout": 900}
POINTS = Path(__file__).with_name("totp_points.py")
R = TypeVar("R", bound=msgspec.Struct)


def unit(directory: Path, runtime: Path, *, point: str = "", name: str = "kai-totp") -> Unit:
    """Its files are below `directory`: etc, credentials, state/totp; with `point`, it can be killed there."""
    interpreter, variables = python()
    program = (os.fspath(POINTS), point, os.fspath(directory / "kill")) if point else ("-m", "kai.totp.main")
    for place in ("state/totp/state", "state/totp/enrolled", "credentials"):
        (directory / place).mkdir(mode=0o700, parents=True, exist_ok=True)
    return Unit(
        name,
        (*interpreter, *program, "--one-uid"),
        (("totp", runtime / "totp.sock"),),
        {
            "PATH": os.environ.get("PATH", os.defpath),
            "LANG": "C.UTF-8",
            "CONFIGURATION_DIRECTORY": os.fspath(directory / "etc"),
            "STATE_DIRECTORY": os.fspath(directory / "state/totp/state"),
            "CREDENTIALS_DIRECTORY": os.fspath(directory / "credentials"),
            "KAI_RUNTIME_DIRECTORY": os.fspath(runtime),
            **variables,
        },
    )


class TotpSet:
    """A directory with the verifier as a socket; a call starts it. `enrol` plays `kai totp setup`."""

    def __init__(self, directory: Path, *, point: str = "", **limits: int) -> None:
        self.directory = directory
        self.markers, self.credentials = directory / "state/totp/enrolled", directory / "credentials"
        self.database = directory / "state/totp/state/totp.db"
        self.socket = directory / "run/totp.sock"
        (directory / "etc").mkdir()
        users = [{"telegram_id": 1001 + n, "name": name} for n, name in enumerate(("alice", "bob", "carol"))]
        (directory / "etc/users.yaml").write_text(json.dumps({"users": users}))
        self.configure(**limits)
        self.unit = unit(directory, directory / "run", point=point)
        log = directory / "kai-totp.log"
        self.service = Service(self.unit, log=log, notify=directory / "run/notify", stop_patience=10)
        self.service.open()
        self.client = Client(self.socket)

    def configure(self, **limits: int) -> None:
        (self.directory / "etc/kai.yaml").write_text(json.dumps({"totp": {**LIMITS, **limits}}))

    def mark(self, user: str = "alice", secret: str = SECRET, step: int | None = None) -> None:
        """The marker is a few steps old, so that every code of now is a new one."""
        step = codes.step_at(time.time()) - 3 if step is None else step
        (self.markers / user).write_bytes(enrolment.encode(Marker(step, codes.fingerprint(secret))))

    async def enrol(self, user: str = "alice", secret: str = SECRET) -> None:
        (self.credentials / f"totp_{user}").write_text(f"{secret}\n")
        self.mark(user, secret, codes.step_at(time.time()) - 1)  # a slow start may see the next step
        await self.stop()
        await self.call(Unlock(user))

    async def call(self, call: Call[R]) -> R:
        return await self.client.call(call, timeout=20)

    async def say(self, code: str, user: str = "alice") -> Verdict:
        return await self.call(Verify(user, code))

    async def shown(self) -> list[TotpState]:
        return (await self.call(ListTotp())).users

    async def stop(self) -> None:
        await self.service.stop()

    async def close(self) -> None:
        """The socket goes too."""
        if not self.service.closed:
            await self.service.close()

    def kill(self, number: int) -> None:
        assert self.service.pid
        os.kill(self.service.pid, number)

    @property
    def log(self) -> str:
        return self.service.log.read_text() if self.service.log.exists() else ""


def right(drift: int = 0, secret: str = SECRET) -> str:
    return pyotp.TOTP(secret).generate_otp(codes.step_at(time.time()) + drift)


def wrong(secret: str = SECRET, *, like: int = 0) -> str:
    """A code that is wrong for minutes, with so many of its first digits right."""
    step = codes.step_at(time.time())
    taken = {pyotp.TOTP(secret).generate_otp(step + drift) for drift in range(-4, 5)}
    now = right(secret=secret)
    for number in range(10 ** (6 - like)):
        code = f"{now[:like]}{number:0{6 - like}}"
        if code not in taken and code[like] != now[like]:
            return code
    raise AssertionError("there is no such code")
