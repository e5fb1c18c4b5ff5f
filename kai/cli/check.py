"""`kai check`: every fault of the configuration, and whether its accounts exist."""

from __future__ import annotations

import argparse
from pathlib import Path

from kai.cli.paths import config_dir
from kai.config import ConfigError, check, check_accounts, home_of, load


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("check", help="look for faults in the configuration files")
    parser.add_argument("directory", nargs="?", type=Path, help="where the files are (default: /etc/kai)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Exit status 0 without faults, 78 (EX_CONFIG) with."""
    directory = arguments.directory or config_dir()
    found = faults(directory)
    for fault in found:
        print(fault)
    if not found:
        print(f"{directory}: no faults")
    return 78 if found else 0


def faults(directory: Path) -> list[str]:
    """Of the files; where they have none, of the accounts that they name."""
    found = check(directory, home_of)
    if found:
        return found
    try:
        return [str(fault) for fault in check_accounts(load(directory).users)]
    except ConfigError as error:
        return [str(error)]
