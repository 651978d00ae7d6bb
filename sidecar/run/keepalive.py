"""Using a token for its own sake now and then, where a system ends what is not used (`keepalive`)."""

import math

from sidecar import __version__
from sidecar.clock import Clock
from sidecar.errors import UpstreamFailure
from sidecar.events import Emit, Trouble
from sidecar.exchange.answer import Answer
from sidecar.exchange.body import RequestBody
from sidecar.exchange.patience import Deadline
from sidecar.exchange.ports import Destination
from sidecar.exchange.spool import Spool
from sidecar.policy.classify import Challenge, classify_unauthorized
from sidecar.policy.idleness import next_use
from sidecar.settings import Keepalive
from sidecar.tokens.token import Token

_UNAUTHORIZED = 401


async def keep_alive(name: str, wanted: Keepalive, destination: Destination, clock: Clock, emit: Emit) -> None:
    """Send a GET to *wanted*'s path whenever no request was made for so long, until cancelled.

    Only while requests were made not too long ago, and with the token that is there: none is got for it. What is in
    the way is told when it begins, not each time.
    """
    verdicts, kept_at, told = destination.broker.verdicts, -math.inf, ""
    while True:
        left = next_use(clock.monotonic(), verdicts.used_at, kept_at, wanted.every, wanted.only_if_used_within)
        if left is None or left > 0:
            await clock.sleep(wanted.every if left is None else left)
            continue
        kept_at = clock.monotonic()
        trouble = await _use(wanted.path, destination, Deadline(clock.monotonic() + destination.total_timeout), clock)
        if trouble and trouble != told:
            emit(Trouble(where=f"keepalive of {name}", detail=f"GET {_path(wanted.path)}: {trouble}"))
        told = trouble


async def _use(path: str, destination: Destination, deadline: Deadline, clock: Clock) -> str:
    """Make the request, and once more after a 401 that was worth a renewal; return what is wrong, empty if nothing."""
    broker = destination.broker
    token, renewed, wrong = broker.current(), False, ""
    while token is not None:
        try:
            answer = await _get(path, destination, token)
        except UpstreamFailure as failure:
            return str(failure)
        try:
            await answer.settle()
        finally:
            answer.close()
        if answer.status != _UNAUTHORIZED or classify_unauthorized(answer.fields) is not Challenge.TOKEN:
            broker.verdicts.kept(token, clock.monotonic())
            return "" if 200 <= answer.status < 300 else f"answered with {answer.status}; expected 2xx"  # noqa: PLR2004
        wrong = "answered with 401, to a new token too; expected a path that this credential may use"
        if renewed:
            broker.refused(token)
            return wrong
        token, renewed = await broker.after_unauthorized(token, deadline.at), True
    return wrong


async def _get(path: str, destination: Destination, token: Token) -> Answer:
    """Make one attempt, and a second on a new connection when a pooled one turned out to be closed."""
    head = _head(path, destination, token)
    try:
        return await destination.pool.send(b"GET", head, _nothing())
    except UpstreamFailure as failure:
        if not failure.reused:
            raise
    return await destination.pool.send(b"GET", head, _nothing(), fresh=True)


def _head(path: str, destination: Destination, token: Token) -> bytes:
    origin = destination.pool.origin
    name, value = destination.present(token.access_token)
    lines = (
        b"GET %b HTTP/1.1" % (origin.path + path.encode("ascii")),
        b"Host: %b" % origin.authority.encode(),
        b"%b: %b" % (name, value),
        b"Accept: */*",
        b"User-Agent: auth-sidecar/%b" % __version__.encode(),
    )
    return b"\r\n".join(lines) + b"\r\n\r\n"


def _path(path: str) -> str:
    return path.partition("?")[0]


def _nothing() -> RequestBody:
    return RequestBody(0, open_spool=_no_spool, wanted=lambda: None)


def _no_spool() -> Spool:
    raise OSError("a request without a body has nothing to spool")
