"""The bridge between mitmproxy's layers and the exchange: an upstream connection that is not a socket.

mitmproxy asks its HttpLayer for a connection to the upstream; it gets a virtual one, whose layer starts the
exchange for each request and hands back what the exchange answers. docs/decisions/0002 says why.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mitmproxy.connection import ConnectionState, Server
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http import (
    GetHttpConnection,
    GetHttpConnectionCompleted,
    HttpLayer,
    HTTPMode,
    RequestData,
    RequestEndOfMessage,
    RequestHeaders,
    RequestProtocolError,
    SendHttp,
)
from mitmproxy.proxy.layers.http._base import HttpConnection, HttpEvent, ReceiveHttp

from sidecar.exchange.body import RequestBody
from sidecar.policy.routing import Origin
from sidecar.proxy.head import Head
from sidecar.proxy.http1 import ClientHttp1, ToClient

if TYPE_CHECKING:
    from sidecar.proxy.connection import ClientConnection


@dataclass
class Deliver(events.ConnectionEvent):
    """What the exchange has for the client, in order."""

    items: Sequence[HttpEvent]


@dataclass
class StartExchange(commands.StartHook):
    """A request head is complete; the exchange runs beside the layers, which go on."""

    name = "auth_sidecar_exchange"
    blocking = False
    head: Head
    body: RequestBody
    stream_id: int


class BridgeLayer(HttpConnection):
    """The layer of the virtual connection: events down become calls, answers come back as Deliver."""

    def __init__(self, context: Context, server: Server, link: "ClientConnection") -> None:
        super().__init__(context, server)
        self._link = link

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(event, Deliver):
            for item in event.items:
                yield SendHttp(item, self.context.client) if isinstance(item, ToClient) else ReceiveHttp(item)
        elif isinstance(event, RequestHeaders):
            yield self._link.request_begins(event)
        elif isinstance(event, RequestData):
            self._link.body.feed(event.data)
        elif isinstance(event, RequestEndOfMessage):
            self._link.request_complete()
        elif isinstance(event, RequestProtocolError):
            self._link.client_left()


class BridgedHttpLayer(HttpLayer):
    """mitmproxy's HttpLayer with our HTTP/1 server in front and the bridge behind.

    *origin*: what CONNECT asked for, None outside of it.
    """

    def __init__(self, context: Context, link: "ClientConnection", origin: Origin | None) -> None:
        super().__init__(context, HTTPMode.regular)
        self.client = ClientHttp1(context.fork(), link, origin)
        self.connections[context.client] = self.client
        self.virtual = Server(address=None, state=ConnectionState.OPEN)
        self.connections[self.virtual] = BridgeLayer(context.fork(), self.virtual, link)

    def get_connection(self, event: GetHttpConnection, *, reuse: bool = True) -> layer.CommandGenerator[None]:
        """Answer every request for a connection with the virtual one; mitmproxy never dials."""
        del reuse
        stream = self.command_sources.pop(event)
        yield from self.event_to_child(stream, GetHttpConnectionCompleted(event, (self.virtual, None)))
