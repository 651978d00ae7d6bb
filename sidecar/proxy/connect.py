"""What follows CONNECT: TLS that we end, or bytes that we only carry (RFC 9110 section 9.3.6).

These layers take the place of the connection's first one, so that nothing of it remains in the way.
"""

import contextlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mitmproxy.connection import Connection
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers import ClientTLSLayer
from mitmproxy.tls import TlsData
from OpenSSL import SSL

from sidecar.errors import Reason, Refusal
from sidecar.events import Trouble
from sidecar.exchange.answers import OwnAnswer, own_answer
from sidecar.exchange.tally import Tally
from sidecar.policy.hosts import normal_host
from sidecar.policy.message import Request
from sidecar.policy.routing import Origin
from sidecar.proxy.gate import Gate
from sidecar.proxy.head import MAX_HEAD
from sidecar.proxy.tunnel import Tunnel

if TYPE_CHECKING:
    from h11._receivebuffer import ReceiveBuffer

    from sidecar.proxy.connection import ClientConnection

ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"
_HANDSHAKE = 0x16
"""The first byte of a TLS connection (RFC 8446 section 5.1); no method of HTTP has it."""


@dataclass
class StartTunnel(commands.StartHook):
    """A tunnel is wanted; it is dialled and served beside the layers."""

    name = "auth_sidecar_tunnel"
    blocking = False
    tunnel: Tunnel


@dataclass
class TunnelOpen(events.Event):
    """The host of the tunnel has answered."""


@dataclass
class TunnelEnd(events.Event):
    """The tunnel is over; *answer*: why it never began."""

    answer: OwnAnswer | None = None


class Intercepted(layer.Layer):
    """Says yes to CONNECT, then tells by the first byte what the client speaks: TLS, or HTTP as it is."""

    def __init__(self, context: Context, link: "ClientConnection") -> None:
        super().__init__(context)
        self._link = link

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(event, events.Start):
            yield commands.SendData(self.context.client, ESTABLISHED)
        elif isinstance(event, events.DataReceived):
            inside = _inside(self._link, tls=event.data[0] == _HANDSHAKE)
            yield from inside.handle_event(events.Start())
            yield from inside.handle_event(event)
        elif isinstance(event, events.ConnectionClosed):
            yield commands.CloseConnection(self.context.client)


class InterceptedTls(ClientTLSLayer):
    """mitmproxy's TLS towards the client, bounded before the handshake and closed as TLS asks for."""

    def __init__(self, context: Context, child: layer.Layer) -> None:
        super().__init__(context)
        self.child_layer = child

    def receive_handshake_data(self, data: bytes) -> layer.CommandGenerator[tuple[bool, str | None]]:
        """Take a part of the handshake; a ClientHello that does not end is an error."""
        if not self.client_hello_parsed and len(self.recv_buffer) + len(data) > MAX_HEAD:
            return False, f"the ClientHello is over {MAX_HEAD >> 10} KiB"
        return (yield from super().receive_handshake_data(data))

    def encrypted(self, data: bytes) -> bytes:
        """Return what is to be written for the client to read *data*."""
        return _written(self.send_data(data))

    def farewell(self) -> bytes:
        """Return the last that is to be written."""
        return _written(self.send_close(commands.CloseConnection(self.conn)))

    def send_close(self, command: commands.CloseConnection) -> layer.CommandGenerator[None]:
        """Say close_notify first, which tells the end of an answer from a cut (RFC 8446 section 6.1)."""
        if self.tls is not None:
            with contextlib.suppress(SSL.Error):  # the handshake may never have ended
                self.tls.shutdown()
            yield from self.tls_interact()
        yield from super().send_close(command)


def _written(steps: layer.CommandGenerator[None]) -> bytes:
    return b"".join(command.data for command in steps if isinstance(command, commands.SendData))


class Tunnelled(layer.Layer):
    """Hands every byte of the client to the tunnel; what comes back is written past the layers."""

    def __init__(self, context: Context, tunnel: Tunnel) -> None:
        super().__init__(context)
        self._tunnel = tunnel

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(event, events.Start):
            yield StartTunnel(self._tunnel)
        elif isinstance(event, events.DataReceived):
            self._tunnel.feed(event.data)
        elif isinstance(event, events.ConnectionClosed):
            self._tunnel.feed_end()
            if self._tunnel.abandoned:
                yield commands.CloseConnection(self.context.client)
        elif isinstance(event, TunnelOpen):
            yield commands.SendData(self.context.client, ESTABLISHED)
        elif isinstance(event, TunnelEnd):
            if event.answer is not None:
                yield commands.SendData(self.context.client, event.answer.encode())
            yield commands.CloseConnection(self.context.client)


def answer_connect(link: "ClientConnection", request: Request) -> layer.Layer:
    """Return the layer that takes the connection over; raises Refusal. Nothing was dialled yet."""
    link.gate.check(request.fields, ours=False)
    try:
        host = normal_host(request.host)
    except ValueError:
        raise Refusal(Reason.NO_ROUTE, "this target has no valid host") from None
    link.asked = Origin("https", host, request.port)
    context = link.layer.context.fork()
    if link.port.exchange.routes.intercepts(host, request.port):
        # Whoever was let in by CONNECT need not say its password again.
        link.gate = Gate()
        link.set_timer(link.port.limits.header_timeout)
        link.layer = Intercepted(context, link)
    elif link.port.beside.takes(host):
        link.tunnel = Tunnel(request, link.port.beside.dial, link.writer)
        link.layer = Tunnelled(context, link.tunnel)
    else:
        raise Refusal(Reason.NO_ROUTE, "no upstream is configured for this host and port")
    return link.layer


def take_over(inside: layer.Layer, buffer: "ReceiveBuffer", client: Connection) -> layer.CommandGenerator[None]:
    """Start *inside* in the place of the first layer, with what *client* sent already, which is in *buffer*."""
    sent = buffer.maybe_extract_at_most(len(buffer))
    yield from inside.handle_event(events.Start())
    if sent:
        yield from inside.handle_event(events.DataReceived(client, bytes(sent)))


def _inside(link: "ClientConnection", *, tls: bool) -> layer.Layer:
    context = link.layer.context.fork()
    origin = _asked(link) if tls else replace(_asked(link), scheme="http")
    link.http = link.http_layer(context.fork(), origin)
    link.tls = InterceptedTls(context, link.http) if tls else None
    link.layer = link.tls or link.http
    return link.layer


def start_tls(link: "ClientConnection", data: TlsData) -> None:
    """Give the client a certificate for the host it asked for; without one mitmproxy closes the connection."""
    try:
        data.ssl_conn = SSL.Connection(link.port.server_context(_asked(link).host))
        data.ssl_conn.set_accept_state()
    except Exception as error:  # noqa: BLE001  fail closed
        link.failed(error)


def tls_failed(link: "ClientConnection", data: TlsData) -> None:
    """Say that a client broke the handshake off, and what to do if it does not trust us."""
    detail = f"the TLS handshake with the client failed ({data.conn.error}); does it trust the bundle of the local CA?"
    link.port.emit(Trouble(where=f"CONNECT {_asked(link).authority}", detail=detail))


async def run_tunnel(link: "ClientConnection", tunnel: Tunnel) -> None:
    """Dial, answer the client, and carry bytes until the end."""
    now = link.port.clock.monotonic
    tally = Tally(now(), outcome="client_gone", attempts=1)
    answer = None
    with link.under_way():
        try:
            await tunnel.open()
            tally.status = 200
            await link.server_event(TunnelOpen())
            await tunnel.run()
            tally.outcome = "passed"
        except Refusal as refusal:
            answer = own_answer(refusal)
            tally.status, tally.outcome = answer.status, refusal.reason
        finally:
            link.port.emit(tally.done(tunnel.request, now()))
        await link.server_event(TunnelEnd(answer))


def _asked(link: "ClientConnection") -> Origin:
    if link.asked is None:
        raise RuntimeError("nobody asked to connect")
    return link.asked
