"""One request on one connection: the upload beside the wait for the answer, and the answer as it comes.

aiohttp's connection and response parser are used below its session; the bytes of the request are ours. What is
relied on below its public surface has a contract test each, and a pin.
"""

import asyncio

import aiohttp
from aiohttp.connector import Connection
from aiohttp.http_exceptions import HttpProcessingError

from sidecar.errors import UpstreamFailure
from sidecar.exchange.body import RequestBody
from sidecar.exchange.patience import Patience
from sidecar.policy.message import Fields

_READ_BUFFER = 64 << 10
_MAX_HEAD = 64 << 10
_MAX_FIELDS = 1000
_SETTLE_LIMIT = 64 << 10
_SETTLE_SECONDS = 1.0
_SWITCHING_PROTOCOLS = 101


class Answer:
    """The head of an upstream's answer, and its body as it comes.

    Must be read to its end, settled or closed. *length* is the Content-Length, None when there is none.
    """

    def __init__(self, connection: Connection, attempt: "Attempt", fields: Fields) -> None:
        message = attempt.message
        self.status: int = message.code
        self.reason = (message.reason or "").encode("utf-8", "surrogateescape")
        self.fields = fields
        self.chunked: bool = message.chunked
        self._connection = connection
        self._attempt = attempt
        self._payload = attempt.payload
        self._prefix = b""
        self._broken: UpstreamFailure | None = None

    @property
    def empty(self) -> bool:
        """Whether no more of the body will come."""
        return not self._prefix and self._broken is None and self._payload.at_eof()

    def ready(self) -> bytes:
        """Return what is here of the body already, empty when nothing is; as `read` does it, without waiting."""
        if not self._prefix and self._broken is None and self._payload.exception() is None:
            data = self._payload.read_nowait(-1)
            if self._payload.at_eof():
                self._attempt.finish()
            return data
        data, self._prefix = self._prefix, b""
        return data

    async def read(self) -> bytes:
        """Return the next bytes of the body, empty at its end.

        The connection goes back to the pool before the last bytes are returned: a client that knows the length
        leaves as soon as it has them. Raises UpstreamFailure when the body breaks off.
        """
        if self._prefix:
            data, self._prefix = self._prefix, b""
            return data
        if self._broken:
            raise self._broken
        try:
            data = await self._payload.readany()
        except (aiohttp.ClientError, OSError, HttpProcessingError) as error:
            self.close()
            timeout = isinstance(error, TimeoutError)
            self._broken = UpstreamFailure(f"the answer broke off: {describe(error)}", sent=True, timeout=timeout)
            raise self._broken from error
        if self._payload.at_eof():
            self._attempt.finish()
        return data

    async def settle(self) -> None:
        """Stop the upload and read a small body into memory, so that the connection is free while we wait.

        A large or slow body stays where it is, with its connection; `read` gives all of it in any case. Twice
        does no harm.
        """
        self._attempt.stop_upload()
        parts, self._prefix = [self._prefix], b""
        size = len(parts[0])
        try:
            async with asyncio.timeout(_SETTLE_SECONDS):
                while not self._payload.at_eof() and size < _SETTLE_LIMIT:
                    parts.append(await self.read())
                    size += len(parts[-1])
        except (TimeoutError, UpstreamFailure):
            pass  # what is missing, or the failure, comes out of `read`
        self._prefix = b"".join(parts)

    def close(self) -> None:
        """Give the connection up; after the end of the body nothing happens."""
        self._attempt.abandon()


class Attempt:
    """One request on one connection: the upload beside the wait for the answer."""

    def __init__(self, connection: Connection, *, reused: bool, peer: str, patience: Patience) -> None:
        protocol, transport = connection.protocol, connection.transport
        if protocol is None or transport is None:
            raise UpstreamFailure("the connection was lost before it was used", sent=False)
        self._peer = peer
        self._patience = patience
        self._connection: Connection | None = connection
        self._held = connection
        self._protocol = protocol
        self._transport = transport
        self._reused = reused
        self._upload: asyncio.Task[None] | None = None
        self._uploaded = False
        self._broken: BaseException | None = None
        self._limit: asyncio.Timeout | None = None
        self.message: aiohttp.http_parser.RawResponseMessage
        self.payload: aiohttp.StreamReader

    async def run(self, method: bytes, head: bytes, body: RequestBody) -> Answer:
        """Send the request and return the answer's head."""
        loop = asyncio.get_running_loop()
        self._protocol.set_response_params(
            skip_payload=method == b"HEAD",
            read_until_eof=True,
            auto_decompress=False,
            read_bufsize=_READ_BUFFER,
            max_line_size=_MAX_HEAD,
            max_field_size=_MAX_HEAD,
            max_headers=_MAX_FIELDS,
        )
        whole = body.whole()
        started = loop.time()
        try:
            async with asyncio.timeout(None) as limit:
                self._limit = limit
                if whole is not None:
                    self._transport.write(head + _framed(whole, body.length))
                    self._uploaded = True
                    limit.reschedule(started + self._patience.first_byte)
                else:
                    self._transport.write(head)
                    self._upload = loop.create_task(self._send_body(body))
                await self._read_head()
                self._limit = None
        except TimeoutError:
            what = "sent no answer in time" if self._uploaded else "took no more of the request"
            raise UpstreamFailure(f"{self._peer} {what}", sent=True, timeout=True) from None
        except (aiohttp.ClientError, OSError, HttpProcessingError) as error:
            if self._broken:
                raise self._broken from None
            message = f"{self._peer} gave no answer: {describe(error)}"
            gone = isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError | ConnectionError)
            raise UpstreamFailure(message, sent=True, reused=self._reused and gone) from error
        fields = tuple(self.message.raw_headers)
        if self.message.code == _SWITCHING_PROTOCOLS:
            raise UpstreamFailure(f"{self._peer} switched protocols unasked", sent=True)
        if sum(len(name) + len(value) + 4 for name, value in fields) > _MAX_HEAD:
            raise UpstreamFailure(f"{self._peer} sent a head over 64 KiB", sent=True)
        self._protocol.read_timeout = self._patience.idle
        if not self.payload.at_eof():
            self._protocol.start_timeout()
        answer = Answer(self._held, self, fields)
        if self.payload.at_eof():
            self.finish()
        return answer

    async def _read_head(self) -> None:
        while True:
            self.message, self.payload = await self._protocol.read()
            if self.message.code == _SWITCHING_PROTOCOLS or not 100 <= self.message.code <= 199:  # noqa: PLR2004
                return

    async def _send_body(self, body: RequestBody) -> None:
        """Copy the body; a peer that no longer reads is not an error here, its answer may be on the way."""
        loop = asyncio.get_running_loop()
        try:
            async for data in body.chunks():
                self._transport.write(_chunk(data) if body.length is None else data)
                self._progress(loop.time() + self._patience.idle)
                await self._protocol._drain_helper()  # noqa: SLF001  aiohttp's own writer does the same
                self._progress(None)
            if body.length is None:
                self._transport.write(b"0\r\n\r\n")
        except (aiohttp.ClientError, OSError):
            return
        except Exception as error:  # noqa: BLE001  the client left or the spool failed: end the wait for the answer
            self._broken = error
            self._protocol.set_exception(aiohttp.ClientConnectionError("the request ended early"))
            return
        self._uploaded = True
        self._progress(loop.time() + self._patience.first_byte)

    def _progress(self, when: float | None) -> None:
        """Move the time-out on, unless the head of the answer is there or it has passed."""
        if self._limit is not None and not self._limit.expired():
            self._limit.reschedule(when)

    def stop_upload(self) -> None:
        """Send no more of the body."""
        if self._upload:
            self._upload.cancel()

    def finish(self) -> None:
        """The answer is complete: pool the connection if the request went out whole. Twice does no harm."""
        if self._connection is None:
            return
        if self._uploaded:
            self._connection.release()
        else:
            self.stop_upload()
            self._connection.close()
        self._connection = None

    def abandon(self) -> None:
        """Close the connection, whatever its state. Twice does no harm."""
        self.stop_upload()
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _framed(data: bytes, length: int | None) -> bytes:
    return data if length is not None else (_chunk(data) if data else b"") + b"0\r\n\r\n"


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def describe(error: BaseException) -> str:
    """Name a failure in words, without any byte the peer sent."""
    if isinstance(error, aiohttp.ClientConnectorError):
        inner = error.os_error
        return inner.strerror or str(inner) or type(inner).__name__
    if isinstance(error, TimeoutError):
        return "nothing came within the idle time-out"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "the connection was closed"
    if isinstance(error, HttpProcessingError):
        return "it is not valid HTTP"
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
