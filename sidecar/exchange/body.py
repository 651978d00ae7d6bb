"""A request body: fed by the client's side, sent by one attempt at a time, kept for a replay.

It flows while it is copied: first into memory, then into a sealed spool, beyond that nowhere; then it cannot
be replayed. Whoever feeds it looks at `full` and waits for `room`, so that a slow upstream slows the client.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable

from sidecar.exchange.spool import OpenSpool, Spool

_HIGH_WATER = 256 << 10
_PIECE = 64 << 10
_PATIENCE = 3600.0


class ClientGone(Exception):
    """The client left before its request or its answer was complete."""


class ClientStalled(Exception):
    """The client sent nothing of its body for too long; the message is one that it may read."""


class RequestBody:
    """One request's body.

    `patience`: seconds that the client may send nothing while the next part is waited for.
    *length*: what the client declared, None when chunked. *wanted* is called once, when the body is first
    asked for (to send 100 Continue). Until `keep` says how much, nothing is kept. An attempt that is cancelled
    loses nothing: the next one starts from the first byte.
    """

    def __init__(self, length: int | None, *, open_spool: OpenSpool, wanted: Callable[[], None]) -> None:
        self.length = length
        self.patience = _PATIENCE
        self.complete = length == 0
        self.kept_whole = length == 0
        self._memory_limit = 0
        self._limit = 0
        self._open_spool = open_spool
        self._wanted: Callable[[], None] | None = wanted
        self._memory = bytearray()
        self._spool: Spool | None = None
        self._kept = 0
        self._started = False
        self._broken = False
        self._live: deque[bytes] = deque()
        self._live_size = 0
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._discarding = False
        self._gathering = False

    def keep(self, memory: int, spool: int) -> None:
        """Keep up to *memory* bytes in memory and *spool* more on disk; call it before the body is read.

        A declared length beyond both is not kept at all.
        """
        self._memory_limit = memory
        self._limit = memory + spool
        self.kept_whole = self.length is None or self.length <= self._limit

    @property
    def replayable(self) -> bool:
        """Whether another attempt can send the body from its first byte."""
        return (self.kept_whole or not self._started) and not self._discarding

    @property
    def full(self) -> bool:
        """Whether the feeder should wait for `room`."""
        return self._live_size >= _HIGH_WATER

    async def room(self) -> None:
        """Wait until there is room; at once when there is."""
        await self._room.wait()

    def feed(self, data: bytes) -> None:
        """Add what the client sent; after `discard` it is dropped, and so is nothing at all."""
        if self._discarding or not data:
            return
        self._live.append(data)
        self._live_size += len(data)
        if self.full:
            self._room.clear()
        self._changed.set()

    def feed_end(self) -> None:
        """Say that the body is complete."""
        self.complete = True
        self._changed.set()

    def fail(self) -> None:
        """Say that the client left; whoever reads gets ClientGone."""
        self._broken = True
        self.discard()

    def discard(self) -> None:
        """Keep nothing more and free what is held: the answer is decided. Twice does no harm.

        Whoever still reads gets an error: what is left must not look like a whole body.
        """
        self._discarding = True
        self._changed.set()
        self._live.clear()
        self._live_size = 0
        self._memory.clear()
        if self._spool:
            self._spool.close()
            self._spool = None
        self._room.set()

    def whole(self) -> bytes | None:
        """Return the body when all of it is in memory already, else None; for one write with the head."""
        if not self.complete or not self.kept_whole or self._discarding:
            return None
        if self._kept + self._live_size > self._memory_limit:
            return None
        while self._live:
            self._keep(self._take())
        return bytes(self._memory)

    async def gather(self, most: int) -> bytes | None:
        """Return the body once all of it is here, None if it is longer than *most*; it can be sent as before.

        What is read for that is kept in memory, whatever `keep` says: it must not be lost. Raises as `chunks` does.
        """
        if not self.replayable or max(self.length or 0, self._kept) > most:
            return None
        self.kept_whole = self._gathering = True
        try:
            async for _ in self.chunks():
                if self._kept > most:
                    return None
            return bytes(self._memory)
        finally:
            self._gathering = False

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body from its first byte, kept part first, then as it comes in.

        Raises ClientGone when the client left, ClientStalled when it sends no more, and RuntimeError when the body
        cannot be sent (again).
        """
        self._check()
        if not self.replayable:
            raise RuntimeError("this body was not kept and cannot be sent again")
        self._started = True
        if self._wanted:
            self._wanted()
            self._wanted = None
        for start in range(0, len(self._memory), _PIECE):
            yield bytes(self._memory[start : start + _PIECE])
            self._check()
        for block in self._spool.read() if self._spool else ():
            yield block
            self._check()
        while True:
            while not self._live:
                if self.complete:
                    return
                await self._more()
                self._check()
            data = self._take()
            self._keep(data)
            yield data
            self._check()

    async def _more(self) -> None:
        self._changed.clear()
        try:
            async with asyncio.timeout(self.patience):
                await self._changed.wait()
        except TimeoutError:
            raise ClientStalled(f"the client sent no more of its request for {self.patience:.0f} s") from None

    def _check(self) -> None:
        """Refuse to read on when what was held has been given up."""
        if self._broken:
            raise ClientGone
        if self._discarding:
            raise RuntimeError("this body was given up")

    def _take(self) -> bytes:
        parts = [self._live.popleft()]
        size = len(parts[0])
        while self._live and size < _PIECE:
            parts.append(self._live.popleft())
            size += len(parts[-1])
        self._live_size -= size
        if not self.full:
            self._room.set()
        return b"".join(parts)

    def _keep(self, data: bytes) -> None:
        """Copy *data* for a replay; from the first byte that finds no place on, nothing is kept."""
        if not self.kept_whole:
            return
        self._kept += len(data)
        if self._gathering:
            self._memory += data
        elif self._kept > self._limit:
            self._forget()
        elif self._kept <= self._memory_limit:
            self._memory += data
        else:
            try:
                if self._spool is None:
                    self._spool = self._open_spool()
                self._spool.append(data)
            except OSError:
                self._forget()

    def _forget(self) -> None:
        self.kept_whole = False
        self._memory.clear()
        if self._spool:
            self._spool.close()
            self._spool = None
