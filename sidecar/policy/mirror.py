"""The client's name of an upstream and the upstream's own, mapped both ways wherever a field holds a URL.

We change the name in two ways: `http://` of the proxy port becomes `https://`, and a reverse port stands for a
base URL. URLs are compared as URLs: scheme and host without case, a default port spelled out or not. What names
anything else stays as it was, byte for byte.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from sidecar.policy.headers import normal_name
from sidecar.policy.message import Fields, Request, value_of
from sidecar.policy.rewriter import Rewriter
from sidecar.policy.routing import DEFAULT_PORTS, Origin

_URL = re.compile(rb"(?:(https?):)?//([^/?#]*)([^?#]*)(.*)", re.IGNORECASE | re.DOTALL)
_AUTHORITY = re.compile(rb"(\[[0-9A-Fa-f:.]*\]|[^:@\[\]]*)(?::([0-9]{0,5}))?")
_LINK = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|<([^<>]*)>', re.DOTALL)
"""A quoted parameter, or the target of a link (RFC 8288 section 3)."""
_CONDITION = re.compile(rb'\((?:[^()"]++|"[^"]*+"?)*+\)?|<([^<>]*)>')
"""A list of state tokens, or the tag of a resource (RFC 4918 section 10.4.2)."""
_REFRESH = re.compile(rb"""[0-9][0-9.]*+\s*+[;,]?+\s*+(?:url\s*+=\s*+)?+(["']?+)""", re.IGNORECASE)

FORWARDED = frozenset({b"x-forwarded-host", b"x-forwarded-proto", b"x-forwarded-prefix"})
OF_THE_BYTES = frozenset(
    {b"accept-ranges", b"content-digest", b"content-length", b"content-md5", b"digest", b"repr-digest"}
)
"""What an answer says of bytes that are others now."""
_PARTIAL_CONTENT = 206

_Map = Callable[[bytes, Origin, Origin], bytes]
"""From a value with the name of the first to one with that of the second."""


@dataclass(frozen=True, slots=True)
class LinkPolicy:
    """What is done for links on a reverse port, beside the fields.

    *forwarded*: the upstream is told the client's name in X-Forwarded-*. *rewrite*: media types, in lower case, of
    the bodies in which the base URL becomes the client's.
    """

    forwarded: bool = False
    rewrite: frozenset[bytes] = frozenset()


@dataclass(frozen=True, slots=True)
class Mirror:
    """The two names of one upstream for one *request*; *links* has no say on the proxy port."""

    request: Request
    upstream: Origin
    links: LinkPolicy

    @property
    def client(self) -> Origin:
        """The base URL that the client uses: on a reverse port its Host, `localhost` when it sent none."""
        if self.request.upstream is None:
            return Origin("http", self.request.host, self.request.port, self.upstream.path)
        authority = (value_of(self.request.fields, b"host") or b"localhost").decode("latin-1").removesuffix(":")
        host, colon, port = authority.rpartition(":")
        if not colon or not port.isdecimal():
            host, port = authority, "80"
        return Origin("http", host.strip("[]"), int(port))

    def outward(self) -> Request:
        """Return the request with the upstream's own name in its fields, and with what *links* adds."""
        fields = self._mapped(self.request.fields, REQUEST_FIELDS, outward=True)
        if self.request.upstream is not None:
            if self.links.forwarded:
                fields = _forwarded(fields, self.client, self.upstream)
            if self.links.rewrite:
                kept = (field for field in fields if normal_name(field[0]) != b"accept-encoding")
                fields = (*kept, (b"Accept-Encoding", b"identity"))
        return self.request if fields is self.request.fields else replace(self.request, fields=fields)

    def inward(self, status: int, fields: Fields) -> tuple[Fields, Rewriter | None]:
        """Return the *fields* of an answer with the client's name in them, and what does the same for its body.

        None when the body stays as it is. Where it does not, the fields that speak of its bytes go, also for HEAD
        (RFC 9110 section 8.6); an ETag stays, because it is the server's to compare.
        """
        fields = self._mapped(fields, ANSWER_FIELDS, outward=False)
        if self.request.upstream is None or not self.links.rewrite or not self._is_rewritten(status, fields):
            return fields, None
        kept = tuple(field for field in fields if field[0].lower() not in OF_THE_BYTES)
        return kept, Rewriter(self.upstream, self.client)

    def _is_rewritten(self, status: int, fields: Fields) -> bool:
        if status == _PARTIAL_CONTENT or (value_of(fields, b"content-encoding") or b"identity").lower() != b"identity":
            return False
        media_type = (value_of(fields, b"content-type") or b"").partition(b";")[0]
        return media_type.strip().lower() in self.links.rewrite

    def _mapped(self, fields: Fields, table: Mapping[bytes, _Map], *, outward: bool) -> Fields:
        if table.keys().isdisjoint([name.lower() for name, _ in fields]):
            return fields
        source, target = (self.client, self.upstream) if outward else (self.upstream, self.client)
        return tuple(
            (name, table[key](value, source, target)) if (key := name.lower()) in table else (name, value)
            for name, value in fields
        )


def mirror(request: Request, upstream: Origin, links: LinkPolicy) -> Mirror | None:
    """Return the mirror for *request*, None where client and upstream use the same name, as within intercepted TLS."""
    if request.upstream is None and request.scheme == upstream.scheme:
        return None
    return Mirror(request, upstream, links)


def _forwarded(fields: Fields, client: Origin, upstream: Origin) -> Fields:
    """Return *fields* with the client's name in X-Forwarded-*, instead of what stood there."""
    kept = (field for field in fields if normal_name(field[0]) not in FORWARDED)
    told = ((b"X-Forwarded-Host", client.authority.encode("latin-1")), (b"X-Forwarded-Proto", b"http"))
    # It takes the place of the path that a server believes to be mounted at; ours is in front of every path.
    prefix: Fields = ((b"X-Forwarded-Prefix", b"/"),) if upstream.path else ()
    return (*kept, *told, *prefix)


def _reference(value: bytes, source: Origin, target: Origin) -> bytes:
    """Return a URI reference (RFC 3986 section 4.1) to something below *source* as one below *target*.

    A path outside *source* becomes a whole URL, where it would mean another place for the other side.
    """
    if value.startswith(b"/") and not value.startswith(b"//"):
        if source.path == target.path:
            return value
        path = re.split(rb"[?#]", value, maxsplit=1)[0]
        if not _inside(path, source, target):
            return _root(source) + value
        moved = (target.path + path[len(source.path) :] or b"/") + value[len(path) :]
        # What is left may begin with two slashes, which would name another host.
        return _root(target) + moved if moved.startswith(b"//") else moved
    url = _URL.fullmatch(value)
    if not url or not _is_named(source, url[1], url[2]):
        return value
    path = url[3] or b"/"
    if _inside(path, source, target):
        return _root(target) + (target.path + path[len(source.path) :] or b"/") + url[4]
    return value if url[1] else source.scheme.encode() + b":" + value


def _origin(value: bytes, source: Origin, target: Origin) -> bytes:
    """Return a serialized origin (RFC 6454 section 6.2); `null` and `*` are none."""
    url = _URL.fullmatch(value)
    if url and url[1] and not url[3] and not url[4] and _is_named(source, url[1], url[2]):
        return _root(target)
    return value


def _bracketed(pattern: re.Pattern[bytes], value: bytes, source: Origin, target: Origin) -> bytes:
    """Return *value* with the URLs in angle brackets mapped that *pattern* finds as its group."""
    return pattern.sub(
        lambda found: found[0] if found[1] is None else b"<%b>" % _reference(found[1], source, target), value
    )


def _refresh(value: bytes, source: Origin, target: Origin) -> bytes:
    """Return `5; url=...` as browsers read it, with or without quotes."""
    found = _REFRESH.match(value)
    if not found:
        return value
    start, quote = found.end(), found[1]
    end = value.find(quote, start) if quote and quote in value[start:] else len(value)
    return value[:start] + _reference(value[start:end], source, target) + value[end:]


def _cookie(value: bytes, source: Origin, target: Origin) -> bytes:
    """Return a Set-Cookie whose cookie comes back from where the client is (RFC 6265 sections 5.3 and 5.4)."""
    pair, *attributes = value.split(b";")
    kept = (mapped for text in attributes if (mapped := _attribute(text, source, target)) is not None)
    return b";".join((pair, *kept))


def _attribute(text: bytes, source: Origin, target: Origin) -> bytes | None:
    name, _, value = text.partition(b"=")
    key, value = name.strip().lower(), value.strip()
    if source.scheme == "https" and (key in (b"secure", b"partitioned") or _is_cross_site(key, value)):
        return None
    if key == b"domain" and _covers(value, source.host) and not _covers(value, target.host):
        return None
    if key == b"path" and source.path != target.path and value.startswith(b"/"):
        if (source.path + b"/").startswith(value.rstrip(b"/") + b"/"):
            return name + b"=/"
        if value.startswith(source.path + b"/"):
            return name + b"=" + value[len(source.path) :]
    return text


def _is_cross_site(key: bytes, value: bytes) -> bool:
    """Tell whether this is SameSite=None, which browsers take together with Secure only."""
    return key == b"samesite" and value.lower() == b"none"


def _covers(domain: bytes, host: str) -> bool:
    """Tell whether cookies of *domain* go to *host* (RFC 6265 section 5.1.3)."""
    wanted = domain.lstrip(b".").lower().decode("latin-1")
    return ("." + host.lower()).endswith("." + wanted)


def _is_named(origin: Origin, scheme: bytes | None, authority: bytes) -> bool:
    """Tell whether *scheme* (None: that of *origin*) and *authority* are those of *origin*.

    Behind a TLS terminator servers write `http://`: that is it too, with the same port or both their default ones.
    """
    found = _AUTHORITY.fullmatch(authority)
    spelled = scheme.decode().lower() if scheme else origin.scheme
    if not found or spelled not in ("http", origin.scheme):
        return False
    port = int(found[2] or DEFAULT_PORTS[spelled])
    if port != origin.port and (spelled, port, origin.scheme, origin.port) != ("http", 80, "https", 443):
        return False
    host = found[1].strip(b"[]").decode("latin-1").lower()
    return host.removesuffix(".") == origin.host.lower().removesuffix(".")


def _inside(path: bytes, source: Origin, target: Origin) -> bool:
    """Tell whether *path* is below *source*; where dot segments lead is for those to say who resolve them."""
    if source.path != target.path and (b"/./" in path + b"/" or b"/../" in path + b"/"):
        return False
    return path == source.path or path.startswith(source.path + b"/")


def _root(origin: Origin) -> bytes:
    return f"{origin.scheme}://{origin.authority}".encode("latin-1")


REQUEST_FIELDS: Mapping[bytes, _Map] = {
    b"destination": _reference,
    b"if": partial(_bracketed, _CONDITION),
    b"origin": _origin,
    b"referer": _reference,
}
ANSWER_FIELDS: Mapping[bytes, _Map] = {
    b"access-control-allow-origin": _origin,
    b"content-location": _reference,
    b"link": partial(_bracketed, _LINK),
    b"location": _reference,
    b"odata-entityid": _reference,
    b"refresh": _refresh,
    b"set-cookie": _cookie,
}
