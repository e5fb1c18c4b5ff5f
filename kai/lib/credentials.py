"""Secrets, from where systemd puts them: $CREDENTIALS_DIRECTORY, never the environment, never an argument."""

from __future__ import annotations

import os
import re
from pathlib import Path

from kai.lib import log
from kai.lib.varlink import Misconfigured

NAME = re.compile(r"[a-z][a-z0-9._-]{0,63}")
LARGEST = 64 * 1024


def of_directory(name: str) -> list[str]:
    """The files of a directory that was handed over as credential `name`: systemd flattens it to `name_FILE`.

    Read one with `read(f"{name}_{file}")`. Raises Misconfigured when the credentials can't be listed.
    """
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    if not directory:
        return []  # systemd sets it only where there is a credential
    try:
        found = os.listdir(directory)  # noqa: PTH208 - names, not paths
    except OSError as error:
        raise Misconfigured(f"credentials: {error.strerror}: restart the unit") from None
    return sorted(each.removeprefix(f"{name}_") for each in found if each.startswith(f"{name}_"))


def read(name: str, *, fix: str = "") -> str:
    """The credential's text without surrounding white space; registered so that no log line shows it.

    Raises Misconfigured with what the operator has to do (`fix`, or to write its file in the credential store) when it
    is missing, empty or unreadable.
    """
    if not NAME.fullmatch(name):
        raise ValueError(f"credential name {name!r}: expected {NAME.pattern}")
    fix = fix or f"write it to /etc/credstore/{name} (root, 0600) and restart the unit"
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
