"""The user's history: one JSON line a message, one file a day, written by the supervisor only (S6)."""

from __future__ import annotations

import logging
import os
from datetime import UTC, datetime
from pathlib import Path

import msgspec

logger = logging.getLogger(__name__)
RECALLED, RECALLED_LENGTH = 20, 500
DAYS_SEARCHED = 7


class Line(msgspec.Struct):
    """`ts` is ISO-8601 in UTC, `dir` who spoke."""

    ts: str
    dir: str
    turn: str
    text: str
    media: list[str] = []


def append(directory: Path, *, dir: str, turn: str, text: str) -> None:
    """Add a message to today's file. A full disk costs the line and says so, never the turn."""
    now = datetime.now(UTC)
    line = Line(ts=now.isoformat(timespec="milliseconds"), dir=dir, turn=turn, text=text)
    try:
        fd = os.open(
            directory / f"{now:%Y-%m-%d}.jsonl",
            os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC,
            0o640,
        )
        with os.fdopen(fd, "wb") as file:
            file.write(msgspec.json.encode(line) + b"\n")
    except OSError as error:
        logger.error("history: %s: %s; this message is not in it", directory, error.strerror)


def recent(directory: Path) -> list[Line]:
    """The last messages of the last few days that have any, oldest first, each cut to RECALLED_LENGTH."""
    lines: list[Line] = []
    for path in sorted(directory.glob("????-??-??.jsonl"), reverse=True)[:DAYS_SEARCHED]:
        day = []
        for raw in path.read_bytes().splitlines()[-RECALLED:]:
            try:
                line = msgspec.json.decode(raw, type=Line)
            except msgspec.DecodeError:
                continue  # cut off by a crash or a full disk
            if len(line.text) > RECALLED_LENGTH:
                line.text = line.text[:RECALLED_LENGTH] + "…"
            day.append(line)
        lines = day + lines
        if len(lines) >= RECALLED:
            break
    return lines[-RECALLED:]
