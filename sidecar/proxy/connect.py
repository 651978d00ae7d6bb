"""What follows CONNECT: TLS that we end, or bytes that we only carry (RFC 9110 section 9.3.6)."""

import contextlib
from collections.abc import Callable

from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers import ClientTLSLayer
from mitmproxy.tls import TlsData
from OpenSSL import SSL

from sidecar.errors import Reason, Refusal
from sidecar.policy.hosts import normal_host
from sidecar.policy.message import Request
from sidecar.policy.routing import Origin
from sidecar.proxy.head import MAX_HEAD
from sidecar.proxy.port import Port

ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"
HANDSHAKE = 0x16
"""The first byte of a TLS connection (RFC 8446 section 5.1); no method of HTTP has it."""

Inside = Origin | Request
"""What is to be done for CONNECT: intercept what is for this origin, or carry bytes to the host of the request."""


def answer_connect(request: Request, port: Port) -> Inside:
    """Return what is to be done; raises Refusal. Nothing is dialled yet."""
    try:
        host = normal_host(request.host)
    except ValueError:
        raise Refusal(Reason.NO_ROUTE, "this target has no valid host") from None
    if port.exchange.routes.intercepts(host, request.port):
        return Origin("https", host, request.port)
    if port.beside.takes(host):
        return request
    raise Refusal(Reason.NO_ROUTE, "no upstream is configured for this host and port")


class InterceptedTls(ClientTLSLayer):
    """mitmproxy's TLS towards the client that asked for *origin*, bounded before the handshake, closed as TLS asks for.

    *feed* gets what comes out of it, *feed_end* hears of its end; what goes back is written past the layer.
    """

    def __init__(
        self, context: Context, feed: Callable[[bytes], None], feed_end: Callable[[], None], origin: Origin
    ) -> None:
        context.layers.append(layer.NextLayer(context))  # where mitmproxy looks for an upstream's TLS
        super().__init__(context)
        self._feed = feed
        self._feed_end = feed_end
        self.origin = origin

    def present(self, data: TlsData, port: Port) -> None:
        """Give the client a certificate for the host it asked for; raises KeyError without one."""
        data.ssl_conn = SSL.Connection(port.server_context(self.origin.host))
        data.ssl_conn.set_accept_state()

    def event_to_child(self, event: events.Event) -> layer.CommandGenerator[None]:
        """Hand on what came out of TLS."""
        if isinstance(event, events.DataReceived):
            self._feed(event.data)
        elif isinstance(event, events.ConnectionClosed):
            self._feed_end()
        yield from ()

    def receive_handshake_data(self, data: bytes) -> layer.CommandGenerator[tuple[bool, str | None]]:
        """Take a part of the handshake; a ClientHello that does not end is an error."""
        if not self.client_hello_parsed and len(self.recv_buffer) + len(data) > MAX_HEAD:
            return False, f"the ClientHello is over {MAX_HEAD >> 10} KiB"
        return (yield from super().receive_handshake_data(data))

    def encrypted(self, data: bytes) -> bytes:
        """Return what is to be written for the client to read *data*."""
        return _written(self.send_data(data))

    def farewell(self) -> bytes:
        """Return the last that is to be written: close_notify tells an end from a cut (RFC 8446 section 6.1)."""
        with contextlib.suppress(SSL.Error, AttributeError):  # the handshake may never have ended, or begun
            self.tls.shutdown()
            return _written(self.tls_interact())
        return b""


def _written(steps: layer.CommandGenerator[None]) -> bytes:
    return b"".join(command.data for command in steps if isinstance(command, commands.SendData))
