"""The verifier without its socket: what is Doubtful, what is counted, what is said of it."""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pyotp
import pytest

from kai.config import Totp
from kai.interfaces import Doubtful, ListTotp, TotpState, Unlock, Verdict, Verify
from kai.lib import codes, enrolment
from kai.lib.enrolment import Marker
from kai.lib.peers import BOT, OPERATOR, Peer
from kai.lib.varlink import InvalidParameter
from kai.totp.record import Record
from kai.totp.secrets import Secret, load
from kai.totp.verifier import Verifier

SECRET, OTHER = "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP", "KRSXG5CTMVRXEZLUKRSXG5CTMVRXEZLU"
THE_BOT, ROOT = Peer(4, 1, frozenset({BOT})), Peer(0, 1, frozenset({OPERATOR}))
NOW = 1_800_000_000.0


class Bench:
    """A verifier whose clock, markers and secrets are the test's."""

    def __init__(self, directory: Path) -> None:
        self.now, self.limits = NOW, Totp()
        self.markers, self.state = directory / "enrolled", directory / "state"
        self.markers.mkdir()
        self.state.mkdir()
        self.secrets: dict[str, Secret] = {}
        self.open()

    def open(self) -> None:
        self.record = Record(self.state, clock=lambda: self.now)
        self.verifier = Verifier(lambda: self.limits, self.markers, self.secrets, self.record)

    def again(self) -> None:
        self.record.close()
        self.open()

    @property
    def step(self) -> int:
        return codes.step_at(self.now)

    def mark(self, user: str = "alice", secret: str = SECRET, step: int | None = None) -> None:
        marker = Marker(self.step - 1 if step is None else step, codes.fingerprint(secret))
        (self.markers / user).write_bytes(enrolment.encode(marker))

    async def enrol(self, user: str = "alice", secret: str = SECRET) -> None:
        self.secrets[user] = Secret(secret)
        self.mark(user, secret)
        await self.unlock(user)

    async def say(self, code: str, user: str = "alice") -> Verdict:
        return await self.verifier.verify(THE_BOT, Verify(user, code))

    async def unlock(self, user: str = "alice") -> None:
        await self.verifier.unlock(ROOT, Unlock(user))

    async def shown(self) -> list[TotpState]:
        return (await self.verifier.listed(ROOT, ListTotp())).users

    def right(self, drift: int = 0, secret: str = SECRET) -> str:
        return pyotp.TOTP(secret).generate_otp(self.step + drift)

    def wrong(self, secret: str = SECRET) -> str:
        taken = {self.right(drift, secret) for drift in (-1, 0, 1)}
        return next(text for text in map("{:06}".format, range(9)) if text not in taken)


@pytest.fixture
async def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture(autouse=True)
def closed(bench: Bench) -> Iterator[None]:
    yield
    bench.record.close()


async def doubtful(bench: Bench, *words: str) -> None:
    """A right code and a wrong one are told the same, and so is a mere question."""
    told = set()
    for code in (bench.right(), bench.wrong(), ""):
        with pytest.raises(Doubtful) as caught:
            await bench.say(code)
        told.add(str(caught.value))
    assert len(told) == 1
    [said] = told
    for word in words:
        assert word in said
    assert SECRET not in said


async def test_one_who_is_not_enrolled_is_off(bench: Bench) -> None:
    bench.secrets["bob"] = Secret(OTHER)
    assert await bench.say(bench.right(), "bob") == Verdict("off")
    assert await bench.say("", "bob") == Verdict("off")


async def test_a_code_passes_once_and_each_user_has_his_own(bench: Bench) -> None:
    await bench.enrol()
    await bench.enrol("bob", OTHER)
    assert await bench.say(bench.right()) == Verdict("ok")
    assert (await bench.say(bench.right())).state == "bad"
    assert (await bench.say(bench.right(), "bob")).state == "bad"
    assert (await bench.say(bench.right(secret=OTHER), "bob")).state == "ok"


async def test_the_code_of_the_setup_is_used_up(bench: Bench) -> None:
    bench.secrets["alice"] = Secret(SECRET)
    bench.mark(step=bench.step)
    await bench.unlock()
    assert (await bench.say(bench.right())).state == "bad"
    assert (await bench.say(bench.right(-1))).state == "bad"
    assert (await bench.say(bench.right(1))).state == "ok"


async def test_a_question_without_a_code_counts_nothing(bench: Bench) -> None:
    await bench.enrol()
    for _ in range(5):
        assert await bench.say("") == Verdict("bad", remaining=3)
    for _ in range(3):
        await bench.say(bench.wrong())
    assert await bench.say("") == Verdict("locked", until=NOW + 900)


@pytest.mark.parametrize("code", ["12345", "1234567", "12345a", "１２３４５６", "123 456", "123456\n"])
async def test_what_is_no_code_is_refused_and_not_counted(bench: Bench, code: str) -> None:
    await bench.enrol()
    for _ in range(5):
        with pytest.raises(InvalidParameter, match="expected six digits") as caught:
            await bench.say(code)
        assert code.strip() not in str(caught.value)
    assert await bench.say("") == Verdict("bad", remaining=3)


@pytest.mark.parametrize("user", ["", "../alice", "a/b", ".", "..", "Alice", "alice\n", "a" * 25, "alice\0"])
async def test_a_name_that_is_none_opens_no_file(bench: Bench, user: str) -> None:
    with pytest.raises(InvalidParameter, match="user"):
        await bench.say("123456", user)
    with pytest.raises(InvalidParameter, match="user"):
        await bench.unlock(user)


async def test_failures_and_locks_survive_a_restart(bench: Bench) -> None:
    await bench.enrol()
    for remaining in (2, 1):
        assert await bench.say(bench.wrong()) == Verdict("bad", remaining=remaining)
        bench.again()
    assert (await bench.say(bench.wrong())).state == "locked"
    bench.again()
    assert (await bench.say(bench.right())).state == "locked"
    bench.now = NOW + 901
    for _ in range(3):
        verdict = await bench.say(bench.wrong())
        bench.again()
    assert verdict == Verdict("locked", until=bench.now + 1800)


async def test_many_at_once_are_counted_one_by_one(bench: Bench) -> None:
    await bench.enrol()
    verdicts = await asyncio.gather(*(bench.say(bench.wrong()) for _ in range(300)))
    assert [verdict.state for verdict in verdicts].count("bad") == 2
    assert {verdict.until for verdict in verdicts if verdict.state == "locked"} == {NOW + 900}


async def test_of_many_right_codes_at_once_one_passes(bench: Bench) -> None:
    await bench.enrol()
    verdicts = await asyncio.gather(*(bench.say(bench.right()) for _ in range(50)))
    assert [verdict.state for verdict in verdicts].count("ok") == 1


# ---- whatever can't be told ----


async def test_a_marker_without_a_secret_lets_nobody_pass(bench: Bench) -> None:
    await bench.enrol()
    bench.secrets.clear()
    await doubtful(bench, "the secret of alice is missing", "sudo kai totp unlock alice")
    with pytest.raises(Doubtful):
        await bench.unlock()


@pytest.mark.parametrize("trouble", ["only 40 bits", "missing", "not base32"])
async def test_a_secret_that_is_none_lets_nobody_pass(bench: Bench, trouble: str) -> None:
    await bench.enrol()
    bench.secrets["alice"] = Secret(trouble=trouble)
    await doubtful(bench, trouble)


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"step": -1}', b'{"step": "x"}', b"\xff", b"{" * 5000])
async def test_a_marker_that_says_something_else_lets_nobody_pass(bench: Bench, content: bytes) -> None:
    await bench.enrol()
    (bench.markers / "alice").write_bytes(content)
    await doubtful(bench, "enrolled/alice", "--replace")


async def test_a_marker_that_is_a_directory_lets_nobody_pass(bench: Bench) -> None:
    await bench.enrol()
    (bench.markers / "alice").unlink()
    (bench.markers / "alice").mkdir()
    await doubtful(bench, "enrolled/alice: Is a directory")


async def test_a_lost_directory_of_markers_lets_nobody_pass(bench: Bench) -> None:
    await bench.enrol()
    bench.markers.rename(bench.markers.with_name("elsewhere"))
    await doubtful(bench, "enrolled", "No such file", "systemd-tmpfiles")
    with pytest.raises(Doubtful, match="systemd-tmpfiles"):
        await bench.shown()


async def test_another_secret_than_the_markers_lets_nobody_pass(bench: Bench) -> None:
    await bench.enrol()
    bench.secrets["alice"] = Secret(OTHER)
    await doubtful(bench, "isn't the one that", "--replace")


async def test_a_marker_that_names_no_secret_is_taken_with_the_one_it_was_unlocked_with(bench: Bench) -> None:
    bench.secrets["alice"] = Secret(SECRET)
    (bench.markers / "alice").write_text(f'{{"step": {bench.step - 1}}}')
    await bench.unlock()
    assert (await bench.say(bench.right())).state == "ok"
    bench.secrets["alice"] = Secret(OTHER)
    await doubtful(bench, "sudo kai totp unlock alice")


async def test_lost_counters_let_nobody_pass_until_the_operator_says_so(bench: Bench) -> None:
    await bench.enrol()
    bench.now += 120
    used = bench.right()
    assert (await bench.say(used)).state == "ok"
    bench.record.close()
    for file in bench.state.iterdir():
        file.unlink()
    bench.open()
    await doubtful(bench, "is lost", "sudo kai totp unlock alice")
    await bench.unlock()
    for code in (used, bench.right(1)):
        assert (await bench.say(code)).state == "bad", "what was used before isn't known, so all of now's are used up"
    bench.now += 60
    assert (await bench.say(bench.right())).state == "ok"


async def test_a_new_enrolment_is_not_in_force_before_it_is_finished(bench: Bench) -> None:
    await bench.enrol()
    bench.secrets["alice"] = Secret(OTHER)
    bench.mark(secret=OTHER)
    await doubtful(bench, "isn't finished", "sudo kai totp unlock alice")
    await bench.unlock()
    assert (await bench.say(bench.right(secret=OTHER))).state == "ok"


async def test_a_clock_that_goes_back_lets_nobody_pass(bench: Bench) -> None:
    await bench.enrol()
    assert (await bench.say(bench.right())).state == "ok"
    bench.now -= 120
    await doubtful(bench, "the clock is behind", "--replace")
    [shown] = await bench.shown()
    assert "the clock is behind" in shown.trouble
    bench.now += 150
    assert (await bench.say(bench.right())).state == "ok"


async def test_a_marker_from_the_future_lets_nobody_pass(bench: Bench) -> None:
    await bench.enrol()
    bench.mark(step=bench.step + 5)
    await doubtful(bench, "the clock is behind")


async def test_a_clock_that_goes_back_makes_a_lock_longer_and_never_shorter(bench: Bench) -> None:
    await bench.enrol()
    for _ in range(3):
        await bench.say(bench.wrong())
    bench.now -= 25
    assert (await bench.say(bench.right())) == Verdict("locked", until=NOW + 900)
    bench.now -= 3600
    with pytest.raises(Doubtful):
        await bench.say(bench.right())


async def test_the_list_shows_every_enrolled_user_and_what_is_wrong(bench: Bench) -> None:
    await bench.enrol()
    await bench.enrol("bob", OTHER)
    bench.mark("carol")
    (bench.markers / ".dave.new").write_text("half")
    assert (await bench.say(bench.right())).state == "ok"
    for _ in range(3):
        await bench.say(bench.wrong(OTHER), "bob")
    alice, bob, carol = await bench.shown()
    assert alice == TotpState("alice", accepted=NOW)
    assert bob == TotpState("bob", locked_until=NOW + 900)
    assert (carol.user, "missing" in carol.trouble) == ("carol", True)


async def test_unlocking_one_who_is_not_enrolled_says_so(bench: Bench) -> None:
    with pytest.raises(Doubtful, match="alice isn't enrolled: `sudo kai totp setup alice`"):
        await bench.unlock()


async def test_no_code_and_no_secret_is_in_the_log(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    await bench.enrol()
    said = [bench.right(), bench.wrong(), "98765x", bench.wrong()]
    for code in said:
        try:
            await bench.say(code)
        except InvalidParameter:
            continue
    assert "accepted" in caplog.text
    assert "wrong code" in caplog.text
    await bench.say(bench.wrong())
    locks = caplog.text.count("is locked for codes")
    assert locks == 1
    for _ in range(20):
        await bench.say(bench.wrong())
    assert caplog.text.count("is locked for codes") == 1, "what comes while it is locked fills no journal"
    bench.secrets.clear()
    for _ in range(3):
        with pytest.raises(Doubtful):
            await bench.say("777777")
    assert caplog.text.count("nothing is let through") == 1
    for text in (*said, "777777", SECRET):
        assert text not in caplog.text


async def test_what_was_counted_is_on_disk_before_it_is_said(bench: Bench) -> None:
    await bench.enrol()
    for failures in (1, 2):
        await bench.say(bench.wrong())
        copy = bench.state.parent / f"copy{failures}"
        copy.mkdir()
        for file in bench.state.iterdir():
            if not file.name.endswith("-shm"):
                (copy / file.name).write_bytes(file.read_bytes())
        with closing(sqlite3.connect(copy / "totp.db")) as db:
            assert db.execute("SELECT failures FROM users").fetchone() == (failures,)


# ---- the credentials ----


def test_secrets_come_from_both_stores_and_each_fault_stays_with_its_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", os.fspath(tmp_path))
    files = {
        "totp_alice": f"{SECRET}\n", "totpenc_bob": OTHER, "totp_carol": "", "totp_dave": "short",
        "totp_erin": SECRET, "totpenc_erin": SECRET, "totp_a-b": OTHER, "other_zoe": SECRET,
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "totp_frank").write_bytes(b"\xff\xfe")
    found = load()
    assert {user for user, secret in found.items() if secret.text} == {"alice", "bob", "a-b"}
    assert (found["alice"].text, found["bob"].text) == (SECRET, OTHER)
    for user, words in {"carol": "empty", "dave": "base32", "erin": "two secrets", "frank": "not UTF-8"}.items():
        assert words in found[user].trouble
        assert SECRET not in found[user].trouble


def test_without_any_credential_there_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    assert load() == {}
