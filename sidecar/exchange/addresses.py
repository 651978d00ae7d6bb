"""Which addresses an upstream may resolve to; checked on the socket that is about to connect.

A name can resolve to anything, at any time. Link-local and metadata addresses are never an upstream, nor are
our own listeners; with `addresses` set, only what lies in them is.
"""

import fcntl
import ipaddress
import socket
import sys
import termios
from collections.abc import Callable, Iterable
from typing import Any

_METADATA = frozenset(
    map(
        ipaddress.ip_address,
        (
            "100.100.100.200",  # Alibaba; what is link-local, 169.254.169.254 above all, needs no entry
            "168.63.129.16",  # Azure
            "192.0.0.192",  # Oracle
            "fd00:c1::a9fe:a9fe",  # Oracle
            "fd00:ec2::23",  # AWS, identities of pods
            "fd00:ec2::254",  # AWS
            "fd20:ce::254",  # Google
        ),
    )
)
_EMBEDDING = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("::/96"))
"""NAT64 (RFC 6052) and the old compatible form: an IPv4 address in the last four bytes."""
_PROBES = {"TCP_KEEPIDLE": 30, "TCP_KEEPALIVE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
"""When a silent peer is asked whether it is still there, in seconds; TCP_KEEPALIVE is how macOS calls TCP_KEEPIDLE."""
IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


class AddressProhibited(OSError):
    """The upstream's name resolved to an address that no credential may reach."""


def prohibition(text: str, port: int, allowed: Iterable[str], own: Iterable[tuple[str, int]]) -> str | None:
    """Return why *text*:*port* must not be connected to, None if it may be.

    *allowed*: networks, empty for all. *own*: our listeners, with a wildcard host standing for every local one.
    """
    address = _unmapped(ipaddress.ip_address(text.partition("%")[0]))
    if address.is_unspecified or address.is_multicast:
        return "not the address of a host"
    ends = (address, *_embedded(address))
    if any(end.is_link_local or end in _METADATA for end in ends):
        return "a link-local or metadata address"
    for host, own_port in own:
        listener = _unmapped(ipaddress.ip_address(host))
        if port == own_port and (listener.is_unspecified or any(end == listener or end.is_loopback for end in ends)):
            return "a listener of this sidecar"
    networks = [ipaddress.ip_network(network) for network in allowed]
    if networks and not any(address in network for network in networks):
        return "outside the configured addresses"
    return None


def checked_socket(
    allowed: Iterable[str], own: Callable[[], Iterable[tuple[str, int]]]
) -> Callable[[tuple[Any, ...]], socket.socket]:
    """Return a socket factory for aiohttp that refuses prohibited addresses with AddressProhibited.

    Its sockets find out within a minute that a peer which owes nothing is gone.
    """
    networks = tuple(allowed)

    def create(info: tuple[Any, ...]) -> socket.socket:
        family, kind, protocol, _, address = info
        if why := prohibition(address[0], address[1], networks, own()):
            raise AddressProhibited(f"{address[0]}:{address[1]} is {why}")
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _PROBES.items():
            if hasattr(socket, name):
                made.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        return made

    return create


def acknowledged_within(connected: socket.socket, seconds: int) -> None:
    """Let *connected* end when its peer does not acknowledge within *seconds* what was sent; 0: as the system likes.

    Nobody is asked whether it is still there while it owes that. A peer that is alive but takes no more ends so too.
    """
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, seconds * 1000)


def unacknowledged(connected: socket.socket) -> int:
    """Return how many of the bytes sent the peer has not acknowledged; 0 where nobody can tell, and when closed."""
    try:
        return int.from_bytes(fcntl.ioctl(connected.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    except (OSError, ValueError):
        return 0


def _unmapped(address: IpAddress) -> IpAddress:
    mapped = getattr(address, "ipv4_mapped", None)
    return address if mapped is None else mapped


def _embedded(address: IpAddress) -> list[ipaddress.IPv4Address]:
    """Return the IPv4 addresses that a translator or tunnel makes of an IPv6 one."""
    if address.version == 4:  # noqa: PLR2004
        return []
    found = [ipaddress.IPv4Address(address.packed[-4:])] if any(address in network for network in _EMBEDDING) else []
    return found if address.sixtofour is None else [address.sixtofour]
