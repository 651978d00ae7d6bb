"""A client's own login or logout, answered here: the upstream sees one session, and never the client's password."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from http import HTTPStatus

from sidecar.auth.dialect import Local, Shim
from sidecar.exchange.body import RequestBody
from sidecar.exchange.destination import Client, Destination
from sidecar.exchange.tally import Tally
from sidecar.policy.message import Fields, Request, value_of
from sidecar.policy.paths import as_served
from sidecar.policy.routing import DEFAULT_PORTS, Origin
from sidecar.secret import Secret

_LONGEST = 64 << 10
"""Bytes of a login's body; a longer one is none, unless its head says that it is one."""
_OUTCOME = "shim"
_WITHOUT_BODY = frozenset({204, 304})
_PHRASES = {status.value: status.phrase.encode() for status in HTTPStatus}


async def find(
    shim: Shim, request: Request, origin: Origin, target: bytes, body: RequestBody
) -> tuple[Local, bytes] | None:
    """Return the login or logout that *request*, for *target* at *origin*, is, and its body, empty if it is too long.

    None, with nothing lost of the body, if it is none.
    """
    path = as_served(target.partition(b"?")[0]).decode("utf-8", "replace")
    for local in shim(request, f"{origin.scheme}://{origin.authority}{path}"):
        whole = await body.gather(_LONGEST)
        if local.matches is None or (whole is not None and local.matches(whole)):
            return local, whole or b""
    return None


def beside(request: Request, local: Local, data: bytes, destination: Destination) -> Fields:
    """Return what is put on the upstream's answer to *request*, which is *local* and goes onward."""
    token = destination.broker.current()
    return local.reply(token.values if token else {}, _seen_as(request, destination.pool.origin), data).fields


async def answer(
    request: Request,
    local: Local,
    data: bytes,
    client: Client,
    destination: Destination,
    tally: Tally,
    monotonic: Callable[[], float],
) -> None:
    """Answer *client*, whose *request* with the body *data* is *local*.

    A login waits for the credential, and succeeds when ours has: Refusal when none is to be had.
    """
    values: Mapping[str, Secret] = {}
    if local.obtains:
        broker = destination.broker
        token = broker.current() or await broker.token(monotonic() + destination.token_timeout)
        values = token.values
    reply = local.reply(values, _seen_as(request, destination.pool.origin), data)
    fields = [*reply.fields, (b"Cache-Control", b"no-store")]
    if reply.status not in _WITHOUT_BODY:
        fields.append((b"Content-Length", b"%d" % len(reply.body)))
    tally.status, tally.outcome, tally.begun = reply.status, _OUTCOME, True
    sent = b"" if request.method == b"HEAD" or reply.status in _WITHOUT_BODY else reply.body
    reason = _PHRASES.get(reply.status, b"")
    await client.start(reply.status, reason, tuple(fields), chunked=False, data=sent, end=True)


def _seen_as(request: Request, origin: Origin) -> str:
    """Return the address under which the client of *request* sees the base URL *origin*."""
    if request.upstream is None:
        if (request.scheme, origin.scheme) != ("http", "https"):
            return origin.url
        port = DEFAULT_PORTS["http"] if origin.port == DEFAULT_PORTS["https"] else origin.port
        return replace(origin, scheme="http", port=port).url  # as upgraded by us: it may not trust our authority
    host = value_of(request.fields, b"host")
    return f"http://{host.decode('latin-1')}" if host else origin.url
