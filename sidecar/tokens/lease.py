"""The right to renew one credential: one instance at a time has it, for as long as it shows that it lives."""

import asyncio
import contextlib

from sidecar.clock import Clock
from sidecar.errors import StoreError
from sidecar.tokens.protocols import Spawn
from sidecar.tokens.store import TokenStore, store_key

TTL = 10.0
"""Seconds after its last sign of life that a holder's lease is over."""
_SIGN = 3.0
_MOMENT = 1.0
_MAX_PAUSE = 3600.0
"""As long as a campaign of ours would wait: more is a mistake of the issuer's."""


class Lease:
    """The lease of the credential *identity*, for *owner*, which names this instance and no other.

    *cap*: seconds after which it is over, whatever the holder waits for. It keeps others from starting, no more:
    a holder that slept through its end is stopped by the generation of its record. `paused`: the last `take` found
    that another instance has asked all to wait.
    """

    def __init__(self, store: TokenStore, identity: str, owner: str, *, cap: float, clock: Clock, spawn: Spawn) -> None:
        self._store = store
        self._key = store_key(identity, "lease")
        self._pause = store_key(identity, "pause")
        self._owner = owner
        self._cap = cap
        self._clock = clock
        self._spawn = spawn
        self._keeper: asyncio.Task[None] | None = None
        self.paused = False

    async def take(self) -> bool:
        """Take the lease; False when another instance has it, or has asked all to pause. Raises StoreError."""
        end = self._clock.monotonic() + self._cap
        self.paused = False
        if not await self._store.acquire(self._key, self._owner, min(TTL, self._cap)):
            return False
        try:
            # A pause is a lease too: whoever gets it for a moment knows that no other instance asked for one.
            self.paused = not await self._store.acquire(self._pause, self._owner, _MOMENT)
            await self._store.release(self._key if self.paused else self._pause, self._owner)
        except BaseException:
            await self.give_back()
            raise
        if self.paused:
            return False
        self._stop_keeping()
        self._keeper = self._spawn(self._keep(end), "lease")
        return True

    async def give_back(self) -> None:
        """Let the next instance in; one that is not held, or a store in trouble, is no error."""
        self._stop_keeping()
        with contextlib.suppress(StoreError):
            await self._store.release(self._key, self._owner)

    async def pause(self, seconds: float) -> None:
        """Keep every other instance from the issuer for *seconds*, at most an hour; ours knows by itself."""
        with contextlib.suppress(StoreError):
            await self._store.acquire(self._pause, self._owner, min(seconds, _MAX_PAUSE))

    async def _keep(self, end: float) -> None:
        while (left := end - self._clock.monotonic() - _SIGN) > 0:
            await self._clock.sleep(_SIGN)
            with contextlib.suppress(StoreError):
                if not await self._store.acquire(self._key, self._owner, min(TTL, left)):
                    return

    def _stop_keeping(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            self._keeper = None
