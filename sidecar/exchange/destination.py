"""One upstream, ready for use, and the client that waits for its answer."""

import asyncio
from dataclasses import dataclass, field
from typing import Protocol

from sidecar.auth.dialect import Dialect
from sidecar.exchange.admission import Admission
from sidecar.exchange.upstream import Pool
from sidecar.policy.attempt import RetryPolicy
from sidecar.policy.message import Fields
from sidecar.policy.mirror import LinkPolicy
from sidecar.tokens.broker import Broker


class Client(Protocol):
    """The way back to the client; each call waits until the client takes more, and raises ClientGone when it left.

    *patience*: seconds that it may take nothing, then it counts as gone; set once the upstream is known.
    """

    patience: float

    async def start(
        self, status: int, reason: bytes, fields: Fields, *, chunked: bool, data: bytes = b"", end: bool = False
    ) -> None:
        """Send the head, with *data* of the body; *chunked*: its length is not known; *end*: that is all of it."""
        ...

    async def send(self, data: bytes) -> None:
        """Send a part of the body."""
        ...

    async def end(self) -> None:
        """End the answer."""
        ...

    async def abort(self) -> None:
        """Close the connection so that the client cannot take what it has for a whole answer."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """One upstream, ready for use.

    *brokers*: one for each session of the pool. *token_timeout*: seconds to wait for a credential. *first*: who shows a
    credential that was never taken yet. *idle_timeout*: seconds that a client may be silent.
    """

    brokers: tuple[Broker, ...]
    admission: Admission
    pool: Pool
    dialect: Dialect
    retry: RetryPolicy
    token_timeout: float
    idle_timeout: float
    replay_memory: int
    replay_spool: int
    read_only: bool
    via: bool
    links: LinkPolicy
    first: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def broker(self) -> Broker:
        """The broker of a session that is there, else the first: for what goes in no turn."""
        if len(self.brokers) == 1:
            return self.brokers[0]
        return next((broker for broker in self.brokers if broker.current() is not None), self.brokers[0])
