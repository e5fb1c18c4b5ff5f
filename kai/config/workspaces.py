"""workspaces.yaml: settings of single workspaces, by path.

Three spellings are taken: `workspaces:` with a mapping from path to settings; the same mapping without that key;
and the list that the original Kai had, `- path: …` with a `claude:` block.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from kai.config import rules
from kai.config.decode import Faults, decode, join, shown, unknown_key
from kai.config.users import User

NAME = "workspaces.yaml"

_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_ENV_BYTES = 32768
_BLOCK = ("model", "budget", "timeout", "env", "env_file", "system_prompt", "system_prompt_file")


class Workspace(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Settings of one workspace. `budget` is US dollars, `timeout` seconds; None is "not given".

    `env_file` and `system_prompt_file` lie where an agent may write: they are read with its rights, never by a
    daemon. All paths may begin with `~`.
    """

    path: rules.Directory
    model: rules.Model | None = None
    budget: rules.Dollars | None = None
    timeout: rules.Timeout | None = None
    env: tuple[tuple[str, str], ...] = ()
    env_file: rules.Directory | None = None
    system_prompt: rules.Text | None = None
    system_prompt_file: rules.Directory | None = None
    trust_settings: rules.Switch = False


class _Settings(msgspec.Struct, frozen=True):
    """What may stand beside a path; `env` is checked apart, because its names are free."""

    model: rules.Model | None = None
    budget: rules.Dollars | None = None
    timeout: rules.Timeout | None = None
    env_file: rules.Directory | None = None
    system_prompt: rules.Text | None = None
    system_prompt_file: rules.Directory | None = None
    trust_settings: rules.Switch = False


class _Place(msgspec.Struct, frozen=True):
    path: rules.Directory


def build(data: Any, faults: Faults) -> tuple[Workspace, ...] | None:
    """The workspaces from the file's plain data, or None with the reasons in `faults`. Empty is none."""
    before = len(faults)
    workspaces: dict[str, Workspace] = {}
    for path, where, settings in _entries(data, faults):
        place = decode(_Place, {"path": path}, where, faults)
        workspace = _workspace(place.path if place else "", where, settings, faults)
        if place and workspace:
            if place.path in workspaces:
                faults.add(where, f"the path {shown(place.path)} stands here a second time, expected it once")
            workspaces[place.path] = workspace
    return tuple(workspaces.values()) if len(faults) == before else None


def outside(
    workspaces: Iterable[Workspace],
    users: Iterable[User],
    base: str | None,
    faults: Faults,
    home: Callable[[User], Path | None] | None = None,
) -> None:
    """Add a fault for each workspace that lies beneath nobody's base and is nobody's home.

    `base` is kai.yaml's. Without `home`, the function that gives a user's home directory, a path with `~` and one
    without can't be compared, and the entry passes.
    """
    users = tuple(users)
    for workspace in workspaces:
        if not any(_reaches(user, workspace.path, base, home) for user in users):
            bases = sorted({each for user in users if (each := user.workspace_base or base)})
            named = f"a path beneath {' or '.join(bases)}, or" if bases else "a workspace_base above it, or it as"
            faults.add(
                workspace.path,
                f"lies outside every workspace_base and is nobody's home_workspace, expected {named} a user's home",
            )


def reach(user: User, workspaces: Iterable[Workspace], base: str | None, home: Path) -> dict[Path, Workspace]:
    """The workspaces that this user can work in, by real path: `~` is `home`, his work account's."""
    return {
        rules.expand(each.path, home): each
        for each in workspaces
        if _reaches(user, each.path, base, lambda _user: home)
    }


def _entries(data: Any, faults: Faults) -> Iterable[tuple[object, str, Any]]:
    if data is None:
        return
    if not isinstance(data, dict):
        faults.add("", f'expected a mapping with the key "workspaces", got {shown(data)}')
        return
    listed: Any = data
    prefix = ""
    if "workspaces" in data or not any(key.startswith(("/", "~")) for key in data):
        for key in data:
            if key != "workspaces":
                faults.add(join("", key), unknown_key(key, ["workspaces"], {}))
        listed, prefix = data.get("workspaces"), "workspaces"
    if listed is None:
        return
    if isinstance(listed, dict):
        for path, settings in listed.items():
            yield path, f"{prefix}[{path}]" if prefix else path, {} if settings is None else settings
    elif isinstance(listed, list):
        for index, entry in enumerate(listed):
            where = f"workspaces[{index}]"
            if not isinstance(entry, dict):
                faults.add(where, f"expected a mapping with path, got {shown(entry)}")
                continue
            yield entry.get("path"), where, {key: value for key, value in entry.items() if key != "path"}
    else:
        faults.add("workspaces", f"expected a mapping from path to settings, got {shown(listed)}")


def _workspace(path: str, where: str, settings: Any, faults: Faults) -> Workspace | None:
    if not isinstance(settings, dict):
        faults.add(where, f"expected a mapping of settings, got {shown(settings)}")
        return None
    before = len(faults)
    merged = {key: value for key, value in settings.items() if key != "claude"}
    block = settings.get("claude")
    if block is not None and not isinstance(block, dict):
        faults.add(f"{where}.claude", f"expected a mapping of settings, got {shown(block)}")
    elif block:
        for key, value in block.items():
            here = join(f"{where}.claude", key)
            if key not in _BLOCK:
                faults.add(here, unknown_key(key, _BLOCK, {}))
            elif merged.get(key) is not None:
                faults.add(here, f"{key} stands beside claude: too, expected it once")
            else:
                merged[key] = value
    env = _environment(merged.pop("env", None), f"{where}.env", faults)
    known = decode(_Settings, merged, where, faults, {"path": "the path is the key of the mapping"})
    if known and known.system_prompt is not None and known.system_prompt_file is not None:
        faults.add(where, "has both system_prompt and system_prompt_file, expected one of them")
    if known is None or len(faults) != before:
        return None
    return Workspace(path=path, env=env, **msgspec.structs.asdict(known))


def _environment(env: Any, where: str, faults: Faults) -> tuple[tuple[str, str], ...]:
    """The variables as texts. Values are never shown: people keep passwords there."""
    if env is None:
        return ()
    if not isinstance(env, dict):
        faults.add(where, f"expected a mapping from variable to text, got {_kind(env)}")
        return ()
    pairs = []
    for name, value in env.items():
        here = join(where, name)
        if not _ENV_NAME.fullmatch(name):
            faults.add(here, "is not a variable's name, expected letters, digits and _")
            continue
        if isinstance(value, bool):
            text = "true" if value else "false"
        elif value is None or isinstance(value, str | int):
            text = "" if value is None else str(value)
        else:
            faults.add(here, f"expected a text, got {_kind(value)} (put it in quotes)")
            continue
        if "\0" in text or len(text) > _ENV_BYTES:
            faults.add(here, "expected a text of at most 32768 characters without NUL")
            continue
        pairs.append((name, text))
    return tuple(pairs)


def _kind(value: object) -> str:
    if isinstance(value, list | dict):
        return shown(value)
    return "a number with a point" if isinstance(value, float) else "a single value"


def _reaches(user: User, path: str, base: str | None, home: Callable[[User], Path | None] | None) -> bool:
    directory = home(user) if home else None
    own = user.home_workspace or f"/var/lib/kai/users/{user.name}/work"
    above = user.workspace_base or base
    return _within(path, own, directory, same=True) or (
        above is not None and _within(path, above, directory, same=False)
    )


def _within(path: str, above: str, home: Path | None, *, same: bool) -> bool:
    """Whether a path is `above` (`same`) or lies beneath it; without a home, `~` and `/` may mean the same."""
    if path.startswith("~") != above.startswith("~"):
        if home is None:
            return True
        path, above = str(rules.expand(path, home)), str(rules.expand(above, home))
    if same:
        return path == above
    return PurePosixPath(path).is_relative_to(above)
