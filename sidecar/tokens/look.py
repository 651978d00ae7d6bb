"""Looking at the store because of a 401: another process may have renewed already."""

import asyncio

from sidecar.clock import Clock
from sidecar.tokens.holding import Holding
from sidecar.tokens.protocols import Spawn
from sidecar.tokens.waiting import Changes

_EVERY = 1.0


class Look:
    """One look for all who ask, at most one a second; `at`: the monotonic moment of the last."""

    def __init__(self, holding: Holding, changes: Changes, *, clock: Clock, spawn: Spawn) -> None:
        self._holding = holding
        self._changes = changes
        self._clock = clock
        self._spawn = spawn
        self._task: asyncio.Task[None] | None = None
        self.at = 0.0

    async def take(self, deadline: float) -> None:
        """Take over what is newer in the store; return when that is done, or at *deadline*.

        In a task of its own, so that a client that leaves does not cut a store's conversation in two.
        """
        if self._task is None or (self._task.done() and self._clock.monotonic() - self.at >= _EVERY):
            self.at = self._clock.monotonic()
            self._task = self._spawn(self._holding.reread(), "look")
            self._task.add_done_callback(lambda _: self._changes.changed())
        await self._changes.until(self._task.done, deadline)
