"""The TOTP gate in the chat: real bot, real verifier, real supervisor; Telegram is the strict stand-in."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pyotp
import pytest

from kai.demo.botapi.faults import Fault
from kai.interfaces import Queue, Status, Unlock
from kai.lib import codes, enrolment
from kai.lib.client import Client
from kai.lib.enrolment import Marker

from . import totp
from .conftest import ALICE, BOB, Stage, Stages

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c6360000002000001e221bc3300"
    "00000049454e44ae426082"
)
ASKS = "Send the six digits"


class Locked:
    """A stage whose Alice is enrolled; bob isn't, and is the admin."""

    def __init__(self, stage: Stage) -> None:
        self.stage, self.api, self.launcher = stage, stage.api, stage.launcher
        self.markers = self.launcher.directory / "state/totp/enrolled"
        self.last = 0

    async def enrol(self, user: str = "alice", secret: str = totp.SECRET) -> None:
        """What `kai totp setup` does."""
        unit = totp.unit(self.launcher.directory, self.launcher.runtime)
        if "kai-totp" not in self.launcher.services:
            self.launcher.add(unit)
        (self.launcher.directory / "credentials" / f"totp_{user}").write_text(f"{secret}\n")
        # Not older: a verifier that starts slowly sees the next step, and knows no more what was used before.
        self.last = step = codes.step_at(time.time()) - 1
        fresh = self.markers / ".new"
        fresh.write_bytes(enrolment.encode(Marker(step, codes.fingerprint(secret))))
        fresh.rename(self.markers / user)
        if self.launcher.pid("kai-totp"):
            self.launcher.kill("kai-totp", signal.SIGTERM)
            await self.launcher.wait_exit("kai-totp")
        await Client(self.launcher.runtime / "totp.sock").call(Unlock(user), timeout=20)

    async def code(self, secret: str = totp.SECRET) -> str:
        """A code that wasn't sent yet and is good for 15 seconds more: the step before this one is taken until its
        half."""
        while True:
            now = codes.step_at(time.time())
            step = max(self.last + 1, now - (codes.step_at(time.time() + 15) == now))
            if step <= now + 1:
                self.last = step
                return str(pyotp.TOTP(secret).generate_otp(step))
            await asyncio.sleep(0.5)

    def say(self, text: str, user: int = ALICE) -> int:
        return self.stage.say(text, user)

    async def told(self, contains: str, *, user: int = ALICE, after: int = 0, timeout: float = 20) -> str:
        return (await self.stage.answer(contains, user=user, after=after, timeout=timeout)).text or ""

    async def unlock(self, *, timeout: float = 20) -> None:
        after = self.newest()
        self.say(await self.code())
        await self.told("Let in", after=after, timeout=timeout)

    async def inbox(self) -> list[tuple[str, str, str]]:
        """Kind, state and text of all that alice sent."""
        found = await Client(self.launcher.runtime / "bot.sock").call(Queue(user="alice", everything=True))
        return [(one.kind, one.state, one.text) for one in found.entries if one.id.startswith("i")]

    async def let_in(self) -> list[str]:
        return (await Client(self.launcher.runtime / "bot.sock").call(Status())).let_in

    async def reached(self, look: Callable[[list[tuple[str, str, str]]], bool], within: float = 40) -> None:
        async with asyncio.timeout(within):
            while not look(await self.inbox()):
                await asyncio.sleep(0.05)

    def newest(self) -> int:
        return max((message.message_id for message in self.api.messages(ALICE)), default=0)

    async def stop_bot(self, number: signal.Signals = signal.SIGKILL) -> None:
        pid = self.launcher.pid("kai-bot")
        assert pid
        os.kill(pid, number)
        await self.launcher.wait_exit("kai-bot")

    async def until(self, condition: Callable[[], bool], within: float = 20) -> None:
        async with asyncio.timeout(within):
            while not condition():
                await asyncio.sleep(0.02)


Make = Callable[..., Any]


@pytest.fixture
async def make(stages: Stages) -> AsyncIterator[Make]:
    async def made(*, enrolled: bool = True, start: bool = True, **settings: int) -> Locked:
        users = [
            {"telegram_id": ALICE, "name": "alice", "timezone": "Asia/Tokyo"},
            {"telegram_id": BOB, "name": "bob", "role": "admin"},
        ]
        scene = Locked(await stages(users=users, settings={"totp": settings}, start=start))
        if enrolled:
            await scene.enrol()
        return scene

    yield made


@pytest.fixture
async def locked(make: Make) -> Locked:
    made: Locked = await make()
    return made


# ---- the way of a message ----


async def test_a_message_runs_after_a_code_and_the_code_is_nowhere_left(locked: Locked) -> None:
    locked.say("! echo ran")
    asked = await locked.told(ASKS)
    assert "Held until then: “! echo ran”" in asked
    code = await locked.code()
    message = locked.say(code)
    await locked.told("Let in. It locks again after 30 min")
    await locked.told("ran\n")
    await locked.until(lambda: message not in [each.message_id for each in locked.api.messages(ALICE)])
    await locked.reached(lambda rows: rows == [("turn", "delivered", "! echo ran"), ("control", "delivered", "")])
    for path in locked.launcher.directory.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.parent.name != "credentials":
            assert code.encode() not in path.read_bytes(), path


async def test_once_let_in_a_user_is_asked_no_more(locked: Locked) -> None:
    await locked.unlock()
    for word in ("one", "two"):
        locked.say(f"! echo {word}")
        await locked.told(f"{word}\n")
    assert not any(ASKS in text for text in locked.stage.shown())


async def test_the_operator_sees_who_is_let_in_until_it_locks(make: Make) -> None:
    scene = await make(idle=5)
    assert await scene.let_in() == []
    await scene.unlock()
    async with asyncio.timeout(60):
        while await scene.let_in() != ["alice"]:
            await scene.unlock()  # a busy machine: it has locked before we looked
        while await scene.let_in():
            await asyncio.sleep(0.1)


async def test_who_is_not_enrolled_is_asked_nothing(locked: Locked) -> None:
    locked.say("! echo hello", user=BOB)
    await locked.told("hello\n", user=BOB)
    assert not any("🔒" in text for text in locked.stage.shown(BOB))


async def test_start_help_and_stop_pass_and_no_other_command(locked: Locked) -> None:
    for command in ("/start", "/help", "/stop"):
        locked.say(command)
        await locked.until(lambda: locked.stage.shown()[-1:] != [] and "🔒" not in locked.stage.shown()[-1])
    locked.say("/stats")
    assert "Held until then: “/stats”" in await locked.told(ASKS)
    await locked.unlock()
    await locked.told("session")


async def test_stop_ends_a_turn_of_a_locked_out_user(make: Make) -> None:
    scene = await make(idle=60)
    await scene.unlock()
    scene.say("slow 3000")
    await scene.stage.growing()
    marker = scene.markers / "alice"
    marker.touch()  # enrolled anew: locked out at once
    scene.say("/stop")
    await scene.told("⏹ Stopped")


async def test_one_message_is_held_and_what_else_comes_is_told_of_once(locked: Locked) -> None:
    locked.say("! echo first")
    await locked.told(ASKS)
    for number in range(4):
        locked.say(f"! echo number {number}")
    await locked.told("others aren't taken")
    await locked.unlock()
    await locked.told("first\n")
    shown = locked.stage.shown()
    assert sum("others aren't taken" in text for text in shown) == 1
    assert not any("number" in text for text in shown)


async def test_an_album_is_held_and_runs_as_one(locked: Locked) -> None:
    for _ in range(3):
        locked.api.say(ALICE, photo=locked.api.put_file(PNG, name="p.png", kind="photo"), media_group_id="9")
    assert "a photo" in await locked.told(ASKS)
    await locked.unlock()
    await locked.reached(
        lambda rows: [state for kind, state, _ in rows if kind == "turn"] == ["delivered", "grouped", "grouped"]
    )


async def test_a_button_does_nothing_and_says_why(locked: Locked) -> None:
    await locked.unlock()
    locked.say("/settings")
    picker = await locked.api.wait_for(
        lambda: next((m for m in locked.api.messages(ALICE) if m.by_bot and m.buttons), None), timeout=20
    )
    (locked.markers / "alice").touch()
    pressed = locked.api.press(ALICE, picker.message_id, index=0)
    await locked.told(ASKS)
    answered = await locked.api.wait_for(
        lambda: found if (found := locked.api.callback(pressed.callback_id)).answered else None, timeout=20
    )
    assert "Locked" in (answered.text or "")


# ---- codes ----


async def test_wrong_codes_lock_out_give_up_what_was_held_and_are_told_to_admins(locked: Locked) -> None:
    locked.say("! echo mine")
    await locked.told(ASKS)
    for left in ("2 more wrong ones lock", "1 more wrong one locks"):
        locked.say(totp.wrong())
        await locked.told(left)
    locked.say(totp.wrong())
    assert "(Asia/Tokyo)" in await locked.told("Locked after too many wrong codes, until")
    await locked.told("This was not taken, send it again: “! echo mine”")
    await locked.told("alice is locked out until", user=BOB)
    after = locked.newest()
    locked.say(await locked.code())
    await locked.told("Locked after too many", after=after)
    locked.say("! echo again")
    await locked.told("This was not taken, send it again: “! echo again”")
    assert not any("mine\n" in text or "again\n" in text for text in locked.stage.shown())


async def test_a_code_counts_once(make: Make) -> None:
    scene = await make(idle=60)
    code = await scene.code()
    scene.say(code)
    await scene.told("Let in")
    scene.stage.launcher.kill("kai-bot", signal.SIGTERM)
    await scene.launcher.wait_exit("kai-bot")
    await scene.launcher.restart("kai-bot")
    scene.say("! echo stolen")
    await scene.told(ASKS)
    scene.say(code)
    await scene.told("Wrong code")
    assert not any("stolen\n" in text for text in scene.stage.shown())


async def test_a_mistyped_code_is_told_deleted_and_not_counted(locked: Locked) -> None:
    locked.say("! echo x")
    await locked.told(ASKS)
    for _ in range(4):
        message = locked.say("12345")
        await locked.told("isn't counted")
        await locked.until(lambda message=message: message not in [m.message_id for m in locked.api.messages(ALICE)])  # type: ignore[misc]
    await locked.unlock()
    await locked.told("x\n")


async def test_where_telegram_refuses_to_delete_the_code_its_user_is_told(locked: Locked) -> None:
    refusal = "Bad Request: message can't be deleted for everyone"
    locked.api.add_fault(Fault("refuse", "deleteMessage", count=None, code=400, description=refusal))
    await locked.unlock()
    await locked.told("please delete it yourself", timeout=60)


# ---- time ----


async def test_what_is_held_is_given_up_when_no_code_comes(make: Make) -> None:
    scene = await make(challenge=10)
    scene.say("! echo late")
    await scene.told(ASKS)
    await scene.told("No code came in time. This was not taken, send it again: “! echo late”", timeout=30)
    await scene.unlock()
    assert [state for kind, state, _ in await scene.inbox() if kind == "turn"] == ["expired"]
    assert not any("late\n" in text for text in scene.stage.shown())


async def test_own_output_keeps_no_gate_open_and_a_running_turn_goes_on(make: Make) -> None:
    scene = await make(idle=2)
    scene.say("slow 100")
    await scene.told(ASKS)
    await scene.unlock()
    await scene.told("word100", timeout=40)
    scene.say("! echo after")
    await scene.told(ASKS, after=scene.newest() - 1)
    assert not any("after\n" in text for text in scene.stage.shown())


# ---- restarts, and what came meanwhile ----


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_what_is_held_is_held_after_a_restart_and_everybody_is_locked_out(
    locked: Locked, number: signal.Signals
) -> None:
    locked.say("! echo held")
    await locked.told(ASKS)
    assert await locked.inbox() == [("turn", "held", "! echo held")]
    await locked.stop_bot(number)
    await locked.launcher.restart("kai-bot")
    locked.say("! echo another")
    await locked.told("others aren't taken")
    await locked.unlock()
    await locked.told("held\n")
    locked.say("! echo and now")
    await locked.told("and now\n")
    await locked.stop_bot(signal.SIGTERM)
    await locked.launcher.restart("kai-bot")
    locked.say("! echo no more")
    await locked.told("“! echo no more”")
    assert not any("no more\n" in text or "another\n" in text for text in locked.stage.shown())


async def test_a_code_that_was_being_checked_when_the_bot_died_opens_nothing(locked: Locked) -> None:
    locked.say("! echo held")
    await locked.told(ASKS)
    pid = locked.launcher.pid("kai-totp")
    assert pid
    os.kill(pid, signal.SIGSTOP)
    message = locked.say(await locked.code())
    await locked.until(lambda: not locked.api.pending())
    await locked.stop_bot()
    os.kill(pid, signal.SIGCONT)
    await locked.launcher.restart("kai-bot")
    await locked.told("restarted before it had checked this code")
    await locked.until(lambda: message not in [each.message_id for each in locked.api.messages(ALICE)])
    assert not any("held\n" in text for text in locked.stage.shown())
    await locked.unlock()
    await locked.told("held\n")


@pytest.mark.parametrize("order", ["message first", "code first"])
async def test_a_message_and_a_code_that_came_in_one_batch(locked: Locked, order: str) -> None:
    pid = locked.launcher.pid("kai-bot")
    assert pid
    os.kill(pid, signal.SIGSTOP)
    code = await locked.code()
    texts = ["! echo both", code]
    for text in texts if order == "message first" else texts[::-1]:
        locked.say(text)
    os.kill(pid, signal.SIGCONT)
    await locked.told("Let in")
    await locked.told("both\n")
    assert not any(code in text for text in locked.stage.shown())


async def test_what_a_thief_wrote_is_quoted_before_the_owners_code_lets_it_through(locked: Locked) -> None:
    locked.say("! echo " + "x" * 500 + ";   cat ~/.ssh/id_ed25519")
    asked = await locked.told(ASKS)
    assert "xxx; cat ~/.ssh/id_ed25519”" in asked


async def test_enrolled_anew_a_user_is_locked_out_at_once(locked: Locked) -> None:
    await locked.unlock()
    await locked.enrol(secret=totp.OTHER)
    locked.say("! echo again")
    await locked.told("“! echo again”")
    locked.say(await locked.code(totp.OTHER))
    await locked.told("again\n")


# ---- fail closed ----


async def denied(scene: Locked, reason: str) -> None:
    """Nothing passes, with or without a code; user and admin are told, the admin the reason."""
    scene.say("! echo passed")
    await scene.told("can't be checked now", timeout=40)
    assert reason in await scene.told("Nothing of alice is let in", user=BOB)
    scene.say(await scene.code())
    await scene.reached(lambda rows: ("control", "delivered", "") in rows)
    scene.say("! echo again")
    await scene.reached(lambda rows: sum(state == "expired" for _, state, _ in rows) == 2)
    assert sum("Nothing of alice" in text for text in scene.stage.shown(BOB)) == 1, "once an hour"
    assert not any("passed\n" in text or "again\n" in text for text in scene.stage.shown())


async def test_a_verifier_that_is_missing_denies(make: Make) -> None:
    scene = await make(enrolled=False)
    (scene.markers / "alice").write_text("{}")
    await denied(scene, "kai-totp can't be asked")


async def test_a_verifier_that_crashes_denies(make: Make) -> None:
    scene = await make()
    await scene.launcher.services.pop("kai-totp").close()
    listener = await asyncio.start_unix_server(
        lambda reader, writer: writer.close(), os.fspath(scene.launcher.runtime / "totp.sock")
    )
    await denied(scene, "kai-totp can't be asked")
    listener.close()


async def test_a_verifier_that_is_too_slow_denies(make: Make) -> None:
    scene = await make()
    scene.say("! echo passed")
    await scene.told(ASKS)
    pid = scene.launcher.pid("kai-totp")
    assert pid
    os.kill(pid, signal.SIGSTOP)
    scene.say(await scene.code())
    await scene.told("can't be checked now", timeout=40)
    await scene.told("no answer to kai.Totp.Verify within 10 s", user=BOB)
    os.kill(pid, signal.SIGCONT)
    await asyncio.sleep(0.5)
    assert not any("passed\n" in text for text in scene.stage.shown())


async def test_a_secret_that_is_lost_denies(make: Make) -> None:
    scene = await make()
    (scene.launcher.directory / "credentials/totp_alice").unlink()
    await scene.launcher.restart("kai-totp")
    await denied(scene, "alice")


async def test_a_verifier_that_knows_no_such_user_while_his_marker_is_there_denies(make: Make) -> None:
    scene = await make(enrolled=False)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\0")
        writer.write(json.dumps({"parameters": {"state": "off"}}).encode() + b"\0")
        await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(answer, os.fspath(scene.launcher.runtime / "totp.sock"))
    (scene.markers / "alice").write_text("{}")
    await denied(scene, "kai-totp says off of alice, who is enrolled")
    server.close()


async def test_where_who_is_enrolled_cant_be_read_nobody_passes(make: Make, tmp_path: Path) -> None:
    scene = await make(enrolled=False)
    scene.markers.rmdir()
    scene.say("! echo passed")
    scene.say("! echo passed", user=BOB)
    await scene.told("can't be told now")
    await scene.told("can't be told now", user=BOB)
    await scene.told("who is enrolled can't be read", user=BOB)
    scene.markers.mkdir()
    scene.say("! echo well again")
    await scene.told("well again\n")
    assert not any("passed\n" in text for text in scene.stage.shown())
