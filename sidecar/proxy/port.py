"""What the connections of one listener have in common."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from mitmproxy.options import Options
from mitmproxy.proxy import commands

from sidecar.clock import Clock
from sidecar.events import Emit
from sidecar.exchange.exchange import Exchange
from sidecar.exchange.spool import OpenSpool
from sidecar.policy.message import Request
from sidecar.policy.routing import Origin

Dispatch = Callable[[commands.StartHook], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """What all connections of one listener share.

    *upstream* and *origin*: those of a reverse port, None on the proxy port. *show*: what of a request a
    flow may hold. *dispatch*: where mitmproxy's hooks go, None when no addon listens.
    """

    exchange: Exchange
    options: Options
    clock: Clock
    emit: Emit
    open_spool: OpenSpool
    show: Callable[[Request], Request]
    dispatch: Dispatch | None = None
    upstream: str | None = None
    origin: Origin | None = None
