"""Log to the journal with fields, or to standard error without systemd; never a secret, whoever wrote the line.

`with log.fields(KAI_TURN=…)` marks every line below it, libraries' lines too, so that `journalctl KAI_TURN=…`
shows one message's way through all units.
"""

from __future__ import annotations

import contextvars
import logging
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

_FIELDS: contextvars.ContextVar[dict[str, str]] = contextvars.ContextVar("fields", default={})  # noqa: B039
_SECRETS: set[str] = set()
_SYSLOG = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6, logging.DEBUG: 7}
SHORTEST_SECRET = 6


@contextmanager
def fields(**values: str) -> Iterator[None]:
    """Add journal fields (KAI_USER, KAI_TURN, KAI_UPDATE) to every line that is logged inside."""
    token = _FIELDS.set({**_FIELDS.get(), **values})
    try:
        yield
    finally:
        _FIELDS.reset(token)


def secret(value: str) -> None:
    """From now on write *** in place of this text. Libraries put tokens into their own errors and URLs."""
    if len(value) >= SHORTEST_SECRET:
        _SECRETS.add(value)


def redact(text: str) -> str:
    for value in _SECRETS:
        text = text.replace(value, "***")
    return text


def printable(text: str, limit: int = 2000) -> str:
    """One line without control characters: what others wrote must not paint on an operator's terminal."""
    line = "".join(c if c.isprintable() else " " for c in text)
    return line if len(line) <= limit else line[: limit - 1] + "…"


class _Handler(logging.Handler):
    """Shared half: the finished message, redacted."""

    def text(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            text += "\n" + "".join(traceback.format_exception(record.exc_info[1])).rstrip()
        return redact(text)


class JournalHandler(_Handler):
    """Sends each record as one journal entry with its fields."""

    def __init__(self, identifier: str) -> None:
        super().__init__()
        from systemd import journal

        self.send = journal.send
        self.identifier = identifier

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.send(
                self.text(record),
                PRIORITY=str(_SYSLOG.get(record.levelno, 6)),
                SYSLOG_IDENTIFIER=self.identifier,
                LOGGER=record.name,
                **_FIELDS.get(),
            )
        except Exception:
            self.handleError(record)


class StderrHandler(_Handler):
    """For the demo and for tests: the same lines, the fields in brackets."""

    def __init__(self, identifier: str) -> None:
        super().__init__()
        self.identifier = identifier

    def emit(self, record: logging.LogRecord) -> None:
        try:
            marks = "".join(f" {k.removeprefix('KAI_').lower()}={v}" for k, v in _FIELDS.get().items())
            sys.stderr.write(f"{self.identifier}: {record.levelname.lower()}:{marks} {self.text(record)}\n")
            sys.stderr.flush()
        except Exception:
            self.handleError(record)


def start(identifier: str) -> None:
    """Set up logging for this process. The journal is used where standard error leads to it."""
    handler: logging.Handler
    try:
        handler = JournalHandler(identifier) if os.environ.get("JOURNAL_STREAM") else StderrHandler(identifier)
    except ImportError:
        handler = StderrHandler(identifier)
    logging.basicConfig(level=os.environ.get("KAI_LOG_LEVEL", "INFO"), handlers=[handler], force=True)
    logging.raiseExceptions = False
    for chatty in ("httpx", "httpcore", "markdown_it", "tornado.access", "telegram"):
        logging.getLogger(chatty).setLevel(logging.WARNING)  # the token is in a URL, a code may be in an update
    # A traceback for each page of a proxy's; whoever asked says what came of it.
    logging.getLogger("telegram.request.BaseRequest").setLevel(logging.CRITICAL)
