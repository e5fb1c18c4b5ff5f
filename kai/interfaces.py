"""Every Varlink interface: the contract between the units on one page.

A class below is a method; `callers` is the table of who may call it (see `kai.lib.peers` for the names). What
isn't in the table is refused and logged. Interfaces stay compatible one version back: fields are only added,
and added ones have a default.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from kai.lib.peers import BOT, OPERATOR, SCHEDULER, SUPERVISOR
from kai.lib.varlink import Call, Empty, Fault, method

# ---- kai.Agent: one user's supervisor, on /run/kai/agent/USER.sock ------------------------------------------


class Part(msgspec.Struct):
    """A piece of a prompt."""

    kind: Literal["text"]
    text: str


class Event(msgspec.Struct, omit_defaults=True):
    """One step of a turn. Exactly one `done` comes, and it is last.

    `text` in a text event belongs at `offset` (characters) of the turn's text: who joins late or twice cuts there
    and appends. `cost_usd` is what the turn has cost so far, in US dollars.
    """

    kind: Literal["started", "text", "tool", "usage", "done"]
    offset: int = 0
    text: str = ""
    session: str = ""
    resumed: bool = False
    tool: str = ""
    summary: str = ""
    running: bool = False
    cost_usd: float = 0.0
    outcome: Literal["", "ok", "failed", "interrupted"] = ""
    error: str = ""


class Journal(msgspec.Struct):
    """Which journal of turns answers: after a new generation or boot, an unknown turn may have begun before."""

    generation: str
    boot: str


class AgentState(msgspec.Struct):
    """What `/stats` and `kai status` show. Times are seconds since the epoch, money is US dollars."""

    user: str
    state: Literal["idle", "starting", "ready", "working", "draining"]
    backend: str
    model: str
    session: str
    turn: str
    turns: int
    cost_usd: float
    since: float


class UnknownTurn(Fault, name="kai.Agent.UnknownTurn"):
    """The journal has no such turn. The message is `GENERATION BOOT` of the journal that was asked."""


@method("kai.Agent.Hello", reply=Journal, callers={BOT, SCHEDULER})
class Hello(Call[Journal]):
    """Name the journal. Asked before a turn is marked as running."""


@method("kai.Agent.Start", reply=Event, callers={BOT, SCHEDULER}, stream=True)
class Start(Call[Event]):
    """Run a turn, once: a turn id that the journal knows is joined instead."""

    turn: str
    prompt: list[Part]


@method("kai.Agent.Join", reply=Event, callers={BOT, SCHEDULER}, stream=True)
class Join(Call[Event]):
    """The stored answer or the live stream of a turn that was started before; never starts one."""

    turn: str


class Stopped(msgspec.Struct):
    """Whether a turn of that id was running and is being interrupted."""

    stopping: bool


@method("kai.Agent.Stop", reply=Stopped, callers={BOT})
class Stop(Call[Stopped]):
    """Interrupt this turn if it is running; the session stays."""

    turn: str


@method("kai.Agent.NewSession", reply=Empty, callers={BOT})
class NewSession(Call[Empty]):
    """End the session: the next turn starts a fresh one."""


@method("kai.Agent.State", reply=AgentState, callers={BOT, OPERATOR})
class State(Call[AgentState]):
    """Describe the supervisor; changes nothing."""


@method("kai.Agent.Retire", reply=Empty, callers={OPERATOR})
class Retire(Call[Empty]):
    """Take no new turn, finish the running one, then leave: how an upgrade changes the code under a busy agent."""


# ---- kai.Bot: what may reach a chat, on /run/kai/bot.sock ---------------------------------------------------


class Stored(msgspec.Struct):
    """The outbox row that holds the message; it is on disk."""

    id: int


class BotStatus(msgspec.Struct):
    """What `kai status` shows of the bot."""

    name: str
    state: str
    users: int
    queued: int
    running: int
    unsent: int


@method("kai.Bot.Deliver", reply=Stored, callers={SUPERVISOR, SCHEDULER})
class Deliver(Call[Stored]):
    """Send a text (Markdown) to a user. The key is the caller's own: the same key again stores nothing new.

    A supervisor may name its own user only.
    """

    key: str
    user: str
    text: str


@method("kai.Bot.Status", reply=BotStatus, callers={OPERATOR})
class Status(Call[BotStatus]):
    """Describe the bot; changes nothing."""
