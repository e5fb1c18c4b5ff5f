"""The message that grows: what the agent does now, for how long, and what it has done."""

import re

from .conftest import ALICE, Stage

CLOCK = re.compile(r"^⚙ (\w+: [\w ]+) · (0:\d\d)$", re.MULTILINE)

COUNTS = re.compile(r"✓ \d+ \w+, \d+ \w+, \d+ \w+")


def versions(stage: Stage, message: int) -> list[str]:
    return [version.text or "" for version in stage.api.message_view(ALICE, message).versions]


async def test_the_clock_of_a_long_command_goes_on_while_nothing_is_heard_of_it(stage: Stage) -> None:
    stage.say("! sleep 4323")
    message = await stage.growing("⚙ Bash: sleep 4323")

    def ticks() -> list[tuple[str, str]]:
        return [(found[1], found[2]) for text in versions(stage, message.message_id) for found in CLOCK.finditer(text)]

    await stage.api.wait_for(lambda: len(ticks()) >= 2, timeout=20)
    assert {tool for tool, _ in ticks()} == {"Bash: sleep 4323"}
    times = [time for _, time in ticks()]
    assert times == sorted(set(times)), "it goes forward, and nothing is edited that looks the same"
    stage.say("/stop")
    stopped = await stage.answer("⏹ Stopped")
    assert "⚙" not in (stopped.text or "")


async def test_a_sub_agent_shows_for_how_long_it_works(stage: Stage) -> None:
    stage.say("agent 7 look around")
    message = await stage.growing("⚙ ")
    answer = await stage.answer("", after=message.message_id - 1, timeout=30)
    assert answer.message_id == message.message_id
    shown = versions(stage, message.message_id)
    assert any(CLOCK.search(text) for text in shown), shown
    assert not any("{" in text or "toolu_" in text for text in shown)
    assert "⚙" not in (answer.text or "")


async def test_what_ran_is_counted_while_it_runs_and_not_in_the_answer(stage: Stage) -> None:
    stage.say("tools 12000")
    message = await stage.growing(" Grep")
    lines = (message.text or "").splitlines()
    assert COUNTS.fullmatch(lines[-1]), lines
    stage.say("/stop")
    stopped = await stage.answer("⏹ Stopped")
    assert stopped.message_id == message.message_id
    assert "✓" not in (stopped.text or "")
    assert not any("{" in text for text in versions(stage, message.message_id))


async def test_while_nothing_changes_nothing_is_edited(stage: Stage) -> None:
    stage.say("silent 6")
    answer = await stage.answer("Before the silence.", timeout=30)
    assert versions(stage, answer.message_id) == ["⏳", "Before the silence.\n\n⏳", "Before the silence."]
    assert len(stage.api.calls("editMessageText")) == 2
