"""The listening sockets of a configuration; a reload keeps those whose address has not changed."""

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field

from sidecar.proxy import sockets
from sidecar.proxy.listener import Listener
from sidecar.run.assembly import Assembly
from sidecar.settings import HostPort, ListenAddress, Settings

FREE_PORT = HostPort("127.0.0.1", 0)


@dataclass(slots=True)
class Listeners:
    """The proxy port as `proxy` and the reverse ports under the names of their upstreams.

    *wanted*: the address in the configuration, where the port may be 0.
    """

    by_name: dict[str, Listener] = field(default_factory=dict)
    wanted: dict[str, ListenAddress] = field(default_factory=dict)

    @property
    def addresses(self) -> dict[str, str]:
        """The bound addresses, by name."""
        return {name: str(listener.address) for name, listener in self.by_name.items()}

    def at(self, name: str, address: ListenAddress) -> Listener | None:
        """Return the listener that was bound for *address*; for a free port, the one of *name*."""
        free = isinstance(address, HostPort) and address.port == 0
        for other, wanted in self.wanted.items():
            if wanted == address and (other == name or not free):
                return self.by_name[other]
        return None

    async def serve(self, assembly: Assembly) -> None:
        """Accept connections for the ports of *assembly*; those that are there already go over to it."""
        for name, listener in self.by_name.items():
            port = assembly.proxy if name == "proxy" else assembly.reverse(name, listener.address)
            await listener.serve(port)

    async def drain(self, but: "Listeners") -> None:
        """Let the listeners that are not in *but* end with their requests."""
        for listener in self.without(but):
            listener.drain()
            await listener.ended()
            await listener.aclose()

    async def aclose(self, but: "Listeners | None" = None) -> None:
        """Close the listeners, but those of *but*, whatever they are doing."""
        for listener in self.without(but):
            await listener.aclose()

    def without(self, but: "Listeners | None") -> list[Listener]:
        """Return the listeners that are not in *but*."""
        others = but.by_name.values() if but else ()
        return [each for each in self.by_name.values() if each not in others]


def bind(
    settings: Settings,
    before: Listeners | None = None,
    *,
    free: bool = False,
    inherited: Mapping[str, socket.socket] | None = None,
) -> Listeners:
    """Return listeners for *settings*, those of *before* where the address is the same; *free*: on any port.

    *inherited*: sockets that are bound already, by name. Every address is bound first: a taken one is found before
    anything is served. Raises ConfigurationError, and what was bound is given back.
    """
    found = Listeners()
    try:
        for name, (key, configured) in settings.served.items():
            address = FREE_PORT if free else configured
            kept = before.at(name, address) if before else None
            found.by_name[name] = kept or Listener((inherited or {}).get(name) or sockets.bind(address, key))
            found.wanted[name] = address
    except BaseException:
        for listener in found.without(before):
            listener.socket.close()
        raise
    return found
