"""The token stores: the same promises of both, and what SQLite adds to them."""

import asyncio
import hashlib
import os
import sqlite3
import stat
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from sidecar.errors import StoreError
from sidecar.tokens.memory import MemoryStore
from sidecar.tokens.sqlite import SqliteStore
from sidecar.tokens.store import MAX_GENERATION, MAX_RECORD, TokenStore, store_key
from tests.canary import canary

KEY = store_key("one")


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[TokenStore]:
    opened: TokenStore = MemoryStore() if request.param == "memory" else SqliteStore(tmp_path / "state")
    yield opened
    await opened.aclose()


@pytest.fixture
async def sqlite(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    opened = SqliteStore(tmp_path, busy_timeout=0.01)
    yield opened
    await opened.aclose()


def test_a_store_key_shows_nothing() -> None:
    """A record's name is a short hash behind our prefix: the same for the same credential, and no client id."""
    identity = canary("client")
    assert store_key(identity) == "auth-sidecar:token:" + hashlib.sha256(identity.encode()).hexdigest()[:32]
    assert store_key(identity) != store_key(identity + "x")


async def test_what_is_written_is_read(store: TokenStore) -> None:
    """A record comes back with its generation; one that is not there is None."""
    assert await store.read(KEY) is None
    assert await store.write(KEY, 3, b"\x00sealed\xff")
    assert await store.read(KEY) == (3, b"\x00sealed\xff")
    assert await store.read(store_key("two")) is None


@pytest.mark.parametrize("generation", [1, 4, 5])
async def test_an_older_or_equal_generation_is_refused(store: TokenStore, generation: int) -> None:
    """A generation only grows: a write that is late changes nothing."""
    await store.write(KEY, 5, b"newest")
    assert await store.write(KEY, generation, b"late") is False
    assert await store.read(KEY) == (5, b"newest")


async def test_a_newer_generation_replaces(store: TokenStore) -> None:
    """A newer record takes the place of the older, whatever lay there."""
    await store.write(KEY, 5, b"older")
    assert await store.write(KEY, 6, b"newer") is True
    assert await store.read(KEY) == (6, b"newer")


async def test_one_writer_wins(store: TokenStore) -> None:
    """Of many writers of the same generation at once, exactly one is told that it wrote, and its record is there."""
    won = await asyncio.gather(*(store.write(KEY, 1, b"%d" % number) for number in range(50)))
    assert won.count(True) == 1
    assert await store.read(KEY) == (1, b"%d" % won.index(True))


async def test_deleting_forgets_the_generation(store: TokenStore) -> None:
    """After a deletion any generation may be written; a second deletion does no harm."""
    await store.write(KEY, 5, b"old")
    await store.write(store_key("two"), 5, b"other")
    await store.delete(KEY)
    await store.delete(KEY)
    assert await store.read(KEY) is None
    assert await store.write(KEY, 1, b"new")
    assert await store.read(store_key("two")) == (5, b"other")


async def test_a_record_too_large_is_not_written(store: TokenStore) -> None:
    """What would not be read back is not written either; the limit itself is."""
    assert await store.write(KEY, 1, bytes(MAX_RECORD))
    with pytest.raises(StoreError, match="over 64 KiB"):
        await store.write(KEY, 2, bytes(MAX_RECORD + 1))
    assert await store.read(KEY) == (1, bytes(MAX_RECORD))


async def test_a_closed_store_says_so(store: TokenStore) -> None:
    """After closing, twice even, every call is a StoreError."""
    await store.write(KEY, 1, b"data")
    await store.aclose()
    await store.aclose()
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: store.read(KEY),
        lambda: store.write(KEY, 2, b"data"),
        lambda: store.delete(KEY),
    ]
    for call in calls:
        with pytest.raises(StoreError, match="closed"):
            await call()


async def test_sqlite_outlives_its_process(tmp_path: Path) -> None:
    """A record is there after a restart."""
    for generation in (1, 2):
        store = SqliteStore(tmp_path)
        assert (await store.read(KEY) or (0, b""))[0] == generation - 1
        await store.write(KEY, generation, b"data")
        await store.aclose()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def test_sqlite_files_are_ours_alone(tmp_path: Path) -> None:
    """Nobody else can read the database or what SQLite puts beside it, whatever the umask."""
    directory = tmp_path / "a" / "state"
    store = SqliteStore(directory)
    umask = os.umask(0)
    try:
        await store.write(KEY, 1, b"data")
    finally:
        os.umask(umask)
    modes = {path.name: mode(path) for path in directory.iterdir()}
    await store.aclose()
    assert modes == {"store.db": 0o600, "store.db-wal": 0o600, "store.db-shm": 0o600}
    assert mode(directory) == 0o700


async def test_an_open_sqlite_file_is_closed_to_others(tmp_path: Path, sqlite: SqliteStore) -> None:
    """A database that others could read is taken away from them."""
    (tmp_path / "store.db").touch(0o644)
    await sqlite.write(KEY, 1, b"data")
    assert mode(tmp_path / "store.db") == 0o600


async def test_sqlite_stays_off_the_event_loop(sqlite: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow disk does not stop requests: the database is opened and used in one thread of its own."""
    connect = sqlite3.connect
    used: list[threading.Thread] = []

    def noted(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        used.append(threading.current_thread())
        connection: sqlite3.Connection = connect(*args, **kwargs)
        return connection

    monkeypatch.setattr(sqlite3, "connect", noted)
    await asyncio.gather(*(sqlite.write(KEY, generation, b"data") for generation in range(1, 20)))
    assert len(used) == 1
    assert used[0] is not threading.current_thread()


async def test_sqlite_is_safe_against_power_cuts(sqlite: SqliteStore) -> None:
    """A rotated refresh token is on the disk when the write returns, and readers do not stop writers."""
    await sqlite.write(KEY, 1, b"data")
    assert await sqlite._run(lambda connection: connection.execute("PRAGMA synchronous").fetchone()) == (2,)
    assert await sqlite._run(lambda connection: connection.execute("PRAGMA journal_mode").fetchone()) == ("wal",)


async def test_two_processes_share_a_sqlite_file(tmp_path: Path) -> None:
    """Compare and set holds between two that have the same file open."""
    one, two = SqliteStore(tmp_path), SqliteStore(tmp_path)
    for generation in range(1, 20):
        won = await asyncio.gather(*(store.write(KEY, generation, b"data") for store in (one, two, one, two)))
        assert won.count(True) == 1
    assert await two.write(KEY, 19, b"late") is False
    await one.aclose()
    await two.aclose()


async def test_a_locked_sqlite_file_is_trouble_that_ends(tmp_path: Path, sqlite: SqliteStore) -> None:
    """Another process that holds the lock too long is a StoreError; afterwards all is well."""
    await sqlite.write(KEY, 1, b"data")
    other = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match=r"store\.db: database is locked"):
        await sqlite.write(KEY, 2, b"data")
    assert await sqlite.read(KEY) == (1, b"data")
    other.execute("ROLLBACK")
    other.close()
    assert await sqlite.write(KEY, 2, b"data")


@pytest.mark.parametrize("fresh", [True, False])
async def test_a_lock_that_ends_in_time_is_waited_for(tmp_path: Path, *, fresh: bool) -> None:
    """A writer that is quick only delays, even one that creates the file at the same moment."""
    store = SqliteStore(tmp_path)
    if not fresh:
        await store.write(KEY, 1, b"data")
    other = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    late = asyncio.create_task(store.write(KEY, 2, b"data"))
    await asyncio.sleep(0.005)
    assert not late.done()
    other.execute("ROLLBACK")
    other.close()
    assert await late
    assert await store._run(lambda connection: connection.execute("PRAGMA journal_mode").fetchone()) == ("wal",)
    await store.aclose()


async def test_a_closed_sqlite_store_leaves_nothing_behind(tmp_path: Path) -> None:
    """Its thread ends with it, and what SQLite put beside the file is gone."""
    before = set(threading.enumerate())
    store = SqliteStore(tmp_path)
    await store.write(KEY, 1, b"data")
    (thread,) = set(threading.enumerate()) - before
    await store.aclose()
    thread.join(5)
    assert not thread.is_alive()
    assert [path.name for path in tmp_path.iterdir()] == ["store.db"]


async def test_a_damaged_sqlite_file_is_left_alone(tmp_path: Path, sqlite: SqliteStore) -> None:
    """A file that is no database is a clear error and stays as it is; once it is gone, the store works."""
    path = tmp_path / "store.db"
    path.write_bytes(b"no database" * 1000)
    for call in (sqlite.read(KEY), sqlite.write(KEY, 1, b"data"), sqlite.delete(KEY)):
        with pytest.raises(StoreError, match=r"store\.db: file is not a database"):
            await call
    assert path.read_bytes() == b"no database" * 1000
    path.unlink()
    assert await sqlite.write(KEY, 1, b"data")


async def test_a_sqlite_place_that_cannot_be_is_an_error(tmp_path: Path) -> None:
    """A file where the directory should be is a StoreError, not a crash."""
    (tmp_path / "file").touch()
    store = SqliteStore(tmp_path / "file")
    with pytest.raises(StoreError, match="exists"):
        await store.read(KEY)
    await store.aclose()


async def test_a_full_disk_is_trouble_that_ends(sqlite: SqliteStore) -> None:
    """A database that cannot grow keeps what it has, and works again when it can."""
    await sqlite.write(KEY, 1, b"data")
    await sqlite._run(lambda connection: connection.execute("PRAGMA max_page_count = 4").fetchone())
    with pytest.raises(StoreError, match="full"):
        await sqlite.write(KEY, 2, bytes(MAX_RECORD))
    assert await sqlite.read(KEY) == (1, b"data")
    assert await sqlite.write(KEY, 2, bytes(MAX_RECORD))


async def plant(store: SqliteStore, generation: object, sealed: object) -> None:
    """Put any values into the row of KEY, as a stranger with access to the file could."""
    await store._run(
        lambda connection: connection.execute("REPLACE INTO token VALUES (?, ?, ?)", (KEY, generation, sealed))
    )


@pytest.mark.parametrize("sealed", [bytes(MAX_RECORD + 1), bytes(10 << 20), "text", 7, 1.5])
async def test_a_planted_record_is_no_record_but_counts(sqlite: SqliteStore, sealed: object) -> None:
    """A huge value, or one of a wrong type, is not handed on; its generation still bounds what may be written."""
    await plant(sqlite, 5, sealed)
    assert await sqlite.read(KEY) == (5, b"")
    assert await sqlite.write(KEY, 5, b"data") is False
    assert await sqlite.write(KEY, 6, b"data") is True
    assert await sqlite.read(KEY) == (6, b"data")


@pytest.mark.parametrize("generation", ["many", b"9", 2.5, 0, -1, MAX_GENERATION + 1])
async def test_a_planted_generation_does_not_count(sqlite: SqliteStore, generation: object) -> None:
    """A number no credential can reach would lock everybody out: such a row is a miss and is written over."""
    await plant(sqlite, generation, b"data")
    assert await sqlite.read(KEY) is None
    assert await sqlite.write(KEY, 1, b"new") is True
    assert await sqlite.read(KEY) == (1, b"new")


async def test_the_highest_generation_counts(sqlite: SqliteStore) -> None:
    """The bound itself is still a generation."""
    assert await sqlite.write(KEY, MAX_GENERATION, b"data")
    assert await sqlite.read(KEY) == (MAX_GENERATION, b"data")
    assert await sqlite.write(KEY, 1, b"old") is False


async def test_cancelled_calls_do_not_mix_answers(sqlite: SqliteStore) -> None:
    """Clients that leave in the middle of a read never make another one get the wrong record."""
    keys = [store_key(str(number)) for number in range(10)]
    for number, key in enumerate(keys):
        await sqlite.write(key, number + 1, key.encode())
    for _ in range(20):
        reads = [asyncio.create_task(sqlite.read(key)) for key in keys]
        await asyncio.sleep(0)
        for read in reads[::2]:
            read.cancel()
        for number in range(1, 10, 2):
            assert await reads[number] == (number + 1, keys[number].encode())
