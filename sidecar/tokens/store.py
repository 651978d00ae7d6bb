"""Where sealed records lie: what the broker asks of a store. It knows neither tokens nor keys."""

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

    async def read(self, key: str) -> tuple[int, bytes] | None:
        """Return generation and sealed record, None if there is none.

        A record too large or of a wrong type comes back empty: it cannot be opened, but its generation counts.
        """
        ...

    async def write(self, key: str, generation: int, sealed: bytes) -> bool:
        """Write in one step; False if a record of the same or a newer generation is there already."""
        ...

    async def delete(self, key: str) -> None:
        """Remove the record; none there is no error."""
        ...

    async def aclose(self) -> None:
        """Give everything back; twice does no harm. Later calls raise StoreError."""
        ...


def store_key(identity: str) -> str:
    """Return the name of a credential's record: a hash, so that no client id shows."""
    return "auth-sidecar:token:" + sha256(identity.encode()).hexdigest()[:32]
