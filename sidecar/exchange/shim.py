"""A client's own login or logout, answered here: the upstream sees one session, and never the client's password."""

from collections.abc import Callable
from http import HTTPStatus

from sidecar.auth.dialect import Local, Reply
from sidecar.exchange.body import RequestBody
from sidecar.exchange.destination import Client, Destination
from sidecar.exchange.tally import Tally
from sidecar.policy.message import Request, value_of
from sidecar.policy.routing import Origin

LONGEST = 64 << 10
"""Bytes of a login's body; a longer one is none."""
OUTCOME = "shim"
_WITHOUT_BODY = frozenset({204, 304})


async def answered(
    request: Request,
    url: str,
    body: RequestBody,
    client: Client,
    destination: Destination,
    tally: Tally,
    monotonic: Callable[[], float],
) -> bool:
    """Answer *client* if *request*, for *url*, is a login or logout that is known; False, with nothing done, if not.

    A login waits for the credential, and succeeds when ours has: Refusal when none is to be had.
    """
    shim = destination.dialect.shim
    for local in shim(request, url) if shim is not None else ():
        data = b""
        if local.matches is not None or request.length != 0:
            whole = await body.gather(LONGEST)
            if whole is None and local.matches is not None:
                continue
            data = whole or b""
        if local.matches is None or local.matches(data):
            await _answer(request, local, data, client, destination, tally, monotonic)
            return True
    return False


def seen_as(request: Request, origin: Origin) -> str:
    """Return the address under which the client of *request* sees the base URL *origin*."""
    if request.upstream is None:
        return origin.url
    host = value_of(request.fields, b"host")
    return f"http://{host.decode('latin-1')}" if host else origin.url


async def _answer(
    request: Request,
    local: Local,
    data: bytes,
    client: Client,
    destination: Destination,
    tally: Tally,
    monotonic: Callable[[], float],
) -> None:
    broker = destination.broker
    values = {}
    if local.obtains:
        token = broker.current() or await broker.token(monotonic() + destination.token_timeout)
        values = dict(token.values)
    reply: Reply = local.reply(values, seen_as(request, destination.pool.origin), data)
    fields = [*reply.fields, (b"Cache-Control", b"no-store")]
    if reply.status not in _WITHOUT_BODY:
        fields.append((b"Content-Length", b"%d" % len(reply.body)))
    tally.status, tally.outcome, tally.begun = reply.status, OUTCOME, True
    sent = b"" if request.method == b"HEAD" or reply.status in _WITHOUT_BODY else reply.body
    reason = HTTPStatus(reply.status).phrase.encode()
    await client.start(reply.status, reason, tuple(fields), chunked=False, data=sent, end=True)
