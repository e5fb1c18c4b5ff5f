"""From plain data to typed structs: every fault is collected, with the path to it and what was expected there.

A field is declared as `Annotated[type, Rule(...)]`: msgspec decides the type, the rule the rest, and the rule's
words are what the operator reads.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any, TypeVar

import msgspec

from kai.config.source import ConfigError, printable

T = TypeVar("T", bound=msgspec.Struct)

_PLAIN_KEY = re.compile(r"[A-Za-z0-9_./~-]{1,120}")
_SHOWN = 60
_TOKEN = re.compile(r"[0-9]{6,}:[A-Za-z0-9_-]{25,}|sk-[A-Za-z0-9_-]{12,}")


class Rule(msgspec.Struct, frozen=True):
    """What a field takes: words for the operator, a test beyond the type, a change of spelling before both.

    `hint` follows the found value; `secret` keeps that value out of the message.
    """

    expected: str
    test: Callable[[Any], bool] | None = None
    prepare: Callable[[Any], Any] | None = None
    secret: bool = False
    hint: str = ""


class Faults:
    """Collects the faults of one file."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.found: list[ConfigError] = []

    def add(self, path: str, message: str) -> None:
        self.found.append(ConfigError(self.file, path, message))

    def __len__(self) -> int:
        return len(self.found)


def looks_secret(text: str) -> bool:
    """Whether a text has the form of a bot's token or a model's key: such a one is never repeated."""
    return bool(_TOKEN.search(text))


def shown(value: object) -> str:
    """A found value as the operator should read it; containers are named, not printed."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        if looks_secret(value):
            return "what looks like a secret"
        return f'"{printable(value[:_SHOWN])}{"…" if len(value) > _SHOWN else ""}"'
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    if isinstance(value, dict):
        return "a mapping"
    return str(value)


def join(path: str, key: str) -> str:
    """The path of a key beneath a path."""
    name = key if _PLAIN_KEY.fullmatch(key) else shown(key)
    return f"{path}.{name}" if path else name


def unknown_key(key: str, known: Iterable[str], renamed: Mapping[str, str]) -> str:
    """The message for a key that doesn't exist, with the one that was probably meant."""
    import difflib

    names = list(known)
    if key in renamed:
        return f"unknown key ({renamed[key]})"
    close = difflib.get_close_matches(key, names, n=1, cutoff=0.6)
    if close:
        return f'unknown key, expected "{close[0]}" perhaps'
    return f"unknown key, expected one of {', '.join(names)}"


def decode(cls: type[T], data: object, path: str, faults: Faults, renamed: Mapping[str, str] | None = None) -> T | None:
    """A struct made from plain data; None when faults were found, which then stand in `faults`.

    A key without a value counts as not given. `renamed` maps keys that people know from elsewhere (a dotted path
    beneath `path`) to a hint.
    """
    before = len(faults)
    values = _fields(cls, data, path, faults, renamed or {}, prefix="")
    return cls(**values) if len(faults) == before else None


@cache
def _annotations(cls: type[msgspec.Struct]) -> dict[str, Any]:
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in msgspec.structs.fields(cls)}


def _fields(
    cls: type[msgspec.Struct],
    data: object,
    path: str,
    faults: Faults,
    renamed: Mapping[str, str],
    *,
    prefix: str,
) -> dict[str, Any]:
    annotations = _annotations(cls)
    if not isinstance(data, dict):
        faults.add(path, f"expected a mapping with {', '.join(annotations)}, got {shown(data)}")
        return {}
    values: dict[str, Any] = {}
    for key, value in data.items():
        here = join(path, key)
        if key not in annotations:
            hints = {name.removeprefix(prefix): hint for name, hint in renamed.items() if name.startswith(prefix)}
            faults.add(here, unknown_key(key, annotations, hints))
        elif value is not None:
            values[key] = _value(annotations[key], value, here, faults, renamed, prefix=f"{prefix}{key}.")
    for field in msgspec.structs.fields(cls):
        if field.required and data.get(field.name) is None:
            _, rule = _leaf(annotations[field.name])
            faults.add(join(path, field.name), f"missing, expected {rule.expected}{_hint(rule)}")
    return values


def _value(
    annotation: Any, value: object, path: str, faults: Faults, renamed: Mapping[str, str], *, prefix: str
) -> Any:
    inner = _strip_none(annotation)
    if isinstance(inner, type) and issubclass(inner, msgspec.Struct):
        before = len(faults)
        values = _fields(inner, value, path, faults, renamed, prefix=prefix)
        return inner(**values) if len(faults) == before else None
    base, rule = _leaf(inner)
    if rule.prepare is not None:
        value = rule.prepare(value)
    if typing.get_origin(base) is tuple:
        if not isinstance(value, list):
            faults.add(path, f"expected {rule.expected}, got {shown(value)}")
            return None
        before = len(faults)
        item = typing.get_args(base)[0]
        items = tuple(
            _value(item, each, f"{path}[{index}]", faults, renamed, prefix=prefix) for index, each in enumerate(value)
        )
        if len(faults) == before and rule.test is not None and not rule.test(items):
            faults.add(path, f"expected {rule.expected}, got {shown(value)}")
        return items
    try:
        converted = msgspec.convert(value, base)
        if rule.test is None or rule.test(converted):
            return converted
    except msgspec.ValidationError:
        pass
    found = "something else" if rule.secret else shown(value)
    quote = _takes_text(base) and isinstance(value, int | float) and not isinstance(value, bool)
    hint = " (put text in quotes)" if quote else _hint(rule)
    faults.add(path, f"expected {rule.expected}, got {found}{hint}")
    return None


def _hint(rule: Rule) -> str:
    return f" ({rule.hint})" if rule.hint else ""


def _strip_none(annotation: Any) -> Any:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        rest = [arg for arg in typing.get_args(annotation) if arg is not type(None)]
        if len(rest) == 1:
            return rest[0]
    return annotation


def _leaf(annotation: Any) -> tuple[Any, Rule]:
    inner = _strip_none(annotation)
    if typing.get_origin(inner) is typing.Annotated:
        base, *extra = typing.get_args(inner)
        for each in extra:
            if isinstance(each, Rule):
                return base, each
    raise TypeError(f"{annotation} has no Rule")


def _takes_text(base: Any) -> bool:
    return base is str or str in typing.get_args(base)
