"""Edits users.yaml in place for `kai users add` and `kai users remove`: whole lines, comments left as they are.

The edited text is parsed before it takes the file's place, and must differ from the old by exactly the one entry;
what can't be edited that cleanly is left to the operator's hand.
"""

from __future__ import annotations

import contextlib
import fcntl
import grp
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from kai.cli.yamltext import render
from kai.config import ConfigError, User
from kai.config import users as userlist
from kai.config.decode import Faults
from kai.config.source import parse, read

_LOADER: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def add(path: Path, entry: Mapping[str, object]) -> User:
    """Append an entry to the list and return the user that it describes; makes the file when there is none.

    Keys of value None are left out. Raises ConfigError and leaves the file alone when the entry or the file has a
    fault, or when the file is written so that it can't be edited line by line.
    """
    with _locked(path):
        text = read(path) or ""
        before = _entries(text, path)
        after = _with_entry(text, before, {k: v for k, v in entry.items() if v is not None}, path)
        now = _entries(after, path)
        if now[:-1] != before or len(now) != len(before) + 1:
            raise _by_hand(path, "add the entry")
        users = _build(after, path)
        _replace(path, after)
        return users[-1]


def remove(path: Path, name: str) -> None:
    """Cut the entry of that name. Raises ConfigError and leaves the file alone when that can't be done cleanly."""
    with _locked(path):
        text = read(path) or ""
        _build(text, path)
        before = _entries(text, path)
        names = [entry["name"] for entry in before]
        if name not in names:
            raise ConfigError(os.fspath(path), "users", f'nobody is called "{name}", known: {", ".join(names)}')
        if len(before) == 1:
            raise ConfigError(os.fspath(path), "users", f'"{name}" is the only user; to admit nobody, stop Kai instead')
        index = names.index(name)
        after = _without_entry(text, index, path)
        if _entries(after, path) != before[:index] + before[index + 1 :]:
            raise _by_hand(path, f'cut the entry of "{name}"')
        _build(after, path)
        _replace(path, after)


def _by_hand(path: Path, what: str) -> ConfigError:
    return ConfigError(
        os.fspath(path),
        "users",
        f"the list isn't written as lines beginning with -, so it can't be edited here; {what} by hand, then run "
        "kai check and kai users apply",
    )


def _entries(text: str, path: Path) -> list[Any]:
    data = parse(text, os.fspath(path))
    entries = data.get("users") if isinstance(data, dict) else None
    return entries if isinstance(entries, list) else []


def _build(text: str, path: Path) -> tuple[User, ...]:
    faults = Faults(os.fspath(path))
    users = userlist.build(parse(text, faults.file), faults)
    if users is None:
        raise faults.found[0]
    return users


def _list_node(text: str) -> Any:
    root: Any = yaml.compose(text, Loader=_LOADER)
    if not isinstance(root, yaml.MappingNode):
        return None
    return next((value for key, value in root.value if key.value == "users"), None)


def _with_entry(text: str, before: list[Any], entry: Mapping[str, object], path: Path) -> str:
    newline = "\r\n" if "\r\n" in text else "\n"
    lines = text.splitlines(keepends=True)
    if lines and not lines[-1].endswith(("\n", "\r")):
        lines[-1] += newline
    node = _list_node(text)
    if node is None:
        if parse(text, os.fspath(path)) is not None:
            raise _build_error(text, path)
        return "".join([*lines, f"users:{newline}", *_entry_lines(entry, 2, newline)])
    if not before:
        # `users:` or `users: []`: the place after the colon is emptied and the entry goes below it.
        if parse(text, os.fspath(path))["users"] not in (None, []):
            raise _build_error(text, path)
        row = lines[node.start_mark.line]
        if node.start_mark.line != node.end_mark.line:
            raise _by_hand(path, "add the entry")
        rest = row[node.end_mark.column :]
        lines[node.start_mark.line] = row[: node.start_mark.column].rstrip(" ") + (
            rest if not rest.strip() else f"  {rest.lstrip(' ')}"
        )
        column, after = 2, node.start_mark.line
    else:
        if node.flow_style:
            raise _by_hand(path, "add the entry")
        column, after = node.start_mark.column, _last_line(node)
    return "".join([*lines[: after + 1], *_entry_lines(entry, column, newline), *lines[after + 1 :]])


def _build_error(text: str, path: Path) -> ConfigError:
    try:
        _build(text, path)
    except ConfigError as error:
        return error
    return _by_hand(path, "add the entry")


def _entry_lines(entry: Mapping[str, object], column: int, newline: str) -> list[str]:
    return [
        f"{' ' * column}{'  ' if position else '- '}{key}: {render(value)}{newline}"
        for position, (key, value) in enumerate(entry.items())
    ]


def _without_entry(text: str, index: int, path: Path) -> str:
    lines = text.splitlines(keepends=True)
    node = _list_node(text)
    if node is None or node.flow_style:
        raise _by_hand(path, "cut the entry")
    item, column = node.value[index], node.start_mark.column
    first = item.start_mark.line
    while first > node.start_mark.line and lines[first][column : column + 1] != "-":
        first -= 1
    return "".join(lines[:first] + lines[_last_line(item) + 1 :])


def _last_line(node: Any) -> int:
    """The last line that belongs to a node. A block's own end mark lies past the comments that follow it."""
    if isinstance(node, yaml.ScalarNode):
        last: int = node.end_mark.line
        return last - 1 if node.style in ("|", ">") and node.end_mark.column == 0 else last
    if node.flow_style:
        return int(node.end_mark.line)
    parts = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in node.value for part in pair]
    return max(_last_line(part) for part in parts)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One edit at a time: two of them would each throw away the other's."""
    try:
        descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(os.fspath(path.parent), "", f"can't be opened: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _replace(path: Path, text: str) -> None:
    """Put the text in the file's place in one step, on disk, with the same owner, group and mode."""
    target = Path(os.path.realpath(path))
    try:
        _write_beside(target, text)
    except OSError as error:
        raise ConfigError(
            os.fspath(target), "", f"can't be written: {error.strerror}; it is unchanged (run kai as root)"
        ) from None


def _write_beside(target: Path, text: str) -> None:
    uid, gid, mode = _ownership(target)
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(text.encode())
            file.flush()
            now = os.fstat(file.fileno())
            if (now.st_uid, now.st_gid) != (uid, gid):
                os.fchown(file.fileno(), uid, gid)
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        Path(name).replace(target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(name).unlink()
        raise
    directory = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _ownership(target: Path) -> tuple[int, int, int]:
    try:
        found = target.stat()
        return found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)
    except FileNotFoundError:
        group = os.getegid()
        if os.geteuid() == 0:
            with contextlib.suppress(KeyError):
                group = grp.getgrnam("kai-config").gr_gid
        return os.geteuid(), group, 0o640
