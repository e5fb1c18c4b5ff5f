"""What is in force for one user: the configuration, what he chose, and where his agent works now."""

from __future__ import annotations

import copy
import logging
from datetime import UTC, date, datetime, tzinfo
from functools import cached_property
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from kai.agent import choices
from kai.agent.backend import API, Context
from kai.agent.context import read_by_claude, system_prompt
from kai.agent.door import command as door_command
from kai.agent.door import tools_command
from kai.agent.turns import Session, Turns
from kai.agent.workspaces import Places, environment, workspace_prompt
from kai.config import Config, User, Workspace, expand, home_of, load
from kai.interfaces import JobSeat, Place, Setting
from kai.lib.daemon import Daemon
from kai.lib.varlink import Misconfigured

logger = logging.getLogger(__name__)
API_SOCKET = "api"
"""The name of the socket that the inner agent calls."""
WORKSPACE = "workspace"
"""The fact that names the current workspace's path."""


class Setup:
    """Asked anew at each turn, so that an edited file or a choice holds from the next turn on."""

    def __init__(self, d: Daemon, turns: Turns) -> None:
        self.d, self.turns = d, turns
        self.base = d.state_dir.parent
        self.config, self.user = self._read()
        self._entry: tuple[object, Path, Workspace | None] = (None, self.base, None)
        self.chosen: dict[tuple[str, str], str] = {}
        self.given: dict[str, Any] = {}
        """What a job says of itself; it goes before everything else."""
        self.path = self.home
        d.on_reload.append(self.reload)

    async def open(self) -> None:
        self.chosen = await self.turns.choices()
        stored = await self.turns.fact(WORKSPACE)
        if stored and self.reaches(Path(stored)):  # else its base was taken away meanwhile
            self.path = Path(stored)

    def reload(self) -> None:
        """SIGHUP: a configuration that is broken, or has this user no more, raises; the one in force stays."""
        self.config, self.user = self._read()
        self.__dict__.pop("account_home", None)

    def _read(self) -> tuple[Config, User]:
        config = load(self.d.config_dir)
        user = config.user(self.d.instance)
        if user is None:
            raise Misconfigured(
                f"{self.d.config_dir}/users.yaml: no user named {self.d.instance}: run `kai users apply`"
            )
        return config, user

    def of_job(self) -> Setup:
        """What is in force for one run of a job, as it is now: at home, wherever the chat has gone meanwhile."""
        made = copy.copy(self)
        made.path, made.given = self.home, {}
        return made

    async def follow(self, job: JobSeat) -> None:
        """Take over what a job says. Raises WorkspaceError, and ChoiceError for a model that can't be one."""
        if job.model:
            self.given["model"] = choices.typed("model", job.model)
        if job.budget_usd > 0:
            self.given["budget"] = min(job.budget_usd, self.ceiling)
        if job.workspace:
            self.path = Path((await self.places.find(job.workspace)).path)

    # ---- where things are ----

    @cached_property
    def account_home(self) -> Path:
        """The account database is asked once: it is needed many times a turn, and may be slow."""
        return home_of(self.user) or self.base

    @property
    def home(self) -> Path:
        given = self.user.home_workspace
        return expand(given, self.account_home) if given else self.base / "work"

    @property
    def _base(self) -> Path | None:
        given = self.config.effective(self.user, "workspace_base")[0]
        return expand(given, self.account_home) if given else None

    def reaches(self, path: Path) -> bool:
        """Whether a workspace that was used once is still one of this user's."""
        return path == self.home or (self._base is not None and path.is_relative_to(self._base))

    @property
    def door(self) -> tuple[str, ...]:
        return door_command(self.user, one_uid=self.d.one_uid)

    @property
    def places(self) -> Places:
        return Places(self.door, self._base, self.home)

    @property
    def place(self) -> Place:
        return Place(name=self.places.name_of(self.path), path=str(self.path))

    @property
    def entry(self) -> Workspace | None:
        """What workspaces.yaml says of the current workspace."""
        config, path, entry = self._entry
        if config is not self.config or path != self.path:
            entry = self.config.workspaces_of(self.user, self.account_home).get(self.path)
            self._entry = (self.config, self.path, entry)
        return entry

    async def move(self, place: Place) -> None:
        path = Path(place.path)
        await self.turns.set_fact(WORKSPACE, "" if path == self.home else place.path)
        self.path = path  # last, so that a disk that refuses leaves all as it is

    # ---- values ----

    def value(self, field: str) -> Any:
        return self.effective(field)[0]

    def effective(self, field: str) -> tuple[Any, str]:
        """A setting's value here and where it comes from."""
        if field in self.given:
            return self.given[field], "the job"
        return choices.effective(self.config, self.user, self.chosen, str(self.path), self.entry, field)

    @property
    def ceiling(self) -> float:
        """US dollars that a budget may be at the most."""
        return self.config.ceiling(self.user)

    def settings(self) -> list[Setting]:
        return choices.settings(self.config, self.user, self.chosen, str(self.path), self.entry)

    async def choose(self, field: str, value: str, *, workspace: bool, operator: bool) -> None:
        """Store a choice. Raises ChoiceError, whose message is for the user."""
        where = str(self.path) if workspace else ""
        stored = choices.checked(
            field,
            value,
            workspace=workspace,
            config=self.config,
            user=self.user,
            operator=operator,
            in_force=str(self.value("approvals")),
        )
        await self.turns.choose(where, field, stored)
        self.chosen = await self.turns.choices()

    @property
    def zone(self) -> tzinfo:
        try:
            return ZoneInfo(str(self.value("timezone")))
        except (OSError, ValueError, KeyError):  # a host without tzdata
            return UTC

    def today(self) -> date:
        """The user's own day: costs of a day are those of his."""
        return datetime.now(self.zone).date()

    # ---- the agent's process ----

    def standing(self, session: Session) -> tuple[Any, ...]:
        """What a running process was started with: when it differs, the next turn needs a new one."""
        names = ("backend", "model", "approvals", "budget")
        return (self.path, session.name, self.config.command(self.user), self.entry, *map(self._plain, names))

    def _plain(self, field: str) -> Any:
        return self.config.effective(self.user, field)[0] if field == "backend" else self.value(field)

    @property
    def backend(self) -> str:
        return str(self._plain("backend"))

    def _api(self) -> tuple[tuple[str, str], ...]:
        """Where the agent reaches the API of kai-api(7); () where its socket was not handed over."""
        return (
            ((API, str(self.d.runtime_dir / "api" / f"{self.user.name}.sock")),) if API_SOCKET in self.d.sockets else ()
        )

    async def context(self, session: Session) -> Context:
        """Everything for a start of the agent in the current workspace. Raises WorkspaceError."""
        entry, door = self.entry, self.door
        trusted = bool(entry and entry.trust_settings)
        prompt = await system_prompt(
            config_dir=self.d.config_dir,
            user=self.user.name,
            base=self.base,
            home=self.home,
            workspace=self.path,
            door=door,
            fresh=not session.id,
            name=self.place.name,
            instructions=await workspace_prompt(door, entry, self.account_home),
            tools=bool(self._api()),
            native=read_by_claude(self.path, self.account_home, trusted=trusted) if self.backend == "claude" else (),
        )
        model_door = self.d.runtime_dir / "model.sock"
        offered = self.config.kai.agent.model_door != "off" and model_door.exists()
        return Context(
            user=self.user.name,
            door=door,
            command=self.config.command(self.user),
            workspace=self.path,
            session=session.id,
            system_prompt=prompt,
            model=str(self.value("model") or ""),
            model_door=str(model_door) if offered else "",
            environment=(*await environment(door, entry, self.account_home), *self._api()),
            tools=tools_command(one_uid=self.d.one_uid) if self._api() else (),
            trust_settings=trusted,
            ask=self.value("approvals") == "ask",
            allowed=tuple(sorted(await self.turns.allowed(session))),
            budget_usd=max(float(self.value("budget")) - session.cost_usd, 0.0),
            memory=self.base / "memory",
            files=self.base / "files",
        )
