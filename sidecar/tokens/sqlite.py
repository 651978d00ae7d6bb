"""The embedded token store: one SQLite file in state_dir, shared by the processes of one machine."""

import asyncio
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sidecar.errors import StoreError
from sidecar.tokens.store import MAX_GENERATION, MAX_RECORD

_CREATE = "CREATE TABLE IF NOT EXISTS token (key TEXT PRIMARY KEY, generation INTEGER NOT NULL, sealed BLOB NOT NULL)"

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


class SqliteStore:
    """Records in `store.db` of *directory* (0600; the directory is created 0700), opened at the first call.

    Every call runs on one thread of its own, never on the event loop. After an error the file is opened anew
    by the next call, so that a mended disk or a removed damaged file is taken up without a restart.
    *busy_timeout*: how long to wait, in seconds, for another process that writes.
    """

    def __init__(self, directory: Path, *, busy_timeout: float = 1.0) -> None:
        self._path = directory / "store.db"
        self._busy_timeout = busy_timeout
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sqlite")
        self._connection: sqlite3.Connection | None = None
        self._closed = False

    async def read(self, key: str) -> tuple[int, bytes] | None:
        """Return generation and sealed record (empty if too large or of a wrong type), None if there is none."""
        values = {"key": key, "max_record": MAX_RECORD, "max_generation": MAX_GENERATION}

        def work(connection: sqlite3.Connection) -> tuple[int, bytes] | None:
            row: tuple[int, bytes] | None = connection.execute(_READ, values).fetchone()
            return row

        return await self._run(work)

    async def write(self, key: str, generation: int, sealed: bytes) -> bool:
        """Write in one step; False if a record of the same or a newer generation is there already."""
        if len(sealed) > MAX_RECORD:
            raise StoreError(f"a record of {len(sealed)} bytes is over {MAX_RECORD >> 10} KiB")
        values = {"key": key, "generation": generation, "sealed": sealed, "max_generation": MAX_GENERATION}
        return await self._run(lambda connection: connection.execute(_WRITE, values).rowcount == 1)

    async def delete(self, key: str) -> None:
        """Remove the record; none there is no error."""
        await self._run(lambda connection: connection.execute("DELETE FROM token WHERE key = ?", (key,)))

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
            connection.execute(_CREATE)
        except BaseException:
            connection.close()
            raise
        return connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


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
