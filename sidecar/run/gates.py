"""From the settings of a port to what it asks of its requests."""

from sidecar.policy.routing import Origin
from sidecar.proxy.gate import Gate
from sidecar.secret import Secret
from sidecar.settings import HostPort, Listen, ListenAddress

_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})


def proxy_gate(listen: Listen) -> Gate:
    """Return the gate of the proxy port; raises ConfigurationError when its password cannot be read."""
    if listen.auth is None:
        return Gate()
    return Gate(credentials=Secret(f"{listen.auth.username}:{listen.auth.password.read().reveal()}"))


def reverse_gate(address: ListenAddress, origin: Origin) -> Gate:
    """Return the gate of a reverse port: it answers to loopback names, to its own address and to the upstream's host.

    No browser reaches a unix socket, and its clients put any name into Host.
    """
    if not isinstance(address, HostPort):
        return Gate()
    own = f"[{address.host}]" if ":" in address.host else address.host
    upstream = f"[{origin.host}]" if ":" in origin.host else origin.host
    page = f"{origin.scheme}://{origin.authority}"
    return Gate(hosts=_LOOPBACK_NAMES | {own, upstream}, origin=page)
