"""Questions of the agent in the chat: asked once, answered by the one who is asked, and settled whatever happens."""

import asyncio
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest

from kai.agent.live import LiveTurn
from kai.demo.botapi.faults import Fault
from kai.demo.botapi.views import CallbackView, MessageView
from kai.interfaces import Answer, Answered, Event, Join, Start, Stop, Stopped, UnknownTurn
from kai.lib.peers import Peer
from kai.lib.server import Emit

from .conftest import ALICE, BOB, Stage, Stages
from .scripted import Supervisor, serving

QUESTION = "asks for your approval"
ONCE, SESSION, DENY = "Allow once", "Allow this session", "Deny"
ASKED = Event(
    kind="approval",
    approval="q1",
    tool="Bash",
    summary="rm -r build",
    detail="rm -r build",
    patterns=["Bash(rm:*)"],
    running=True,
)


class Asking(Supervisor):
    """A turn `ask` has one question; its answer ends the turn. What is said to a follower is what a real one says."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[str, LiveTurn] = {}
        self.overtaken: Answered | None = None

    def handlers(self) -> Any:
        return {**super().handlers(), Answer: self.answer}

    async def start(self, peer: Peer, call: Start, descriptors: list[int], emit: Emit) -> Event:
        live = self.live[call.turn] = LiveTurn(call.turn)
        live.apply(Event(kind="started", session="s"))
        if call.prompt[0].text == "ask":
            live.apply(Event(kind="text", text="I would like to clean up."))
            live.apply(Event(kind="tool", call="t1", tool="Bash", summary="rm -r build", running=True))
            live.apply(ASKED)
        else:
            self.end(call.turn, text=f"did {call.prompt[0].text}")
        return await live.follow(emit)

    async def join(self, peer: Peer, call: Join, emit: Emit) -> Event:
        live = self.live.get(call.turn)
        if live is None:
            raise UnknownTurn("g b")
        return live.done or await live.follow(emit)

    async def answer(self, peer: Peer, call: Answer) -> Answered:
        self.calls.append(call)
        live = self.live[call.turn]
        if self.overtaken:
            return self.overtaken
        if call.approval not in live.approvals:
            return Answered(taken=False)
        self.decide(call.turn, call.answer)
        self.end(call.turn, text=f"it was {call.answer}")
        return Answered(taken=True, answer=call.answer)

    async def stop(self, peer: Peer, call: Stop) -> Stopped:
        self.decide(call.turn, "withdrawn")
        self.end(call.turn, outcome="interrupted")
        return Stopped(stopping=True)

    def decide(self, turn: str, answer: Any) -> None:
        self.live[turn].apply(Event(kind="approval", approval="q1", answer=answer))

    def end(self, turn: str, *, outcome: Any = "ok", text: str = "") -> None:
        live = self.live[turn]
        live.finish(Event(kind="done", outcome=outcome, text=text or live.text))

    @property
    def turn(self) -> str:
        """The newest turn."""
        return list(self.live)[-1]

    def answers(self) -> list[str]:
        return [call.answer for call in self.calls if isinstance(call, Answer)]


Scene = tuple[Stage, Asking]


@pytest.fixture
async def scene(stage: Stage) -> AsyncIterator[Scene]:
    async with serving(stage.launcher.runtime / "agent/alice.sock", Asking()) as agent:
        yield stage, agent


def questions(stage: Stage, user: int = ALICE) -> list[MessageView]:
    return [m for m in stage.api.messages(user) if m.by_bot and QUESTION in (m.text or "")]


async def asked(stage: Stage) -> MessageView:
    """The question, once it is in the chat and the growing message says what it waits for."""
    stage.say("ask")
    message = await stage.growing(QUESTION)
    await stage.growing("❓ waits for your approval")
    return message


async def press(stage: Stage, message: MessageView, *, user: int = ALICE, **which: Any) -> CallbackView:
    """Press a button and wait until its query is answered."""
    callback = stage.api.press(user, message.message_id, **which).callback_id
    await stage.api.wait_for(lambda: stage.api.callback(callback).answered)
    return stage.api.callback(callback)


async def settled(stage: Stage, decision: str, timeout: float = 15) -> MessageView:
    """The question with this decision as its last line and without buttons."""

    def look() -> MessageView | None:
        for message in questions(stage):
            if not message.buttons and (message.text or "").endswith(f"\n\n{decision}"):
                return message
        return None

    return await stage.api.wait_for(look, timeout=timeout)


# ---- asked and answered ----


async def test_a_question_is_a_message_of_its_own_that_notifies_and_shows_what_is_to_run(scene: Scene) -> None:
    stage, _ = scene
    message = await asked(stage)
    assert message.buttons == [ONCE, SESSION, DENY]
    assert [e["language"] for e in message.entities if e["type"] == "pre"] == ["bash"]
    assert "rm -r build" in (message.text or "")
    assert "“This session” allows from now on: Bash(rm:*)" in (message.text or "")
    (call,) = [c for c in stage.api.calls("sendMessage") if QUESTION in c.params.get("text", "")]
    assert call.params.get("disable_notification") in (None, False, "false")
    growing = await stage.growing("I would like to clean up.")
    assert growing.message_id != message.message_id
    assert growing.buttons == ["⏹ Stop"]


@pytest.mark.parametrize(
    ("label", "answer", "decision"),
    [
        (ONCE, "once", "✓ Allowed once"),
        (SESSION, "session", "✓ Allowed for this session"),
        (DENY, "deny", "✗ Denied"),
    ],
)
async def test_a_press_decides_is_told_and_stays_in_the_message(
    scene: Scene, label: str, answer: str, decision: str
) -> None:
    stage, agent = scene
    message = await asked(stage)
    assert (await press(stage, message, label=label)).text == decision
    assert agent.answers() == [answer]
    final = await stage.answer(f"it was {answer}")
    done = await settled(stage, decision)
    assert done.message_id == message.message_id
    assert "rm -r build" in (done.text or "")
    assert "❓ waits" not in (final.text or "")


@pytest.mark.parametrize(
    ("answer", "decision"), [("expired", "⌛ No answer in 10 minutes: denied"), ("withdrawn", "⏹ Withdrawn")]
)
async def test_what_ends_without_the_user_is_told_too_and_a_late_press_does_nothing(
    scene: Scene, answer: str, decision: str
) -> None:
    stage, agent = scene
    message = await asked(stage)
    agent.decide(agent.turn, answer)
    await settled(stage, decision)
    await stage.api.wait_for(lambda: any("⚙ Bash: rm -r build" in text for text in stage.shown()))
    late = await press(stage, message, data=f"approve:{agent.turn}:q1:once")
    assert late.text == "This was decided already."
    agent.end(agent.turn, text="all done")
    await stage.answer("all done")
    later = await press(stage, message, data=f"approve:{agent.turn}:q1:once")
    assert later.text == "This was decided already."
    await settled(stage, decision)
    assert len(questions(stage)) == 1


async def test_an_answer_that_was_given_before_holds_and_is_shown(scene: Scene) -> None:
    stage, agent = scene
    message = await asked(stage)
    agent.overtaken = Answered(taken=False, answer="deny")
    assert (await press(stage, message, label=ONCE)).text == "This was decided already. ✗ Denied"
    await settled(stage, "✗ Denied")


async def test_a_turn_that_ends_with_its_question_open_leaves_no_buttons(scene: Scene) -> None:
    stage, agent = scene
    await asked(stage)
    agent.end(agent.turn, text="never mind")
    await stage.answer("never mind")
    await settled(stage, "⏹ Over: the turn has ended")


async def test_stop_ends_the_question_with_its_turn_and_keeps_the_part(scene: Scene) -> None:
    stage, _ = scene
    await asked(stage)
    stage.say("/stop")
    stopped = await stage.answer("⏹ Stopped")
    assert "I would like to clean up." in (stopped.text or "")
    await settled(stage, "⏹ Withdrawn")
    stage.say("next")
    await stage.answer("did next")


# ---- only who is asked may answer ----


async def test_another_user_who_forges_the_button_is_told_nothing_and_decides_nothing(scene: Scene) -> None:
    stage, agent = scene
    message = await asked(stage)
    stage.say("/stats", user=BOB)
    await stage.api.wait_for(lambda: stage.shown(BOB))
    own = next(m for m in stage.api.messages(BOB) if m.by_bot)
    before = stage.shown(BOB)
    for answer in ("once", "session", "deny"):
        forged = await press(stage, own, user=BOB, data=f"approve:{agent.turn}:q1:{answer}")
        assert forged.text == ""
        assert not forged.show_alert
    assert stage.shown(BOB) == before
    assert agent.answers() == []
    assert questions(stage)[0].buttons == message.buttons
    await press(stage, message, label=DENY)
    await stage.answer("it was deny")
    assert (await press(stage, own, user=BOB, data=f"approve:{agent.turn}:q1:once")).text == ""


@pytest.mark.parametrize(
    "data", ["approve:{turn}:q2:once", "approve:9.9:q1:once", "approve:{turn}:q1:always", "approve:"]
)
async def test_a_press_that_no_question_has_does_nothing(scene: Scene, data: str) -> None:
    stage, agent = scene
    message = await asked(stage)
    assert (await press(stage, message, data=data.format(turn=agent.turn))).text == ""
    assert agent.answers() == []
    assert questions(stage)[0].buttons == message.buttons


# ---- restarts and trouble ----


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
async def test_a_bot_that_restarts_asks_nothing_twice_and_its_buttons_work_on(
    scene: Scene, how: signal.Signals
) -> None:
    stage, _ = scene
    message = await asked(stage)
    await again(stage, how)
    await stage.api.wait_for(lambda: growing_versions(stage) > 0)
    assert (await press(stage, message, label=SESSION)).text == "✓ Allowed for this session"
    await stage.answer("it was session")
    await settled(stage, "✓ Allowed for this session")
    assert len(questions(stage)) == 1


async def test_what_was_decided_while_the_bot_was_away_is_shown_when_it_is_back(scene: Scene) -> None:
    stage, agent = scene
    await asked(stage)
    await end(stage)
    agent.decide(agent.turn, "expired")
    await stage.launcher.restart("kai-bot")
    await settled(stage, "⌛ No answer in 10 minutes: denied")
    agent.end(agent.turn, text="without it")
    await stage.answer("without it")
    assert len(questions(stage)) == 1


async def test_the_buttons_of_a_turn_that_ended_while_the_bot_was_away_are_cleaned_up(scene: Scene) -> None:
    stage, agent = scene
    message = await asked(stage)
    await end(stage)
    agent.decide(agent.turn, "expired")
    agent.end(agent.turn, text="ended alone")
    await stage.launcher.restart("kai-bot")
    await stage.answer("ended alone")
    await settled(stage, "⏹ Over: the turn has ended")
    late = await press(stage, message, data=f"approve:{agent.turn}:q1:once")
    assert late.text == "This was decided already."
    assert agent.answers() == []


async def test_a_press_that_came_while_the_bot_was_away_counts(scene: Scene) -> None:
    stage, agent = scene
    message = await asked(stage)
    await end(stage)
    stage.api.press(ALICE, message.message_id, label=ONCE)
    await stage.launcher.restart("kai-bot")
    await stage.answer("it was once")
    await settled(stage, "✓ Allowed once")
    assert agent.answers() == ["once"]


async def test_a_question_whose_confirmation_is_lost_is_decided_once_in_either_copy(scene: Scene) -> None:
    stage, agent = scene
    stage.say("first")
    await stage.answer("did first")
    stage.api.add_fault(Fault(kind="lose", method="sendMessage", count=1, skip=1))
    stage.say("ask")
    await stage.api.wait_for(lambda: len(questions(stage)) == 2)
    copy = questions(stage)[0]
    await press(stage, copy, label=ONCE)
    await stage.answer("it was once")
    await stage.api.wait_for(lambda: not any(message.buttons for message in questions(stage)))
    assert all((message.text or "").endswith("✓ Allowed once") for message in questions(stage))
    assert agent.answers() == ["once"]


async def test_an_agent_that_cannot_be_reached_is_told_and_the_question_stays(scene: Scene) -> None:
    stage, agent = scene
    message = await asked(stage)
    socket = stage.launcher.runtime / "agent/alice.sock"
    socket.rename(socket.with_name("away"))
    assert "press again" in (await press(stage, message, label=ONCE)).text
    socket.with_name("away").rename(socket)
    assert questions(stage)[0].buttons == message.buttons
    await press(stage, message, label=ONCE)
    await stage.answer("it was once")
    assert agent.answers() == ["once"]


async def test_a_question_waits_for_no_growing_text_and_no_flood_costs_it(scene: Scene) -> None:
    stage, _ = scene
    stage.api.add_fault(Fault(kind="flood", method="sendMessage", count=2, retry_after=1))
    message = await asked(stage)
    stage.api.add_fault(Fault(kind="flood", method="editMessageText", count=2, retry_after=1))
    await press(stage, message, label=DENY)
    await settled(stage, "✗ Denied")
    await stage.answer("it was deny")
    assert len(questions(stage)) == 1


# ---- the whole set ----


ASK = {"users": [{"telegram_id": ALICE, "name": "alice", "approvals": "ask"}, {"telegram_id": BOB, "name": "bob"}]}


async def test_a_command_runs_after_it_was_allowed_and_not_before(stages: Stages, tmp_path: Any) -> None:
    stage: Stage = await stages(**ASK)
    stage.say(f"! touch {tmp_path}/ran")
    message = await stage.growing(QUESTION)
    assert f"touch {tmp_path}/ran" in (message.text or "")
    await asyncio.sleep(0.3)
    assert not (tmp_path / "ran").exists()
    await press(stage, message, label=ONCE)
    await settled(stage, "✓ Allowed once")
    await stage.answer("Exit status 0")
    assert (tmp_path / "ran").exists()


async def test_what_is_denied_does_not_run_and_the_conversation_goes_on(stages: Stages, tmp_path: Any) -> None:
    stage: Stage = await stages(**ASK)
    stage.say(f"! touch {tmp_path}/ran")
    message = await stage.growing(QUESTION)
    await press(stage, message, label=DENY)
    await settled(stage, "✗ Denied")
    stage.say("say still here")
    await stage.answer("still here")
    assert not (tmp_path / "ran").exists()


async def test_allowed_for_the_session_asks_no_second_time_and_a_new_session_asks_again(
    stages: Stages, tmp_path: Any
) -> None:
    stage: Stage = await stages(**ASK)
    stage.say(f"! echo a >> {tmp_path}/ran")
    await press(stage, await stage.growing(QUESTION), label=SESSION)
    first = await stage.answer("Exit status 0")
    stage.say(f"! echo a >> {tmp_path}/ran")
    second = await stage.answer("Exit status 0", after=first.message_id)
    assert len(questions(stage)) == 1
    stage.say("/new")
    await stage.answer("fresh session")
    stage.say(f"! echo a >> {tmp_path}/ran")
    await press(stage, await stage.growing(QUESTION), label=ONCE)
    await stage.answer("Exit status 0", after=second.message_id)
    assert len(questions(stage)) == 2
    assert (tmp_path / "ran").read_text() == "a\na\na\n"


def growing_versions(stage: Stage) -> int:
    return sum("❓ waits" in (text or "") for text in stage.shown())


async def end(stage: Stage, how: signal.Signals = signal.SIGTERM) -> None:
    stage.launcher.kill("kai-bot", how)
    await stage.launcher.wait_exit("kai-bot")


async def again(stage: Stage, how: signal.Signals) -> None:
    """End the bot and have it back."""
    starts = stage.launcher.starts("kai-bot")
    await end(stage, how)
    if how == signal.SIGTERM:
        await stage.launcher.restart("kai-bot")
    else:
        await stage.launcher.wait_ready("kai-bot")
    assert stage.launcher.starts("kai-bot") > starts
