"""Varlink on the wire: JSON objects ended by NUL, typed by msgspec structs.

A method is a struct: its fields are the parameters, its `reply` the type that comes back. The text form of an
interface (what `varlinkctl introspect` shows) is derived from these structs in `idl.py`, so that contract and
code are one text. Source: https://varlink.org/Method-Call
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Generic, TypeVar

import msgspec

MAX_MESSAGE = 1 << 20
"""Longest message in bytes, either way. Bulk goes by descriptor, so a longer one is a fault or an attack."""

R = TypeVar("R", bound=msgspec.Struct)
S = TypeVar("S", bound=type[Any])


class Empty(msgspec.Struct):
    """No parameters."""


class Call(msgspec.Struct, Generic[R]):
    """Base of every method. `@method` fills in the class variables."""

    NAME: ClassVar[str]
    REPLY: ClassVar[type[Any]]
    STREAM: ClassVar[bool]
    CALLERS: ClassVar[frozenset[str]]
    DESCRIPTORS: ClassVar[int]


class Fault(Exception):
    """An error that travels: `NAME` is its qualified Varlink name, the message its one parameter."""

    NAME: ClassVar[str]
    PARAMETER: ClassVar[str] = "message"
    registry: ClassVar[dict[str, type[Fault]]] = {}

    def __init__(self, message: str = "") -> None:
        super().__init__(message)
        self.message = message

    def __init_subclass__(cls, name: str, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.NAME = name
        Fault.registry[name] = cls


class MethodNotFound(Fault, name="org.varlink.service.MethodNotFound"):
    """The peer has no such method."""

    PARAMETER = "method"


class InterfaceNotFound(Fault, name="org.varlink.service.InterfaceNotFound"):
    """The peer has no such interface."""

    PARAMETER = "interface"


class InvalidParameter(Fault, name="org.varlink.service.InvalidParameter"):
    """A parameter is missing, unknown or of the wrong type; the message names it."""

    PARAMETER = "parameter"


class PermissionDenied(Fault, name="org.varlink.service.PermissionDenied"):
    """The caller table has no entry for this caller and method."""


class ExpectedMore(Fault, name="org.varlink.service.ExpectedMore"):
    """A method that answers with a stream was called without `more`."""


class Misconfigured(Fault, name="kai.Misconfigured"):
    """The daemon was woken but its configuration can't be used; the message says where and what to do."""


class Internal(Fault, name="kai.Internal"):
    """The daemon failed to answer; its journal says why."""


class Busy(Fault, name="kai.Busy"):
    """Not now: too many calls, or the daemon is about to leave. The caller may come back."""


class Unavailable(Exception):
    """The peer could not be reached or went away before it answered; nothing is known of the call's effect."""


METHODS: dict[str, type[Call[Any]]] = {}


def method(
    name: str, *, reply: type[Any], callers: set[str], stream: bool = False, descriptors: int = 0
) -> Callable[[S], S]:
    """Declare a struct to be the method `name`, callable by the peers in `callers` and by nobody else.

    With `descriptors`, so many open files at the most may come with a call.
    """

    def declare(cls: S) -> S:
        cls.NAME, cls.REPLY, cls.STREAM, cls.CALLERS = name, reply, stream, frozenset(callers)
        cls.DESCRIPTORS = descriptors
        METHODS[name] = cls
        return cls

    return declare


class Request(msgspec.Struct):
    """A call as it stands on the wire."""

    method: str
    parameters: msgspec.Raw = msgspec.Raw(b"{}")
    more: bool = False
    oneway: bool = False
    upgrade: bool = False


class Reply(msgspec.Struct, omit_defaults=True):
    """An answer as it stands on the wire."""

    parameters: msgspec.Raw = msgspec.Raw(b"{}")
    continues: bool = False
    error: str | None = None


def encode(message: Request | Reply) -> bytes:
    return msgspec.json.encode(message) + b"\0"
