"""From an upstream's settings to the destination that the exchange uses."""

import asyncio
from collections.abc import Callable, Iterable, Mapping

from sidecar.auth.oauth2 import OAuth2Issuer
from sidecar.auth.tls import client_context, read_material
from sidecar.exchange.patience import Patience
from sidecar.exchange.ports import Destination
from sidecar.exchange.upstream import Pool
from sidecar.policy.decide import RetryPolicy
from sidecar.policy.headers import CREDENTIAL_PARAMETERS, CREDENTIALS, StripSet, strip_set
from sidecar.settings import Upstream
from sidecar.tokens.broker import Broker

Own = Callable[[], Iterable[tuple[str, int]]]


async def make_destination(upstream: Upstream, issuer: OAuth2Issuer, broker: Broker, own: Own) -> Destination:
    """Return the destination; *own* gives our listeners, which no upstream may resolve to."""
    strip, retry = upstream.strip, upstream.retry
    context = await asyncio.to_thread(lambda: client_context(read_material(upstream.tls)))
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
        broker=broker,
        pool=pool,
        present=issuer.presentation,
        strips=strip_set(strip.headers, strip.cookies, strip.query, strip.keep),
        retry=RetryPolicy(
            attempts=retry.attempts,
            statuses=frozenset(retry.statuses),
            methods=frozenset(retry.methods),
            base=retry.base,
            cap=retry.cap,
            max_retry_after=retry.max_retry_after,
        ),
        total_timeout=upstream.timeout.total,
        replay_memory=upstream.replay.memory,
        replay_spool=upstream.replay.spool,
        read_only=upstream.read_only,
    )


def all_strips(destinations: Mapping[str, Destination]) -> StripSet:
    """Return what any upstream strips; what one keeps may be another's credential."""
    strips = [destination.strips for destination in destinations.values()]
    return StripSet(
        CREDENTIALS.union(*(each.headers for each in strips)),
        frozenset().union(*(each.cookies for each in strips)),
        CREDENTIAL_PARAMETERS.union(*(each.query for each in strips)),
    )
