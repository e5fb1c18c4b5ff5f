"""`kai login USER`: give a user's agent its access to the model: the agent's own login, or a key in a file.

Both happen as the account that the agent runs as. Root opens no path in a home directory: that is the agent's ground.
"""

from __future__ import annotations

import argparse
import os
import pwd
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path, PurePath

from kai.cli.fail import Failure, need_root
from kai.cli.paths import config_dir
from kai.config import Config, ConfigError, User, load

LONGEST_KEY = 4096
KEPT_AT = "~/.config/kai/model-key"
LOGINS = {"claude": ("auth", "login"), "goose": ("configure",)}
"""What a program calls its login, by the name of the program."""
ASKS = {"claude": ("auth", "status")}
"""A call that exits with 0 when the program is logged in."""
GET = {
    "claude": "Claude Code: `npm install -g @anthropic-ai/claude-code` (needs Node.js 18 or later)",
    "goose": "Goose: see https://block.github.io/goose/ (one program, goose)",
}

CREDENTIALS = (Path("/etc/credstore"), Path("/etc/credstore.encrypted"))
_HAS_LOGIN = "test -s ~/.config/kai/model-key || test -s ~/.claude/.credentials.json"
# `set -C`: a name that exists already, a link to somewhere else too, is not written through.
_KEEP = (
    "set -eu; umask 077; mkdir -p ~/.config/kai; cd ~/.config/kai; "
    'new=model-key.$$; set -C; cat > "$new"; mv -f "$new" model-key'
)


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("login", help="log a user's agent in, or store a model key for it")
    parser.add_argument("user", metavar="USER", nargs="?")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--check", action="store_true", help="only say what is missing, of this user or of all")
    how.add_argument(
        "--key-file", metavar="FILE", help=f"store the model key from this file (- is standard input) as {KEPT_AT}"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Exit status 0 when the agent has its access now. Raises Failure otherwise."""
    need_root("kai login")
    try:
        config = load(config_dir())
    except ConfigError as error:
        raise Failure(str(error)) from None
    if arguments.check:
        return _check(config, [_find(config, arguments.user)] if arguments.user else config.users)
    if arguments.user is None:
        raise Failure("which user? kai users list shows them")
    user = _find(config, arguments.user)
    account = _account(user)
    if arguments.key_file is not None:
        _store(read_key(arguments.key_file), account)
        print(f"{user.name}: the key is in {KEPT_AT} of {account.pw_name}")
    else:
        _log_in(config, user, account)
        print(f"{user.name}: {account.pw_name} is logged in")
    print(f"A running agent takes it up at its next start: kai retire {user.name}")
    return 0


def read_key(name: str) -> str:
    """The key: one line of printable ASCII. Raises Failure, which doesn't show it."""
    try:
        if name == "-":
            data = sys.stdin.buffer.read(LONGEST_KEY + 2)
        else:
            with Path(name).open("rb") as file:
                data = file.read(LONGEST_KEY + 2)
    except OSError as error:
        raise Failure(f"{name}: {error.strerror}") from None
    key = data.decode("ascii", "replace").strip()
    if not key or len(key) > LONGEST_KEY or not all("!" <= char <= "~" for char in key):
        raise Failure(f"{name}: expected the key alone: one line of at most {LONGEST_KEY} letters, digits and signs")
    return key


def _find(config: Config, name: str) -> User:
    user = config.user(name)
    if user is None:
        known = ", ".join(each.name for each in config.users)
        raise Failure(f"no user named {name}, known: {known}")
    return user


def _account(user: User) -> pwd.struct_passwd:
    try:
        account = pwd.getpwnam(user.work_account)
    except KeyError:
        raise Failure(f"the account {user.work_account} doesn't exist: run `kai users apply`") from None
    if account.pw_uid == 0:
        raise Failure(f"{user.work_account} is root: no agent runs as root")
    return account


def _check(config: Config, users: Sequence[User]) -> int:
    """One line for each agent that lacks its program or its access. Exit status 0 when none does."""
    door = any((folder / "kai-model-key").exists() for folder in CREDENTIALS) and config.kai.agent.model_door != "off"
    code = 0
    for user in users:
        account, program = _account(user), config.command(user)[0]
        if not _has_program(account, program):
            print(f"{user.name}: {_get(program, account)}")
        elif door or not subprocess.run([*as_account(account), "/bin/sh", "-c", _HAS_LOGIN], check=False).returncode:
            continue
        else:
            print(f"{user.name}: the agent has no access to a model yet: sudo kai login {user.name}")
        code = 1
    return code


def _has_program(account: pwd.struct_passwd, program: str) -> bool:
    command = [*as_account(account), "/bin/sh", "-c", 'command -v -- "$1"', "sh", program]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _get(program: str, account: pwd.struct_passwd) -> str:
    hint = GET.get(PurePath(program).name, "Install it, or name another program as agent.command in kai.yaml.")
    return f"{program} is not installed for {account.pw_name}. {hint}"


def _store(key: str, account: pwd.struct_passwd) -> None:
    command = [*as_account(account), "/bin/sh", "-c", _KEEP]
    done = subprocess.run(command, input=key + "\n", capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        said = done.stderr.strip() or f"exit status {done.returncode}"
        raise Failure(f"{account.pw_name} can't write {KEPT_AT}: {said}")


def _log_in(config: Config, user: User, account: pwd.struct_passwd) -> None:
    program = config.command(user)[0]
    kind = PurePath(program).name
    if not _has_program(account, program):
        raise Failure(_get(program, account))
    if kind not in LOGINS:
        raise Failure(
            f"how {program} logs in isn't known here: do it as the account itself (sudo -iu {account.pw_name}), "
            "or give a key with --key-file"
        )
    if not sys.stdin.isatty():
        raise Failure("a login asks questions and needs a terminal; without one, give a key with --key-file")
    at_home = [*as_account(account), "/bin/sh", "-c", 'cd && exec "$@"', "sh", program]
    if subprocess.run([*at_home, *LOGINS[kind]], check=False).returncode:
        raise Failure(f"`{program} {' '.join(LOGINS[kind])}` failed: nothing has changed")
    if kind in ASKS and subprocess.run([*at_home, *ASKS[kind]], capture_output=True, check=False).returncode:
        raise Failure(f"{program} says that {account.pw_name} isn't logged in: try again")


def as_account(account: pwd.struct_passwd) -> list[str]:
    """The words that run a program as an account with the environment that its agent has, and nothing of root's."""
    home = account.pw_dir
    clean = {
        "PATH": f"{home}/.local/bin:/usr/local/bin:/usr/bin:/bin",
        "HOME": home,
        "USER": account.pw_name,
        "LOGNAME": account.pw_name,
        "SHELL": account.pw_shell or "/bin/sh",
        "LANG": "C.UTF-8",
        "TERM": os.environ.get("TERM", "dumb"),
    }
    words = [f"{name}={value}" for name, value in clean.items()]
    return ["sudo", "-n", "-H", "-u", account.pw_name, "--", "/usr/bin/env", "-i", *words]
