"""A token store that ends with its process."""

from sidecar.errors import StoreError
from sidecar.tokens.store import MAX_RECORD


class MemoryStore:
    """Records in a dict: for tests, and for those who want nothing on disk. Never waits."""

    def __init__(self) -> None:
        self._records: dict[str, tuple[int, bytes]] | None = {}

    async def read(self, key: str) -> tuple[int, bytes] | None:
        """Return generation and sealed record, None if there is none."""
        return self._open().get(key)

    async def write(self, key: str, generation: int, sealed: bytes) -> bool:
        """Write in one step; False if a record of the same or a newer generation is there already."""
        if len(sealed) > MAX_RECORD:
            raise StoreError(f"a record of {len(sealed)} bytes is over {MAX_RECORD >> 10} KiB")
        records = self._open()
        if key in records and records[key][0] >= generation:
            return False
        records[key] = (generation, sealed)
        return True

    async def delete(self, key: str) -> None:
        """Remove the record; none there is no error."""
        self._open().pop(key, None)

    async def aclose(self) -> None:
        """Forget everything; twice does no harm."""
        self._records = None

    def _open(self) -> dict[str, tuple[int, bytes]]:
        if self._records is None:
            raise StoreError("the store is closed")
        return self._records
