"""`kai mcp` in the help and the man page; kai/cli/entry.py starts the server before any of this is imported."""

from __future__ import annotations

import argparse


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "mcp", help="an agent's: the MCP server with Kai's tools, on standard input and output"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from kai.mcp import main

    main()
    return 0
