"""What every AgentBackend keeps to, as scenarios. A test class takes them over and gives its `Engine`.

`converse` looks at every turn, whatever it is about: one `started` at the most and first, one `done` and last, texts
that join at their offsets into the text of `done`, calls of tools that end under the id under which they began, and
questions that are each asked once.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import pytest

from kai.agent.backend import SESSION_ID, AgentBackend, Context, SessionUnknown
from kai.interfaces import Event, Part
from tests.process.agents import alive, changed, running

MARK = "of the supervisor alone"
GIVEN = "given to the agent"
NOBODYS = "11111111-1111-4111-8111-111111111111"
OWN_NAMES = {"PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TMPDIR", "PWD", "OLDPWD", "SHLVL", "_", "IS_SANDBOX"}
"""Variables that an account has anyway; their values are checked to be the account's."""
LONGEST_STOP = 3.0
"""Seconds until an interrupted turn has ended, on a busy machine."""


@dataclass(frozen=True)
class Engine:
    """How to make an agent of this kind do something. `context` has `TOLD=given to the agent` in its environment."""

    make: Callable[[], AgentBackend]
    context: Context
    say: Callable[[str], str]
    """A prompt that is answered with these words and no others."""
    run: Callable[[str], str]
    """A prompt that makes the agent run a shell command; the answer contains its output, or why it didn't run."""
    write: Callable[[Path, str], str]
    """A prompt that makes the agent write a file by a tool for that."""
    slow: str
    """Streams words beginning with `word` for 10 s or more."""
    silent: str
    """Says nothing for 10 s or more."""
    history: str
    """Answers with what the user wrote in this session."""
    instructions: str
    """Answers with the instructions of the session."""
    clear: str
    """Begins a new session in the same process."""
    command: str
    """One of the agent's slash commands that answers with a text."""
    costly: str
    """Costs more than `budget` US dollars."""
    budget: float
    ends_tools: bool = True
    """Whether an interrupt ends the processes of a tool; else only the end of the control group does."""


Start = Callable[[Context], Awaitable[AgentBackend]]
Decide = Callable[[AgentBackend, Event], Awaitable[None]]


def decision(*, allow: bool, remember: bool = False, message: str = "") -> Decide:
    async def decide(backend: AgentBackend, asked: Event) -> None:
        await backend.answer(asked.approval, allow=allow, remember=remember, message=message)

    return decide


async def interrupt(backend: AgentBackend, asked: Event) -> None:
    await backend.interrupt()


ALLOW, DENY = decision(allow=True), decision(allow=False, message="not today")


async def converse(backend: AgentBackend, prompt: str, *, decide: Decide = DENY, stop_at: str = "") -> list[Event]:
    """All events of one turn, checked. It is interrupted when `stop_at` shows up in a text or a tool's summary."""
    found: list[Event] = []
    async with aclosing(backend.turn([Part(kind="text", text=prompt)])) as turn:  # type: ignore[type-var]
        async for event in turn:
            found.append(event)
            if event.kind == "approval" and event.running:
                await decide(backend, event)
            elif stop_at and stop_at in event.text + event.summary:
                stop_at = ""
                await backend.interrupt()
    check(found)
    return found


def check(found: list[Event]) -> None:
    kinds = [event.kind for event in found]
    assert kinds.count("done") == 1
    assert kinds[-1] == "done"
    assert "started" not in kinds[1:]
    said, done = "", found[-1]
    calls: dict[str, tuple[str, str]] = {}
    ended: set[str] = set()
    asked: dict[str, bool] = {}
    for event in found:
        if event.kind == "text":
            assert event.text
            assert event.offset == len(said)
            said += event.text
        elif event.kind == "tool":
            assert event.call
            assert event.call not in ended
            if event.running:
                assert event.call not in calls
                calls[event.call] = event.tool, event.summary
            else:
                assert calls[event.call] == (event.tool, event.summary)
                ended.add(event.call)
        elif event.kind == "approval":
            assert re.fullmatch("[a-z0-9]{1,12}", event.approval)
            assert asked.get(event.approval) is (None if event.running else True)
            assert (event.answer == "withdrawn") is not event.running
            asked[event.approval] = event.running
    assert said == done.text
    assert done.outcome in ("ok", "failed", "interrupted")
    assert bool(done.error) is (done.outcome == "failed")
    if done.outcome != "failed":
        assert ended == set(calls)


def questions(found: list[Event]) -> list[Event]:
    return [event for event in found if event.kind == "approval" and event.running]


def children() -> list[int]:
    """Own child processes that are no zombies."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            parent = (directory / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1]
        except OSError:
            continue
        if int(parent) == os.getpid() and alive(int(directory.name)):
            found.append(int(directory.name))
    return found


async def until(true: Callable[[], object], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.02)


class BackendContract:
    """Every test is a promise of `kai.agent.backend.AgentBackend`. A subclass has the fixture `engine`."""

    @pytest.fixture
    async def start(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Start]:
        """Starts backends, and closes them all."""
        monkeypatch.setenv("KAI_TEST_MARK", MARK)
        made: list[AgentBackend] = []

        async def one(given: Context) -> AgentBackend:
            made.append(engine.make())
            backend = made[-1]
            await backend.start(given)
            return backend

        yield one
        for backend in made:
            await backend.close()
        assert not children()

    # ---- turns ----

    async def test_an_answer_streams_and_ends_with_one_done(self, engine: Engine, start: Start) -> None:
        backend = await start(engine.context)
        assert (backend.alive, backend.session, backend.cost_usd) == (True, "", 0.0)
        found = await converse(backend, engine.say("one two three four five six seven"))
        assert found[0] == Event(kind="started", session=backend.session)
        assert SESSION_ID.fullmatch(backend.session)
        assert [event.kind for event in found[1:-1]] == ["text"] * (len(found) - 2)
        assert len(found) > 4
        done = found[-1]
        assert (done.outcome, done.text.strip()) == ("ok", "one two three four five six seven")
        assert (done.session, done.reason) == (backend.session, "")
        assert done.cost_usd == pytest.approx(backend.cost_usd)

    async def test_one_process_takes_turn_after_turn(self, engine: Engine, start: Start) -> None:
        backend = await start(engine.context)
        (process,) = children()
        for words in ("first", "second", "third"):
            assert (await converse(backend, engine.say(words)))[-1].text.strip() == words
        parts = [Part(kind="text", text=engine.say("in two")), Part(kind="text", text="parts")]
        found = [event async for event in backend.turn(parts)]
        check(found)
        assert found[-1].outcome == "ok"
        assert children() == [process]
        listed = (await converse(backend, engine.history))[-1].text
        assert listed.index("second") < listed.index("third") < listed.index("in two") < listed.index("parts")

    async def test_a_second_turn_at_the_same_time_is_a_fault(self, engine: Engine, start: Start) -> None:
        backend = await start(engine.context)
        turn = asyncio.create_task(converse(backend, engine.slow, stop_at="word"))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError):
            await anext(aiter(backend.turn([Part(kind="text", text="x")])))
        assert (await turn)[-1].outcome == "interrupted"

    async def test_a_tool_begins_and_ends_under_one_id(self, engine: Engine, start: Start) -> None:
        backend = await start(engine.context)
        calls = set()
        for word in ("one", "two"):
            found = await converse(backend, engine.run(f"echo {word}; pwd"))
            began, ended = (event for event in found if event.kind == "tool")
            assert (began.running, ended.running) == (True, False)
            assert (began.tool, began.summary) == ("Bash", f"echo {word}; pwd")
            assert not questions(found)
            assert word in found[-1].text
            assert str(engine.context.workspace) in found[-1].text
            calls.add(began.call)
        assert len(calls) == 2

    async def test_a_tool_sees_what_it_was_given_and_nothing_of_the_supervisor(
        self, engine: Engine, start: Start
    ) -> None:
        backend = await start(engine.context)
        environment = (await converse(backend, engine.run("env; ls /proc/self/fd | wc -l")))[-1].text
        lines = set(environment.splitlines())
        assert f"TOLD={GIVEN}" in lines
        assert MARK not in environment
        names = {line.partition("=")[0] for line in lines}
        theirs = dict(engine.context.environment)
        assert not (names & os.environ.keys()) - OWN_NAMES - theirs.keys()
        assert f"HOME={theirs['HOME']}" in lines
        assert f"PATH={theirs['HOME']}/.local/bin:/usr/local/bin:/usr/bin:/bin" in lines
        assert {"4", "5"} & {line.strip() for line in lines}, "more files are open than 0, 1, 2 and what ls opens"

    async def test_models_and_commands_are_known_from_the_start_and_a_command_is_a_turn(
        self, engine: Engine, start: Start
    ) -> None:
        backend = await start(engine.context)
        assert backend.models
        assert all(model.name for model in backend.models)
        assert len({model.name for model in backend.models}) == len(backend.models)
        assert backend.commands
        assert not any(name.startswith("/") for name in backend.commands)
        assert engine.command.split()[0].removeprefix("/") in backend.commands
        done = (await converse(backend, engine.command))[-1]
        assert done.outcome == "ok"
        assert done.text
        assert (await converse(backend, engine.say("after")))[-1].text.strip() == "after"

    # ---- sessions ----

    async def test_a_session_goes_on_in_a_new_process_with_new_instructions(self, engine: Engine, start: Start) -> None:
        first = await start(changed(engine.context, system_prompt="Instructions of the first start."))
        assert "of the first start" in (await converse(first, engine.instructions))[-1].text
        await converse(first, engine.say("keep this"))
        for pid in children():
            assert b"Instructions" not in Path(f"/proc/{pid}/cmdline").read_bytes()
        await first.close()
        again = changed(engine.context, session=first.session, system_prompt="Instructions of the second start.")
        second = await start(again)
        found = await converse(second, engine.instructions)
        assert found[0] == Event(kind="started", session=first.session, resumed=True)
        assert "of the second start" in found[-1].text
        assert "of the first start" not in found[-1].text
        assert (second.session, found[-1].session) == (first.session, first.session)
        listed = await converse(second, engine.history)
        assert "keep this" in listed[-1].text
        assert not listed[0].resumed

    async def test_a_session_that_is_gone_is_told_apart(self, engine: Engine, start: Start) -> None:
        for session in (NOBODYS, "nonsense"):
            with pytest.raises(SessionUnknown):
                await start(changed(engine.context, session=session))
            assert not children()

    async def test_a_new_session_of_the_agents_own_making_is_followed(self, engine: Engine, start: Start) -> None:
        backend = await start(engine.context)
        await converse(backend, engine.say("long ago"))
        before = backend.session
        cleared = (await converse(backend, engine.clear))[-1]
        assert cleared.outcome == "ok"
        assert cleared.session == backend.session != before
        listed = (await converse(backend, engine.history))[-1]
        assert "long ago" not in listed.text
        assert listed.session == cleared.session
        await backend.close()
        again = await start(changed(engine.context, session=before))
        assert "long ago" in (await converse(again, engine.history))[-1].text

    # ---- interrupts ----

    async def test_an_interrupt_ends_a_text_and_means_nothing_while_nothing_runs(
        self, engine: Engine, start: Start
    ) -> None:
        backend = await start(engine.context)
        await backend.interrupt()
        assert (await converse(backend, engine.say("one")))[-1].outcome == "ok"
        began = time.monotonic()
        done = (await converse(backend, engine.slow, stop_at="word"))[-1]
        assert time.monotonic() - began < LONGEST_STOP
        assert done.outcome == "interrupted"
        assert done.text.startswith("word")
        await backend.interrupt()
        assert (await converse(backend, engine.say("still here")))[-1].text.strip() == "still here"

    async def test_an_interrupt_ends_a_tool_and_its_processes(self, engine: Engine, start: Start) -> None:
        backend = await start(engine.context)
        found = await converse(backend, engine.run("echo begin; exec sleep 86753"), stop_at="sleep 86753")
        assert found[-1].outcome == "interrupted"
        if engine.ends_tools:
            await until(lambda: not running("86753"))
        assert (await converse(backend, engine.say("still here")))[-1].text.strip() == "still here"

    async def test_an_interrupt_takes_an_open_question_back(self, engine: Engine, start: Start) -> None:
        backend = await start(changed(engine.context, ask=True))
        began = time.monotonic()
        found = await converse(backend, engine.run("touch asked"), decide=interrupt)
        assert time.monotonic() - began < LONGEST_STOP
        assert found[-1].outcome == "interrupted"
        asked = [(event.approval, event.running, event.answer) for event in found if event.kind == "approval"]
        assert [running for _, running, _ in asked] == [True, False]
        await backend.answer(asked[0][0], allow=True)  # too late
        assert (await converse(backend, engine.say("still here")))[-1].text.strip() == "still here"
        assert not (engine.context.workspace / "asked").exists()

    async def test_an_interrupt_in_the_first_instant_counts(self, engine: Engine, start: Start) -> None:
        backend = await start(engine.context)
        turn = asyncio.create_task(converse(backend, engine.slow))
        await asyncio.sleep(0)
        await backend.interrupt()
        assert (await asyncio.wait_for(turn, LONGEST_STOP))[-1].outcome == "interrupted"

    # ---- approvals ----

    async def test_what_is_allowed_once_is_done_once_and_asked_anew(self, engine: Engine, start: Start) -> None:
        backend = await start(changed(engine.context, ask=True))
        ids = set()
        for word in ("first", "second"):
            found = await converse(backend, engine.run(f"echo {word} >> made"), decide=ALLOW)
            (asked,) = questions(found)
            assert (asked.tool, asked.detail) == ("Bash", f"echo {word} >> made")
            assert asked.summary
            assert asked.patterns
            assert found[-1].outcome == "ok"
            ids.add(asked.approval)
        assert len(ids) == 2
        assert (engine.context.workspace / "made").read_text().split() == ["first", "second"]

    async def test_what_is_remembered_is_not_asked_again_and_everything_else_is(
        self, engine: Engine, start: Start
    ) -> None:
        given = changed(engine.context, ask=True)
        first = await start(given)
        (asked,) = questions(
            await converse(first, engine.run("touch kept"), decide=decision(allow=True, remember=True))
        )
        assert not questions(await converse(first, engine.run("touch kept")))
        assert questions(await converse(first, engine.run("touch other")))
        await first.close()
        second = await start(changed(given, allowed=tuple(asked.patterns), session=first.session))
        assert not questions(await converse(second, engine.run("touch kept")))
        assert questions(await converse(second, engine.run("touch other")))
        await second.close()
        third = await start(given)
        assert questions(await converse(third, engine.run("touch kept")))

    async def test_what_is_remembered_stands_for_what_was_shown_and_no_more(self, engine: Engine, start: Start) -> None:
        given = changed(engine.context, ask=True)
        backend = await start(given)
        shown = ("./tool 2*3", './tool "x) Bash(./other y"')  # neither a wildcard, nor the end of a rule
        others = ("./tool 2 and 3", './other y"', "./other y", "./tool")
        allowed: list[str] = []
        for command in shown:
            found = await converse(backend, engine.run(command), decide=decision(allow=True, remember=True))
            allowed += questions(found)[0].patterns
        for command in others:
            assert questions(await converse(backend, engine.run(command))), f"{command} ran unasked"
        await backend.close()
        again = await start(changed(given, allowed=tuple(allowed)))
        for command in others:
            assert questions(await converse(again, engine.run(command))), f"{command} ran unasked"
        for command in shown:
            assert not questions(await converse(again, engine.run(command)))

    async def test_a_program_remembered_at_the_end_of_a_pipe_opens_no_way_for_others(
        self, engine: Engine, start: Start
    ) -> None:
        given = changed(engine.context, ask=True)
        first = await start(given)
        remember = decision(allow=True, remember=True)
        (asked,) = questions(await converse(first, engine.run("true && printf 'x=1' | sh"), decide=remember))
        second = await start(changed(given, allowed=tuple(asked.patterns)))
        for backend in (first, second):
            assert questions(await converse(backend, engine.run("echo 'touch made' | sh")))
        assert not (engine.context.workspace / "made").exists()

    async def test_its_own_memory_is_written_unasked_and_any_other_file_is_shown_as_a_change(
        self, engine: Engine, start: Start, tmp_path: Path
    ) -> None:
        memory, beside = tmp_path / "memory", tmp_path / "memory-of-bob"
        for directory in (memory, beside):
            directory.mkdir()
        backend = await start(changed(engine.context, ask=True, memory=memory))
        assert not questions(await converse(backend, engine.write(memory / "MEMORY.md", "likes tea")))
        assert (memory / "MEMORY.md").read_text() == "likes tea"
        for path in (beside / "MEMORY.md", memory / "../memory-of-bob/MEMORY.md"):
            (asked,) = questions(await converse(backend, engine.write(path, "likes tea")))
            assert Path(asked.detail.splitlines()[0]).resolve() == beside / "MEMORY.md"
        assert not list(beside.iterdir())
        letter = engine.context.workspace / "letter"
        (asked,) = questions(await converse(backend, engine.write(letter, "dear all"), decide=ALLOW))
        assert asked.detail.splitlines() == [str(letter), "+dear all"]
        assert letter.read_text() == "dear all"

    async def test_what_is_denied_is_not_done_and_the_agent_learns_why_and_no_second_answer_counts(
        self, engine: Engine, start: Start
    ) -> None:
        backend = await start(changed(engine.context, ask=True))
        await backend.answer("q1", allow=True)

        async def twice(backend: AgentBackend, asked: Event) -> None:
            await backend.answer("nobody", allow=True)
            await backend.answer(asked.approval, allow=False, message="not today")
            await backend.answer(asked.approval, allow=True, remember=True)

        found = await converse(backend, engine.run("touch made"), decide=twice)
        assert (found[-1].outcome, "not today" in found[-1].text) == ("ok", True)
        await backend.answer(questions(found)[0].approval, allow=True, remember=True)
        assert questions(await converse(backend, engine.run("touch made")))
        assert not (engine.context.workspace / "made").exists()

    # ---- ends ----

    async def test_closing_an_idle_agent_lets_it_leave(self, engine: Engine, start: Start) -> None:
        backend = await start(engine.context)
        await converse(backend, engine.say("x"))
        (process,) = children()
        began = time.monotonic()
        assert await backend.close() == "left"
        assert time.monotonic() - began < 5
        assert not alive(process)
        assert not backend.alive
        assert await backend.close() == "left"

    async def test_closing_in_the_middle_of_a_turn_ends_it_once(self, engine: Engine, start: Start) -> None:
        backend = await start(engine.context)
        turn = asyncio.create_task(converse(backend, engine.silent))
        await until(lambda: backend.session)
        began = time.monotonic()
        assert await backend.close() == "killed"
        assert time.monotonic() - began < 10
        done = (await asyncio.wait_for(turn, 20))[-1]
        assert done.outcome == "failed"
        assert not children()
        assert await backend.close() == "killed"
        assert (await converse(backend, engine.say("x")))[-1].outcome == "failed"

    async def test_closing_while_a_question_is_open_ends_the_turn(self, engine: Engine, start: Start) -> None:
        backend = await start(changed(engine.context, ask=True))
        asked = asyncio.Event()

        async def wait(backend: AgentBackend, event: Event) -> None:
            asked.set()

        turn = asyncio.create_task(converse(backend, engine.run("touch made"), decide=wait))
        await asyncio.wait_for(asked.wait(), 30)
        await backend.close()
        assert (await asyncio.wait_for(turn, 20))[-1].kind == "done"
        assert not (engine.context.workspace / "made").exists()

    async def test_a_death_in_a_turn_fails_it_and_the_session_goes_on(self, engine: Engine, start: Start) -> None:
        backend = await start(engine.context)
        await converse(backend, engine.say("before the end"))
        turn = asyncio.create_task(converse(backend, engine.silent))
        await asyncio.sleep(0.2)
        for process in children():
            os.kill(process, signal.SIGKILL)
        done = (await asyncio.wait_for(turn, 10))[-1]
        assert (done.outcome, done.reason) == ("failed", "died")
        assert "SIGKILL" in done.error
        assert not backend.alive
        assert (await converse(backend, engine.say("x")))[-1].outcome == "failed"
        assert await backend.close() == "killed"
        again = await start(changed(engine.context, session=backend.session))
        assert "before the end" in (await converse(again, engine.history))[-1].text

    # ---- costs and signs of life ----

    async def test_a_resumed_session_costs_what_its_new_turns_cost(self, engine: Engine, start: Start) -> None:
        first = await start(engine.context)
        costs = [(await converse(first, engine.costly))[-1].cost_usd for _ in range(3)]
        assert min(costs) > 0
        assert first.cost_usd == pytest.approx(sum(costs))
        await first.close()
        second = await start(changed(engine.context, session=first.session))
        assert second.cost_usd == 0
        cost = (await converse(second, engine.costly))[-1].cost_usd
        assert 0 < cost < 2 * costs[0]
        assert second.cost_usd == pytest.approx(cost)

    async def test_a_budget_that_is_spent_ends_turns_with_that_reason(self, engine: Engine, start: Start) -> None:
        backend = await start(changed(engine.context, budget_usd=engine.budget))
        crossing = (await converse(backend, engine.costly))[-1]
        assert (crossing.outcome, crossing.reason) == ("failed", "budget")
        assert crossing.cost_usd > engine.budget
        refused = (await converse(backend, engine.costly))[-1]
        assert (refused.outcome, refused.reason, refused.cost_usd, refused.text) == ("failed", "budget", 0.0, "")
        await backend.close()
        again = await start(changed(engine.context, session=backend.session, budget_usd=100.0))
        assert (await converse(again, engine.costly))[-1].outcome == "ok"

    async def test_signs_of_life_come_with_words_and_not_with_silence(self, engine: Engine, start: Start) -> None:
        backend = await start(engine.context)
        speaking = asyncio.create_task(converse(backend, engine.slow))
        began = time.monotonic()
        await until(lambda: backend.heard > began + 0.6)
        await backend.interrupt()
        await speaking
        silent = asyncio.create_task(converse(backend, engine.silent))
        await asyncio.sleep(0.8)
        before = backend.heard
        await asyncio.sleep(0.8)
        assert backend.heard == before < time.monotonic() - 0.8
        await backend.interrupt()
        assert (await silent)[-1].outcome == "interrupted"
        assert backend.heard > before
