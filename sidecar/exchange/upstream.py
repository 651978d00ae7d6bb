"""The upstream side: aiohttp's pool and response parser, our own request head, one attempt per call.

aiohttp's session would upper-case methods, mend targets, merge fields, keep cookies, follow redirects and
repeat requests by itself; so only its connector and its protocol are used, below the session. The bytes of
the head are ours. What is relied on below aiohttp's public surface has a contract test each, and a pin.
"""

import asyncio
import math
import ssl
import weakref
from collections.abc import Callable, Iterable

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ClientRequest
from aiohttp.connector import Connection
from yarl import URL

from sidecar.errors import UpstreamFailure
from sidecar.exchange.addresses import AddressProhibited, checked_socket
from sidecar.exchange.attempt import Answer, Attempt, describe
from sidecar.exchange.body import RequestBody
from sidecar.exchange.patience import Patience
from sidecar.policy.routing import Origin

_KEEP_IDLE = 4.0
"""Seconds a connection may idle: below the shortest keep-alive time-out in wide use, the 5 s of Node and uvicorn."""
_RETIRE_AFTER = 60.0
"""Seconds until a connection is replaced, so that a change of address in DNS is seen."""


class Pool:
    """The warm connections to one upstream."""

    def __init__(
        self,
        origin: Origin,
        *,
        context: ssl.SSLContext | None,
        patience: Patience,
        addresses: Iterable[str],
        own_addresses: Callable[[], Iterable[tuple[str, int]]],
        keep: bool = True,
    ) -> None:
        """Make the pool in a running loop; *context* is used for https origins, *keep*: connections are used again."""
        self.origin = origin
        self._patience = patience
        self._connector = aiohttp.TCPConnector(
            limit=0,
            keepalive_timeout=_KEEP_IDLE if keep else None,
            force_close=not keep,
            ttl_dns_cache=10,
            socket_factory=checked_socket(addresses, own_addresses),
        )
        loop = asyncio.get_running_loop()
        target = ClientRequest(
            "GET", URL(origin.url), loop=loop, ssl=context if context and origin.scheme == "https" else True
        )
        self._target = target
        # Exact, and only where a connection is made: a warm one costs no timer.
        self._timeout = _within(patience.connect)
        self._since: weakref.WeakKeyDictionary[ResponseHandler, float] = weakref.WeakKeyDictionary()

    async def send(self, method: bytes, head: bytes, body: RequestBody, *, fresh: bool = False) -> Answer:
        """Make one attempt, *fresh*: on a new connection, and return the head of the final answer; 1xx are skipped.

        Raises UpstreamFailure, which says whether anything was sent, and what *body* raises. Cancelled: the connection
        is given up.
        """
        connection, reused = await self._connect(fresh=fresh)
        attempt = Attempt(connection, reused=reused, peer=self.origin.authority, patience=self._patience)
        try:
            return await attempt.run(method, head, body)
        except BaseException:
            attempt.abandon()
            raise

    async def _connect(self, *, fresh: bool) -> tuple[Connection, bool]:
        loop = asyncio.get_running_loop()
        now = loop.time()
        try:
            while True:
                connection = await self._connector.connect(self._target, [], self._timeout)
                protocol = connection.protocol
                born = None if protocol is None else self._since.get(protocol)
                if protocol is None or protocol.should_close or not protocol.is_connected():
                    connection.close()
                elif born is None:
                    self._since[protocol] = loop.time()
                    return connection, False
                elif fresh or now - born > _RETIRE_AFTER:
                    connection.close()
                else:
                    return connection, True
        except TimeoutError:
            message = f"no connection to {self.origin.authority} within {self._patience.connect:.1f} s"
            raise UpstreamFailure(message, sent=False, timeout=True) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            message = f"no connection to {self.origin.authority}: {describe(error)}"
            prohibited = isinstance(getattr(error, "os_error", error), AddressProhibited)
            raise UpstreamFailure(message, sent=False, prohibited=prohibited) from error

    async def aclose(self) -> None:
        """Close every connection."""
        await self._connector.close()


def _within(seconds: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(connect=seconds, ceil_threshold=math.inf)
