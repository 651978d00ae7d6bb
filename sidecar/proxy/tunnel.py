"""A tunnel to a host that is passed through: bytes both ways, as they are."""

import asyncio
import contextlib

from sidecar.errors import Refusal, where
from sidecar.events import Trouble
from sidecar.exchange.own_answers import own_answer
from sidecar.exchange.tally import Tally
from sidecar.policy.message import Request
from sidecar.proxy.connect import ESTABLISHED
from sidecar.proxy.port import Port
from sidecar.proxy.wire import reset

_IDLE_SECONDS = 3600.0
_HALF_CLOSED_SECONDS = 60.0
_QUIET_SECONDS = 1.0
_PIECE = 64 << 10


class Tunnel:
    """Carries what one *client* and the host of its CONNECT *request* say to each other.

    It ends when both have said all, when one breaks off, after an hour without a byte, or, once one of them has
    said all, after a minute without one.
    """

    def __init__(self, request: Request, port: Port, client: asyncio.StreamWriter) -> None:
        self._request = request
        self._port = port
        self._client = client
        self._early = bytearray()
        self._writer: asyncio.StreamWriter | None = None
        self._ready = asyncio.Event()
        self._client_ended = asyncio.Event()
        self._patience = _IDLE_SECONDS
        self._limit: asyncio.Timeout | None = None
        self._moved = 0.0

    @property
    def quiet(self) -> bool:
        """Whether nothing moved for a second: such a tunnel holds up no shutdown."""
        return asyncio.get_running_loop().time() - self._moved > _QUIET_SECONDS

    @property
    def full(self) -> bool:
        """Whether whoever feeds it should wait for `room`: the host is slow, or has not answered yet."""
        writer = self._writer
        return not self._ready.is_set() if writer is None else writer.transport.get_write_buffer_size() > _PIECE

    async def room(self) -> None:
        """Wait until the host takes more; before it has answered, until then."""
        await self._ready.wait()
        if self._writer is not None:
            with contextlib.suppress(OSError):
                await self._writer.drain()

    async def run(self) -> None:
        """Dial, answer the client, and carry; both sides are reset when one was or time is up, cancelled the host's."""
        now = self._port.clock.monotonic
        tally = Tally(now(), outcome="client_gone", attempts=1)
        try:
            reader, self._writer = await self._port.beside.dial(self._request.host, self._request.port)
            tally.status = 200
            self._client.write(ESTABLISHED)
            await self._copy(reader, self._writer)
            tally.outcome = "passed"
        except Refusal as refusal:
            answer = own_answer(refusal)
            tally.status, tally.outcome = answer.status, refusal.reason
            self._client.write(answer.encode())
        except Exception as error:  # noqa: BLE001  fail closed
            self._port.emit(Trouble(where="proxy", detail=f"bug: {type(error).__name__} at {where(error)}"))
            reset(self._client)
        finally:
            self._ready.set()
            self._client.close()
            self._port.emit(tally.done(self._request, now()))

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(self._patience) as self._limit:
                self._send(bytes(self._early))
                self._early.clear()
                self._ready.set()
                if self._client_ended.is_set():
                    self.feed_end()
                while data := await reader.read(_PIECE):
                    self._client.write(data)
                    self._progress()
                    await self._client.drain()
                self._client.write_eof()
                self._half_closed()
                await self._client_ended.wait()
                writer.close()
                await writer.wait_closed()
        except (OSError, TimeoutError):
            reset(self._client)
        finally:
            self._limit = None
            reset(writer)

    def feed(self, data: bytes) -> None:
        """Send what the client sent; before the host has answered it is kept."""
        if self._limit is None:
            self._early += data
        else:
            self._send(data)

    def feed_end(self) -> None:
        """Hear that the client has said all; it may still listen."""
        self._client_ended.set()
        if self._limit is not None and self._writer is not None:
            with contextlib.suppress(OSError):  # it was reset a moment ago; `run` will hear of it
                self._writer.write_eof()
            self._half_closed()

    def _send(self, data: bytes) -> None:
        if self._writer is None or self._writer.is_closing():
            # The host has closed for good: what goes there is lost, and the client must not think otherwise.
            reset(self._client)
            return
        self._writer.write(data)
        self._progress()

    def _half_closed(self) -> None:
        self._patience = _HALF_CLOSED_SECONDS
        self._progress()

    def _progress(self) -> None:
        self._moved = asyncio.get_running_loop().time()
        if self._limit is not None and not self._limit.expired():
            self._limit.reschedule(self._moved + self._patience)
