"""The broker: who needs a token of one credential asks here, and only here store, issuer and seal meet.

Requests never wait while a usable token is in memory. Who has to wait, waits for one renewal that all share,
each to its own deadline; nobody's leaving ends it.
"""

import asyncio
import math
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from sidecar.auth.grant import Anew
from sidecar.clock import Clock
from sidecar.errors import IssuerUnavailable, Reason, Refusal
from sidecar.events import Emit
from sidecar.policy.reading import Sign
from sidecar.settings import Renew
from sidecar.tokens.holding import Holding
from sidecar.tokens.lease import Lease
from sidecar.tokens.marker import Marker
from sidecar.tokens.obtaining import Obtaining
from sidecar.tokens.protocols import BrokerStatus, Issuer, LastRenewal
from sidecar.tokens.refused import Refused
from sidecar.tokens.renewal import Renewing
from sidecar.tokens.seal import Keys
from sidecar.tokens.sealed import SealedRecord
from sidecar.tokens.store import TokenStore
from sidecar.tokens.timer import keep_fresh
from sidecar.tokens.token import Token
from sidecar.tokens.verdicts import Verdicts
from sidecar.tokens.waiting import Changes, Tasks

__all__ = ["Broker", "BrokerStatus", "Issuer", "LastRenewal"]

_GRACE = 5.0
"""Seconds that a lease outlasts the longest call."""
_TO_STORE = 1.0
"""Seconds that are left at the end to store what the longest call brought."""


class Broker:
    """The tokens of one credential, for the upstream *name* and every other that has it too.

    *owner* names this instance. *configured_lifetime* is None if the user set none. *shared*: the store may forget.
    *unauthorized*: so many renewed tokens refused in a row stop forced renewals. *turns*: what the first renewal and
    looks at the store wait for, unless somebody needs them; None: nothing. *former*: the credential's name in the
    release before. *marks*: the directory where it is noted which first refresh tokens were presented; None: nowhere.
    `verdicts`: what upstreams say.
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
        former: str | None = None,
        marks: Path | None = None,
    ) -> None:
        self._issuer = issuer
        self._settings = settings
        self._shared = shared
        self._marks = marks
        self._turns = turns or asyncio.Semaphore()
        self._clock = clock
        self._tasks = Tasks(name, emit)
        self._changes = Changes(clock, self._tasks.spawn)
        self._closing = False
        self._sealed = SealedRecord(self._identify, store, keys, owner=owner, former=former)
        once = issuer.anew is Anew.ONCE
        self._holding = Holding(name, self._sealed, settings.margin, once=once, clock=clock, emit=emit)
        self.verdicts = Verdicts(name, unauthorized, settings.min_interval, emit)
        cap = settings.timeout + _GRACE
        lease = Lease(self._sealed, self._holding, cap=cap, clock=clock, spawn=self._tasks.spawn)
        self._renewing = Renewing(
            name,
            issuer,
            self._holding,
            Obtaining(issuer, self._holding, lease, timeout=settings.timeout, owner=owner, clock=clock),
            configured_lifetime,
            clock=clock,
            emit=emit,
            spawn=self._tasks.spawn,
            changed=self._changes.changed,
        )
        self._refused = Refused(
            *(self._holding, self._renewing, self.verdicts, self._changes),
            patience=settings.timeout,
            clock=clock,
            spawn=self._tasks.spawn,
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
        await self._holding.look()

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
            await self._changes.until(lambda: self._supplied(deadline), deadline)
            token = self._holding.usable()
        if token is None:
            raise self._unavailable()
        return token

    async def after(self, used: Token, deadline: float) -> Token | None:
        """Return a newer token than *used*, which an upstream called expired; None: pass its answer on.

        A newer token that is here already, or in the store, is it. Else one renewal is forced for all who ask,
        unless the last forced one is too recent; a token whose time is over is not bound by that. *used* is
        withheld during an attempt only: an endpoint that refuses good tokens must not take down the others. An
        issuer that cannot be reached for a moment is waited for, at most `renew.timeout`. When too many renewed
        tokens were refused in a row, only a probe is forced, now and then, and nobody else waits for anything.
        """
        return await self._refused.newer(used, deadline, self.token)

    def heard(self, token: Token, sign: Sign, *, again: bool = False, own: bool = False) -> None:
        """Take note of what an upstream said of *token*; *again*: `after` gave it; *own*: used for its own sake."""
        if sign is not Sign.EXPIRED:
            self.verdicts.accepted(token, self._clock.monotonic(), own=own)
        elif again:
            self.verdicts.refused(token)

    def beside(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Do *work* until it ends, or the broker is closed."""
        self._tasks.spawn(work, name)

    async def renew(self) -> Token:
        """Get a new token now, whatever the state, and return it; an attempt under way is joined.

        Forgets that the credential was rejected. Raises CredentialRejected or IssuerUnavailable after one
        attempt; the campaign goes on if a token is needed.
        """
        holding, renewing = self._holding, self._renewing
        granted, failures = holding.granted, renewing.failures

        def newer() -> Token | None:
            return holding.token if holding.granted > granted else None

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
        holding, renewing = self._holding, self._renewing
        token, usable = holding.token, holding.usable() is not None
        return BrokerStatus(
            state="rejected" if renewing.rejected else holding.state(),
            usable=usable,
            attempted=renewing.last is not None or usable,
            token=token,
            expires_in=token.expires_at - holding.held.now(self._clock) if token and holding.held else None,
            generation=holding.granted,
            last=renewing.last,
            sealed_with=self._sealed.place,
            forced_renewals="stopped" if self.verdicts.stopped else "allowed",
        )

    async def aclose(self) -> None:
        """Wait for an attempt under way, as long as a call may take, store its token, then stop; issuer included.

        Waiters without a token get Refusal shutting_down. The store is shared and stays open. Twice does no harm.
        """
        self._closing = True
        await self._renewing.stop(self._settings.timeout + _TO_STORE)
        await self._tasks.aclose()
        await self._issuer.aclose()

    def _supplied(self, deadline: float) -> bool:
        """Tell whether a token can be handed out; if not, see to it that one is got. Raises Refusal if none will be."""
        renewing = self._renewing
        if self._holding.usable() is None:
            renewing.start("demand")
            if renewing.rejected:
                raise Refusal(Reason.CREDENTIAL_REJECTED, f"{renewing.failure}")
            if self._closing and not renewing.running:
                raise Refusal(Reason.SHUTTING_DOWN, "the sidecar is stopping")
            if renewing.hopeless(deadline):
                raise self._unavailable()
        return self._holding.usable() is not None

    def _unavailable(self) -> Refusal:
        wait, failure = self._renewing.next_at - self._clock.monotonic(), self._renewing.failure
        detail = f"the issuer gave no token in time{f': {failure}' if failure else ''}"
        return Refusal(Reason.TOKEN_UNAVAILABLE, detail, retry_after=max(1, math.ceil(wait)))

    def _identify(self) -> str:
        """Return what names the record, and find the mark of what it began with; raises ConfigurationError."""
        identity, first = self._issuer.identity(), self._issuer.first()
        if first is not None and self._marks is not None:
            self._holding.marker = Marker(self._marks, first)
        return identity
