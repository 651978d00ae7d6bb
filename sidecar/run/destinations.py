"""From an upstream's settings to the destination that the exchange uses."""

import ssl
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from sidecar.exchange.admission import Admission
from sidecar.exchange.destination import Destination
from sidecar.exchange.mask import Mask
from sidecar.exchange.patience import Patience
from sidecar.exchange.turns import Turns
from sidecar.exchange.upstream import Pool
from sidecar.policy.attempt import RetryPolicy
from sidecar.policy.breaker import Breaker, BreakerPolicy
from sidecar.policy.budget import Budget
from sidecar.policy.headers import CREDENTIAL_PARAMETERS, CREDENTIALS, OURS_ONLY, StripSet
from sidecar.policy.idleness import Use
from sidecar.policy.mirror import LinkPolicy
from sidecar.run.credentials import Credential, Shared
from sidecar.run.systems import System
from sidecar.settings import Upstream
from sidecar.tokens.broker import Broker
from sidecar.tokens.moment import SharedMoment

_QUOTA_SECONDS = 2 * 86400.0
"""No quota is believed to be used up for longer."""

Own = Callable[[], Iterable[tuple[str, int]]]


def make_destination(
    name: str,
    upstream: Upstream,
    credential: Credential,
    brokers: tuple[Broker, ...],
    context: ssl.SSLContext,
    own: Own,
    shared: Shared,
) -> Destination:
    """Return the destination *name*; *own* gives our listeners, which no upstream may resolve to.

    Call it in the running loop.
    """
    retry = upstream.retry
    pool = Pool(
        upstream.origin,
        context=context,
        patience=Patience(
            connect=upstream.timeout.connect, first_byte=upstream.timeout.first_byte, idle=upstream.timeout.idle
        ),
        addresses=upstream.addresses,
        own_addresses=own,
    )
    return Destination(
        brokers=brokers,
        admission=_admission(name, upstream, credential, brokers, shared),
        pool=pool,
        dialect=credential.systems[name].speak(shared.keys.tags(credential.identity)),
        retry=RetryPolicy(
            attempts=retry.attempts,
            statuses=frozenset(retry.statuses),
            methods=frozenset(retry.methods),
            unapplied=frozenset(retry.unapplied),
            base=retry.base,
            cap=retry.cap,
            max_retry_after=retry.max_retry_after,
        ),
        token_timeout=upstream.timeout.token,
        idle_timeout=upstream.timeout.idle,
        replay_memory=upstream.replay.memory,
        replay_spool=upstream.replay.spool,
        read_only=upstream.read_only,
        via=upstream.via,
        links=LinkPolicy(upstream.links.forwarded, frozenset(each.encode() for each in upstream.links.rewrite)),
    )


def looked_at(made: Destination, mask: Mask | None, *, alone: bool) -> Destination:
    """Return *made* for those who look on; *mask*: notes what it shows; *alone*: requests go as clients made them."""
    dialect = made.dialect
    if mask is not None:
        dialect = replace(dialect, dress=mask.noting(dialect.dress, dialect.strips.headers))
    if alone:
        dialect = replace(dialect, strips=OURS_ONLY, hold_back=lambda *_: 0)
    return replace(made, dialect=dialect)


def use_of(upstream: Upstream, system: System) -> Use | None:
    """Return the request that keeps a session alive, the operator's or the recipe's; None: none does."""
    wanted = upstream.keepalive
    if wanted is None:
        return system.use
    target = upstream.origin.path + wanted.path.encode("ascii")
    return Use(target=target, every=wanted.every, within=wanted.only_if_used_within)


def _admission(
    name: str, upstream: Upstream, credential: Credential, brokers: tuple[Broker, ...], shared: Shared
) -> Admission:
    breaker, longest = upstream.breaker, upstream.retry.max_retry_after
    pause = SharedMoment(
        name,
        # What an upstream asks of one client is not meant for others.
        f"{upstream.origin.url} {credential.identity}",
        shared.store,
        shared.keys,
        longest=longest,
        clock=shared.clock,
        emit=shared.emit,
    )
    quota = None
    if upstream.system is not None and upstream.system.quota is not None:
        quota = SharedMoment(
            name,
            credential.identity,
            shared.store,
            shared.keys,
            longest=_QUOTA_SECONDS,
            clock=shared.clock,
            emit=shared.emit,
            kind="quota",
            absurd=_QUOTA_SECONDS,
        )
    policy = BreakerPolicy(
        failures=breaker.failures,
        min_requests=breaker.min_requests,
        window=breaker.window,
        open_for=breaker.open_for,
    )
    cap = upstream.sessions.max_in_flight

    def fit(number: int) -> bool:
        return brokers[number].current() is not None

    return Admission(
        name,
        budget=Budget(upstream.retry.budget),
        breaker=Breaker(policy),
        pause=pause,
        quota=quota,
        turns=Turns(cap, len(brokers), fit) if cap or len(brokers) > 1 else None,
        patience=upstream.timeout.connect,
        longest=longest,
        clock=shared.clock,
        emit=shared.emit,
    )


def all_strips(destinations: Mapping[str, Destination]) -> StripSet:
    """Return what any upstream strips; what one keeps may be another's credential."""
    strips = [destination.dialect.strips for destination in destinations.values()]
    return StripSet(
        CREDENTIALS.union(*(each.headers for each in strips)),
        frozenset().union(*(each.cookies for each in strips)),
        CREDENTIAL_PARAMETERS.union(*(each.query for each in strips)),
    )
