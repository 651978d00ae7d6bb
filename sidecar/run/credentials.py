"""From upstreams' settings to issuers and brokers: one for each credential, which several upstreams may have.

Light to import, for commands that serve nothing.
"""

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel

from sidecar.auth.oauth2 import OAuth2Issuer
from sidecar.auth.tls import Contexts
from sidecar.clock import Clock
from sidecar.errors import ConfigurationError
from sidecar.events import Emit
from sidecar.settings import SecretReference, Settings, Upstream
from sidecar.tokens.broker import Broker
from sidecar.tokens.former import former_identity
from sidecar.tokens.seal import Keys
from sidecar.tokens.store import TokenStore

AT_ONCE = 8
"""First tokens that are got, and looks at the store, at a time: a thousand at once would leave requests no time."""

_SHARED = ("oauth2", "tls", "renew")
"""What upstreams with one credential may not differ in, but for `renew.startup`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What the brokers of one instance have in common.

    *owner* is its name. *elsewhere*: the store is another machine's, which may forget. *marks*: where it is noted which
    first refresh tokens were presented. *turns*: how many of them may be at work at a time that nobody waits for.
    """

    store: TokenStore
    keys: Keys
    owner: str
    clock: Clock
    emit: Emit
    marks: Path
    elsewhere: bool = False
    contexts: Contexts = field(default_factory=Contexts)
    turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))


@dataclass(frozen=True, slots=True)
class Credential:
    """What one or several upstreams show: its *identity*, the *names* of those that have it, and its issuer."""

    identity: str
    names: tuple[str, ...]
    issuer: OAuth2Issuer


def credentials(
    settings: Settings, clock: Clock, contexts: Contexts | None = None, *, read: bool = True
) -> list[Credential]:
    """Return the credentials of all upstreams, in their order; nothing is sent yet.

    *read*: look at the secrets that tell one credential from another; else those are the same whose places are. Raises
    ConfigurationError when upstreams with one credential differ in how it is obtained.
    """
    found: dict[str, Credential] = {}
    for name, upstream in settings.upstreams.items():
        issuer = OAuth2Issuer(upstream.oauth2, tls=upstream.tls, clock=clock, contexts=contexts)
        identity = _identity(issuer, upstream, read=read)
        if (known := found.get(identity)) is None:
            found[identity] = Credential(identity, (name,), issuer)
        else:
            _check_same(known.names[0], name, settings.upstreams)
            found[identity] = Credential(identity, (*known.names, name), known.issuer)
    return list(found.values())


def identifying(settings: Settings) -> list[SecretReference]:
    """Return the secrets that tell one credential from another."""
    oauth2 = [upstream.oauth2 for upstream in settings.upstreams.values()]
    return [secret for each in oauth2 for secret in (each.refresh_token, each.subject_token) if secret is not None]


def _identity(issuer: OAuth2Issuer, upstream: Upstream, *, read: bool) -> str:
    """Return what the credential is; for a secret that cannot be read stands the place that it is to come from."""
    try:
        if read or upstream.oauth2.grant != "refresh_token":
            return issuer.identity()
    except ConfigurationError:
        pass
    return upstream.oauth2.model_dump_json(include={"token_url", "client_id", "refresh_token"})


def _check_same(one: str, other: str, upstreams: Mapping[str, Upstream]) -> None:
    for part in _SHARED:
        for key in _differences(getattr(upstreams[one], part), getattr(upstreams[other], part), part):
            if key != "renew.startup":
                raise ConfigurationError(
                    f"upstreams.{other}.{key} is not that of {one}, which has the same credential;"
                    " expected the same, since one token serves both"
                )


def _differences(one: BaseModel, other: BaseModel, path: str) -> Iterator[str]:
    for name in type(one).model_fields:
        mine, theirs = getattr(one, name), getattr(other, name)
        if mine != theirs:
            yield f"{path}.{name}"


def make_broker(credential: Credential, settings: Settings, shared: Shared) -> Broker:
    """Return the broker of *credential*; it does nothing before its `start`."""
    name = credential.names[0]
    upstream = settings.upstreams[name]
    return Broker(
        name,
        credential.issuer,
        shared.store,
        shared.keys,
        upstream.renew,
        owner=shared.owner,
        clock=shared.clock,
        emit=shared.emit,
        shared=shared.elsewhere,
        turns=shared.turns,
        unauthorized=min(settings.upstreams[each].breaker.unauthorized for each in credential.names),
        configured_lifetime=upstream.oauth2.lifetime if "lifetime" in upstream.oauth2.model_fields_set else None,
        former=former_identity(upstream.oauth2),
        marks=shared.marks,
    )
