"""What `tests/machine/boot` does: boots a container with this checkout in it and gives a developer a shell there."""

from __future__ import annotations

import signal
import sys
from types import FrameType

from tests.machine.base_root import SUITES, Unable
from tests.machine.container import Machine, MachineFailed

_INSIDE = "/root/kai"
_USAGE = "tests/machine/boot [bookworm|trixie] [-- COMMAND…]"


def main(arguments: list[str]) -> int:
    """Returns the exit code of the command or the shell; 1 when the container could not be had, 2 for bad usage."""
    suite = SUITES[0]
    if arguments and arguments[0] != "--":
        suite = arguments.pop(0)
    if suite not in SUITES or arguments[:1] not in ([], ["--"]):
        print(f"usage: {_USAGE}", file=sys.stderr)
        return 2
    command = arguments[1:]
    signal.signal(signal.SIGTERM, _leave)
    try:
        with Machine.create(suite) as machine:
            machine.boot()
            machine.push_checkout(_INSIDE)
            if not command:
                print(f"{machine.name}: the checkout is in {_INSIDE}; all is thrown away at the end.", file=sys.stderr)
                return machine.enter("exec bash --login", cwd=_INSIDE)
            return machine.enter(command, cwd=_INSIDE)
    except (Unable, MachineFailed) as failure:
        print(failure, file=sys.stderr)
        return 1


def _leave(number: int, frame: FrameType | None) -> None:
    """Makes SIGTERM leave through the `with` block, so that the container ends too."""
    sys.exit(128 + number)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
