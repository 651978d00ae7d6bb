"""The broker: who needs a token of one credential asks here, and only here store, issuer and seal meet.

Requests never wait while a usable token is in memory. Who has to wait, waits for one renewal that all share,
each to its own deadline; nobody's leaving ends it.
"""

import asyncio
import math
from collections.abc import Coroutine
from typing import Any

from sidecar.clock import Clock
from sidecar.errors import IssuerUnavailable, Reason, Refusal
from sidecar.events import Emit
from sidecar.policy.idleness import QUIET
from sidecar.policy.reading import Sign
from sidecar.settings import Renew
from sidecar.tokens.holding import Holding
from sidecar.tokens.keys import Keys
from sidecar.tokens.lease import Lease
from sidecar.tokens.look import Look
from sidecar.tokens.obtaining import KeptBack, Obtaining
from sidecar.tokens.protocols import BrokerStatus, Issuer, LastRenewal
from sidecar.tokens.record import Record
from sidecar.tokens.rejection import Rejection
from sidecar.tokens.renewal import Renewing
from sidecar.tokens.state import status_of
from sidecar.tokens.store import TokenStore
from sidecar.tokens.tasks import Tasks
from sidecar.tokens.timer import keep_fresh
from sidecar.tokens.token import Token
from sidecar.tokens.verdicts import Verdicts
from sidecar.tokens.waiting import Changes

__all__ = ["Broker", "BrokerStatus", "Issuer", "LastRenewal"]

_GRACE = 5.0
"""Seconds that a lease outlasts the longest call."""
_TO_STORE = 1.0
"""Seconds that are left at the end to store what the longest call brought."""


class Broker:
    """The tokens of one credential.

    *owner* names this instance. *configured_lifetime* is None if the user set none. *shared*: the store may forget.
    *unauthorized*: so many renewed tokens refused in a row stop forced renewals. *turns*: what the first renewal and
    looks at the store wait for, unless somebody needs them; None: nothing. `verdicts`: what upstreams say.
    """

    def __init__(
        self,
        name: str,
        issuer: Issuer,
        store: TokenStore,
        keys: Keys,
        settings: Renew,
        *,
        owner: str,
        clock: Clock,
        emit: Emit,
        configured_lifetime: float | None,
        shared: bool = False,
        unauthorized: int = 5,
        turns: asyncio.Semaphore | None = None,
    ) -> None:
        self._issuer = issuer
        self._settings = settings
        self._shared = shared
        self._turns = turns or asyncio.Semaphore()
        self._clock = clock
        self._tasks = Tasks(name, emit)
        self._changes = Changes(clock, self._tasks.spawn)
        self._closing = False
        identity = issuer.identity()
        record = Record(name, identity, store, keys, owner=owner, emit=emit)
        self._holding = Holding(record, settings.margin, clock=clock)
        self._look = Look(self._holding, self._changes, clock=clock, spawn=self._tasks.spawn)
        self.verdicts = Verdicts(name, unauthorized, settings.min_interval, emit)
        rejection = Rejection(issuer, store, keys, clock=clock)
        lease = Lease(store, identity, owner, cap=settings.timeout + _GRACE, clock=clock, spawn=self._tasks.spawn)
        self._renewing = Renewing(
            name,
            self._holding,
            Obtaining(issuer, self._holding, rejection, lease, owner=owner, clock=clock),
            rejection,
            configured_lifetime,
            clock=clock,
            emit=emit,
            spawn=self._tasks.spawn,
            changed=self._changes.changed,
        )

    async def start(self) -> None:
        """Read the store, and begin to keep the token fresh: the first renewal when it is our turn, then the timer."""
        await self.recall()
        timer = keep_fresh(
            *(self._holding, self._renewing, self._changes, self._settings, self._clock),
            turns=self._turns,
            shared=self._shared,
        )
        self._tasks.spawn(timer, "timer")

    async def recall(self) -> None:
        """Take over what the store holds, and start nothing."""
        await self._holding.reread()

    def current(self) -> Token | None:
        """Return the usable token in memory, None if there is none; a due one is renewed in the background."""
        token = self._holding.usable()
        if token is not None and not self._holding.fresh():
            self._renewing.start("due")
        return token

    async def token(self, deadline: float) -> Token:
        """Return the usable token, at once if there is one, else when a renewal has brought it.

        *deadline* is on the monotonic clock. Raises Refusal: credential_rejected, token_unavailable at the
        deadline, shutting_down after `aclose`. Cancelled or not, the renewal goes on for the others.
        """
        token = self.current()
        if token is None:
            await self._changes.until(self._supplied, deadline)
            token = self._holding.usable()
        if token is None:
            wait = self._renewing.next_at - self._clock.monotonic()
            raise Refusal(
                Reason.TOKEN_UNAVAILABLE, "the issuer gave no token in time", retry_after=max(1, math.ceil(wait))
            )
        return token

    async def after(self, used: Token, deadline: float) -> Token | None:
        """Return a newer token than *used*, which an upstream called expired; None: pass its answer on.

        A newer token that is here already, or in the store, is it. Else one renewal is forced for all who ask,
        unless the last forced one is too recent; a token whose time is over is not bound by that. *used* is
        withheld during an attempt only: an endpoint that refuses good tokens must not take down the others. An
        issuer that cannot be reached for a moment is waited for, at most `renew.timeout`. When too many renewed
        tokens were refused in a row, only a probe is forced, now and then, and nobody else waits for anything.
        """
        holding, renewing, verdicts = self._holding, self._renewing, self.verdicts
        if newer := holding.newer_than(used):
            return newer
        await self._look.take(deadline)
        if newer := holding.newer_than(used):
            return newer
        if not holding.lasts():
            try:
                return await self.token(deadline)
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

        failures = renewing.failures

        def ended() -> bool:
            kept = renewing.failures > failures and isinstance(renewing.failure, KeptBack)
            return kept or not renewing.running or holding.newer_than(used) is not None

        await self._changes.until(ended, min(deadline, self._clock.monotonic() + self._settings.timeout))
        return holding.newer_than(used)

    def heard(self, token: Token, sign: Sign, *, again: bool = False, own: bool = False) -> None:
        """Take note of what an upstream said of *token*; *again*: `after` gave it; *own*: used for its own sake."""
        verdicts, now = self.verdicts, self._clock.monotonic()
        if sign is Sign.EXPIRED:
            if again:
                verdicts.refused(token)
            return
        if own:
            verdicts.kept(token, now)
            return
        if token is not verdicts.token or now - verdicts.used_at > QUIET:
            verdicts.took(token, now)
        verdicts.used_at = now

    def beside(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Do *work* until it ends, or the broker is closed."""
        self._tasks.spawn(work, name)

    async def renew(self) -> Token:
        """Get a new token now, whatever the state, and return it; an attempt under way is joined.

        Forgets that the credential was rejected. Raises CredentialRejected or IssuerUnavailable after one
        attempt; the campaign goes on if a token is needed.
        """
        holding, renewing = self._holding, self._renewing
        before, failures = holding.held, renewing.failures
        generation = before.token.granted if before else 0

        def newer() -> Token | None:
            return holding.token if holding.token and holding.token.granted > generation else None

        renewing.force()
        await self._changes.until(
            lambda: renewing.failures > failures or not renewing.running or newer() is not None, math.inf
        )
        if token := newer():
            return token
        if renewing.failure is not None and renewing.failures > failures:
            raise renewing.failure
        raise IssuerUnavailable("the renewal was cut off")

    async def revoke(self) -> None:
        """Drop the token and its refresh token, here and in the store; a renewal under way is given up.

        Who needs a token gets a new one, and the timer sees to one at once. Raises StoreError when the store
        keeps the record.
        """
        self._holding.held = None  # at once: nobody who wakes meanwhile gets it
        await self._renewing.stop(0.0)
        try:
            await self._holding.drop()
        finally:
            self._renewing.barred = self._closing
            self._changes.changed()

    def status(self) -> BrokerStatus:
        """Return where the credential stands; starts nothing."""
        return status_of(self._holding, self._renewing, self.verdicts)

    async def aclose(self) -> None:
        """Wait for an attempt under way, as long as a call may take, store its token, then stop; issuer included.

        Waiters without a token get Refusal shutting_down. The store is shared and stays open. Twice does no harm.
        """
        self._closing = True
        await self._renewing.stop(self._settings.timeout + _TO_STORE)
        self._changes.changed()
        await self._tasks.aclose()
        await self._issuer.aclose()

    def _supplied(self) -> bool:
        """Tell whether a token can be handed out; if not, see to it that one is got."""
        if self._holding.usable() is None:
            self._renewing.start("demand")
            if self._renewing.rejected:
                raise Refusal(Reason.CREDENTIAL_REJECTED, "the issuer refused the credential; its owner must mend it")
            if self._closing and not self._renewing.running:
                raise Refusal(Reason.SHUTTING_DOWN, "the sidecar is stopping")
        return self._holding.usable() is not None
