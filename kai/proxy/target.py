"""The address of one call, made from the service's own and what the agent gave: it can't lead anywhere else.

The agent gives a suffix of the path and parameters. Both are checked as the service would read them, after every
decoding, and the whole is parsed again at the end: scheme, host, port and the path's beginning are the service's.
"""

from __future__ import annotations

import re
import unicodedata
import urllib.parse
from collections.abc import Iterator, Mapping

from kai.config import Service
from kai.interfaces import ServiceRefused
from kai.lib.varlink import InvalidParameter

LONGEST_SUFFIX, LONGEST_TARGET = 2048, 8192
"""Characters of a suffix, and of path and query as they are sent."""
MOST_PARAMS, LONGEST_NAME, LONGEST_VALUE = 50, 100, 4096
_DEEPEST = 4
_SAFE = "/~!$&'()*+,;=:@%"
_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_SLASHES = "\u2044\u2215\u29f8\uff0f"
_DOTS = "\u2024\u3002\ufe52\uff0e\uff61"
_ALIKE = {**dict.fromkeys(map(ord, _SLASHES), "/"), **dict.fromkeys(map(ord, _DOTS), ".")}


def target(service: Service, suffix: str, params: Mapping[str, str], key: str = "") -> str:
    """Path and query to ask the service for. `key` goes into the query where the service wants it there.

    Raises ServiceRefused for what breaks a rule, InvalidParameter for what is malformed.
    """
    base = urllib.parse.urlsplit(service.url).path
    path = base or "/"
    if suffix:
        path = f"{base.rstrip('/')}/{_checked_suffix(service, suffix)}"
    query = urllib.parse.urlencode(list(_query(service, params, key)))
    whole = f"{path}?{query}" if query else path
    if len(whole) > LONGEST_TARGET:
        raise ServiceRefused(f"params: the address would have more than {LONGEST_TARGET} characters")
    _same_origin(service, whole, base)
    return whole


def _checked_suffix(service: Service, suffix: str) -> str:
    """The suffix as it is sent, without a leading slash."""
    if not service.allow_path_suffix:
        raise ServiceRefused(f"path_suffix: {service.name} takes none (allow_path_suffix in services.yaml)")
    if len(suffix) > LONGEST_SUFFIX:
        raise ServiceRefused(f"path_suffix: longer than {LONGEST_SUFFIX} characters")
    suffix = suffix.removeprefix("/")
    for text in _readings(suffix):
        reason = _leads_astray(text)
        if reason:
            raise ServiceRefused(f"path_suffix: {reason}")
    try:
        return urllib.parse.quote(suffix, safe=_SAFE)
    except UnicodeEncodeError:
        raise InvalidParameter("path_suffix: is no text that UTF-8 can express") from None


def _readings(text: str) -> Iterator[str]:
    """The text as it stands and after each decoding, until there is nothing left to decode."""
    for _ in range(_DEEPEST):
        if _PERCENT.search(text):
            raise ServiceRefused("path_suffix: a % stands alone (write it as %25)")
        yield text
        decoded = urllib.parse.unquote(text, errors="replace")
        if decoded == text:
            return
        if "\ufffd" in decoded:
            raise ServiceRefused("path_suffix: its encoded bytes are no UTF-8 text")
        if "%" in decoded and decoded.count("%") == text.count("%25"):
            yield decoded  # a % of the text itself: "100%25" means "100%"
            if _PERCENT.search(decoded):
                return
        text = decoded
    raise ServiceRefused("path_suffix: encoded too many times")


def _leads_astray(text: str) -> str:
    """What is wrong with one reading of a suffix, also as a server reads it that folds alike characters into one."""
    for reading in (text, unicodedata.normalize("NFKC", text.translate(_ALIKE))):
        if "\\" in reading:
            return "a backslash isn't allowed in it"
        if "?" in reading or "#" in reading:
            return "? and # aren't allowed in it (parameters go into params)"
        if any(not c.isprintable() for c in reading):
            return "control characters aren't allowed in it"
        if reading.startswith("/") or "//" in reading:
            return "an empty step (//) isn't allowed in it"
        if any(step.partition(";")[0].strip() in (".", "..") for step in reading.split("/")):
            return "the steps . and .. aren't allowed in it"
    return ""


def _query(service: Service, params: Mapping[str, str], key: str) -> Iterator[tuple[str, str]]:
    """The service's own parameters, the agent's, and the key."""
    auth = service.auth
    fixed = {name.casefold() for name, _ in service.params}
    if auth.type == "query" and auth.name:
        fixed.add(auth.name.casefold())
    if len(params) > MOST_PARAMS:
        raise InvalidParameter(f"params: more than {MOST_PARAMS}")
    for name, value in params.items():
        if not name or len(name) > LONGEST_NAME or not name.isprintable():
            raise InvalidParameter(f"params: a name has 1 to {LONGEST_NAME} printable characters")
        if len(value) > LONGEST_VALUE or "\0" in value:
            raise InvalidParameter(f"params: a value has at most {LONGEST_VALUE} characters and no NUL")
        if not _is_utf8(name + value):
            raise InvalidParameter("params: not a text that UTF-8 can express")
        if _plain_name(name) in fixed:
            raise ServiceRefused(f"params: {name} is set by services.yaml and not by a call")
    yield from service.params
    yield from params.items()
    if auth.type == "query" and auth.name and key:
        yield auth.name, (auth.prefix or "") + key


def _plain_name(name: str) -> str:
    """A parameter's name as lenient servers read it: `key[]`, ` key` and `KEY` may all be `key`."""
    return unicodedata.normalize("NFKC", name).partition("[")[0].strip().casefold()


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _same_origin(service: Service, whole: str, base: str) -> None:
    """The last look, at what is sent: parsed as a whole, it is the service's origin and below the service's path."""
    ours = urllib.parse.urlsplit(service.url)
    try:
        made = urllib.parse.urlsplit(f"{ours.scheme}://{ours.netloc}{whole}")
        same = (made.scheme, made.hostname, made.port) == (ours.scheme, ours.hostname, ours.port)
    except ValueError:
        same = False
    below = whole.startswith("/") and whole.startswith(base) and whole.isascii() and whole.isprintable()
    if not same or not below or made.username is not None or made.fragment:
        raise ServiceRefused("path_suffix: the call would leave the service's own address")
