"""Our own listening sockets around mitmproxy's connection handler; its own bind every interface and cannot drain."""

import asyncio
import contextlib
import socket
import stat
from pathlib import Path

from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.options import Options

from sidecar.errors import ConfigurationError, Reason, Refusal, where
from sidecar.events import Trouble
from sidecar.exchange.answers import FAULT, own_answer
from sidecar.proxy.connection import ClientConnection
from sidecar.proxy.port import Port
from sidecar.settings import HostPort, ListenAddress, SocketPath

_BACKLOG = 1024


def proxy_options(idle: float) -> Options:
    """Return the options that mitmproxy's layers read, with HTTP/2, eager dialling and body copies off.

    *idle*: seconds after which a connection without a request is closed.
    """
    options = Options()
    Proxyserver().load(options)
    options.update(
        connection_strategy="lazy",
        http2=False,
        http3=False,
        rawtcp=False,
        websocket=False,
        validate_inbound_headers=True,
        store_streamed_bodies=False,
        tcp_timeout=max(1, round(idle)),
    )
    return options


class Listener:
    """A bound address and the connections it took; `address`: what was bound, with the port that the system chose."""

    def __init__(self, address: ListenAddress, name: str) -> None:
        """Bind at once, so that addresses are known before anything is served; ConfigurationError when taken."""
        self._port: Port | None = None
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], ClientConnection] = {}
        try:
            self.socket = _bound_path(address.path) if isinstance(address, SocketPath) else _bound(*address)
        except OSError as error:
            raise ConfigurationError(
                f"{name}: cannot listen on {address}: {error.strerror}; expected a free local address"
            ) from None
        name = self.socket.getsockname()
        # Asked for while the socket is closed too: what is under way then must not reach it either.
        self.address: ListenAddress = SocketPath(name) if isinstance(name, str) else HostPort(name[0], name[1])

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

        if self.socket.family is socket.AF_UNIX:
            self._server = await asyncio.start_unix_server(accept, sock=self.socket)
        else:
            self._server = await asyncio.start_server(accept, sock=self.socket)

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


def _bound(host: str, port_number: int) -> socket.socket:
    """Return a listening socket.

    With its protocol named, unlike `socket.create_server`: asyncio sets TCP_NODELAY on connections of such
    sockets only, and without it the body of every answer on a kept connection waits 40 ms for an ACK.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port_number))
        bound.listen(_BACKLOG)
    except OSError:
        bound.close()
        raise
    return bound


def _bound_path(path: str) -> socket.socket:
    """Return a listening unix socket for the owner and the group; what a dead process left at *path* is replaced."""
    place = Path(path)
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(place.stat().st_mode) and not _answers(path):
            place.unlink()
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        bound.bind(path)
        place.chmod(0o660)
        bound.listen(_BACKLOG)
    except OSError:
        bound.close()
        raise
    return bound


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return False
        except BlockingIOError:
            pass  # its queue is full
    return True
