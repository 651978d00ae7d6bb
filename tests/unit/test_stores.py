"""The token stores: the same promises of all, and what SQLite adds to them."""

import asyncio
import hashlib
import os
import sqlite3
import stat
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sidecar.clock import SystemClock
from sidecar.errors import StoreError
from sidecar.tokens.store import MAX_GENERATION, MAX_RECORD, TokenStore, store_key
from sidecar.tokens.stores.bounds import MAX_INSTANCES, MAX_NAME
from sidecar.tokens.stores.memory import MemoryStore
from sidecar.tokens.stores.outage import Outage
from sidecar.tokens.stores.redis_store import RedisStore
from sidecar.tokens.stores.sqlite import SqliteStore
from tests.canary import canary
from tests.redis_servers import Server, redis_of_session, redis_server
from tests.waiting import PATIENCE

__all__ = ["redis_of_session", "redis_server"]

KEY = store_key("one")
LEASE = store_key("one", "lease")

# Takes each of many leases once, as fast as it can, and says which it got.
CONTENDER = """
import asyncio, sys
from pathlib import Path
from sidecar.tokens.stores.redis_store import RedisStore
from sidecar.tokens.stores.sqlite import SqliteStore

async def main(place, owner):
    store = RedisStore(place, timeout=5) if place.startswith("redis:") else SqliteStore(Path(place), busy_timeout=20)
    await store.acquire("start", owner, 60)
    print("ready", flush=True)
    sys.stdin.readline()
    print([number for number in range(50) if await store.acquire(f"lease-{number}", owner, 60)], flush=True)
    await store.aclose()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture(params=["memory", "sqlite", "redis"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[TokenStore]:
    opened: TokenStore = MemoryStore()
    if request.param == "sqlite":
        opened = SqliteStore(tmp_path / "state")
    elif request.param == "redis":
        opened = RedisStore(request.getfixturevalue("redis_server").url, timeout=5.0)
    yield opened
    await opened.aclose()


@pytest.fixture(params=["sqlite", "redis"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a store is that several processes can share."""
    if request.param == "sqlite":
        return str(tmp_path / "state")
    server: Server = request.getfixturevalue("redis_server")
    return server.url


@dataclass
class SetClock(SystemClock):
    """The machine's clock with a hand on it: its wall time, and its monotonic one, only move when told to."""

    wall: float = 1.8e9
    ticks: float = 0.0

    def now(self) -> float:
        return self.wall

    def monotonic(self) -> float:
        return self.ticks


@pytest.fixture
async def sqlite(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    opened = SqliteStore(tmp_path, busy_timeout=0.01)
    yield opened
    await opened.aclose()


def test_a_store_key_shows_nothing() -> None:
    """A record's name is a short hash behind our prefix: the same for the same credential, and no client id."""
    identity = canary("client")
    named = "{" + hashlib.sha256(identity.encode()).hexdigest()[:32] + "}"
    assert store_key(identity) == f"auth-sidecar:token:{named}"
    assert store_key(identity, "lease") == f"auth-sidecar:lease:{named}"
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
        lambda: store.replace(KEY, 1, b"data"),
        lambda: store.delete(KEY),
        lambda: store.acquire(LEASE, "a", 10),
        lambda: store.release(LEASE, "a"),
        lambda: store.announce("a", b"data", 10),
        store.announced,
    ]
    for call in calls:
        with pytest.raises(StoreError, match="closed"):
            await call()


async def test_only_the_same_generation_is_replaced(store: TokenStore) -> None:
    """A record sealed anew takes the place of itself, never of another, and none comes from nothing."""
    assert await store.replace(KEY, 5, b"anew") is False
    assert await store.read(KEY) is None
    await store.write(KEY, 5, b"sealed")
    assert await store.replace(KEY, 4, b"older") is False
    assert await store.replace(KEY, 6, b"newer") is False
    assert await store.read(KEY) == (5, b"sealed")
    assert await store.replace(KEY, 5, b"anew") is True
    assert await store.read(KEY) == (5, b"anew")
    with pytest.raises(StoreError, match="over 64 KiB"):
        await store.replace(KEY, 5, bytes(MAX_RECORD + 1))


async def test_the_highest_generation_is_one(store: TokenStore) -> None:
    """Numbers that floating point cannot tell apart are told apart."""
    assert await store.write(KEY, MAX_GENERATION - 1, b"data")
    assert await store.write(KEY, MAX_GENERATION, b"data")
    assert await store.read(KEY) == (MAX_GENERATION, b"data")
    assert await store.write(KEY, MAX_GENERATION, b"late") is False


async def test_one_owner_has_a_lease(store: TokenStore) -> None:
    """Of many who want it at once one gets it; it may take it again, the others not; another lease is another."""
    owners = [f"owner-{number}" for number in range(20)]
    won = await asyncio.gather(*(store.acquire(LEASE, owner, 60) for owner in owners))
    assert won.count(True) == 1
    holder = owners[won.index(True)]
    assert [await store.acquire(LEASE, owner, 60) for owner in owners] == [owner == holder for owner in owners]
    assert await store.acquire(store_key("two", "lease"), "owner-x", 60)


async def test_a_lease_that_is_given_back_is_free(store: TokenStore) -> None:
    """Its owner gives it back, nobody else can; giving back what one has not, or nobody has, does no harm."""
    await store.release(LEASE, "a")
    assert await store.acquire(LEASE, "a", 60)
    await store.release(LEASE, "b")
    assert not await store.acquire(LEASE, "b", 60)
    await store.release(LEASE, "a")
    assert await store.acquire(LEASE, "b", 60)
    await store.release(LEASE, "a")
    assert not await store.acquire(LEASE, "a", 60)


async def test_a_lease_ends_by_itself(store: TokenStore) -> None:
    """Whoever stops extending it loses it, not earlier than was agreed; extending it counts from then on."""
    began = asyncio.get_running_loop().time()
    assert await store.acquire(LEASE, "a", 0.05)
    assert await store.acquire(LEASE, "a", 0.5)
    while not await store.acquire(LEASE, "b", 60):
        await asyncio.sleep(0.01)
    assert 0.45 < asyncio.get_running_loop().time() - began < PATIENCE
    assert not await store.acquire(LEASE, "a", 60)


async def test_words_of_instances_are_kept_for_their_time(store: TokenStore) -> None:
    """What each instance left last is there, byte for byte, until its time is over."""
    assert await store.announced() == {}
    await store.announce("a", b"\x00:1\n", 60)
    await store.announce("a", b"9:\xff\x00", 60)
    await store.announce("b ü", b"", 60)
    await store.announce("c", b"short", 1)
    assert await store.announced() == {"a": b"9:\xff\x00", "b ü": b"", "c": b"short"}
    async with asyncio.timeout(PATIENCE):
        while "c" in await store.announced():
            await asyncio.sleep(0.02)
    assert set(await store.announced()) == {"a", "b ü"}


async def test_words_of_instances_are_bounded(store: TokenStore) -> None:
    """A crowd, a long word or a long name is refused; who is known already may go on, and room is made by time."""
    for number in range(MAX_INSTANCES - 1):
        await store.announce(f"i{number}", b"x", 60)
    await store.announce("short", b"x", 60)
    with pytest.raises(StoreError, match="1000 instances"):
        await store.announce("one more", b"x", 60)
    await store.announce("i7", b"again", 60)
    assert (await store.announced())["i7"] == b"again"
    await store.announce("short", b"x", 0.1)
    async with asyncio.timeout(PATIENCE):
        while "short" in await store.announced():
            await asyncio.sleep(0.02)
    await store.announce("one more", b"x", 60)
    assert len(await store.announced()) == MAX_INSTANCES
    with pytest.raises(StoreError, match="over 64 KiB"):
        await store.announce("i7", bytes(MAX_RECORD + 1), 60)
    for name in ("", "n" * (MAX_NAME + 1)):
        with pytest.raises(StoreError, match="name of an instance"):
            await store.announce(name, b"x", 60)


async def test_a_store_of_this_machine_has_its_time(store: TokenStore) -> None:
    """No offset is made up where there is none."""
    await store.write(KEY, 1, b"data")
    assert store.offset == 0.0


def test_processes_share_their_leases(place: str) -> None:
    """Each of many leases goes to exactly one of several processes that all want it."""
    contenders = [
        subprocess.Popen(
            [sys.executable, "-c", CONTENDER, place, f"owner-{number}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    try:
        for contender in contenders:
            assert contender.stdout is not None
            assert contender.stdout.readline() == "ready\n"
        for contender in contenders:
            assert contender.stdin is not None
            contender.stdin.write("go\n")
            contender.stdin.flush()
        won = [contender.communicate(timeout=60)[0] for contender in contenders]
    finally:
        for contender in contenders:
            contender.kill()
            contender.wait()
    taken = Counter(int(number) for line in won for number in line.strip("[]\n").split(", ") if number)
    assert taken == Counter(range(50))


async def test_memory_counts_by_the_clock_it_is_given() -> None:
    """A lease and a word end when that clock says so."""
    clock = SetClock()
    store = MemoryStore(clock)
    await store.acquire(LEASE, "a", 10)
    await store.announce("a", b"x", 10)
    clock.ticks = 9.9
    assert not await store.acquire(LEASE, "b", 10)
    assert await store.announced() == {"a": b"x"}
    clock.ticks = 10
    assert await store.acquire(LEASE, "b", 10)
    assert await store.announced() == {}


@pytest.mark.parametrize(("step", "free"), [(9.9, False), (10.0, True), (-5.0, False), (-3600.0, True), (3600.0, True)])
async def test_a_lease_in_sqlite_outlasts_no_clock(tmp_path: Path, step: float, *, free: bool) -> None:
    """A clock that is set back an hour does not lock everybody out for an hour; one that is corrected does no harm."""
    clock = SetClock()
    one, two = SqliteStore(tmp_path, clock=clock), SqliteStore(tmp_path, clock=clock)
    await one.acquire(LEASE, "a", 10)
    await one.announce("a", b"x", 10)
    clock.wall += step
    assert await two.announced() == ({} if free else {"a": b"x"})
    assert await two.acquire(LEASE, "b", 10) is free
    await one.aclose()
    await two.aclose()


@pytest.mark.parametrize("ends", ["'later'", "x'00'", "1e300", "-1"])
async def test_a_planted_lease_in_sqlite_locks_nobody_out(sqlite: SqliteStore, ends: str) -> None:
    """A time that no call of ours writes is over."""
    await sqlite._run(lambda connection: connection.execute(f"INSERT INTO lease VALUES ('{LEASE}', 'x', 10, {ends})"))
    assert await sqlite.acquire(LEASE, "a", 10)


async def test_a_lease_in_sqlite_leaves_writes_as_durable_as_they_were(sqlite: SqliteStore) -> None:
    """A lease, its end and a word need not outlast a power cut; a record written after them does, as before."""
    await sqlite.acquire("lease", "me", 10)
    await sqlite.release("lease", "me")
    await sqlite.announce("me", b"word", 10)
    found = await sqlite._run(lambda connection: connection.execute("PRAGMA synchronous").fetchone())
    assert found == (2,)  # FULL


async def test_planted_words_in_sqlite_are_not_handed_on(sqlite: SqliteStore) -> None:
    """What is too large or no record stays where it is."""
    now = SystemClock().now()
    await sqlite.announce("a", b"x", 60)
    for name, sealed in (("large", bytes(MAX_RECORD + 1)), ("text", "x"), ("n" * 300, b"x"), (b"bytes", b"x")):
        row = (name, sealed, 60, now + 30)
        await sqlite._run(
            lambda connection, row=row: connection.execute("INSERT INTO instance VALUES (?, ?, ?, ?)", row)
        )
    assert await sqlite.announced() == {"a": b"x"}


async def test_an_older_sqlite_file_is_taken_over(tmp_path: Path) -> None:
    """A database from before there were leases keeps its records and gets what it lacks."""
    old = sqlite3.connect(tmp_path / "store.db")
    old.execute("CREATE TABLE token (key TEXT PRIMARY KEY, generation INTEGER NOT NULL, sealed BLOB NOT NULL)")
    old.execute("INSERT INTO token VALUES (?, 7, x'01')", (KEY,))
    old.commit()
    old.close()
    store = SqliteStore(tmp_path)
    assert await store.read(KEY) == (7, b"\x01")
    assert await store.acquire(LEASE, "a", 10)
    await store.announce("a", b"x", 10)
    await store.aclose()


async def test_a_lease_in_a_locked_sqlite_file_is_trouble(tmp_path: Path, sqlite: SqliteStore) -> None:
    """Whether somebody else has it is not known then, so it is neither yes nor no."""
    await sqlite.write(KEY, 1, b"data")
    other = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    for call in (sqlite.acquire(LEASE, "a", 10), sqlite.release(LEASE, "a"), sqlite.announce("a", b"x", 10)):
        with pytest.raises(StoreError, match="database is locked"):
            await call
    other.execute("ROLLBACK")
    other.close()
    assert await sqlite.acquire(LEASE, "a", 10)


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


def test_an_outage_is_probed_ever_more_seldom() -> None:
    """Two failures in a row open it for 1 s; one probe at a time, and each that fails doubles the pause to 30 s."""
    clock = SetClock()
    outage = Outage(clock)
    for failures in (1, 2):
        tickets = [outage.enter() for _ in range(failures)]
        assert None not in tickets
        for ticket in tickets:
            outage.failed(ticket or 0)
        if failures == 1:
            assert not outage.open
            outage.succeeded(outage.enter() or 0)
    for pause in (1, 2, 4, 8, 16, 30, 30):
        assert (outage.open, outage.left) == (True, pause)
        clock.ticks += pause - 1 / 128
        assert outage.enter() is None
        clock.ticks += 1 / 128
        probe = outage.enter()
        assert probe is not None
        assert outage.enter() is None
        outage.failed(probe)
    clock.ticks += 30
    probe = outage.enter()
    assert probe is not None
    outage.succeeded(probe)
    assert (outage.open, outage.left) == (False, 0.0)
    assert outage.enter() is not None


def test_calls_from_before_an_outage_do_not_count() -> None:
    """Many that fail together are one failure too many, not many pauses; a late answer is no probe."""
    clock = SetClock()
    outage = Outage(clock)
    tickets = [outage.enter() or 0 for _ in range(50)]
    for ticket in tickets[:-1]:
        outage.failed(ticket)
    assert outage.left == 1
    outage.succeeded(tickets[-1])
    assert outage.open
    clock.ticks = 1
    probe = outage.enter()
    assert probe is not None
    outage.failed(tickets[0])
    outage.succeeded(probe)
    assert not outage.open
    outage.failed(probe)
    outage.failed(probe)
    outage.failed(probe)
    assert not outage.open
