"""The client's HTTP/1 side without mitmproxy's streams: what serves wherever no addon looks at flows.

Our head, h11's chunks, our answers as bytes; docs/decisions/0018 says why there is a second way. It is a
layer of mitmproxy's all the same, so that it stands on a plain connection and inside intercepted TLS alike.
"""

from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

import h11
from h11._receivebuffer import ReceiveBuffer
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http._http1 import make_body_reader

from sidecar.errors import Reason, Refusal
from sidecar.exchange.answers import FAULT, own_answer
from sidecar.exchange.body import RequestBody
from sidecar.policy.message import Request
from sidecar.policy.routing import Origin
from sidecar.proxy.connect import answer_connect, take_over
from sidecar.proxy.head import Connect, Head, take_head
from sidecar.proxy.reply import Reply

if TYPE_CHECKING:
    from sidecar.proxy.connection import ClientConnection

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class _Await(Enum):
    HEAD = auto()
    BODY = auto()
    ANSWER = auto()
    NOTHING = auto()


@dataclass
class Resume(events.Event):
    """An answer is complete, and the next request may have come already."""


class DirectHttp(layer.Layer):
    """One client connection's HTTP/1 side; *origin* is what CONNECT asked for, None outside of it.

    `answering`: an answer has begun, and its request is not over.
    """

    def __init__(self, context: Context, link: "ClientConnection", origin: Origin | None) -> None:
        super().__init__(context)
        self._link = link
        self._origin = origin
        self._buffer = ReceiveBuffer()
        self._awaited = _Await.HEAD
        self._body: RequestBody
        self._left = 0
        self._chunks: Any
        self._ended = False
        self._close = False
        self.answering = False

    @property
    def waiting(self) -> int:
        """How many bytes of the client nobody has taken."""
        return len(self._buffer)

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        try:
            if isinstance(event, events.DataReceived):
                if self._left > len(event.data) and not self._buffer:
                    self._left -= len(event.data)
                    self._body.feed(event.data)
                    return
                self._buffer += event.data
                yield from self._read()
            elif isinstance(event, Resume):
                yield from self._read()
            elif isinstance(event, events.ConnectionClosed):
                # A client that said its end is not interested in more, as mitmproxy has it.
                yield commands.CloseConnection(self.context.client)
        except Exception as error:  # noqa: BLE001  fail closed: nothing of this request goes on
            self._link.failed(error)
            yield from self._refuse(Refusal(Reason.INTERNAL, FAULT))

    def _read(self) -> layer.CommandGenerator[None]:
        """Take what came, as far as it goes: not beyond a request whose answer is still to come."""
        while self._awaited is _Await.HEAD and len(self._buffer) > 0:
            head = yield from self._read_head()
            if head is None:
                return
            if isinstance(head, Connect):
                yield from self._connect(head.request)
            else:
                yield from self._begin(head)
        if self._awaited is _Await.BODY:
            yield from self._read_body()

    def _read_head(self) -> layer.CommandGenerator[Head | Connect | None]:
        try:
            port = self._link.take_port()
            head = take_head(self._buffer, port.upstream, self._origin or port.origin, port.limits.header)
        except Refusal as refusal:
            yield from self._refuse(refusal)
            return None
        self._link.head_pending(head is None and len(self._buffer) > 0)
        return head

    def _connect(self, request: Request) -> layer.CommandGenerator[None]:
        """Leave the connection to another layer, with what the client sent already."""
        try:
            inside = answer_connect(self._link, request)
        except Refusal as refusal:
            yield from self._refuse(refusal, request)
            return
        self._awaited = _Await.NOTHING
        yield from take_over(inside, self._buffer, self.context.client)

    def _begin(self, head: Head) -> layer.CommandGenerator[None]:
        """Start an exchange, with what came of the body already: a small one goes out in one write with its head."""
        self._ended = self._close = False
        self._body = body = self._link.new_body(head, self._proceed)
        self._awaited = _Await.ANSWER
        if head.request.length != 0:
            self._awaited = _Await.BODY
            self._left = head.request.length or 0
            self._chunks = make_body_reader(None)
            yield from self._read_body()
            if self._awaited is _Await.NOTHING:
                return
        self._link.begin(head, body, Reply(self._link, self, head, body))

    def _read_body(self) -> layer.CommandGenerator[None]:
        """Feed what came of the body; trailers are dropped."""
        try:
            complete = self._take_sized() if self._left else self._take_chunks()
        except h11.ProtocolError:
            yield from self._refuse(Refusal(Reason.BAD_REQUEST, "the body's chunks are malformed"))
            return
        if complete:
            self._awaited = _Await.ANSWER
            self._link.request_complete()
            if self._ended:
                self._next()
                yield from self._read()

    def _take_sized(self) -> bool:
        """Feed what is there of a body with a length; tell whether that is all of it."""
        if data := self._buffer.maybe_extract_at_most(self._left):
            self._left -= len(data)
            self._body.feed(bytes(data))
        return self._left == 0

    def _take_chunks(self) -> bool:
        while (event := self._chunks(self._buffer)) is not None:
            if isinstance(event, h11.EndOfMessage):
                return True
            self._body.feed(bytes(event.data))
        return False

    async def answered(self, *, close: bool) -> None:
        """Note that the answer is complete; *close*: no other request is taken.

        A client that is still uploading has a few seconds to end.
        """
        self._ended, self._close = True, close
        if self._awaited is _Await.BODY:
            self._link.hurry()
        elif self._awaited is _Await.ANSWER:
            self._next()
            if self._buffer:
                await self._link.server_event(Resume())

    def _next(self) -> None:
        """Make ready for the next request, or close."""
        self.answering = False
        if self._close:
            self._awaited = _Await.NOTHING
            self._link.finish()
        else:
            self._awaited = _Await.HEAD

    def _refuse(self, refusal: Refusal, request: Request | None = None) -> layer.CommandGenerator[None]:
        self._awaited = _Await.NOTHING
        self._link.client_left()
        self._link.refused(refusal, request)
        if not self.answering:
            yield commands.SendData(self.context.client, own_answer(refusal).encode())
        yield commands.CloseConnection(self.context.client)

    def _proceed(self) -> None:
        """Ask a client that waits for it for the body (RFC 9110 section 10.1.1)."""
        self._link.write(_CONTINUE)
