"""One token from the issuer, under the lease: take it, read again, decide again, ask, store.

What the store's trouble means for that (docs/decisions/0013): a grant that starts anew needs no lease. A refresh
token may be taken only once, so that it is not used without one, nor after another instance may have used it,
as long as the token at hand lasts; in its last minutes a risk is better than a certain end.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace

from sidecar.auth.oauth2 import Grant
from sidecar.auth.token_answer import Unusable
from sidecar.auth.token_endpoint import BrokenOff
from sidecar.clock import Clock
from sidecar.errors import CredentialRejected, IssuerUnavailable, StoreError
from sidecar.secret import Secret
from sidecar.tokens.holding import Holding
from sidecar.tokens.lease import Lease
from sidecar.tokens.protocols import Issuer
from sidecar.tokens.record import Noted
from sidecar.tokens.rejection import Rejection
from sidecar.tokens.token import Token

_STORE_TRIES = 2
"""A single slow answer of the store must not be taken for its end: all would ask the issuer."""
_STORE_PATIENCE = 1.5
"""Seconds that a renewal nobody was refused for gives a silent store: a machine that is busy starting many instances
is slow for a moment, and each of them would ask the issuer. A store that says no is not waited for."""
_LOOK = 0.1
_LOOK_JITTER = 0.2
"""Seconds between two looks whether the instance that has the lease is done."""
_LOOK_PAUSED = 1.0
"""The same, while the issuer has asked all to wait."""
_MOMENT = 0.001


class KeptBack(IssuerUnavailable):
    """A refresh token must not be used now; nobody need wait for it."""


@dataclass(frozen=True, slots=True)
class Obtained:
    """What the issuer granted, and the token that holds now."""

    grant: Grant
    token: Token


class Obtaining:
    """Gets tokens for one credential, for the instance *owner*.

    `elsewhere`: it waits for another instance that has the lease. `called_at`: the monotonic moment of the last
    call to the issuer, or of the wait for one.
    """

    def __init__(
        self, issuer: Issuer, holding: Holding, rejection: Rejection, lease: Lease, *, owner: str, clock: Clock
    ) -> None:
        self._issuer = issuer
        self._holding = holding
        self._rejection = rejection
        self._lease = lease
        self._owner = owner
        self._clock = clock
        self.elsewhere = False
        self.called_at = 0.0

    async def obtain(self, trigger: str, needed: Callable[[], bool]) -> Obtained | None:
        """Return a new token; None as soon as it is not *needed* any more, because another instance got one.

        Raises what the issuer does, KeptBack when a refresh token must not be used now, and AlreadyRejected when
        the issuer has just refused the same secrets, unless an operator forces it.
        """
        self.called_at = self._clock.monotonic()
        leased = await self._take(needed, patient=trigger in ("start", "due"))
        try:
            if leased:
                await self._holding.reread()
            if not needed():
                return None
            secrets, generation = self._rejection.fingerprint(), self._holding.generation
            if leased and trigger != "forced":
                await self._rejection.check(secrets, generation)
            try:
                return await self._ask(trigger, leased=leased)
            except CredentialRejected as refusal:
                if leased:
                    await self._rejection.tell(refusal, secrets, generation)
                raise
            except IssuerUnavailable as busy:
                if leased and busy.retry_after:  # before the lease is given back: others wait for it already
                    await self._lease.pause(busy.retry_after)
                raise
        finally:
            if leased:
                await self._lease.give_back()

    async def pause(self, seconds: float) -> None:
        """Let no instance ask the issuer for *seconds*."""
        await self._lease.pause(seconds)

    async def _take(self, needed: Callable[[], bool], *, patient: bool) -> bool:
        """Return whether we have the lease: False when the store gives none, or when it is not needed any more."""
        token, failures = self._holding.token, 0
        give_up = self._clock.monotonic() + (_STORE_PATIENCE if patient else 0.0)
        try:
            while True:
                try:
                    # A holder whose lease the store forgot takes it again first, so that its refresh token is safe.
                    hurry = token is None or token.refresh_token is None or not self._holding.store_forgot()
                    if hurry and await self._lease.take():
                        return True
                except StoreError as error:
                    failures += 1
                    waits = error.silent and self._clock.monotonic() < give_up
                    if failures >= _STORE_TRIES and not waits:
                        self._holding.report("lease", error)
                        return False
                    if waits:
                        await self._clock.sleep(_LOOK + _LOOK_JITTER * self._clock.jitter())
                    continue
                self.elsewhere = True
                pause = _LOOK_PAUSED * (1 + self._clock.jitter()) if self._lease.paused else 0.0
                await self._clock.sleep(pause or _LOOK + _LOOK_JITTER * self._clock.jitter())
                await self._holding.reread()
                if not needed():
                    return False
        finally:
            self.elsewhere = False

    async def _ask(self, trigger: str, *, leased: bool) -> Obtained:
        # The number comes from before the call: who is late must not be taken for the newest.
        old, generation = self._holding.token, self._holding.generation + 1
        refresh_token, doubtful = await self._presentable(old, leased=leased)
        self.called_at = self._clock.monotonic()
        try:
            grant = await self._issuer.obtain(refresh_token)
        except BrokenOff:
            raise  # it may have been used: the note stays
        except Unusable as granted:
            if granted.refresh_token is not None:
                await self._keep(granted.refresh_token, old, trigger, generation)
            elif refresh_token is not None and leased and not doubtful:
                await self._holding.withdraw()
            raise
        except IssuerUnavailable:
            if refresh_token is not None and leased and not doubtful:
                await self._holding.withdraw()
            raise
        except CredentialRejected as refusal:
            if not doubtful:
                raise
            why = "another instance may have used it, and died before it could store the next refresh token"
            raise CredentialRejected(refusal.error, f"{refusal} ({why})") from None
        got = self._token(grant, refresh_token, old, trigger, generation)
        token = await self._holding.save(got, born=self.called_at)
        if not self._holding.lasts():
            raise IssuerUnavailable("the issuer granted a token that is over already")
        return Obtained(grant, token)

    async def _presentable(self, old: Token | None, *, leased: bool) -> tuple[Secret | None, bool]:
        """Return the refresh token to use, None to start anew, and whether it may have been used; raises KeptBack."""
        if old is None or old.refresh_token is None:
            return None, False
        noted = None
        if leased:
            with contextlib.suppress(StoreError):
                noted = await self._holding.note()
        if noted is Noted.NOW:
            return old.refresh_token, False
        if self._issuer.starts_anew:
            return None, False
        if noted is Noted.BY_US:  # its answer was lost
            return old.refresh_token, True
        if self._holding.until_last_minutes() > 0:
            why = "another instance may have used it" if noted else "the store is down, and others may use it too"
            raise KeptBack(f"the refresh token is kept for the last minutes of the token: {why}")
        if noted is Noted.BY_ANOTHER:
            with contextlib.suppress(StoreError):
                if await self._holding.note(last=True) is Noted.BY_ANOTHER:
                    if self._holding.lasts():
                        raise KeptBack(
                            "the refresh token was tried by two other instances; the credential needs a new one"
                        )
                    return None, False  # nothing is left to lose, and the operator may have given a new one
        return old.refresh_token, True

    async def _keep(self, refresh_token: Secret, old: Token | None, trigger: str, generation: int) -> None:
        """Store the next refresh token with the access token that is there; the one before it is spent."""
        held = self._holding.held
        if old is not None and held is not None:
            next_one = replace(
                old, generation=generation, refresh_token=refresh_token, access_generation=old.granted, by=self._owner
            )
            await self._holding.save(next_one, held.born)
        elif not self._issuer.starts_anew:
            now = self._clock.now()
            over = Grant(
                access_token=Secret("none"),
                lifetime=_MOMENT,
                requested_at=now - 1.0,
                lifetime_source="none",
                grant="refresh_token",
                scope=None,
                refresh_token=refresh_token,
            )
            await self._holding.save(self._token(over, None, None, trigger, generation), self.called_at)

    def _token(self, grant: Grant, presented: Secret | None, old: Token | None, trigger: str, generation: int) -> Token:
        forced_at = self._clock.now() if trigger == "unauthorized" else old.forced_at if old else None
        return Token(
            access_token=grant.access_token,
            issued_at=grant.requested_at,
            expires_at=grant.requested_at + grant.lifetime,
            generation=generation,
            # RFC 6749 section 6: a new one replaces the old, none keeps it; but not one that was left aside in doubt.
            refresh_token=grant.refresh_token or presented,
            scope=grant.scope,
            lifetime_source=grant.lifetime_source,
            grant=grant.grant,
            trigger=trigger,
            forced_at=forced_at,
            by=self._owner,
        )
