"""The bot's database: inbox, outbox and offsets in one file, so that a step of both is one transaction.

kai-queue(5) tells what each state means, what leads to it, and what a crash in between comes to.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import msgspec

from kai.lib.store import Store

InboxState = Literal[
    "received",
    "held",
    "queued",
    "running",
    "answered",
    "delivered",
    "grouped",
    "replaced",
    "interrupted",
    "continued",
    "refused",
    "expired",
    "dropped",
    "dead",
]
OutboxState = Literal["stored", "sending", "sent", "unknown", "dead", "dropped"]
Kind = Literal["turn", "command", "control", "edit"]

UNFINISHED = "('received', 'queued', 'running', 'answered')"
FINISHED = "('delivered', 'grouped', 'replaced', 'interrupted', 'continued', 'refused', 'expired', 'dropped')"
UNSENT = "('stored', 'sending')"
DEDUP_WINDOW = 7 * 86400
"""Seconds for which a finished row is kept, so that an update that comes again is known."""

_INBOX = """\
CREATE TABLE inbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT,  -- order of arrival
    bot INTEGER NOT NULL,
    update_id INTEGER NOT NULL,
    user TEXT NOT NULL,
    chat INTEGER NOT NULL,
    message INTEGER NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('turn', 'command', 'control', 'edit')),
    text TEXT NOT NULL,
    callback TEXT NOT NULL DEFAULT '',     -- id of a callback query
    target INTEGER,                        -- the row that a /stop means, or that a Continue continues
    state TEXT NOT NULL,
    generation TEXT NOT NULL DEFAULT '',   -- the agent's journal when this became running
    boot TEXT NOT NULL DEFAULT '',
    changed REAL NOT NULL,
    thread INTEGER,                        -- the topic of the chat, where it has some
    content TEXT NOT NULL DEFAULT '',      -- what there is besides text: files, quotation, origin
    bundle TEXT NOT NULL DEFAULT '',       -- rows of one bundle are one turn: 'album:ID', 'forward', 'long'
    settles REAL NOT NULL DEFAULT 0,       -- until when the bundle's next row is waited for
    leader INTEGER,                        -- the row whose turn this is part of
    error TEXT NOT NULL DEFAULT '',        -- why it ended as it did
    arrived REAL NOT NULL DEFAULT 0,
    UNIQUE (bot, update_id)
);
CREATE INDEX inbox_unfinished ON inbox (user, id) WHERE state IN ('received', 'queued', 'running', 'answered');
CREATE INDEX inbox_of_user ON inbox (user, id);
CREATE INDEX inbox_parts ON inbox (leader) WHERE leader IS NOT NULL;
CREATE TABLE blocked (bot INTEGER NOT NULL, chat INTEGER NOT NULL, since REAL NOT NULL, PRIMARY KEY (bot, chat));
"""
_NOTES = """\
CREATE TABLE notes (  -- the message that tells a user how many of his wait
    bot INTEGER NOT NULL,
    user TEXT NOT NULL,
    chat INTEGER NOT NULL,
    message INTEGER NOT NULL,
    PRIMARY KEY (bot, user)
)"""
_OF_HELD = "CREATE INDEX inbox_held ON inbox (bot, user) WHERE state = 'held'"
_SCHEMA = f"""
CREATE TABLE offsets (bot INTEGER PRIMARY KEY, next INTEGER NOT NULL);
{_INBOX}
{_OF_HELD};
{_NOTES};
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
    thread INTEGER,
    arrived REAL NOT NULL DEFAULT 0,
    UNIQUE (caller, key)
);
CREATE INDEX outbox_unsent ON outbox (chat, id) WHERE state IN ('stored', 'sending');
CREATE INDEX outbox_of_inbox ON outbox (inbox)
"""
_OF_2 = "id, bot, update_id, user, chat, message, kind, text, callback, target, state, generation, boot, changed"
_UPGRADES = {
    1: "ALTER TABLE outbox ADD COLUMN edits INTEGER",
    2: f"""
ALTER TABLE outbox ADD COLUMN thread INTEGER;
ALTER TABLE outbox ADD COLUMN arrived REAL NOT NULL DEFAULT 0;
UPDATE outbox SET arrived = changed;
DROP INDEX inbox_unfinished;
ALTER TABLE inbox RENAME TO inbox_2;
{_INBOX}
INSERT INTO inbox ({_OF_2}, arrived) SELECT {_OF_2}, changed FROM inbox_2;
DELETE FROM sqlite_sequence WHERE name = 'inbox';
UPDATE sqlite_sequence SET name = 'inbox' WHERE name = 'inbox_2';
DROP TABLE inbox_2;
ALTER TABLE notes RENAME TO notes_2;
{_NOTES};
INSERT INTO notes SELECT coalesce((SELECT bot FROM inbox ORDER BY id DESC LIMIT 1), 0), user, chat, message
    FROM notes_2;
DROP TABLE notes_2
""",
    3: _OF_HELD,
}


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
    thread: int | None = None
    content: str = ""
    bundle: str = ""
    settles: float = 0.0
    leader: int | None = None
    error: str = ""
    arrived: float = 0.0

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
    thread: int | None = None


INBOX_COLUMNS = ", ".join(InboxRow.__struct_fields__)
OUTBOX_COLUMNS = ", ".join(OutboxRow.__struct_fields__)


def open_tables(directory: Path) -> Store:
    """The database in the bot's state directory. Raises StoreError."""
    return Store(directory / "queue.db", _SCHEMA, version=4, oldest=2, upgrades=_UPGRADES)


def others_than(pairs: Iterable[tuple[str, int]]) -> tuple[str, list[str | int]]:
    """A condition on rows of inbox and outbox: of none of these users and their chats; and its values."""
    pairs = sorted(pairs)
    known = f"(user, chat) NOT IN (VALUES {', '.join(['(?, ?)'] * len(pairs))})" if pairs else "true"
    return known, [value for pair in pairs for value in pair]


def now() -> float:
    return time.time()
