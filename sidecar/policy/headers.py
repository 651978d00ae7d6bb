"""What we take from and add to a message; the closed list of docs/how-it-works.md is this module.

Order matters: first the fields a client nominated in Connection, then its credentials, last our own
(RFC 9110 sections 7.6.1 and 7.6.3). Names are compared without case and with `_` as `-`, because servers
fold them the same way.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from urllib.parse import unquote_to_bytes

from sidecar.policy.message import Fields, Request

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"expect",
        b"http2-settings",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
CREDENTIALS = frozenset({b"authorization", b"proxy-authorization", b"x-api-key"})
CREDENTIAL_PARAMETERS = frozenset({b"access-token"})
HOP = b"Auth-Sidecar-Hop"
VIA = (b"Via", b"1.1 auth-sidecar")
_NORMAL_HOP = HOP.lower()
METHOD_FIELDS = frozenset({b"x-http-method", b"x-http-method-override", b"x-method-override"})
"""Fields by which some servers take a request for one with another method."""
PATH_FIELDS = frozenset({b"x-original-url", b"x-rewrite-url"})
"""Fields by which some servers take a request for one with another path."""
_NEVER_NOMINATED = frozenset({b"host", b"content-length"})
_PRECONDITION = re.compile(rb"if(-(none-)?match|-(un)?modified-since|-range|-schedule-tag-match)?")
_PARAMETER_END = re.compile(rb"([&;])")
_COOKIE_END = re.compile(rb"[;,]")
READABLE = frozenset({b"gzip", b"x-gzip", b"deflate", b"identity"})
"""Content codings of an answer that can be looked into (RFC 9110 section 8.4.1)."""


@dataclass(frozen=True, slots=True)
class StripSet:
    """Which credentials of the client are removed, as normal names; *cookies*, names inside Cookie, as they are."""

    headers: frozenset[bytes]
    cookies: frozenset[bytes]
    query: frozenset[bytes]


OURS_ONLY = StripSet(frozenset({b"proxy-authorization"}), frozenset(), frozenset())


def strip_set(headers: Iterable[str], cookies: Iterable[str], query: Iterable[str], keep: Iterable[str]) -> StripSet:
    """Return the built-in set with *headers*, *cookies* and *query* added and *keep* left alone.

    The field we inject cannot be kept: the caller refuses `authorization` in *keep*.
    """
    kept = {normal_name(name.encode()) for name in keep}
    return StripSet(
        (CREDENTIALS | {normal_name(name.encode()) for name in headers}) - kept,
        frozenset(name.encode() for name in cookies),
        (CREDENTIAL_PARAMETERS | {normal_name(name.encode()) for name in query}) - kept,
    )


def normal_name(name: bytes) -> bytes:
    """Return the name of a field or parameter for comparison."""
    return name.strip().lower().replace(b"_", b"-")


def values_named(fields: Fields, names: frozenset[bytes]) -> list[bytes]:
    """Return the values of all fields that are called by one of *names*, which all begin with `x`."""
    return [value for name, value in fields if name.startswith((b"X", b"x")) and normal_name(name) in names]


def without_credentials(request: Request, strips: StripSet) -> Request:
    """Return what may be shown of *request*: nothing that is stripped, and no cookie, since it may be a session."""
    gone = strips.headers | {b"cookie"}
    fields = tuple(pair for pair in request.fields if normal_name(pair[0]) not in gone)
    return replace(request, fields=fields, target=strip_target(request.target, strips))


def nominated(fields: Fields) -> frozenset[bytes]:
    """Return the names that Connection fields declare to be hop-by-hop."""
    options = (option for name, value in fields if name.lower() == b"connection" for option in value.split(b","))
    return frozenset(normal_name(option) for option in options) - _NEVER_NOMINATED


def wants_close(fields: Fields) -> bool:
    """Tell whether a Connection field asks to close, in any case (RFC 9112 section 9.6)."""
    return b"close" in nominated(fields)


def conditional(fields: Fields) -> bool:
    """Tell whether a request has a precondition (RFC 9110 section 13.1, RFC 4918 section 10.4)."""
    return any(name[:2].lower() == b"if" and _PRECONDITION.fullmatch(normal_name(name)) for name, _ in fields)


def strip(fields: Fields, strips: StripSet, credential: Fields = ()) -> Fields:
    """Return *fields* without hop-by-hop ones, `Content_Length`, the client's credentials and what *credential* has."""
    gone = (HOP_BY_HOP | nominated(fields) | strips.headers).union([normal_name(name) for name, _ in credential])
    kept = (
        (name, value)
        for name, value in fields
        if normal_name(name) not in gone and (b"_" not in name or normal_name(name) != b"content-length")
    )
    if not strips.cookies:
        return tuple(kept)
    return tuple(field for field in (_without_cookies(field, strips.cookies) for field in kept) if field)


def strip_target(target: bytes, strips: StripSet) -> bytes:
    """Return *target* without credential parameters; every other byte stays, a lone trailing `?` too.

    Some servers take `;` for `&`, and most do not tell `Access_Token` or `%61ccess_token` from the plain name.
    """
    path, mark, query = target.partition(b"?")
    if not query:
        return target
    first, *others = _PARAMETER_END.split(query)
    parts = [(b"", first), *zip(others[::2], others[1::2], strict=True)]
    kept = [part for part in parts if _parameter_name(part[1]) not in strips.query]
    return path + mark + b"".join(end + part for end, part in kept).removeprefix(kept[0][0]) if kept else path


def outgoing(
    fields: Fields,
    strips: StripSet,
    *,
    host: bytes,
    hop: bytes,
    credential: Fields,
    chunked: bool,
    via: bool = False,
) -> Fields:
    """Return the fields of the request to the upstream.

    Host keeps its place and spelling and gets the upstream's value, or goes first when it was missing; then
    come Transfer-Encoding if the body is chunked, Via if *via*, *hop* by which a loop is found, and the
    fields of the *credential*, and no other ones of their names.
    """
    kept = [(name, host if name.lower() == b"host" else value) for name, value in strip(fields, strips, credential)]
    if not any(name.lower() == b"host" for name, _ in kept):
        kept.insert(0, (b"Host", host))
    if chunked:
        kept.append((b"Transfer-Encoding", b"chunked"))
    if via:
        kept.append(VIA)
    return (*kept, (HOP, hop), *credential)


def untouched(fields: Fields, *, host: bytes, hop: bytes, chunked: bool) -> Fields:
    """Return the fields of a request that is passed through: the client's own credentials stay in it.

    It loses the hop-by-hop fields and what was meant for us, and gets *hop*, because a loop may lead there too.
    """
    return outgoing(fields, OURS_ONLY, host=host, hop=hop, credential=(), chunked=chunked)


def passed_before(fields: Fields, hop: bytes) -> bool:
    """Tell whether a request has come by our own *hop* already; those of others make a chain, not a loop."""
    return any(hop in value for name, value in fields if normal_name(name) == _NORMAL_HOP)


def readable(fields: Fields) -> Fields:
    """Return *fields* of a request with an Accept-Encoding, if there is one, that asks for nothing we cannot read."""
    return tuple(
        (name, _readable(value) if normal_name(name) == b"accept-encoding" else value) for name, value in fields
    )


def incoming(fields: Fields, ours: StripSet | None = None) -> Fields:
    """Return the fields of an upstream's answer for the client: all but the hop-by-hop ones, and *ours*."""
    gone = HOP_BY_HOP | nominated(fields)
    if ours is None:
        return tuple((name, value) for name, value in fields if normal_name(name) not in gone)
    gone |= ours.headers
    return tuple(pair for pair in fields if normal_name(pair[0]) not in gone and not _sets(pair, ours.cookies))


def _readable(value: bytes) -> bytes:
    kept = [each for each in value.split(b",") if each.partition(b";")[0].strip().lower() in READABLE]
    return b",".join(kept).strip() or b"identity"


def _sets(field: tuple[bytes, bytes], names: frozenset[bytes]) -> bool:
    """Tell whether *field* sets a cookie of *names*; some servers set several in a line, and some clients take them."""
    if normal_name(field[0]) not in (b"set-cookie", b"set-cookie2"):
        return False
    return any(part.partition(b"=")[0].strip() in names for part in _COOKIE_END.split(field[1]))


def _parameter_name(part: bytes) -> bytes:
    return normal_name(unquote_to_bytes(part.partition(b"=")[0].replace(b"+", b" ")))


def _without_cookies(field: tuple[bytes, bytes], names: frozenset[bytes]) -> tuple[bytes, bytes] | None:
    name, value = field
    if name.lower() != b"cookie":
        return field
    pairs = [pair for pair in value.split(b";") if pair.partition(b"=")[0].strip() not in names]
    return (name, b";".join(pairs).strip()) if pairs else None
