"""AgentBackend: what the supervisor knows of an agent program. One class per engine implements it.

Nothing of an engine's JSON leaks upward: a backend turns it into `Event`s. A backend owns one process of the
inner agent, talks to it over pipes, and is thrown away with it; sessions outlive it on the agent's own disk.
"""

from __future__ import annotations

import abc
import re
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from kai.interfaces import Event, Part

SESSION_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
"""What can be a session's id. It comes from the agent, is shown to people, and goes into a command line."""


class Context(msgspec.Struct, frozen=True):
    """What a process of the inner agent is started with.

    `session` is the id of a session to resume, "" for a fresh one. `system_prompt` (Markdown) is identity, memory
    and the rest of S6, made new for each start. `door` is the launcher's command: sudo and kai-inner, without
    arguments of ours. `model_door` is the socket of kai-proxy's model door, "" where there is none.
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

        An agent that dies in the turn ends it with `done`, outcome `failed`; the backend is then dead.
        """

    @abc.abstractmethod
    async def interrupt(self) -> None:
        """Ask the agent to stop the running turn by its own protocol; `turn` then ends with `interrupted`."""

    @abc.abstractmethod
    async def close(self) -> bool:
        """End the process: close its input, wait a little, then SIGTERM through the door, then give it up.

        True when the process is gone; False after 10 s, when only the end of the control group can help. A turn
        that still runs ends with `done`. Safe to call twice.
        """

    @property
    @abc.abstractmethod
    def alive(self) -> bool:
        """Whether another turn can be given to this process."""

    @property
    @abc.abstractmethod
    def session(self) -> str:
        """Id of the current session, "" before the agent has told it."""

    @property
    @abc.abstractmethod
    def cost_usd(self) -> float:
        """Sum in US dollars of what the turns run by this process have cost (not of the session before)."""
