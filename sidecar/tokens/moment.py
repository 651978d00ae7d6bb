"""A moment in time that all instances share through the store, such as the end of a pause: the latest one counts.

The store is never on a request's way: it is told and looked at beside them, and its trouble changes nothing. The
record's generation is the moment in milliseconds of the store's clock; a later one wins, damage gives way.
"""

import asyncio
import contextlib

from sidecar.clock import Clock
from sidecar.errors import SealError, StoreError, UnknownSeal
from sidecar.events import Emit
from sidecar.tokens.seal import Keys
from sidecar.tokens.store import TokenStore, store_key
from sidecar.tokens.waiting import Tasks

_LOOK = 1.0
"""Seconds between two looks at the store, while there are requests."""
_WORTH_TELLING = 500
"""Milliseconds by which a pause must be longer than the one all know of: a burst of 429s is told of once."""
_WRITES = 3


class SharedMoment:
    """A moment of the *kind* that belongs to *identity*, for the upstream *name*.

    *longest*: none is believed to be further away, in seconds from when we heard of it. *absurd*:
    seconds ahead at which who wrote it had a wrong clock. `until` and `look_at` are on
    the monotonic clock: the moment, and when `look` is worth calling.
    """

    def __init__(
        self,
        name: str,
        identity: str,
        store: TokenStore,
        keys: Keys,
        *,
        longest: float,
        clock: Clock,
        emit: Emit,
        kind: str = "pause-upstream",
        absurd: float = 86400.0,
    ) -> None:
        self._key = store_key(identity, kind)
        self._store = store
        self._keys = keys
        self._longest = longest
        self._absurd = absurd
        self._clock = clock
        self._tasks = Tasks(name, emit)
        self._telling: asyncio.Task[None] | None = None
        self._end = 0
        self._known = 0
        self._after = 0  # what our next write may replace
        self.until = 0.0
        self.look_at = 0.0

    def extend(self, seconds: float) -> None:
        """Let the moment be *seconds* from now, if that is later: here at once, elsewhere once the store is read."""
        self.until = max(self.until, self._clock.monotonic() + seconds)
        self._end = max(self._end, int((self._clock.now() + self._store.offset + seconds) * 1000))
        if self._is_news() and (self._telling is None or self._telling.done()):
            self._telling = self._tasks.spawn(self._tell(), "pause")

    def look(self) -> None:
        """Look at the store beside the request that asks; at most once a second, whoever asks."""
        now = self._clock.monotonic()
        if now >= self.look_at:
            self.look_at = now + _LOOK
            self._tasks.spawn(self.refresh(), "pause")

    async def refresh(self) -> None:
        """Read the store now; its trouble changes nothing."""
        with contextlib.suppress(StoreError):
            await self._read()

    async def told(self) -> None:
        """Wait until what is known here alone stands in the store, or cannot; at once where there is nothing."""
        if self._telling is not None:
            await asyncio.wait({self._telling})

    async def aclose(self) -> None:
        """End what is under way; twice does no harm."""
        await self._tasks.aclose()

    def _is_news(self) -> bool:
        return self._end > self._known + _WORTH_TELLING

    async def _tell(self) -> None:
        with contextlib.suppress(StoreError):
            for _ in range(_WRITES):
                if not self._is_news():
                    return
                end = self._end
                if await self._store.write(self._key, self._keys.seal(self._key, b"%d" % end), end, after=self._after):
                    self._known = self._after = end
                else:
                    await self._read()

    async def _read(self) -> None:
        """Take over a pause that we do not know of yet: each one once, so that it ends even if its record is wrong."""
        found = await self._store.read(self._key)
        end, left = found.generation, found.generation / 1000 - (self._clock.now() + self._store.offset)
        if end > self._known:
            try:
                if left > self._absurd:
                    raise SealError("a moment further away than any may be")
                # The number beside the seal is not authenticated.
                if self._keys.open(self._key, found.sealed) != b"%d" % end:
                    raise SealError("a pause under an end that is not its own")
                self._known = end
                self.until = max(self.until, self._clock.monotonic() + min(left, self._longest))
            except UnknownSeal:
                if end >= self._end:
                    return  # it may serve others
            except SealError:
                pass  # an honest one is written over it
        self._after = end
