"""One connection to an upstream: a request at a time, sent while its answer is waited for, and the limits of both.

aiohttp makes the connections and keeps the idle ones. What comes in on them is read here.
"""

import asyncio

from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection

from sidecar.errors import UpstreamFailure
from sidecar.exchange.addresses import AddressProhibited, acknowledged_within, unacknowledged
from sidecar.exchange.answer import Answer
from sidecar.exchange.body import RequestBody
from sidecar.exchange.patience import Limit, Patience
from sidecar.policy.answer import AnswerReader, InvalidAnswer
from sidecar.policy.chunks import LAST_CHUNK, chunk

_HIGH_WATER = 128 << 10
_ACKNOWLEDGED_WITHIN = 60
_SURELY_TAKEN = 16 << 10
"""Bytes of a request that the kernel of an upstream acknowledges, however busy the upstream itself is."""


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
        self.limit = Limit(loop, self._late, self._unsent)
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
        self._large = False
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
            data = head if whole is None else head + (whole if body.length is not None else chunk(whole) + LAST_CHUNK)
            self._large = whole is None or len(data) > _SURELY_TAKEN
            if self._large:
                acknowledged_within(transport.get_extra_info("socket"), 0)
            transport.write(data)
            if whole is None:
                self._upload = self._loop.create_task(self._send(transport, body))
            else:
                self._written = True
                if self._unsent():
                    self._upload = self._loop.create_task(self._flush(transport))
                else:
                    self.limit.give(self._patience.first_byte)
            return await asked
        except BaseException:
            if self._asked is asked:
                self.let_go()
            raise

    def data_received(self, data: bytes) -> None:
        """Take what the upstream sent."""
        reader, answer, asked = self._reader, self._answer, self._asked
        if reader is None or asked is None:
            self.abort()
            return
        self._heard = True
        self._early = self._early or (answer is None and not self._taken())
        try:
            body = reader.feed(data)
        except InvalidAnswer as wrong:
            what = f"{self._peer} gave an answer that cannot be passed on: {wrong}"
            self._fail(UpstreamFailure(what, sent=True, invalid=True))
            return
        if answer is None:
            if reader.head is None:
                self._early = self._early and not reader.between
                return
            answer = self._answer = Answer(reader.head, self, self._patience.idle)
            self.limit.lift()
            if not asked.done():
                asked.set_result(answer)
        if reader.ended:
            self.let_go(keep=reader.persistent and not self._early)
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
        """Note where bytes can wait to be sent: in TLS also in the transport below."""
        super().connection_made(transport)
        acknowledged_within(transport.get_extra_info("socket"), _ACKNOWLEDGED_WITHIN)
        below = getattr(getattr(transport, "_ssl_protocol", None), "_transport", None)
        self._transports = tuple(each for each in (self.transport, below) if each is not None)

    def connection_lost(self, exc: BaseException | None) -> None:
        """End what is under way."""
        self.limit.cancel()
        self._end(exc)
        super().connection_lost(exc)

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

    async def _send(self, transport: asyncio.Transport, body: RequestBody) -> None:
        """Copy *body*; an upstream that no longer takes it is no error here, its answer may be on the way.

        While the client is waited for, no time of the upstream's runs.
        """
        left = body.length
        try:
            async for data in body.chunks():
                transport.write(chunk(data) if left is None else data)
                if left is not None:
                    left -= len(data)
                    self._written = left == 0  # which the upstream may know before the client's side says so
                if self.writing_paused and not await self._drained():
                    return
        except Exception as error:  # noqa: BLE001  whatever it is, the request will not be whole
            if self._answer is None:
                self._fail(error)
            return
        if body.length is None:
            transport.write(LAST_CHUNK)
        self._written = True
        await self._flush(transport)

    async def _flush(self, transport: asyncio.Transport) -> None:
        """Wait until all that was written has left; only then is the answer due."""
        transport.set_write_buffer_limits(high=1, low=0)
        if (not self.writing_paused or await self._drained()) and self._answer is None:
            self.limit.give(self._patience.first_byte, self._unsent())  # of what waits below TLS

    async def _drained(self) -> bool:
        """Wait until the upstream takes more, and return whether it still does."""
        if self._answer is None:
            self.limit.give(self._patience.idle, self._unsent())
        try:
            await self._drain_helper()
        except OSError:
            return False
        if self._answer is None:
            self.limit.lift()
        return True

    def _taken(self) -> bool:
        """Whether the upstream has got all of the request, as far as can be told from here."""
        if not self._written or not self._large or self.transport is None:
            return self._written
        return not self._unsent() and not unacknowledged(self.transport.get_extra_info("socket"))

    def _unsent(self) -> int:
        return 0 if self.transport is None else sum(each.get_write_buffer_size() for each in self._transports)

    def _end(self, error: BaseException | None) -> None:
        reader, answer = self._reader, self._answer
        if reader is None:
            return
        if answer is not None and error is None and reader.feed_end():
            self.let_go()
            answer.take(b"", ended=True)
        else:
            self._fail(self._failure(describe(error), reused=self._reused and not self._heard))

    def _failure(self, what: str, **facts: bool) -> UpstreamFailure:
        asked = "gave no answer" if self._answer is None else "broke its answer off"
        return UpstreamFailure(f"{self._peer} {asked}: {what}", sent=True, **facts)

    def _fail(self, error: Exception) -> None:
        asked, answer = self._asked, self._answer
        self.let_go()
        if answer is not None:
            answer.fail(error)
        elif asked is not None and not asked.done():
            asked.set_exception(error)

    def let_go(self, *, keep: bool = False) -> None:
        """Give the connection back to the pool (*keep*), or up; when nothing is under way nothing happens."""
        lease, upload = self._lease, self._upload
        if lease is None:
            return
        self.stop_upload()
        self._lease = self._asked = self._reader = self._answer = self._upload = None
        self.limit.lift()
        if keep and self.transport is not None:
            if upload is not None:
                self.transport.set_write_buffer_limits()
            lease.release()
            return
        if self._unsent():
            self.abort()  # closing waits until the rest has been taken, and this peer may never do it
        lease.close()

    def _late(self) -> None:
        sent = self._written and not self._unsent()
        what = "nothing came in time" if sent else "it took no more of the request in time"
        self._fail(self._failure(what, timeout=True))


def describe(error: BaseException | None) -> str:
    """Name the end of a connection in words, without any byte the peer sent; None: it was an orderly one."""
    if error is None:
        return "the connection was closed"
    if isinstance(error, AddressProhibited):
        return str(error)
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
