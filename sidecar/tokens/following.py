"""The issuer of a session that follows the first of its pool: a wrong password is tried once, not by all of them."""

from sidecar.auth.grant import Anew, Grant, Values
from sidecar.clock import Clock
from sidecar.errors import CredentialRejected, IssuerUnavailable, Reason, Refusal
from sidecar.secret import Secret
from sidecar.tokens.broker import Broker
from sidecar.tokens.protocols import Issuer


class Following:
    """*issuer*, which is asked only while *first*, the broker of the first session, has one."""

    def __init__(self, issuer: Issuer, first: Broker, clock: Clock) -> None:
        self._issuer = issuer
        self._first = first
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
        return await self._issuer.obtain(kept, seconds, values=values)

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
