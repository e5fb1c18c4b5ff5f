"""The text form of an interface, derived from its structs: what `varlinkctl introspect` shows."""

from __future__ import annotations

import types
import typing
from typing import Any, Literal, get_args, get_origin

import msgspec

from kai.lib.varlink import METHODS, Call, Fault

_PLAIN = {str: "string", int: "int", float: "float", bool: "bool", dict: "object"}


def interfaces(methods: dict[str, type[Call[Any]]] | None = None) -> list[str]:
    """Names of all interfaces that have a method here."""
    return sorted({name.rpartition(".")[0] for name in methods or METHODS})


def describe(interface: str, methods: dict[str, type[Call[Any]]] | None = None) -> str:
    """The interface definition in Varlink's language. Source: https://varlink.org/Interface-Definition"""
    structs: dict[str, type[Any]] = {}
    lines = []
    for name, call in sorted((methods or METHODS).items()):
        if name.rpartition(".")[0] == interface:
            inside, outside = _fields(call, structs), _fields(call.REPLY, structs)
            lines.append(f"{_comment(call)}method {name.rpartition('.')[2]}{inside} -> {outside}")
    done: list[str] = []
    while missing := [name for name in structs if name not in done]:
        for name in missing:
            done.append(name)
            lines.append(f"{_comment(structs[name])}type {name} {_fields(structs[name], structs)}")
    for name, fault in sorted(Fault.registry.items()):
        if name.rpartition(".")[0] in (interface, "kai"):
            lines.append(f"{_comment(fault)}error {name.rpartition('.')[2]} (message: string)")
    return f"interface {interface}\n\n" + "\n\n".join(lines) + "\n"


def _comment(thing: type[Any]) -> str:
    text = (thing.__doc__ or "").strip()
    return "".join(f"# {line.strip()}\n" for line in text.splitlines() if line.strip())


def _fields(struct: type[Any], structs: dict[str, type[Any]]) -> str:
    hints = typing.get_type_hints(struct)
    rows = [
        f"{f.name}: {'' if f.required else '?'}{_type(hints[f.name], structs).removeprefix('?')}"
        for f in msgspec.structs.fields(struct)
    ]
    return "(" + ", ".join(rows) + ")"


def _type(hint: Any, structs: dict[str, type[Any]]) -> str:
    if hint in _PLAIN:
        return _PLAIN[hint]
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        if all(isinstance(a, str) and a.isidentifier() for a in arguments):
            return "(" + ", ".join(arguments) + ")"
        return "string"  # Varlink's enums have no empty name
    if origin in (types.UnionType, typing.Union):
        (inner,) = [a for a in arguments if a is not type(None)]
        return "?" + _type(inner, structs)
    if origin is list:
        return "[]" + _type(arguments[0], structs)
    if origin is dict:
        return "[string]" + _type(arguments[1], structs)
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        structs[hint.__name__] = hint
        return hint.__name__
    raise TypeError(f"no Varlink type for {hint!r}")
