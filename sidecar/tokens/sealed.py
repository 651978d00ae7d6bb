"""The record of one credential in the store, sealed there and open here, with the lease that lets one instance renew.

Times are the store's outside and ours inside. Absent, unreadable and silent are three things: `Record()` of generation
0, Unreadable, and StoreError.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from sidecar.errors import SealError, StoreError, UnknownSeal
from sidecar.tokens.former import Former
from sidecar.tokens.record import Record
from sidecar.tokens.seal import Keys
from sidecar.tokens.store import MAX_GENERATION, Stored, TokenStore, store_key

TTL = 10.0
"""Seconds after its last sign of life that a holder's lease is over."""
_WRITES = 8
"""How often a revocation gives way to a renewal that was faster."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A record that cannot be used; *generation* is the store's. *foreign*: of a key or a version that is not ours."""

    generation: int
    why: str
    foreign: bool = False


Found = Record | Unreadable


class SealedRecord:
    """The record of the credential that *identity* names, for the instance *owner*.

    *identity* is asked when it is first needed, and may raise ConfigurationError, as every call does then. *former*:
    the credential's name in the release before, None where there is none. Each call may raise StoreError.
    """

    def __init__(
        self, identity: Callable[[], str], store: TokenStore, keys: Keys, *, owner: str, former: str | None = None
    ) -> None:
        self._identity = identity
        self._store = store
        self._keys = keys
        self._owner = owner
        self._former = Former(store, keys, former, owner) if former else None
        self._name = ""
        self._last = b""

    @property
    def place(self) -> tuple[int | None, str] | None:
        """Which of the keys, as they are now, sealed the record that was last seen; None if there was none."""
        return self._keys.place(self._last) if self._last else None

    async def read(self) -> Found:
        """Return what is there; one that an older key has sealed is sealed anew."""
        key = self._key()
        stored = await self._store.read(key)
        return await self._opened(key, stored)

    async def take(self, cap: float = TTL) -> tuple[bool, Found]:
        """Take the lease, or keep it, for *cap* seconds at most, and return whether we have it, and what is there."""
        key = self._key()
        held, stored = await self._store.take(key, self._owner, min(TTL, cap))
        try:
            if held and self._former is not None and not await self._former.take(min(TTL, cap)):
                held = False
                await self._store.release(key, self._owner)
            return held, await self._opened(key, stored, leased=held)
        except BaseException:
            if held:
                await self.release()
            raise

    async def write(self, record: Record, *, after: int, release: bool = False) -> bool:
        """Write *record* if the generation that is there is *after*; *release*: give the lease back with it."""
        key = self._key()
        sealed = self._sealed(key, record)
        written = await self._store.write(
            key, sealed, record.generation, after=after, release=self._owner if release else ""
        )
        if written:
            self._last = sealed
            if self._former is not None:
                await self._former.write(record.moved(self._store.offset), key, release=release)
        return written

    async def release(self) -> None:
        """Let the next instance in; one that is not held, or a store in trouble, is no error."""
        with contextlib.suppress(StoreError):
            await self._store.release(self._key(), self._owner)
            if self._former is not None:
                await self._former.release()

    async def revoke(self, generation: int) -> Record:
        """Put a mark above *generation*, and above what is there, that nothing before it counts; return it.

        Every instance drops its token when it sees it.
        """
        for _ in range(_WRITES):
            found = await self.read()
            above = max(generation, found.generation) + 1
            # Without a place above, the number was damage or mischief: what is there is no record of ours.
            mark = Record(generation=above if above <= MAX_GENERATION else generation + 1, revoked=True)
            if isinstance(found, Record):
                mark = Record(generation=mark.generation, revoked=True, claimed=found.claimed)
            if await self.write(mark, after=found.generation):
                return mark
        raise StoreError("ever newer records are in the way")

    def _key(self) -> str:
        if not self._name:
            self._name = store_key(self._identity())
        return self._name

    def _sealed(self, key: str, record: Record) -> bytes:
        return self._keys.seal(key, record.moved(self._store.offset).encode())

    async def _opened(self, key: str, stored: Stored, *, leased: bool = False) -> Found:
        found = self._open(key, stored)
        if isinstance(found, Record):
            former = self._former
            if former is not None and (theirs := await former.newer_than(found, key, leased=leased)):
                # Whoever is first, it is the same.
                sealed = self._keys.seal(key, theirs.encode())
                await self._store.write(key, sealed, theirs.generation, after=found.generation)
                await former.write(theirs, key, release=False)
                return theirs.moved(-self._store.offset)
            if self.place and self.place[0] != 1:
                with contextlib.suppress(StoreError):
                    sealed = self._sealed(key, found)
                    if await self._store.write(key, sealed, found.generation, after=found.generation):
                        self._last = sealed
        return found

    def _open(self, key: str, stored: Stored) -> Found:
        self._last = stored.sealed
        if stored.generation == 0:
            return Record()
        try:
            record = Record.decode(self._keys.open(key, stored.sealed))
        except UnknownSeal as error:
            return Unreadable(stored.generation, str(error), foreign=True)
        except StoreError as error:
            return Unreadable(stored.generation, str(error))
        if record.generation != stored.generation:
            # The number beside the seal is not authenticated: an older record was put under it.
            return Unreadable(stored.generation, str(SealError("a record under a generation that is not its own")))
        return record.moved(-self._store.offset)
