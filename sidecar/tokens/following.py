"""The issuer of a session that follows the first of its pool: a wrong password is tried once, not by all of them."""

import asyncio
from dataclasses import dataclass, field

from sidecar.auth.grant import Anew, Grant, Values
from sidecar.clock import Clock
from sidecar.errors import CredentialRejected, IssuerUnavailable, Reason, Refusal
from sidecar.secret import Secret
from sidecar.tokens.broker import Broker
from sidecar.tokens.protocols import Issuer


@dataclass(slots=True)
class Others:
    """What the sessions after the first have in common: one logs in at a time; *refused*: what was refused, ""."""

    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    refused: str = ""


class Following:
    """*issuer*, which is asked only while *first*, the broker of the first session, has one, and none of *others* was
    refused with the same secrets.
    """

    def __init__(self, issuer: Issuer, first: Broker, others: Others, clock: Clock) -> None:
        self._issuer = issuer
        self._first = first
        self._others = others
        self._clock = clock

    @property
    def anew(self) -> Anew:
        """As the issuer's."""
        return self._issuer.anew

    async def obtain(self, kept: Secret | None, seconds: float, *, values: Values | None = None) -> Grant:
        """Obtain the credential as the issuer does, once the first session is there.

        Raises CredentialRejected where that was refused, IssuerUnavailable where it is not there within *seconds*.
        """
        if values is None and self._first.status().state == "rejected":
            raise CredentialRejected("", "the first session of the pool was refused; this one does not try")
        if values is None and self._first.current() is None:
            try:
                await self._first.token(self._clock.monotonic() + seconds)
            except Refusal as refusal:
                if refusal.reason is Reason.CREDENTIAL_REJECTED:
                    raise CredentialRejected("", refusal.detail) from None
                raise IssuerUnavailable(refusal.detail, retry_after=refusal.retry_after) from None
        if values is not None:
            return await self._issuer.obtain(kept, seconds, values=values)
        async with self._others.turn:
            shown = self._issuer.fingerprint("")
            if shown == self._others.refused:
                raise CredentialRejected("", "another session of the pool was refused; this one does not try")
            try:
                grant = await self._issuer.obtain(kept, seconds)
            except CredentialRejected:
                self._others.refused = shown
                raise
            self._others.refused = ""
            return grant

    async def release(self, values: Values, seconds: float) -> None:
        """As the issuer does."""
        await self._issuer.release(values, seconds)

    async def prime(self) -> None:
        """As the issuer does."""
        await self._issuer.prime()

    def first(self) -> Secret | None:
        """As the issuer does."""
        return self._issuer.first()

    def identity(self) -> str:
        """As the issuer does."""
        return self._issuer.identity()

    def fingerprint(self, salt: str) -> str:
        """As the issuer does."""
        return self._issuer.fingerprint(salt)

    async def aclose(self) -> None:
        """As the issuer does."""
        await self._issuer.aclose()
