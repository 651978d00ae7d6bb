"""A token store that ends with its process."""

from sidecar.clock import Clock, SystemClock
from sidecar.errors import StoreError
from sidecar.tokens.stores.bounds import MAX_INSTANCES, checked, checked_name


class MemoryStore:
    """Records in dicts: for tests, and for those who want nothing on disk. Never waits."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._records: dict[str, tuple[int, bytes]] | None = {}
        # Each with the monotonic moment at which it is over.
        self._leases: dict[str, tuple[float, str]] = {}
        self._instances: dict[str, tuple[float, bytes]] = {}

    @property
    def offset(self) -> float:
        """Always 0: there is but one clock."""
        return 0.0

    async def read(self, key: str) -> tuple[int, bytes] | None:
        """Return generation and sealed record, None if there is none."""
        return self._open().get(key)

    async def write(self, key: str, generation: int, sealed: bytes) -> bool:
        """Write in one step; False if a record of the same or a newer generation is there already."""
        records, record = self._open(), (generation, checked(sealed))
        if key in records and records[key][0] >= generation:
            return False
        records[key] = record
        return True

    async def replace(self, key: str, generation: int, sealed: bytes) -> bool:
        """Write the record of *generation* anew in one step; False if it is not there."""
        records, record = self._open(), (generation, checked(sealed))
        if key not in records or records[key][0] != generation:
            return False
        records[key] = record
        return True

    async def delete(self, key: str) -> None:
        """Remove the record; none there is no error."""
        self._open().pop(key, None)

    async def acquire(self, key: str, owner: str, ttl: float) -> bool:
        """Take the lease *key* for *ttl* seconds, or extend it; False if another owner has it."""
        self._open()
        now = self._clock.monotonic()
        over, holder = self._leases.get(key, (now, ""))
        if over > now and holder != owner:
            return False
        self._leases[key] = (now + ttl, owner)
        return True

    async def release(self, key: str, owner: str) -> None:
        """Give the lease back; one that is not *owner*'s stays."""
        self._open()
        if key in self._leases and self._leases[key][1] == owner:
            del self._leases[key]

    async def announce(self, instance: str, sealed: bytes, ttl: float) -> None:
        """Leave word of an instance for *ttl* seconds; again: in place of the last."""
        self._open()
        now, name, word = self._clock.monotonic(), checked_name(instance), checked(sealed)
        self._instances = {name: word for name, word in self._instances.items() if word[0] > now}
        if name not in self._instances and len(self._instances) >= MAX_INSTANCES:
            raise StoreError(f"the store has word of {MAX_INSTANCES} instances already")
        self._instances[name] = (now + ttl, word)

    async def announced(self) -> dict[str, bytes]:
        """Return the word of every instance whose time is not over."""
        self._open()
        now = self._clock.monotonic()
        return {name: sealed for name, (over, sealed) in self._instances.items() if over > now}

    async def aclose(self) -> None:
        """Forget everything; twice does no harm."""
        self._records = None
        self._leases, self._instances = {}, {}

    def _open(self) -> dict[str, tuple[int, bytes]]:
        if self._records is None:
            raise StoreError("the store is closed")
        return self._records
