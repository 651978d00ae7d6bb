"""A body in which an upstream's base URL becomes the client's, as it streams."""

import re

from sidecar.policy.routing import DEFAULT_PORTS, Origin

_BOUNDARY = rb"""[/?#\\"'<>\s&)\]}|,`]"""
"""What ends a base URL inside a text; anything else makes it part of a longer name."""
_END = b"\n"


class Rewriter:
    """Rewrites one body; all of it goes through `feed`, then `end`.

    Found are the base URL with https or http, its default port spelled out or not, the host in any case, slashes
    plain or escaped as in JSON. Other escapes (`%2F`, `&#x2F;`) stay. Held back is less than one base URL.
    """

    def __init__(self, upstream: Origin, client: Origin) -> None:
        # Schemes and ports that mean the upstream; a server behind a TLS terminator writes http.
        names = {(scheme, upstream.port) for scheme in ("http", upstream.scheme)}
        names |= {("http", 80)} if (upstream.scheme, upstream.port) == ("https", 443) else set()
        self._named = {(scheme.encode(), b":%d" % port) for scheme, port in names}
        self._named |= {(scheme.encode(), b"") for scheme, port in names if port == DEFAULT_PORTS[scheme]}
        host = (f"[{upstream.host}]" if ":" in upstream.host else upstream.host).encode("latin-1")
        self._path = upstream.path
        segments = upstream.path.split(b"/")[1:]
        self._pattern = re.compile(
            rb"(https?):(?P<slash>\\?/)(?P=slash)(?i:%b)(:[0-9]{1,5})?%b(?=%b)"
            % (re.escape(host), b"".join(rb"(?P=slash)" + re.escape(segment) for segment in segments), _BOUNDARY)
        )
        plain = [b"%b://%b%b%b" % (scheme, host.lower(), port, upstream.path.lower()) for scheme, port in self._named]
        self._spellings = [*plain, *(spelling.replace(b"/", b"\\/") for spelling in plain)]
        self._longest = max(map(len, self._spellings))
        self._authority = client.authority.encode("latin-1")
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """Return what can be told of the body after *data*; empty when that has to wait for more."""
        data = self._held + data
        parts, done = [], 0
        for match in self._pattern.finditer(data):
            parts.append(data[done : match.start()])
            parts.append(self._rewritten(match))
            done = match.end()
        cut = max(done, self._begun(data))
        self._held = data[cut:]
        parts.append(data[done:cut])
        return b"".join(parts)

    def end(self) -> bytes:
        """Return the rest of the body: its end is a boundary too."""
        return self.feed(_END).removesuffix(_END)

    def _rewritten(self, match: re.Match[bytes]) -> bytes:
        scheme, slash, port = match.groups()
        if (scheme, port or b"") not in self._named:
            return match[0]
        # Without its path a base URL is seldom followed by a query, and then only some clients understand it.
        bare = self._path and match.string[match.end() : match.end() + 1] in (b"?", b"#")
        return b"http:%b%b%b%b" % (slash, slash, self._authority, slash if bare else b"")

    def _begun(self, data: bytes) -> int:
        """Return where at the end of *data* a base URL may have begun, its length if none has."""
        tail = data[-self._longest :].lower()
        start = tail.find(b"h")
        while start >= 0:
            begun = tail[start:]
            if any(spelling.startswith(begun) for spelling in self._spellings):
                return len(data) - len(tail) + start
            start = tail.find(b"h", start + 1)
        return len(data)
