"""Where sealed records lie, and who may renew: what the broker asks of a store. It knows neither tokens nor keys."""

from hashlib import sha256
from typing import Protocol

MAX_RECORD = 64 << 10
"""Bytes of a sealed record; a larger one is not written, and not believed when found."""

MAX_GENERATION = 1 << 53
"""Above it a number in a row is damage, or mischief: no credential is renewed that often."""


class TokenStore(Protocol):
    """Sealed records under hashed names; the generation lies beside the seal, so that a write can compare it.

    Every call may raise StoreError and may be cancelled at any time; a cancelled write may have been done.
    """

    @property
    def offset(self) -> float:
        """How far the store's clock is ahead of ours, in seconds; 0 for a store of this machine, or while unknown.

        Times in shared records are the store's, so that instances whose clocks differ mean the same.
        """
        ...

    async def read(self, key: str) -> tuple[int, bytes] | None:
        """Return generation and sealed record, None if there is none.

        A record too large or of a wrong type comes back empty: it cannot be opened, but its generation counts.
        """
        ...

    async def write(self, key: str, generation: int, sealed: bytes) -> bool:
        """Write in one step; False if a record of the same or a newer generation is there already."""
        ...

    async def replace(self, key: str, generation: int, sealed: bytes) -> bool:
        """Write the record of *generation* anew, sealed with another key, in one step; False if it is not there."""
        ...

    async def delete(self, key: str) -> None:
        """Remove the record; none there is no error."""
        ...

    async def acquire(self, key: str, owner: str, ttl: float) -> bool:
        """Take the lease *key* for *ttl* seconds of the store's clock, or extend it; False if another owner has it."""
        ...

    async def release(self, key: str, owner: str) -> None:
        """Give the lease back; one that is not *owner*'s stays."""
        ...

    async def announce(self, instance: str, sealed: bytes, ttl: float) -> None:
        """Leave word of an instance for *ttl* seconds; again: in place of the last."""
        ...

    async def announced(self) -> dict[str, bytes]:
        """Return the word of every instance whose time is not over."""
        ...

    async def aclose(self) -> None:
        """Give everything back; twice does no harm. Later calls raise StoreError."""
        ...


def store_key(identity: str, kind: str = "token") -> str:
    """Return the name of a credential's record, or of its lease or note: a hash, so that no client id shows.

    The braces keep all of one credential on one node of a Redis Cluster.
    """
    return f"auth-sidecar:{kind}:{{{sha256(identity.encode()).hexdigest()[:32]}}}"
