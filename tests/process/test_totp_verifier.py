"""The verifier as a daemon: guesses from all sides, kills between any two steps, state that is lost or can't grow."""

from __future__ import annotations

import asyncio
import json
import resource
import signal
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import Protocol

import pytest

from kai.interfaces import Doubtful, Unlock, Verdict
from kai.lib.varlink import Fault, Misconfigured, Unavailable
from tests.process.totp import OTHER, SECRET, TotpSet, right, wrong
from tests.process.totp_points import POINTS


class Sets(Protocol):
    def __call__(self, *, point: str = "", **limits: int) -> TotpSet: ...


@pytest.fixture
async def sets(tmp_path: Path) -> AsyncIterator[Sets]:
    async with AsyncExitStack() as stack:

        def make(*, point: str = "", **limits: int) -> TotpSet:
            made = TotpSet(tmp_path, point=point, **limits)
            stack.push_async_callback(made.close)
            return made

        yield make


@pytest.fixture
async def totp(sets: Sets) -> TotpSet:
    return sets()


async def early() -> None:
    """Wait for the first seconds of a step, where a test is about codes of one step."""
    while time.time() % 30 > 15:
        await asyncio.sleep(0.2)


async def test_the_first_call_starts_it_and_a_code_passes_once(totp: TotpSet) -> None:
    assert await totp.say("123456") == Verdict("off")
    await totp.enrol()
    await totp.enrol("bob", OTHER)
    code = right()
    assert await totp.say(code) == Verdict("ok")
    assert await totp.say(code) == Verdict("bad", remaining=2)
    assert (await totp.say(right(secret=OTHER), "bob")).state == "ok"
    assert await totp.say("", "carol") == Verdict("off")
    alice, bob = await totp.shown()
    assert (alice.failures, bob.failures, alice.trouble, bob.trouble) == (1, 0, "", "")


async def test_a_code_is_replayed_neither_in_its_step_nor_beside_it_nor_after_a_restart(totp: TotpSet) -> None:
    await early()
    await totp.enrol()
    first, second = right(), right(1)
    assert (await totp.say(second)).state == "ok"
    for code in (second, first):
        assert (await totp.say(code)).state == "bad"
    await totp.stop()
    assert (await totp.say(second)).state == "locked"


async def hammer(totp: TotpSet, guesses: list[str], connections: int = 50) -> list[dict[str, object]]:
    """All guesses at once, many calls in each connection, none waiting for an answer."""

    async def one(mine: list[str]) -> list[dict[str, object]]:
        reader, writer = await asyncio.open_unix_connection(totp.socket)
        for code in mine:
            call = {"method": "kai.Totp.Verify", "parameters": {"user": "alice", "code": code}}
            writer.write(json.dumps(call).encode() + b"\0")
        await writer.drain()
        answers = [json.loads((await reader.readuntil(b"\0"))[:-1]) for _ in mine]
        writer.close()
        return answers

    found = await asyncio.gather(*(one(guesses[n::connections]) for n in range(connections)))
    return [answer for answers in found for answer in answers]


async def test_of_a_thousand_guesses_at_once_exactly_the_attempts_are_looked_at(totp: TotpSet) -> None:
    await totp.enrol()
    bad = wrong()
    answers = await hammer(totp, [bad] * 1000)
    states = [answer["parameters"]["state"] for answer in answers]  # type: ignore[index]
    assert len(states) == 1000
    assert (states.count("bad"), states.count("locked")) == (2, 998)
    assert totp.log.count("a wrong code") + totp.log.count("is locked for codes") == 3
    with closing(sqlite3.connect(f"file:{totp.database}?mode=ro", uri=True, timeout=10)) as db:
        await totp.stop()
        assert db.execute("SELECT failures, level FROM users").fetchone() == (0, 1)
    assert (await totp.say(right())).state == "locked"


async def test_a_right_code_among_a_thousand_wrong_ones_doesnt_pass_behind_the_lock(totp: TotpSet) -> None:
    await early()
    await totp.enrol()
    answers = await hammer(totp, [wrong()] * 500 + [right()] + [wrong()] * 499, connections=1)
    assert {answer["parameters"]["state"] for answer in answers[3:]} == {"locked"}  # type: ignore[index]


async def test_of_a_hundred_times_the_same_right_code_at_once_one_passes(totp: TotpSet) -> None:
    await early()
    await totp.enrol()
    answers = await hammer(totp, [right()] * 100)
    assert [answer["parameters"]["state"] for answer in answers].count("ok") == 1  # type: ignore[index]


async def test_one_users_lock_is_no_other_users(totp: TotpSet) -> None:
    await totp.enrol()
    await totp.enrol("bob", OTHER)
    for _ in range(4):
        await totp.say(wrong())
    assert (await totp.say("", "alice")).state == "locked"
    assert (await totp.say(right(secret=OTHER), "bob")).state == "ok"


async def test_guesses_across_restarts_are_counted_as_if_there_were_none(totp: TotpSet) -> None:
    await totp.enrol()
    states = []
    for number in range(6):
        if number % 2:
            await totp.stop()
        elif totp.service.pid:
            totp.kill(signal.SIGKILL)
        states.append((await asking(totp, wrong())).state)
    assert states == ["bad", "bad", "locked", "locked", "locked", "locked"]


async def asking(totp: TotpSet, code: str) -> Verdict:
    """As often as the verifier goes away without an answer."""
    async with asyncio.timeout(30):
        while True:
            try:
                return await totp.say(code)
            except Unavailable:
                await asyncio.sleep(0.05)


@pytest.mark.parametrize("point", POINTS)
async def test_a_kill_at_any_point_gives_no_guess_away(sets: Sets, point: str) -> None:
    """However often it is killed there, no more wrong codes are answered than there are attempts."""
    totp = sets(point=point, lockout=86400)
    flag = totp.directory / "kill"
    await totp.enrol()
    heard: list[str] = []
    for number in range(8):
        if number % 2 == 0:
            flag.touch()
        try:
            heard.append((await totp.say(wrong())).state)
        except Unavailable:
            assert not flag.exists(), "it was killed at its point"
            while totp.service.pid:
                await asyncio.sleep(0.02)
        flag.unlink(missing_ok=True)
    assert heard.count("bad") <= 2
    assert heard[-1] == "locked"
    for _ in range(3):
        assert (await totp.say(right())).state == "locked"


@pytest.mark.parametrize("point", POINTS)
async def test_a_kill_at_any_point_lets_no_code_pass_twice(sets: Sets, point: str) -> None:
    totp = sets(point=point)
    await early()
    await totp.enrol()
    (totp.directory / "kill").touch()
    code = right()
    passed = []
    for _ in range(3):
        try:
            passed.append((await totp.say(code)).state)
        except Unavailable:
            assert not (totp.directory / "kill").exists()
            while totp.service.pid:
                await asyncio.sleep(0.02)
    assert passed.count("ok") <= 1
    if point in ("asked", "judged", "written"):
        assert passed == ["ok", "bad"], "nothing was on disk, so the code is as good as new"
    if point == "committed":
        assert passed == ["bad", "bad"], "used up, though nobody heard it"


# ---- what is lost, damaged or full ----


async def test_a_full_disk_lets_nobody_pass_and_nothing_is_open_afterwards(totp: TotpSet) -> None:
    await totp.enrol()
    for _ in range(2):
        await totp.say(wrong())
    pid = totp.service.pid
    assert pid
    wal = totp.database.with_name("totp.db-wal")
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (wal.stat().st_size, before[1]))
    said = set()
    for code in (right(), wrong(), right(), wrong(), wrong()):
        with pytest.raises(Doubtful, match="check the disk") as caught:
            await totp.say(code)
        said.add(str(caught.value))
    assert len(said) == 1, "right and wrong are told the same"
    resource.prlimit(pid, resource.RLIMIT_FSIZE, before)
    assert await totp.say("") == Verdict("bad", remaining=1)
    assert (await totp.say(wrong())).state == "locked"


@pytest.mark.parametrize("size", [0, 10, 4096, 6000])
async def test_a_damaged_database_lets_nobody_pass_and_says_how_to_go_on(totp: TotpSet, size: int) -> None:
    await totp.enrol()
    await totp.say(wrong())
    await totp.stop()
    data = totp.database.read_bytes()
    totp.database.write_bytes(data[:size] + b"not a database " * ((len(data) - size) // 15))
    for code in (right(), ""):
        with pytest.raises(Fault) as caught:
            await totp.say(code)
        assert isinstance(caught.value, Doubtful | Misconfigured)
        assert "sudo kai totp unlock" in str(caught.value)
    await totp.stop()
    for file in totp.database.parent.iterdir():
        file.unlink()
    with pytest.raises(Doubtful, match="sudo kai totp unlock alice"):
        await totp.say(right())
    await totp.call(Unlock("alice"))
    assert (await totp.say("")).state == "bad"


async def test_an_empty_database_lets_nobody_pass(totp: TotpSet) -> None:
    await totp.enrol()
    await totp.stop()
    totp.database.write_bytes(b"")
    with pytest.raises(Doubtful, match="is lost"):
        await totp.say(right())


async def test_a_missing_credential_lets_nobody_pass(totp: TotpSet) -> None:
    await totp.enrol()
    (totp.credentials / "totp_alice").unlink()
    assert (await totp.say("")).state == "bad", "what it was started with holds until it leaves"
    await totp.stop()
    with pytest.raises(Doubtful, match="the secret of alice is missing"):
        await totp.say(right())
    [alice] = await totp.shown()
    assert "missing" in alice.trouble


@pytest.mark.parametrize("secret", ["", "JBSWY3DP", "not base32 at all", "\0" * 32])
async def test_a_secret_that_is_none_lets_nobody_pass(totp: TotpSet, secret: str) -> None:
    await totp.enrol()
    (totp.credentials / "totp_alice").write_text(secret)
    await totp.stop()
    with pytest.raises(Doubtful, match="--replace"):
        await totp.say(right())


async def test_credentials_that_were_not_handed_over_let_nobody_pass(totp: TotpSet) -> None:
    await totp.enrol()
    await totp.stop()
    totp.credentials.rename(totp.directory / "elsewhere")
    with pytest.raises(Fault):
        await totp.say(right())


async def test_a_broken_configuration_lets_nobody_pass(totp: TotpSet) -> None:
    await totp.enrol()
    await totp.stop()
    totp.configure(attempts=99)
    with pytest.raises(Misconfigured, match=r"totp\.attempts"):
        await totp.say(right())
    await asyncio.wait_for(totp.service.exited.wait(), 10)
    totp.configure()
    assert (await totp.say(right())).state == "ok"


async def test_a_reload_takes_new_limits_up_and_keeps_the_old_ones_where_they_are_broken(totp: TotpSet) -> None:
    await totp.enrol()
    for attempts, remaining in ((7, 7), (99, 7), (5, 5)):
        totp.configure(attempts=attempts)
        totp.kill(signal.SIGHUP)
        await asyncio.sleep(0.3)
        assert await totp.say("") == Verdict("bad", remaining=remaining)


async def test_a_marker_that_comes_or_goes_counts_at_once(totp: TotpSet) -> None:
    await totp.enrol()
    (totp.markers / "alice").unlink()
    assert (await totp.say(right())).state == "off"
    totp.mark()
    assert (await totp.say(right())).state == "ok"


async def test_the_marker_of_one_who_may_not_be_looked_at_lets_nobody_pass(totp: TotpSet) -> None:
    await totp.enrol()
    marker = totp.markers / "alice"
    marker.unlink()
    marker.symlink_to(marker)
    with pytest.raises(Doubtful, match="enrolled/alice"):
        await totp.say(right())


async def test_no_code_and_no_secret_reaches_the_log(totp: TotpSet) -> None:
    await totp.enrol()
    said = [right(), wrong(), "12345x", "7" * 7]
    for code in said:
        try:
            await totp.say(code)
        except Fault:
            continue
    await totp.stop()
    assert "accepted" in totp.log
    for text in (*said, SECRET):
        assert text not in totp.log
