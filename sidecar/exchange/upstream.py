"""The warm connections to one upstream, on which the exchange sends requests as it wrote them.

aiohttp's connector makes and keeps them: names, addresses, TLS, the idle ones. Its session would upper-case methods,
mend targets, merge fields, keep cookies, follow redirects and repeat requests by itself; its parser refuses what every
client takes and takes what nobody should. So neither is used. What is relied on below its public surface has a contract
test each, and a pin.
"""

import asyncio
import functools
import math
import ssl
from collections.abc import Callable, Iterable

import aiohttp
from aiohttp.client_reqrep import ClientRequest
from aiohttp.connector import Connection
from yarl import URL

from sidecar.errors import UpstreamFailure
from sidecar.exchange.addresses import AddressProhibited, checked_socket
from sidecar.exchange.answer import Answer
from sidecar.exchange.body import RequestBody
from sidecar.exchange.connection import UpstreamConnection, describe
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
        self._timeout = aiohttp.ClientTimeout(connect=patience.connect, ceil_threshold=math.inf)
        make = functools.partial(UpstreamConnection, loop, origin.authority, patience)
        self._connector._factory = make  # type: ignore[assignment]  # noqa: SLF001  its own hook for the protocol

    async def send(self, method: bytes, head: bytes, body: RequestBody, *, fresh: bool = False) -> Answer:
        """Send a request once, *fresh*: on a new connection, and return the head of the final answer; 1xx are skipped.

        The time-outs run while the upstream is waited for, not the client. Raises UpstreamFailure, which says whether
        anything was sent, and what *body* raises, such as ClientGone. Cancelled: the connection is given up.
        """
        lease, connection = await self._connect(fresh=fresh)
        return await connection.ask(lease, method, head, body)

    async def _connect(self, *, fresh: bool) -> tuple[Connection, UpstreamConnection]:
        loop = asyncio.get_running_loop()
        try:
            while True:
                lease = await self._connector.connect(self._target, [], self._timeout)
                connection = lease.protocol
                if not isinstance(connection, UpstreamConnection):
                    raise TypeError("the connector made a connection of another kind")
                if connection.used and (fresh or loop.time() - connection.born > _RETIRE_AFTER):
                    lease.close()
                else:
                    return lease, connection
        except TimeoutError:
            message = f"no connection to {self.origin.authority} within {self._patience.connect:.1f} s"
            raise UpstreamFailure(message, sent=False, timeout=True) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
            message = f"no connection to {self.origin.authority}: {describe(cause)}"
            raise UpstreamFailure(message, sent=False, prohibited=isinstance(cause, AddressProhibited)) from error

    async def aclose(self) -> None:
        """Close every connection."""
        await self._connector.close()
