"""services.yaml: what agents may call through kai-proxy, without the keys. kai-services.yaml(5) describes it.

Two spellings are taken: `services:` with a mapping from name to settings, and the list that the original Kai had,
`- name: …`. Keys never stand here: `auth` names the credential that holds one.
"""

from __future__ import annotations

import ipaddress
import re
import urllib.parse
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import msgspec

from kai.config import rules
from kai.config.decode import Faults, Rule, decode, join, looks_secret, shown, unknown_key
from kai.config.users import User

NAME = "services.yaml"
KEYS = "/etc/credstore/kai-services"
"""The directory of the keys, one file for each credential."""

_SERVICE = re.compile(r"[a-z0-9][a-z0-9_-]{0,47}")
_CREDENTIAL = re.compile(r"[a-z0-9][a-z0-9._-]{0,47}")
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")
_LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")
_PATH = re.compile(r"(/[A-Za-z0-9._~!$&'()*+,;=:@-]*)*")
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9a-fA-F]*")
_MOST = 64
_PROXYS_OWN = {
    "accept-encoding",
    "connection",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
}
_SECRET_HEADERS = {"authorization", "proxy-authorization", "cookie", "x-api-key", "api-key", "apikey"}
_NO_KEYS = f"keys don't stand here: put it into {KEYS}, one file for each, and name the file in auth.credential"
_RENAMED = {
    "auth.mode": "it is auth.type",
    "auth.env": _NO_KEYS,
    "auth.key": _NO_KEYS,
    "auth.token": _NO_KEYS,
    "auth.value": _NO_KEYS,
    "auth.header": "it is auth.name",
    "auth.param": "it is auth.name",
    "key": _NO_KEYS,
    "api_key": _NO_KEYS,
    "token": _NO_KEYS,
    "optional": "it is auth.optional",
    "allow_internal": "it is allow_private",
    "rate_limit": "it is rate",
}


def host_of(url: str) -> str:
    """The host of a service's address, in lower case, without a port."""
    return urllib.parse.urlsplit(url).hostname or ""


def _is_host(host: str, netloc: str) -> bool:
    """A name as DNS has it, or an address in its one usual form: no 2130706433, no 0x7f.1, no trailing dot."""
    if ":" in host:
        try:
            return str(ipaddress.IPv6Address(host)) == host and f"[{host}]" in netloc
        except ValueError:
            return False
    labels = host.split(".")
    if not _NUMBER.fullmatch(labels[-1]):
        return len(host) <= 253 and all(_LABEL.fullmatch(label) for label in labels)
    try:
        return str(ipaddress.IPv4Address(host)) == host
    except ValueError:
        return False


def _is_url(url: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return False
    plain = url.isascii() and url.isprintable() and not any(c in url for c in ' \\"<>?#%') and "@" not in parts.netloc
    steps = parts.path.split("/")
    path = _PATH.fullmatch(parts.path) and ".." not in steps and "." not in steps and "" not in steps[1:-1]
    return plain and parts.scheme in ("https", "http") and _is_host(host, parts.netloc) and port != 0 and bool(path)


def _lower_origin(value: Any) -> Any:
    """Scheme and host in lower case: they mean the same, and are compared later."""
    if not isinstance(value, str):
        return value
    head, slashes, rest = value.partition("://")
    host, slash, path = rest.partition("/")
    return f"{head}{slashes}{host}".lower() + slash + path


def _upper(value: Any) -> Any:
    return value.upper() if isinstance(value, str) else value


def _is_header_text(text: str) -> bool:
    return text.isascii() and text.isprintable() and len(text) <= 1000


ServiceName = Annotated[
    str,
    Rule("a name such as weather", lambda v: bool(_SERVICE.fullmatch(v)), hint="1 to 48 of a-z, 0-9, - and _"),
]
Credential = Annotated[
    str,
    Rule(
        f"the name of a file in {KEYS}",
        lambda v: bool(_CREDENTIAL.fullmatch(v)) and not looks_secret(v),
        secret=True,
        hint="1 to 48 of a-z, 0-9, ., - and _; the key itself stands in that file",
    ),
]
ServiceUrl = Annotated[
    str,
    Rule(
        "an https:// address",
        _is_url,
        _lower_origin,
        secret=True,
        hint="without user, key, ?, #, % and a dot at the end of the host; parameters stand in params",
    ),
]
Method = Annotated[
    Literal["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD"],
    Rule("GET, POST, PUT, PATCH, DELETE or HEAD", None, _upper),
]
AuthType = Annotated[Literal["bearer", "header", "query", "none"], Rule("bearer, header, query or none")]
AuthName = Annotated[
    str, Rule("the name of a header or parameter, such as X-API-Key", lambda v: bool(_TOKEN.fullmatch(v)))
]
Prefix = Annotated[
    str,
    Rule(
        "a text that stands before the key, such as Token", lambda v: _is_header_text(v) and len(v) <= 64, secret=True
    ),
]
UserNames = Annotated[
    tuple[rules.UserName, ...],
    Rule("a list of users' names, such as [alice]", lambda v: len(v) == len(set(v)) > 0, hint="each once"),
]
Line = Annotated[
    str, Rule("a text of one line, at most 300 characters", lambda v: v.strip().isprintable() and len(v) <= 300)
]
Notes = Annotated[
    str, Rule("a text of at most 8000 characters", lambda v: len(v) <= 8000 and v.replace("\n", "").isprintable())
]


class Auth(msgspec.Struct, frozen=True):
    """How the key goes with a call. `credential` None is the service's own name."""

    type: AuthType = "none"
    name: AuthName | None = None
    credential: Credential | None = None
    prefix: Prefix | None = None
    optional: rules.Switch = False


class Service(msgspec.Struct, frozen=True):
    """One service. `users` None is everybody, `rate` calls a minute of each user."""

    name: ServiceName
    url: ServiceUrl
    method: Method = "GET"
    auth: Auth = Auth()
    headers: tuple[tuple[str, str], ...] = ()
    params: tuple[tuple[str, str], ...] = ()
    description: Line = ""
    notes: Notes = ""
    allow_path_suffix: rules.Switch = False
    allow_private: rules.Switch = False
    users: UserNames | None = None
    rate: Annotated[int, rules.count(1, 6000, "a number of calls a minute")] = 60

    @property
    def credential(self) -> str:
        """The name of the credential that holds its key, "" when it needs none."""
        return "" if self.auth.type == "none" else self.auth.credential or self.name

    def serves(self, user: str) -> bool:
        """Whether that user may call it."""
        return self.users is None or user in self.users


class _Settings(msgspec.Struct, frozen=True):
    """What is decoded by its types; `headers` and `params` are looked at apart, because their names are free."""

    name: ServiceName
    url: ServiceUrl
    method: Method = "GET"
    auth: Auth = Auth()
    description: Line = ""
    notes: Notes = ""
    allow_path_suffix: rules.Switch = False
    allow_private: rules.Switch = False
    users: UserNames | None = None
    rate: Annotated[int, rules.count(1, 6000, "a number of calls a minute")] = 60


def build(data: Any, faults: Faults) -> tuple[Service, ...] | None:
    """The services from the file's plain data, or None with the reasons in `faults`. Empty is none."""
    before = len(faults)
    services: dict[str, Service] = {}
    for where, settings in _entries(data, faults):
        service = _service(where, settings, faults)
        if service is not None:
            if service.name in services:
                faults.add(where, f"the service {shown(service.name)} stands here a second time, expected it once")
            services[service.name] = service
    return tuple(services.values()) if len(faults) == before else None


def unknown_users(services: Iterable[Service], users: Iterable[User], faults: Faults) -> None:
    """Add a fault for each name in `users` that no user has: a slip there would lock him out silently."""
    names = sorted(user.name for user in users)
    for service in services:
        for name in service.users or ():
            if name not in names:
                known = f"expected one of {', '.join(names)}"
                faults.add(f"services.{service.name}.users", f"{shown(name)} is not in users.yaml, {known}")


def _entries(data: Any, faults: Faults) -> Iterable[tuple[str, Any]]:
    if data is None:
        return
    if not isinstance(data, dict):
        faults.add("", f'expected a mapping with the key "services", got {shown(data)}')
        return
    for key in data:
        if key != "services":
            faults.add(join("", key), unknown_key(key, ["services"], {}))
    listed = data.get("services")
    if isinstance(listed, dict):
        for name, settings in listed.items():
            where = join("services", name)
            if isinstance(settings, dict) and "name" in settings:
                faults.add(f"{where}.name", "the name is the key of the mapping, expected it once")
            else:
                yield where, {"name": name, **settings} if isinstance(settings, dict) else settings
    elif isinstance(listed, list):
        yield from ((f"services[{index}]", settings) for index, settings in enumerate(listed))
    elif listed is not None:
        faults.add("services", f"expected a mapping from a service's name to its settings, got {shown(listed)}")


def _service(where: str, settings: Any, faults: Faults) -> Service | None:
    if not isinstance(settings, dict):
        faults.add(where, f"expected a mapping of settings, got {shown(settings)}")
        return None
    before = len(faults)
    plain = {key: value for key, value in settings.items() if key not in ("headers", "params")}
    if isinstance(plain.get("auth"), str):
        plain["auth"] = {"type": plain["auth"]}  # `auth: none`
    headers = _pairs(settings.get("headers"), f"{where}.headers", faults, header=True)
    params = _pairs(settings.get("params"), f"{where}.params", faults, header=False)
    known = decode(_Settings, plain, where, faults, _RENAMED)
    if known is None or len(faults) != before:
        return None
    service = Service(
        headers=headers, params=params, **{name: getattr(known, name) for name in known.__struct_fields__}
    )
    _agree(service, where, faults)
    return service if len(faults) == before else None


def _agree(service: Service, where: str, faults: Faults) -> None:
    """What the settings of one service say of each other."""
    auth = service.auth
    if auth.type in ("header", "query") and auth.name is None:
        faults.add(f"{where}.auth.name", f"missing, expected the name of the {_kind(auth.type)} that takes the key")
    for key in ("name", "prefix", "credential"):
        fits = auth.type != "none" if key == "credential" else auth.type in ("header", "query")
        if getattr(auth, key) is not None and not fits:
            faults.add(f"{where}.auth.{key}", f"has no meaning with type {auth.type}, expected it left out")
    if auth.type == "header" and auth.name is not None and auth.name.lower() in _PROXYS_OWN:
        faults.add(f"{where}.auth.name", f"{auth.name} is set by kai-proxy, expected a header of the service's own")
    taken = {name.lower() for name, _ in (service.headers if auth.type == "header" else service.params)}
    if auth.type in ("header", "query") and auth.name is not None and auth.name.lower() in taken:
        faults.add(f"{where}.auth.name", f"{auth.name} stands in {_kind(auth.type)}s too, expected it once")
    if not service.allow_private:
        if service.url.startswith("http:"):
            faults.add(f"{where}.url", "is not encrypted, expected https:// (http:// only with allow_private)")
        elif _is_private_literal(host_of(service.url)):
            faults.add(f"{where}.url", "is an address of a private network, expected allow_private: true beside it")


def _is_private_literal(host: str) -> bool:
    if host == "localhost" or host.endswith((".localhost", ".internal")):
        return True
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        return False


def _kind(auth: str) -> str:
    return "header" if auth == "header" else "param"


def _pairs(found: Any, where: str, faults: Faults, *, header: bool) -> tuple[tuple[str, str], ...]:
    """Headers or parameters as texts. Values are never shown: somebody may have put a key there."""
    if found is None:
        return ()
    if not isinstance(found, dict) or len(found) > _MOST:
        faults.add(where, f"expected a mapping from name to text, at most {_MOST}")
        return ()
    pairs: dict[str, tuple[str, str]] = {}
    for name, value in found.items():
        here = join(where, name)
        text = {True: "true", False: "false"}[value] if isinstance(value, bool) else value
        text = str(text) if isinstance(text, int | float) else text
        fault = _header_fault(name, text) if header else _param_fault(name, text)
        if not fault and name.lower() in pairs:
            fault = "stands here a second time, expected it once"
        if fault:
            faults.add(here, fault)
        else:
            pairs[name.lower()] = (name, text)
    return tuple(pairs.values())


def _header_fault(name: str, text: Any) -> str:
    if not _TOKEN.fullmatch(name):
        return "is not a header's name, expected letters, digits and -"
    if name.lower() in _PROXYS_OWN:
        return "is set by kai-proxy, expected it left out"
    if name.lower() in _SECRET_HEADERS or (isinstance(text, str) and looks_secret(text)):
        return f"unknown header ({_NO_KEYS})"
    return "" if isinstance(text, str) and _is_header_text(text) else "expected a text of ASCII characters in one line"


def _param_fault(name: str, text: Any) -> str:
    if not (name.isprintable() and 0 < len(name) <= 100):
        return "is not a parameter's name, expected 1 to 100 printable characters"
    if isinstance(text, str) and looks_secret(text):
        return f"unknown parameter ({_NO_KEYS})"
    plain = isinstance(text, str) and len(text) <= 1000 and "\0" not in text
    return "" if plain else "expected a text of at most 1000 characters"
