"""When a session was last used, by any instance: one that ends without use lives on wherever it is used."""

import math
from collections.abc import Callable

from sidecar.clock import Clock
from sidecar.events import Emit
from sidecar.tokens.moment import SharedMoment
from sidecar.tokens.seal import Keys
from sidecar.tokens.store import TokenStore

_LEAST = 1.0
_SHARE = 0.05
"""Uses are told to the others at most so often: seconds, and as a share of the time after which the session ends."""


class LastUse:
    """The last use of the credential that *identity* names, which is asked when it is first needed.

    `at`: on the monotonic clock, -math.inf: none is known.
    """

    def __init__(
        self, name: str, identity: Callable[[], str], store: TokenStore, keys: Keys, clock: Clock, emit: Emit
    ) -> None:
        def make() -> SharedMoment:
            # A use is never ahead of us.
            return SharedMoment(name, identity(), store, keys, longest=0.0, clock=clock, emit=emit, kind="use")

        self._make = make
        self._clock = clock
        self._moment: SharedMoment | None = None
        self._used_at = self._told_at = -math.inf

    @property
    def at(self) -> float:
        """The last use that is known here."""
        return max(self._used_at, self._moment.until if self._moment else -math.inf)

    def note(self, idle: float) -> None:
        """Take note of a use just now of a session that ends after *idle* without; cheap, on every request's way."""
        now = self._used_at = self._clock.monotonic()
        if now - self._told_at >= max(_LEAST, _SHARE * idle):
            self._told_at = now
            self._shared().extend(0.0)

    async def look(self) -> None:
        """Read what other instances have told; with the store in trouble nothing changes."""
        await self._shared().refresh()

    async def aclose(self) -> None:
        """End what is under way; twice does no harm."""
        if self._moment is not None:
            await self._moment.aclose()

    def _shared(self) -> SharedMoment:
        if self._moment is None:
            self._moment = self._make()
        return self._moment
