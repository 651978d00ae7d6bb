"""An issuer and an upstream that agree on what a token is, on virtual time, with every fault that can be told apart.

The truth is here: which token lives and whose it is, which refresh token was used. What is asked of them is noted, so
that invariants can be looked at.
"""

import asyncio
import itertools
import math
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sidecar.auth.grant import Anew, Grant, Values
from sidecar.auth.oauth2 import OAuth2Issuer
from sidecar.auth.tls import Contexts
from sidecar.auth.token_endpoint import Form
from sidecar.errors import BrokenOff, CredentialRejected, IssuerUnavailable, Misplaced, Unusable
from sidecar.policy.reading import Sign
from sidecar.secret import Secret
from sidecar.settings import OAuth2, Tls
from tests.canary import canary
from tests.properties.virtual import VirtualClock

FAULTS = (
    *("none", "down", "broken", "lost", "flaky", "busy", "slow", "hangs"),
    *("refuses", "misplaced", "crashes", "over"),
)
"""What may befall a call: refused connection; cut off before, or after the issuer acted, each time or every other time;
429; an answer that takes seconds, or none in time; the client is refused; another page answers; an answer nobody
understands; a token that is over already."""
LOST = frozenset({"lost", "flaky", "hangs", "crashes"})
"""Those after which the issuer may have acted, and no whole answer came."""
GRACE = 30.0
"""Seconds that an issuer with a grace takes a refresh token again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """An access token: whose it is, when it was asked for, and when it ends."""

    user: str
    asked_at: float
    ends: float


@dataclass(slots=True, kw_only=True, eq=False)
class Family:
    """The tokens that came of one login of *user*; an issuer that revokes on reuse ends all at once."""

    user: str
    dead: bool = False
    access: list[str] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class Refresh:
    """A refresh token; *parent*: the one it was given for. *used_at*: when the issuer first acted on it."""

    family: Family
    parent: str | None = None
    used_at: float | None = None


@dataclass(frozen=True, slots=True)
class Reuse:
    """A refresh token came from *owner* although the issuer had given another one for it; *lost*: but no answer of that
    had come to who asked, while it lived.
    """

    owner: str
    token: str
    lost: bool


@dataclass
class Authority:
    """The token endpoint as its owner sees it: one client, several users, all instances.

    *rotates*: no; revokes: each refresh token is taken once, and a reuse ends the family; grace: it is taken again for
    a while. *gives_refresh*: whether a login that can be repeated comes with a refresh token.
    """

    now: Callable[[], float]
    presenting: Callable[[str, str], None]
    lifetime: float = 900.0
    rotates: str = "revokes"
    gives_refresh: bool = True
    latency: Callable[[], float] = lambda: 0.01
    fault: str = "none"
    retry_after: float = 20.0
    delay: float = 5.0
    issued: dict[str, Issued] = field(default_factory=dict)
    revoked: set[str] = field(default_factory=set)
    refresh: dict[str, Refresh] = field(default_factory=dict)
    reuses: list[Reuse] = field(default_factory=list)
    lost: set[str] = field(default_factory=set)
    """Refresh tokens that were presented, and whose answer did not come to a process that lives."""
    denied: set[str] = field(default_factory=set)
    """Whom the issuer said no to, because of the refresh token."""
    seats: set[str] = field(default_factory=set)
    """Users who may have one session only, without an end: a login ends the one before."""
    evicting: Callable[[str, str], None] = lambda _owner, _user: None
    """Told when an instance logs such a user in, before the session is ended."""
    calls: int = 0
    in_flight: dict[str, int] = field(default_factory=dict)
    most_in_flight: int = 0

    def __post_init__(self) -> None:
        self._numbers = itertools.count(1)

    def revoke(self) -> None:
        """Let the upstream refuse every token that was issued so far."""
        self.revoked |= self.issued.keys()

    def takes(self, token: str) -> bool:
        """Tell whether the upstream accepts *token* now."""
        return token not in self.revoked and self.now() < self.issued[token].ends

    def log_in(self, user: str) -> str:
        """Return the first refresh token of a new login of *user*."""
        return self._give(Family(user=user), None)

    def ancestors(self, token: str) -> list[str]:
        """Return the refresh tokens that came before *token*."""
        found: list[str] = []
        known = self.refresh.get(token)
        while known is not None and known.parent is not None:
            found.append(known.parent)
            known = self.refresh[known.parent]
        return found

    async def call(self, owner: str, user: str, given: str | None, requested_at: float) -> Grant:
        """Answer one call of the instance *owner*."""
        self.calls += 1
        asked_at, way = self.now(), f"{user} {given and self.refresh[given].family.user}"
        self.in_flight[way] = self.in_flight.get(way, 0) + 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight[way])
        try:
            await asyncio.sleep(self.latency())
            return await self._answer(owner, user, given, asked_at, requested_at)
        finally:
            self.in_flight[way] -= 1

    async def _answer(self, owner: str, user: str, given: str | None, asked_at: float, requested_at: float) -> Grant:
        match fault := self.fault:
            case "down":
                raise IssuerUnavailable("the issuer cannot be reached")
            case "busy":
                raise IssuerUnavailable("the issuer is busy", retry_after=self.retry_after)
            case "broken":
                raise BrokenOff("the issuer broke off")
            case "refuses":
                raise CredentialRejected("invalid_client", "the issuer refused the client")
            case "misplaced":
                raise Misplaced("another page answers")
            case "slow":
                await asyncio.sleep(self.delay)
        grant = self._grant(owner, user, given, asked_at, requested_at)
        await asyncio.sleep(self.latency())
        match fault:
            case "hangs":
                await asyncio.sleep(1000.0)
            case "lost":
                raise BrokenOff("the answer was lost")
            case "flaky" if self.calls % 2:
                raise BrokenOff("the answer was lost")
            case "crashes":
                raise ValueError(canary("in-an-error"))
            case "over":
                raise Unusable("the issuer granted a token that has already expired", grant.kept)
        return grant

    def _grant(self, owner: str, user: str, given: str | None, asked_at: float, requested_at: float) -> Grant:
        if given is None:
            family = Family(user=user)
            successor = self._give(family, None) if self.gives_refresh and user not in self.seats else None
            if user in self.seats:
                self.evicting(owner, user)
                self.revoked |= {token for token, each in self.issued.items() if each.user == user}
        else:
            self.presenting(owner, given)
            known = self.refresh[given]
            family = known.family
            if family.dead:
                self._deny(user)
            if known.used_at is not None and self.rotates != "no":
                self.reuses.append(Reuse(owner, given, given in self.lost))
                if self.rotates == "revokes" or self.now() > known.used_at + GRACE:
                    family.dead = True
                    self.revoked |= set(family.access)
                    self._deny(user)
            known.used_at = known.used_at or self.now()
            successor = self._give(family, given) if self.rotates != "no" else None
        token = canary(f"access-{next(self._numbers)}")
        lifetime = math.inf if user in self.seats else self.lifetime
        self.issued[token] = Issued(user=family.user, asked_at=asked_at, ends=self.now() + lifetime)
        family.access.append(token)
        return Grant(
            values={"access_token": Secret(token)},
            kept=Secret(successor) if successor else None,
            requested_at=requested_at,
            lifetime=lifetime,
            source="expires_in",
            how="password" if given is None else "refresh_token",
            scope=None,
            asked=None,
        )

    def _deny(self, user: str) -> None:
        self.denied.add(user)
        raise CredentialRejected("invalid_grant", "the issuer refused the refresh token")

    def _give(self, family: Family, parent: str | None) -> str:
        made = canary(f"refresh-{next(self._numbers)}")
        self.refresh[made] = Refresh(family=family, parent=parent)
        return made


class _NoTls(Contexts):
    async def of(self, tls: Tls) -> ssl.SSLContext:
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


class Port(OAuth2Issuer):
    """The issuer as the instance *owner* has it: the real one, but for the wire."""

    def __init__(self, settings: OAuth2, authority: Authority, owner: str, user: str, clock: VirtualClock) -> None:
        super().__init__(settings, tls=Tls(), clock=clock, contexts=_NoTls())
        self._authority = authority
        self.owner = owner
        self._wall = clock
        self._presented: str | None = None
        self.user = user
        self.in_flight = 0
        self.most_in_flight = 0

    @property
    def anew(self) -> Anew:
        return Anew.EVICTS if self.user in self._authority.seats else super().anew

    async def obtain(self, kept: Secret | None, seconds: float, *, values: Values | None = None) -> Grant:
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return await super().obtain(kept, seconds, values=values)
        except (BrokenOff, ValueError):
            self._note_lost()
            raise
        finally:
            self.in_flight -= 1

    async def _ask(self, client: Any, grant: str, form: Form, scope: str | None) -> Grant:
        given = next((value.reveal() for name, value in form if name == "refresh_token"), None)  # type: ignore[union-attr]
        self._presented = given
        try:
            return await self._authority.call(self.owner, self.user, given, self._wall.now())
        except BrokenOff:
            self._note_lost()
            raise

    def _note_lost(self) -> None:
        if self._presented is not None:
            self._authority.lost.add(self._presented)


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
    foreign: int = 0
    """Attempts with another user's token."""

    async def attempt(self, number: int, user: str, token: str) -> Outcome:
        """Try request *number*, which is for *user*, with *token*."""
        self.foreign += self.authority.issued[token].user != user
        self.attempts += 1
        fault = self.fault
        if fault == "connect":
            return Outcome(None, sent=False)
        await asyncio.sleep(self.latency())
        if fault == "reset":
            return Outcome(None)
        if fault in ("429", "503"):
            return Outcome(int(fault), retry_after=self.retry_after)
        self.expired += self.authority.now() >= self.authority.issued[token].ends
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
