"""From a configuration file to plain data: reading with limits, then YAML without its surprises.

The YAML here is the plain part of the language: no anchors, aliases, tags or second documents, no key twice, and
`on`, `off`, `yes`, `no`, `~`, dates and times stay text. Only `true`, `false`, `null` and decimal numbers are more.
"""

from __future__ import annotations

import os
import pwd
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import yaml

MAX_BYTES = 1 << 20
MAX_DEPTH = 32

_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,29})")
_FLOAT = re.compile(r"-?([0-9]{1,30}\.[0-9]{0,30}|\.[0-9]{1,30})([eE][-+]?[0-9]{1,3})?")
_WORDS = {
    "": None,
    "null": None,
    "Null": None,
    "NULL": None,
    "true": True,
    "True": True,
    "TRUE": True,
    "false": False,
    "False": False,
    "FALSE": False,
}
_LOADER: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def printable(text: str) -> str:
    """The text with every character escaped that could end the line or play with the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


class ConfigError(Exception):
    """A fault in the configuration. Its text is one line: file, path to the fault, what is expected there."""

    def __init__(self, file: str, path: str, message: str) -> None:
        super().__init__(printable(f"{file}: {path}: {message}" if path else f"{file}: {message}"))
        self.file = file
        self.path = path
        self.message = message


def read(file: Path) -> str | None:
    """The text of a file, or None when there is none. Raises ConfigError for everything else.

    Missing is only what is missing: a file that may not be read is a fault, or a wrong mode would change who is
    admitted.
    """
    name = os.fspath(file)
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except FileNotFoundError:
        return None
    except PermissionError:
        raise ConfigError(name, "", _unreadable(name)) from None
    except OSError as error:
        raise ConfigError(name, "", f"can't be opened: {error.strerror}") from None
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise ConfigError(name, "", "is not a regular file, expected a text file")
        content = bytearray()
        while len(content) <= MAX_BYTES:
            block = os.read(descriptor, MAX_BYTES + 1 - len(content))
            if not block:
                break
            content += block
    except OSError as error:
        raise ConfigError(name, "", f"can't be read: {error.strerror}") from None
    finally:
        os.close(descriptor)
    if len(content) > MAX_BYTES:
        raise ConfigError(name, "", "is larger than 1 MiB, expected a configuration file of a few kilobytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{name}:{line}", "", f"byte {error.start} is not UTF-8 text") from None


def parse(text: str, file: str) -> Any:
    """Plain data of one YAML document: None, bool, int, float, str, list and dict with str keys.

    Keys are the text as written. Raises ConfigError with `file:line:column` for everything that isn't plain.
    """
    try:
        return _build(yaml.parse(text, Loader=_LOADER), file)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        why = " ".join(str(part) for part in (error.context, error.problem) if part)
        raise ConfigError(_at(file, mark), "", f"not valid YAML: {why}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(f"{file}:{line}", "", "not valid YAML: a control character") from None
    except (yaml.YAMLError, UnicodeError) as error:
        raise ConfigError(file, "", f"not valid YAML: {error}") from None


def _unreadable(name: str) -> str:
    try:
        account = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        account = f"uid {os.geteuid()}"
    return (
        f"the account {account} may not read it, expected owner root:kai-config with mode 0640, in a directory "
        f"root:kai-config 0750 (chown root:kai-config {name}; chmod 0640 {name})"
    )


def _at(file: str, mark: Any) -> str:
    return file if mark is None else f"{file}:{mark.line + 1}:{mark.column + 1}"


def _refuse(file: str, event: Any, message: str) -> NoReturn:
    raise ConfigError(_at(file, event.start_mark), "", message)


def _build(events: Iterator[Any], file: str) -> Any:
    """Build the data from parser events, with a stack of its own: depth costs memory here, never recursion."""
    # A frame is a container, for a mapping also the key that waits for its value and the keys' lines.
    stack: list[tuple[list[Any] | dict[str, Any], list[str], dict[str, int]]] = []
    root: Any = None
    documents = 0
    for event in events:
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                _refuse(file, event, "a second document begins here, expected one (remove the line ---)")
            continue
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            _refuse(file, event, "anchors and aliases (& and *) aren't used here, expected the value written out")
        if getattr(event, "tag", None):
            _refuse(file, event, "tags (!) aren't used here, expected a plain value")
        if isinstance(event, yaml.SequenceEndEvent | yaml.MappingEndEvent):
            stack.pop()
            continue
        value: Any
        if isinstance(event, yaml.ScalarEvent):
            if stack and isinstance(stack[-1][0], dict) and not stack[-1][1]:
                _, waiting, lines = stack[-1]
                if event.value in lines:
                    key = event.value[:60]
                    _refuse(file, event, f'the key "{key}" stands twice, first in line {lines[event.value]}')
                mark: Any = event.start_mark
                lines[event.value] = mark.line + 1
                waiting.append(event.value)
                continue
            value = _scalar(event)
        elif isinstance(event, yaml.SequenceStartEvent):
            value = []
        elif isinstance(event, yaml.MappingStartEvent):
            value = {}
        else:
            continue
        if not stack:
            root = value
        else:
            container, waiting, _ = stack[-1]
            if isinstance(container, list):
                container.append(value)
            elif waiting:
                container[waiting.pop()] = value
            else:
                _refuse(file, event, "a list or mapping is used as a key, expected a plain word")
        if not isinstance(event, yaml.ScalarEvent):
            if len(stack) >= MAX_DEPTH:
                _refuse(file, event, f"nested deeper than {MAX_DEPTH} levels")
            stack.append((value, [], {}))
    return root


def _scalar(event: Any) -> Any:
    text: str = event.value
    if not event.implicit[0]:
        return text
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text
