"""The bodies of requests: typed, and every fault begins with the field's name."""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec

from kai.agent.api.http import Refused, Request
from kai.config import User
from kai.config.decode import shown

LARGEST_JSON = 256 << 10
"""Bytes."""
T = TypeVar("T", bound="Body")
_AT = re.compile(r"(?P<what>.*?)(?: - at `\$\.?(?P<path>.*)`)?", re.DOTALL)
_FIELD = re.compile(r"Object (?P<fault>contains unknown|missing required) field `(?P<name>.*)`")


class Body(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What every request may say besides: whom it is for. It can only be the caller himself."""

    chat_id: Any = None
    user_id: Any = None
    user: Any = None


OWN = ("chat_id", "user_id", "user")


def only_own(values: dict[str, Any], user: User) -> None:
    """Raise Refused (403) when a request names somebody else. None says nothing."""
    for name in OWN:
        expected = user.name if name == "user" else str(user.telegram_id)
        value = values.get(name)
        if value is not None and (isinstance(value, bool) or str(value) != expected):
            raise Refused(403, f"{name}: {shown(value)} isn't yours, and a request is always for {user.name} himself")


async def read(request: Request, kind: type[T], user: User) -> T:
    """The body of a request as a `kind`. Raises Refused."""
    if request.type not in ("application/json", ""):
        raise Refused(400, f"Content-Type: expected application/json, got {shown(request.type)}")
    data = await request.body(LARGEST_JSON)
    try:
        body = msgspec.json.decode(data or b"{}", type=kind)
    except msgspec.ValidationError as fault:
        raise Refused(400, _words(str(fault), kind)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as fault:
        raise Refused(400, f"body: isn't JSON: {fault}") from None
    only_own(msgspec.structs.asdict(body), user)
    return body


def _words(fault: str, kind: type[Body]) -> str:
    """msgspec's words with the field in front."""
    match = _AT.fullmatch(fault)
    what, path = (match["what"], match["path"] or "") if match else (fault, "")
    field = _FIELD.fullmatch(what)
    if field:
        path = f"{path}.{field['name']}".lstrip(".")
        known = ", ".join(name for name in kind.__struct_fields__ if name not in OWN)
        what = f"unknown, expected one of {known}" if "unknown" in field["fault"] else "missing"
    return f"{path or 'body'}: {what[:1].lower()}{what[1:]}".replace("`", "")
