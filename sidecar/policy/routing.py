"""Which upstream a request belongs to, and the target it gets there. Decides by what would be connected to.

A credential is bound to scheme, host, port and path prefix. Servers differ in what they read out of a path:
dots, encoded dots and slashes, back slashes, path parameters. A path that may leave the prefix in any of these
readings, or in a mixture of them, is refused.
"""

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes, urlsplit

from sidecar.errors import Reason, Refusal
from sidecar.policy.message import Request

DEFAULT_PORTS = {"http": 80, "https": 443}

_HOST_NAME = re.compile(r"[A-Za-z0-9._~-]+")
_BASE_PATH = re.compile(r"(/(?!\.+(/|$))[A-Za-z0-9._~!$&'()*+,=:@-]+)*")
_DECODINGS = 4
"""How often a path may have been encoded; whoever encodes more often hides something."""
_PLAIN = re.compile(rb"[A-Za-z0-9_~-][A-Za-z0-9._~!$&'()*+,=:@-]*")
_SEPARATOR = re.compile(rb"[/\\]")
_NAME_END = re.compile(rb"[;?#\x00]")
_IGNORED = bytes(range(0x21)) + b"\x7f"
_OVERLONG = re.compile(rb"[\xc0\xc1][\x80-\xbf]|\xe0[\x80-\x9f]|\xf0[\x80-\x8f]|%u", re.IGNORECASE)
"""Spellings of ASCII that some servers take: UTF-8 longer than it may be, and the %u of old ones."""


@dataclass(frozen=True, slots=True)
class Origin:
    """A parsed base URL; *path* has no trailing slash, so that it is empty for the root."""

    scheme: str
    host: str
    port: int
    path: bytes = b""

    @property
    def authority(self) -> str:
        """The Host field for this origin: the port only if it is not the scheme's default."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The base URL in its normal form."""
        return f"{self.scheme}://{self.authority}{self.path.decode('latin-1')}"


def normal_host(host: str) -> str:
    """Return *host* in lower case, without one trailing dot, IPv6 in its short form; ValueError if it is none.

    A name is what DNS takes, so only ASCII: the Unicode form of a request could be read in more than one way.
    """
    if ":" in host and "%" not in host:
        return str(ipaddress.IPv6Address(host))
    name = host.removesuffix(".")
    if not _HOST_NAME.fullmatch(name):
        raise ValueError("expected a host name")
    return name.lower()


def parse_base_url(url: str) -> Origin:
    """Return the origin of a base URL; ValueError says what is expected, and shows no part of *url*."""
    expected = "expected a URL such as https://plm.example.com/api"
    # urlsplit drops what cannot be printed, others do not; its errors quote what may be a password.
    if not url.isprintable() or " " in url:
        raise ValueError(expected)
    try:
        parts = urlsplit(url)
        host = normal_host((parts.hostname or "").encode("idna").decode("ascii"))
        port = DEFAULT_PORTS.get(parts.scheme, 0) if parts.port is None else parts.port
    except ValueError:
        raise ValueError(expected) from None
    if parts.scheme not in DEFAULT_PORTS or port == 0:
        raise ValueError(expected)
    if parts.query or parts.fragment or "@" in parts.netloc:
        raise ValueError("expected a URL without user, query and fragment")
    path = parts.path.rstrip("/")
    if not _BASE_PATH.fullmatch(path):
        raise ValueError("expected a plain path, without dot segments, doubled slashes and escapes")
    return Origin(parts.scheme, host, port, path.encode())


@dataclass(frozen=True, slots=True)
class Route:
    """Where a request goes: the upstream's name, its origin, and the target in origin-form."""

    upstream: str
    origin: Origin
    target: bytes


def route(request: Request, origins: Mapping[str, Origin]) -> Route:
    """Return the route of *request*; Refusal `no_route` when it has none or its path leaves the base path.

    On the proxy port: scheme, host and port must be an upstream's, then the longest base path wins.
    `http` is upgraded to an `https` upstream with the same port, or when both have their scheme's default.
    On a reverse port the target is appended to the base path.
    """
    if request.upstream is not None:
        origin = origins[request.upstream]
        if not request.target.startswith(b"/") and not (request.target == b"*" and not origin.path):
            raise Refusal(Reason.NO_ROUTE, "this target cannot be joined to the base path of the upstream")
        target = origin.path + request.target
        if not _inside(target, origin.path):
            raise Refusal(Reason.NO_ROUTE, "this path leaves the base path of the upstream")
        return Route(request.upstream, origin, target)
    try:
        host = normal_host(request.host)
    except ValueError:
        raise Refusal(Reason.NO_ROUTE, "this target has no valid host") from None
    best: Route | None = None
    rank = (False, -1)
    for name, origin in origins.items():
        exact = (request.scheme, host, request.port) == (origin.scheme, origin.host, origin.port)
        if (exact or _upgraded(request, host, origin)) and _inside(request.target, origin.path):
            candidate = (exact, len(origin.path))
            if candidate > rank:
                best, rank = Route(name, origin, request.target), candidate
    if best is None:
        raise Refusal(Reason.NO_ROUTE, "no upstream is configured for this scheme, host, port and path")
    if any(_leans_into(request.target, origin, best.origin) for origin in origins.values()):
        raise Refusal(Reason.NO_ROUTE, "this path leads from one upstream into another")
    return best


def _upgraded(request: Request, host: str, origin: Origin) -> bool:
    if (request.scheme, origin.scheme) != ("http", "https") or host != origin.host:
        return False
    return request.port == origin.port or (request.port, origin.port) == (80, 443)


def _leans_into(target: bytes, origin: Origin, chosen: Origin) -> bool:
    """Tell whether *target*, of *chosen* as it stands, may be read as one of *origin*, which lies below it."""
    if (origin.scheme, origin.host, origin.port) != (chosen.scheme, chosen.host, chosen.port):
        return False
    if origin.path == chosen.path or not _has_prefix(origin.path, chosen.path):
        return False
    segments = [_names(segment) for segment in _path_of(target).split(b"/")]
    most, least = [name for names in segments for name in names], [names[0] for names in segments]
    return b".." in most or any(
        _has_prefix(b"/" + b"/".join(filter(None, names)), origin.path) for names in (most, least)
    )


def _inside(target: bytes, prefix: bytes) -> bool:
    """Tell whether the path of *target* stays below *prefix* however it is read.

    Each server has its own mixture of readings, so the worst is assumed of every segment: one that may lead up
    does, as often as it may, and one that may be nothing, or up, leads nowhere down.
    """
    if not prefix:
        return True
    path = _path_of(target)
    if not _has_prefix(path, prefix):
        return False
    depth = 0
    for segment in path[len(prefix) + 1 :].split(b"/"):
        names = _names(segment)
        ups = names.count(b"..")
        depth += -ups if ups else bool(names[0])
        if depth < 0:
            return False
    return True


def _has_prefix(path: bytes, prefix: bytes) -> bool:
    return path == prefix or path.startswith(prefix + b"/")


def _path_of(target: bytes) -> bytes:
    return target.partition(b"?")[0]


def _names(segment: bytes) -> list[bytes]:
    """Return the names that the most generous server finds in one segment: `..` for up, empty for none.

    What hides its meaning may lead up as often as it has bytes.
    """
    if _PLAIN.fullmatch(segment):
        return [segment]
    for _ in range(_DECODINGS + 1):
        decoded = unquote_to_bytes(segment)
        if decoded == segment:
            break
        segment = decoded
    else:
        return [b".."] * len(segment)
    if _OVERLONG.search(segment):
        return [b".."] * len(segment)
    return [_name(piece) for piece in _SEPARATOR.split(segment)]


def _name(piece: bytes) -> bytes:
    name = _NAME_END.split(piece, 1)[0].translate(None, _IGNORED)
    if name.strip(b"."):
        return name
    return b".." if len(name) > 1 else b""
