"""The token stores: the same promises of all, and what SQLite adds to them."""

import asyncio
import contextlib
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
from sidecar.tokens.memory import MemoryStore
from sidecar.tokens.redis.outage import Outage
from sidecar.tokens.redis.store import RedisStore
from sidecar.tokens.sqlite import SqliteStore
from sidecar.tokens.store import (
    MAX_GENERATION,
    MAX_INSTANCES,
    MAX_NAME,
    MAX_RECORD,
    Stored,
    TokenStore,
    lease_key,
    store_key,
)
from tests.canary import canary
from tests.redis_servers import Server, redis_of_session, redis_server
from tests.waiting import PATIENCE

__all__ = ["redis_of_session", "redis_server"]

KEY = store_key("one")
OTHER = store_key("two")

# Takes each of many leases once, as fast as it can, and says which it got.
CONTENDER = """
import asyncio, sys
from pathlib import Path
from sidecar.tokens.redis.store import RedisStore
from sidecar.tokens.sqlite import SqliteStore
from sidecar.tokens.store import store_key

async def main(place, owner):
    store = RedisStore(place, timeout=5) if place.startswith("redis:") else SqliteStore(Path(place), busy_timeout=20)
    await store.take(store_key("start"), owner, 60)
    print("ready", flush=True)
    sys.stdin.readline()
    print([number for number in range(50) if (await store.take(store_key(str(number)), owner, 60))[0]], flush=True)
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
    assert lease_key(store_key(identity)) == f"auth-sidecar:lease:{named}"
    assert store_key(identity) != store_key(identity + "x")


async def took(store: TokenStore, owner: str, ttl: float = 60, key: str = KEY) -> bool:
    """Return whether *owner* has the lease now."""
    return (await store.take(key, owner, ttl))[0]


async def test_what_is_written_is_read(store: TokenStore) -> None:
    """A record comes back with its generation, also with a lease; one that is not there is 0, and empty."""
    assert await store.read(KEY) == Stored(0, b"")
    assert await store.take(KEY, "a", 60) == (True, Stored())
    assert await store.write(KEY, b"\x00sealed\xff", 3, after=0)
    assert await store.read(KEY) == Stored(3, b"\x00sealed\xff")
    assert await store.take(KEY, "a", 60) == (True, Stored(3, b"\x00sealed\xff"))
    assert await store.take(KEY, "b", 60) == (False, Stored(3, b"\x00sealed\xff"))
    assert await store.read(OTHER) == Stored()


@pytest.mark.parametrize("after", [0, 1, 4, 6, 50, -1, MAX_GENERATION])
async def test_only_the_generation_that_is_there_is_written_over(store: TokenStore, after: int) -> None:
    """Whoever has not seen what is there changes nothing, not even the lease that it wants to give back."""
    await store.write(KEY, b"newest", 5, after=0)
    await store.take(KEY, "a", 60)
    assert await store.write(KEY, b"late", 7, after=after, release="a") is False
    assert await store.take(KEY, "b", 60) == (False, Stored(5, b"newest"))


@pytest.mark.parametrize("generation", [4, 5, 6])
async def test_who_has_seen_it_writes_over_it(store: TokenStore, generation: int) -> None:
    """With a newer record, with one of the same generation, sealed anew, or with a lower one in place of damage."""
    await store.write(KEY, b"old", 5, after=0)
    assert await store.write(KEY, b"new", generation, after=5) is True
    assert await store.read(KEY) == Stored(generation, b"new")


@pytest.mark.parametrize("after", [1, 5])
async def test_a_record_that_is_gone_is_not_written_over(store: TokenStore, after: int) -> None:
    """A store that came back empty is filled by whoever knows that it is empty."""
    assert await store.write(KEY, b"data", after + 1, after=after) is False
    assert await store.read(KEY) == Stored()


@pytest.mark.parametrize(("owner", "ends"), [("a", True), ("b", False), ("", False)])
async def test_a_write_ends_the_lease_of_its_owner(store: TokenStore, owner: str, *, ends: bool) -> None:
    """In the same step; a lease that is another's stays, and so does that of another record."""
    await store.take(KEY, "a", 60)
    await store.take(OTHER, "a", 60)
    assert await store.write(KEY, b"data", 1, after=0, release=owner)
    assert await took(store, "c") is ends
    assert not await took(store, "c", key=OTHER)


async def test_one_writer_wins(store: TokenStore) -> None:
    """Of many who write over the same at once, exactly one is told that it wrote, and its record is there."""
    for after in (0, 1):
        writes = (store.write(KEY, b"%d" % number, after + 1, after=after) for number in range(50))
        won = await asyncio.gather(*writes)
        assert won.count(True) == 1
        assert await store.read(KEY) == Stored(after + 1, b"%d" % won.index(True))


async def test_a_record_too_large_is_not_written(store: TokenStore) -> None:
    """What would not be read back is not written either; the limit itself is."""
    assert await store.write(KEY, bytes(MAX_RECORD), 1, after=0)
    with pytest.raises(StoreError, match="over 64 KiB"):
        await store.write(KEY, bytes(MAX_RECORD + 1), 2, after=1)
    assert await store.read(KEY) == Stored(1, bytes(MAX_RECORD))


async def test_a_closed_store_says_so(store: TokenStore) -> None:
    """After closing, twice even, every call is a StoreError."""
    await store.write(KEY, b"data", 1, after=0)
    await store.aclose()
    await store.aclose()
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: store.read(KEY),
        lambda: store.take(KEY, "a", 10),
        lambda: store.write(KEY, b"data", 2, after=1),
        lambda: store.release(KEY, "a"),
        lambda: store.announce("a", b"data", 10),
        store.announced,
    ]
    for call in calls:
        with pytest.raises(StoreError, match="closed"):
            await call()


async def test_the_highest_generation_is_one(store: TokenStore) -> None:
    """Numbers that floating point cannot tell apart are told apart."""
    assert await store.write(KEY, b"data", MAX_GENERATION - 1, after=0)
    assert await store.write(KEY, b"late", MAX_GENERATION, after=MAX_GENERATION) is False
    assert await store.write(KEY, b"data", MAX_GENERATION, after=MAX_GENERATION - 1)
    assert await store.read(KEY) == Stored(MAX_GENERATION, b"data")
    assert await store.write(KEY, b"late", 1, after=0) is False


async def test_one_owner_has_a_lease(store: TokenStore) -> None:
    """Of many who want it at once one gets it; it may take it again, the others not; another lease is another."""
    owners = [f"owner-{number}" for number in range(20)]
    won = await asyncio.gather(*(took(store, owner) for owner in owners))
    assert won.count(True) == 1
    holder = owners[won.index(True)]
    assert [await took(store, owner) for owner in owners] == [owner == holder for owner in owners]
    assert await took(store, "owner-x", key=OTHER)


async def test_a_lease_that_is_given_back_is_free(store: TokenStore) -> None:
    """Its owner gives it back, nobody else can; giving back what one has not, or nobody has, does no harm."""
    await store.release(KEY, "a")
    assert await took(store, "a")
    await store.release(KEY, "b")
    assert not await took(store, "b")
    await store.release(KEY, "a")
    assert await took(store, "b")
    await store.release(KEY, "a")
    assert not await took(store, "a")


async def test_a_lease_ends_by_itself(store: TokenStore) -> None:
    """Whoever stops extending it loses it, not earlier than was agreed; extending it counts from then on."""
    began = asyncio.get_running_loop().time()
    assert await took(store, "a", 0.05)
    assert await took(store, "a", 0.5)
    while not await took(store, "b"):
        await asyncio.sleep(0.01)
    assert 0.45 < asyncio.get_running_loop().time() - began < PATIENCE
    assert not await took(store, "a")


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
    await store.write(KEY, b"data", 1, after=0)
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
    await took(store, "a", 10)
    await store.announce("a", b"x", 10)
    clock.ticks = 9.9
    assert not await took(store, "b", 10)
    assert await store.announced() == {"a": b"x"}
    clock.ticks = 10
    assert await took(store, "b", 10)
    assert await store.announced() == {}


@pytest.mark.parametrize(("step", "free"), [(9.9, False), (10.0, True), (-5.0, False), (-3600.0, True), (3600.0, True)])
async def test_a_lease_in_sqlite_outlasts_no_clock(tmp_path: Path, step: float, *, free: bool) -> None:
    """A clock that is set back an hour does not lock everybody out for an hour; one that is corrected does no harm."""
    clock = SetClock()
    one, two = SqliteStore(tmp_path, clock=clock), SqliteStore(tmp_path, clock=clock)
    await took(one, "a", 10)
    await one.announce("a", b"x", 10)
    clock.wall += step
    assert await two.announced() == ({} if free else {"a": b"x"})
    assert await took(two, "b", 10) is free
    await one.aclose()
    await two.aclose()


@pytest.mark.parametrize("ends", ["'later'", "x'00'", "1e300", "-1"])
async def test_a_planted_lease_in_sqlite_locks_nobody_out(sqlite: SqliteStore, ends: str) -> None:
    """A time that no call of ours writes is over."""
    await sqlite._run(
        lambda connection: connection.execute(f"INSERT INTO lease VALUES ('{lease_key(KEY)}', 'x', 10, {ends})")
    )
    assert await took(sqlite, "a", 10)


async def test_only_a_record_in_sqlite_waits_for_the_disk(sqlite: SqliteStore) -> None:
    """A rotated refresh token outlasts a power cut; a lease, its end and a word need not."""

    async def synchronous() -> int:
        found: int = await sqlite._run(lambda connection: connection.execute("PRAGMA synchronous").fetchone()[0])
        return found

    normal, full = 1, 2
    calls = (sqlite.take(KEY, "a", 10), sqlite.announce("a", b"x", 10), sqlite.release(KEY, "b"))
    for generation, call in enumerate(calls, start=1):
        await call
        assert await synchronous() == normal
        await sqlite.write(KEY, b"data", generation, after=generation - 1, release="a")
        assert await synchronous() == full
    assert await sqlite._run(lambda connection: connection.execute("PRAGMA journal_mode").fetchone()) == ("wal",)


async def traced(sqlite: SqliteStore, seen: Callable[[str], None]) -> None:
    """Have *seen* called in the store's thread with each statement before it runs."""
    await sqlite.read(KEY)
    await sqlite._run(lambda connection: connection.set_trace_callback(seen))


async def test_a_lease_in_sqlite_begins_when_the_file_is_free(tmp_path: Path) -> None:
    """Not when it was asked for: who waited for another's lock would have a lease that is over already."""
    clock = SetClock()
    store, other = SqliteStore(tmp_path, busy_timeout=PATIENCE, clock=clock), SqliteStore(tmp_path, clock=clock)
    began = threading.Event()
    await traced(store, lambda statement: began.set() if "synchronous" not in statement else None)
    holder = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    taken = asyncio.create_task(store.take(KEY, "a", 10))
    assert await asyncio.to_thread(began.wait, PATIENCE)
    clock.wall += 100
    holder.execute("ROLLBACK")
    holder.close()
    assert await taken == (True, Stored())
    clock.wall += 9.9
    assert not await took(other, "b", 10)
    await store.aclose()
    await other.aclose()


@pytest.mark.parametrize("call", ["take", "write", "announce"])
async def test_nobody_comes_between_the_statements_of_a_step(tmp_path: Path, sqlite: SqliteStore, call: str) -> None:
    """Another process writes before the whole step or after it, and sees nothing of it until it is done."""
    await sqlite.write(KEY, b"data", 1, after=0)
    await sqlite.take(KEY, "a", 60)
    other = sqlite3.connect(tmp_path / "store.db", timeout=0, isolation_level=None, check_same_thread=False)
    tables = "(SELECT * FROM token), (SELECT owner, ends FROM lease), (SELECT count(*) FROM instance)"
    before = other.execute(f"SELECT * FROM {tables}").fetchall()
    between: list[str] = []

    def seen(statement: str) -> None:
        if statement.startswith(("BEGIN", "PRAGMA")):
            return
        assert other.execute(f"SELECT * FROM {tables}").fetchall() == before
        try:
            other.execute("UPDATE token SET generation = 7")
        except sqlite3.OperationalError as error:
            between.append(str(error))

    await traced(sqlite, seen)
    await {
        "take": lambda: sqlite.take(KEY, "a", 70),
        "write": lambda: sqlite.write(KEY, b"data", 2, after=1, release="a"),
        "announce": lambda: sqlite.announce("a", b"x", 60),
    }[call]()
    assert set(between) == {"database is locked"}
    assert len(between) >= 3
    assert other.execute(f"SELECT * FROM {tables}").fetchall() != before
    other.close()


async def test_a_step_that_fails_leaves_nothing_behind(sqlite: SqliteStore) -> None:
    """A record that could not be written does not end the lease, and the other way round."""
    await sqlite.write(KEY, b"data", 1, after=0)
    await sqlite.take(KEY, "a", 60)
    await sqlite._run(
        lambda connection: connection.execute(
            "CREATE TRIGGER no BEFORE DELETE ON lease BEGIN SELECT RAISE(FAIL, 'not this'); END"
        )
    )
    with pytest.raises(StoreError, match="not this"):
        await sqlite.write(KEY, b"data", 2, after=1, release="a")
    with pytest.raises(OverflowError):
        await sqlite.write(KEY, b"data", 1 << 70, after=1)
    assert await sqlite.take(KEY, "b", 60) == (False, Stored(1, b"data"))


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
    assert await store.read(KEY) == Stored(7, b"\x01")
    assert await took(store, "a", 10)
    await store.announce("a", b"x", 10)
    await store.aclose()


async def test_processes_of_the_release_before_keep_to_the_lease_in_sqlite(tmp_path: Path, sqlite: SqliteStore) -> None:
    """The lease and the record are rows as ever, under the names that they always had."""
    assert await took(sqlite, "a", 60)
    with contextlib.closing(sqlite3.connect(tmp_path / "store.db", isolation_level=None)) as other:
        lease = "SELECT key, owner, ttl, ends - ? BETWEEN 0 AND 60 FROM lease"
        now = SystemClock().now()
        assert other.execute(lease, (now,)).fetchall() == [(KEY.replace("token", "lease"), "a", 60, 1)]
        other.execute("UPDATE lease SET owner = 'b', ttl = 60, ends = ?", (now + 60,))
        assert not await took(sqlite, "a", 10)
        await sqlite.write(KEY, b"x", 7, after=0, release="b")
        assert other.execute("SELECT * FROM lease").fetchall() == []
        assert other.execute("SELECT * FROM token").fetchall() == [(KEY, 7, b"x")]


async def test_a_lease_in_a_locked_sqlite_file_is_trouble(tmp_path: Path, sqlite: SqliteStore) -> None:
    """Whether somebody else has it is not known then, so it is neither yes nor no."""
    await sqlite.write(KEY, b"data", 1, after=0)
    other = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    for call in (sqlite.take(KEY, "a", 10), sqlite.release(KEY, "a"), sqlite.announce("a", b"x", 10)):
        with pytest.raises(StoreError, match="database is locked"):
            await call
    other.execute("ROLLBACK")
    other.close()
    assert await took(sqlite, "a", 10)


async def test_sqlite_outlives_its_process(tmp_path: Path) -> None:
    """A record is there after a restart."""
    for generation in (1, 2):
        store = SqliteStore(tmp_path)
        assert (await store.read(KEY)).generation == generation - 1
        await store.write(KEY, b"data", generation, after=generation - 1)
        await store.aclose()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def test_sqlite_files_are_ours_alone(tmp_path: Path) -> None:
    """Nobody else can read the database or what SQLite puts beside it, whatever the umask."""
    directory = tmp_path / "a" / "state"
    store = SqliteStore(directory)
    umask = os.umask(0)
    try:
        await store.write(KEY, b"data", 1, after=0)
    finally:
        os.umask(umask)
    modes = {path.name: mode(path) for path in directory.iterdir()}
    await store.aclose()
    assert modes == {"store.db": 0o600, "store.db-wal": 0o600, "store.db-shm": 0o600}
    assert mode(directory) == 0o700


async def filled(directory: Path, *, generation: int = 1) -> Path:
    """Make a store with records that fill some pages, close it, and return its file."""
    store = SqliteStore(directory)
    for number in range(20):
        await store.write(store_key(str(number)), bytes(3000), 1, after=0)
    await store.write(KEY, b"data", generation, after=0)
    await store.aclose()
    return directory / "store.db"


async def test_an_open_sqlite_file_is_closed_to_others(tmp_path: Path, sqlite: SqliteStore) -> None:
    """A database that others could read is taken away from them."""
    path = await filled(tmp_path)
    path.chmod(0o644)
    await sqlite.read(KEY)
    assert mode(path) == 0o600


async def test_sqlite_stays_off_the_event_loop(sqlite: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow disk does not stop requests: the database is opened, once, and used in one thread of its own."""
    connect = sqlite3.connect
    used: list[threading.Thread] = []

    def noted(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        used.append(threading.current_thread())
        connection: sqlite3.Connection = connect(*args, **kwargs)
        return connection

    monkeypatch.setattr(sqlite3, "connect", noted)
    await asyncio.gather(*(sqlite.write(KEY, b"data", after + 1, after=after) for after in range(20)))
    assert len(used) == 2  # to make the file, and to use it
    assert len(set(used)) == 1
    assert used[0] is not threading.current_thread()


async def test_two_processes_share_a_sqlite_file(tmp_path: Path) -> None:
    """Compare and set holds between two that have the same file open."""
    one, two = SqliteStore(tmp_path), SqliteStore(tmp_path)
    for generation in range(1, 20):
        writes = (store.write(KEY, b"data", generation, after=generation - 1) for store in (one, two, one, two))
        assert (await asyncio.gather(*writes)).count(True) == 1
    assert await two.write(KEY, b"late", 19, after=18) is False
    await one.aclose()
    await two.aclose()


async def test_a_locked_sqlite_file_is_trouble_that_ends(tmp_path: Path, sqlite: SqliteStore) -> None:
    """Another process that holds the lock too long is a StoreError; afterwards all is well."""
    await sqlite.write(KEY, b"data", 1, after=0)
    other = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match=r"store\.db: database is locked"):
        await sqlite.write(KEY, b"data", 2, after=1)
    assert await sqlite.read(KEY) == Stored(1, b"data")
    other.execute("ROLLBACK")
    other.close()
    assert await sqlite.write(KEY, b"data", 2, after=1)


async def test_a_lock_that_ends_in_time_is_waited_for(tmp_path: Path) -> None:
    """A writer that is quick only delays."""
    store = SqliteStore(tmp_path, busy_timeout=PATIENCE)
    await store.write(KEY, b"data", 1, after=0)
    began = threading.Event()
    await traced(store, lambda statement: began.set() if "BEGIN" in statement else None)
    other = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    late = asyncio.create_task(store.write(KEY, b"data", 2, after=1))
    assert await asyncio.to_thread(began.wait, PATIENCE)
    assert not late.done()
    other.execute("ROLLBACK")
    other.close()
    assert await late
    await store.aclose()


async def test_those_who_create_the_sqlite_file_at_once_share_it(tmp_path: Path) -> None:
    """No one fails, none writes into a file that only it has, and no draft is left."""
    stores = [SqliteStore(tmp_path / "state", busy_timeout=PATIENCE) for _ in range(8)]
    won = await asyncio.gather(*(store.write(KEY, b"%d" % at, 1, after=0) for at, store in enumerate(stores)))
    assert won.count(True) == 1
    found = {await store.read(KEY) for store in stores}
    assert found == {Stored(1, b"%d" % won.index(True))}
    for store in stores:
        await store.aclose()
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["store.db"]


async def test_a_closed_sqlite_store_leaves_nothing_behind(tmp_path: Path) -> None:
    """Its thread ends with it, and what SQLite put beside the file is gone."""
    before = set(threading.enumerate())
    store = SqliteStore(tmp_path)
    await store.write(KEY, b"data", 1, after=0)
    (thread,) = set(threading.enumerate()) - before
    await store.aclose()
    thread.join(5)
    assert not thread.is_alive()
    assert [path.name for path in tmp_path.iterdir()] == ["store.db"]


def damage(path: Path, how: str) -> None:
    """Do to the file what a disk, a full one or a person does."""
    data = path.read_bytes()
    where = {"header": 0, "first page": 100, "last page": len(data) - 4096}
    if how in where:
        data = data[: where[how]] + b"\xa5" * 64 + data[where[how] + 64 :]
    elif how == "index":  # the key is found in the table no more
        assert data.count(KEY.encode()) == 2
        data = data.replace(KEY.encode(), store_key("x").encode(), 1)
    elif how == "another":
        path.unlink()
        with contextlib.closing(sqlite3.connect(path)) as other:
            other.execute("CREATE TABLE something (value)")
        return
    else:
        whole = {"emptied": b"", "no database": b"no database" * 1000}
        data = whole[how] if how in whole else data[: int(how)]
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("how", "opened"),
    [(how, opened) for how in ("emptied", "1", "4096", "20000", "no database", "another") for opened in (False, True)]
    # What is read already is right; it is looked at anew when the file is opened.
    + [(how, False) for how in ("100", "header", "first page", "last page", "index")],
)
async def test_a_damaged_sqlite_file_is_no_empty_store(tmp_path: Path, how: str, *, opened: bool) -> None:
    """It is an error for every call, also when it was open, and stays as it is; once it is gone, all is well."""
    path = await filled(tmp_path)
    store = SqliteStore(tmp_path)
    if opened:
        await store.read(KEY)
    damage(path, how)
    found = path.read_bytes()
    for call in (store.read(KEY), store.write(KEY, b"x", 2, after=0), store.take(KEY, "a", 9), store.announced()):
        with pytest.raises(StoreError, match=r"store\.db: (damaged|.*malformed|.*not a database|emptied, or no store)"):
            await call
    assert path.read_bytes() == found
    path.unlink()
    assert await store.read(KEY) == Stored()
    assert await store.write(KEY, b"data", 1, after=0)
    await store.aclose()


def leave(directory: Path, *, generation: int) -> None:
    """Write a generation from a process that is killed before it closes the file: its log of changes stays."""
    script = f"""
import asyncio, os
from pathlib import Path
from sidecar.tokens.sqlite import SqliteStore

async def main():
    store = SqliteStore(Path({str(directory)!r}))
    found = await store.read({KEY!r})
    assert await store.write({KEY!r}, b"left", {generation}, after=found.generation)
    os._exit(9)

asyncio.run(main())
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 9
    assert (directory / "store.db-wal").stat().st_size


async def test_a_killed_process_loses_no_record(tmp_path: Path) -> None:
    """What it wrote is in the log beside the file."""
    leave(tmp_path, generation=1)
    store = SqliteStore(tmp_path)
    assert await store.read(KEY) == Stored(1, b"left")
    await store.aclose()


async def test_a_log_beside_an_emptied_sqlite_file_stays(tmp_path: Path) -> None:
    """What is left of the records is the operator's to save; SQLite alone would remove it."""
    leave(tmp_path, generation=1)
    log = (tmp_path / "store.db-wal").read_bytes()
    os.truncate(tmp_path / "store.db", 0)
    store = SqliteStore(tmp_path)
    with pytest.raises(StoreError, match="emptied"):
        await store.read(KEY)
    await store.aclose()
    assert (tmp_path / "store.db-wal").read_bytes() == log


async def test_a_log_without_its_sqlite_file_is_not_made_another_ones(tmp_path: Path) -> None:
    """Who removes the file wants to begin anew, though a killed process has left its log beside it."""
    leave(tmp_path, generation=1)
    (tmp_path / "store.db").unlink()
    store = SqliteStore(tmp_path)
    assert await store.read(KEY) == Stored()
    await store.aclose()


async def test_a_sqlite_file_that_was_removed_is_made_anew(tmp_path: Path) -> None:
    """By all who have it open: none goes on to write where nobody else reads."""
    one, two = SqliteStore(tmp_path / "state"), SqliteStore(tmp_path / "state")
    for generation in (1, 2):
        assert await one.read(KEY) == Stored()
        assert await two.read(KEY) == Stored()
        assert await one.write(KEY, b"data", generation, after=0)
        assert await two.read(KEY) == Stored(generation, b"data")
        (tmp_path / "state" / "store.db").unlink()
    for path in (tmp_path / "state").iterdir():
        path.unlink()
    (tmp_path / "state").rmdir()
    assert await two.write(KEY, b"new", 1, after=0)
    assert await one.read(KEY) == Stored(1, b"new")
    await one.aclose()
    await two.aclose()


async def test_a_restored_sqlite_file_is_taken_up(tmp_path: Path) -> None:
    """By all who have the other open, without what was changed in that; and they still share it."""
    backup = await filled(tmp_path / "backup", generation=3)
    one, two = SqliteStore(tmp_path), SqliteStore(tmp_path)
    assert await one.write(KEY, b"newer", 9, after=0)
    assert await two.read(KEY) == Stored(9, b"newer")
    backup.rename(tmp_path / "store.db")
    assert await one.read(KEY) == Stored(3, b"data")
    assert await one.write(KEY, b"next", 4, after=3)
    assert await two.read(KEY) == Stored(4, b"next")
    assert await two.write(KEY, b"last", 5, after=4)
    assert await one.read(KEY) == Stored(5, b"last")
    await one.aclose()
    await two.aclose()
    with contextlib.closing(sqlite3.connect(tmp_path / "store.db")) as found:
        assert found.execute("SELECT generation FROM token WHERE key = ?", (KEY,)).fetchone() == (5,)
        assert found.execute("PRAGMA integrity_check").fetchone() == ("ok",)


async def test_a_log_that_is_replaced_under_us_is_noticed(tmp_path: Path) -> None:
    """As by another instance that took up a restored file: we do not go on in a log that nobody else reads."""
    one, two = SqliteStore(tmp_path), SqliteStore(tmp_path)
    await one.write(KEY, b"data", 1, after=0)
    await one.aclose()
    await two.read(KEY)
    for name in ("store.db-wal", "store.db-shm"):
        (tmp_path / name).unlink()
    one = SqliteStore(tmp_path)
    await one.write(KEY, b"data", 2, after=1)
    assert await two.read(KEY) == Stored(2, b"data")
    await one.aclose()
    await two.aclose()


async def test_a_sqlite_place_that_cannot_be_is_an_error(tmp_path: Path) -> None:
    """A file where the directory should be is a StoreError, not a crash."""
    (tmp_path / "file").touch()
    store = SqliteStore(tmp_path / "file")
    with pytest.raises(StoreError, match="exists"):
        await store.read(KEY)
    await store.aclose()


async def test_a_full_disk_is_trouble_that_ends(sqlite: SqliteStore) -> None:
    """A database that cannot grow keeps what it has, and works again when it can."""
    await sqlite.write(KEY, b"data", 1, after=0)
    await sqlite._run(lambda connection: connection.execute("PRAGMA max_page_count = 4").fetchone())
    with pytest.raises(StoreError, match="full"):
        await sqlite.write(KEY, bytes(MAX_RECORD), 2, after=1)
    assert await sqlite.read(KEY) == Stored(1, b"data")
    assert await sqlite.write(KEY, bytes(MAX_RECORD), 2, after=1)


async def plant(store: SqliteStore, generation: object, sealed: object) -> None:
    """Put any values into the row of KEY, as a stranger with access to the file could."""
    await store._run(
        lambda connection: connection.execute("REPLACE INTO token VALUES (?, ?, ?)", (KEY, generation, sealed))
    )


@pytest.mark.parametrize("sealed", [bytes(MAX_RECORD + 1), bytes(10 << 20), "text", 7, 1.5])
async def test_a_planted_record_is_no_record_but_counts(sqlite: SqliteStore, sealed: object) -> None:
    """A huge value, or one of a wrong type, is not handed on; who writes over it must know its generation."""
    await plant(sqlite, 5, sealed)
    assert await sqlite.read(KEY) == Stored(5, b"")
    assert await sqlite.take(KEY, "a", 10) == (True, Stored(5, b""))
    assert await sqlite.write(KEY, b"data", 1, after=0) is False
    assert await sqlite.write(KEY, b"data", 6, after=5) is True
    assert await sqlite.read(KEY) == Stored(6, b"data")


@pytest.mark.parametrize("generation", ["many", b"9", 2.5, 0, -1, MAX_GENERATION + 1])
async def test_a_planted_generation_does_not_count(sqlite: SqliteStore, generation: object) -> None:
    """A number no credential can reach would lock everybody out: such a row is a miss and is written over.

    Nor does it make the whole file count as damaged when that is opened.
    """
    await plant(sqlite, generation, b"data")
    assert await sqlite.read(KEY) == Stored()
    other = SqliteStore(sqlite._path.parent)
    assert await other.read(KEY) == Stored()
    await other.aclose()
    assert await sqlite.write(KEY, b"new", 2, after=1) is False
    assert await sqlite.write(KEY, b"new", 1, after=0) is True
    assert await sqlite.read(KEY) == Stored(1, b"new")


async def test_cancelled_calls_do_not_mix_answers(sqlite: SqliteStore) -> None:
    """Clients that leave in the middle of a read never make another one get the wrong record."""
    keys = [store_key(str(number)) for number in range(10)]
    for number, key in enumerate(keys):
        await sqlite.write(key, key.encode(), number + 1, after=0)
    for _ in range(20):
        reads = [asyncio.create_task(sqlite.read(key)) for key in keys]
        await asyncio.sleep(0)
        for read in reads[::2]:
            read.cancel()
        for number in range(1, 10, 2):
            assert await reads[number] == Stored(number + 1, keys[number].encode())


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
