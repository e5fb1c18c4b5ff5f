"""kai(1): the operator's command. Speaks to the daemons over their sockets; never opens a database."""

from __future__ import annotations

import argparse
import sys

import kai
from kai.cli import (
    check,
    doctor,
    imports,
    jobs,
    login,
    logs,
    mcp,
    queue,
    retire,
    send,
    sendfile,
    service,
    settings,
    status,
    totp,
    users,
    webhooks,
)
from kai.cli.fail import Failure

COMMANDS = (
    *(status, check, doctor, users, settings, jobs, queue, totp, webhooks, login, logs, retire, imports),
    *(send, sendfile, service, mcp),
)


def build_parser() -> argparse.ArgumentParser:
    """Every command with its options."""
    parser = argparse.ArgumentParser(prog="kai", description="AI agents on your own host, reached through Telegram.")
    parser.add_argument("--version", action="version", version=f"kai {kai.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.register(commands)
    _demo(commands)
    return parser


def main() -> None:
    arguments = build_parser().parse_args()
    try:
        sys.exit(arguments.run(arguments))
    except Failure as failure:
        sys.exit(f"kai: {failure}")
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)  # `kai … | head`: what is left has no reader


def _demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The demo's own imports (an HTTP server, a terminal) are not for every `kai status`."""
    demo = commands.add_parser(
        "demo", help="try Kai without root, systemd or an account", add_help=False, prefix_chars="\0"
    )

    def run(arguments: argparse.Namespace) -> int:
        from kai.demo.main import main as demo_main

        return demo_main(arguments.rest)

    demo.add_argument("rest", nargs=argparse.REMAINDER)
    demo.set_defaults(run=run)


if __name__ == "__main__":
    main()
