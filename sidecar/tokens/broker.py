"""The broker: who needs a token of one credential asks here, and only here store, issuer and seal meet.

Requests never wait while a usable token is in memory. Who has to wait, waits for one renewal that all share,
each to its own deadline; nobody's leaving ends it.
"""

import asyncio
import math

from sidecar.clock import Clock
from sidecar.errors import IssuerUnavailable, Reason, Refusal
from sidecar.events import Emit
from sidecar.settings import Renew
from sidecar.tokens.holding import Holding
from sidecar.tokens.keys import Keys
from sidecar.tokens.lease import Lease
from sidecar.tokens.obtaining import KeptBack, Obtaining
from sidecar.tokens.ports import BrokerStatus, Issuer, LastRenewal
from sidecar.tokens.record import Record
from sidecar.tokens.renewal import Renewing
from sidecar.tokens.store import TokenStore
from sidecar.tokens.tasks import Tasks
from sidecar.tokens.token import Token
from sidecar.tokens.waiting import Changes

__all__ = ["Broker", "BrokerStatus", "Issuer", "LastRenewal"]

_GRACE = _SOON = 5.0
"""Seconds between two looks at a store that may lack our token, or have one that we lack."""
_LOOK = 1.0
"""Seconds between two looks at the store that a 401 may cause."""


class Broker:
    """The tokens of one credential.

    *owner* names this instance. *configured_lifetime* is None if the user set none. *shared*: the store may forget.
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
    ) -> None:
        self._issuer = issuer
        self._settings = settings
        self._shared = shared
        self._clock = clock
        self._tasks = Tasks(name, emit)
        self._changes = Changes(clock, self._tasks.spawn)
        self._timer: asyncio.Task[None] | None = None
        self._lookup: asyncio.Task[None] | None = None
        self._looked_at = 0.0
        self._closing = False
        identity = issuer.identity()
        record = Record(name, identity, store, keys, owner=owner, emit=emit)
        self._holding = Holding(record, settings.margin, clock=clock)
        lease = Lease(store, identity, owner, cap=settings.timeout + _GRACE, clock=clock, spawn=self._tasks.spawn)
        self._renewing = Renewing(
            name,
            issuer,
            self._holding,
            Obtaining(issuer, self._holding, lease, owner=owner, clock=clock),
            configured_lifetime,
            clock=clock,
            emit=emit,
            spawn=self._tasks.spawn,
            changed=self._changes.changed,
        )

    async def start(self) -> None:
        """Read the store and start the timer; without a usable token begin the first renewal and do not wait."""
        await self.recall()
        if self._holding.usable() is None:
            self._renewing.start("start")
        if self._settings.check_every > 0:
            self._timer = self._tasks.spawn(self._watch(), "timer")

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

    async def after_unauthorized(self, used: Token, deadline: float) -> Token | None:
        """Return a newer token than *used*, which an upstream refused with 401; None: pass the 401 on.

        A newer token that is here already, or in the store, is it. Else one renewal is forced for all who ask,
        unless the last forced one is too recent; a token whose time is over is not bound by that. *used* is
        withheld during an attempt only: an endpoint that refuses good tokens must not take down the others. An
        issuer that cannot be reached for a moment is waited for, at most `renew.timeout`.
        """
        holding, renewing = self._holding, self._renewing
        if newer := holding.newer_than(used):
            return newer
        await self._look(deadline)
        if newer := holding.newer_than(used):
            return newer
        if not holding.lasts():
            try:
                return await self.token(deadline)
            except Refusal:
                return None
        if renewing.attempting:
            holding.refuse(used)
        elif not renewing.running:
            if not (holding.may_force(self._settings.min_interval) and renewing.can_start()):
                return None
            holding.refuse(used)
            renewing.start("unauthorized")

        failures = renewing.failures

        def ended() -> bool:
            kept = renewing.failures > failures and isinstance(renewing.failure, KeptBack)
            return kept or not renewing.running or holding.newer_than(used) is not None

        await self._changes.until(ended, min(deadline, self._clock.monotonic() + self._settings.timeout))
        return holding.newer_than(used)

    async def renew(self) -> Token:
        """Get a new token now, whatever the state, and return it; an attempt under way is joined.

        Forgets that the credential was rejected. Raises CredentialRejected or IssuerUnavailable after one
        attempt; the campaign goes on if a token is needed.
        """
        holding, renewing = self._holding, self._renewing
        before, failures = holding.held, renewing.failures
        generation = before.token.generation if before else 0

        def newer() -> Token | None:
            return holding.token if holding.token and holding.token.generation > generation else None

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
        holding, token = self._holding, self._holding.token
        return BrokerStatus(
            state="rejected" if self._renewing.rejected else holding.state(),
            usable=holding.usable() is not None,
            attempted=self._renewing.last is not None or holding.usable() is not None,
            expires_at=token.expires_at if token else None,
            lifetime=token.lifetime if token else None,
            generation=holding.generation,
            by=token.by if token else None,
            last=self._renewing.last,
        )

    async def aclose(self) -> None:
        """Wait for an attempt under way, at most `renew.timeout`, store its token, then stop; issuer included.

        Waiters without a token get Refusal shutting_down. The store is shared and stays open. Twice does no harm.
        """
        self._closing = True
        await self._renewing.stop(self._settings.timeout)
        self._changes.changed()
        await self._tasks.aclose()
        await self._issuer.aclose()

    async def _watch(self) -> None:
        """Renew when due, and look at the store now and then; the one timer of the credential."""
        while True:
            if not self._holding.fresh():
                self._renewing.start("due")
            await self._rest()

    async def _rest(self) -> None:
        """Sleep until the token is due or was exchanged, but at most `check_every`, then look at the store."""
        held, soon = self._holding.held, self._holding.unsaved or self._renewing.rejected or self._shared
        longest = min(self._settings.check_every, _SOON) if soon else self._settings.check_every
        left = held.due - held.now(self._clock) if held else 0.0
        pause = min(left, longest) if left > 0 else longest
        moved = await self._changes.until(lambda: self._holding.held is not held, self._clock.monotonic() + pause)
        if not moved and (self._holding.fresh() or self._renewing.rejected):
            await self._holding.reread()

    def _supplied(self) -> bool:
        """Tell whether a token can be handed out; if not, see to it that one is got."""
        if self._holding.usable() is None:
            self._renewing.start("demand")
            if self._renewing.rejected:
                raise Refusal(Reason.CREDENTIAL_REJECTED, "the issuer refused the credential; its owner must mend it")
            if self._closing and not self._renewing.running:
                raise Refusal(Reason.SHUTTING_DOWN, "the sidecar is stopping")
        return self._holding.usable() is not None

    async def _look(self, deadline: float) -> None:
        """Look for a newer record in the store: one look for all who ask, at most one a second.

        In a task of its own, so that a client that leaves does not cut a store's conversation in two.
        """
        if self._lookup is None or (self._lookup.done() and self._clock.monotonic() - self._looked_at >= _LOOK):
            self._looked_at = self._clock.monotonic()
            self._lookup = self._tasks.spawn(self._holding.reread(), "look")
            self._lookup.add_done_callback(lambda _: self._changes.changed())
        await self._changes.until(self._lookup.done, deadline)
