"""Which hosts are none of our business: tunnelled or forwarded as they are, never with a credential of ours.

An upstream's host is never one of them, on any port: what would bypass the sidecar there is a mistake.
"""

from collections.abc import Collection, Mapping

from sidecar.policy.routing import DEFAULT_PORTS, Origin

EVERY_HOST = "*"
"""The pattern of `exec`: a script's other hosts work as they did without us."""


def matches(pattern: str, host: str) -> bool:
    """Tell whether *host*, in its normal form, is the one that *pattern* names, or lies below its `*.`."""
    if pattern == EVERY_HOST:
        return True
    return host.endswith(pattern[1:]) if pattern.startswith("*.") else host == pattern


def passes(host: str, patterns: Collection[str], origins: Mapping[str, Origin]) -> bool:
    """Tell whether *host*, in its normal form, is passed through."""
    if any(host == origin.host for origin in origins.values()):
        return False
    return any(matches(pattern, host) for pattern in patterns)


def intercepted(host: str, port: int, origins: Mapping[str, Origin]) -> bool:
    """Tell whether a request inside a CONNECT to *host*:*port* can be one for an upstream.

    Some clients send CONNECT for `http://` as well, so port 80 belongs to an upstream on 443.
    """
    for origin in origins.values():
        upgraded = (port, origin.port, origin.scheme) == (DEFAULT_PORTS["http"], DEFAULT_PORTS["https"], "https")
        if host == origin.host and (port == origin.port or upgraded):
            return True
    return False
