"""The exchange's way back to one client, for one request: how an answer is framed for it, and sent."""

from collections.abc import Callable

from sidecar.errors import REASONS, Refusal
from sidecar.exchange.tally import Tally
from sidecar.policy.message import Fields, Request
from sidecar.proxy.head import Head
from sidecar.proxy.port import Port
from sidecar.proxy.wire import Wire

_EMPTY_STATUSES = frozenset({204, 304})
_CHUNKED = b"Transfer-Encoding: chunked\r\n"
_CLOSE = b"Connection: close\r\n"
_LAST_CHUNK = b"0\r\n\r\n"
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Reply:
    """Writes an answer to its client, as bytes, and waits while the client takes no more.

    *answered* hears of its end, and whether the connection ends with it. `begun`: the client has its head,
    `complete`: all of it.
    """

    patience = 3600.0
    begun = complete = _close = _chunked = _bodiless = _until_close = False

    def __init__(self, wire: Wire, head: Head, answered: Callable[[bool], None]) -> None:
        self._wire = wire
        self._head = head
        self._answered = answered
        self._waits = head.expects_continue and head.request.length != 0

    def proceed(self) -> None:
        """Ask a client that waits for it for the body (RFC 9110 section 10.1.1)."""
        if self._waits:
            self._waits = False
            self._wire.write(_CONTINUE)

    async def start(
        self, status: int, reason: bytes, fields: Fields, *, chunked: bool, data: bytes = b"", end: bool = False
    ) -> None:
        """Send the head with what is there of the body, in one write; an HTTP/1.0 client gets no chunks.

        Some answers have no body whatever their fields say (RFC 9112 section 6.3).
        """
        request = self._head.request
        # Of a client that was not asked for its body nobody knows whether it will send it.
        self._close = self._head.close or self._wire.draining or self._waits
        self._bodiless = status in _EMPTY_STATUSES or request.method == b"HEAD"
        if chunked and not self._bodiless:
            self._chunked, self._until_close = not request.http10, request.http10
        lines = [b"HTTP/1.1 %d %b\r\n" % (status, reason), *[b"%b: %b\r\n" % field for field in fields]]
        if self._chunked:
            lines.append(_CHUNKED)
        if self._close:
            lines.append(_CLOSE)
        lines += (b"\r\n", self._framed(data, end=end))
        self.begun = True
        self._wire.write(b"".join(lines))
        await self._wire.room(self.patience, empty=end)
        if end:
            self._end()

    async def send(self, data: bytes) -> None:
        """Send a part of the body and wait until there is room for more."""
        self._wire.write(self._framed(data))
        await self._wire.room(self.patience)

    async def end(self) -> None:
        """End the answer, and wait until it is out."""
        self._wire.write(self._framed(b"", end=True))
        await self._wire.room(self.patience, empty=True)
        self._end()

    async def abort(self) -> None:
        """Cut the answer off, so that what the client has of it cannot look whole."""
        self._wire.abort(cut=self._until_close)

    def _end(self) -> None:
        self.complete = True
        self._answered(self._close)

    def _framed(self, data: bytes, *, end: bool = False) -> bytes:
        """Return *data* as it goes out, as one chunk where there are chunks (RFC 9112 section 7.1)."""
        if self._bodiless:
            return b""
        if self._chunked:
            return (b"%x\r\n%b\r\n" % (len(data), data) if data else b"") + (_LAST_CHUNK if end else b"")
        return data


def report(port: Port, refusal: Refusal, request: Request | None) -> None:
    """Tell of a request that was answered before an exchange began."""
    now, status = port.clock.monotonic(), refusal.status or REASONS[refusal.reason].status
    tally = Tally(now, upstream=port.upstream or "", status=status, outcome=refusal.reason)
    port.emit(tally.done(request, now))
