"""Where sealed records lie, and who may renew: what the broker asks of a store. It knows neither tokens nor seals."""

from dataclasses import dataclass
from hashlib import sha256
from typing import Protocol

from sidecar.errors import StoreError

MAX_RECORD = 64 << 10
"""Bytes of a sealed record; a larger one is not written, and not believed when found."""

MAX_GENERATION = 1 << 53
"""Above it a number in a row is damage, or mischief: no credential is renewed that often."""

MAX_INSTANCES = 1000
"""How many instances may leave word; their names are at most MAX_NAME bytes long."""

MAX_NAME = 256

KEEP = 90 * 86400
"""Seconds after its last write at which a shared store may forget a record."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What lies under a key; *generation* 0: nothing. *sealed* is empty when it is too large or of a wrong type."""

    generation: int = 0
    sealed: bytes = b""


class TokenStore(Protocol):
    """Sealed records under hashed names; the generation lies beside the seal, so that a write can compare it.

    Every call is one step and one command, and may raise StoreError. It may be cancelled at any time; a cancelled or
    failed write may have been done.
    """

    @property
    def offset(self) -> float:
        """How far the store's clock is ahead of ours, in seconds; 0 for a store of this machine, or while unknown.

        Times in shared records are the store's, so that instances whose clocks differ mean the same.
        """
        ...

    async def read(self, key: str) -> Stored:
        """Return what lies under *key*."""
        ...

    async def take(self, key: str, owner: str, ttl: float) -> tuple[bool, Stored]:
        """Take the lease of the record *key* for *ttl* seconds of the store's clock, or extend it.

        Return whether it is *owner*'s now, False if another owner has it, and what lies under *key*.
        """
        ...

    async def write(self, key: str, sealed: bytes, generation: int, *, after: int, release: str = "") -> bool:
        """Write the record; False, with nothing changed, unless the generation that is there is *after*, 0 for none.

        *release*: the owner whose lease of the record ends with it; one that is not its stays.
        """
        ...

    async def release(self, key: str, owner: str) -> None:
        """Give the lease of the record *key* back; one that is not *owner*'s stays."""
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
    """Return the name of a credential's record, or of a shared pause: a hash, so that no client id shows.

    The braces keep all of one credential on one node of a Redis Cluster.
    """
    return f"auth-sidecar:{kind}:{{{sha256(identity.encode()).hexdigest()[:32]}}}"


def lease_key(key: str) -> str:
    """Return the name of the lease of the record *key*; on the same node of a Redis Cluster."""
    return key.replace(":token:", ":lease:", 1)


def checked(sealed: bytes) -> bytes:
    """Return *sealed*; StoreError if it is too large to be written."""
    if len(sealed) > MAX_RECORD:
        raise StoreError(f"a record of {len(sealed)} bytes is over {MAX_RECORD >> 10} KiB")
    return sealed


def checked_name(instance: str) -> str:
    """Return the name of an instance; StoreError if it is too long."""
    if not 0 < len(instance.encode()) <= MAX_NAME:
        raise StoreError(f"the name of an instance is empty or over {MAX_NAME} bytes")
    return instance
