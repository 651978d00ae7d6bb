"""One client connection: its bytes go to HTTP at once, or into a tunnel, or through mitmproxy's TLS."""

import asyncio
import select
from collections.abc import Callable, Coroutine
from dataclasses import replace
from functools import cached_property
from typing import Any

from mitmproxy.connection import Client, ConnectionState
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.tls import TlsEstablishedClientHook, TlsFailedClientHook, TlsStartClientHook
from mitmproxy.proxy.server_hooks import ClientConnectedHook, ClientDisconnectedHook

from sidecar.errors import Refusal
from sidecar.events import Trouble
from sidecar.exchange.body import ClientGone
from sidecar.policy.routing import Origin
from sidecar.proxy.connect import ESTABLISHED, HANDSHAKE, Inside, InterceptedTls
from sidecar.proxy.http1 import Http1
from sidecar.proxy.port import Port
from sidecar.proxy.tunnel import Tunnel
from sidecar.proxy.wire import reset


class ClientConnection(asyncio.StreamReaderProtocol):
    """The wire of one client: an asyncio protocol whose bytes wait in no stream for a task to read them.

    *current* gives the port as it is when a request comes. *admit* says no, or it is *among* the others while it lasts.
    """

    def __init__(self, current: Callable[[], Port], admit: Callable[[], Refusal | None], among: set[Any]) -> None:
        super().__init__(None)  # type: ignore[arg-type]  # no stream is fine
        self._current = current
        self._admit = admit
        self._among = among
        self._port = current()
        self.draining = self._ended = False
        self.transport: asyncio.Transport
        self.writer: asyncio.StreamWriter
        self.http = Http1(self, current)
        self._asked: Origin | None = None
        self._tls: InterceptedTls | None = None
        self._tunnel: Tunnel | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._resets: select.epoll | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._idle: asyncio.TimerHandle | None = None

    @property
    def busy(self) -> bool:
        """Whether an exchange is under way, or a tunnel in which something moves."""
        return self.http.busy if self._tunnel is None else not self._tunnel.quiet

    @cached_property
    def client(self) -> Client:
        """The client as mitmproxy knows it, which knows no unix sockets: one there is on this machine."""
        peer, own = (self.writer.get_extra_info(name) or ("127.0.0.1", 0) for name in ("peername", "sockname"))
        now = self._port.clock.now()
        return Client(peername=peer, sockname=own, timestamp_start=now, state=ConnectionState.OPEN)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # of a server
        """Begin; where addons are told, not before they know."""
        super().connection_made(transport)
        self.transport = transport
        self.writer = asyncio.StreamWriter(transport, self, None, asyncio.get_running_loop())
        if refusal := self._admit():
            self.http.refuse(refusal)
            return
        self._among.add(self)
        self._look_for_idleness()
        if self._port.dispatch is not None:
            self._beside(self._serve(ClientConnectedHook(self.client)))

    def data_received(self, data: bytes) -> None:
        """Hand on what the client sent, and read nothing more while there is no room for it."""
        taker = self._tunnel or self.http
        if self._asked is not None:
            self._begin(data, self._asked)
            return
        if self._tls is not None:
            self._through_tls(events.DataReceived(self.client, data))
        else:
            taker.feed(data)
        if taker.full:
            self.transport.pause_reading()
            self._beside(self._until_room())

    def eof_received(self) -> bool:
        """Keep the connection open: who has said all may still listen."""
        self._ended = True
        if self._tls is not None:
            self._through_tls(events.ConnectionClosed(self.client))
        else:
            (self._tunnel or self.http).feed_end()
        if self._tunnel is None and not self.writer.is_closing() and hasattr(select, "epoll"):
            # asyncio does not look at what it does not read; the system tells of errors and hang-ups unasked.
            self._resets = select.epoll()
            self._resets.register(self.writer.get_extra_info("socket"), 0)
            asyncio.get_running_loop().add_reader(self._resets, self.abort)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Leave nothing running; a renewal that a request waits for goes on."""
        super().connection_lost(exc)
        self.http.lost()
        self.hurry(None)
        if self._idle is not None:
            self._idle.cancel()
        for task in self._tasks:
            task.cancel()
        if self._resets is not None:
            asyncio.get_running_loop().remove_reader(self._resets)
            self._resets.close()
        self._among.discard(self)
        if self._tls is not None and not self._ended:
            self._through_tls(events.ConnectionClosed(self.client))
        if self._port.dispatch is not None:
            self._beside(self._serve(ClientDisconnectedHook(self.client)))

    def write(self, data: bytes) -> None:
        """Write *data* to the client, through TLS where there is TLS."""
        if data and not self.writer.is_closing():
            self.writer.write(data if self._tls is None else self._tls.encrypted(data))

    async def room(self, patience: float, *, empty: bool = False) -> None:
        """Wait until the client takes more; what the system holds for it is not seen from here."""
        while (waiting := self.transport.get_write_buffer_size()) > 0:
            self.transport.set_write_buffer_limits(0 if empty else None)
            try:
                async with asyncio.timeout(patience):
                    await self.writer.drain()
                return
            except OSError as error:  # a TimeoutError is one
                if not isinstance(error, TimeoutError) or self.transport.get_write_buffer_size() >= waiting:
                    self.abort(cut=True)
                    raise ClientGone from None

    def hurry(self, seconds: float | None, end: Callable[[], None] | None = None) -> None:
        """End the connection in *seconds*, by *end* or at once, unless told anew; None: let it live."""
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        self._timer = None if seconds is None else loop.call_later(seconds, end or self.abort)

    def finish(self, *, linger: float = 0.0) -> None:
        """Close when all that was written is out; the client's end, or *linger*, ends the wait for what it sends."""
        if self._tls is not None and not self.writer.is_closing():
            self.writer.write(self._tls.farewell())
            self._tls = None
        if not linger or self._ended or self.writer.is_closing():
            self.writer.close()
        else:
            self.writer.write_eof()
            self.hurry(linger)

    def abort(self, *, cut: bool = False) -> None:
        """Close the connection at once, whatever is under way."""
        reset(self.writer) if cut else self.transport.abort()

    def drain(self) -> None:
        """Close when what is under way has ended, at once when nothing is; a tunnel goes on."""
        self.draining = True
        if self._tunnel is None and not self.http.busy:
            self.http.close()

    def enter(self, inside: Inside, sent: bytes) -> None:
        """Say yes and look what the client says, or carry it to the host that it asked for."""
        self._port = self._current()
        if isinstance(inside, Origin):
            self._asked = inside
            self.hurry(self._port.limits.header_timeout)
            self.writer.write(ESTABLISHED)
        else:
            self._tunnel = Tunnel(inside, self._port, self.writer)
            self._beside(self._tunnel.run())
        if sent:
            self.data_received(sent)
        if self._ended:
            (self._tunnel or self.http).feed_end()

    def _begin(self, data: bytes, origin: Origin) -> None:
        """Tell by the first byte what the client speaks: TLS, or HTTP as it is."""
        self._asked = None
        secure = data[0] == HANDSHAKE
        self.http = http = Http1(self, self._current, origin if secure else replace(origin, scheme="http"))
        if secure:
            self._tls = InterceptedTls(Context(self.client, self._port.options), http.feed, http.feed_end, origin)
            self._through_tls(events.Start())
        else:
            self.hurry(None)
        self.data_received(data)

    def _through_tls(self, event: events.Event) -> None:
        """Let mitmproxy's layer take *event*, and do what it says; a crash of it ends the connection."""
        hooks = []
        try:
            for command in self._tls.handle_event(event) if self._tls else ():
                if isinstance(command, commands.SendData) and not self.writer.is_closing():
                    self.writer.write(command.data)
                elif isinstance(command, commands.CloseConnection):
                    self.client.state = ConnectionState.CLOSED
                    self.writer.close()
                elif isinstance(command, commands.StartHook):
                    hooks.append(command)
        except Exception as error:  # noqa: BLE001  fail closed
            self.http.fail(error)
            self.abort()
        for hook in hooks:
            self._beside(self._serve(hook))

    async def _serve(self, hook: commands.StartHook) -> None:
        """Do what TLS needs, tell addons, and let the layer go on; what fails here lets nothing through."""
        self.transport.pause_reading()
        try:
            match hook:
                case TlsStartClientHook(data) if self._tls is not None:
                    self._tls.present(data, self._port)
                case TlsEstablishedClientHook():
                    self.hurry(None)
                case TlsFailedClientHook(data) if self._tls is not None:
                    why = f"the TLS handshake with the client failed ({data.conn.error})"
                    where = f"CONNECT {self._tls.origin.authority}"
                    self._port.emit(Trouble(where=where, detail=f"{why}; does it trust the bundle of the local CA?"))
            if self._port.dispatch is not None:
                await self._port.dispatch(hook)
        except Exception as error:  # noqa: BLE001  fail closed: no request will go on
            self.http.fail(error)
        self._through_tls(events.HookCompleted(hook))
        self.transport.resume_reading()

    async def _until_room(self) -> None:
        while (taker := self._tunnel or self.http).full:
            await taker.room()
        self.transport.resume_reading()

    def _look_for_idleness(self) -> None:
        """Close a connection on which nothing has been under way for too long; look again when that may be."""
        loop, limit = asyncio.get_running_loop(), self._port.limits.idle_connection
        wait = limit if self.busy else self.http.idle_since + limit - loop.time()
        if wait > 0:
            self._idle = loop.call_later(wait, self._look_for_idleness)
        else:
            self.drain()

    def _beside(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
