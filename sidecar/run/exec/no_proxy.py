"""What is left of a NO_PROXY that would hide an upstream, in any client's reading of it."""

import ipaddress
import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from sidecar.policy.routing import DEFAULT_PORTS

_BETWEEN = re.compile(r"[,\s]+")
_WITH_PORT = re.compile(r"(\[[^\]]*\]|[^:]*):([0-9]+)")

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def entries(values: Iterable[str | None]) -> list[str]:
    """Return the entries of all *values*, each once, in order; clients part them with commas, some with blanks."""
    found: dict[str, str] = {}
    for value in values:
        for entry in _BETWEEN.split(value or ""):
            found.setdefault(entry.lower(), entry)
    return [entry for entry in found.values() if entry]


def without_upstreams(given: Iterable[str], upstreams: Sequence[tuple[str, int]]) -> list[str]:
    """Return the entries that hide none of *upstreams*, which are pairs of host and port.

    An entry goes if one client would take it for an upstream, although another would not: its other hosts then
    pass through the sidecar, which costs little, whereas a hidden upstream is a request without a token.
    """
    return [entry for entry in given if not any(_hides(entry.lower(), host, port) for host, port in upstreams)]


def java_patterns(kept: Iterable[str]) -> str:
    """Return *kept* as `http.nonProxyHosts`, without what it cannot say: ports, and networks not cut at a dot."""
    return "|".join(dict.fromkeys(pattern for entry in kept for pattern in _java(entry.lower())))


def is_loopback(host: str) -> bool:
    """Tell whether *host* is this machine by its name or address."""
    network = _network(host)
    return host == "localhost" or host.endswith(".localhost") or (network is not None and network.is_loopback)


def _hides(entry: str, host: str, port: int) -> bool:
    if "://" in entry:
        entry = entry.partition("://")[2].partition("/")[0]
    if match := _WITH_PORT.fullmatch(entry):
        entry = match[1]
        # A script may say http:// where the sidecar knows better: both default ports are then the upstream's.
        defaults = set(DEFAULT_PORTS.values())
        if int(match[2]) not in (defaults if port in defaults else {port}):
            return False
    entry = entry.strip("[]")
    if is_loopback(host) and (entry == "<local>" or is_loopback(entry.removesuffix("."))):
        return True
    return _matches(entry, host)


def _matches(entry: str, host: str) -> bool:
    """Compare as the most generous clients do: networks, `10.`, `<local>`, globs, any suffix with or without a dot."""
    address = _network(host)
    if network := _network(entry):
        return address is not None and address[0] in network
    if entry == "<local>":
        return "." not in host and address is None
    if address is not None and entry.endswith(".") and host.startswith(entry):
        return True
    suffix = entry.lstrip("*").removeprefix(".").removesuffix(".")
    return host.endswith(suffix) or fnmatchcase(host, entry)


def _java(entry: str) -> list[str]:
    if network := _network(entry.strip("[]")):
        address = str(network.network_address)
        if network.prefixlen == network.max_prefixlen:
            return [f"[{address}]" if ":" in address else address]
        octets, rest = divmod(network.prefixlen, 8)
        return [] if ":" in address or rest or not octets else [".".join([*address.split(".")[:octets], "*"])]
    name = entry.lstrip("*").removeprefix(".").removesuffix(".")
    if not name or any(char in name for char in ":/<|"):
        return []
    return [name, f"*.{name}"] if entry[0] not in "*." else [f"*.{name}"]


def _network(entry: str) -> Network | None:
    """Return the addresses that *entry* stands for, None for a name."""
    try:
        return ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return None
