"""The bot's database: inbox, outbox and offsets in one file, so that a step of both is one transaction.

Inbox rows go received → queued → running → answered → delivered, or end as interrupted, refused, dropped or dead.
Outbox rows go stored → sending → sent, or end as unknown or dead. kai-bot(8) tells what each state means.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal

import msgspec

from kai.lib.store import Store

InboxState = Literal["received", "queued", "running", "answered", "delivered", "interrupted", "dropped", "dead"]
OutboxState = Literal["stored", "sending", "sent", "unknown", "dead"]
Kind = Literal["turn", "command", "control"]

UNFINISHED = "('received', 'queued', 'running', 'answered')"
FINISHED = "('delivered', 'interrupted', 'dropped')"
DEDUP_WINDOW = 7 * 86400
"""Seconds for which a finished row is kept, so that an update that comes again is known."""

_SCHEMA = """
CREATE TABLE offsets (bot INTEGER PRIMARY KEY, next INTEGER NOT NULL);
CREATE TABLE inbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT,  -- order of arrival
    bot INTEGER NOT NULL,
    update_id INTEGER NOT NULL,
    user TEXT NOT NULL,
    chat INTEGER NOT NULL,
    message INTEGER NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('turn', 'command', 'control')),
    text TEXT NOT NULL,
    callback TEXT NOT NULL DEFAULT '',     -- id of a callback query
    target INTEGER,                        -- the row that a /stop means
    state TEXT NOT NULL,
    generation TEXT NOT NULL DEFAULT '',   -- the agent's journal when this became running
    boot TEXT NOT NULL DEFAULT '',
    changed REAL NOT NULL,
    UNIQUE (bot, update_id)
);
CREATE INDEX inbox_unfinished ON inbox (user, id) WHERE state IN ('received', 'queued', 'running', 'answered');
CREATE TABLE notes (user TEXT PRIMARY KEY, chat INTEGER NOT NULL, message INTEGER NOT NULL);
CREATE TABLE outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    bot INTEGER NOT NULL,
    caller TEXT NOT NULL,
    key TEXT NOT NULL,                     -- unique per caller: the same again stores nothing new
    inbox INTEGER,                         -- the row that this answers
    user TEXT NOT NULL,
    chat INTEGER NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('control', 'placeholder', 'final', 'message')),
    body TEXT NOT NULL,                    -- text, entities, buttons
    state TEXT NOT NULL,
    message INTEGER,                       -- Telegram's id, once known
    error TEXT NOT NULL DEFAULT '',
    changed REAL NOT NULL,
    edits INTEGER,                         -- the row whose message this one changes
    UNIQUE (caller, key)
);
CREATE INDEX outbox_unsent ON outbox (chat, id) WHERE state IN ('stored', 'sending');
CREATE INDEX outbox_of_inbox ON outbox (inbox)
"""
_UPGRADES = {1: "ALTER TABLE outbox ADD COLUMN edits INTEGER"}


class InboxRow(msgspec.Struct):
    """A message, a command or a pressed button of an admitted user."""

    id: int
    bot: int
    update_id: int
    user: str
    chat: int
    message: int
    kind: Kind
    text: str
    callback: str
    target: int | None
    state: InboxState
    generation: str
    boot: str

    @property
    def turn(self) -> str:
        """The turn's id: that of its first update."""
        return f"{self.bot}.{self.update_id}"


class OutboxRow(msgspec.Struct):
    """A message on its way to a chat. `kind` final means: edit the placeholder of the same inbox row.

    With `edits` it is no message of its own but the new state of that row's.
    """

    id: int
    inbox: int | None
    user: str
    chat: int
    kind: Literal["control", "placeholder", "final", "message"]
    body: str
    state: OutboxState
    message: int | None
    edits: int | None = None


INBOX_COLUMNS = ", ".join(InboxRow.__struct_fields__)
OUTBOX_COLUMNS = ", ".join(OutboxRow.__struct_fields__)


def open_tables(directory: Path) -> Store:
    """The database in the bot's state directory. Raises StoreError."""
    return Store(directory / "queue.db", _SCHEMA, version=2, upgrades=_UPGRADES)


def now() -> float:
    return time.time()
