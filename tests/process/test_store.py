"""The store: group commit, faults that stay with their owner, clear refusals."""

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from kai.lib.store import Store, StoreError

SCHEMA = "CREATE TABLE t (n INTEGER PRIMARY KEY)"


def insert(number: int) -> object:
    return lambda db: db.execute("INSERT INTO t VALUES (?)", (number,))


async def test_many_writers_all_see_their_work_on_disk(tmp_path: Path) -> None:
    store = Store(tmp_path / "a.db", SCHEMA)
    await asyncio.gather(*(store.write(insert(n)) for n in range(500)))  # type: ignore[arg-type]
    store.close()
    with closing(sqlite3.connect(tmp_path / "a.db")) as db:
        assert db.execute("SELECT count(*) FROM t").fetchone() == (500,)


async def test_a_fault_undoes_its_own_work_and_no_one_elses(tmp_path: Path) -> None:
    store = Store(tmp_path / "a.db", SCHEMA)

    def fails(db: sqlite3.Connection) -> None:
        db.execute("INSERT INTO t VALUES (100)")
        raise ValueError("mine")

    outcomes = await asyncio.gather(
        *(store.write(fails if n == 5 else insert(n)) for n in range(10)),  # type: ignore[arg-type]
        return_exceptions=True,
    )
    assert [isinstance(one, ValueError) for one in outcomes] == [n == 5 for n in range(10)]
    rows = await store.read("SELECT n FROM t ORDER BY n")
    assert [row["n"] for row in rows] == [0, 1, 2, 3, 4, 6, 7, 8, 9]
    store.close()


async def test_a_second_process_on_the_same_file_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path / "a.db", SCHEMA)
    await store.write(insert(1))  # type: ignore[arg-type]
    with pytest.raises(StoreError, match=r"a\.db: database is locked"):
        Store(tmp_path / "a.db", SCHEMA, patience=0.1)
    store.close()


def test_a_file_that_is_no_database_is_refused_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "a.db").write_bytes(b"garbage" * 1000)
    with pytest.raises(StoreError, match=r"a\.db: damaged \(file is not a database\): restore it"):
        Store(tmp_path / "a.db", SCHEMA)


def test_a_newer_version_is_refused(tmp_path: Path) -> None:
    Store(tmp_path / "a.db", SCHEMA, version=2).close()
    with pytest.raises(StoreError, match="version 2, this program knows 1: upgrade Kai"):
        Store(tmp_path / "a.db", SCHEMA)


def test_a_newer_version_that_says_this_one_can_read_it_is_taken_as_it_is(tmp_path: Path) -> None:
    Store(tmp_path / "a.db", SCHEMA, version=3, oldest=2).close()
    Store(tmp_path / "a.db", SCHEMA, version=2).close()
    with pytest.raises(StoreError, match="version 3, this program knows 1: upgrade Kai"):
        Store(tmp_path / "a.db", SCHEMA, version=1)
    Store(tmp_path / "a.db", SCHEMA, version=3, oldest=2).close()


async def test_a_full_disk_is_told_and_work_goes_on_when_there_is_room(tmp_path: Path) -> None:
    store = Store(tmp_path / "a.db", "CREATE TABLE t (n BLOB)")
    await store.write(lambda db: db.execute("PRAGMA max_page_count=8"))
    with pytest.raises(StoreError, match="full: check the disk"):
        await store.write(lambda db: db.execute("INSERT INTO t VALUES (zeroblob(1000000))"))
    await store.write(lambda db: db.execute("INSERT INTO t VALUES (1)"))
    assert len(await store.read("SELECT n FROM t")) == 1
    store.close()
