"""The exchange's way back to one client, for one request: how an answer is framed for it, and sent."""

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sidecar.exchange.body import ClientGone, RequestBody
from sidecar.policy.message import Fields
from sidecar.proxy.head import Head
from sidecar.proxy.reset import reset

if TYPE_CHECKING:
    from sidecar.proxy.connection import ClientConnection
    from sidecar.proxy.direct import DirectHttp

_STALL_SECONDS = 60.0
_EMPTY_STATUSES = frozenset({204, 304})
LAST_CHUNK = b"0\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Framing:
    """How the end of an answer is told: by its length, by *chunked*, or by that of the connection (*until_close*).

    *bodiless*: it has no body whatever its fields say (RFC 9112 section 6.3). *close*: the connection ends with it.
    """

    chunked: bool
    until_close: bool
    bodiless: bool
    close: bool

    @property
    def fields(self) -> Fields:
        """The fields that say so to the client."""
        chunked: Fields = ((b"Transfer-Encoding", b"chunked"),) if self.chunked else ()
        return (*chunked, (b"Connection", b"close")) if self.close else chunked


def framing(head: Head, status: int, *, chunked: bool, draining: bool) -> Framing:
    """Return how to frame an answer of *status* to *head*: an HTTP/1.0 client gets no chunks."""
    bodiless = status in _EMPTY_STATUSES or head.request.method == b"HEAD"
    unsized = chunked and not bodiless
    http10 = head.request.http10
    return Framing(unsized and not http10, unsized and http10, bodiless, head.close or draining)


def chunk(data: bytes) -> bytes:
    """Return *data*, which is not empty, as one chunk (RFC 9112 section 7.1)."""
    return b"%x\r\n%b\r\n" % (len(data), data)


_CUT = Framing(chunked=False, until_close=False, bodiless=False, close=True)


class Reply:
    """Writes an answer to its client, as bytes, and waits while the client takes no more."""

    def __init__(self, link: "ClientConnection", http: "DirectHttp", head: Head, body: RequestBody) -> None:
        self._link = link
        self._http = http
        self._head = head
        self._body = body
        self.patience = 3600.0
        self._framing = _CUT

    async def start(
        self, status: int, reason: bytes, fields: Fields, *, chunked: bool, data: bytes = b"", end: bool = False
    ) -> None:
        """Send the head with what is there of the body, in one write."""
        self._framing = frame = framing(self._head, status, chunked=chunked, draining=self._link.draining)
        lines = [b"%b: %b\r\n" % field for field in fields]
        lines += [b"%b: %b\r\n" % field for field in frame.fields]
        self._http.answering = True
        self._link.write(b"HTTP/1.1 %d %b\r\n%b\r\n%b" % (status, reason, b"".join(lines), self._framed(data, end=end)))
        await flushed(self._link)
        if end:
            await self._http.answered(close=frame.close)

    async def send(self, data: bytes) -> None:
        """Send a part of the body and wait until there is room for more."""
        self._link.write(self._framed(data))
        await flushed(self._link)

    async def end(self) -> None:
        """End the answer; a client that is still uploading gets it at once and a few seconds to stop."""
        if last := self._framed(b"", end=True):
            self._link.write(last)
        await self._http.answered(close=self._framing.close)

    async def abort(self) -> None:
        """Cut the answer off; where its end is that of the connection, so that it cannot look like one."""
        cut_off(self._link, self._framing)

    def _framed(self, data: bytes, *, end: bool = False) -> bytes:
        if self._framing.bodiless:
            return b""
        if self._framing.chunked:
            return (chunk(data) if data else b"") + (LAST_CHUNK if end else b"")
        return data


def cut_off(link: "ClientConnection", frame: Framing) -> None:
    """Close the connection so that what the client has of its answer cannot look whole."""
    if frame.until_close:
        reset(link.writer)
    link.abort()


async def flushed(link: "ClientConnection") -> None:
    """Wait until the client takes more; raises ClientGone when it left or takes nothing for a minute."""
    transport = link.writer.transport
    while (waiting := transport.get_write_buffer_size()) > 0:
        try:
            async with asyncio.timeout(_STALL_SECONDS):
                await link.writer.drain()
            return
        except TimeoutError:
            if transport.get_write_buffer_size() >= waiting:
                link.abort()
                raise ClientGone from None
        except OSError:
            raise ClientGone from None
