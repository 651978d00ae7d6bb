"""The exchange's way back to one client, for one request."""

import asyncio
from typing import TYPE_CHECKING

from mitmproxy import http
from mitmproxy.proxy.layers.http import ResponseData, ResponseEndOfMessage, ResponseHeaders

from sidecar.exchange.body import ClientGone
from sidecar.policy.message import Fields
from sidecar.proxy.reset import reset

if TYPE_CHECKING:
    from sidecar.proxy.bridge import StartExchange
    from sidecar.proxy.connection import ClientConnection

_STALL_SECONDS = 60.0
_EMPTY_STATUSES = frozenset({204, 304})


class Reply:
    """Frames an answer for its client and hands it to the layers, waiting while the client takes no more."""

    def __init__(self, link: "ClientConnection", hook: "StartExchange") -> None:
        self._link = link
        self._stream = hook.stream_id
        self._head = hook.head
        self._body = hook.body
        self._chunked = False
        self._until_close = False

    async def start(self, status: int, reason: bytes, fields: Fields, *, chunked: bool, empty: bool) -> None:
        """Send the head, framed for this client: an HTTP/1.0 client gets no chunks but the end of the stream."""
        extra = []
        bodiless = status in _EMPTY_STATUSES or self._head.request.method == b"HEAD"
        self._chunked = chunked and not bodiless and not self._head.request.http10
        self._until_close = chunked and not bodiless and self._head.request.http10
        if self._chunked:
            extra.append((b"Transfer-Encoding", b"chunked"))
        if self._head.close or self._link.draining:
            extra.append((b"Connection", b"close"))
        now = self._link.port.clock.now()
        response = http.Response(
            http_version=b"HTTP/1.1",
            status_code=status,
            reason=reason,
            headers=http.Headers((*fields, *extra)),
            content=None,
            trailers=None,
            timestamp_start=now,
            timestamp_end=None,
        )
        response.stream = True
        await self._link.deliver([ResponseHeaders(self._stream, response, end_stream=empty or bodiless)])

    async def send(self, data: bytes) -> None:
        """Send a part of the body and wait until there is room for more."""
        await self._link.deliver([ResponseData(self._stream, data)])
        await self._flushed()

    async def _flushed(self) -> None:
        """Wait until the client takes more; raises ClientGone when it left or takes nothing for a minute."""
        await self._link.head_out.wait()
        transport = self._link.writer.transport
        while (waiting := transport.get_write_buffer_size()) > 0:
            try:
                async with asyncio.timeout(_STALL_SECONDS):
                    await self._link.writer.drain()
                return
            except TimeoutError:
                if transport.get_write_buffer_size() >= waiting:
                    self._link.abort()
                    raise ClientGone from None
            except OSError:
                raise ClientGone from None

    async def end(self) -> None:
        """End the answer; a client that is still uploading gets it at once and a few seconds to stop."""
        await self._link.deliver([ResponseEndOfMessage(self._stream)])
        if not self._body.complete:
            await self._link.finish_early(self._stream)

    async def abort(self) -> None:
        """Cut the answer off; where its end is that of the connection, so that it cannot look like one."""
        if self._until_close:
            reset(self._link.writer)
        self._link.abort()
