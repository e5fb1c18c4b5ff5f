"""The agent's side of the command: who isn't root asks Kai over his own socket, as kai-api(7) describes.

Root may use it too, and says by `--user` whose socket is meant.
"""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

from kai.cli.fail import Failure
from kai.cli.paths import runtime_dir
from kai.lib import api
from kai.lib.log import printable

LONGEST = 1000


def wanted() -> bool:
    """Whether this is an agent (or somebody in its place), and not the operator."""
    return bool(os.environ.get(api.VARIABLE)) or os.geteuid() != 0


def there() -> None:
    """Raise Failure where no API can be asked: before standard input is read."""
    try:
        api.place()
    except api.Unreachable as error:
        raise Failure(printable(str(error), LONGEST)) from None


def ask(method: str, path: str, body: Any = None, *, user: str = "") -> Any:
    """The JSON of an answer. Raises Failure."""
    if user and not wanted():
        os.environ[api.VARIABLE] = os.fspath(runtime_dir() / "api" / f"{user}.sock")
    try:
        return api.ask(method, path, body)
    except (api.Failed, api.Unreachable) as error:
        raise Failure(printable(str(error), LONGEST)) from None


def json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the answer as it came, in JSON")


def user_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--user", default="", help="whose agent is meant, where root asks")


def tell(arguments: argparse.Namespace, answer: Any, words: str) -> int:
    """Print an answer, in words or as JSON. What others wrote can't paint here."""
    print(json.dumps(answer, ensure_ascii=True) if arguments.json else words)
    return 0
