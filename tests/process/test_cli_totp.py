"""`kai totp` on a terminal of its own, above the real verifier: what is shown and stored, what holds when it fails."""

from __future__ import annotations

import asyncio
import fcntl
import io
import json
import os
import pty
import re
import signal
import stat
import struct
import sys
import termios
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pyotp
import pytest
import segno

from kai.demo.launcher import python
from kai.interfaces import Doubtful, Unlock
from kai.lib import codes, enrolment
from tests.process.totp import SECRET, TotpSet

KAI = Path(__file__).with_name("totp_kai.py")
GROUPED = re.compile(r"^ +((?:[A-Z2-7]{4} ?){8})\r?$", re.MULTILINE)


class Kai(TotpSet):
    """The verifier's set, and the command that enrols for it. Its credentials are what the stores hold at a start."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        for name in ("plain", "encrypted"):
            (directory / name).mkdir(mode=0o700)
        self.markers.chmod(0o750)
        self.markers.parent.chmod(0o750)

    async def serve_stops(self) -> None:
        """What `systemctl stop` does, and what systemd does at the next start."""
        while True:
            if (self.directory / "stop").exists():
                await self.renewed()
                (self.directory / "stop").unlink()
            await asyncio.sleep(0.02)

    async def renewed(self) -> None:
        await self.stop()
        for file in self.credentials.iterdir():
            file.unlink()
        for file in (self.directory / "plain").iterdir():
            if not file.name.startswith("."):
                (self.credentials / f"totp_{file.name}").write_bytes(file.read_bytes())

    @property
    def command(self) -> list[str]:
        return [sys.executable, os.fspath(KAI), os.fspath(self.directory)]

    @property
    def environment(self) -> dict[str, str]:
        return {**self.unit.environment, **python()[1], "PYTHONPATH": os.fspath(KAI.parents[2]), "TERM": "xterm"}

    async def run(self, *words: str, code: int = 0) -> str:
        """Without a terminal."""
        process = await asyncio.create_subprocess_exec(
            *self.command, *words, env=self.environment, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        out, _ = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode == code, out.decode()
        return out.decode()

    def secret_of(self, user: str = "alice") -> str:
        return (self.directory / "plain" / user).read_text().strip()

    def nothing(self) -> None:
        """No half of an enrolment is there."""
        assert [*self.markers.iterdir(), *(self.directory / "plain").iterdir()] == []


class Terminal:
    """A command that has a terminal."""

    def __init__(self, process: asyncio.subprocess.Process, master: int) -> None:
        self.process, self.master, self.shown = process, master, ""
        asyncio.get_running_loop().add_reader(master, self._read)

    def _read(self) -> None:
        with suppress(OSError):
            self.shown += os.read(self.master, 65536).decode(errors="replace")
            return
        asyncio.get_running_loop().remove_reader(self.master)

    async def until(self, words: str, times: int = 1) -> None:
        async with asyncio.timeout(30):
            while self.shown.count(words) < times:
                assert self.process.returncode is None, self.shown
                await asyncio.sleep(0.02)

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    async def end(self) -> int:
        code = await asyncio.wait_for(self.process.wait(), 60)
        await asyncio.sleep(0.05)
        return code

    @property
    def secret(self) -> str:
        found = GROUPED.search(self.shown)
        assert found, self.shown
        return found[1].replace(" ", "")


@asynccontextmanager
async def terminal(kai: Kai, *words: str) -> AsyncIterator[Terminal]:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 60, 120, 0, 0))
    process = await asyncio.create_subprocess_exec(
        *kai.command, *words, env=kai.environment, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
    )
    os.close(slave)
    made = Terminal(process, master)
    try:
        yield made
    finally:
        asyncio.get_running_loop().remove_reader(master)
        if process.returncode is None:
            process.kill()
            await process.wait()
        os.close(master)


async def setup(kai: Kai, user: str = "alice", *options: str) -> str:
    """The whole of it; the code that was typed."""
    async with terminal(kai, "totp", "setup", user, *options) as at:
        await at.until("it shows now")
        code = pyotp.TOTP(at.secret).now()
        at.type(f"{code[:3]} {code[3:]}\n")
        assert await at.end() == 0, at.shown
        assert f"{user} is enrolled" in at.shown
    return code


@pytest.fixture
async def kai(tmp_path: Path) -> AsyncIterator[Kai]:
    made = Kai(tmp_path)
    stops = asyncio.create_task(made.serve_stops())
    yield made
    stops.cancel()
    await made.close()


def next_code(secret: str) -> str:
    return pyotp.TOTP(secret).generate_otp(codes.step_at(time.time()) + 1)


# ---- setup ----


async def test_a_setup_enrols_whoever_types_the_right_code(kai: Kai) -> None:
    code = await setup(kai)
    secret = kai.secret_of()
    assert enrolment.read(kai.markers, "alice").secret == codes.fingerprint(secret)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (kai.markers / "alice", kai.directory / "plain/alice")}
    assert [*modes.values()] == [0o640, 0o600]
    assert (await kai.say(code)).state == "bad", "the code of the setup is used up"
    assert (await kai.say(next_code(secret))).state == "ok"


async def test_the_qr_code_and_the_text_are_the_same_secret(kai: Kai) -> None:
    async with terminal(kai, "totp", "setup", "alice") as at:
        await at.until("it shows now")
        host = os.uname().nodename
        address = f"otpauth://totp/Kai:alice%40{host}?secret={at.secret}&issuer=Kai"
        drawn = io.StringIO()
        segno.make(address, error="m", micro=False).terminal(out=drawn, border=2, compact=True)
        plain = re.sub(r"\x1b\[[0-9;]*m", "", at.shown).replace("\r", "")
        assert drawn.getvalue().strip("\n") in plain
        assert f"account alice@{host}" in plain
        assert len(at.secret) == 32


async def test_the_secret_is_in_no_argument_and_in_no_environment(kai: Kai) -> None:
    async with terminal(kai, "totp", "setup", "alice") as at:
        await at.until("it shows now")
        for name in ("cmdline", "environ"):
            assert at.secret not in Path(f"/proc/{at.process.pid}/{name}").read_text()
        kai.nothing()


async def test_three_wrong_codes_store_nothing(kai: Kai) -> None:
    async with terminal(kai, "totp", "setup", "alice") as at:
        for number, code in enumerate(("000000", "12345", "not a code"), 1):
            await at.until("it shows now", number)
            at.type(f"{code}\n")
        assert await at.end() == 1
        assert "nothing was stored" in at.shown
        assert "The clock of this host says" in at.shown
    kai.nothing()


async def test_the_third_try_may_be_the_right_one(kai: Kai) -> None:
    async with terminal(kai, "totp", "setup", "alice") as at:
        for number, code in enumerate(("000000", ""), 1):
            await at.until("it shows now", number)
            at.type(f"{code}\n")
        await at.until("it shows now", 3)
        at.type(f"{pyotp.TOTP(at.secret).now()}\n")
        assert await at.end() == 0


async def test_the_end_of_the_input_stores_nothing(kai: Kai) -> None:
    async with terminal(kai, "totp", "setup", "alice") as at:
        await at.until("it shows now")
        at.type("\x04")
        assert await at.end() == 1
        assert "nothing was stored" in at.shown
    kai.nothing()


async def test_an_interrupt_stores_nothing(kai: Kai) -> None:
    async with terminal(kai, "totp", "setup", "alice") as at:
        await at.until("it shows now")
        while at.process.returncode is None:  # one that comes just before the read is seen after it
            at.process.send_signal(signal.SIGINT)
            await asyncio.sleep(0.5)
        assert await at.end() == 130
        assert "Nothing was stored" in at.shown
    kai.nothing()


async def test_without_a_terminal_no_secret_is_made(kai: Kai) -> None:
    said = await kai.run("totp", "setup", "alice", code=1)
    assert "it needs a terminal" in said
    assert not GROUPED.search(said)
    kai.nothing()


async def test_one_who_is_enrolled_is_refused_unless_he_is_to_be_replaced(kai: Kai) -> None:
    await setup(kai)
    old = kai.secret_of()
    async with terminal(kai, "totp", "setup", "alice") as at:
        assert await at.end() == 1
        assert "is enrolled already: --replace" in at.shown
    assert kai.secret_of() == old
    await setup(kai, "alice", "--replace")
    assert kai.secret_of() != old
    assert (await kai.say(next_code(old))).state == "bad"
    assert (await kai.say(next_code(kai.secret_of()))).state == "ok"


async def test_an_interrupted_replacement_leaves_the_old_enrolment_in_force(kai: Kai) -> None:
    await setup(kai)
    async with terminal(kai, "totp", "setup", "alice", "--replace") as at:
        await at.until("it shows now")
        at.type("\x04")
        assert await at.end() == 1
    assert (await kai.say(next_code(kai.secret_of()))).state == "ok"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("setup", "zoe"), "no user named zoe, known: alice, bob, carol"),
        (("setup",), "which user? There are alice, bob, carol"),
        (("setup", "../x"), "is no user's name"),
        (("reset", "bob"), "bob isn't enrolled"),
        (("unlock", "bob"), "bob isn't enrolled"),
        (("status", "A/B"), "is no user's name"),
    ],
)
async def test_what_cannot_be_meant_is_told(kai: Kai, words: tuple[str, ...], said: str) -> None:
    assert said in await kai.run("totp", *words, code=1)


async def test_the_user_may_be_left_out_where_there_is_one(kai: Kai) -> None:
    (kai.directory / "etc/users.yaml").write_text(json.dumps({"users": [{"telegram_id": 1, "name": "alice"}]}))
    async with terminal(kai, "totp", "setup") as at:
        await at.until("it shows now")
        at.type(f"{pyotp.TOTP(at.secret).now()}\n")
        assert await at.end() == 0
    assert kai.secret_of()
    assert "alice" in await kai.run("totp", "reset")


@pytest.mark.parametrize(
    ("step", "state"), [("put_secret", "off"), ("put_marker", "off"), ("stop", "closed"), ("ask", "closed")]
)
async def test_a_setup_that_is_killed_opens_nothing_and_can_be_done_again(kai: Kai, step: str, state: str) -> None:
    (kai.directory / "kill-at").write_text(step)
    async with terminal(kai, "totp", "setup", "alice") as at:
        await at.until("it shows now")
        secret = at.secret
        at.type(f"{pyotp.TOTP(secret).now()}\n")
        assert await at.end() == -signal.SIGKILL
    (kai.directory / "kill-at").unlink()
    await kai.renewed()
    if state == "off":
        assert (await kai.say(next_code(secret))).state == "off"
        await setup(kai)
    else:
        with pytest.raises(Doubtful):
            await kai.say(next_code(secret))
        await kai.run("totp", "unlock", "alice")
    assert (await kai.say("")).state == "bad"


@pytest.mark.parametrize("step", ["put_secret", "put_marker", "stop", "ask"])
@pytest.mark.parametrize("running", [True, False])
async def test_a_replacement_that_is_killed_never_opens(kai: Kai, step: str, running: bool) -> None:
    """Neither the running verifier nor the next takes a code of the secret that isn't in force."""
    await setup(kai)
    old = kai.secret_of()
    (kai.directory / "kill-at").write_text(step)
    async with terminal(kai, "totp", "setup", "alice", "--replace") as at:
        await at.until("it shows now")
        new = at.secret
        at.type(f"{pyotp.TOTP(new).now()}\n")
        assert await at.end() == -signal.SIGKILL
    if not running:
        await kai.renewed()
    old_holds = step == "put_secret" or (step == "put_marker" and running)
    for secret in (new, old):
        try:
            passed = (await kai.say(next_code(secret))).state == "ok"
        except Doubtful:
            passed = False
        assert passed == (secret == old and old_holds)


async def test_what_fails_is_told_with_what_holds_now(kai: Kai) -> None:
    (kai.directory / "no-systemctl").touch()
    async with terminal(kai, "totp", "setup", "alice") as at:
        await at.until("it shows now")
        at.type(f"{pyotp.TOTP(at.secret).now()}\n")
        assert await at.end() == 1
    said = " ".join(at.shown.split())
    assert "systemctl is not installed. alice is gated and nothing of him is let through" in said
    assert "sudo kai totp unlock alice" in said


async def test_a_marker_that_cannot_be_written_is_told_with_what_holds_now(kai: Kai) -> None:
    (kai.markers / "alice").mkdir()
    async with terminal(kai, "totp", "setup", "alice", "--replace") as at:
        await at.until("it shows now")
        at.type(f"{pyotp.TOTP(at.secret).now()}\n")
        assert await at.end() == 1
    said = " ".join(at.shown.split())
    assert "Is a directory. alice is gated and nothing of him is let through" in said
    assert [path.name for path in kai.markers.iterdir()] == ["alice"], "no half-written file is left"


async def test_a_missing_directory_is_told_before_a_secret_is_made(kai: Kai) -> None:
    (kai.directory / "encrypted").rmdir()
    async with terminal(kai, "totp", "setup", "alice") as at:
        assert await at.end() == 1
    assert "encrypted is missing: `sudo systemd-tmpfiles --create kai.conf`" in " ".join(at.shown.split())
    assert not GROUPED.search(at.shown)


# ---- status, unlock, reset ----


async def test_status_shows_how_it_stands_with_everyone(kai: Kai) -> None:
    users = [{"telegram_id": n, "name": name} for n, name in enumerate(("alice", "bob", "carol", "dave"), 1)]
    users[3]["totp"] = "required"
    (kai.directory / "etc/users.yaml").write_text(json.dumps({"users": users}))
    await setup(kai)
    await setup(kai, "bob")
    await kai.say(next_code(kai.secret_of()))
    for _ in range(2):
        await kai.say("000000", "alice")
    for _ in range(3):
        await kai.say("000000", "bob")
    lines = [re.split(r" {2,}", line) for line in (await kai.run("totp", "status")).splitlines()]
    assert lines[0] == ["USER", "TOTP", "LAST CODE", "FAILURES", "LOCKED UNTIL", "TROUBLE"]
    alice, bob, carol, dave = lines[1:]
    assert (alice[1], alice[3:]) == ("on", ["2", "-", "-"])
    assert alice[2] != "-"
    assert (bob[1], bob[2], bob[3]) == ("on", "-", "0")
    assert re.search(r"\d\d:\d\d:\d\d", bob[4])
    assert carol == ["carol", "off", "-", "-", "-", "-"]
    assert dave[1] == "required, not set up"
    assert [line.split()[0] for line in (await kai.run("totp", "status", "bob")).splitlines()[1:]] == ["bob"]


async def test_status_says_what_is_wrong_and_fails(kai: Kai) -> None:
    await setup(kai)
    (kai.directory / "plain/alice").unlink()
    await kai.renewed()
    assert "the secret of alice is missing" in await kai.run("totp", "status", code=1)
    await kai.close()
    assert "systemctl status kai-totp.socket" in await kai.run("totp", "status", code=1)


async def test_status_wakes_nobody_where_nobody_is_enrolled(kai: Kai) -> None:
    await kai.run("totp", "status")
    assert kai.service.starts == 0


async def test_unlocking_ends_a_lock(kai: Kai) -> None:
    await setup(kai)
    for _ in range(3):
        await kai.say("000000")
    assert (await kai.say("")).state == "locked"
    assert "there is no lock" in await kai.run("totp", "unlock", "alice")
    assert (await kai.say("")).state == "bad"


async def test_a_secret_that_was_put_back_is_taken_up_by_unlocking(kai: Kai) -> None:
    await setup(kai)
    kept = (kai.directory / "plain/alice").rename(kai.directory / "kept")
    await kai.renewed()
    with pytest.raises(Doubtful):
        await kai.say("")
    kept.rename(kai.directory / "plain/alice")
    await kai.run("totp", "unlock", "alice")
    assert (await kai.say(next_code(kai.secret_of()))).state == "ok"


async def test_a_reset_takes_secret_and_marker_away(kai: Kai) -> None:
    await setup(kai)
    said = await kai.run("totp", "reset", "alice")
    assert "alice isn't enrolled any more" in said
    kai.nothing()
    assert (await kai.say("")).state == "off"
    await setup(kai)


async def test_a_reset_of_one_whom_totp_is_required_of_says_that_he_can_do_nothing(kai: Kai) -> None:
    row = {"telegram_id": 1, "name": "alice", "totp": "required"}
    (kai.directory / "etc/users.yaml").write_text(json.dumps({"users": [row]}))
    await setup(kai)
    assert "he can do nothing until he is set up" in await kai.run("totp", "reset", "alice")


async def test_one_who_is_gone_from_users_yaml_can_be_reset(kai: Kai) -> None:
    await setup(kai)
    (kai.directory / "etc/users.yaml").write_text(json.dumps({"users": [{"telegram_id": 2, "name": "bob"}]}))
    assert "on, not in users.yaml" in await kai.run("totp", "status")
    await kai.run("totp", "reset", "alice")
    kai.nothing()


@pytest.mark.parametrize(("step", "state"), [("remove_secret", "bad"), ("remove_marker", "closed"), ("stop", "off")])
async def test_a_reset_that_is_killed_is_closed_until_the_marker_is_gone(kai: Kai, step: str, state: str) -> None:
    await setup(kai)
    (kai.directory / "kill-at").write_text(step)
    await kai.run("totp", "reset", "alice", code=-signal.SIGKILL)
    (kai.directory / "kill-at").unlink()
    await kai.renewed()
    if state == "closed":
        with pytest.raises(Doubtful):
            await kai.say("")
    else:
        assert (await kai.say("")).state == state
    if state != "off":
        await kai.run("totp", "reset", "alice")
        kai.nothing()


# ---- doctor ----


async def doctor(kai: Kai) -> str:
    said = await kai.run("doctor", code=1)  # this host has neither the jobs' scheduler nor Kai's units
    return "\n".join(line for line in said.splitlines() if re.match(r"\w+ +totp", line))


async def test_the_doctor_finds_nothing_wrong_with_an_enrolment(kai: Kai) -> None:
    await setup(kai)
    found = await doctor(kai)
    assert all("clock" in line for line in found.splitlines() if not line.startswith("ok")), found


async def test_the_doctor_finds_halves_of_enrolments_and_open_files(kai: Kai) -> None:
    await setup(kai)
    await setup(kai, "bob")
    await setup(kai, "carol")
    (kai.directory / "plain/alice").unlink()
    (kai.markers / "bob").unlink()
    (kai.directory / "plain/bob").chmod(0o644)
    (kai.directory / "plain").chmod(0o755)
    (kai.markers / "carol").chmod(0o666)
    (kai.directory / "encrypted/carol").write_text("x")
    (kai.directory / "encrypted/carol").chmod(0o600)
    found = await doctor(kai)
    for words in (
        "alice is enrolled for TOTP, but his secret is missing",
        "bob has a TOTP secret and isn't enrolled",
        "plain/bob has mode 0644",
        "plain has mode 0755",
        "enrolled/carol has mode 0666",
        "carol has two TOTP secrets",
    ):
        assert words in found


async def test_the_doctor_names_whom_totp_is_required_of_and_lost_counters(kai: Kai) -> None:
    users = [{"telegram_id": 1, "name": "alice"}, {"telegram_id": 2, "name": "bob", "totp": "required"}]
    (kai.directory / "etc/users.yaml").write_text(json.dumps({"users": users}))
    await setup(kai)
    await kai.stop()
    kai.database.unlink()
    found = await doctor(kai)
    assert "bob can do nothing: TOTP is required of him: `sudo kai totp setup bob`" in found
    assert "what was counted for alice is lost" in found


async def test_the_doctor_says_that_the_verifier_is_away(kai: Kai) -> None:
    await setup(kai)
    await kai.close()
    assert "systemctl status kai-totp.socket" in await doctor(kai)


async def test_an_old_enrolment_without_a_secret_of_ours_can_be_unlocked(kai: Kai) -> None:
    """The operator wrote the secret himself, and a marker that doesn't say which."""
    (kai.directory / "plain/alice").write_text(SECRET)
    (kai.markers / "alice").write_text('{"step": 1}')
    await kai.renewed()
    await kai.call(Unlock("alice"))
    assert (await kai.say("")).state == "bad"
