"""kai-job: says Run(ID) to the scheduler when the timer of kai-job@ID elapses, and prints what comes of it.

Its output is the journal of kai-job@ID. It starts at each elapse of each timer, so it imports next to nothing and
speaks Varlink by hand. A scheduler that goes away is started again by its socket; the unfinished run is then joined.

Exit status: 0 when the run ended well, 1 when it failed, 64 for a wrong argument, 75 when there is no scheduler.
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import time

PATIENCE = 60.0
"""Seconds without a scheduler."""
FIRST_DELAY, LONGEST_DELAY = 0.05, 2.0
START = os.environ.get("INVOCATION_ID") or os.urandom(16).hex()
"""Names this start: asked again after its answer was lost, the scheduler knows that its run has ended."""
LARGEST = 1 << 20
"""Bytes of one answer."""


def main() -> None:
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    if len(arguments) != 1 or not re.fullmatch(r"[1-9][0-9]{0,15}", arguments[0]):
        print("kai-job: expected the number of a job; it is started by kai-job@ID.service", file=sys.stderr)
        return 64
    path = os.path.join(os.environ.get("KAI_RUNTIME_DIRECTORY", "/run/kai"), "scheduler.sock")  # noqa: PTH118
    delay, until = FIRST_DELAY, time.monotonic() + PATIENCE
    while True:
        try:
            return follow(path, int(arguments[0]))
        except Heard:
            until = time.monotonic() + PATIENCE
        except (OSError, ValueError) as error:
            if time.monotonic() > until:
                print(f"{path}: {error}: see `systemctl status kai-scheduler`", file=sys.stderr)
                return 75
        time.sleep(delay)
        delay = min(2 * delay, LONGEST_DELAY)


class Heard(Exception):
    """The scheduler went away after it had said something: it was there, and is expected back."""


def follow(path: str, job: int) -> int:
    """Ask, print each step, and give the exit status. Raises OSError, ValueError and Heard when it breaks off."""
    call = {"method": "kai.Scheduler.Run", "parameters": {"id": job, "start": START}, "more": True}
    heard = False
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        connection.sendall(json.dumps(call).encode() + b"\0")
        data = b""
        try:
            while True:
                while b"\0" not in data:
                    piece = connection.recv(65536)
                    if not piece or len(data) > LARGEST:
                        raise ConnectionError("the scheduler went away")
                    data += piece
                message, _, data = data.partition(b"\0")
                status = tell(json.loads(message))
                if status is not None:
                    return status
                heard = True
        except OSError as error:
            raise (Heard(str(error)) if heard else error) from None


def tell(answer: dict[str, object]) -> int | None:
    """Print one answer; the exit status when it is the last. Raises ConnectionError for one that may change."""
    parameters = answer.get("parameters")
    step = parameters if isinstance(parameters, dict) else {}
    error = answer.get("error")
    if error:
        said = f"{error}: {step.get('message') or step.get('parameter') or ''}"
        if error in ("kai.Busy", "kai.Misconfigured", "kai.Internal"):
            raise ConnectionError(said)
        print(said, file=sys.stderr)
        return 1
    if step.get("line"):
        print(step["line"], flush=True)
    return None if answer.get("continues") else int(bool(step.get("failed")))


if __name__ == "__main__":
    main()
