"""SQLite for one daemon: one process, one thread, group commit.

Functions that come while a commit is under way share the next one, so that many users cost one fsync. A function
sees the connection alone; what it raises undoes its own work only.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
MOST_IN_A_GROUP = 256
_Job = tuple[Callable[[sqlite3.Connection], Any], "asyncio.Future[Any]", asyncio.AbstractEventLoop]


class StoreError(Exception):
    """The database can't be used; the message names the file, the reason and what to do."""


class Store:
    """A database file, opened exclusively.

    `durable` commits reach the disk before `write` returns (synchronous=FULL); else they survive the process but
    not a power cut (NORMAL). Another process that has the file is waited for, `patience` seconds. `upgrades` are the
    statements that lead from a version to the next. A file of a newer version is taken where that one's program wrote
    into it that version `oldest` can read it too: an upgrade that fails must find its way back. Raises StoreError when
    the file is corrupt, in use, or too new.
    """

    def __init__(
        self,
        path: Path,
        schema: str,
        *,
        version: int = 1,
        oldest: int | None = None,
        upgrades: Mapping[int, str] | None = None,
        durable: bool = True,
        patience: float = 5.0,
    ) -> None:
        self.path, self.version, self.upgrades = path, version, upgrades or {}
        self.oldest = oldest or version
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._connection = self._open(schema, durable, patience)
        self._thread = threading.Thread(target=self._work, name=path.stem, daemon=True)
        self._thread.start()

    def _open(self, schema: str, durable: bool, patience: float) -> sqlite3.Connection:
        try:
            connection = sqlite3.connect(
                self.path, isolation_level=None, check_same_thread=False, timeout=patience, cached_statements=256
            )
        except sqlite3.Error as error:
            raise self._fault(error) from None
        try:
            self._prepare(connection, schema, durable)
        except BaseException as error:
            connection.close()
            if isinstance(error, sqlite3.Error):
                raise self._fault(error) from None
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection, schema: str, durable: bool) -> None:
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA locking_mode=EXCLUSIVE")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
        connection.execute("PRAGMA cache_size=-1024")
        (found,) = connection.execute("PRAGMA user_version").fetchone()
        (oldest,) = connection.execute("PRAGMA application_id").fetchone()
        steps = [schema] if found == 0 else [self.upgrades.get(n, "") for n in range(found, self.version)]
        if (found > self.version and not 0 < oldest <= self.version) or not all(steps):
            raise StoreError(f"{self.path}: version {found}, this program knows {self.version}: upgrade Kai")
        if steps:
            change = "; ".join(steps)
            marks = f"PRAGMA user_version={self.version}; PRAGMA application_id={self.oldest}"
            connection.executescript(f"BEGIN IMMEDIATE; {change}; {marks}; COMMIT")
        (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise StoreError(f"{self.path}: damaged ({verdict}): restore it from a backup or move it away")

    def _fault(self, error: sqlite3.Error) -> StoreError:
        if getattr(error, "sqlite_errorcode", None) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return StoreError(f"{self.path}: damaged ({error}): restore it from a backup or move it away")
        return StoreError(f"{self.path}: {error}: check the disk, its space and the file's owner")

    async def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` in a transaction; returns when it is committed. Raises what it raises, or StoreError."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._jobs.put((work, future, loop))
        return await future

    async def read(self, query: str, parameters: tuple[Any, ...] = ()) -> list[sqlite3.Row]:
        return await self.write(lambda db: db.execute(query, parameters).fetchall())

    def close(self) -> None:
        self._jobs.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            group, last = [job], False
            while len(group) < MOST_IN_A_GROUP:
                try:
                    more = self._jobs.get_nowait()
                except queue.Empty:
                    break
                if more is None:
                    last = True
                    break
                group.append(more)
            self._commit(group)
            if last:
                break
        self._connection.close()

    def _commit(self, group: list[_Job]) -> None:
        db = self._connection
        outcomes: list[tuple[Any, BaseException | None]] = []
        try:
            db.execute("BEGIN IMMEDIATE")
            for work, _, _ in group:
                db.execute("SAVEPOINT one")
                try:
                    outcomes.append((work(db), None))
                except Exception as error:
                    if not db.in_transaction:
                        raise  # a full disk: SQLite has undone the whole group
                    db.execute("ROLLBACK TO one")
                    outcomes.append((None, self._explain(error)))
                db.execute("RELEASE one")
            db.execute("COMMIT")
        except sqlite3.Error as error:
            if db.in_transaction:
                with suppress(sqlite3.Error):  # the next BEGIN says so too
                    db.execute("ROLLBACK")
            outcomes = [(None, self._explain(error))] * len(group)
        for (_, future, loop), (value, fault) in zip(group, outcomes, strict=True):
            loop.call_soon_threadsafe(_settle, future, value, fault)

    def _explain(self, error: Exception) -> Exception:
        if isinstance(error, sqlite3.IntegrityError) or not isinstance(error, sqlite3.Error):
            return error
        return self._fault(error)


def _settle(future: asyncio.Future[Any], value: Any, fault: BaseException | None) -> None:
    if future.done():
        return
    if fault is None:
        future.set_result(value)
    else:
        future.set_exception(fault)
