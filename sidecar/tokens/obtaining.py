"""One token from the issuer, under the lease: take it, decide again, ask, store.

What can be had anew for nothing needs no lease. All else is asked for under the lease alone, and a refresh token is
presented only after that was noted in the record: who finds the note and no more knows that the token may be spent,
and keeps it (docs/decisions/0026).
"""

import contextlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace

from sidecar.auth.grant import Anew, Grant
from sidecar.clock import Clock
from sidecar.errors import (
    BrokenOff,
    ConfigurationError,
    CredentialRejected,
    IssuerUnavailable,
    Misplaced,
    SeatTaken,
    StoreError,
    Unusable,
)
from sidecar.policy import pauses
from sidecar.secret import Secret
from sidecar.tokens.governor import Governor
from sidecar.tokens.granted import granted, noted, untaken
from sidecar.tokens.holding import Holding
from sidecar.tokens.lease import Lease
from sidecar.tokens.presenting import KeptBack, Stuck, check_known, choose
from sidecar.tokens.protocols import Issuer
from sidecar.tokens.record import Presented, Record, Rejection
from sidecar.tokens.rejection import again, said, told
from sidecar.tokens.token import Token

_AWAY = 15.0
_BACK = 2.5
"""Seconds that a store's absence is remembered, and that who may have got a session meanwhile has to tell of it."""


@dataclass(frozen=True, slots=True)
class Obtained:
    """What the issuer granted, and the token that holds now."""

    grant: Grant
    token: Token


class Obtaining:
    """Gets tokens for one credential, for the instance *owner*.

    *timeout*: seconds of the calls to the issuer for one token. `called_at`: the monotonic moment of the last call to
    the issuer, or of the wait for one. `rejection`: what the last CredentialRejected means for the next call.
    """

    def __init__(
        self,
        issuer: Issuer,
        holding: Holding,
        lease: Lease,
        governor: Governor,
        *,
        timeout: float,
        owner: str,
        clock: Clock,
    ) -> None:
        self._issuer = issuer
        self._holding = holding
        self._lease = lease
        self._governor = governor
        self._timeout = timeout
        self._owner = owner
        self._clock = clock
        self._odd = 0
        self.called_at = 0.0
        self.rejection: Rejection | None = None

    @property
    def elsewhere(self) -> bool:
        """Whether it waits for another instance that has the lease."""
        return self._lease.elsewhere

    async def obtain(self, trigger: str, needed: Callable[[], bool], void: Rejection | None) -> Obtained | None:
        """Return a new token; None as soon as it is not *needed* any more, because another instance got one.

        *void*: a no that does not stand any more.

        Raises what the issuer does, with `retry_after` set where it is to be left alone for a while; KeptBack and Stuck
        when a refresh token must not be used, or no session begun; unless an operator forces it, CredentialRejected
        when any instance was just told so with the same secrets, Waiting when it was asked to wait, and SeatTaken.
        """
        self.called_at = self._clock.monotonic()
        await self._issuer.prime()
        leased = False
        try:
            leased = await self._lease.take(needed, patient=trigger in ("start", "due"))
        except StoreError as error:
            if self._issuer.anew is not Anew.FREE:
                raise KeptBack(f"nothing is asked of the issuer without the store: {error}") from None
        try:
            await self._look_again(leased=leased, forced=trigger == "forced")
            if not needed():
                return None
            if trigger != "forced":
                self._governor.check()
                if no := told(self._holding.record, self._issuer, self._clock.now(), void):
                    self.rejection = no
                    raise again(no, self._clock.now())
            return await self._ask(trigger, await self._count(trigger, leased=leased), leased=leased)
        finally:
            if leased:
                await self._lease.give_back()

    async def _look_again(self, *, leased: bool, forced: bool) -> None:
        """See whether the session that is held is in use elsewhere, and whether another one is about to be told of.

        Who logged in before the store went away tells of it when it is back: a login before that would end its session.
        """
        if self._holding.lapsed:
            await self._holding.look_at_use()
        away = self._clock.monotonic() - self._lease.failed_at < _AWAY
        if leased and away and not forced and self._issuer.anew is Anew.EVICTS:
            await self._clock.sleep(_BACK)
            try:
                await self._holding.refetch()
            except StoreError as error:
                raise KeptBack(f"nobody logs in without the store: {error}") from None

    async def _count(self, trigger: str, *, leased: bool) -> int:
        """Return how many sessions in a row were taken by now; raises SeatTaken, which is noted for all."""
        record = self._holding.record
        try:
            return self._governor.count(record) if trigger == "unauthorized" else record.taken
        except SeatTaken as pause:
            free_at = self._clock.now() + (pause.retry_after or 0.0)
            await self._resolve(replace(record, taken=record.taken + 1, seat_free=free_at), leased=leased)
            raise

    async def _ask(self, trigger: str, taken: int, *, leased: bool) -> Obtained:
        before = draft = self._holding.record
        salt = before.rejection.salt if before.rejection else secrets.token_hex(8)
        fingerprint = self._issuer.fingerprint(salt)
        end = self._clock.monotonic() + self._timeout
        presented: Secret | None = None
        try:
            while True:
                kept, draft = await self._next(draft, leased=leased, forced=trigger == "forced")
                presented = kept or self._issuer.first()
                self.called_at = self._clock.monotonic()
                try:
                    grant = await self._issuer.obtain(kept, end - self.called_at)
                    break
                except CredentialRejected as refusal:
                    if kept is None or not self._moves_on(draft, refusal):
                        raise
                    draft = replace(draft, kept=None, presented=None, rotates=None)
        except KeptBack:
            raise
        except CredentialRejected as refusal:
            self.rejection = no = said(refusal, before.rejection, salt, fingerprint, self._clock)
            if not isinstance(refusal, Stuck):
                # Where nothing is had anew for nothing, what was refused may be taken again one day.
                kept = draft.kept if self._issuer.anew is Anew.FREE else before.kept
                draft = replace(untaken(draft, before), kept=kept, presented=None, rejection=no)
                await self._resolve(draft, leased=leased)
            raise
        except Unusable as useless:
            useless.retry_after = self._pause(useless)
            draft = replace(draft, kept=useless.kept or presented, presented=None)
            await self._resolve(self._waiting(draft, useless), leased=leased)
            raise
        except IssuerUnavailable as busy:
            busy.retry_after = self._pause(busy)
            if not isinstance(busy, BrokenOff):
                draft = untaken(draft, before)
            elif draft.presented is not None:
                draft = replace(draft, presented=Presented(by=self._owner, lost=True))
            await self._resolve(self._waiting(draft, busy), leased=leased)
            raise
        except ConfigurationError:
            await self._resolve(untaken(draft, before), leased=leased)
            raise
        self._odd = 0
        record = granted(grant, presented, replace(draft, taken=taken), trigger, by=self._owner, now=self._clock.now())
        if await self._holding.save(record, self.called_at, forced=trigger == "forced", release=leased):
            self._lease.given_back()
        if (token := self._holding.token) is None or not self._holding.lasts():
            raise IssuerUnavailable("the issuer granted a token that is over already")
        return Obtained(grant, token)

    async def _next(self, draft: Record, *, leased: bool, forced: bool) -> tuple[Secret | None, Record]:
        """Return what to ask with, None for what is configured alone, and the record in which that is noted."""
        anew, holding = self._issuer.anew, self._holding
        if not leased:
            return None, draft
        if anew is not Anew.FREE:
            check_known(holding.unreadable, anew, unsaved=holding.unsaved)
        kept, claimed = choose(draft, anew, self._owner, forced=forced, lasts=holding.lasts())
        if claimed.presented is None:
            return None, claimed
        try:
            if not await holding.write(claimed):
                raise KeptBack("another instance was faster")
            claimed = holding.record
            await holding.mark()
        except StoreError as error:
            if anew is Anew.FREE:
                return None, replace(draft, presented=None)
            await self._resolve(draft, leased=True)
            raise KeptBack(f"the use of the refresh token cannot be noted, so that it is kept: {error}") from None
        return kept, claimed

    def _moves_on(self, draft: Record, refusal: CredentialRejected) -> bool:
        """Tell whether something else may be tried after a refused refresh; not where the client was refused."""
        if self._issuer.anew is Anew.FREE:
            return refusal.error != "invalid_client"
        # What the release before presented is not known: only a login that has ended anyway has nothing to lose.
        return refusal.error == "invalid_grant" and not draft.claimed

    def _pause(self, trouble: IssuerUnavailable) -> float | None:
        """Return the seconds in which nobody should ask, None where nobody said so."""
        odd = isinstance(trouble, Misplaced | Unusable)
        self._odd = self._odd + 1 if odd else 0
        if not odd:
            return trouble.retry_after and min(trouble.retry_after, pauses.LONGEST)
        pause = pauses.unusable if isinstance(trouble, Unusable) else pauses.misplaced
        return max(min(trouble.retry_after or 0.0, pauses.LONGEST), pause(self._odd, self._clock.jitter()))

    def _waiting(self, draft: Record, trouble: IssuerUnavailable) -> Record:
        asked = trouble.retry_after
        return replace(draft, not_before=self._clock.now() + asked) if asked else draft

    async def _resolve(self, record: Record, *, leased: bool) -> None:
        """Write what became of it, and let the next instance in; with a store in trouble it is known here alone."""
        if record == self._holding.record:
            return
        login = self._holding.login
        with contextlib.suppress(StoreError):
            if leased:
                # First the mark: what is marked and not in the record would count as spent.
                await self._holding.unmark(record)
                if await self._holding.write(record, release=True):
                    self._lease.given_back()
                    return
                await self._holding.refetch()
                rolled = self._holding.login == login and self._issuer.anew is not Anew.ONCE
                if rolled and await self._holding.write(noted(record, self._holding.record)):
                    return
        self._holding.record = noted(record, self._holding.record)
