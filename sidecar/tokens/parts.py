"""The part of a credential that lives and dies in its session: fetched anew alone, once for all who ask."""

import asyncio
import math

from sidecar.auth.grant import JAR, Values
from sidecar.clock import Clock
from sidecar.errors import ConfigurationError, IssuerError, Lapsed, StoreError
from sidecar.tokens.holding import Holding
from sidecar.tokens.lease import Lease
from sidecar.tokens.protocols import Issuer, Spawn
from sidecar.tokens.rolls import Rolls
from sidecar.tokens.token import Token
from sidecar.tokens.waiting import Changes

_FIRST = 1.0
_LONGEST = 60.0
"""Seconds without a refetch after one that brought nothing new, doubling: a plain refusal must not double the load."""


class Parts:
    """Fetches the CSRF part of what *holding* has; *timeout*: seconds that it may take."""

    def __init__(
        self,
        issuer: Issuer,
        holding: Holding,
        lease: Lease,
        rolls: Rolls,
        changes: Changes,
        *,
        timeout: float,
        clock: Clock,
        spawn: Spawn,
    ) -> None:
        self._issuer = issuer
        self._holding = holding
        self._lease = lease
        self._rolls = rolls
        self._changes = changes
        self._timeout = timeout
        self._clock = clock
        self._spawn = spawn
        self._task: asyncio.Task[None] | None = None
        self._asked: int | None = None
        self._pause = 0.0
        self._again_at = -math.inf
        self._dead: Token | None = None

    async def newer(self, used: Token, deadline: float) -> Token | None:
        """Return a token with a newer part than *used*, None if none was brought by *deadline* (monotonic clock).

        One whose cookies alone are newer is none. Raises Lapsed when the session itself was found dead.
        """
        holding = self._holding
        if (newer := self._newer(used)) or (ours := holding.token) is None or not ours.same_login(used):
            return newer
        if self._task is None or self._task.done():
            if ours.granted != self._asked:  # another session, perhaps
                self._asked, self._pause, self._again_at = ours.granted, 0.0, -math.inf
            if self._clock.monotonic() < self._again_at:
                return None
            self._dead = None
            self._task = self._spawn(self._fetch(used), "refetch")
            self._task.add_done_callback(lambda _: self._changes.changed())
        await self._changes.until(self._task.done, deadline)
        if self._dead is not None and self._dead.same_login(used) and holding.newer_than(used) is None:
            raise Lapsed("the session is dead")
        return self._newer(used)

    def _newer(self, used: Token) -> Token | None:
        newer = self._holding.newer_than(used)
        if newer is None or not newer.same_login(used):
            return newer
        return newer if _beside_cookies(newer) != _beside_cookies(used) or not _beside_cookies(used) else None

    async def _fetch(self, used: Token) -> None:
        leased, changed = False, False
        try:
            leased = await self._taken(used)
            if self._newer(used) is None and (ours := self._holding.token) is not None:
                changed = await self._ask(ours)
                await self._rolls.stored()
            else:
                changed = True
        except Lapsed:
            self._dead, changed = used, True
        except (IssuerError, ConfigurationError):
            pass  # as good as unchanged: who asked passes the answer on
        finally:
            self._pause = 0.0 if changed else min(_LONGEST, max(_FIRST, 2 * self._pause))
            self._again_at = self._clock.monotonic() + self._pause
            if leased:
                await self._lease.give_back()

    async def _taken(self, used: Token) -> bool:
        """Take the lease, so that one instance asks; a store in trouble keeps nobody from it: no login is at stake."""
        try:
            return await self._lease.take(lambda: self._newer(used) is None, patient=False)
        except StoreError:
            return False

    async def _ask(self, ours: Token) -> bool:
        grant = await self._issuer.obtain(None, self._timeout, values=ours.values)
        # With the cookies that it was fetched with: it is good in their session alone.
        fetched = {name: value for name, value in grant.values.items() if name == JAR or ours.values.get(name) != value}

        def change(values: Values) -> Values:
            return {**values, **fetched}

        return self._rolls.roll(ours, change)


def _beside_cookies(token: Token) -> Values:
    return {name: value for name, value in token.values.items() if name != JAR}
