"""Which upstream a request belongs to, and the target it gets there. Decides by what would be connected to.

A credential is bound to scheme, host, port and path prefix. Whatever a server might read out of a path
(dots, encoded dots, back slashes, path parameters) is resolved here first; a path that leaves the prefix in
any of these readings is refused.
"""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes, urlsplit

from sidecar.errors import Reason, Refusal
from sidecar.policy.message import Request

DEFAULT_PORTS = {"http": 80, "https": 443}


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
    """Return *host* in lower case, without one trailing dot, IPv6 in its short form; ValueError if it is none."""
    if ":" in host:
        return str(ipaddress.IPv6Address(host.partition("%")[0]))
    name = host.removesuffix(".").lower()
    if not name.isascii():
        name = name.encode("idna").decode("ascii")
    if not name or any(not (char.isalnum() or char in "-._~") for char in name):
        raise ValueError("expected a host name")
    return name


def parse_base_url(url: str) -> Origin:
    """Return the origin of a base URL; ValueError says what is wrong with it."""
    parts = urlsplit(url)
    if parts.scheme not in DEFAULT_PORTS or not parts.hostname:
        raise ValueError("expected a URL such as https://plm.example.com/api")
    if parts.query or parts.fragment or "@" in parts.netloc:
        raise ValueError("expected a URL without user, query and fragment")
    path = parts.path.rstrip("/").encode()
    if _normal_path(path or b"/") != (path or b"/"):
        raise ValueError("expected a path without dots, doubled slashes and escapes")
    return Origin(parts.scheme, normal_host(parts.hostname), parts.port or DEFAULT_PORTS[parts.scheme], path)


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
        target = request.target if request.target == b"*" else origin.path + request.target
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


def rewrite_location(value: bytes, origin: Origin, base: bytes) -> bytes:
    """Return a Location for a client of a reverse port: one that starts with the base URL starts with *base*."""
    prefix = origin.url.encode("latin-1")
    rest = value[len(prefix) :]
    if value.startswith(prefix) and rest[:1] in (b"", b"/", b"?", b"#"):
        return base + (rest if rest.startswith(b"/") else b"/" + rest)
    return value


def _upgraded(request: Request, host: str, origin: Origin) -> bool:
    if (request.scheme, origin.scheme) != ("http", "https") or host != origin.host:
        return False
    return request.port == origin.port or (request.port, origin.port) == (80, 443)


def _leans_into(target: bytes, origin: Origin, chosen: Origin) -> bool:
    """Tell whether *target*, once normalised, belongs to a longer base path than its raw form does."""
    same = (origin.scheme, origin.host, origin.port) == (chosen.scheme, chosen.host, chosen.port)
    longer = len(origin.path) > len(chosen.path)
    return same and longer and _has_prefix(_normal_path(_path_of(target)), origin.path)


def _inside(target: bytes, prefix: bytes) -> bool:
    if not prefix:
        return True
    path = _path_of(target)
    return _has_prefix(path, prefix) and _has_prefix(_normal_path(path), prefix)


def _has_prefix(path: bytes, prefix: bytes) -> bool:
    return path == prefix or path.startswith(prefix + b"/")


def _path_of(target: bytes) -> bytes:
    return target.partition(b"?")[0]


def _normal_path(path: bytes) -> bytes:
    """Return the path as the most generous server might read it."""
    for _ in range(4):
        decoded = unquote_to_bytes(path)
        if decoded == path:
            break
        path = decoded
    parts: list[bytes] = []
    for segment in path.replace(b"\\", b"/").split(b"/"):
        name = segment.partition(b";")[0]
        if name == b"..":
            del parts[-1:]
        elif name not in (b"", b"."):
            parts.append(name)
    return b"/" + b"/".join(parts)
