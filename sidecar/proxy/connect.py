"""What follows CONNECT: TLS that we end, or bytes that we only carry (RFC 9110 section 9.3.6)."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers import ClientTLSLayer
from mitmproxy.tls import TlsData
from OpenSSL import SSL

from sidecar.errors import Reason, Refusal
from sidecar.policy.message import Request
from sidecar.policy.passthrough import intercepted
from sidecar.policy.routing import Origin, normal_host
from sidecar.proxy.head import MAX_HEAD
from sidecar.proxy.port import Port

ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"
HANDSHAKE = 0x16
"""The first byte of a TLS connection (RFC 8446 section 5.1); no method of HTTP has it."""


@dataclass(frozen=True, slots=True)
class Intercept:
    """The client's TLS ends here, and what is inside is for *origin*."""

    origin: Origin


@dataclass(frozen=True, slots=True)
class Carry:
    """A tunnel to the host of *request*, which is passed through."""

    request: Request


def answer_connect(request: Request, port: Port) -> Intercept | Carry:
    """Return what is to be done for CONNECT; raises Refusal. Nothing is dialled yet."""
    try:
        host = normal_host(request.host)
    except ValueError:
        raise Refusal(Reason.NO_ROUTE, "this target has no valid host") from None
    if intercepted(host, request.port, port.exchange.origins):
        return Intercept(Origin("https", host, request.port))
    if port.beside.takes(host):
        return Carry(request)
    raise Refusal(Reason.NO_ROUTE, "no upstream is configured for this host and port")


class _Decrypted(layer.Layer):
    """Hands on what comes out of TLS; what goes back is written past the layers."""

    def __init__(self, context: Context, feed: Callable[[bytes], None], feed_end: Callable[[], None]) -> None:
        super().__init__(context)
        self._feed = feed
        self._feed_end = feed_end

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(event, events.DataReceived):
            self._feed(event.data)
        elif isinstance(event, events.ConnectionClosed):
            self._feed_end()
        yield from ()


class InterceptedTls(ClientTLSLayer):
    """mitmproxy's TLS towards the client that asked for *origin*, bounded before the handshake, closed as TLS asks for.

    *feed* gets what comes out of it, *feed_end* hears of its end.
    """

    def __init__(
        self, context: Context, feed: Callable[[bytes], None], feed_end: Callable[[], None], origin: Origin
    ) -> None:
        child = _Decrypted(context, feed, feed_end)
        super().__init__(context)
        self.child_layer = child
        self.origin = origin

    def present(self, data: TlsData, port: Port) -> None:
        """Give the client a certificate for the host it asked for; raises KeyError without one."""
        data.ssl_conn = SSL.Connection(port.server_context(self.origin.host))
        data.ssl_conn.set_accept_state()

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
