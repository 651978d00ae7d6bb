"""From an upstream's settings to its issuer and broker; light to import, for commands that serve nothing."""

import asyncio
from dataclasses import dataclass, field

from sidecar.auth.oauth2 import OAuth2Issuer
from sidecar.auth.tls import Contexts
from sidecar.clock import Clock
from sidecar.events import Emit
from sidecar.settings import Upstream
from sidecar.tokens.broker import Broker
from sidecar.tokens.keys import Keys
from sidecar.tokens.store import TokenStore

AT_ONCE = 8
"""First tokens that are got, and looks at the store, at a time: a thousand at once would leave requests no time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What the brokers of one instance have in common.

    *owner* is its name. *elsewhere*: the store is another machine's, which may forget. *turns*: how many of them may
    be at work at a time that nobody waits for.
    """

    store: TokenStore
    keys: Keys
    owner: str
    clock: Clock
    emit: Emit
    elsewhere: bool = False
    contexts: Contexts = field(default_factory=Contexts)
    turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))


def make_issuer(
    upstream: Upstream, clock: Clock, keys: Keys | None = None, contexts: Contexts | None = None
) -> OAuth2Issuer:
    """Return the issuer of one upstream; nothing is sent yet.

    *keys*: those of the store, whose instances can then tell whether another one's secrets are the same. *contexts*:
    those of its process, None: it makes its own.
    """
    return OAuth2Issuer(
        upstream.oauth2,
        tls=upstream.tls,
        timeout=upstream.renew.timeout,
        clock=clock,
        fingerprint_key=keys.fingerprint_key if keys else None,
        contexts=contexts,
    )


def make_broker(name: str, upstream: Upstream, issuer: OAuth2Issuer, shared: Shared) -> Broker:
    """Return the broker of one upstream; it does nothing before its `start`."""
    said = "lifetime" in upstream.oauth2.model_fields_set
    return Broker(
        name,
        issuer,
        shared.store,
        shared.keys,
        upstream.renew,
        owner=shared.owner,
        clock=shared.clock,
        emit=shared.emit,
        shared=shared.elsewhere,
        turns=shared.turns,
        unauthorized=upstream.breaker.unauthorized,
        configured_lifetime=upstream.oauth2.lifetime if said else None,
    )
