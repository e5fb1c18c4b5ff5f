"""The program `kai`. The MCP server is apart: it stays beside each agent, and must not import the other commands."""

from __future__ import annotations

import sys


def main() -> None:
    if sys.argv[1:] == ["mcp"]:
        from kai.mcp import main as serve

        serve()
        return
    from kai.cli.main import main as command

    command()


if __name__ == "__main__":
    main()
