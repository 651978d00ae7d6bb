"""The broker: who needs a token of one credential asks here, and only here store, issuer and seal meet.

Requests never wait while a usable token is in memory. Who has to wait, waits for one renewal that all share,
each to its own deadline; nobody's leaving ends it.
"""

import asyncio
from collections.abc import Coroutine
from functools import partial
from pathlib import Path
from typing import Any

from sidecar.auth.grant import Anew
from sidecar.clock import Clock
from sidecar.errors import Lapsed
from sidecar.events import Emit
from sidecar.policy.reading import CSRF, LOGIN, Sign
from sidecar.policy.seat import Seat
from sidecar.settings import Renew
from sidecar.tokens.acts import Acts
from sidecar.tokens.governor import Governor
from sidecar.tokens.hearing import Hearing
from sidecar.tokens.holding import Holding
from sidecar.tokens.idle import LastUse
from sidecar.tokens.lease import Lease
from sidecar.tokens.marker import Marker
from sidecar.tokens.obtaining import Obtaining
from sidecar.tokens.parts import Parts
from sidecar.tokens.protocols import BrokerStatus, Issuer, LastRenewal
from sidecar.tokens.refused import Refused
from sidecar.tokens.renewal import Renewing
from sidecar.tokens.rolls import Change, Rolls
from sidecar.tokens.seal import Keys
from sidecar.tokens.sealed import SealedRecord
from sidecar.tokens.store import TokenStore, store_key
from sidecar.tokens.supply import Supply
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
    *session*: what is refused helps nobody any more, so that another is obtained whenever that may be. *seat*: the
    account has one session only; None: any number. `verdicts`: what upstreams say; `session`: as given.
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
        session: bool = False,
        seat: Seat | None = None,
    ) -> None:
        self._issuer = issuer
        self._marks = marks
        self.session = session
        self._tasks = Tasks(name, emit)
        spawn = self._tasks.spawn
        self._changes = changes = Changes(clock, spawn)
        self._closing = False
        self._sealed = SealedRecord(self._identify, store, keys, owner=owner, former=former)
        self._use = use = LastUse(name, issuer.identity, store, keys, clock, emit)
        once = issuer.anew is Anew.ONCE
        self._holding = holding = Holding(
            name, self._sealed, settings.margin, once=once, clock=clock, emit=emit, use=use
        )
        self.verdicts = verdicts = Verdicts(name, unauthorized, 0.0 if session else settings.min_interval, emit)
        self._governor = governor = Governor(name, seat, holding, clock, emit)
        timeout, self._longest = settings.timeout, settings.timeout + _TO_STORE
        lease = Lease(self._sealed, holding, cap=timeout + _GRACE, clock=clock, spawn=spawn)
        self._renewing = renewing = Renewing(
            name,
            issuer,
            holding,
            Obtaining(issuer, holding, lease, governor, timeout=timeout, owner=owner, clock=clock),
            configured_lifetime,
            clock=clock,
            emit=emit,
            spawn=spawn,
            changed=changes.changed,
            session=session,
        )
        turns = turns or asyncio.Semaphore()
        self._timer = partial(keep_fresh, holding, renewing, changes, settings, clock, turns=turns, shared=shared)
        self._supply = Supply(
            *(holding, renewing, governor, verdicts, changes), clock=clock, closing=lambda: self._closing
        )
        self._refused = Refused(
            *(holding, renewing, verdicts, changes), patience=timeout, session=session, clock=clock, spawn=spawn
        )
        self._rolls = rolls = Rolls(holding, spawn, changes.changed)
        self._parts = Parts(issuer, holding, lease, rolls, changes, timeout=timeout, clock=clock, spawn=spawn)
        self._hearing = Hearing(*(issuer, holding, renewing, governor, verdicts, use), clock=clock, spawn=spawn)
        self._acts = Acts(
            *(name, issuer, holding, renewing, changes), patience=timeout, clock=clock, emit=emit, spawn=spawn
        )

    async def start(self) -> None:
        """Read the store, and begin to keep the token fresh: the first renewal when it is our turn, then the timer."""
        await self.recall()
        self._tasks.spawn(self._timer(), "timer")

    async def recall(self) -> None:
        """Take over what the store holds, and start nothing."""
        await self._holding.look()

    def current(self) -> Token | None:
        """Return the usable token in memory, None if there is none; a due one is renewed in the background."""
        return self._supply.current()

    async def token(self, deadline: float) -> Token:
        """Return the usable token, at once if there is one, else when a renewal has brought it.

        *deadline* is on the monotonic clock. Raises Refusal: credential_rejected, seat_taken, token_unavailable at the
        deadline, shutting_down after `aclose`. Cancelled or not, the renewal goes on for the others.
        """
        return await self._supply.token(deadline)

    def newer(self, used: Token) -> Token | None:
        """Return a newer token than *used* if it can be handed out now; starts nothing."""
        return self._holding.newer_than(used)

    async def after(self, used: Token, deadline: float, part: str = LOGIN) -> Token | None:
        """Return a newer token than *used*, which an upstream called expired; None: pass its answer on.

        A newer token that is here already, or in the store, is it. Else one renewal is forced for all who ask, unless
        the last forced one is too recent; a token whose time is over is not bound by that. *used* is withheld during an
        attempt only: an endpoint that refuses good tokens must not take down the others. An issuer that cannot be
        reached for a moment is waited for, at most `renew.timeout`. When too many renewed tokens were refused in a row,
        only a probe is forced, now and then, and nobody else waits for anything.

        Of a session: no interval is kept, it is waited for until *deadline*, and where there is no newer one that is
        raised: Refusal, as by `token`. With *part* CSRF that part alone is fetched anew, once for all who ask, and None
        means as well that it is as it was; where the session is dead, it is as without *part*.
        """
        if part == CSRF:
            try:
                return await self._parts.newer(used, deadline)
            except Lapsed:
                used = self._holding.token or used
        newer = await self._refused.newer(used, deadline, self.token)
        if newer is None and self.session:
            raise self._supply.refusal()
        return newer

    def heard(self, token: Token, sign: Sign, part: str = LOGIN, *, again: bool = False, own: bool = False) -> None:
        """Take note of what an upstream said of *token*, or of a *part* of it, whose death it outlives.

        *again*: `after` gave it; *own*: used for its own sake. Sign.REJECTED: the token is dropped, if it is the one
        that is held, and none handed out to anybody until a secret of the credential changes.
        """
        self._hearing.heard(token, sign, part, again=again, own=own)

    def roll(self, token: Token, change: Change) -> None:
        """Change the values that are held, if they are of the login of *token*: here at once, in the store in a moment.

        What comes of it is a newer token with the same times. *change* may be asked again, with what another instance
        has stored meanwhile.
        """
        self._rolls.roll(token, change)

    def beside(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Do *work* until it ends, or the broker is closed."""
        self._tasks.spawn(work, name)

    async def renew(self) -> Token:
        """Get a new token now, whatever the state, and return it; an attempt under way is joined.

        Forgets that the credential was rejected. Raises CredentialRejected or IssuerUnavailable after one
        attempt; the campaign goes on if a token is needed.
        """
        return await self._acts.renew()

    async def revoke(self) -> None:
        """Drop the token and its refresh token, here and in the store; a renewal under way is given up.

        A session is logged out first. Who needs a token gets a new one, and the timer sees to one at once. Raises
        StoreError when the store keeps the record.
        """
        try:
            await self._acts.revoke(logout=self.session)
        finally:
            self._renewing.barred = self._closing
            self._changes.changed()

    async def logout(self) -> None:
        """End the session that is held, for good: nothing is obtained here any more.

        Nothing is raised: what goes wrong is told, and takes `renew.timeout` at most, after a renewal under way.
        """
        self._closing = True
        await self._acts.logout()
        self._changes.changed()

    def status(self) -> BrokerStatus:
        """Return where the credential stands; starts nothing."""
        return self._supply.status(self._sealed.place)

    def key(self) -> str:
        """Return the name of the record in the store; raises ConfigurationError."""
        return store_key(self._identify())

    async def aclose(self) -> None:
        """Wait for an attempt under way, as long as a call may take, store its token, then stop; issuer included.

        Waiters without a token get Refusal shutting_down. The store is shared and stays open. Twice does no harm.
        """
        self._closing = True
        await self._renewing.stop(self._longest)
        await self._use.aclose()
        await self._tasks.aclose()
        await self._issuer.aclose()

    def _identify(self) -> str:
        """Return what names the record, and find the mark of what it began with; raises ConfigurationError."""
        identity, first = self._issuer.identity(), self._issuer.first()
        if first is not None and self._marks is not None:
            self._holding.marker = Marker(self._marks, first)
        return identity
