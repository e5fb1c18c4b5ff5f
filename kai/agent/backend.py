"""AgentBackend: what the supervisor knows of an agent program. One class per engine implements it.

Nothing of an engine's JSON leaks upward: a backend turns it into `Event`s. A backend owns one process of the
inner agent, talks to it over pipes, and is thrown away with it; sessions outlive it on the agent's own disk.
"""

from __future__ import annotations

import abc
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

import msgspec

from kai.interfaces import Event, Model, Part

SESSION_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
"""What can be a session's id. It comes from the agent, is shown to people, and goes into a command line."""


API = "KAI_API"
"""The variable that names the socket of kai-api(7) to the agent."""

Ending = Literal["left", "killed", "stuck"]
"""How a process ended: it left by itself at the end of its input; it had died before or had to be killed, and what it
started may still be there; it is still there itself. But for the first, only the end of the control group cleans up."""


class Context(msgspec.Struct, frozen=True):
    """What a process of the inner agent is started with.

    `session` is the id of a session to resume, "" for a fresh one. `system_prompt` (Markdown) is identity, memory
    and the rest of S6, made new for each start. `door` is the launcher's command: sudo and kai-inner, without
    arguments of ours. `model_door` is the socket of kai-proxy's model door, "" where there is none. With `ask`, the
    agent asks before what it may not do by itself, except reading and writing in `memory`, its own directory, and
    reading in `files`, which has what its user sent. `allowed` are the patterns of approvals that need not be asked
    for again in this session. `budget_usd` is what this process may spend, 0 for no limit. `tools` is the command of
    the MCP server that has Kai's own tools, () for none.
    """

    user: str
    door: tuple[str, ...]
    command: tuple[str, ...]
    workspace: Path
    session: str = ""
    system_prompt: str = ""
    model: str = ""
    model_door: str = ""
    environment: tuple[tuple[str, str], ...] = ()
    trust_settings: bool = False
    ask: bool = False
    allowed: tuple[str, ...] = ()
    budget_usd: float = 0.0
    memory: Path | None = None
    files: Path | None = None
    tools: tuple[str, ...] = ()


class AgentDied(Exception):
    """The inner agent can't start or is gone. The message is for the user: reason and its last lines of stderr."""


class SessionUnknown(AgentDied):
    """The agent no longer knows the session that it was to resume."""


class AgentBackend(abc.ABC):
    """One running inner agent."""

    @abc.abstractmethod
    async def start(self, context: Context) -> None:
        """Start the process and wait until it can take a turn. Raises AgentDied or SessionUnknown."""

    @abc.abstractmethod
    def turn(self, prompt: list[Part]) -> AsyncIterator[Event]:
        """Run one turn. The last event is `done`, and there is exactly one.

        A part of kind `file` has what the agent is told of it in `text`, and its path in `name`. With `mime` set it is
        an image of that type, to be shown to the model too where the engine can; see `kai.agent.images`.

        An agent that dies in the turn ends it with `done`, outcome `failed`, reason `died`; the backend is then dead.
        One that has spent its `budget_usd` ends it with reason `budget`. A tool event has the id of its `call`. An
        approval event with `running` waits for `answer`; one without says that the agent no longer asks.
        """

    @abc.abstractmethod
    async def interrupt(self) -> None:
        """Ask the agent to stop the running turn by its own protocol; `turn` then ends with `interrupted`."""

    @abc.abstractmethod
    async def answer(self, approval: str, *, allow: bool, remember: bool = False, message: str = "") -> None:
        """Answer an approval of the running turn; `message` tells the agent why not. An unknown id is ignored.

        With `remember`, what its patterns stand for isn't asked again by this process; see `Context.allowed`.
        """

    @abc.abstractmethod
    async def close(self) -> Ending:
        """End the process: close its input, wait a little, then SIGTERM through the door, then give it up.

        Takes 10 s at the most. A turn that still runs ends with `done`. Safe to call twice.
        """

    @property
    @abc.abstractmethod
    def alive(self) -> bool:
        """Whether another turn can be given to this process."""

    @property
    @abc.abstractmethod
    def heard(self) -> float:
        """When the agent last gave a sign of life (time.monotonic()). Noise that says nothing is none."""

    @property
    @abc.abstractmethod
    def models(self) -> list[Model]:
        """What the agent told at its start of the models that can be chosen."""

    @property
    @abc.abstractmethod
    def commands(self) -> list[str]:
        """Names of the agent's own slash commands, without the slash."""

    @property
    @abc.abstractmethod
    def session(self) -> str:
        """Id of the current session, "" before the agent has told it."""

    @property
    @abc.abstractmethod
    def cost_usd(self) -> float:
        """Sum in US dollars of what the turns run by this process have cost (not of the session before)."""
