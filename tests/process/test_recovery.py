"""What goes on after a stop, a crash or a bad answer: each of these was once lost, doubled, or stuck for ever."""

import asyncio
import signal
import sys
from pathlib import Path

import pytest

from kai.bot.content import sound
from kai.demo.botapi.faults import Fault
from kai.lib.store import Store

from .conftest import ALICE, Stage, Stages

AGENT = "kai-agent@alice"


async def warm(stage: Stage) -> int:
    """One answer, so that the agent's journal is known and the next message may run at once."""
    stage.say("! echo warm")
    return (await stage.answer("warm")).message_id


async def stop(stage: Stage, unit: str = "kai-bot", how: signal.Signals = signal.SIGTERM) -> None:
    stage.launcher.kill(unit, how)
    await stage.launcher.wait_exit(unit)


async def test_a_supervisor_whose_agent_died_in_a_turn_leaves_when_idle(stage: Stage) -> None:
    stage.say("die")
    await stage.answer("told to `die`")
    assert await stage.launcher.wait_exit(AGENT, within=20) == 0


async def test_a_placeholder_that_was_not_sent_before_a_crash_is_sent_once_after_it(stage: Stage) -> None:
    before = await warm(stage)
    stage.api.add_fault(Fault(kind="drop", method="sendMessage", count=None))
    stage.say("slow 40")
    stage.say("/help")
    await asyncio.sleep(1)
    await stop(stage, how=signal.SIGKILL)
    stage.api.faults.clear()
    stage.api.add_fault(Fault(kind="hold", method="sendMessage", count=None, seconds=0.5))
    await stage.growing("word", timeout=20)
    growing = [m for m in stage.api.messages(ALICE) if m.by_bot and m.buttons and m.message_id > before]
    assert len(growing) == 1


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
async def test_a_bot_that_ends_while_a_part_is_sent_can_still_stop_later_turns(
    stage: Stage, how: signal.Signals
) -> None:
    await warm(stage)
    sent = len(stage.api.calls("sendMessage"))
    stage.api.add_fault(Fault(kind="delay", method="sendMessage", count=None, seconds=1, skip=1))
    stage.say("! seq 1 1500")
    await stage.api.wait_for(lambda: len(stage.api.calls("sendMessage")) >= sent + 2, timeout=15)
    await asyncio.sleep(0.2)
    await stop(stage, how=how)
    stage.api.faults.clear()
    if how == signal.SIGTERM:
        await stage.launcher.restart("kai-bot")
    await stage.answer("1500")
    stage.say("slow 100")
    await stage.growing("word3")
    stage.say("/stop")
    await stage.answer("⏹ Stopped")
    assert sum("1500" in text for text in stage.shown()) == 1
    assert not any("already ended" in text for text in stage.shown())


async def test_a_stop_reaches_the_running_turn_while_the_answer_before_it_is_held_up(stage: Stage) -> None:
    await warm(stage)
    stage.api.add_fault(Fault(kind="flood", method="editMessageText", count=1, retry_after=3))
    stage.say("! echo one")
    stage.say("slow 200")
    await asyncio.sleep(1)
    stage.say("/stop")
    await stage.answer("⏹ Stopped", timeout=30)


async def test_stop_all_spares_what_was_said_after_it(stage: Stage) -> None:
    await warm(stage)
    await stop(stage)
    stage.say("! echo first")
    stage.say("/stop all")
    stage.say("! echo later-message")
    await stage.launcher.restart("kai-bot")
    await stage.answer("later-message")


AGENT_THAT_SAYS = """
import json, sys
def say(message): print(json.dumps(message), flush=True)
ask = json.loads(sys.stdin.readline())
say({"type": "control_response", "response": {"subtype": "success", "request_id": ask["request_id"]}})
for line in sys.stdin:
    say(%s)
"""


@pytest.mark.parametrize(
    ("result", "shown"),
    [
        ("""{"is_error": True, "result": "x" * (2 << 20), "session_id": "s"}""", "xxx"),
        ("""{"is_error": False, "result": "fine", "session_id": "s" * (2 << 20)}""", "fine"),
        ("""{"is_error": False, "result": "fine", "session_id": "\\x1b]0;owned\\x07"}""", "fine"),
        ("""{"is_error": False, "result": "y" * (2 << 20), "session_id": "s"}""", "is cut"),
    ],
)
async def test_an_agent_that_answers_megabytes_still_answers(
    stages: Stages, tmp_path: Path, result: str, shown: str
) -> None:
    message = f'{{"type": "result", "subtype": "success", **{result}}}'
    (tmp_path / "agent.py").write_text(AGENT_THAT_SAYS % message)
    stage: Stage = await stages(agent_command=[sys.executable, "-I", str(tmp_path / "agent.py")])
    stage.say("hello")
    await stage.answer(shown, timeout=30)
    stage.say("/stats")
    assert "owned" not in ((await stage.answer("Session:")).text or "")


@pytest.mark.parametrize("how", ["/stop", "the button"])
async def test_a_running_row_that_waits_for_a_repair_can_be_stopped(stage: Stage, how: str) -> None:
    users = stage.launcher.directory / "etc/users.yaml"
    good = users.read_text()
    await warm(stage)
    await stop(stage, AGENT)
    users.write_text("users: nonsense\n")
    stage.say("! echo never")
    message = await stage.growing("users.yaml")
    if how == "/stop":
        stage.say("/stop")
    else:
        stage.api.press(ALICE, message.message_id, index=0)
    await stage.answer("⏹ Stopped", timeout=30)
    users.write_text(good)
    stage.say("! echo later")
    await stage.answer("later", timeout=30)
    assert not any("never" in text for text in stage.shown())


async def test_a_refused_token_buries_no_answer(stage: Stage) -> None:
    await warm(stage)
    stage.say("slow 40")
    await stage.growing("word2")
    stage.api.add_fault(Fault(kind="unauthorized", count=None))
    await asyncio.sleep(4)
    stage.api.faults.clear()
    await stop(stage)
    await stage.launcher.restart("kai-bot")
    await stage.answer("word40", timeout=30)


async def test_a_session_survives_the_death_of_its_supervisor_in_the_first_turn(stage: Stage) -> None:
    stage.say("slow 100")
    await stage.growing("word3")
    stage.launcher.kill(AGENT)
    cut = await stage.growing("cut off")
    stage.say("history")
    assert "slow 100" in ((await stage.answer("", after=cut.message_id)).text or "")


async def test_a_backend_that_is_not_there_is_named(stages: Stages) -> None:
    stage: Stage = await stages(users=[{"telegram_id": ALICE, "name": "alice", "backend": "acp"}])
    stage.say("hello")
    await stage.answer("backend: claude")


async def test_a_supervisor_that_cannot_be_reached_is_told_and_waited_for(stage: Stage) -> None:
    socket = stage.launcher.runtime / "agent/alice.sock"
    socket.rename(socket.with_name("away"))
    stage.say("! echo patient")
    await stage.growing("waits", timeout=20)
    socket.with_name("away").rename(socket)
    await stage.answer("patient", timeout=20)


async def test_the_bot_fails_once_and_clearly_on_a_token_that_cannot_be_one(stage: Stage) -> None:
    (stage.launcher.directory / "credentials/kai-telegram-token").write_text("not a token")
    await stop(stage)
    stage.launcher.services["kai-bot"].start()
    assert await stage.launcher.wait_exit("kai-bot") == 78
    assert "expected 123456:ABC" in stage.launcher.end_of_log("kai-bot")


async def test_half_a_surrogate_pair_is_made_storable(tmp_path: Path) -> None:
    store = Store(tmp_path / "a.db", "CREATE TABLE t (text TEXT)")
    await store.write(lambda db: db.execute("INSERT INTO t VALUES (?)", (sound("half \ud83d pair"),)))
    (row,) = await store.read("SELECT text FROM t")
    assert row["text"] == "half ? pair"
    store.close()
