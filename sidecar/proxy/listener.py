"""Our own listening sockets around mitmproxy's connection handler; its own bind every interface and cannot drain."""

import asyncio
import socket

from mitmproxy.options import Options

from sidecar.errors import Reason, Refusal, where
from sidecar.events import Trouble
from sidecar.exchange.answers import FAULT, own_answer
from sidecar.proxy.connection import ClientConnection
from sidecar.proxy.port import Port
from sidecar.proxy.sockets import BACKLOG, address_of

_LAYER_OPTIONS = (
    ("connection_strategy", str, "lazy"),
    ("validate_inbound_headers", bool, True),
    ("store_streamed_bodies", bool, False),
    ("stream_large_bodies", str | None, None),
    ("body_size_limit", str | None, None),
    ("keep_host_header", bool, False),
    ("normalize_outbound_headers", bool, True),
    ("proxy_debug", bool, False),
    ("connect_addr", str | None, None),
)
_ACCEPT = 8
"""How many connections are taken at once: the other processes on this socket want their share."""


def proxy_options(idle: float) -> Options:
    """Return the options that mitmproxy's layers read, with HTTP/2, eager dialling and body copies off.

    *idle*: seconds after which a connection without a request is closed.
    """
    options = Options()
    # mitmproxy's addon Proxyserver defines these; importing it costs 20 MB and half a second for what we never use.
    for name, kind, value in _LAYER_OPTIONS:
        options.add_option(name, kind, value, "")
    options.update(http2=False, http3=False, rawtcp=False, websocket=False, tcp_timeout=max(1, round(idle)))
    return options


class Listener:
    """A bound address and the connections it took; `address`: what was bound, with the port that the system chose."""

    def __init__(self, bound: socket.socket) -> None:
        self._port: Port | None = None
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], ClientConnection] = {}
        self.socket = bound
        # Asked for while the socket is closed too: what is under way then must not reach it either.
        self.address = address_of(bound)

    @property
    def busy(self) -> int:
        """How many requests are under way."""
        return sum(connection.busy for connection in self._connections.values())

    @property
    def port(self) -> Port:
        """How requests are served from now on; those under way go on as they began."""
        if self._port is None:
            raise RuntimeError("`serve` comes first")
        return self._port

    @port.setter
    def port(self, port: Port) -> None:
        self._port = port

    async def serve(self, port: Port) -> None:
        """Accept connections from now on; one that does so already goes over to *port*."""
        self.port = port
        if self._server is not None:
            return

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if not self._has_room():
                detail = f"{port.limits.connections} connections are busy on this port; see limits.connections"
                writer.write(own_answer(Refusal(Reason.TOO_MANY_CONNECTIONS, detail)).encode())
                writer.close()
                return
            try:
                connection = ClientConnection(reader, writer, lambda: self.port)
            except Exception as error:  # noqa: BLE001  fail closed
                port.emit(Trouble(where="proxy", detail=f"bug: {type(error).__name__} at {where(error)}"))
                writer.write(own_answer(Refusal(Reason.INTERNAL, FAULT)).encode())
                writer.close()
                return
            task = asyncio.current_task()
            if task is not None:
                self._connections[task] = connection
                task.add_done_callback(lambda done: self._connections.pop(done, None))
            await connection.handle_client()

        start = asyncio.start_unix_server if self.socket.family is socket.AF_UNIX else asyncio.start_server
        self._server = await start(accept, sock=self.socket, backlog=_ACCEPT)
        self.socket.listen(BACKLOG)  # asyncio has set it to the number that it takes at once

    def drain(self) -> None:
        """Accept nothing more; connections end with their request, idle ones at once. Twice does no harm."""
        if self._server is not None:
            self._server.close()
        for connection in tuple(self._connections.values()):
            connection.drain()

    def _has_room(self) -> bool:
        """Tell whether one more connection may be served; the one that has been idle longest makes room for it."""
        if len(self._connections) < self.port.limits.connections:
            return True
        idle = [each for each in self._connections.values() if not each.busy and not each.draining]
        if not idle:
            return False
        min(idle, key=lambda each: each.timeout_watchdog.last_activity).drain()
        return True

    async def ended(self) -> None:
        """Wait until every connection has ended."""
        while self._connections:
            await asyncio.wait(tuple(self._connections))

    async def aclose(self) -> None:
        """Close the socket and the connections, whatever they are doing; twice does no harm."""
        self.drain()
        self.socket.close()
        for connection in tuple(self._connections.values()):
            connection.abort()
        if self._connections:
            await asyncio.wait(tuple(self._connections), timeout=1)
