"""Hosts that are none of our business: a request or a tunnel goes there as it came, without credential of ours.

No token, no retry, no replay, and time-outs so wide that the client's own come first: what a script does there
works as it did without us. The address is checked all the same; a tunnel into our own admin port is a way in.
"""

import asyncio
import socket
import ssl
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import aiohappyeyeballs

from sidecar.auth.tls import client_context, read_material
from sidecar.errors import Reason, Refusal, UpstreamFailure
from sidecar.events import Emit
from sidecar.exchange.addresses import checked_socket, prohibition
from sidecar.exchange.body import RequestBody
from sidecar.exchange.patience import Patience
from sidecar.exchange.ports import Client
from sidecar.exchange.relay import relay
from sidecar.exchange.tally import Tally
from sidecar.exchange.upstream import Pool
from sidecar.policy import headers
from sidecar.policy.message import Request
from sidecar.policy.passthrough import passes
from sidecar.policy.routing import Origin, normal_host
from sidecar.settings import Tls

Own = Callable[[], Iterable[tuple[str, int]]]
"""Our own listeners, which no tunnel may lead to."""

_CONNECT_SECONDS = 30.0
_NEXT_ADDRESS_SECONDS = 0.25
_HOUR = 3600.0


class Passthrough:
    """The way to hosts that match one of *patterns* and are none of *origins*."""

    def __init__(self, patterns: Collection[str], *, origins: Mapping[str, Origin], own: Own, emit: Emit) -> None:
        self._patterns = patterns
        self._origins = origins
        self._context: ssl.SSLContext | None = None
        self._own = own
        self._emit = emit

    def takes(self, host: str) -> bool:
        """Tell whether *host*, as a client spelled it, is passed through."""
        try:
            return passes(normal_host(host), self._patterns, self._origins)
        except ValueError:
            return False

    async def forward(self, request: Request, body: RequestBody, client: Client, tally: Tally, via: bytes) -> None:
        """Send *request* on a connection of its own and give *client* the answer; raises Refusal when there is none."""
        origin = Origin(request.scheme, normal_host(request.host), request.port)
        await self._resolve(origin.host, origin.port)
        if origin.scheme == "https" and self._context is None:
            # Few clients send `https` in absolute-form, and public roots take a while to read.
            self._context = await asyncio.to_thread(lambda: client_context(read_material(Tls())))
        fields = headers.untouched(
            request.fields, host=origin.authority.encode(), via=via, chunked=request.length is None
        )
        lines = [b"%b %b HTTP/1.1" % (request.method, request.target), *(b"%b: %b" % pair for pair in fields)]
        pool = Pool(
            origin,
            context=self._context,
            patience=Patience(connect=_CONNECT_SECONDS, first_byte=_HOUR, idle=_HOUR),
            addresses=(),
            own_addresses=self._own,
            keep=False,
        )
        try:
            answer = await pool.send(request.method, b"\r\n".join(lines) + b"\r\n\r\n", body)
            try:
                await relay(answer, headers.incoming(answer.fields), client, tally, self._emit, origin.authority)
            finally:
                answer.close()
        except UpstreamFailure as failure:
            reason = Reason.UPSTREAM_TIMEOUT if failure.timeout else Reason.UPSTREAM_UNREACHABLE
            raise Refusal(reason, str(failure)) from failure
        finally:
            await pool.aclose()

    async def dial(self, host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Return a connection to *host*:*port*, the first address that answers; raises Refusal."""
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                connected = await aiohappyeyeballs.start_connection(
                    await self._resolve(host, port),
                    happy_eyeballs_delay=_NEXT_ADDRESS_SECONDS,
                    socket_factory=checked_socket((), self._own),
                )
            return await asyncio.open_connection(sock=connected)
        except TimeoutError:
            detail = f"no connection to {host}:{port} within {_CONNECT_SECONDS:.0f} s"
            raise Refusal(Reason.UPSTREAM_TIMEOUT, detail) from None
        except OSError as error:
            raise _unreachable(host, port, error) from None

    async def _resolve(self, host: str, port: int) -> list[tuple[Any, ...]]:
        """Return the addresses of *host*; one that is prohibited among them is enough for a Refusal."""
        try:
            found = await asyncio.get_running_loop().getaddrinfo(normal_host(host), port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise _unreachable(host, port, error) from None
        for _, _, _, _, address in found:
            if why := prohibition(str(address[0]), port, (), self._own()):
                raise Refusal(Reason.NO_ROUTE, f"{host}:{port} is {why}, which nothing is passed through to")
        return list(found)


def _unreachable(host: str, port: int, error: Exception) -> Refusal:
    why = error.strerror if isinstance(error, OSError) else None
    return Refusal(
        Reason.UPSTREAM_UNREACHABLE, f"no connection to {host}:{port}: {why or 'the name cannot be resolved'}"
    )
