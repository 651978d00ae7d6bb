"""Which upstream a request belongs to, and the target it gets there. Decides by what would be connected to.

A credential is bound to scheme, host, port and path prefix. A path that may leave the prefix in any server's
reading of it (`paths`), or in a mixture of readings, is refused.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import urlsplit

from sidecar.errors import Reason, Refusal
from sidecar.policy.headers import PATH_FIELDS, values_named
from sidecar.policy.hosts import configured_host, normal_host
from sidecar.policy.message import Fields, Request
from sidecar.policy.paths import UP, is_plain, leaves, readings

_HTTP, _HTTPS = 80, 443
DEFAULT_PORTS = {"http": _HTTP, "https": _HTTPS}

_AUTHORITY = re.compile(r"(\[.+\]|[^:\[\]]+)(?::[0-9]*)?")
_BASE_PATH = re.compile(r"(/(?!\.+(/|$))[A-Za-z0-9._~!$&'()*+,=:@-]+)*")


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


def parse_base_url(url: str) -> Origin:
    """Return the origin of a base URL; ValueError says what is expected, and shows no part of *url*."""
    expected = "expected a URL such as https://plm.example.com/api"
    # urlsplit drops what cannot be printed, others do not; its errors quote what may be a password.
    if not url.isprintable() or " " in url:
        raise ValueError(expected)
    try:
        parts = urlsplit(url)
        # Not `hostname`, whose lower case is Python's: it ends a Greek word in another sigma than UTS 46.
        authority = _AUTHORITY.fullmatch(parts.netloc.rpartition("@")[2])
        host = configured_host(authority[1].strip("[]") if authority else "")
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


class Route(NamedTuple):
    """Where a request goes: the upstream's name, its origin, and the target in origin-form."""

    upstream: str
    origin: Origin
    target: bytes


@dataclass(slots=True, eq=False)
class _Node:
    """A place in the paths of one authority, *depth* segments down; *base*: the upstream whose base path ends here."""

    above: "_Node | None" = None
    depth: int = 0
    below: "dict[bytes, _Node]" = field(default_factory=dict)
    base: tuple[str, Origin] | None = None


_Read = Sequence[Sequence[bytes]]
"""What of a path lies below a node, as it may be read; empty when all servers read it as it stands."""


class Routes:
    """The upstreams by what leads to them, made once and never changed: a thousand cost a request what one does."""

    def __init__(self, origins: Mapping[str, Origin], lent: Mapping[str, Sequence[Origin]] | None = None) -> None:
        """*lent*: by upstream, origins of others where logins of its clients go, which are answered here."""
        self._roots: dict[tuple[str, str, int], _Node] = {}
        self._bases: dict[str, _Node] = {}
        for name, origin in origins.items():
            node = self._roots.setdefault((origin.scheme, origin.host, origin.port), _Node())
            for depth, segment in enumerate(origin.path.split(b"/")[1:], 1):
                node = node.below.setdefault(segment, _Node(node, depth))
            node.base = name, origin
            self._bases[name] = node
        self._lent: dict[tuple[str, int], list[tuple[str, Origin]]] = {}
        for name, others in (lent or {}).items():
            for origin in others:
                for port in {origin.port, _HTTP if origin.port == _HTTPS else origin.port}:
                    self._lent.setdefault((origin.host, port), []).append((name, origin))

    def lent(self, host: str, port: int) -> Sequence[tuple[str, Origin]]:
        """Return the upstreams whose clients may log in at *host*, as they spelled it, and *port*, with that origin."""
        if not self._lent:
            return ()
        try:
            return self._lent.get((normal_host(host), port), ())
        except ValueError:
            return ()

    def intercepts(self, host: str, port: int) -> bool:
        """Tell whether a request inside a CONNECT to *host*, in its normal form, can be one for an upstream.

        Some clients send CONNECT for `http://` as well, so port 80 belongs to an upstream on 443.
        """
        return (host, port) in self._lent or self.serves(host, port)

    def serves(self, host: str, port: int) -> bool:
        """Tell the same where no login is meant."""
        upgraded = port == _HTTP and ("https", host, _HTTPS) in self._roots
        return upgraded or any((scheme, host, port) in self._roots for scheme in DEFAULT_PORTS)

    def find(self, request: Request) -> Route:
        """Return the route of *request*; Refusal `no_route` when it has none or its path leaves the base path.

        On the proxy port: scheme, host and port must be an upstream's, then the longest base path wins.
        `http` is upgraded to an `https` upstream with the same port, or when both have their scheme's default.
        On a reverse port the target is appended to the base path. `bad_request` for a NUL in a path.
        """
        target = request.target
        path = target.partition(b"?")[0]
        if b"%00" in path:
            raise Refusal(Reason.BAD_REQUEST, "a path cannot hold %00: servers differ in where it ends then")
        node = self._base_of(request, path) if request.upstream is None else self._bases[request.upstream]
        if node is None or node.base is None:
            raise Refusal(Reason.NO_ROUTE, "no upstream is configured for this scheme, host, port and path")
        name, origin = node.base
        if request.upstream is not None:
            name, target = request.upstream, _joined(target, path, origin)
        if node.depth or node.below:
            self._check_meant(request.fields, node, origin)
        return Route(name, origin, target)

    def _base_of(self, request: Request, path: bytes) -> _Node | None:
        """Return the base of a request on the proxy port; Refusal when it may be read as one of another upstream."""
        scheme, host, port = authority = request.scheme, request.host, request.port
        if authority not in self._roots:  # most are, as they were sent
            try:
                host = normal_host(host)
            except ValueError:
                raise Refusal(Reason.NO_ROUTE, "this target has no valid host") from None
        found = self._lookup(scheme, host, port, path)
        if found is None and scheme == "http":
            upgrades = [self._lookup("https", host, each, path) for each in {port, _HTTPS if port == _HTTP else port}]
            found = max(filter(None, upgrades), key=lambda place: place[0].depth, default=None)
        if found is None:
            return None
        node, read = found
        if read and node.below and _leads_on(node, read):
            raise Refusal(Reason.NO_ROUTE, "this path leads from one upstream into another")
        return node

    def _lookup(self, scheme: str, host: str, port: int, path: bytes) -> tuple[_Node, _Read] | None:
        root = self._roots.get((scheme, host, port))
        return None if root is None else _deepest(root, path)

    def _check_meant(self, fields: Fields, node: _Node, origin: Origin) -> None:
        """Raise Refusal when a field means another path, to servers that rewrite by it, than one of *node*."""
        for value in values_named(fields, PATH_FIELDS):
            path = value.partition(b"?")[0]
            found = self._lookup(origin.scheme, origin.host, origin.port, path) if path.startswith(b"/") else None
            if found is None or found[0] is not node or _leads_on(*found):
                raise Refusal(Reason.NO_ROUTE, "X-Original-URL or X-Rewrite-URL leaves the base path of the upstream")


def _joined(target: bytes, path: bytes, origin: Origin) -> bytes:
    """Return *target* behind the base path of *origin*; Refusal when it cannot be joined, or *path* may lead out."""
    if not target.startswith(b"/") and not (target == b"*" and not origin.path):
        raise Refusal(Reason.NO_ROUTE, "this target cannot be joined to the base path of the upstream")
    if origin.path and not is_plain(path) and leaves(readings(path.split(b"/")[1:])):
        raise Refusal(Reason.NO_ROUTE, "this path leaves the base path of the upstream")
    return origin.path + target


def _deepest(root: _Node, path: bytes) -> tuple[_Node, _Read] | None:
    """Return the longest base path that *path* cannot leave, and how the rest may be read; None when there is none."""
    _, *segments = path.split(b"/")
    node = root
    for segment in segments:
        if segment not in node.below:
            break
        node = node.below[segment]
    end: _Node | None = node
    while end is not None:
        if end.base is not None:
            # Nothing can leave a whole host, and there may be nothing to lead into.
            if not (end.depth or end.below) or is_plain(path):
                return end, ()
            read = readings(segments[end.depth :])
            if not end.depth or not leaves(read):
                return end, read
        end = end.above
    return None


def _leads_on(node: _Node, read: _Read) -> bool:
    """Tell whether what lies below *node*, read as *read*, may be of an upstream below it."""
    if node.below and any(UP in names for names in read):
        return True
    reached = {node}
    for names in read:
        # Of what one server finds in a segment another may see the beginning only.
        reached = {place for start in reached for place in _walk(start, names)}
        if any(place.base and place is not node for place in reached):
            return True
    return False


def _walk(node: _Node, names: Sequence[bytes]) -> Iterator[_Node]:
    """Yield where each of *names* leads, one after the other from *node* on; an empty one leads nowhere."""
    for name in names:
        if name:
            if name not in node.below:
                return
            node = node.below[name]
        yield node
