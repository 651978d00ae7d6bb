"""Which addresses an upstream may resolve to; checked on the socket that is about to connect.

A name can resolve to anything, at any time. Link-local and metadata addresses are never an upstream, nor are
our own listeners; with `addresses` set, only what lies in them is.
"""

import ipaddress
import socket
from collections.abc import Callable, Iterable
from typing import Any

_METADATA = frozenset(
    ipaddress.ip_address(text) for text in ("169.254.169.254", "fd00:ec2::254", "100.100.100.200", "168.63.129.16")
)
IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


class AddressProhibited(OSError):
    """The upstream's name resolved to an address that no credential may reach."""


def prohibition(text: str, port: int, allowed: Iterable[str], own: Iterable[tuple[str, int]]) -> str | None:
    """Return why *text*:*port* must not be connected to, None if it may be.

    *allowed*: networks, empty for all. *own*: our listeners, with a wildcard host standing for every local one.
    """
    address = _unmapped(ipaddress.ip_address(text.partition("%")[0]))
    if address.is_link_local or address in _METADATA:
        return "a link-local or metadata address"
    if address.is_unspecified or address.is_multicast:
        return "not the address of a host"
    for host, own_port in own:
        same_host = address == _unmapped(ipaddress.ip_address(host)) or address.is_loopback
        if port == own_port and (same_host or ipaddress.ip_address(host).is_unspecified):
            return "a listener of this sidecar"
    networks = [ipaddress.ip_network(network) for network in allowed]
    if networks and not any(address in network for network in networks):
        return "outside the configured addresses"
    return None


def checked_socket(
    allowed: Iterable[str], own: Callable[[], Iterable[tuple[str, int]]]
) -> Callable[[tuple[Any, ...]], socket.socket]:
    """Return a socket factory for aiohttp that refuses prohibited addresses with AddressProhibited."""
    networks = tuple(allowed)

    def create(info: tuple[Any, ...]) -> socket.socket:
        family, kind, protocol, _, address = info
        if why := prohibition(address[0], address[1], networks, own()):
            raise AddressProhibited(f"{address[0]}:{address[1]} is {why}")
        return socket.socket(family, kind, protocol)

    return create


def _unmapped(address: IpAddress) -> IpAddress:
    mapped = getattr(address, "ipv4_mapped", None)
    return address if mapped is None else mapped
