"""`kai …` with a test's directories in the place of the host's: `totp_kai.py DIRECTORY WORD…`, on a terminal too.

Stopping the verifier is asked of the test by a file. While `kill-at` names a step of a setup or a reset, the command is
killed before it.
"""

from __future__ import annotations

import grp
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kai.cli import doctor, main, totp, totpfiles
from kai.cli.fail import Failure

directory = Path(sys.argv.pop(1))
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell runs the tests in the background
STEPS = ("put_secret", "put_marker", "remove_secret", "remove_marker", "stop", "ask")


def reach(step: str) -> None:
    wanted = directory / "kill-at"
    if wanted.exists() and wanted.read_text() == step:
        os.kill(os.getpid(), signal.SIGKILL)


def before(step: str, real: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        reach(step)
        return real(*arguments, **options)

    return call


def stop() -> None:
    reach("stop")
    if (directory / "no-systemctl").exists():
        raise Failure("systemctl is not installed")
    asked = directory / "stop"
    asked.touch()
    while asked.exists():
        time.sleep(0.01)


class Files(totpfiles.Files):
    put_secret = before("put_secret", totpfiles.Files.put_secret)
    put_marker = before("put_marker", totpfiles.Files.put_marker)
    remove_secret = before("remove_secret", totpfiles.Files.remove_secret)
    remove_marker = before("remove_marker", totpfiles.Files.remove_marker)


totpfiles.FILES = Files(
    directory / "state/totp/enrolled", directory / "plain", directory / "encrypted",
    os.geteuid(), grp.getgrgid(os.getegid()).gr_name,
)  # fmt: skip
totp.stop_verifier = stop
totp._ask = before("ask", totp._ask)
for module in (totp, doctor):
    module.need_root = lambda _: None  # type: ignore[attr-defined]
if __name__ == "__main__":
    main.main()
