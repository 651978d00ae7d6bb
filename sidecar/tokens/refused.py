"""What follows when an upstream calls a token expired: a newer one, from memory, the store or a shared renewal."""

import asyncio
import math
from collections.abc import Awaitable, Callable

from sidecar.clock import Clock
from sidecar.errors import Refusal
from sidecar.tokens.holding import Holding
from sidecar.tokens.presenting import KeptBack
from sidecar.tokens.protocols import Spawn
from sidecar.tokens.renewal import Renewing
from sidecar.tokens.token import Token
from sidecar.tokens.verdicts import Verdicts
from sidecar.tokens.waiting import Changes

_EVERY = 1.0
"""Seconds between two looks at the store."""


class Refused:
    """Finds newer tokens for requests whose own was refused.

    *patience*: seconds that an issuer is waited for; for a *session* until the deadline, as the answer that is there
    helps nobody.
    """

    def __init__(
        self,
        holding: Holding,
        renewing: Renewing,
        verdicts: Verdicts,
        changes: Changes,
        *,
        patience: float,
        session: bool,
        clock: Clock,
        spawn: Spawn,
    ) -> None:
        self._holding = holding
        self._renewing = renewing
        self._verdicts = verdicts
        self._changes = changes
        self._patience = math.inf if session else patience
        self._session = session
        self._clock = clock
        self._spawn = spawn
        self._look: asyncio.Task[None] | None = None
        self._looked_at = 0.0

    async def newer(self, used: Token, deadline: float, wait: Callable[[float], Awaitable[Token]]) -> Token | None:
        """Return a newer token than *used*, None if there will be none; see `Broker.after`. *wait*: `Broker.token`."""
        holding, renewing, verdicts = self._holding, self._renewing, self._verdicts
        if newer := holding.newer_than(used):
            return newer
        await self._look_at_store(deadline)
        if newer := holding.newer_than(used):
            return newer
        if not holding.lasts():
            try:
                return await wait(deadline)
            except Refusal:
                return None
        verdicts.died(used, self._clock.monotonic())
        if verdicts.stopped and renewing.running:
            return None
        if renewing.attempting:
            holding.refuse(used)
        elif not renewing.running:
            if not (holding.may_force(verdicts.interval, probe=verdicts.stopped) and renewing.can_start()):
                return None
            holding.refuse(used)
            renewing.start("unauthorized")

        failures, deadline = renewing.failures, min(deadline, self._clock.monotonic() + self._patience)

        def ended() -> bool:
            kept = not self._session and renewing.failures > failures and isinstance(renewing.failure, KeptBack)
            over = kept or not renewing.running or renewing.hopeless(deadline)
            return over or holding.newer_than(used) is not None

        await self._changes.until(ended, deadline)
        return holding.newer_than(used)

    async def _look_at_store(self, deadline: float) -> None:
        """Take over what is newer in the store, at most once a second for all who ask; return then, or at *deadline*.

        In a task of its own, so that a client that leaves does not cut a store's conversation in two.
        """
        if self._look is None or (self._look.done() and self._clock.monotonic() - self._looked_at >= _EVERY):
            self._looked_at = self._clock.monotonic()
            self._look = self._spawn(self._holding.look(), "look")
            self._look.add_done_callback(lambda _: self._changes.changed())
        await self._changes.until(self._look.done, deadline)
