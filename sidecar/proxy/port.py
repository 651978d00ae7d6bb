"""What the connections of one listener have in common."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from mitmproxy.options import Options
from mitmproxy.proxy import commands
from OpenSSL import SSL

from sidecar.clock import Clock
from sidecar.events import Emit
from sidecar.exchange.exchange import Exchange
from sidecar.exchange.mask import Mask
from sidecar.exchange.passthrough import Passthrough
from sidecar.exchange.spool import OpenSpool
from sidecar.policy.message import Request
from sidecar.policy.routing import Origin
from sidecar.proxy.gate import Gate
from sidecar.settings import Limits

Dispatch = Callable[[commands.StartHook], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """What all connections of one listener share.

    *limits*: what a client may ask for. *upstream* and *origin*: those of a reverse port, None on the proxy port.
    *gate*: who may come in. *beside*: the way to what is passed through. *server_context*: TLS for a client that
    asked for this host, KeyError for one that is not intercepted. *show*: what of a request a flow may hold, *mask*:
    what an answer must not show. *dispatch*: where mitmproxy's hooks go, None: no addon listens. *options*: of its TLS.
    """

    exchange: Exchange
    beside: Passthrough
    gate: Gate
    server_context: Callable[[str], SSL.Context]
    limits: Limits
    clock: Clock
    emit: Emit
    open_spool: OpenSpool
    show: Callable[[Request], Request]
    mask: Mask
    dispatch: Dispatch | None = None
    upstream: str | None = None
    origin: Origin | None = None
    options: Options = field(default_factory=Options)
