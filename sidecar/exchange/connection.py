"""One connection to an upstream: a request at a time, sent while its answer is waited for, and the limits of both.

aiohttp makes the connections and keeps the idle ones. What comes in on them is read here.
"""

import asyncio
import math

from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection

from sidecar.errors import UpstreamFailure
from sidecar.exchange.addresses import AddressProhibited
from sidecar.exchange.answer import Answer
from sidecar.exchange.body import RequestBody
from sidecar.exchange.patience import Patience
from sidecar.policy.answer import AnswerReader, InvalidAnswer

_HIGH_WATER = 128 << 10
_LAST_CHUNK = b"0\r\n\r\n"


class UpstreamConnection(ResponseHandler):
    """A connection to *peer*, which is either idle or has one request under way.

    Anything that comes while it is idle ends it: it could be taken for the answer to the next request.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, peer: str, patience: Patience) -> None:
        super().__init__(loop)
        self.born = loop.time()
        self.used = False
        self._peer = peer
        self._patience = patience
        self._clock: asyncio.TimerHandle | None = None
        self._due = math.inf
        self._span = math.inf
        self._left = 0
        self._held = False
        self._transports: tuple[asyncio.Transport, ...] = ()
        # Of the request that is under way:
        self._lease: Connection | None = None
        self._reused = False
        self._asked: asyncio.Future[Answer] | None = None
        self._reader: AnswerReader | None = None
        self._answer: Answer | None = None
        self._heard = False
        self._early = False
        self._written = False
        self._upload: asyncio.Task[None] | None = None

    async def ask(self, lease: Connection, method: bytes, head: bytes, body: RequestBody) -> Answer:
        """Send a request, and return its answer as soon as the head of that is here, be it before all is sent.

        *lease* is given back when the answer has ended. Raises UpstreamFailure, and whatever *body* raises, which ends
        the wait for the answer. Cancelled: the connection is given up.
        """
        transport = self.transport
        if transport is None or transport.is_closing():
            lease.close()
            raise UpstreamFailure(f"the connection to {self._peer} was lost before it was used", sent=False)
        self._lease, self._reused, self.used = lease, self.used, True
        self._reader = AnswerReader(to_head=method == b"HEAD")
        asked: asyncio.Future[Answer] = self._loop.create_future()
        self._asked = asked
        self._heard = self._early = self._written = False
        try:
            whole = body.whole()
            if whole is None:
                transport.write(head)
                self._upload = self._loop.create_task(self._send(transport, body))
            else:
                transport.write(head + _framed(whole, body.length))
                self._written = True
                if self._unsent():
                    self._upload = self._loop.create_task(self._flush(transport))
                else:
                    self.limit(self._patience.first_byte)
            return await asked
        except BaseException:
            if self._asked is asked:
                self.give_up()
            raise

    def data_received(self, data: bytes) -> None:
        """Take what the upstream sent."""
        reader, answer, asked = self._reader, self._answer, self._asked
        if reader is None or asked is None:
            self.abort()
            return
        self._heard = True
        if answer is None and not (self._written and not self._unsent()):
            self._early = True
        try:
            body = reader.feed(data)
        except InvalidAnswer as wrong:
            self._fail(self._failure(str(wrong), invalid=True))
            return
        if answer is None:
            if reader.head is None:
                self._early = self._early and not reader.between
                return
            answer = self._answer = Answer(reader.head, self, self._patience.idle)
            self._due = math.inf
            if not asked.done():
                asked.set_result(answer)
        if reader.ended:
            self._let_go(keep=reader.persistent and not self._early)
        answer.take(body, ended=reader.ended)
        if reader.fault:
            self._fail(self._failure(reader.fault))
        elif answer.waiting > _HIGH_WATER and self.transport is not None and self._lease is not None and not self._held:
            self._held = True
            self.transport.pause_reading()

    def eof_received(self) -> None:
        """Take the end of what the upstream sends for that of the connection."""
        self._end(None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Note where bytes can wait to be sent: under TLS also in the transport below."""
        super().connection_made(transport)
        below = getattr(getattr(transport, "_ssl_protocol", None), "_transport", None)
        self._transports = tuple(each for each in (self.transport, below) if each is not None)

    def connection_lost(self, exc: BaseException | None) -> None:
        """End what is under way."""
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None
        self._end(exc)
        super().connection_lost(exc)

    def limit(self, seconds: float, left: int = 0) -> None:
        """Give the upstream *seconds* to go on, infinity: as long as it likes.

        *left*: so many bytes are to be sent; when there are fewer at the end of that time, it begins anew.
        """
        self._due, self._span, self._left = self._loop.time() + seconds, seconds, left
        if seconds < math.inf:
            self._set_clock()

    def resume(self) -> None:
        """Read on, when reading was held back."""
        if self._held:
            self._held = False
            if self.transport is not None:
                self.transport.resume_reading()

    def stop_upload(self) -> None:
        """Send no more of the request."""
        if self._upload is not None:
            self._upload.cancel()
            self._upload = None

    def give_up(self) -> None:
        """End the connection; when nothing is under way nothing happens."""
        self._let_go(keep=False)

    async def _send(self, transport: asyncio.Transport, body: RequestBody) -> None:
        """Copy *body*; an upstream that no longer takes it is no error here, its answer may be on the way.

        While the client is waited for, no time of the upstream's runs.
        """
        try:
            async for data in body.chunks():
                transport.write(_chunk(data) if body.length is None else data)
                if self.writing_paused and not await self._drained():
                    return
        except Exception as error:  # noqa: BLE001  whatever it is, the request will not be whole
            if self._answer is None:
                self._fail(error)
            return
        if body.length is None:
            transport.write(_LAST_CHUNK)
        self._written = True
        await self._flush(transport)

    async def _flush(self, transport: asyncio.Transport) -> None:
        """Wait until all that was written has left; only then is the answer due."""
        transport.set_write_buffer_limits(0)
        if (not self.writing_paused or await self._drained()) and self._answer is None:
            self.limit(self._patience.first_byte, self._unsent())

    async def _drained(self) -> bool:
        """Wait until the upstream takes more, and return whether it still does."""
        if self._answer is None:
            self.limit(self._patience.idle, self._unsent())
        try:
            await self._drain_helper()
        except OSError:
            return False
        if self._answer is None:
            self.limit(math.inf)
        return True

    def _unsent(self) -> int:
        return 0 if self.transport is None else sum(each.get_write_buffer_size() for each in self._transports)

    def _end(self, error: BaseException | None) -> None:
        reader, answer = self._reader, self._answer
        if reader is None:
            return
        if answer is not None and error is None and reader.feed_end():
            self.give_up()
            answer.take(b"", ended=True)
        else:
            self._fail(self._failure(describe(error), reused=self._reused and not self._heard))

    def _failure(self, what: str, **facts: bool) -> UpstreamFailure:
        asked = "gave no answer" if self._answer is None else "broke its answer off"
        return UpstreamFailure(f"{self._peer} {asked}: {what}", sent=True, **facts)

    def _fail(self, error: Exception) -> None:
        asked, answer = self._asked, self._answer
        self.give_up()
        if answer is not None:
            answer.fail(error)
        elif asked is not None and not asked.done():
            asked.set_exception(error)

    def _let_go(self, *, keep: bool) -> None:
        lease, upload = self._lease, self._upload
        if lease is None:
            return
        self._lease = self._asked = self._reader = self._answer = None
        self._due = math.inf
        self.stop_upload()
        if keep and self.transport is not None:
            if upload is not None:
                self.transport.set_write_buffer_limits()
            self.resume()
            lease.release()
            return
        if self._unsent():
            self.abort()  # closing waits until the rest has been taken, and this peer may never do it
        lease.close()

    def _set_clock(self) -> None:
        """See to it that somebody looks when the time is over; a clock that is set for earlier will do."""
        if self._clock is not None:
            if self._clock.when() <= self._due:
                return
            self._clock.cancel()
        self._clock = self._loop.call_at(self._due, self._look)

    def _look(self) -> None:
        self._clock = None
        if self._due == math.inf:
            return
        left = self._unsent()
        if self._loop.time() < self._due:
            self._set_clock()
        elif left < self._left:
            self.limit(self._span, left)
        else:
            what = "nothing came in time" if self._written else "it took no more of the request in time"
            self._fail(self._failure(what, timeout=True))


def describe(error: BaseException | None) -> str:
    """Name the end of a connection in words, without any byte the peer sent; None: it was an orderly one."""
    if error is None:
        return "the connection was closed"
    if isinstance(error, AddressProhibited):
        return str(error)
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__


def _framed(data: bytes, length: int | None) -> bytes:
    return data if length is not None else (_chunk(data) if data else b"") + _LAST_CHUNK


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)
