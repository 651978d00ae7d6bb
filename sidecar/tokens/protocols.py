"""What the broker needs of its neighbours, and what it tells of itself."""

import asyncio
import math
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol

from sidecar.auth.grant import Anew, Grant, Values
from sidecar.secret import Secret
from sidecar.tokens.token import Token

Spawn = Callable[[Coroutine[Any, Any, None], str], "asyncio.Task[None]"]
"""Runs work in a named task that is kept."""


class Issuer(Protocol):
    """A token endpoint, or a login, with the credential for it."""

    @property
    def anew(self) -> Anew:
        """What it costs to obtain the credential from what is configured alone."""
        ...

    async def obtain(self, kept: Secret | None, seconds: float, *, values: Values | None = None) -> Grant:
        """Obtain the credential with *kept*, what an earlier Grant left for this; None: from what is configured alone.

        *values*: those of the credential that is held, of which only the part that lives in it (`CSRF`) is to be
        obtained anew; the Grant has all of them then, and None instead: all of it. Nothing else is tried. Raises
        CredentialRejected; IssuerUnavailable, which is BrokenOff after *seconds*, and Lapsed when *values* are dead;
        ConfigurationError for a secret that cannot be read.
        """
        ...

    async def release(self, values: Values, seconds: float) -> None:
        """Tell the other side that *values* are used no more (a logout); does nothing where that is not known.

        Raises IssuerUnavailable when it could not be told within *seconds*.
        """
        ...

    async def prime(self) -> None:
        """Run the programs that secrets come from, where that is due, so that no call below waits for one."""
        ...

    def first(self) -> Secret | None:
        """Return the configured refresh token, where it may be presented once only (Anew.ONCE); else None.

        Raises ConfigurationError when it cannot be read.
        """
        ...

    def identity(self) -> str:
        """Return what the credential is, as canonical text without secrets; the same after a restart.

        Raises ConfigurationError when a secret that it needs a hash of cannot be read.
        """
        ...

    def fingerprint(self, salt: str) -> str:
        """Return what changes with any of the credential's secrets, without giving them away; one that cannot be read
        counts as a value of its own.
        """
        ...

    async def aclose(self) -> None:
        """Give its connections back; twice does no harm."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LastRenewal:
    """How the last call to the issuer ended; *time* is wall time, the rest as in the event Renewal."""

    time: float
    trigger: str
    result: str
    seconds: float
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerStatus:
    """Where a credential stands, for readiness and status pages.

    *state*: none, valid, due, expired, refused (an upstream said 401 to the token), rejected (the issuer, or an
    upstream, said no to the credential), seat_taken (another login keeps taking the account's only session). *usable*:
    a token can be handed out now, whatever the state. *attempted*: a call to the issuer has ended, or none was needed
    yet. *expires_in*: seconds, by a clock that nobody sets; None without an end. *sealed_with*: the key of its record,
    as `KeyRing.place` says, None without one. *forced_renewals*: what a 401 does: allowed, or stopped, because too many
    renewed tokens were refused. *kept*: a refresh token is held. *taken*: how many logins in a row another one took.
    """

    state: str
    usable: bool
    attempted: bool
    token: Token | None
    expires_in: float | None
    generation: int
    last: LastRenewal | None
    sealed_with: tuple[int | None, str] | None = None
    forced_renewals: str = "allowed"
    kept: bool = False
    taken: int = 0

    @property
    def expires_at(self) -> float | None:
        """When the token expires, wall time; None without one, or where no end is known."""
        return self.token.expires_at if self.token and self.token.expires_at < math.inf else None

    @property
    def lifetime(self) -> float | None:
        """How long the token lasts from its issue, in seconds; None without one, or where no end is known."""
        return self.token.lifetime if self.token and self.token.lifetime < math.inf else None
