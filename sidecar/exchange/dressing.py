"""A client's request as one attempt sends it: its own credentials gone, ours in their places."""

from dataclasses import replace
from typing import NamedTuple

from sidecar.exchange.body import RequestBody
from sidecar.exchange.errand import Errand
from sidecar.exchange.spool import Spool
from sidecar.policy import headers
from sidecar.policy.message import Fields
from sidecar.tokens.token import Token


class Dressed(NamedTuple):
    """The *head* that goes out, and the *body* after it."""

    head: bytes
    body: RequestBody


async def looked_into(errand: Errand) -> bytes | None:
    """Return the body if the credential may have to stand in it, None: it goes out as it came.

    So does one that is longer than what is kept in memory.
    """
    edit = errand.destination.dialect.edit
    if edit is None or errand.bare or not edit.looks(errand.request, errand.way.target):
        return None
    return await errand.body.gather(errand.destination.replay_memory)


def dressed(errand: Errand, token: Token | None, hop: bytes, whole: bytes | None = None) -> Dressed:
    """Return *errand* with *token* shown, None: with no credential; *hop* is our value of Auth-Sidecar-Hop.

    *whole*: the body, where it was looked into.
    """
    request, way, destination, body = errand.request, errand.way, errand.destination, errand.body
    dialect = destination.dialect
    target = headers.strip_target(way.target, dialect.strips)
    credential: Fields = ()
    length = request.length
    if token is not None:
        credential = dialect.dress(token.values, request, target)
        if dialect.edit is not None:
            edited = dialect.edit.edit(token.values, request, target, whole)
            target, fields = edited.target, edited.fields
            if edited.body is not None:
                body, length = whole_body(edited.body), len(edited.body)
                fields = _sized(fields, length)
            request = replace(request, fields=fields)
    fields = headers.outgoing(
        request.fields if dialect.hold_back is None else headers.readable(request.fields),
        dialect.strips,
        host=way.origin.authority.encode(),
        hop=hop,
        via=destination.via,
        credential=credential,
        chunked=length is None,
    )
    lines = [b"%b %b HTTP/1.1" % (request.method, target), *(b"%b: %b" % pair for pair in fields)]
    return Dressed(b"\r\n".join(lines) + b"\r\n\r\n", body)


def whole_body(data: bytes) -> RequestBody:
    """Return *data* as a body that is there already."""
    body = RequestBody(len(data), open_spool=_no_spool, wanted=lambda: None)
    body.keep(len(data), 0)
    if data:
        body.feed(data)
        body.feed_end()
    return body


def _sized(fields: Fields, length: int) -> Fields:
    """Return *fields* for a body of *length* bytes."""
    kept = tuple(pair for pair in fields if pair[0].lower() not in (b"content-length", b"transfer-encoding"))
    return (*kept, (b"Content-Length", b"%d" % length))


def _no_spool() -> Spool:
    raise OSError("this body fits into memory")
