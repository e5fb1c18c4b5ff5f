"""Secrets, from where systemd puts them: $CREDENTIALS_DIRECTORY, never the environment, never an argument."""

from __future__ import annotations

import os
import re
from pathlib import Path

from kai.lib import log
from kai.lib.varlink import Misconfigured

NAME = re.compile(r"[a-z][a-z0-9._-]{0,63}")
LARGEST = 64 * 1024


def read(name: str) -> str:
    """The credential's text without surrounding white space; registered so that no log line shows it.

    Raises Misconfigured, naming the file that the operator has to write, when it is missing, empty or unreadable.
    """
    if not NAME.fullmatch(name):
        raise ValueError(f"credential name {name!r}: expected {NAME.pattern}")
    fix = f"write it to /etc/credstore/{name} (root, 0600) and restart the unit"
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    if not directory:
        raise Misconfigured(f"credential {name}: not handed over: {fix}")
    try:
        with (Path(directory) / name).open("rb") as file:
            data = file.read(LARGEST + 1)
    except FileNotFoundError:
        raise Misconfigured(f"credential {name}: missing: {fix}") from None
    except OSError as error:
        raise Misconfigured(f"credential {name}: {error.strerror}: {fix}") from None
    if len(data) > LARGEST:
        raise Misconfigured(f"credential {name}: larger than {LARGEST} bytes: {fix}")
    try:
        text = data.decode("utf-8").strip()
    except UnicodeDecodeError:
        raise Misconfigured(f"credential {name}: not UTF-8 text: {fix}") from None
    if not text:
        raise Misconfigured(f"credential {name}: empty: {fix}")
    log.secret(text)
    return text
