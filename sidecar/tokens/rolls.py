"""Values that change within a login: rolled by the upstream's answers, or one part of them fetched anew.

In memory at once, in the store a moment later, one write at a time: answers never wait for it.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable

from sidecar.auth.grant import Values
from sidecar.errors import StoreError
from sidecar.tokens.holding import Holding
from sidecar.tokens.protocols import Spawn
from sidecar.tokens.token import Token

Change = Callable[[Values], Values | None]
"""From the values that are held to those to be held; None: they stay. Applied again, it changes nothing more."""

_KEPT = 32
"""Changes that are remembered until they are written: of more, the first are only known here."""
_WRITES = 8
"""How often a write gives way to another instance's, before the next look at the store sees to it."""


class Rolls:
    """The changes of what *holding* has, within one login."""

    def __init__(self, holding: Holding, spawn: Spawn, changed: Callable[[], None]) -> None:
        self._holding = holding
        self._spawn = spawn
        self._changed = changed
        self._pending: deque[tuple[Token, Change]] = deque(maxlen=_KEPT)
        self._writing: asyncio.Task[None] | None = None

    def roll(self, token: Token, change: Change) -> bool:
        """Apply *change* if what is held came of the login of *token*; return whether there are other values now."""
        if not self._apply([(token, change)]):
            return False
        self._pending.append((token, change))
        if self._writing is None or self._writing.done():
            self._writing = self._spawn(self._write(), "roll")
        self._changed()
        return True

    async def stored(self) -> None:
        """Wait until nothing is being written."""
        if self._writing is not None and not self._writing.done():
            await asyncio.wait({self._writing})

    def _apply(self, changes: Iterable[tuple[Token, Change]]) -> bool:
        """Hold what *changes* make of what is held; return whether that is new. One of another login does nothing."""
        ours = self._holding.token
        if ours is None:
            return False
        values = ours.values
        for token, change in changes:
            if ours.same_login(token):
                values = change(values) or values
        if values == ours.values:
            return False
        self._holding.roll(values)
        return True

    async def _write(self) -> None:
        holding, misses = self._holding, 0
        try:
            while misses < _WRITES:
                # What came from the store meanwhile was rolled elsewhere; or it is of another login, which wins.
                self._apply(self._pending)
                written, ours = tuple(self._pending), holding.token
                if ours is None or not any(ours.same_login(token) for token, _ in written):
                    self._pending.clear()
                    return
                if await holding.publish():
                    while self._pending and any(self._pending[0] is each for each in written):
                        self._pending.popleft()
                else:
                    misses += 1
                    await holding.refetch()
            raise StoreError("ever newer records are in the way")
        except StoreError as error:
            self._pending.clear()
            holding.unsaved = holding.held is not None
            holding.report("write", error)
