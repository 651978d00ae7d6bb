"""The HTTP/1 server in front of mitmproxy's streams: our head, mitmproxy's framing, our answers to what is wrong.

Only where an addon looks at flows; `direct` serves everything else.

Closes what mitmproxy's own reader leaves open (facts in docs/decisions/0003): unlimited heads, trailers that
hang, `Connection: Close`, raw bytes in the log, HTML that quotes the request.
"""

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

import h11
from mitmproxy import http
from mitmproxy.connection import ConnectionState
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http import Http1Server
from mitmproxy.proxy.layers.http._base import HttpEvent, ReceiveHttp
from mitmproxy.proxy.layers.http._events import (
    RequestHeaders,
    ResponseEndOfMessage,
    ResponseHeaders,
    ResponseProtocolError,
)
from mitmproxy.proxy.layers.http._http1 import TBodyReader, make_body_reader

from sidecar.errors import Reason, Refusal
from sidecar.exchange.answers import FAULT, own_answer
from sidecar.policy.message import Fields, Request
from sidecar.policy.routing import Origin
from sidecar.proxy.connect import answer_connect, take_over
from sidecar.proxy.head import Connect, Head, take_head

if TYPE_CHECKING:
    from h11._receivebuffer import ReceiveBuffer

    from sidecar.proxy.connection import ClientConnection


@dataclass
class ToClient(HttpEvent):
    """What the exchange tells the client's side past mitmproxy's stream."""


@dataclass
class Continue(ToClient):
    """The exchange wants the body of a client that waits for 100 Continue."""


@dataclass
class FinishEarly(ToClient):
    """The answer is complete though the request is not: end its body for the client now."""


class BodyReader:
    """mitmproxy's body reader, without trailers (they would hang it) and with a note of failure."""

    def __init__(self, reader: TBodyReader) -> None:
        self._reader = reader
        self.failed = False

    def __call__(self, buffer: "ReceiveBuffer") -> h11.Data | h11.EndOfMessage | None:
        """Return the next event; raises h11's ProtocolError for broken framing."""
        try:
            event = self._reader(buffer)
        except h11.ProtocolError:
            self.failed = True
            raise
        return h11.EndOfMessage() if isinstance(event, h11.EndOfMessage) else event

    def read_eof(self) -> h11.EndOfMessage:
        """Handle the end of the stream; raises h11's ProtocolError when the body is not complete."""
        event: h11.EndOfMessage = self._reader.read_eof()
        return event


class ClientHttp1(Http1Server):
    """One client connection's HTTP/1 side; *origin* is what CONNECT asked for, None outside of it."""

    def __init__(self, context: Context, link: "ClientConnection", origin: Origin | None) -> None:
        super().__init__(context)
        self._link = link
        self._origin = origin
        self.head: Head | None = None
        self._ended_early = False
        self.head_out = asyncio.Event()

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        try:
            if isinstance(event, Continue):
                yield commands.SendData(self.conn, b"HTTP/1.1 100 Continue\r\n\r\n")
            elif isinstance(event, FinishEarly):
                yield from self._finish_early()
            else:
                yield from super()._handle_event(event)
        except Exception as error:  # noqa: BLE001  fail closed: nothing of this request goes on
            self._link.failed(error)
            yield from self._refuse(Refusal(Reason.INTERNAL, FAULT))

    def read_headers(self, event: events.ConnectionEvent) -> layer.CommandGenerator[None]:
        """Read a head; answer ourselves what cannot be served."""
        if isinstance(event, events.ConnectionClosed):
            yield commands.CloseConnection(self.conn)
            return
        try:
            port = self._link.take_port()
            head = take_head(self.buf, port.upstream, self._origin or port.origin, port.limits.header)
            self._link.head_pending(head is None and len(self.buf) > 0)
            if head is None:
                return
        except Refusal as refusal:
            yield from self._refuse(refusal)
            return
        if isinstance(head, Connect):
            yield from self._connect(head.request)
            return
        self.head = head
        yield from self._begin(self._link.port.show(self.head.request))
        yield from self.state(event)

    def _connect(self, request: Request) -> layer.CommandGenerator[None]:
        """Leave the connection to another layer, with what the client sent already."""
        try:
            inside = answer_connect(self._link, request)
        except Refusal as refusal:
            yield from self._refuse(refusal, request)
            return
        self.state = self.done
        yield from take_over(inside, self.buf, self.conn)

    def _begin(self, request: Request) -> layer.CommandGenerator[None]:
        """Let mitmproxy see *request*; the exchange takes its own from the head."""
        self._ended_early = False
        self.head_out.clear()
        self.response = None
        self.request = http.Request(
            host=request.host,
            port=request.port,
            method=request.method,
            scheme=request.scheme.encode(),
            authority=b"",
            path=request.target,
            http_version=b"HTTP/1.0" if request.http10 else b"HTTP/1.1",
            headers=http.Headers(_without_expect(request.fields)),
            content=None,
            trailers=None,
            timestamp_start=self._link.port.clock.now(),
            timestamp_end=None,
        )
        self.request.stream = True
        self.body_reader = BodyReader(make_body_reader(request.length))  # type: ignore[assignment]  # all it needs
        self.state = self.read_body
        yield ReceiveHttp(RequestHeaders(self.stream_id, self.request, end_stream=request.length == 0))

    def read_body(self, event: events.Event) -> layer.CommandGenerator[None]:
        """Read the body; broken framing is told to the client before the connection closes."""
        for command in super().read_body(event):
            if getattr(self.body_reader, "failed", False) and isinstance(command, commands.CloseConnection):
                yield from self._refuse(Refusal(Reason.BAD_REQUEST, "the body's chunks are malformed"))
            else:
                yield command

    def send(self, event: HttpEvent) -> layer.CommandGenerator[None]:
        """Write what mitmproxy wants to tell the client; its own error pages are replaced by ours."""
        if isinstance(event, ResponseProtocolError):
            if self.response is None and self.conn.state & ConnectionState.CAN_WRITE:
                status = event.code.http_status_code()
                reason = Reason.UPSTREAM_UNREACHABLE if status and status >= 500 else Reason.BAD_REQUEST  # noqa: PLR2004
                refusal = Refusal(reason, "the message is malformed; refused so that it cannot smuggle another")
                yield commands.SendData(self.conn, own_answer(refusal).encode())
            self.head_out.set()
            yield commands.CloseConnection(self.conn)
        elif isinstance(event, ResponseEndOfMessage) and self._ended_early:
            yield from self.mark_done(response=True)
        else:
            yield from super().send(event)
            if isinstance(event, ResponseHeaders):
                self.head_out.set()

    def _finish_early(self) -> layer.CommandGenerator[None]:
        """End a chunked body; mitmproxy holds its own end back until the request is complete."""
        if self.response is not None and not self._ended_early and not self.request_done:
            self._ended_early = True
            if "chunked" in self.response.headers.get("transfer-encoding", ""):
                yield commands.SendData(self.conn, b"0\r\n\r\n")

    def _refuse(self, refusal: Refusal, request: Request | None = None) -> layer.CommandGenerator[None]:
        self._link.refused(refusal, request)
        if self.response is None:
            yield commands.SendData(self.conn, own_answer(refusal).encode())
        yield commands.CloseConnection(self.conn)
        self.state = self.done


def _without_expect(fields: Fields) -> Fields:
    """Keep mitmproxy from answering 100 Continue before we know that the body is wanted."""
    return tuple(pair for pair in fields if pair[0].lower() != b"expect")
