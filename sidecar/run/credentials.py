"""From upstreams' settings to issuers and brokers: one for each credential, which several upstreams may have.

Light to import, for commands that serve nothing.
"""

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel

from sidecar.auth.tls import Contexts
from sidecar.clock import Clock
from sidecar.errors import ConfigurationError
from sidecar.events import Emit
from sidecar.policy.seat import Seat
from sidecar.run.systems import System, system_of
from sidecar.settings import SecretReference, Settings, Upstream
from sidecar.tokens.broker import Broker
from sidecar.tokens.following import Following, Others
from sidecar.tokens.former import former_identity
from sidecar.tokens.memory import MemoryStore
from sidecar.tokens.protocols import Issuer
from sidecar.tokens.seal import Keys
from sidecar.tokens.store import TokenStore

AT_ONCE = 8
"""First tokens that are got, and looks at the store, at a time: a thousand at once would leave requests no time."""

_SHARED = ("oauth2", "credential", "tls", "renew")
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
    """What one or several upstreams show: its *identity*, and their *systems* by name.

    *issuers*: those of the first, one for each session of the pool.
    """

    identity: str
    systems: Mapping[str, System]
    issuers: tuple[Issuer, ...]

    @property
    def issuer(self) -> Issuer:
        """The issuer of the first session."""
        return self.issuers[0]

    @property
    def names(self) -> tuple[str, ...]:
        """The upstreams that have it."""
        return tuple(self.systems)


def credentials(
    settings: Settings, clock: Clock, contexts: Contexts | None = None, *, read: bool = True
) -> list[Credential]:
    """Return the credentials of all upstreams, in their order; nothing is sent yet.

    *read*: look at the secrets that tell one credential from another; else those are the same whose places are. Raises
    ConfigurationError when upstreams with one credential differ in how it is obtained, and when a recipe cannot be
    used.
    """
    found: dict[str, dict[str, System]] = {}
    for name, upstream in settings.upstreams.items():
        system = system_of(name, upstream, clock, contexts)
        known = found.setdefault(_identity(system, upstream, read=read), {})
        if known:
            _check_same(next(iter(known)), name, settings.upstreams)
        known[name] = system
    _check_logins(found.values())
    return [Credential(identity, systems, next(iter(systems.values())).issuers) for identity, systems in found.items()]


def _check_logins(credentials_: Iterable[Mapping[str, System]]) -> None:
    seen: dict[str, str] = {}
    for systems in credentials_:
        for name, system in systems.items():
            for login in system.logins:
                if (other := seen.setdefault(login, name)) != name and other not in systems:
                    raise ConfigurationError(
                        f"upstreams.{name} and upstreams.{other} both answer the same login of their clients,"
                        f" {login.partition(' ')[0]}; expected form, json or header in shim.match to tell them apart"
                    )


def identifying(settings: Settings) -> list[SecretReference]:
    """Return the secrets that may tell one credential from another."""
    found: list[SecretReference | None] = []
    for upstream in settings.upstreams.values():
        if (oauth2 := upstream.oauth2) is not None:
            found += [oauth2.refresh_token, oauth2.subject_token]
        found += [value for value in upstream.credential.values() if isinstance(value, SecretReference)]
    return [secret for secret in found if secret is not None]


def _identity(system: System, upstream: Upstream, *, read: bool) -> str:
    """Return what the credential is; for a secret that cannot be read stands the place that it is to come from."""
    oauth2 = upstream.oauth2
    try:
        if read or oauth2 is None or oauth2.grant != "refresh_token":
            return system.issuer.identity()
    except ConfigurationError:
        pass
    if oauth2 is not None:
        return oauth2.model_dump_json(include={"token_url", "client_id", "refresh_token"})
    return upstream.model_dump_json(include={"base_url", "preset", "recipe", "credential"})


def _check_same(one: str, other: str, upstreams: Mapping[str, Upstream]) -> None:
    for part in _SHARED:
        for key in _differences(getattr(upstreams[one], part), getattr(upstreams[other], part), part):
            if key != "renew.startup":
                raise ConfigurationError(
                    f"upstreams.{other}.{key} is not that of {one}, which has the same credential;"
                    " expected the same, since one token serves both"
                )
    if upstreams[one].sessions.pool != upstreams[other].sessions.pool:
        raise ConfigurationError(
            f"upstreams.{other}.sessions.pool is not that of {one}, which has the same credential;"
            " expected the same, since the sessions serve both"
        )
    first, second = upstreams[one].system, upstreams[other].system
    if first is not None and second is not None and (first.login, first.csrf) != (second.login, second.csrf):
        raise ConfigurationError(
            f"upstreams.{other}.recipe.login is not that of {one}, which has the same credential;"
            " expected the same, since one session serves both"
        )


def _differences(one: object, other: object, path: str) -> Iterator[str]:
    if isinstance(one, BaseModel) and isinstance(other, BaseModel):
        for name in type(one).model_fields:
            if getattr(one, name) != getattr(other, name):
                yield f"{path}.{name}"
    elif isinstance(one, Mapping) and isinstance(other, Mapping):
        yield from (f"{path}.{name}" for name in {**one, **other} if one.get(name) != other.get(name))
    elif one != other:
        yield path


def make_brokers(credential: Credential, settings: Settings, shared: Shared) -> tuple[Broker, ...]:
    """Return the brokers of *credential*, one for each session of the pool; they do nothing before their `start`."""
    first = make_broker(credential, settings, shared)
    others = Others()
    follow = [Following(issuer, first, others, shared.clock) for issuer in credential.issuers[1:]]
    return first, *(_make_broker(credential, issuer, settings, shared) for issuer in follow)


def make_broker(credential: Credential, settings: Settings, shared: Shared) -> Broker:
    """Return the broker of the first session of *credential*."""
    return _make_broker(credential, credential.issuer, settings, shared, former=True)


def _make_broker(
    credential: Credential, issuer: Issuer, settings: Settings, shared: Shared, *, former: bool = False
) -> Broker:
    name = credential.names[0]
    upstream, system = settings.upstreams[name], credential.systems[name]
    recipe, oauth2 = upstream.system, system.oauth2
    seat = None
    if recipe is not None and recipe.sessions.per_account == "one":
        seat = Seat(recipe.sessions.stolen.within, recipe.sessions.stolen.rounds)
    # A session that holds from one address alone is of no use to instances elsewhere.
    own = recipe is not None and recipe.sessions.bound == "address"
    said = oauth2 is not None and "lifetime" in oauth2.model_fields_set
    return Broker(
        name,
        issuer,
        MemoryStore(shared.clock) if own else shared.store,
        shared.keys,
        upstream.renew,
        owner=shared.owner,
        clock=shared.clock,
        emit=shared.emit,
        shared=shared.elsewhere,
        turns=shared.turns,
        unauthorized=min(settings.upstreams[each].breaker.unauthorized for each in credential.names),
        configured_lifetime=oauth2.lifetime if oauth2 is not None and said else None,
        former=former_identity(upstream.oauth2) if upstream.oauth2 is not None and former else None,
        marks=shared.marks,
        session=recipe is not None and bool(recipe.login.steps),
        seat=seat,
    )
