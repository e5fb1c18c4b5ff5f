"""`kai doctor`: everything that can be looked at without changing anything, one line for each finding."""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Callable

from kai.cli import check, jobs, servicekeys, totp, webhooks
from kai.cli.fail import Failure, need_root
from kai.cli.paths import config_dir
from kai.lib.log import printable

SECONDS = 30
LONGEST = 300


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("doctor", help="look for whatever is wrong with this installation")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Exit status 0 where nothing was found, else 1."""
    need_root("kai doctor")
    code = 0
    for name, look in CHECKS.items():
        try:
            faults = look()
        except Failure as failure:
            faults = [str(failure)]
        for fault in faults:
            print(f"fault  {name:13}  {printable(fault, LONGEST)}")
            code = 1
        if not faults:
            print(f"ok     {name}")
    return code


def configuration() -> list[str]:
    return check.faults(config_dir())


def timers() -> list[str]:
    return [f"{each}; `kai jobs check --repair` puts it right" for each in jobs.differences()]


def units() -> list[str]:
    """Kai's units that have failed. Raises Failure where systemd can't be asked."""
    command = ["systemctl", "list-units", "--failed", "--plain", "--no-legend", "kai-*", "kai.*"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True).stdout
    except FileNotFoundError:
        raise Failure("systemctl is not installed") from None
    except subprocess.TimeoutExpired:
        raise Failure(f"systemctl gave no answer within {SECONDS} s") from None
    except subprocess.CalledProcessError as error:
        raise Failure(f"systemctl: {error.stderr.strip() or f'exit status {error.returncode}'}") from None
    failed = [line.split()[0] for line in said.splitlines() if line.strip()]
    return [f"{unit} has failed: see `systemctl status {unit}`" for unit in failed]


CHECKS: dict[str, Callable[[], list[str]]] = {
    "configuration": configuration,
    "units": units,
    "jobs": timers,
    "totp": totp.faults,
    "services": servicekeys.faults,
    "webhooks": webhooks.faults,
}
"""In this order: what is wrong with the first may be why the next fails. Each gives its faults, or raises Failure."""
