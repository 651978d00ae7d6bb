"""The embedded token store: one SQLite file in state_dir, shared by the processes of one machine."""

import asyncio
import contextlib
import fcntl
import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sidecar.clock import Clock, SystemClock
from sidecar.errors import StoreError
from sidecar.tokens.store import (
    MAX_GENERATION,
    MAX_INSTANCES,
    MAX_NAME,
    MAX_RECORD,
    Stored,
    checked,
    checked_name,
    lease_key,
)

_CREATE = "CREATE TABLE token (key TEXT PRIMARY KEY, generation INTEGER NOT NULL, sealed BLOB NOT NULL)"

# Not in a file of the first versions, and all of it is over soon.
_ADD = """
CREATE TABLE IF NOT EXISTS lease (key TEXT PRIMARY KEY, owner TEXT, ttl REAL NOT NULL, ends REAL NOT NULL);
CREATE TABLE IF NOT EXISTS instance (name TEXT PRIMARY KEY, sealed BLOB, ttl REAL NOT NULL, ends REAL NOT NULL);
"""

# SQLite keeps any type in any column: a row whose generation is none does not count. The size is looked at inside
# the database, so that a huge value never gets into this process.
_COUNTS = f"typeof(generation) = 'integer' AND generation BETWEEN 1 AND {MAX_GENERATION}"

_READ = f"""
SELECT generation, CASE WHEN typeof(sealed) = 'blob' AND length(sealed) <= {MAX_RECORD} THEN sealed ELSE x'' END
FROM token WHERE key = :key AND {_COUNTS}
"""  # noqa: S608  a constant

_WRITE = f"""
INSERT INTO token (key, generation, sealed) SELECT :key, :generation, :sealed
WHERE COALESCE((SELECT generation FROM token WHERE key = :key AND {_COUNTS}), 0) = :after
ON CONFLICT (key) DO UPDATE SET generation = excluded.generation, sealed = excluded.sealed
"""  # noqa: S608  a constant

# What lies much further ahead than it was meant to is over: the clock was set back, or somebody wrote nonsense.
# A clock that goes back by less than a ttl makes a lease last that much longer, no more.
_LASTS = "COALESCE({0}.ends > :now AND {0}.ends <= :now + 2 * {0}.ttl, 0)"

_TAKE = f"""
INSERT INTO lease (key, owner, ttl, ends) VALUES (:lease, :owner, :ttl, :now + :ttl)
ON CONFLICT (key) DO UPDATE SET owner = excluded.owner, ttl = excluded.ttl, ends = excluded.ends
WHERE lease.owner = excluded.owner OR NOT {_LASTS.format("lease")}
"""  # noqa: S608  a constant

_RELEASE = "DELETE FROM lease WHERE key = :lease AND owner = :owner"

_SWEEP = f"DELETE FROM instance WHERE NOT {_LASTS.format('instance')}"  # noqa: S608  a constant

_ANNOUNCE = f"""
INSERT OR REPLACE INTO instance (name, sealed, ttl, ends) SELECT :name, :sealed, :ttl, :now + :ttl
WHERE (SELECT count(*) FROM instance WHERE name <> :name) < {MAX_INSTANCES}
"""  # noqa: S608  a constant

_ANNOUNCED = f"""
SELECT name, sealed FROM instance WHERE {_LASTS.format("instance")}
AND typeof(name) = 'text' AND length(name) <= {MAX_NAME}
AND typeof(sealed) = 'blob' AND length(sealed) <= {MAX_RECORD} LIMIT {MAX_INSTANCES}
"""  # noqa: S608  a constant

_EMPTIED = "emptied, or no store of ours; remove it to begin anew"


class SqliteStore:
    """Records in `store.db` of *directory* (0600; the directory is created 0700), opened at the first call.

    Every call runs on one thread of its own, never on the event loop. After an error, and when another file lies in
    the place of ours, the file is opened anew, so that a mended disk, a removed damaged file or a restored one is
    taken up without a restart. A file that is damaged, or empty, is an error and left as it is.
    """

    def __init__(self, directory: Path, *, busy_timeout: float = 1.0, clock: Clock | None = None) -> None:
        self._path = directory / "store.db"
        self._busy_timeout = busy_timeout
        self._clock = clock or SystemClock()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sqlite")
        self._connection: sqlite3.Connection | None = None
        self._opened: tuple[int, ...] = ()
        self._closed = False

    @property
    def offset(self) -> float:
        """Always 0: the clock is that of this machine."""
        return 0.0

    async def read(self, key: str) -> Stored:
        """Return what lies under *key*."""
        return await self._run(lambda connection: _stored(connection, key))

    async def take(self, key: str, owner: str, ttl: float) -> tuple[bool, Stored]:
        """Take the lease, or extend it; return whether it is *owner*'s now, and what lies under *key*."""
        values = {"lease": lease_key(key), "owner": owner, "ttl": ttl}

        def work(connection: sqlite3.Connection) -> tuple[bool, Stored]:
            # The time is asked for in the step: it may have waited, and whoever was first has a later time.
            taken = connection.execute(_TAKE, values | {"now": self._clock.now()}).rowcount == 1
            return taken, _stored(connection, key)

        return await self._run(work, synchronous="NORMAL")

    async def write(self, key: str, sealed: bytes, generation: int, *, after: int, release: str = "") -> bool:
        """Write over the generation *after* only, and end *release*'s lease; False: nothing has changed."""
        values = {"key": key, "sealed": checked(sealed), "generation": generation, "after": after}
        values |= {"lease": lease_key(key), "owner": release}

        def work(connection: sqlite3.Connection) -> bool:
            written = connection.execute(_WRITE, values).rowcount == 1
            if written and release:
                connection.execute(_RELEASE, values)
            return written

        # A rotated refresh token must outlast a power cut; there are few writes.
        return await self._run(work, synchronous="FULL")

    async def release(self, key: str, owner: str) -> None:
        """Give the lease back; one that is not *owner*'s stays."""
        values = {"lease": lease_key(key), "owner": owner}
        await self._run(lambda connection: connection.execute(_RELEASE, values), synchronous="NORMAL")

    async def announce(self, instance: str, sealed: bytes, ttl: float) -> None:
        """Leave word of an instance for *ttl* seconds; again: in place of the last."""
        values = {"name": checked_name(instance), "sealed": checked(sealed), "ttl": ttl}

        def work(connection: sqlite3.Connection) -> bool:
            timed = values | {"now": self._clock.now()}
            connection.execute(_SWEEP, timed)
            return connection.execute(_ANNOUNCE, timed).rowcount == 1

        if not await self._run(work, synchronous="NORMAL"):
            raise StoreError(f"{self._path} has word of {MAX_INSTANCES} instances already")

    async def announced(self) -> dict[str, bytes]:
        """Return the word of every instance whose time is not over."""
        values = {"now": self._clock.now()}
        return await self._run(lambda connection: dict(connection.execute(_ANNOUNCED, values).fetchall()))

    async def aclose(self) -> None:
        """Finish what runs and close the file; twice does no harm."""
        if not self._closed:
            self._closed = True
            await asyncio.get_running_loop().run_in_executor(self._thread, self._disconnect)
            self._thread.shutdown(wait=False)

    async def _run[T](self, work: Callable[[sqlite3.Connection], T], *, synchronous: str = "") -> T:
        """Return what *work* does in our thread; with *synchronous* what it writes is one step.

        NORMAL does not wait for the disk: a lease that a power cut takes along is none that anybody would still have.
        """
        if self._closed:
            raise StoreError(f"{self._path} is closed")
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._on_thread, work, synchronous)

    def _on_thread[T](self, work: Callable[[sqlite3.Connection], T], synchronous: str) -> T:
        try:
            connection = self._connected()
            if not synchronous:
                return work(connection)
            connection.execute(f"PRAGMA synchronous = {synchronous}")
            connection.execute("BEGIN IMMEDIATE")
            done = work(connection)
            connection.execute("COMMIT")
        except BaseException as error:
            self._disconnect()  # which undoes what was begun
            if isinstance(error, sqlite3.Error | OSError):
                raise StoreError(f"{self._path}: {error}") from error
            raise
        return done

    def _connected(self) -> sqlite3.Connection:
        """Return the connection to the file that is there now."""
        if self._connection is not None and self._files() == self._opened:
            return self._connection
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _alone_in(self._path.parent):
            file, log = self._files()
            if not file or (self._connection is not None and log == self._opened[1]):
                # A log of changes lies beside a file that it does not belong to, and SQLite would make them.
                for name in ("-wal", "-shm"):
                    Path(f"{self._path}{name}").unlink(missing_ok=True)
            self._disconnect()
            if not file:
                self._create()
            self._path.chmod(0o600)
            if not self._path.stat().st_size:
                raise sqlite3.DatabaseError(_EMPTIED)  # SQLite would take it for a new one, and remove its log
            self._connection = sqlite3.connect(self._path, timeout=self._busy_timeout, isolation_level=None)
            _prepare(self._connection)
            self._opened = self._files()
        return self._connection

    def _files(self) -> tuple[int, ...]:
        """Return which database and which log of it lie in our place, 0 for none; while it is open it has a log."""
        both = (self._path, Path(f"{self._path}-wal"))
        return tuple(path.stat().st_ino if path.exists() else 0 for path in both)

    def _create(self) -> None:
        """Make the file; it appears whole or not at all, so that one without a table is damage."""
        with tempfile.NamedTemporaryFile(dir=self._path.parent, prefix=f".{self._path.name}.") as draft:  # O_EXCL, 0600
            with contextlib.closing(sqlite3.connect(draft.name)) as connection:
                connection.execute(_CREATE)
            os.link(draft.name, self._path)

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None


def _stored(connection: sqlite3.Connection, key: str) -> Stored:
    return Stored(*(connection.execute(_READ, {"key": key}).fetchone() or ()))


def _prepare(connection: sqlite3.Connection) -> None:
    """Make *connection* ready for use; sqlite3.Error, and the file as it was, if that is not a whole store.

    A damaged index would hide records, which must never look as if there were none.
    """
    found = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
    if found != "ok":
        raise sqlite3.DatabaseError(f"damaged: {found}")
    if not connection.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'token'").fetchone()[0]:
        raise sqlite3.DatabaseError(_EMPTIED)
    # Readers and a writer work side by side; kept in the file.
    connection.execute("PRAGMA journal_mode = WAL")
    connection.executescript(_ADD)


@contextlib.contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """Keep other processes of ours from opening a store there meanwhile."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
