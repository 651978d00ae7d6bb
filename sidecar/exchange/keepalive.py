"""Using a token for its own sake now and then, where a system ends what is not used (`keepalive`)."""

import math

from sidecar import __version__
from sidecar.clock import Clock
from sidecar.errors import Refusal
from sidecar.events import Emit, Trouble
from sidecar.exchange.destination import Destination
from sidecar.exchange.dressing import whole_body
from sidecar.exchange.errand import Errand
from sidecar.exchange.rounds import Rounds
from sidecar.exchange.tally import Tally
from sidecar.policy.breaker import endpoint_of
from sidecar.policy.idleness import Use, next_use
from sidecar.policy.message import Request
from sidecar.policy.routing import Route

_FIELDS = ((b"Accept", b"*/*"), (b"User-Agent", b"auth-sidecar/%b" % __version__.encode()))
_EMPTY = frozenset({b"GET", b"HEAD", b"OPTIONS", b"DELETE"})
"""Methods by which a server expects no body: no length is told of none (RFC 9110 section 8.6)."""


async def keep_alive(name: str, use: Use, destination: Destination, rounds: Rounds, clock: Clock, emit: Emit) -> None:
    """Send the request *use* whenever no other was made for so long, until cancelled.

    It passes the gates as any request does. Only while requests were made not too long ago, and while there is a token:
    none is got for it. What is in the way is told when it begins, not each time.
    """
    verdicts, kept_at, told = destination.broker.verdicts, -math.inf, ""
    while True:
        left = next_use(clock.monotonic(), verdicts.used_at, kept_at, use.every, use.within)
        if left is None or left > 0:
            await clock.sleep(use.every if left is None else left)
            continue
        kept_at = clock.monotonic()
        if destination.broker.current() is None:
            continue
        trouble = await _send(errand_of(name, use, destination, clock), rounds)
        if trouble and trouble != told:
            path = use.target.removeprefix(destination.pool.origin.path).partition(b"?")[0].decode("latin-1")
            emit(Trouble(where=f"keepalive of {name}", detail=f"{use.method.decode('latin-1')} {path}: {trouble}"))
        told = trouble


async def _send(errand: Errand, rounds: Rounds) -> str:
    """Make the request; return what is wrong, empty if nothing."""
    try:
        answer = await rounds.run(errand)
    except Refusal as refusal:
        return refusal.detail
    finally:
        errand.destination.admission.leave(errand.tally)
    try:
        await answer.settle()
    finally:
        answer.close()
    if errand.tally.visible:
        again = "to a new token too" if errand.tally.renewals else "and there was no newer token"
        return f"answered with {answer.status}, {again}; expected a path that this credential may use"
    return "" if 200 <= answer.status < 300 else f"answered with {answer.status}; expected 2xx"  # noqa: PLR2004


def errand_of(name: str, use: Use, destination: Destination, clock: Clock) -> Errand:
    """Return *use* as a request on its way to the upstream *name*, for its own sake."""
    origin = destination.pool.origin
    length = ((b"Content-Length", b"%d" % len(use.body)),) if use.body or use.method not in _EMPTY else ()
    request = Request(
        method=use.method,
        scheme=origin.scheme,
        host=origin.host,
        port=origin.port,
        target=use.target,
        fields=(*_FIELDS, *use.fields, *length),
        length=len(use.body),
        upstream=name,
    )
    tally = Tally(clock.monotonic(), upstream=name, endpoint=endpoint_of(use.target))
    return Errand(request, Route(name, origin, use.target), destination, whole_body(use.body), tally, own=True)
