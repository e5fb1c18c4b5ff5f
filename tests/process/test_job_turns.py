"""Turns of jobs, beside the chat's: a real supervisor, asked as the scheduler asks it, and the offline agent."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, closing
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest

from kai.interfaces import (
    AgentState,
    Event,
    ForgetJob,
    JobSeat,
    Join,
    Note,
    Part,
    Retire,
    Set,
    SetTimezone,
    Start,
    State,
    Stop,
    SwitchWorkspace,
    UnknownTurn,
)
from kai.lib.client import Client
from kai.lib.daemon import Daemon
from kai.lib.peers import Peer, Peers
from kai.lib.server import Server
from kai.lib.varlink import Busy, Call, Empty, Fault, InvalidParameter

from .agents import running
from .conftest import ALICE, BOB, Stage, Stages

R = TypeVar("R", bound=msgspec.Struct)
TURN = 0.0001
"""US dollars of a turn of the offline agent that names no price."""
CEILING = 2.0
AT = 1_763_823_600.0
"""2025-11-22 15:00 UTC."""
DENIED = "Nobody can be asked now, so this is denied."


class Here:
    """One user's supervisor, and what his agent and his files have seen."""

    def __init__(self, stage: Stage, directory: Path, name: str, telegram_id: int) -> None:
        self.stage, self.launcher, self.directory = stage, stage.launcher, directory
        self.name, self.unit, self.telegram_id = name, f"kai-agent@{name}", telegram_id
        self.base = stage.launcher.directory / "state/users" / name
        self.client = Client(stage.launcher.runtime / f"agent/{name}.sock")
        self.number = 0

    async def call(self, call: Call[R]) -> R:
        return await self.client.call(call)

    async def follow(self, call: Call[Event]) -> Event:
        """The done event of a turn."""
        async with aclosing(self.client.stream(call)) as events:
            found = [event async for event in events]
        assert [event.kind for event in found].count("done") == 1
        return found[-1]

    def start(self, turn: str, text: str, **seat: Any) -> Start:
        job = JobSeat(id=int(turn.split(":")[1]), name="backups", **seat) if turn.startswith("job:") else None
        return Start(turn=turn, prompt=[Part(kind="text", text=text)], job=job)

    async def run(self, turn: str, text: str, **seat: Any) -> Event:
        """A turn; of a job where its id says so. Busy is met as the scheduler meets it."""
        async with asyncio.timeout(30):
            while True:
                try:
                    return await self.follow(self.start(turn, text, **seat))
                except Busy:
                    await asyncio.sleep(0.05)

    def begin(self, turn: str, text: str, **seat: Any) -> asyncio.Task[Event]:
        return asyncio.create_task(self.follow(self.start(turn, text, **seat)))

    async def chat(self, text: str) -> Event:
        self.number += 1
        return await self.run(f"1.{self.number}", text)

    async def until(self, condition: Callable[[AgentState], object]) -> AgentState:
        async with asyncio.timeout(15):
            while not condition(state := await self.call(State())):
                await asyncio.sleep(0.05)
        return state

    async def working(self, text: str) -> None:
        """Wait until the agent has taken this prompt up."""
        async with asyncio.timeout(15):
            while text not in self.prompts():
                await asyncio.sleep(0.02)

    def prompts(self, session: str = "") -> list[str]:
        """What agents were really asked."""
        file = self.directory / "runs"
        rows = map(json.loads, file.read_text().splitlines()) if file.exists() else ()
        return [row["text"] for row in rows if session in ("", row["session"])]

    def processes(self) -> list[int]:
        return running(str(self.directory / "agent"))

    async def processes_left(self, count: int) -> None:
        async with asyncio.timeout(10):
            while len(self.processes()) != count:
                await asyncio.sleep(0.05)

    async def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        if self.launcher.pid(self.unit):
            self.launcher.kill(self.unit, number)
            await self.launcher.wait_exit(self.unit, within=20)

    def history(self) -> list[tuple[str, str, str]]:
        """Who spoke, in which turn, and what."""
        lines = []
        for path in sorted((self.base / "history").glob("*.jsonl")):
            lines += [json.loads(line) for line in path.read_text().splitlines()]
        return [(line["dir"], line["turn"], line["text"]) for line in lines]

    def books(self, query: str) -> list[tuple[Any, ...]]:
        """Look into the database of a supervisor that isn't there."""
        assert self.launcher.pid(self.unit) is None
        with closing(sqlite3.connect(self.base / "state/turns.db")) as db, db:
            return db.execute(query).fetchall()


@pytest.fixture
async def heres(stages: Stages, tmp_path: Path) -> dict[str, Here]:
    (tmp_path / "base/shop").mkdir(parents=True)
    alice = {"workspace_base": str(tmp_path / "base"), "max_budget": CEILING, "timezone": "Etc/UTC"}
    users = [
        {"telegram_id": ALICE, "name": "alice", **alice},
        {"telegram_id": BOB, "name": "bob", "approvals": "ask"},
    ]
    stage = await stages(users=users, runs=tmp_path / "runs", settings={"budget": 1.0})
    return {name: Here(stage, tmp_path, name, user) for name, user in (("alice", ALICE), ("bob", BOB))}


@pytest.fixture
def here(heres: dict[str, Here]) -> Here:
    return heres["alice"]


# ---- beside the chat ----


async def test_a_job_runs_beside_a_turn_of_the_chat_in_a_session_of_its_own(here: Here) -> None:
    chat = here.begin("1.1", "slow 20")
    await here.working("slow 20")
    done = await here.run("job:7:1", "say backups are fine")
    assert (done.outcome, done.text, done.error) == ("ok", "backups are fine", "")
    assert not chat.done()
    said = await chat
    assert said.session != done.session
    assert here.prompts(done.session) == ["say backups are fine"]


async def test_the_chat_is_answered_while_as_many_jobs_run_as_may_and_one_more_is_busy(here: Here) -> None:
    jobs = [here.begin(f"job:{n}:1", f"slow {n}0") for n in (2, 3)]
    for prompt in ("slow 20", "slow 30"):
        await here.working(prompt)
    with pytest.raises(Busy, match="as many as may at once"):
        await here.follow(here.start("job:4:1", "say no"))
    with pytest.raises(Busy, match="last run of job 2"):
        await here.follow(here.start("job:2:2", "say no"))
    assert (await here.chat("say hello")).text == "hello"
    state = await here.call(State())
    assert (state.jobs, state.turn, state.turns) == (2, "", 1)
    assert "jobs: job:2:1, job:3:1" in here.stage.status(here.unit)
    assert [job.done() for job in jobs] == [False, False]
    assert [(await job).outcome for job in jobs] == ["ok", "ok"]
    assert (await here.run("job:4:1", "say at last")).text == "at last"


async def test_a_jobs_process_ends_with_its_run_and_the_next_run_resumes_its_session(here: Here) -> None:
    first = await here.run("job:7:1", "say remember-me")
    await here.processes_left(0)
    await here.until(lambda state: not state.jobs)
    second = await here.run("job:7:2", "history")
    assert second.session == first.session
    assert second.text.splitlines() == ["1. say remember-me", "2. history"]
    await here.end()
    third = await here.run("job:7:3", "history")
    assert third.text.splitlines()[0] == "1. say remember-me"
    other = await here.run("job:8:1", "history")
    assert other.text.splitlines() == ["1. history"]


async def test_a_supervisor_that_only_has_a_job_to_run_stays_for_it_and_then_leaves(here: Here) -> None:
    job = here.begin("job:7:1", "agent 7 quietly")
    await asyncio.sleep(6.5)
    assert not job.done()
    assert "quietly" in (await job).text
    assert await here.launcher.wait_exit(here.unit, within=20) == 0
    assert here.launcher.starts(here.unit) == 1


# ---- the journal ----


async def test_a_turn_of_a_job_runs_once_however_often_it_is_asked_for(here: Here) -> None:
    with pytest.raises(UnknownTurn):
        await here.follow(Join(turn="job:7:1"))
    first, second = here.begin("job:7:1", "slow 5"), here.begin("job:7:1", "slow 5")
    joined = await here.follow(Join(turn="job:7:1")) if await first else None
    assert joined == await first == await second
    await here.end()
    assert await here.run("job:7:1", "slow 5") == joined
    assert here.prompts() == ["slow 5"]


async def test_a_caller_that_goes_away_costs_a_job_nothing(here: Here) -> None:
    asked = here.begin("job:7:1", "slow 5")
    await here.working("slow 5")
    asked.cancel()
    await asyncio.wait({asked})
    assert (await here.follow(Join(turn="job:7:1"))).text.split()[-1] == "word5"


async def test_what_a_job_had_said_when_its_supervisor_was_killed_is_in_the_journal_and_not_in_the_history(
    here: Here,
) -> None:
    asked = here.begin("job:7:1", "slow 100")
    await here.working("slow 100")
    await asyncio.sleep(1.5)
    here.launcher.kill(here.unit, signal.SIGKILL)
    await asyncio.wait({asked})
    assert asked.exception() is not None
    done = await here.follow(Join(turn="job:7:1"))
    assert (done.outcome, done.reason) == ("interrupted", "cut")
    assert done.text.startswith("word1 ")
    assert here.history() == []
    assert (await here.run("job:7:2", "history")).text.startswith("1. slow 100")


async def test_a_turn_names_its_job_and_a_job_its_turn(here: Here) -> None:
    text = [Part(kind="text", text="say no")]
    for call, message in (
        (Start("job:7:1", text), "job: turn job:7:1 is a job's"),
        (Start("1.1", text, JobSeat(7, "x")), "turn: expected job:7:RUN for job 7, got 1.1"),
        (Start("job:70:1", text, JobSeat(7, "x")), "turn: expected job:7:RUN"),
        (Start("job:0:1", text, JobSeat(0, "x")), "turn: expected"),
    ):
        with pytest.raises(InvalidParameter, match=message):
            await here.follow(call)
    assert here.prompts() == []


# ---- nobody is there ----


async def test_a_job_that_would_have_to_ask_is_told_that_nobody_can_be_asked(heres: dict[str, Here]) -> None:
    here = heres["bob"]
    done = await here.run("job:7:1", "! touch made")
    assert done.outcome == "ok"
    assert DENIED in done.text
    assert not (here.base / "work/made").exists()


async def test_a_stop_ends_the_job_that_it_names_and_nothing_else(here: Here) -> None:
    chat, job = here.begin("1.1", "slow 15"), here.begin("job:7:1", "slow 100")
    for prompt in ("slow 15", "slow 100"):
        await here.working(prompt)
    assert not (await here.call(Stop(turn="job:8:1"))).stopping
    assert (await here.call(Stop(turn="job:7:1"))).stopping
    done = await job
    assert (done.outcome, done.error) == ("interrupted", "")
    assert (await chat).outcome == "ok"


async def test_a_job_that_is_gone_leaves_neither_a_turn_nor_a_session(here: Here) -> None:
    await here.run("job:7:1", "say one")
    await here.run("job:8:1", "say other")
    await here.until(lambda state: not state.jobs)
    job = here.begin("job:7:2", "slow 100")
    await here.working("slow 100")
    await here.call(ForgetJob(job=7))
    assert (await job).outcome == "interrupted"
    await here.until(lambda state: not state.jobs)
    await here.call(ForgetJob(job=9))
    await here.end()
    assert here.books("SELECT name FROM sessions WHERE name != 'chat'") == [("job:8",)]
    assert (await here.run("job:7:3", "history")).text == "1. history\n"


# ---- where, with what, for how much ----


async def test_a_job_is_at_home_though_the_chat_moved_and_elsewhere_only_where_it_says_so(here: Here) -> None:
    await here.call(SwitchWorkspace("shop"))
    shop = str(here.directory / "base/shop")
    assert shop in (await here.chat("id")).text
    assert str(here.base / "work") in (await here.run("job:7:1", "id")).text
    there = await here.run("job:8:1", "id", workspace="shop")
    assert shop in there.text
    await here.call(SwitchWorkspace("home"))
    again = await here.run("job:8:2", "id", workspace="shop")
    assert again.session == there.session
    assert (await here.call(State())).workspace == "home"


@pytest.mark.parametrize("name", ["nowhere", "../x", "/etc", "."])
async def test_a_workspace_that_cannot_be_fails_the_run_in_words_and_keeps_the_session(here: Here, name: str) -> None:
    first = await here.run("job:7:1", "say one")
    done = await here.run("job:7:2", "say two", workspace=name)
    assert (done.outcome, done.session) == ("failed", "")
    assert name in done.error
    assert (await here.run("job:7:3", "say three")).session == first.session
    await here.end()
    assert here.books("SELECT name, turns FROM sessions WHERE name != 'chat'") == [("job:7", 2)]
    assert here.prompts() == ["say one", "say three"]


async def test_a_jobs_own_model_goes_before_the_users_choice(here: Here) -> None:
    await here.call(Set("model", "chosen"))
    assert "model chosen." in (await here.run("job:7:1", "id")).text
    assert "model offline-large." in (await here.run("job:8:1", "id", model="offline-large")).text
    done = await here.run("job:9:1", "id", model="--resume")
    assert done.outcome == "failed"
    assert done.error.startswith("model: expected")


async def test_a_budget_is_for_one_run_of_a_job_and_what_it_costs_is_in_the_days_sum(here: Here) -> None:
    done = await here.run("job:7:1", "cost 0.75", budget_usd=0.5)
    assert (done.outcome, done.reason, done.cost_usd) == ("failed", "budget", 0.75)
    assert done.error == (
        "This run has used the budget of one run: $0.75 of $0.50. The job can be given more (up to $2.00)."
    )
    done = await here.run("job:7:2", "cost 0.25", budget_usd=0.5)
    assert (done.outcome, done.error) == ("ok", "")
    done = await here.run("job:8:1", "cost 1.5")
    assert done.error.startswith("This run has used the budget of one run: $1.50 of $1.00."), "the user's own"
    done = await here.run("job:9:1", "cost 3", budget_usd=100.0)
    assert done.error == (
        "This run has used the budget of one run: $3.00 of $2.00. "
        "More than $2.00 is the operator's to give (max_budget in users.yaml)."
    )
    state = await here.until(lambda state: not state.jobs)
    assert (state.cost_usd, state.turns) == (0.0, 0), "the chat's session"
    assert state.cost_today_usd == pytest.approx(5.5)
    assert (await here.chat("say hello")).outcome == "ok"


# ---- ends ----


async def test_an_agent_that_dies_in_a_job_ends_the_supervisor_after_the_chats_turn(here: Here) -> None:
    chat = here.begin("1.1", "slow 20")
    await here.working("slow 20")
    done = await here.run("job:7:1", "die")
    assert (done.outcome, done.reason) == ("failed", "died")
    assert "told to `die`" in done.error
    await here.until(lambda state: state.state == "draining")
    with pytest.raises(Busy, match="about to leave"):
        await here.follow(here.start("job:7:2", "say no"))
    assert (await chat).outcome == "ok"
    await here.launcher.wait_exit(here.unit)
    assert (await here.run("job:7:2", "history")).text.startswith("1. die")


@pytest.mark.parametrize("ending", ["told to stop", "asked to retire"])
async def test_a_supervisor_finishes_all_its_turns_before_it_leaves(here: Here, ending: str) -> None:
    turns = [here.begin("1.1", "slow 10"), here.begin("job:7:1", "slow 12"), here.begin("job:8:1", "slow 14")]
    for prompt in ("slow 10", "slow 12", "slow 14"):
        await here.working(prompt)
    if ending == "told to stop":
        here.launcher.kill(here.unit, signal.SIGTERM)
    else:
        await here.call(Retire())
        assert (await here.call(State())).state == "draining"
    assert [((await turn).outcome, (await turn).text.split()[-1]) for turn in turns] == [
        ("ok", "word10"),
        ("ok", "word12"),
        ("ok", "word14"),
    ]
    await here.launcher.wait_exit(here.unit)
    assert here.processes() == []


async def test_a_job_that_lasts_longer_than_a_stop_waits_is_cut_off_and_says_so(stages: Stages, tmp_path: Path) -> None:
    stage = await stages(runs=tmp_path / "runs", settings={"drain": 1})
    here = Here(stage, tmp_path, "alice", ALICE)
    job = here.begin("job:7:1", "slow 100")
    await here.working("slow 100")
    await here.end()
    done = await job
    assert (done.outcome, done.reason) == ("interrupted", "cut")
    assert done.error == "the agent's supervisor was told to stop before it was over."
    assert done.text.startswith("word1 ")


async def test_a_supervisor_that_is_asked_to_retire_waits_for_a_job_however_long(
    stages: Stages, tmp_path: Path
) -> None:
    stage = await stages(runs=tmp_path / "runs", settings={"drain": 1})
    here = Here(stage, tmp_path, "alice", ALICE)
    job = here.begin("job:7:1", "slow 15")
    await here.working("slow 15")
    await here.call(Retire())
    done = await job
    assert (done.outcome, done.error) == ("ok", "")
    await here.launcher.wait_exit(here.unit)


# ---- what the chat knows of ----


def note(turn: str = "job:7:1", text: str = "3 of 3 backups are fine", what: str = 'job 7 "backups"') -> Note:
    return Note(turn=turn, what=what, text=text, at=AT)


HEAD = "[Kai] Delivered to this chat since your last turn:"


async def test_a_jobs_prompt_and_answer_are_not_in_the_history_and_what_was_delivered_is_there_once(here: Here) -> None:
    await here.run("job:7:1", "say 3 of 3 backups are fine")
    assert here.history() == []
    await here.call(note())
    await here.call(note(text="something else"))
    await here.end()
    await here.call(note())
    assert here.history() == [("assistant", "job:7:1", "3 of 3 backups are fine")]


async def test_the_next_turn_of_the_chat_is_told_what_was_delivered_and_the_one_after_is_not(here: Here) -> None:
    await here.call(note())
    await here.call(note("job:8:4", "⏰ tea\n\n\x1b[31mput the kettle on\u202e", 'job 8 "tea"'))
    await here.chat("say thanks")
    await here.chat("say bye")
    told, after = here.prompts()
    assert told.splitlines() == [
        HEAD,
        '- 2025-11-22 15:00 job 7 "backups": 3 of 3 backups are fine',
        '- 2025-11-22 15:00 job 8 "tea": ⏰ tea [31mput the kettle on',
        "",
        "",
        "say thanks",
    ]
    assert after == "say bye"
    assert here.history()[2] == ("user", "1.1", "say thanks")


async def test_only_a_turn_that_came_to_a_good_end_uses_up_what_it_told_and_a_command_tells_nothing(here: Here) -> None:
    await here.chat("cost 0.5")
    await here.call(note())
    assert (await here.chat("/nonsense")).outcome == "failed"
    await here.chat("/cost")
    await here.call(Set("budget", "0.4"))
    assert (await here.chat("say too dear")).reason == "budget"
    await here.call(Set("budget", ""))
    (agent,) = here.processes()
    os.kill(agent, signal.SIGSTOP)
    cut = here.begin("1.77", "say it is cut off")
    await here.until(lambda state: state.turn == "1.77")
    await here.end(signal.SIGKILL)
    await asyncio.wait({cut})
    assert cut.exception() is not None
    await here.chat("say at last")
    await here.chat("say bye")
    assert [prompt.startswith(HEAD) for prompt in here.prompts()] == [False, False, True, False]


async def test_a_job_is_not_told_what_reached_the_chat(here: Here) -> None:
    await here.call(note())
    await here.run("job:7:2", "say hello")
    assert here.prompts() == ["say hello"]


@pytest.mark.parametrize("bad", [{"at": 1e12}, {"at": -1.0}, {"turn": ""}])
async def test_a_note_that_makes_no_sense_is_refused_by_its_field(here: Here, bad: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameter, match=f"^{next(iter(bad))}: expected"):
        await here.call(msgspec.structs.replace(note(), **bad))
    assert here.history() == []


# ---- the time zone ----


class Scheduler:
    """Takes time zones; `refuses` that many calls before, and `loses` the answers to so many."""

    def __init__(self) -> None:
        self.zones: list[str] = []
        self.refuses = self.loses = 0

    async def set_timezone(self, peer: Peer, call: SetTimezone) -> Empty:
        if self.refuses:
            self.refuses -= 1
            raise Busy("not now")
        assert call.user == "alice"
        self.zones.append(call.timezone)
        if self.loses:
            self.loses -= 1
            raise ConnectionResetError
        return Empty()

    async def hears(self, *zones: str) -> None:
        async with asyncio.timeout(10):
            while self.zones != list(zones):
                await asyncio.sleep(0.02)


@asynccontextmanager
async def scheduler(here: Here) -> AsyncIterator[Scheduler]:
    path = here.launcher.runtime / "scheduler.sock"
    made = Scheduler()
    with socket.socket(socket.AF_UNIX) as listening:
        path.unlink(missing_ok=True)
        listening.bind(os.fspath(path))
        listening.listen(16)
        listening.setblocking(False)
        daemon = Daemon("kai-scheduler", {"scheduler": listening}, instance="", one_uid=True)
        Server(daemon, "scheduler", Peers(one_uid=True), {SetTimezone: made.set_timezone})
        yield made
        for let_go in daemon.on_idle:
            let_go()
    path.unlink()


async def test_the_scheduler_is_told_the_time_zone_that_is_chosen_and_that_it_was_taken_back(here: Here) -> None:
    async with scheduler(here) as asked:
        await here.call(Set("timezone", "Europe/Berlin"))
        await asked.hears("Europe/Berlin")
        await here.call(Set("timezone", "europe/berlin"))
        await here.call(Set("model", "opus"))
        await here.chat("say hello")
        await here.end()
        await here.call(Set("timezone", "Asia/Tokyo"))
        await asked.hears("Europe/Berlin", "Asia/Tokyo")
        await here.call(Set("", ""))
        await asked.hears("Europe/Berlin", "Asia/Tokyo", "")
        await here.end()
        await here.chat("say hello")
        assert len(asked.zones) == 3, "what is known isn't told again"


async def test_a_scheduler_that_is_not_there_costs_a_line_and_is_told_at_the_next_turn_or_start(here: Here) -> None:
    async def at_a_turn() -> None:
        await here.chat("say hello")

    async def at_a_start() -> None:
        await here.end()
        await here.call(State())

    ways: list[tuple[str, Callable[[], Awaitable[None]]]] = [("Asia/Tokyo", at_a_turn), ("Asia/Seoul", at_a_start)]
    for zone, way in ways:
        await here.call(Set("timezone", zone))
        await here.chat("say hello")
        await here.chat("say hello")
        async with scheduler(here) as asked:
            await way()
            await asked.hears(zone)
    await here.end()
    lines = [line for line in here.launcher.logs(here.unit).splitlines() if "not told the time zone" in line]
    assert len(lines) == 2


async def test_a_scheduler_that_refuses_is_asked_again_at_the_next_turn(here: Here) -> None:
    async with scheduler(here) as asked:
        asked.refuses = 1
        await here.call(Set("timezone", "Asia/Tokyo"))
        await asyncio.sleep(0.2)
        assert asked.zones == []
        await here.chat("say hello")
        await asked.hears("Asia/Tokyo")


async def test_a_time_zone_that_may_have_been_told_is_taken_back_too(here: Here) -> None:
    async with scheduler(here) as asked:
        asked.loses = 1
        await here.call(Set("timezone", "Asia/Tokyo"))
        await asked.hears("Asia/Tokyo")
        await here.call(Set("timezone", ""))
        await here.chat("say hello")
        await asked.hears("Asia/Tokyo", "")


async def test_the_agents_own_timers_are_off(here: Here) -> None:
    assert "CLAUDE_CODE_DISABLE_CRON=1" in (await here.run("job:7:1", "env")).text


async def test_a_fault_of_the_callers_leaves_the_supervisor_free(here: Here) -> None:
    with pytest.raises(Fault):
        await here.follow(Start("job:7:1", [Part(kind="file", descriptor=3, name="x")], JobSeat(7, "x")))
    assert (await here.run("job:7:1", "say hello")).text == "hello"
