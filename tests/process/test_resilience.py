"""Daemons that restart, crash, are misconfigured or driven badly: nothing is lost, nothing runs twice."""

import asyncio
import json
import signal
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from kai.demo.botapi.faults import Fault
from kai.interfaces import Deliver, Hello, Retire, Start
from kai.lib.client import Client, delays
from kai.lib.varlink import InvalidParameter, Misconfigured, Unavailable

from .conftest import TOKEN, Stage, Stages

AGENT = "kai-agent@alice"


def runs(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
async def test_a_bot_that_ends_in_mid_answer_rejoins_the_turn(
    stages: Stages, tmp_path: Path, how: signal.Signals
) -> None:
    counter = tmp_path / "runs"
    stage: Stage = await stages(runs=counter)
    stage.say("slow 15")
    await stage.growing("word3")
    stage.launcher.kill("kai-bot", how)
    await stage.launcher.wait_exit("kai-bot")
    if how == signal.SIGTERM:
        await stage.launcher.restart("kai-bot")
    answer = await stage.answer("word15", timeout=20)
    assert "word1 word2" in (answer.text or "")
    assert runs(counter) == 1
    assert sum("word15" in text for text in stage.shown()) == 1


async def test_what_was_queued_when_the_bot_was_killed_is_answered_in_order_and_once(
    stages: Stages, tmp_path: Path
) -> None:
    counter = tmp_path / "runs"
    stage: Stage = await stages(runs=counter)
    stage.say("slow 10")
    await stage.growing("word1")
    for number in range(4):
        stage.say(f"! echo queued-{number}")
    await stage.api.wait_for(lambda: any("4 messages wait" in text for text in stage.shown()))
    stage.launcher.kill("kai-bot")
    await stage.answer("queued-3", timeout=30)
    finals = [text for text in stage.shown() if "queued-" in text]
    assert [text.split()[0] for text in finals] == [f"queued-{number}" for number in range(4)]
    assert runs(counter) == 5


async def test_an_update_that_telegram_hands_out_twice_is_worked_on_once(stages: Stages, tmp_path: Path) -> None:
    counter = tmp_path / "runs"
    stage: Stage = await stages(runs=counter)
    stage.api.add_fault(Fault(kind="lose", method="getUpdates", count=3))
    stage.say("! echo once-only")
    await stage.answer("once-only", timeout=30)
    stage.say("! echo after")
    await stage.answer("after", timeout=30)
    assert runs(counter) == 2


async def test_a_supervisor_told_to_stop_lets_the_turn_finish(stages: Stages) -> None:
    stage: Stage = await stages(stop_patience=60.0)
    stage.say("slow 15")
    await stage.growing("word3")
    stage.launcher.kill(AGENT, signal.SIGTERM)
    stage.say("! echo next")
    answer = await stage.answer("word15")
    assert "⏹" not in (answer.text or "")
    await stage.answer("next")
    assert stage.launcher.starts(AGENT) == 2


async def test_a_drain_that_runs_out_interrupts_and_keeps_the_part(stages: Stages) -> None:
    stage: Stage = await stages(settings={"drain": 1}, stop_patience=60.0)
    stage.say("slow 200")
    await stage.growing("word3")
    stage.launcher.kill(AGENT, signal.SIGTERM)
    answer = await stage.growing("cut off")
    assert "word3" in (answer.text or "")


async def test_a_retiring_supervisor_finishes_its_turn_and_then_leaves(stage: Stage) -> None:
    stage.say("slow 10")
    await stage.growing("word2")
    client = Client(stage.launcher.runtime / "agent/alice.sock")
    await client.call(Retire())
    await stage.answer("word10")
    await stage.launcher.wait_exit(AGENT)
    stage.say("! echo again")
    await stage.answer("again")
    assert stage.launcher.starts(AGENT) == 2


async def test_a_turn_whose_supervisor_is_killed_is_told_and_not_run_again(stages: Stages, tmp_path: Path) -> None:
    counter = tmp_path / "runs"
    stage: Stage = await stages(runs=counter)
    stage.say("slow 100")
    await stage.growing("word3")
    stage.launcher.kill(AGENT)
    answer = await stage.growing("cut off")
    assert "word3" in (answer.text or ""), "what was shown stays"
    assert runs(counter) == 1
    stage.say("! echo works-again")
    await stage.answer("works-again")


async def test_the_agent_is_ended_when_idle_and_comes_back_with_the_same_session(stages: Stages) -> None:
    stage: Stage = await stages(settings={"agent": {"idle_timeout": 1}})
    stage.say("! echo before-the-pause")
    await stage.answer("before-the-pause")
    await stage.launcher.wait_exit(AGENT, within=15)
    assert stage.launcher.pid(AGENT) is None
    stage.say("history")
    assert "before-the-pause" in ((await stage.answer("before-the-pause", after=3)).text or "")
    assert stage.launcher.starts(AGENT) == 2


async def test_an_agent_that_dies_in_a_turn_is_told_with_its_last_words(stage: Stage) -> None:
    stage.say("die")
    answer = await stage.answer("told to `die`")
    assert (answer.text or "").startswith("I am"), "the part before the death stays"
    stage.say("! echo alive")
    await stage.answer("alive")


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("import sys; sys.exit('no licence for this machine')", "no licence for this machine"),
        ("print('garbage\\n' * 1000, flush=True); import time; time.sleep(0.2); raise SystemExit(3)", "exit status 3"),
        ("print('x' * (16 << 20) + 'y', flush=True); raise SystemExit(4)", "exit status 4"),
        ("import sys; sys.stdout.buffer.write(b'\\xff\\xfe' * 100000 + b'\\n'); raise SystemExit(5)", "exit status 5"),
    ],
)
async def test_an_agent_that_cannot_start_or_talks_garbage_is_told(stages: Stages, script: str, expected: str) -> None:
    stage: Stage = await stages(agent_command=[sys.executable, "-I", "-c", script])
    stage.say("hello")
    await stage.answer(expected, timeout=30)


@pytest.mark.parametrize("command", ["/nowhere/claude", "/etc/passwd"])
async def test_an_agent_command_that_cannot_be_run_is_named(stages: Stages, command: str) -> None:
    stage: Stage = await stages(agent_command=[command])
    stage.say("hello")
    await stage.answer(command)


async def test_a_turn_and_a_delivery_that_meet_a_broken_configuration_wait_and_arrive_after_the_repair(
    stage: Stage,
) -> None:
    users = stage.launcher.directory / "etc/users.yaml"
    good = users.read_text()
    users.write_text("users: [{telegram_id: nonsense, name: alice}]\n")
    client = Client(stage.launcher.runtime / "agent/alice.sock")
    with pytest.raises(Misconfigured, match=r"users\[0\]\.telegram_id"):
        await client.call(Hello())
    stage.say("! echo patient")
    await stage.growing("users[0].telegram_id")
    stage.launcher.kill("kai-bot", signal.SIGTERM)
    await stage.launcher.wait_exit("kai-bot")
    stage.launcher.services["kai-bot"].start()
    assert await stage.launcher.wait_exit("kai-bot") == 78
    bot = Client(stage.launcher.runtime / "bot.sock")

    async def deliver() -> None:
        for delay in delays():
            with suppress(Unavailable):
                await bot.call(Deliver(key="k", user="alice", text="*delivered*"))
                return
            await asyncio.sleep(delay)

    delivery = asyncio.create_task(deliver())
    await asyncio.sleep(0.5)
    assert not delivery.done()
    users.write_text(good)
    await stage.launcher.stop()
    await stage.launcher.start()
    await asyncio.wait_for(delivery, 20)
    await stage.answer("patient", timeout=30)
    await stage.answer("delivered")
    assert sum("patient" in text for text in stage.shown()) == 1


async def test_a_reload_with_a_broken_file_keeps_the_last_good_one_and_says_so(stage: Stage) -> None:
    (stage.launcher.directory / "etc/users.yaml").write_text("users: nonsense\n")
    stage.launcher.kill("kai-bot", signal.SIGHUP)
    async with asyncio.timeout(5):
        while "the configuration read before stays in force" not in stage.launcher.logs("kai-bot"):
            await asyncio.sleep(0.05)
    assert "users.yaml" in stage.launcher.logs("kai-bot")
    stage.say("/help")
    await stage.answer("/stats")


async def test_a_user_who_is_gone_after_a_reload_is_a_stranger(stage: Stage) -> None:
    users = stage.launcher.directory / "etc/users.yaml"
    rows = [row for row in json.loads(users.read_text())["users"] if row["name"] != "bob"]
    users.write_text(json.dumps({"users": rows}))
    stage.launcher.kill("kai-bot", signal.SIGHUP)
    async with asyncio.timeout(5):
        while "configuration read again: 1 users" not in stage.launcher.logs("kai-bot"):
            await asyncio.sleep(0.05)
    stage.say("/help", user=1002)
    stage.say("/help")
    await stage.answer("/stats")
    assert stage.shown(1002) == []


async def test_the_same_delivery_again_stores_nothing_new(stage: Stage) -> None:
    bot = Client(stage.launcher.runtime / "bot.sock")
    call = Deliver(key="job:1", user="alice", text="**reminder**")
    first = await bot.call(call)
    assert await bot.call(call) == first
    message = await stage.answer("reminder")
    assert [entity["type"] for entity in message.entities] == ["bold"]
    await asyncio.sleep(0.3)
    assert stage.shown().count("reminder") == 1
    with pytest.raises(InvalidParameter, match="nobody"):
        await bot.call(Deliver(key="x", user="nobody-here", text="t"))


async def test_a_turn_started_twice_runs_once_and_gives_the_same_answer(stages: Stages, tmp_path: Path) -> None:
    counter = tmp_path / "runs"
    stage: Stage = await stages(runs=counter)
    client = Client(stage.launcher.runtime / "agent/alice.sock")
    start = Start(turn="1.1", prompt=[{"kind": "text", "text": "! echo same"}])  # type: ignore[list-item]

    async def run() -> object:
        last = None
        async for event in client.stream(start):
            last = event
        return last

    first, second = await asyncio.gather(run(), run())
    assert first == second
    assert await run() == first
    assert runs(counter) == 1


async def test_a_token_that_telegram_refuses_is_told_without_a_hot_loop(stages: Stages) -> None:
    stage: Stage = await stages(start=False)
    stage.api.add_fault(Fault(kind="unauthorized", count=None))
    await stage.launcher.start()
    await stage.launcher.wait_ready("kai-bot")
    async with asyncio.timeout(5):
        while "refuses the token (401)" not in stage.status():
            await asyncio.sleep(0.05)
    before = len(stage.api.calls("getUpdates"))
    await asyncio.sleep(3)
    assert len(stage.api.calls("getUpdates")) == before
    assert TOKEN not in stage.launcher.logs("kai-bot")


async def test_another_poller_is_told_and_the_bot_goes_on_when_it_ends(stage: Stage) -> None:
    stage.api.add_fault(Fault(kind="conflict", method="getUpdates", count=1))
    stage.say("! echo after-the-conflict")
    await stage.answer("after-the-conflict", timeout=30)
    assert "(409)" in stage.launcher.logs("kai-bot")


async def test_telegram_away_for_a_while_costs_nothing(stage: Stage) -> None:
    stage.api.add_fault(Fault(kind="drop", count=12))
    stage.say("! echo patience")
    await stage.answer("patience", timeout=60)
    assert sum("patience" in text for text in stage.shown()) == 1


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("etc/kai.yaml", "nonsense: 1\n", "nonsense"),
        ("etc/users.yaml", "users: [\n", "users.yaml"),
        ("etc/users.yaml", "users: [{telegram_id: 1, name: a}, {telegram_id: 1, name: b}]\n", "telegram_id"),
        ("credentials/kai-telegram-token", "", "/etc/credstore/kai-telegram-token"),
    ],
)
async def test_a_bot_that_cannot_work_says_why_and_exits_78(
    stages: Stages, file: str, content: str, expected: str
) -> None:
    stage: Stage = await stages()
    (stage.launcher.directory / file).write_text(content)
    stage.launcher.kill("kai-bot", signal.SIGTERM)
    await stage.launcher.wait_exit("kai-bot")
    stage.launcher.services["kai-bot"].start()
    assert await stage.launcher.wait_exit("kai-bot") == 78
    assert expected in stage.launcher.end_of_log("kai-bot")
    assert not (stage.launcher.runtime / "bot.sock").exists(), "its socket goes down with it"


async def test_a_message_that_waits_for_a_repair_can_be_dropped(stage: Stage) -> None:
    users = stage.launcher.directory / "etc/users.yaml"
    good = users.read_text()
    users.write_text("users: nonsense\n")
    stage.say("! echo never")
    await stage.growing("users.yaml")
    stage.say("/stop")
    await stage.answer("Dropped before it began")
    users.write_text(good)
    stage.say("! echo later")
    await stage.answer("later", timeout=30)
    assert not any("never" in text or "can't start yet" in text for text in stage.shown())
