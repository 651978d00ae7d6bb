"""What the broker needs of its neighbours, and what it tells of itself."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol

from sidecar.auth.oauth2 import Grant
from sidecar.secret import Secret

Spawn = Callable[[Coroutine[Any, Any, None], str], "asyncio.Task[None]"]
"""Runs work in a named task that is kept."""


class Issuer(Protocol):
    """A token endpoint, or a login, with the credential for it."""

    @property
    def starts_anew(self) -> bool:
        """Whether it gets a token without any refresh token, so that one which is lost or in doubt can be left."""
        ...

    async def obtain(self, refresh_token: Secret | None) -> Grant:
        """Get a new token, from *refresh_token* when there is one.

        Raises CredentialRejected, IssuerUnavailable, or ConfigurationError for a secret that cannot be read.
        """
        ...

    def identity(self) -> str:
        """Return what makes this credential another one than its neighbours; the same after a restart."""
        ...

    def fingerprint(self) -> str:
        """Return what changes with any of the credential's secrets, without giving them away; for this process."""
        ...

    def presentation(self, token: Secret) -> tuple[bytes, bytes]:
        """Return name and value of the field that shows *token* to the upstream."""
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

    *state*: none, valid, due, expired, refused (an upstream said 401 to the token), rejected (the issuer said
    no to the credential). *usable*: a token can be handed out now, whatever the state. *attempted*: a call to
    the issuer has ended, or none was needed yet. *by*: the instance that got the token. *forced_renewals*: what
    a 401 does: allowed, or stopped, because too many renewed tokens were refused.
    """

    state: str
    usable: bool
    attempted: bool
    expires_at: float | None
    lifetime: float | None
    generation: int
    by: str | None
    last: LastRenewal | None
    forced_renewals: str = "allowed"
