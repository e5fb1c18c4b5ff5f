"""The bot's database is taken over from every version before, with what waits in it."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from kai.bot.inbox import Arrival, Inbox
from kai.bot.outbox import Outbox
from kai.bot.tables import open_tables

FIRST = """
CREATE TABLE offsets (bot INTEGER PRIMARY KEY, next INTEGER NOT NULL);
CREATE TABLE inbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT, bot INTEGER NOT NULL, update_id INTEGER NOT NULL, user TEXT NOT NULL,
    chat INTEGER NOT NULL, message INTEGER NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('turn', 'command', 'control')), text TEXT NOT NULL,
    callback TEXT NOT NULL DEFAULT '', target INTEGER, state TEXT NOT NULL, generation TEXT NOT NULL DEFAULT '',
    boot TEXT NOT NULL DEFAULT '', changed REAL NOT NULL, UNIQUE (bot, update_id)
);
CREATE INDEX inbox_unfinished ON inbox (user, id) WHERE state IN ('received', 'queued', 'running', 'answered');
CREATE TABLE notes (user TEXT PRIMARY KEY, chat INTEGER NOT NULL, message INTEGER NOT NULL);
CREATE TABLE outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT, bot INTEGER NOT NULL, caller TEXT NOT NULL, key TEXT NOT NULL, inbox INTEGER,
    user TEXT NOT NULL, chat INTEGER NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('control', 'placeholder', 'final', 'message')), body TEXT NOT NULL,
    state TEXT NOT NULL, message INTEGER, error TEXT NOT NULL DEFAULT '', changed REAL NOT NULL, UNIQUE (caller, key)
);
CREATE INDEX outbox_unsent ON outbox (chat, id) WHERE state IN ('stored', 'sending');
CREATE INDEX outbox_of_inbox ON outbox (inbox);
INSERT INTO offsets VALUES (7, 103);
INSERT INTO notes VALUES ('alice', 1001, 13);
INSERT INTO inbox (bot, update_id, user, chat, message, kind, text, state, generation, boot, changed) VALUES
    (7, 101, 'alice', 1001, 11, 'turn', 'runs', 'running', 'g', 'b', 5.0),
    (7, 102, 'alice', 1001, 12, 'turn', 'waits', 'queued', '', '', 6.0);
INSERT INTO outbox (bot, caller, key, inbox, user, chat, kind, body, state, changed) VALUES
    (7, 'kai-bot', '7.100/1', NULL, 'alice', 1001, 'message', '{"text":"unsent"}', 'stored', 4.0);
"""
SECOND = FIRST + "ALTER TABLE outbox ADD COLUMN edits INTEGER;"
SCHEMA = "SELECT type, name FROM sqlite_master ORDER BY type, name"


@pytest.mark.parametrize(("version", "schema"), [(1, FIRST), (2, SECOND)])
async def test_what_waits_is_taken_over_in_order(tmp_path: Path, version: int, schema: str) -> None:
    with closing(sqlite3.connect(tmp_path / "queue.db")) as db:
        db.executescript(f"{schema} PRAGMA user_version = {version}")
    store = open_tables(tmp_path)
    inbox = Inbox(store, 7)
    rows = await inbox.unfinished()
    assert [(row.turn, row.state, row.text, row.generation) for row in rows] == [
        ("7.101", "running", "runs", "g"),
        ("7.102", "queued", "waits", ""),
    ]
    assert await inbox.offset() == 103
    assert [row.body for row in await Outbox(store, 7).recover()] == ['{"text":"unsent"}']
    assert [tuple(row) for row in await store.read("SELECT bot, user, chat, message FROM notes")] == [
        (7, "alice", 1001, 13)
    ]
    store.close()


def test_a_database_that_was_taken_over_is_built_like_a_new_one(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    with closing(sqlite3.connect(tmp_path / "queue.db")) as old:
        old.executescript(f"{FIRST} PRAGMA user_version = 1")
    open_tables(tmp_path).close()
    open_tables(tmp_path / "new").close()
    built = []
    for path in (tmp_path / "queue.db", tmp_path / "new/queue.db"):
        with closing(sqlite3.connect(path)) as db:
            columns = {
                table: sorted(row[1] for row in db.execute(f"PRAGMA table_info({table})"))
                for (table,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            }
            built.append((db.execute(SCHEMA).fetchall(), columns))
    assert built[0] == built[1]


async def test_numbers_of_rows_are_not_given_again_after_an_upgrade(tmp_path: Path) -> None:
    """Outbox rows that are kept name rows of the inbox that were forgotten after a week."""
    with closing(sqlite3.connect(tmp_path / "queue.db")) as db:
        db.executescript(f"{SECOND} DELETE FROM inbox; PRAGMA user_version = 2")
    store = open_tables(tmp_path)
    (row,) = await Inbox(store, 7).receive([Arrival(500, "bob", 2002, 1, "turn", "new")], 501)
    store.close()
    assert row.id > 2
