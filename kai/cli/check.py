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
    faults = check(directory, home_of)
    if not faults:
        try:
            faults = [str(fault) for fault in check_accounts(load(directory).users)]
        except ConfigError as error:
            faults = [str(error)]
    for fault in faults:
        print(fault)
    if not faults:
        print(f"{directory}: no faults")
    return 78 if faults else 0
