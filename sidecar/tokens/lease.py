"""The right to renew one credential: one instance at a time has it, for as long as it shows that it lives."""

import asyncio
import contextlib
import math
from collections.abc import Callable

from sidecar.clock import Clock
from sidecar.errors import StoreError
from sidecar.tokens.holding import Holding
from sidecar.tokens.protocols import Spawn
from sidecar.tokens.sealed import SealedRecord

_SIGN = 3.0
"""Seconds between two signs of life of a holder."""
_TRIES = 2
"""A single slow answer of the store must not be taken for its end: all would ask the issuer."""
_PATIENCE = 1.5
"""Seconds that a renewal nobody was refused for gives a silent store: a machine that is busy starting many instances
is slow for a moment, and each of them would ask the issuer. A store that says no is not waited for."""
_LOOK = 0.1
_LOOK_JITTER = 0.2
"""Seconds between two looks whether the instance that has the lease is done."""


class Lease:
    """The lease of *sealed*, whose record is made one with *holding* at each look.

    *cap*: seconds after which it is over, whatever the holder waits for. It keeps others from starting, no more: a
    holder that slept through its end is stopped by the generation of its record. Here too one task at a time has it.
    `elsewhere`: another instance has it, and is waited for. `failed_at`: the monotonic moment at which the store last
    gave none.
    """

    def __init__(self, sealed: SealedRecord, holding: Holding, *, cap: float, clock: Clock, spawn: Spawn) -> None:
        self._sealed = sealed
        self._holding = holding
        self._cap = cap
        self._clock = clock
        self._spawn = spawn
        self._keeper: asyncio.Task[None] | None = None
        self._ours = asyncio.Lock()
        self.elsewhere = False
        self.failed_at = -math.inf

    async def take(self, needed: Callable[[], bool], *, patient: bool) -> bool:
        """Wait for the lease; False as soon as it is not *needed* any more. *patient*: a silent store is given time.

        Raises StoreError, reported already, when the store gives none.
        """
        await self._ours.acquire()
        failures, patience = 0, self._clock.monotonic() + (_PATIENCE if patient else 0.0)
        try:
            while True:
                end = self._clock.monotonic() + self._cap
                # A holder whose lease the store forgot takes it again first, so that its refresh token is safe.
                if not self._holding.store_forgot():
                    try:
                        held, found = await self._sealed.take(self._cap)
                    except StoreError as error:
                        failures += 1
                        self.failed_at = self._clock.monotonic()
                        waits = error.silent and self._clock.monotonic() < patience
                        if failures >= _TRIES and not waits:
                            self._holding.report("lease", error)
                            raise
                        if waits:
                            await self._rest()
                        continue
                    await self._holding.compare(found)
                    if held and self._holding.store_forgot():  # as this very look has shown
                        held = False
                        await self._sealed.release()
                    if held:
                        self._keeper = self._spawn(self._keep(end), "lease")
                        return True
                    if not needed():
                        return False
                self.elsewhere = True
                await self._rest()
        finally:
            self.elsewhere = False
            if self._keeper is None:
                self._ours.release()

    def given_back(self) -> None:
        """Take note that a write has let the next instance in."""
        if self._keeper is not None:
            self._keeper.cancel()
            self._keeper = None

    async def give_back(self) -> None:
        """Let the next instance in, if it is still held, and the next task here; once for each that was taken."""
        try:
            if self._keeper is not None:
                self.given_back()
                await self._sealed.release()
        finally:
            self._ours.release()

    async def _rest(self) -> None:
        await self._clock.sleep(_LOOK + _LOOK_JITTER * self._clock.jitter())

    async def _keep(self, end: float) -> None:
        while (left := end - self._clock.monotonic() - _SIGN) > 0:
            await self._clock.sleep(_SIGN)
            with contextlib.suppress(StoreError):
                if not (await self._sealed.take(left))[0]:
                    return
