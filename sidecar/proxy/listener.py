"""Our own listening sockets; mitmproxy's bind every interface and cannot drain."""

import asyncio
import contextlib
import socket
from functools import partial

from sidecar.errors import Reason, Refusal
from sidecar.proxy.connection import ClientConnection
from sidecar.proxy.port import Port
from sidecar.proxy.sockets import BACKLOG, address_of

_ACCEPT = 8
"""How many connections are taken at once: the other processes on this socket want their share."""


class Listener:
    """A bound address and the connections it took; `address`: what was bound, with the port that the system chose.

    `port`: how requests are served from now on, after `serve`; those under way go on as they began.
    """

    def __init__(self, bound: socket.socket) -> None:
        self.port: Port
        self._server: asyncio.Server | None = None
        self._connections: set[ClientConnection] = set()
        self.socket = bound
        # Asked for while the socket is closed too: what is under way then must not reach it either.
        self.address = address_of(bound)

    @property
    def busy(self) -> int:
        """How many requests are under way."""
        return sum(connection.busy for connection in self._connections)

    async def serve(self, port: Port) -> None:
        """Accept connections from now on; one that does so already goes over to *port*."""
        self.port = port
        if self._server is not None:
            return
        loop = asyncio.get_running_loop()
        start = loop.create_unix_server if self.socket.family is socket.AF_UNIX else loop.create_server
        accept = partial(ClientConnection, lambda: self.port, self._admit, self._connections)
        self._server = await start(accept, sock=self.socket, backlog=_ACCEPT)
        self.socket.listen(BACKLOG)  # asyncio has set it to the number that it takes at once

    def drain(self) -> None:
        """Accept nothing more; connections end with their request, idle ones at once. Twice does no harm."""
        if self._server is not None:
            self._server.close()
        for connection in tuple(self._connections):
            connection.drain()

    def _admit(self) -> Refusal | None:
        if self._has_room():
            return None
        detail = f"{self.port.limits.connections} connections are busy on this port; see limits.connections"
        return Refusal(Reason.TOO_MANY_CONNECTIONS, detail)

    def _has_room(self) -> bool:
        """Tell whether one more connection may be served; the one that has been idle longest makes room for it."""
        if len(self._connections) < self.port.limits.connections:
            return True
        idle = [each for each in self._connections if not each.busy and not each.draining]
        if not idle:
            return False
        min(idle, key=lambda each: each.http.idle_since).drain()
        return True

    async def ended(self) -> None:
        """Wait until every connection has ended."""
        while self._connections:
            await asyncio.gather(*(each.writer.wait_closed() for each in self._connections), return_exceptions=True)

    async def aclose(self) -> None:
        """Close the socket and the connections, whatever they are doing; twice does no harm."""
        self.drain()
        self.socket.close()
        for connection in tuple(self._connections):
            connection.abort()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                await self.ended()
