"""What systemd makes of calendar expressions: asked of `systemd-analyze calendar`, never calculated here.

It runs in UTC, so that an expression without a zone is read in UTC. An expression that ends in `UTC` or in the IANA
name of a zone is read there. Source: systemd.time(7), CALENDAR EVENTS.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime

import msgspec

LONGEST = 200
"""Characters of an expression."""
PATIENCE = 10.0
"""Seconds that systemd may look for the next times of a few expressions."""
AT_ONCE = 64
"""Expressions that one process is asked about."""
_PROGRAM = "systemd-analyze"
_ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "TZ": "UTC",
    "LC_ALL": "C",
    "SYSTEMD_COLORS": "0",
    "SYSTEMD_PAGER": "",
    "SYSTEMD_LOG_TARGET": "console",
    "SYSTEMD_LOG_LEVEL": "info",
}
# 252 counts `Iter. #2`, 257 `Iteration #2`.
_LINE = re.compile(r"\s*(Normalized form|Next elapse|Iter(?:\.|ation) #[0-9]+):\s+(\S.*?)\s*")
_MOMENT = re.compile(r"(?:[A-Z][a-z]{2} )?([0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.[0-9]+)? UTC")


class BadExpression(Exception):
    """systemd can't read an expression; the message has systemd's own words."""

    def __init__(self, expression: str, message: str) -> None:
        super().__init__(message)
        self.expression = expression


class Unusable(Exception):
    """systemd-analyze can't be asked, or what it says isn't understood; the message says why."""


class Elapses(msgspec.Struct):
    """How systemd reads an expression, and when it elapses, in seconds since the epoch: no time is never."""

    normal: str
    times: list[float]


class Calendar:
    """Asks systemd, with few processes at once."""

    def __init__(self, program: str = _PROGRAM, *, patience: float = PATIENCE) -> None:
        self.program, self.patience = program, patience
        self._room = asyncio.Semaphore(2)

    async def elapses(self, expressions: Sequence[str], *, count: int = 1, after: float | None = None) -> list[Elapses]:
        """The next `count` times of each expression that lie after a moment (now when it isn't given).

        Raises BadExpression for the first that systemd refuses, Unusable when it can't be asked.
        """
        found: list[Elapses] = []
        for start in range(0, len(expressions), AT_ONCE):
            found += await self._some(expressions[start : start + AT_ONCE], count, after)
        return found

    async def _some(self, expressions: Sequence[str], count: int, after: float | None) -> list[Elapses]:
        for expression in expressions:
            if not is_sane(expression):
                raise BadExpression(expression, f"not 1 to {LONGEST} printable ASCII characters")
        code, out, words = await self._run(expressions, count, after)
        found = parse(out)
        if len(found) == len(expressions):
            return found
        if len(expressions) > 1:  # which of them it was, is seen when they are asked for one by one
            return [each for one in expressions for each in await self._some([one], count, after)]
        if code and words:
            raise BadExpression(expressions[0], words)
        raise Unusable(f"{self.program} calendar ended with {code} and no times: {words or 'nothing was said'}")

    async def _run(self, expressions: Sequence[str], count: int, after: float | None) -> tuple[int, str, str]:
        """Exit status, output, and the first line of what it complained of."""
        options = [f"--iterations={count}"]
        if after is not None:
            options.append(f"--base-time=@{math.floor(after)}")
        async with self._room:
            try:
                process = await asyncio.create_subprocess_exec(
                    self.program, "calendar", *options, "--", *expressions, env=_ENVIRONMENT,
                    stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
                )  # fmt: skip
            except OSError as error:
                raise Unusable(f"{self.program}: {error.strerror or error}: it comes with systemd") from None
            try:
                async with asyncio.timeout(self.patience):
                    out, err = await process.communicate()
            except TimeoutError:
                told = ", ".join(expressions[:3])
                raise Unusable(f"{self.program}: no next time within {self.patience:g} s for {told}") from None
            finally:
                if process.returncode is None:
                    with suppress(ProcessLookupError):
                        process.kill()
                    await process.wait()
        complaint = err.decode("utf-8", "replace").strip().splitlines()
        return process.returncode or 0, out.decode("utf-8", "replace"), complaint[0] if complaint else ""


def is_sane(expression: str) -> bool:
    """Whether a text may be shown to systemd at all: one line of ASCII."""
    return 0 < len(expression) <= LONGEST and expression.isascii() and expression.isprintable()


def parse(output: str) -> list[Elapses]:
    """What systemd-analyze printed, one entry for each expression that it could read. Raises Unusable."""
    found: list[Elapses] = []
    for line in output.splitlines():
        match = _LINE.fullmatch(line)
        if not match:
            continue
        label, value = match.groups()
        if label == "Normalized form":
            found.append(Elapses(value, []))
        elif not found:
            raise Unusable(f"systemd-analyze: a time before its expression: {line.strip()}")
        elif value != "never":
            found[-1].times.append(_moment(value))
    return found


def _moment(text: str) -> float:
    match = _MOMENT.fullmatch(text)
    if not match:
        raise Unusable(f"systemd-analyze: not a time in UTC: {text}")
    return datetime.fromisoformat(match[1]).replace(tzinfo=UTC).timestamp()


def expression(at: float) -> str:
    """The expression that elapses at one moment only."""
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} UTC"
