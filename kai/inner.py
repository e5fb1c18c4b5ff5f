"""The door to a user's account: kai-inner, run as the account that the inner agent works in.

The supervisor starts it through sudo without arguments, since those are logged and show in /proc, and sends one
JSON object on one line of standard input. The verbs:

    {"verb": "agent", "command": ["claude", …], "workspace": "/…", "environment": {…}, "model_door": "/…"}
        Becomes the agent: clean environment, workspace as directory, all descriptors but 0, 1 and 2 closed. What
        follows the first line on standard input is the agent's and is not touched.
    {"verb": "find", "base": "/…", "name": "…"}
        Answers {} when name, beneath base and reached over no symbolic link, is a directory that the account may
        enter; or {"error": …, "code": 403|404|424}. 424: it is the base that is missing or closed.
    {"verb": "list", "base": "/…", "limit": N}
        Answers {"names": […]}: the first N directories in base by name, neither links nor hidden ones; or code 424.
    {"verb": "mkworkspace", "base": "/…", "name": "…"}
        Makes a new directory with a git repository in it and answers {"git": true|false}; or code 403|404|409|424.
        409: it exists already; 404: the directory above it doesn't.
    {"verb": "read", "root": "/…", "path": "…", "limit": N, "never": ["/…", …]}
        Answers {"size": N, "name": …} and then the N bytes of a regular file beneath root, reached over no
        symbolic link; or {"error": …, "code": 403|404|413}. Fewer bytes than promised: the file shrank meanwhile.
        Nothing is given out that is in a directory of `never`, which may be left out, wherever root leads.

It runs with the agent's own rights, so it is a convenience and no wall against the agent; the walls are accounts,
sockets and units. For the same reason it passes on any environment name, LD_PRELOAD too: nothing that the
account couldn't do by itself. Standard library only, and little of it: every start of an agent waits for this.

Exit status (sysexits.h and the shell's): 1 the answer is an error, 64 arguments were given, 65 bad request,
66 workspace missing, 67 no such account, 77 permission, 126 command not executable, 127 command not found.
"""

# pathlib would double what this imports:
# ruff: noqa: PTH110, PTH113, PTH114, PTH115, PTH119
from __future__ import annotations

import errno
import json
import os
import pwd
import signal
import stat
import sys

TYPE_CHECKING = False  # importing typing for it would cost 3 ms
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    Check = Callable[[Any], str]  # says what was expected, "" when the value is right

EX_USAGE, EX_DATAERR, EX_NOINPUT, EX_NOUSER, EX_NOPERM = 64, 65, 66, 67, 77
NOT_EXECUTABLE, NOT_FOUND = 126, 127

MAX_REQUEST = 1 << 20
"""Longest request in bytes, without its newline."""
MAX_KEY = 4096
CHUNK = 1 << 16
LOGIN = frozenset({"ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN"})
ADDRESS = frozenset({"ANTHROPIC_BASE_URL", "ANTHROPIC_UNIX_SOCKET"})


class Refusal(Exception):
    """The request is not carried out: exit status and the line for standard error."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Denial(Exception):
    """The answer is an error: its code, which is HTTP's, and its words."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


def main() -> int:
    """Carry out one request from standard input. Returns the exit status; `agent` doesn't return."""
    try:
        if len(sys.argv) > 1:
            raise Refusal(EX_USAGE, "takes no arguments: the request is the first line of standard input")
        verb, request = parse(first_line(0))
        return VERBS[verb][0](request)
    except Refusal as refusal:
        line = "".join(c if c.isprintable() else "?" for c in str(refusal))
        os.write(2, f"kai-inner: {line}\n".encode("utf-8", "replace"))
        return refusal.status
    except Denial as denial:
        answer({"error": str(denial), "code": denial.code})
        return 1
    except BrokenPipeError:
        return 1  # the supervisor doesn't read the answer any more


def first_line(fd: int) -> bytes:
    """The first line without its newline. Reads byte by byte, for what comes after it belongs to the agent."""
    line = bytearray()
    while (byte := os.read(fd, 1)) != b"\n":
        if not byte:
            raise Refusal(EX_DATAERR, "bad request: standard input ended before the first line did")
        line += byte
        if len(line) > MAX_REQUEST:
            raise Refusal(EX_DATAERR, f"bad request: longer than {MAX_REQUEST} bytes")
    return bytes(line)


def parse(line: bytes) -> tuple[str, dict[str, Any]]:
    """The verb and its checked fields."""
    try:
        request = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise Refusal(EX_DATAERR, f"bad request: not JSON: {error}") from None
    if not isinstance(request, dict):
        raise Refusal(EX_DATAERR, "bad request: expected a JSON object")
    verb = request.pop("verb", None)
    if not isinstance(verb, str) or verb not in VERBS:
        raise Refusal(EX_DATAERR, f"bad request: verb: expected one of {', '.join(VERBS)}")
    fields = VERBS[verb][1]
    for name in request:
        if name not in fields:
            raise Refusal(EX_DATAERR, f"bad request: {verb}: unknown field {name[:40]!r}")
    for name, check in fields.items():
        problem = check(request.get(name))
        if problem:
            raise Refusal(EX_DATAERR, f"bad request: {verb}.{name}: expected {problem}")
    return verb, request


def _text(value: Any) -> bool:
    """Whether the kernel can take it: UTF-8 without NUL."""
    if not isinstance(value, str) or "\0" in value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _filled(value: Any) -> str:
    return "" if value and _text(value) else "a text"


def _absolute(value: Any) -> str:
    return "" if _text(value) and value.startswith("/") else "an absolute path"


def _absolute_or_nothing(value: Any) -> str:
    return "" if value in (None, "") else _absolute(value)


def _absolutes_or_nothing(value: Any) -> str:
    good = value is None or (isinstance(value, list) and not any(_absolute(each) for each in value))
    return "" if good else "a list of absolute paths"


def _command(value: Any) -> str:
    good = isinstance(value, list) and value and all(_text(word) for word in value) and value[0]
    return "" if good else "a list of texts, the program first"


def _environment(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, dict):
        return "an object"
    for name, text in value.items():
        if not (name.isascii() and name.isidentifier()):
            return f"names like [A-Za-z_][A-Za-z0-9_]*, not {name[:40]!r}"
        if not _text(text):
            return f"a text for {name[:40]}"
    return ""


def _limit(value: Any) -> str:
    good = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 40
    return "" if good else "a number of bytes"


def agent(request: dict[str, Any]) -> NoReturn:
    """Become the agent."""
    environment = clean_environment(request.get("environment") or {})
    environment |= way_to_the_model(environment, request.get("model_door") or "")
    os.umask(0o022)
    workspace = request["workspace"]
    try:
        os.chdir(workspace)
    except PermissionError:
        raise Refusal(EX_NOPERM, f"workspace {workspace}: {environment['USER']} may not enter it") from None
    except OSError as error:
        raise Refusal(EX_NOINPUT, f"workspace {workspace}: {error.strerror}") from None
    command = request["command"]
    program = find(command[0], environment)
    os.closerange(3, 1 << 30)
    for number in signal.valid_signals():  # an ignored signal (Python ignores SIGPIPE) would stay ignored
        try:
            signal.signal(number, signal.SIG_DFL)
        except (OSError, ValueError):
            continue  # KILL, STOP and the C library's own
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        os.execve(program, command, environment)  # noqa: S606 - no shell is the point
    except FileNotFoundError:
        raise Refusal(NOT_EXECUTABLE, f"agent command {program}: its interpreter is missing") from None
    except OSError as error:
        raise Refusal(NOT_EXECUTABLE, f"agent command {program}: {error.strerror}") from None


def clean_environment(requested: dict[str, str]) -> dict[str, str]:
    """The account's own entry of passwd and the request's variables, and nothing that was there before."""
    try:
        account = pwd.getpwuid(os.getuid())
    except KeyError:
        raise Refusal(EX_NOUSER, f"uid {os.getuid()} has no entry in passwd") from None
    home = requested.get("HOME", account.pw_dir)
    return {
        "PATH": f"{home}/.local/bin:/usr/local/bin:/usr/bin:/bin",
        "HOME": home,
        "USER": account.pw_name,
        "LOGNAME": account.pw_name,
        "SHELL": account.pw_shell or "/bin/sh",
        "LANG": "C.UTF-8",
        "TMPDIR": "/tmp",  # noqa: S108 - in the unit, the account's own
        **requested,
    }


def way_to_the_model(environment: dict[str, str], model_door: str) -> dict[str, str]:
    """The variables of the login to use. What the request set wins, then the account's own, then Kai's door."""
    if LOGIN & environment.keys():
        return {}
    key = own_key(f"{environment['HOME']}/.config/kai/model-key")
    if key:
        return {"ANTHROPIC_API_KEY": key}
    settings = environment.get("CLAUDE_CONFIG_DIR") or f"{environment['HOME']}/.claude"
    if os.path.exists(f"{settings}/.credentials.json"):
        return {}
    if not model_door or ADDRESS & environment.keys():
        return {}
    return {
        "ANTHROPIC_UNIX_SOCKET": model_door,
        "ANTHROPIC_BASE_URL": "http://model.invalid",
        "ANTHROPIC_API_KEY": "dummy",  # kai-proxy puts the true one in its place
    }


def own_key(path: str) -> str:
    """The account's own model key, "" without such a file. A file that others can read is refused."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        raise Refusal(EX_NOPERM, f"model key {path}: {error.strerror}") from None
    with os.fdopen(fd, "rb") as file:
        about = os.fstat(fd)
        if not stat.S_ISREG(about.st_mode) or about.st_uid != os.getuid() or about.st_mode & 0o077:
            raise Refusal(EX_NOPERM, f"model key {path}: must be the account's own file of mode 0600")
        key = file.read(MAX_KEY + 1).decode("ascii", "replace").strip()
    if not key or len(key) > MAX_KEY or not key.isascii() or not key.isprintable() or " " in key:
        raise Refusal(EX_DATAERR, f"model key {path}: expected one line that holds the key")
    return key


def find(program: str, environment: dict[str, str]) -> str:
    """The absolute path of the agent's program. A relative one is refused: a workspace could bring its own."""
    user = environment["USER"]
    if program.startswith("~/"):
        program = environment["HOME"] + program[1:]
    if "/" in program:
        if not program.startswith("/"):
            raise Refusal(EX_DATAERR, f"agent command {program}: expected a name or an absolute path")
        candidates = [program]
    else:
        directories = environment["PATH"].split(":")
        candidates = [f"{directory}/{program}" for directory in directories if directory.startswith("/")]
    found = [path for path in candidates if os.path.isfile(path)]
    for path in found:
        if os.access(path, os.X_OK):
            return path
    if found:
        raise Refusal(NOT_EXECUTABLE, f"agent command {found[0]}: {user} may not execute it")
    where = "" if "/" in program else f" in {environment['PATH']}"
    raise Refusal(
        NOT_FOUND,
        f"agent command {program}: not found{where} for {user}: install the agent for this account or "
        "set agent.command in kai.yaml",
    )


def find_workspace(request: dict[str, Any]) -> int:
    """Say whether a directory beneath the base can be worked in."""
    directory = open_directory(base_of(request), request["name"])
    try:
        os.fchdir(directory)
    except OSError as error:
        raise why_not(error) from None
    answer({})
    return 0


def list_workspaces(request: dict[str, Any]) -> int:
    """Send the names of the directories in the base; those that aren't UTF-8 are left out."""
    try:
        with os.scandir(base_of(request)) as entries:
            names = [entry.name for entry in entries if entry.name[0] != "." and _is_directory(entry)]
    except OSError as error:
        raise Denial(424, str(error.strerror)) from None
    answer({"names": sorted(name for name in names if _text(name))[: request["limit"]]})
    return 0


def mkworkspace(request: dict[str, Any]) -> int:
    """Make a directory beneath the base (its parent must exist) with a git repository, when git is there.

    From the parent on, it is made and entered by descriptor: what is swapped meanwhile leads nowhere else.
    """
    above, _, last = request["name"].rpartition("/")
    if last in ("", ".", ".."):
        raise Denial(403, "expected the name of a directory")
    parent = open_directory(base_of(request), above or ".")
    os.umask(0o022)
    try:
        os.mkdir(last, dir_fd=parent)
        os.fchdir(os.open(last, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent))
    except OSError as error:
        raise why_not(error) from None
    answer({"git": _git_init()})
    return 0


def base_of(request: dict[str, Any]) -> str:
    """The base's real path: it may be reached over links, unlike what is beneath it."""
    try:
        base: str = os.path.realpath(request["base"], strict=True)
        os.close(os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC))
    except OSError as error:
        raise Denial(424, str(error.strerror)) from None
    return base


def open_directory(base: str, name: str) -> int:
    """A descriptor of a directory beneath the base, over no symbolic link."""
    from pathlib import Path

    from kai.lib.hostile import open_beneath

    try:
        return open_beneath(Path(base), name, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise why_not(error) from None


def why_not(error: OSError) -> Denial:
    """Why a directory can't be reached or made."""
    if error.errno == errno.ENOENT:
        return Denial(404, "no such directory")
    if error.errno == errno.EEXIST:
        return Denial(409, "exists already")
    reasons = {
        errno.ELOOP: "is, or leads over, a symbolic link",
        errno.EXDEV: "leads out of the directory for workspaces",
        errno.ENOTDIR: "is, or leads over, something that is no directory",
        errno.EACCES: "the agent's account has no right to it",
    }
    return Denial(403, reasons.get(error.errno or 0, str(error.strerror)))


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False


def _git_init() -> bool:
    """Make a repository in the current directory, wherever its name leads by now."""
    import subprocess  # slow to import, and no agent waits for it

    environment = clean_environment({})
    try:
        git = find("git", environment)
        command = [git, "init", "-q"]
        done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, stdout=2, check=False)
    except (Refusal, OSError):
        return False
    return done.returncode == 0


def read(request: dict[str, Any]) -> int:
    """Send one file beneath a directory."""
    from pathlib import Path

    from kai.lib.hostile import open_beneath

    root, path = request["root"].rstrip("/"), request["path"]
    try:
        fd = open_beneath(Path(root or "/"), path.removeprefix(f"{root}/"))
    except OSError as error:
        if os.path.islink(root):
            raise Denial(403, f"{root}: is a symbolic link") from None
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise Denial(404, f"{path}: no such file") from None
        reasons = {
            errno.ELOOP: "leads over a symbolic link",
            errno.EXDEV: f"leads out of {root or '/'}",
            errno.EACCES: "the agent's account has no right to it",
        }
        raise Denial(403, f"{path}: {reasons.get(error.errno or 0, error.strerror)}") from None
    about = os.fstat(fd)
    if not stat.S_ISREG(about.st_mode):
        raise Denial(403, f"{path}: not a regular file")
    for directory in request.get("never") or ():
        if f"{os.readlink(f'/proc/self/fd/{fd}')}/".startswith(f"{os.path.realpath(directory)}/"):
            raise Denial(403, f"{path}: lies in {directory}, and nothing is given out from there")
    if about.st_size > request["limit"]:
        raise Denial(413, f"{path}: {about.st_size} bytes, more than {request['limit']}")
    answer({"size": about.st_size, "name": os.path.basename(path)})
    left = about.st_size
    while left and (chunk := os.read(fd, min(left, CHUNK))):
        write(chunk)
        left -= len(chunk)
    return 0


def answer(value: dict[str, Any]) -> None:
    write(json.dumps(value).encode() + b"\n")


def write(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]


VERBS: dict[str, tuple[Callable[[dict[str, Any]], int], dict[str, Check]]] = {
    "agent": (
        agent,
        {
            "command": _command,
            "workspace": _absolute,
            "environment": _environment,
            "model_door": _absolute_or_nothing,
        },
    ),
    "find": (find_workspace, {"base": _absolute, "name": _filled}),
    "list": (list_workspaces, {"base": _absolute, "limit": _limit}),
    "mkworkspace": (mkworkspace, {"base": _absolute, "name": _filled}),
    "read": (read, {"root": _absolute, "path": _filled, "limit": _limit, "never": _absolutes_or_nothing}),
}

if __name__ == "__main__":
    sys.exit(main())
