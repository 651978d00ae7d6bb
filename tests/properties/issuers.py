"""An issuer and an upstream that agree on what a token is, on virtual time, with every fault that can be told apart.

The truth is here: which token lives, which refresh token was used. What is asked of them is noted, so that invariants
can be looked at.
"""

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

from sidecar.auth.oauth2 import Grant
from sidecar.auth.token_answer import Unusable
from sidecar.auth.token_endpoint import BrokenOff
from sidecar.errors import CredentialRejected, IssuerUnavailable
from sidecar.policy.reading import Sign
from sidecar.secret import Secret
from tests.canary import canary
from tests.properties.virtual import VirtualClock

IDENTITY = canary("client-id")
FIRST = canary("refresh-0")
FAULTS = ("none", "down", "broken", "lost", "busy", "slow", "hangs", "refuses", "crashes", "over")
"""What may befall a call: refused connection; cut off before, or after the issuer acted; 429; an answer that takes
seconds, or never comes; the credential is refused; an answer nobody understands; a token that is over already."""


@dataclass
class Authority:
    """The token endpoint as its owner sees it: one for all instances.

    *anew*: the grant needs no refresh token. *rotates*: each refresh token is taken once. *timeout*: of a call.
    """

    now: Callable[[], float]
    lifetime: float = 900.0
    anew: bool = True
    rotates: bool = True
    timeout: float = 10.0
    latency: Callable[[], float] = lambda: 0.01
    fault: str = "none"
    retry_after: float = 20.0
    delay: float = 5.0
    secret: str = "secret-1"
    ends: dict[str, float] = field(default_factory=dict)
    revoked: set[str] = field(default_factory=set)
    live_refresh: set[str] = field(default_factory=lambda: {FIRST})
    parents: dict[str, str] = field(default_factory=dict)
    """The refresh token that each refresh token came from."""
    used: dict[str, int] = field(default_factory=dict)
    """How often the issuer acted on each refresh token."""
    calls: int = 0
    granted: int = 0
    refused: int = 0
    """Refresh tokens that came a second time, or were never issued."""
    in_flight: int = 0
    most_in_flight: int = 0
    presenting: Callable[[str, str], None] = lambda owner, token: None

    def __post_init__(self) -> None:
        self._numbers = itertools.count(1)

    def revoke(self) -> None:
        """Let the upstream refuse every token that was issued so far."""
        self.revoked |= self.ends.keys()

    def takes(self, token: str) -> bool:
        """Tell whether the upstream accepts *token* now."""
        return token not in self.revoked and self.now() < self.ends[token]

    async def call(self, owner: str, refresh_token: str | None, requested_at: float) -> Grant:
        """Answer one call of the instance *owner*."""
        self.calls += 1
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(self.latency())
            return await self._answer(owner, refresh_token, requested_at)
        finally:
            self.in_flight -= 1

    async def _answer(self, owner: str, refresh_token: str | None, requested_at: float) -> Grant:
        match fault := self.fault:
            case "down":
                raise IssuerUnavailable("the issuer cannot be reached")
            case "busy":
                raise IssuerUnavailable("the issuer is busy", retry_after=self.retry_after)
            case "broken":
                raise BrokenOff("the issuer broke off")
            case "hangs":
                await asyncio.sleep(self.timeout)
                raise BrokenOff("the issuer gave no answer")
            case "refuses":
                raise CredentialRejected("invalid_client", "the issuer refused the client")
            case "crashes":
                raise ValueError(canary("in-an-error"))
            case "slow":
                await asyncio.sleep(self.delay)
        grant = self._grant(owner, refresh_token, requested_at)
        await asyncio.sleep(self.latency())
        if fault == "lost":
            raise BrokenOff("the answer was lost")
        if fault == "over":
            raise Unusable("the issuer granted a token that has already expired", grant.refresh_token)
        return grant

    def _grant(self, owner: str, given: str | None, requested_at: float) -> Grant:
        successor: str | None = None
        if given is not None:
            self.presenting(owner, given)
        elif not self.anew:
            given = FIRST  # the owner's own: after a refusal, or when an operator had all others dropped
        if given is not None:
            if given in self.live_refresh:
                self.used[given] = self.used.get(given, 0) + 1
                if self.rotates:
                    self.live_refresh.discard(given)
                    successor = self._refresh_token(given)
            elif self.anew:
                self.refused += 1
                successor = self._refresh_token(None)
            else:
                self.refused += 1
                raise CredentialRejected("invalid_grant", "the issuer refused the refresh token")
        elif self.rotates:
            successor = self._refresh_token(None)
        token = canary(f"access-{next(self._numbers)}")
        self.ends[token] = self.now() + self.lifetime
        self.granted += 1
        return Grant(
            access_token=Secret(token),
            lifetime=self.lifetime,
            requested_at=requested_at,
            lifetime_source="expires_in",
            grant="client_credentials" if self.anew else "refresh_token",
            scope=None,
            refresh_token=Secret(successor) if successor else None,
        )

    def _refresh_token(self, parent: str | None) -> str:
        made = canary(f"refresh-{next(self._numbers)}")
        self.live_refresh.add(made)
        if parent is not None:
            self.parents[made] = parent
        return made


@dataclass
class Port:
    """The issuer as the instance *owner* has it."""

    authority: Authority
    owner: str
    clock: VirtualClock
    in_flight: int = 0
    most_in_flight: int = 0

    @property
    def starts_anew(self) -> bool:
        return self.authority.anew

    async def obtain(self, refresh_token: Secret | None) -> Grant:
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            given = refresh_token.reveal() if refresh_token else None
            try:
                return await self.authority.call(self.owner, given, self.clock.now())
            except CredentialRejected as refusal:
                if refusal.error != "invalid_grant" or given in (None, FIRST):
                    raise
            return await self.authority.call(self.owner, None, self.clock.now())
        finally:
            self.in_flight -= 1

    def identity(self) -> str:
        return IDENTITY

    def fingerprint(self) -> str:
        return self.authority.secret

    def presentation(self, token: Secret) -> tuple[bytes, bytes]:
        return b"Authorization", b"Bearer " + token.reveal().encode()

    async def aclose(self) -> None:
        pass


UPSTREAM_FAULTS = ("none", "connect", "reset", "lost", "429", "503", "forbidden", "scope", "always_401")
"""No connection; cut off before, or after the upstream acted; two statuses; 403; two kinds of 401 that stay."""


@dataclass(frozen=True)
class Outcome:
    """What one attempt came to; *status* None: no answer."""

    status: int | None
    sent: bool = True
    sign: Sign = Sign.FINE
    retry_after: float | None = None


@dataclass
class Api:
    """The upstream: takes the tokens that the authority says live, and counts what it executed."""

    authority: Authority
    latency: Callable[[], float] = lambda: 0.01
    fault: str = "none"
    retry_after: float | None = None
    attempts: int = 0
    executed: dict[int, int] = field(default_factory=dict)
    unapplied: dict[int, int] = field(default_factory=dict)
    unauthorized: int = 0
    expired: int = 0
    """Attempts with a token whose time was over."""

    async def attempt(self, number: int, token: str) -> Outcome:
        """Try request *number* with *token*."""
        self.attempts += 1
        fault = self.fault
        if fault == "connect":
            return Outcome(None, sent=False)
        await asyncio.sleep(self.latency())
        if fault == "reset":
            return Outcome(None)
        if fault in ("429", "503"):
            return Outcome(int(fault), retry_after=self.retry_after)
        self.expired += self.authority.now() >= self.authority.ends[token]
        if fault == "scope":
            return self._refuse(number, Sign.SCOPE)
        if fault == "always_401" or not self.authority.takes(token):
            return self._refuse(number, Sign.EXPIRED)
        if fault == "forbidden":
            return Outcome(403)
        self.executed[number] = self.executed.get(number, 0) + 1
        await asyncio.sleep(self.latency())
        return Outcome(None) if fault == "lost" else Outcome(200)

    def _refuse(self, number: int, sign: Sign) -> Outcome:
        self.unauthorized += 1
        self.unapplied[number] = self.unapplied.get(number, 0) + 1
        return Outcome(401, sign=sign)
