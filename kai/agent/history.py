"""The user's history: one JSON line a message, one file a day, written by the supervisor only (S6)."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import msgspec

logger = logging.getLogger(__name__)
RECALLED, RECALLED_LENGTH = 20, 500
DAYS_SEARCHED = 7
BLOCK = 256 * 1024
LONGEST_TAIL = 16 << 20
"""Bytes of a day that are looked at for its last lines: an answer has at most some hundred kilobytes."""


class Line(msgspec.Struct):
    """`ts` is ISO-8601 in UTC, `dir` who spoke; `media` are the paths of the files that came with it."""

    ts: str
    dir: str
    turn: str
    text: str
    media: list[str] = []


def append(directory: Path, *, dir: str, turn: str, text: str, media: Sequence[str] = ()) -> None:
    """Add a message to today's file. A full disk costs the line and says so, never the turn."""
    now = datetime.now(UTC)
    line = Line(ts=now.isoformat(timespec="milliseconds"), dir=dir, turn=turn, text=text, media=list(media))
    try:
        fd = os.open(
            directory / f"{now:%Y-%m-%d}.jsonl",
            os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC,
            0o640,
        )
        with os.fdopen(fd, "r+b") as file:
            size = os.fstat(fd).st_size
            torn = size > 0 and os.pread(fd, 1, size - 1) != b"\n"  # a full disk or a crash cut the last line off
            file.write(b"\n" * torn + msgspec.json.encode(line) + b"\n")
    except OSError as error:
        logger.error("history: %s: %s; this message is not in it", directory, error.strerror)


def has_answer(directory: Path, turn: str) -> bool:
    """Whether an answer of this turn is among the last lines of the last two days that have any."""
    for path in sorted(directory.glob("????-??-??.jsonl"), reverse=True)[:2]:
        for raw in _last_lines(path):
            with suppress(msgspec.DecodeError):
                line = msgspec.json.decode(raw, type=Line)
                if line.turn == turn and line.dir == "assistant":
                    return True
    return False


def recent(directory: Path) -> list[Line]:
    """The last messages of the last few days that have any, oldest first, each cut to RECALLED_LENGTH."""
    lines: list[Line] = []
    for path in sorted(directory.glob("????-??-??.jsonl"), reverse=True)[:DAYS_SEARCHED]:
        day = []
        for raw in _last_lines(path):
            try:
                line = msgspec.json.decode(raw, type=Line)
            except msgspec.DecodeError:
                continue  # cut off by a crash or a full disk
            if len(line.text) > RECALLED_LENGTH:
                line.text = line.text[:RECALLED_LENGTH] + "…"
            line.text = " ".join((line.text, *(f"[File: {path}]" for path in line.media))).strip()
            day.append(line)
        lines = day + lines
        if len(lines) >= RECALLED:
            break
    return lines[-RECALLED:]


def _last_lines(path: Path) -> list[bytes]:
    """The last RECALLED lines of a file, read from its end: a day may have many megabytes."""
    data = b""
    try:
        with path.open("rb") as file:
            at = file.seek(0, os.SEEK_END)
            while at and data.count(b"\n") <= RECALLED and len(data) < LONGEST_TAIL:
                step = min(at, BLOCK)
                at = file.seek(at - step)
                data = file.read(step) + data
    except OSError as error:
        logger.error("history: %s: %s; this day is left out", path, error.strerror)
    return data.splitlines()[-RECALLED:]
