"""HTTP/1 on one client connection: head, body, exchange, answer, and the next request.

Our head, h11's chunks, our answers as bytes, over a wire that is plain or TLS. All that is known of a request that
is under way is here, in one word and what belongs to it; docs/decisions/0019 says why there is no other way.
"""

import asyncio
from collections.abc import Callable
from enum import Enum, auto

import h11
from h11._readers import ChunkedReader
from h11._receivebuffer import ReceiveBuffer

from sidecar.errors import Reason, Refusal, where
from sidecar.events import Trouble
from sidecar.exchange.body import ClientGone, RequestBody
from sidecar.exchange.own_answers import FAULT, own_answer, send_own
from sidecar.policy.message import Request
from sidecar.policy.routing import Origin
from sidecar.proxy.connect import answer_connect
from sidecar.proxy.flows import CopiedBody, show
from sidecar.proxy.gate import Gate
from sidecar.proxy.head import Connect, Head, take_head
from sidecar.proxy.port import Port
from sidecar.proxy.reply import Reply, report
from sidecar.proxy.wire import Wire

_LINGER_SECONDS = 10.0
_PIPELINE = 64 << 10
_LATE = Refusal(Reason.REQUEST_TIMEOUT, "the head of the request did not come in time")


class _State(Enum):
    HEAD = auto()  # the next request is awaited, or the rest of its head
    BODY = auto()  # the exchange is under way, and the rest of the body is awaited
    ANSWER = auto()  # the request is complete, its answer is not
    REST = auto()  # the answer is complete, the body is not
    CLOSED = auto()  # nothing more is taken: the connection ends, or it is somebody else's


class Http1:
    """The requests of one connection, one after the other; *origin* is what CONNECT asked for, None outside of it.

    *current* gives the port as it is configured when a request comes. `idle_since`: when the last exchange ended,
    on the loop's clock.
    """

    def __init__(self, wire: Wire, current: Callable[[], Port], origin: Origin | None = None) -> None:
        self._wire = wire
        self._current = current
        self._port = port = current()
        self._origin = origin
        # Whoever was let in by CONNECT need not say its password again.
        self._inside = Gate() if origin else None
        self._state = _State.HEAD
        self._buffer = ReceiveBuffer()
        self._late = self._ended = self._broken = False
        self._body = RequestBody(0, open_spool=port.open_spool, wanted=lambda: None)
        self._left = 0
        self._chunks: ChunkedReader | None = None
        self._reply: Reply
        self._task: asyncio.Task[None] | None = None
        self.idle_since = asyncio.get_running_loop().time()

    @property
    def busy(self) -> bool:
        """Whether an exchange is under way."""
        return self._task is not None

    @property
    def full(self) -> bool:
        """Whether whoever feeds should wait for `room`: the upstream is slow, or requests pile up."""
        return self._body.full or (self._task is not None and len(self._buffer) > _PIPELINE)

    async def room(self) -> None:
        """Wait until the upstream takes more, or until the exchange under way has ended."""
        await (asyncio.wait([self._task]) if self._task and not self._body.full else self._body.room())

    def feed(self, data: bytes) -> None:
        """Take what the client sent; a fault in it ends the connection, and nothing of its request goes on."""
        if self._state is _State.BODY and self._left > len(data) and not self._buffer:
            self._left -= len(data)
            self._body.feed(data)
        elif self._state is not _State.CLOSED:
            self._buffer += data
            self._read()

    def feed_end(self) -> None:
        """Hear that the client sends no more (RFC 9112 section 9.6): what it has asked for is answered all the same."""
        self._ended = True
        if self._state is _State.BODY:
            self.refuse(Refusal(Reason.BAD_REQUEST, "the request ended before its body was complete"))
        elif self._state in (_State.REST, _State.CLOSED):
            self.close()
        else:
            self._read()

    def lost(self) -> None:
        """End the exchange under way, if any: nobody can be answered. A renewal it waits for goes on."""
        self._state = _State.CLOSED
        self._body.fail()
        # Who has the whole answer may leave; its exchange has only to tidy up.
        if self._task is not None and not self._reply.complete:
            self._task.cancel()

    def close(self) -> None:
        """Take nothing more, and end the connection."""
        midway = self._state in (_State.BODY, _State.REST)
        self._state = _State.CLOSED
        self._wire.finish(linger=_LINGER_SECONDS if midway else 0.0)

    def fail(self, error: BaseException) -> None:
        """Note a fault of ours: no request of this connection goes upstream any more."""
        self._broken = True
        self._port.emit(Trouble(where="proxy", detail=f"bug: {type(error).__name__} at {where(error)}"))

    def refuse(self, refusal: Refusal, request: Request | None = None) -> None:
        """End the connection past the exchange; with an answer, if none has begun."""
        state = self._state
        begun = state in (_State.BODY, _State.ANSWER) and self._reply.begun
        self.lost()
        if state is _State.CLOSED:
            return
        # A client that ended in mid-body has most likely left, which the event of its exchange tells.
        if not self._ended or self._task is None:
            report(self._port, refusal, request)
        if begun:
            self._wire.abort(cut=True)
            return
        if state is not _State.REST:
            self._wire.write(own_answer(refusal).encode())
        self._wire.finish(linger=_LINGER_SECONDS)

    def _read(self) -> None:
        """Take what came, as far as it goes: not beyond a request whose answer is still to come."""
        try:
            while (self._state is _State.HEAD and self._task is None and self._buffer and self._read_head()) or (
                self._state in (_State.BODY, _State.REST) and self._read_body()
            ):
                continue
            if self._state is _State.HEAD and self._task is None and (self._ended or self._wire.draining):
                self.close()
        except Refusal as refusal:
            self.refuse(refusal)
        except Exception as error:  # noqa: BLE001  fail closed
            self.fail(error)
            self.refuse(Refusal(Reason.INTERNAL, FAULT))

    def _read_head(self) -> bool:
        self._port = port = self._current()
        head = take_head(self._buffer, port.upstream, self._origin or port.origin, port.limits.header)
        if (late := head is None and len(self._buffer) > 0) is not self._late:
            self._late = late
            self._wire.hurry(port.limits.header_timeout if late else None, lambda: self.refuse(_LATE))
        if isinstance(head, Connect):
            self._connect(head.request)
        elif head is not None:
            self._begin(head)
        return head is not None

    def _connect(self, request: Request) -> None:
        """Leave the connection to what is inside, with what the client sent already."""
        try:
            self._check(request, ours=False)
            inside = answer_connect(request, self._port)
        except Refusal as refusal:
            self.refuse(refusal, request)
        else:
            self._state = _State.CLOSED
            self._wire.enter(inside, bytes(self._buffer))

    def _begin(self, head: Head) -> None:
        """Start an exchange, with what came of the body already: a small one goes out in one write with its head."""
        port, length = self._port, head.request.length
        self._reply = reply = Reply(self._wire, head, self._answered)
        make = RequestBody if port.dispatch is None else CopiedBody
        self._body = body = make(length, open_spool=port.open_spool, wanted=reply.proceed)
        self._state, self._left = _State.BODY, length or 0
        self._chunks = ChunkedReader() if length is None else None
        self._read_body()
        task = asyncio.get_running_loop().create_task(self._exchange(head, body, reply))
        # An eager one may be over already.
        self._task = None if task.done() else task

    def _read_body(self) -> bool:
        """Feed what came of the body, whose trailers are dropped; tell whether it is complete."""
        if self._left:
            data = self._buffer.maybe_extract_at_most(self._left) or b""
            self._left -= len(data)
            self._body.feed(bytes(data))
        if self._left or not (self._chunks is None or self._take_chunks(self._chunks)):
            return False
        self._body.feed_end()
        if self._state is _State.REST:
            self._wire.hurry(None)
        self._state = _State.HEAD if self._state is _State.REST else _State.ANSWER
        return True

    def _take_chunks(self, read: ChunkedReader) -> bool:
        try:
            while not isinstance(event := read(self._buffer), h11.EndOfMessage | None):
                self._body.feed(bytes(event.data))
        except h11.ProtocolError:
            raise Refusal(Reason.BAD_REQUEST, "the body's chunks are malformed") from None
        # What is left is a part of the line before a chunk, or of the trailers.
        if event is None and len(self._buffer) > self._port.limits.header:
            raise Refusal(Reason.BAD_REQUEST, "the body has a chunk extension or trailers without end")
        return event is not None

    async def _exchange(self, head: Head, body: RequestBody, reply: Reply) -> None:
        self._task = asyncio.current_task()
        request, port = head.request, self._port
        try:
            self._check(request, ours=request.upstream is not None or not port.beside.takes(request.host))
            if isinstance(body, CopiedBody):
                await show(port, self._wire.client, head, body, reply)
            else:
                await port.exchange.run(request, body, reply)
        except Refusal as refusal:
            body.discard()
            report(self._port, refusal, request)
            await send_own(reply, refusal)
        except ClientGone:
            pass
        except Exception as error:  # noqa: BLE001  fail closed
            self._task = None
            self.fail(error)
            self.refuse(Refusal(Reason.INTERNAL, FAULT))
        finally:
            self._task = None
            self.idle_since = asyncio.get_running_loop().time()
            if self._buffer or self._ended or self._wire.draining:
                # Not from here: a row of requests that are refused at once would be a tower of calls.
                asyncio.get_running_loop().call_soon(self._read)

    def _check(self, request: Request, *, ours: bool) -> None:
        if self._broken:
            raise Refusal(Reason.INTERNAL, FAULT)
        (self._inside or self._port.gate).check(request.fields, ours=ours)

    def _answered(self, close: bool) -> None:
        """Note that the answer is complete; a client that is still uploading has a few seconds to end."""
        if close:
            self.close()
        elif self._state is _State.BODY:
            self._state = _State.REST
            self._wire.hurry(_LINGER_SECONDS)
        elif self._state is _State.ANSWER:
            self._state = _State.HEAD
