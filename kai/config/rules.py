"""The kinds of values that the configuration files share, each with the words that describe it."""

from __future__ import annotations

import math
import posixpath
import re
import urllib.parse
from pathlib import Path
from typing import Annotated, Any, Literal

from kai.config.decode import Rule, looks_secret

USER_NAME = re.compile(r"[a-z][a-z0-9-]{0,23}")
ACCOUNT = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
_LOGIN = r"[A-Za-z0-9][A-Za-z0-9_-]{0,38}"
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+\[\]-]{0,127}")
_REPOSITORY = re.compile(_LOGIN + r"/[A-Za-z0-9._-]{1,100}")
_PATTERN = re.compile(r"[A-Za-z0-9_*-]{1,39}/[A-Za-z0-9._*-]{1,100}")
_MEMORY = re.compile(
    r"[1-9][0-9]{0,17}|[1-9][0-9]{0,8}(\.[0-9]{1,3})?[KMGT]|(100|[1-9][0-9]?)(\.[0-9]{1,2})?%|infinity"
)
_ZONE = re.compile(r"[A-Za-z0-9+_-]+(/[A-Za-z0-9+_-]+){0,3}")
_YEAR = 366 * 86400
_TELEGRAM_MAX = 1 << 52  # Telegram: ids have at most 52 significant bits
_LOOPBACK = re.compile(r"localhost|127(\.[0-9]{1,3}){3}|::1")
_SWITCH = {"yes": True, "on": True, "no": False, "off": False}


def expand(path: str, home: Path) -> Path:
    """A path of the configuration with a leading `~` put for the given home directory."""
    if path == "~":
        return home
    return home / path[2:] if path.startswith("~/") else Path(path)


def is_timezone(name: str) -> bool:
    """Whether this host knows the zone: by zoneinfo, which reads tzdata."""
    from zoneinfo import ZoneInfo

    if not _ZONE.fullmatch(name):
        return False
    try:
        ZoneInfo(name)
    except (OSError, ValueError, KeyError):
        return False
    return True


def is_account(name: str) -> bool:
    """Whether an agent's account may be called this. Root and Kai's own accounts are no agent's."""
    return bool(ACCOUNT.fullmatch(name)) and name not in ("root", "kai") and not name.startswith("kai-")


def _is_path(path: str) -> bool:
    rooted = path.startswith("/") or path == "~" or path.startswith("~/")
    return rooted and path != "/" and ".." not in path.split("/") and path.isprintable() and len(path) < 4096


def _tidy_path(path: Any) -> Any:
    """`/srv//x/` and `/srv/x` are one path; anything doubtful stays as it is, for the test to refuse."""
    if isinstance(path, str) and path.startswith(("/", "~/")) and ".." not in path.split("/"):
        return posixpath.normpath(re.sub(r"/+", "/", path))
    return path


def _is_url(url: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        return False
    plain = url.isprintable() and not any(c in url for c in ' \\"<>?#@') and ":" not in parts.path
    safe = parts.scheme == "https" or (parts.scheme == "http" and bool(_LOOPBACK.fullmatch(host)))
    return plain and safe and bool(host)


def _is_command(command: tuple[str, ...]) -> bool:
    program = command[0] if command else ""
    named = program.startswith("/") or ("/" not in program and not program.startswith("-"))
    return bool(program) and named and not any("\0" in word or "\n" in word for word in command)


def _is_inside(path: str) -> bool:
    parts = path.split("/")
    return bool(path) and path.isprintable() and not path.startswith("/") and ".." not in parts


def _is_pattern(pattern: str) -> bool:
    return bool(_PATTERN.fullmatch(pattern)) and pattern.rpartition("/")[2] not in (".", "..")


def _is_model(name: str) -> bool:
    return bool(MODEL_NAME.fullmatch(name)) and not looks_secret(name)


def _is_repository(name: str) -> bool:
    return bool(_REPOSITORY.fullmatch(name)) and name.rpartition("/")[2] not in (".", "..")


def _switch(value: Any) -> Any:
    return _SWITCH.get(value.lower(), value) if isinstance(value, str) else value


def _text(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _words(value: Any) -> Any:
    """A command may be written as one line when it needs no quoting."""
    return value.split() if isinstance(value, str) and not re.search(r"[\"'\\$`|&;<>*?~]", value) else value


def _one_or_more(value: Any) -> Any:
    return [value] if isinstance(value, int) and not isinstance(value, bool) else value


def _word(value: Any) -> Any:
    """`on` and `off` as words, even from a program that rewrote the file and made booleans of them."""
    return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value


def _off(value: Any) -> Any:
    return 0 if value is False or value == "off" else value


def seconds(least: int, most: int = _YEAR) -> Rule:
    """The rule for a whole number of seconds in a range."""
    bound = f", {least} or more" if most == _YEAR else f" from {least} to {most}"
    return Rule(f"a whole number of seconds{bound}", lambda value: least <= value <= most)


def count(least: int, most: int, what: str) -> Rule:
    """The rule for a whole number in a range."""
    return Rule(f"{what} from {least} to {most}", lambda value: least <= value <= most)


TelegramId = Annotated[
    int,
    Rule("a positive integer", lambda v: 0 < v < _TELEGRAM_MAX, hint="the user's numeric Telegram id"),
]
TelegramIds = Annotated[
    tuple[TelegramId, ...],
    Rule(
        "a list of Telegram ids, such as [111, 222]",
        lambda v: len(v) == len(set(v)) > 0,
        _one_or_more,
        hint="each once",
    ),
]
ChatId = Annotated[
    int,
    Rule("an integer other than 0", lambda v: 0 < abs(v) < _TELEGRAM_MAX, hint="a group's id is negative"),
]
ChatIds = Annotated[tuple[ChatId, ...], Rule("a list of chat ids, such as [-100123]", prepare=_one_or_more)]
UserName = Annotated[
    str,
    Rule(
        "a name such as alice",
        lambda v: bool(USER_NAME.fullmatch(v)),
        hint="1 to 24 characters: a lower-case letter, then lower-case letters, digits and -",
    ),
]
Account = Annotated[
    str, Rule("the name of a Unix account", is_account, hint="neither root nor one of Kai's own, kai-*")
]
Login = Annotated[str, Rule("a GitHub login", lambda v: bool(re.fullmatch(_LOGIN, v)))]
Repository = Annotated[str, Rule("a repository as OWNER/REPO", _is_repository)]
Repositories = Annotated[tuple[Repository, ...], Rule("a list of repositories, each as OWNER/REPO")]
Pattern = Annotated[str, Rule("a pattern as OWNER/REPO", _is_pattern, hint="* stands for any characters")]
Patterns = Annotated[tuple[Pattern, ...], Rule("a list of patterns, such as [acme/*]")]
Model = Annotated[str, Rule("a model's name as the agent knows it, such as opus", _is_model)]
Directory = Annotated[
    str, Rule("an absolute path, or one that begins with ~/", _is_path, _tidy_path, hint="without ..")
]
Timezone = Annotated[
    str,
    Rule("an IANA time zone such as Europe/Berlin", is_timezone, hint="known are those of the host's tzdata"),
]
Dollars = Annotated[float, Rule("an amount of US dollars above 0", lambda v: math.isfinite(v) and 0 < v <= 1e9)]
Timeout = Annotated[int, seconds(45)]
Seconds = Annotated[int, seconds(1)]
OptionalSeconds = Annotated[int, Rule("a whole number of seconds, or off", lambda v: 0 <= v <= _YEAR, _off)]
Switch = Annotated[bool, Rule("true or false", prepare=_switch)]
Role = Annotated[Literal["admin", "user"], Rule("admin or user")]
Backend = Annotated[
    Literal["claude", "acp"], Rule("claude or acp", hint="acp is every agent with that protocol, such as goose")
]
Approvals = Annotated[Literal["auto", "ask"], Rule("auto or ask")]
Streaming = Annotated[Literal["edit", "draft", "off"], Rule("edit, draft or off", prepare=_word)]
Totp = Annotated[Literal["required"], Rule("the word required")]
Door = Annotated[Literal["auto", "off"], Rule("auto or off", prepare=_word)]
Mode = Annotated[Literal["polling", "webhook"], Rule("polling or webhook")]
Url = Annotated[
    str,
    Rule(
        "an https:// address",
        _is_url,
        lambda v: v.rstrip("/") if isinstance(v, str) else v,
        secret=True,
        hint="http:// only for this host, 127.0.0.1 or localhost; without user, token, ? and #",
    ),
]
Word = Annotated[str, Rule("a word of the command")]
Command = Annotated[
    tuple[Word, ...],
    Rule("a list of words, the first a program's name or absolute path", _is_command, _words),
]
RelativePath = Annotated[str, Rule("a path inside the repository", _is_inside, hint="without ..")]
Memory = Annotated[
    str,
    Rule(
        "an amount of memory as systemd takes it, such as 2G, 50% or infinity",
        lambda v: bool(_MEMORY.fullmatch(v)),
        _text,
    ),
]
Text = Annotated[str, Rule("a text", lambda v: "\0" not in v)]
