"""An upstream's answer as the exchange has it: the head, and the body as it comes."""

import asyncio
import contextlib
import math
from typing import Protocol

from sidecar.errors import UpstreamFailure
from sidecar.exchange.patience import Limit
from sidecar.policy.answer import AnswerHead
from sidecar.policy.message import value_of

_SETTLE_LIMIT = 64 << 10
_GATHER_SECONDS = 1.0
_EVENTS = b"text/event-stream"


class Source(Protocol):
    """The connection that an answer comes from."""

    limit: Limit

    def resume(self) -> None:
        """Read on, when reading was held back."""
        ...

    def stop_upload(self) -> None:
        """Send no more of the request."""
        ...

    def let_go(self) -> None:
        """Give the connection up."""
        ...


class Answer:
    """The head of an upstream's answer, and its body as it comes.

    Must be read to its end, settled or closed. *length* is that of the body, None while it is not known, 0 where none
    may come. *waiting*: the bytes of the body that are here.
    """

    __slots__ = (
        *("status", "reason", "fields", "length", "chunked", "waiting"),
        *("_ended", "_failure", "_idle", "_parts", "_source", "_waiter"),
    )

    def __init__(self, head: AnswerHead, source: Source, idle: float) -> None:
        """*idle*: seconds that the upstream may be silent; not between events, which have their own time."""
        self.status = head.status
        self.reason = head.reason
        self.fields = head.fields
        self.length = head.length
        self.chunked = head.chunked
        self.waiting = 0
        self._idle = idle
        self._source: Source | None = source
        self._parts: list[bytes] = []
        self._ended = False
        self._failure: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def empty(self) -> bool:
        """Whether no more of the body will come."""
        return self._ended and not self._parts

    def ready(self) -> bytes:
        """Return what is here of the body already, empty when nothing is; as `read` does it, without waiting."""
        parts = self._parts
        if not parts:
            return b""
        self._parts, self.waiting = [], 0
        if self._source is not None:
            self._source.resume()
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def read(self) -> bytes:
        """Return the next bytes of the body, empty at its end.

        The connection is back in the pool before the last bytes are returned: a client that knows the length leaves as
        soon as it has them. Raises UpstreamFailure when the body breaks off, and after `close`.
        """
        while not self._parts:
            if self._failure is not None:
                raise self._failure
            if self._ended:
                return b""
            await self._more(self._patience())
        return self.ready()

    async def settle(self) -> None:
        """Stop the upload and let a small body come into memory, so that the connection is free while we wait.

        A large or slow body stays where it is, with its connection; `read` gives all of it in any case. Twice
        does no harm.
        """
        if self._source is None:
            return
        self._source.stop_upload()
        await self._gather(_SETTLE_LIMIT, math.inf)

    async def peek(self, size: int, seconds: float) -> bytes | None:
        """Wait *seconds* at most for *size* bytes of the body or its end; return all of it, or the first *size* bytes.

        All of it stays here for `read`. None when the body broke off, or was not all here in time.
        """
        if self.waiting < size:
            await self._gather(size, self._patience(), seconds)
        if self._failure is not None or (self.waiting < size and not self._ended):
            return None
        return b"".join(self._parts)[:size]

    def close(self) -> None:
        """Give the connection up; after the end of the body nothing happens."""
        if self._source is not None:
            self._source.let_go()
            self.fail(UpstreamFailure("the answer was given up", sent=True))

    def take(self, data: bytes, *, ended: bool) -> None:
        """Add what the connection brought; *ended*: there is no more, and the connection is no longer ours."""
        if data:
            self._parts.append(data)
            self.waiting += len(data)
        if ended:
            self._ended = True
            self._source = None
        self._wake()

    def fail(self, error: Exception) -> None:
        """Let `read` raise *error* after what is here; the connection is no longer ours."""
        self._failure = error
        self._source = None
        self._wake()

    async def _gather(self, size: int, patience: float, seconds: float = _GATHER_SECONDS) -> None:
        """Let *size* bytes of the body come into memory, in *seconds* at most; the rest comes out of `read`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self.waiting < size:
                    if self._source is not None:
                        self._source.resume()  # more may be wanted than a connection holds by itself
                    if not await self._more(patience):
                        return

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _patience(self) -> float:
        kind = value_of(self.fields, b"content-type") or b""
        return math.inf if kind.lower().startswith(_EVENTS) else self._idle

    async def _more(self, seconds: float) -> bool:
        """Wait until more has come, or the end; False at once when nothing more will."""
        source = self._source
        if source is None:
            return False
        self._waiter = asyncio.get_running_loop().create_future()
        source.limit.give(seconds)
        try:
            await self._waiter
        finally:
            self._waiter = None
            if self._source is not None:
                source.limit.lift()
        return True
