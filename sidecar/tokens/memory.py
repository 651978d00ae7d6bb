"""A token store that ends with its process."""

from sidecar.clock import Clock, SystemClock
from sidecar.errors import StoreError
from sidecar.tokens.store import MAX_INSTANCES, Stored, checked, checked_name


class MemoryStore:
    """Records in dicts: for tests, and for those who want nothing on disk. Never waits."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._records: dict[str, Stored] | None = {}
        # Each with the monotonic moment at which it is over; a lease under the key of its record.
        self._leases: dict[str, tuple[float, str]] = {}
        self._instances: dict[str, tuple[float, bytes]] = {}

    @property
    def offset(self) -> float:
        """Always 0: there is but one clock."""
        return 0.0

    async def read(self, key: str) -> Stored:
        """Return what lies under *key*."""
        return self._open().get(key, Stored())

    async def take(self, key: str, owner: str, ttl: float) -> tuple[bool, Stored]:
        """Take the lease, or extend it; return whether it is *owner*'s now, and what lies under *key*."""
        stored, now = self._open().get(key, Stored()), self._clock.monotonic()
        over, holder = self._leases.get(key, (now, ""))
        if over > now and holder != owner:
            return False, stored
        self._leases[key] = (now + ttl, owner)
        return True, stored

    async def write(self, key: str, sealed: bytes, generation: int, *, after: int, release: str = "") -> bool:
        """Write over the generation *after* only, and end *release*'s lease; False: nothing has changed."""
        records, record = self._open(), Stored(generation, checked(sealed))
        if records.get(key, Stored()).generation != after:
            return False
        records[key] = record
        await self.release(key, release)
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

    def _open(self) -> dict[str, Stored]:
        if self._records is None:
            raise StoreError("the store is closed")
        return self._records
