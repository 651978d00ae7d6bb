"""The bridge between mitmproxy's streams and the exchange, where an addon looks at flows: an upstream connection
that is not a socket.

mitmproxy asks its HttpLayer for a connection to the upstream; it gets a virtual one, whose layer starts the
exchange for each request and hands back what the exchange answers. docs/decisions/0002 says why.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mitmproxy import http
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
    ResponseData,
    ResponseEndOfMessage,
    ResponseHeaders,
    SendHttp,
)
from mitmproxy.proxy.layers.http._base import HttpConnection, HttpEvent, ReceiveHttp

from sidecar.exchange.body import RequestBody
from sidecar.policy.message import Fields
from sidecar.policy.routing import Origin
from sidecar.proxy.head import Head
from sidecar.proxy.http1 import ClientHttp1, Continue, FinishEarly, ToClient
from sidecar.proxy.reply import Framing, cut_off, flushed, framing

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
    client: "BridgedReply"


class BridgeLayer(HttpConnection):
    """The layer of the virtual connection: events down become calls, answers come back as Deliver."""

    def __init__(self, context: Context, server: Server, http: "BridgedHttpLayer", link: "ClientConnection") -> None:
        super().__init__(context, server)
        self._http = http
        self._link = link

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(event, Deliver):
            for item in event.items:
                yield SendHttp(item, self.context.client) if isinstance(item, ToClient) else ReceiveHttp(item)
        elif isinstance(event, RequestHeaders):
            yield self._http.begin(event.stream_id)
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
        self._link = link
        self._continue: asyncio.Task[None] | None = None
        self.client = ClientHttp1(context.fork(), link, origin)
        self.connections[context.client] = self.client
        self.virtual = Server(address=None, state=ConnectionState.OPEN)
        self.connections[self.virtual] = BridgeLayer(context.fork(), self.virtual, self, link)

    @property
    def answering(self) -> bool:
        """Whether an answer has begun, and its request is not over."""
        return self.client.response is not None

    @property
    def waiting(self) -> int:
        """How many bytes of the client nobody has taken."""
        return len(self.client.buf)

    def get_connection(self, event: GetHttpConnection, *, reuse: bool = True) -> layer.CommandGenerator[None]:
        """Answer every request for a connection with the virtual one; mitmproxy never dials."""
        del reuse
        stream = self.command_sources.pop(event)
        yield from self.event_to_child(stream, GetHttpConnectionCompleted(event, (self.virtual, None)))

    def begin(self, stream_id: int) -> StartExchange:
        """Return the hook that starts the exchange for the head that is complete."""
        head = self.client.head
        if head is None:
            raise RuntimeError("a request without a head")

        def proceed() -> None:
            work = self.deliver([Continue(stream_id)])
            self._continue = asyncio.get_running_loop().create_task(work)

        body = self._link.new_body(head, proceed)
        return StartExchange(head, body, BridgedReply(self._link, self, head, body, stream_id))

    async def deliver(self, items: Sequence[HttpEvent]) -> None:
        """Hand a part of the answer to the layers."""
        await self._link.server_event(Deliver(self.virtual, items))


class BridgedReply:
    """Sends an answer to its client through mitmproxy's stream, where a flow takes note of it."""

    def __init__(
        self, link: "ClientConnection", http: BridgedHttpLayer, head: Head, body: RequestBody, stream_id: int
    ) -> None:
        self._link = link
        self._http = http
        self._stream = stream_id
        self._head = head
        self._body = body
        self.patience = 3600.0
        self._framing: Framing

    async def start(
        self, status: int, reason: bytes, fields: Fields, *, chunked: bool, data: bytes = b"", end: bool = False
    ) -> None:
        """Send the head, and what is there of the body."""
        self._framing = frame = framing(self._head, status, chunked=chunked, draining=self._link.draining)
        now = self._link.port.clock.now()
        response = http.Response(
            http_version=b"HTTP/1.1",
            status_code=status,
            reason=reason,
            headers=http.Headers((*fields, *frame.fields)),
            content=None,
            trailers=None,
            timestamp_start=now,
            timestamp_end=None,
        )
        response.stream = True
        empty = frame.bodiless or (end and not data)
        await self._http.deliver([ResponseHeaders(self._stream, response, end_stream=empty)])
        if data and not frame.bodiless:
            await self.send(data)
        if end:
            await self.end()

    async def send(self, data: bytes) -> None:
        """Send a part of the body and wait until there is room for more."""
        await self._http.deliver([ResponseData(self._stream, data)])
        await self._http.client.head_out.wait()
        await flushed(self._link)

    async def end(self) -> None:
        """End the answer; a client that is still uploading gets it at once and a few seconds to stop."""
        await self._http.deliver([ResponseEndOfMessage(self._stream)])
        if not self._body.complete:
            await self._http.deliver([FinishEarly(self._stream)])
            self._link.hurry()

    async def abort(self) -> None:
        """Cut the answer off."""
        cut_off(self._link, self._framing)
