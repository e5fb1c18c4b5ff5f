"""Workspaces (S7): names beneath the user's base, and what workspaces.yaml has files for.

All of it lies where the agent may write and the supervisor often can't look. So it is asked for through kai-inner, with
the agent's own rights; what comes back is the account's word and is believed no further than that account could reach.
"""

from __future__ import annotations

import unicodedata
from pathlib import Path

import msgspec

from kai.agent import door as the_door
from kai.agent.envfile import EnvFileError, parse
from kai.config import Workspace, expand
from kai.interfaces import Place
from kai.lib.log import printable

HOME = "home"
RESERVED = frozenset({HOME, "new", "set", "reset"})
"""Words of `/workspace`: no new workspace is called so, and a directory of that name is not offered."""
LONGEST_NAME, LONGEST_PART, DEEPEST = 200, 255, 4
"""Characters of a name, bytes of a part of it, parts."""
MOST_LISTED = 100
ENV_LIMIT = 64 * 1024
PROMPT_LIMIT = 256 * 1024
_ALLOWED = frozenset(" ._+@=,#-")


class WorkspaceError(Exception):
    """A workspace can't be used; the message tells the user why and what to do."""


class Places(msgspec.Struct, frozen=True):
    """Where a user's workspaces are: beneath `base` (None: nowhere), and his home. `door` opens to his account."""

    door: tuple[str, ...]
    base: Path | None
    home: Path

    def name_of(self, path: Path) -> str:
        """The name of the workspace at this path; a path that has none is its own name."""
        if path == self.home:
            return HOME
        if self.base is not None and path != self.base and path.is_relative_to(self.base):
            return str(path.relative_to(self.base))
        return str(path)

    async def find(self, name: str) -> Place:
        """An existing workspace by its name. Raises WorkspaceError."""
        name = name.strip()
        if name == HOME:
            await self._find_home()
            return Place(name=HOME, path=str(self.home))
        base = self._base()
        name = checked_name(name, base)
        answer = await self._ask({"verb": "find", "base": str(base), "name": name})
        if answer.code == the_door.NOT_THERE:
            raise WorkspaceError(f"There is no workspace {name} in {base}; /workspace new {name} makes it.")
        self._refuse(answer, name)
        return self._place(base / name)

    async def create(self, name: str) -> tuple[Place, bool]:
        """A new workspace, and whether it has a git repository. The one above it must exist. Raises WorkspaceError."""
        base = self._base()
        name = checked_name(name.strip(), base)
        if name in RESERVED:
            raise WorkspaceError(f"No new workspace can be called {name}: it is a word of the command /workspace.")
        answer = await self._ask({"verb": "mkworkspace", "base": str(base), "name": name})
        above = name.rpartition("/")[0]
        if answer.code == the_door.NOT_THERE and above:
            raise WorkspaceError(
                f"There is no workspace {above} in {base} to make {name} in; /workspace new {above} makes it."
            )
        if answer.code == the_door.EXISTS:
            raise WorkspaceError(f"{name} exists already in {base}; /workspace {name} goes there.")
        self._refuse(answer, name)
        return self._place(base / name), answer.git

    async def listing(self) -> list[str]:
        """The directories right below the base that `find` takes, sorted, at most MOST_LISTED. Raises WorkspaceError.

        Neither hidden ones nor links are among them.
        """
        base = self._base()
        answer = await self._ask({"verb": "list", "base": str(base), "limit": MOST_LISTED})
        self._refuse(answer, "")
        names = {name for name in answer.names[:MOST_LISTED] if not _fault(name)}
        return sorted(names - RESERVED, key=str.casefold)

    async def _find_home(self) -> None:
        answer = await self._ask({"verb": "find", "base": str(self.home), "name": "."})
        if answer.code:
            raise WorkspaceError(
                f"The home workspace {self.home} can't be used by the agent's account: "
                f"{printable(answer.error, 200)}. The operator makes it, or sets another home_workspace in users.yaml; "
                "`kai users apply` and `kai retire` show it to the agent."
            )

    def _base(self) -> Path:
        if self.base is None:
            raise WorkspaceError(
                "There is no directory for workspaces: the operator sets workspace_base in kai.yaml or for this user "
                "in users.yaml, and then runs `kai users apply`."
            )
        return self.base

    def _place(self, path: Path) -> Place:
        return Place(name=self.name_of(path), path=str(path))

    def _refuse(self, answer: the_door.Answer, name: str) -> None:
        """Raise what remains to be told of an answer that is an error."""
        if answer.code == the_door.NO_BASE:
            raise WorkspaceError(
                f"The directory for workspaces, {self.base} (workspace_base), can't be used by the agent's account: "
                f"{printable(answer.error, 200)}. The operator makes it for that account; `kai users apply` and "
                "`kai retire` show it to the agent."
            )
        if answer.code:
            raise WorkspaceError(f"{name or self.base}: {printable(answer.error, 200)}.")

    async def _ask(self, request: dict[str, object]) -> the_door.Answer:
        try:
            return (await the_door.ask(self.door, request))[0]
        except the_door.DoorError as error:
            raise WorkspaceError(f"The agent's account doesn't answer: {error}") from None


def checked_name(name: str, base: Path) -> str:
    """The name of a workspace as it stands beneath the base. Raises WorkspaceError with what is wrong with it."""
    shown = printable(name, 60)
    if name.startswith(("/", "~")):
        raise WorkspaceError(f"{shown}: a workspace is named by its path below {base}, without a / or ~ before it.")
    name = name.removesuffix("/")
    fault = _fault(name)
    if fault:
        raise WorkspaceError(f"{shown or 'A name'}: {fault}.")
    return name


def _fault(name: str) -> str:
    """What is wrong with a workspace's name, "" when nothing is."""
    parts = name.split("/")
    odd = next((char for char in name if char != "/" and not _is_plain(char)), None)
    if not name:
        return "a workspace needs a name"
    if len(name) > LONGEST_NAME or any(len(part.encode("utf-8", "replace")) > LONGEST_PART for part in parts):
        return f"a workspace's name has at most {LONGEST_NAME} characters, and {LONGEST_PART} bytes from / to /"
    if len(parts) > DEEPEST:
        return f"a workspace lies at most {DEEPEST} directories deep"
    if "" in parts:
        return "there is nothing between two /"
    if any(part in (".", "..") for part in parts):
        return "a workspace's name has no . or .. in it: all are reached from the same directory"
    if any(part.startswith((".", "-")) for part in parts):
        return "no part of a workspace's name begins with . or -"
    if odd:
        what = f"the character {odd}" if odd.isprintable() else f"the unprintable character U+{ord(odd):04X}"
        return f"{what} is not for a workspace's name, which has letters, digits, spaces and . _ + @ = , # -"
    if any(part != part.strip() for part in parts):
        return "no part of a workspace's name begins or ends with a space"
    return ""


def _is_plain(char: str) -> bool:
    return char in _ALLOWED or unicodedata.category(char)[0] in "LMN"


async def environment(
    door: tuple[str, ...], workspace: Workspace | None, home_of_account: Path
) -> tuple[tuple[str, str], ...]:
    """The variables that workspaces.yaml gives: those of `env_file`, and over them those of `env`.

    Raises WorkspaceError; neither it nor a log ever has a value.
    """
    if workspace is None:
        return ()
    found: dict[str, str] = {}
    if workspace.env_file:
        path = expand(workspace.env_file, home_of_account)
        data = await _file(door, path, "env_file", ENV_LIMIT)
        try:
            found = parse(data)
        except EnvFileError as error:
            raise WorkspaceError(f"env_file of this workspace: {path}, {error}.") from None
    return tuple({**found, **dict(workspace.env)}.items())


async def workspace_prompt(door: tuple[str, ...], workspace: Workspace | None, home_of_account: Path) -> str:
    """What workspaces.yaml has the agent told about a workspace, "" for nothing. Raises WorkspaceError."""
    if workspace is None:
        return ""
    if workspace.system_prompt_file:
        path = expand(workspace.system_prompt_file, home_of_account)
        data = await _file(door, path, "system_prompt_file", PROMPT_LIMIT)
        return data.decode("utf-8", errors="replace").strip()
    return (workspace.system_prompt or "").strip()


async def _file(door: tuple[str, ...], path: Path, key: str, limit: int) -> bytes:
    """A file that workspaces.yaml names, read with the agent's own rights."""
    try:
        data = await the_door.read(door, path.parent, path.name, limit)
    except the_door.DoorError as error:
        raise WorkspaceError(f"{key} of this workspace can't be read with the agent's rights: {error}") from None
    if data is None:
        raise WorkspaceError(
            f"{key} of this workspace is missing: {path}. Put it there, or have the operator take the line out of "
            "workspaces.yaml."
        )
    return data
