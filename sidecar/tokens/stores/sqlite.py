"""The embedded token store: one SQLite file in state_dir, shared by the processes of one machine."""

import asyncio
import os
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sidecar.clock import Clock, SystemClock
from sidecar.errors import StoreError
from sidecar.tokens.store import MAX_GENERATION, MAX_RECORD
from sidecar.tokens.stores.bounds import MAX_INSTANCES, MAX_NAME, checked, checked_name

_CREATE = (
    "CREATE TABLE IF NOT EXISTS token (key TEXT PRIMARY KEY, generation INTEGER NOT NULL, sealed BLOB NOT NULL)",
    "CREATE TABLE IF NOT EXISTS lease (key TEXT PRIMARY KEY, owner TEXT, ttl REAL NOT NULL, ends REAL NOT NULL)",
    "CREATE TABLE IF NOT EXISTS instance (name TEXT PRIMARY KEY, sealed BLOB, ttl REAL NOT NULL, ends REAL NOT NULL)",
)

# SQLite keeps any type in any column. The size is looked at inside the database, so that a huge value never
# gets into this process.
_READ = """
SELECT generation, CASE WHEN typeof(sealed) = 'blob' AND length(sealed) <= :max_record THEN sealed ELSE x'' END
FROM token WHERE key = :key AND typeof(generation) = 'integer' AND generation BETWEEN 1 AND :max_generation
"""

# Compare and set in one statement; a row whose generation is no such number does not count.
_WRITE = """
INSERT INTO token (key, generation, sealed) VALUES (:key, :generation, :sealed)
ON CONFLICT (key) DO UPDATE SET generation = excluded.generation, sealed = excluded.sealed
WHERE typeof(token.generation) <> 'integer' OR token.generation NOT BETWEEN 1 AND :max_generation
OR token.generation < excluded.generation
"""

_REPLACE = """
UPDATE token SET sealed = :sealed WHERE key = :key AND typeof(generation) = 'integer' AND generation = :generation
"""

# What lies much further ahead than it was meant to is over: the clock was set back, or somebody wrote nonsense.
# A clock that goes back by less than a ttl makes a lease last that much longer, no more.
_LASTS = "COALESCE({0}.ends > :now AND {0}.ends <= :now + 2 * {0}.ttl, 0)"

_ACQUIRE = f"""
INSERT INTO lease (key, owner, ttl, ends) VALUES (:key, :owner, :ttl, :now + :ttl)
ON CONFLICT (key) DO UPDATE SET owner = excluded.owner, ttl = excluded.ttl, ends = excluded.ends
WHERE lease.owner = excluded.owner OR NOT {_LASTS.format("lease")}
"""  # noqa: S608  a constant

_SWEEP = f"DELETE FROM instance WHERE NOT {_LASTS.format('instance')}"  # noqa: S608  a constant

_ANNOUNCE = """
INSERT OR REPLACE INTO instance (name, sealed, ttl, ends) SELECT :name, :sealed, :ttl, :now + :ttl
WHERE (SELECT count(*) FROM instance WHERE name <> :name) < :max_instances
"""

_ANNOUNCED = f"""
SELECT name, sealed FROM instance WHERE {_LASTS.format("instance")}
AND typeof(name) = 'text' AND length(name) <= :max_name
AND typeof(sealed) = 'blob' AND length(sealed) <= :max_record LIMIT :max_instances
"""  # noqa: S608  a constant


class SqliteStore:
    """Records in `store.db` of *directory* (0600; the directory is created 0700), opened at the first call.

    Every call runs on one thread of its own, never on the event loop. After an error the file is opened anew
    by the next call, so that a mended disk or a removed damaged file is taken up without a restart.
    *busy_timeout*: how long to wait, in seconds, for another process that writes. *clock*: the wall time of
    leases, which the processes of one machine share; it is read on the store's thread.
    """

    def __init__(self, directory: Path, *, busy_timeout: float = 1.0, clock: Clock | None = None) -> None:
        self._path = directory / "store.db"
        self._busy_timeout = busy_timeout
        self._clock = clock or SystemClock()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sqlite")
        self._connection: sqlite3.Connection | None = None
        self._closed = False

    @property
    def offset(self) -> float:
        """Always 0: the clock is that of this machine."""
        return 0.0

    async def read(self, key: str) -> tuple[int, bytes] | None:
        """Return generation and sealed record (empty if too large or of a wrong type), None if there is none."""
        values = {"key": key, "max_record": MAX_RECORD, "max_generation": MAX_GENERATION}

        def work(connection: sqlite3.Connection) -> tuple[int, bytes] | None:
            row: tuple[int, bytes] | None = connection.execute(_READ, values).fetchone()
            return row

        return await self._run(work)

    async def write(self, key: str, generation: int, sealed: bytes) -> bool:
        """Write in one step; False if a record of the same or a newer generation is there already."""
        values = {"key": key, "generation": generation, "sealed": checked(sealed), "max_generation": MAX_GENERATION}
        return await self._run(lambda connection: connection.execute(_WRITE, values).rowcount == 1)

    async def replace(self, key: str, generation: int, sealed: bytes) -> bool:
        """Write the record of *generation* anew in one step; False if it is not there."""
        values = {"key": key, "generation": generation, "sealed": checked(sealed)}
        return await self._run(lambda connection: connection.execute(_REPLACE, values).rowcount == 1)

    async def delete(self, key: str) -> None:
        """Remove the record; none there is no error."""
        await self._run(lambda connection: connection.execute("DELETE FROM token WHERE key = ?", (key,)))

    async def acquire(self, key: str, owner: str, ttl: float) -> bool:
        """Take the lease *key* for *ttl* seconds, or extend it; False if another owner has it.

        A clock that was set back by more than *ttl* ends it.
        """
        values = {"key": key, "owner": owner, "ttl": ttl}

        def work(connection: sqlite3.Connection) -> bool:
            with _passing(connection):
                return connection.execute(_ACQUIRE, self._timed(values)).rowcount == 1

        return await self._run(work)

    async def release(self, key: str, owner: str) -> None:
        """Give the lease back; one that is not *owner*'s stays."""

        def work(connection: sqlite3.Connection) -> None:
            with _passing(connection):
                connection.execute("DELETE FROM lease WHERE key = ? AND owner = ?", (key, owner))

        await self._run(work)

    async def announce(self, instance: str, sealed: bytes, ttl: float) -> None:
        """Leave word of an instance for *ttl* seconds; again: in place of the last."""
        values = {"name": checked_name(instance), "sealed": checked(sealed), "ttl": ttl, "max_instances": MAX_INSTANCES}

        def work(connection: sqlite3.Connection) -> bool:
            with _passing(connection):
                timed = self._timed(values)
                connection.execute(_SWEEP, timed)
                return connection.execute(_ANNOUNCE, timed).rowcount == 1

        if not await self._run(work):
            raise StoreError(f"{self._path} has word of {MAX_INSTANCES} instances already")

    async def announced(self) -> dict[str, bytes]:
        """Return the word of every instance whose time is not over."""
        values = {"max_record": MAX_RECORD, "max_name": MAX_NAME, "max_instances": MAX_INSTANCES}
        return await self._run(lambda connection: dict(connection.execute(_ANNOUNCED, self._timed(values)).fetchall()))

    def _timed(self, values: dict[str, Any]) -> dict[str, Any]:
        """Add the time; inside the transaction, for it may have waited, and whoever was first has a later time."""
        return {**values, "now": self._clock.now()}

    async def aclose(self) -> None:
        """Finish what runs and close the file; twice does no harm."""
        if not self._closed:
            self._closed = True
            await asyncio.get_running_loop().run_in_executor(self._thread, self._disconnect)
            self._thread.shutdown(wait=False)

    async def _run[T](self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self._closed:
            raise StoreError(f"{self._path} is closed")
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._on_thread, work)

    def _on_thread[T](self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            if self._connection is None:
                self._connection = self._connect()
            return work(self._connection)
        except (sqlite3.Error, OSError) as error:
            self._disconnect()
            raise StoreError(f"{self._path}: {error}") from error

    def _connect(self) -> sqlite3.Connection:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except FileExistsError:
            # By name, not by descriptor: closing one would drop the locks this process holds on the file.
            self._path.chmod(0o600)
        connection = sqlite3.connect(self._path, timeout=self._busy_timeout, isolation_level=None)
        try:
            _use_wal(connection)
            # A rotated refresh token must outlast a power cut; there are few writes.
            connection.execute("PRAGMA synchronous = FULL")
            for statement in _CREATE:
                connection.execute(statement)
        except BaseException:
            connection.close()
            raise
        return connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


@contextmanager
def _passing(connection: sqlite3.Connection) -> Iterator[None]:
    """Do several statements as one; an error undoes them all. For what is over soon: the disk is not waited for.

    A lease that a power cut takes along is none that anybody would still have.
    """
    connection.execute("PRAGMA synchronous = NORMAL")
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # a full disk has ended it already
            connection.execute("ROLLBACK")
        raise
    finally:
        connection.execute("PRAGMA synchronous = FULL")


def _use_wal(connection: sqlite3.Connection) -> None:
    """Let readers and a writer work side by side; kept in the file, so only the first opening changes anything.

    SQLite does not wait for a lock here, only at a transaction: so one that does nothing waits for whoever
    creates the file at the same moment.
    """
    try:
        connection.execute("PRAGMA journal_mode = WAL")
    except sqlite3.OperationalError:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
        connection.execute("PRAGMA journal_mode = WAL")
