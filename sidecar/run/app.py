"""The composition root: settings in, running parts out, and everything closed again in the right order."""

import asyncio
import contextlib
import dataclasses
import secrets
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from functools import partial

from sidecar import __version__
from sidecar.auth.oauth2 import OAuth2Issuer
from sidecar.auth.tls import client_context, read_material
from sidecar.clock import Clock
from sidecar.events import Emit, Ready, Trouble
from sidecar.exchange.exchange import Exchange
from sidecar.exchange.patience import Patience
from sidecar.exchange.ports import Destination
from sidecar.exchange.spool import Spool
from sidecar.exchange.upstream import Pool
from sidecar.observe.admin import Admin, Source
from sidecar.policy.decide import RetryPolicy
from sidecar.policy.headers import CREDENTIAL_PARAMETERS, CREDENTIALS, StripSet, strip_set, without_credentials
from sidecar.policy.message import Request
from sidecar.proxy.listener import Listener, proxy_options
from sidecar.proxy.port import Dispatch, Port
from sidecar.run.credentials import make_broker, make_issuer
from sidecar.run.state import RunFile, admin_token, open_store, prepare
from sidecar.run.status import problems, status
from sidecar.settings import Settings, Upstream, secret_references
from sidecar.tokens.broker import Broker
from sidecar.tokens.seal import EphemeralSeal

GRACE_SECONDS = 25.0
_POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class App:
    """A sidecar that serves; *addresses* maps `proxy`, `admin` and upstream names to bound addresses."""

    addresses: dict[str, str]
    brokers: dict[str, Broker]


@contextlib.asynccontextmanager
async def running(
    settings: Settings,
    *,
    clock: Clock,
    emit: Emit,
    dispatch: Dispatch | None = None,
) -> AsyncIterator[App]:
    """Serve while the context is open, in the running event loop.

    *dispatch*: where mitmproxy's hooks go; its flows then hold no credential of any upstream's. On leaving,
    readiness ends, nothing new is accepted, requests in flight get `GRACE_SECONDS`, a running renewal is
    finished and stored. Raises ConfigurationError before anything is served.
    """
    prepare(settings.state_dir)
    async with contextlib.AsyncExitStack() as stack:
        listeners = _bind(settings, stack)
        bound = {name: listener.address for name, listener in listeners.items()}
        addresses = {name: f"{host}:{port}" for name, (host, port) in bound.items()}
        store, ring = open_store(settings)
        stack.push_async_callback(store.aclose)
        destinations: dict[str, Destination] = {}
        for name, upstream in settings.upstreams.items():
            issuer = make_issuer(upstream, clock)
            broker = make_broker(name, upstream, issuer, store, ring, clock, emit)
            stack.push_async_callback(broker.aclose)
            destinations[name] = await _destination(upstream, issuer, broker, tuple(bound.values()))
            stack.push_async_callback(destinations[name].pool.aclose)
        brokers = {name: destination.broker for name, destination in destinations.items()}
        stopping = asyncio.Event()
        admin = Admin(_source(settings, brokers, addresses, clock, stopping), admin_token(settings))
        stack.push_async_callback(admin.aclose)
        for broker in brokers.values():
            await broker.start()
        common = Port(
            exchange=Exchange(destinations, identity=secrets.token_hex(4), clock=clock, emit=emit),
            options=proxy_options(),
            clock=clock,
            emit=emit,
            open_spool=lambda: Spool(settings.state_dir / "spool", EphemeralSeal()),
            show=partial(without_credentials, strips=_all_strips(destinations)) if dispatch else _as_it_is,
            dispatch=dispatch,
        )
        await admin.serve(listeners.pop("admin").socket)
        stack.push_async_callback(_drain, tuple(listeners.values()), clock)
        stack.callback(stopping.set)
        await listeners.pop("proxy").serve(common)
        for name, listener in listeners.items():
            origin = settings.upstreams[name].origin
            await listener.serve(dataclasses.replace(common, upstream=name, origin=origin))
        stack.enter_context(RunFile(settings, addresses))
        emit(Ready(addresses=addresses, version=__version__))
        for key, reference in secret_references(settings):
            if reference.value is not None:
                emit(Trouble(where=key, detail="the secret stands in the configuration; expected file or env"))
        yield App(addresses, brokers)


def _bind(settings: Settings, stack: contextlib.AsyncExitStack) -> dict[str, Listener]:
    """Bind every address first: a taken one is found before anything runs."""
    wanted = {"proxy": ("listen.proxy", settings.listen.proxy), "admin": ("listen.admin", settings.listen.admin)}
    for name, upstream in settings.upstreams.items():
        if upstream.listen is not None:
            wanted[name] = (f"upstreams.{name}.listen", upstream.listen)
    listeners = {}
    for name, (key, address) in wanted.items():
        listeners[name] = Listener(address.host, address.port, key)
        stack.push_async_callback(listeners[name].aclose)
    return listeners


async def _destination(
    upstream: Upstream, issuer: OAuth2Issuer, broker: Broker, own: tuple[tuple[str, int], ...]
) -> Destination:
    strip, retry = upstream.strip, upstream.retry
    context = await asyncio.to_thread(lambda: client_context(read_material(upstream.tls)))
    pool = Pool(
        upstream.origin,
        context=context,
        patience=Patience(
            connect=upstream.timeout.connect, first_byte=upstream.timeout.first_byte, idle=upstream.timeout.idle
        ),
        addresses=upstream.addresses,
        own_addresses=lambda: own,
    )
    return Destination(
        broker=broker,
        pool=pool,
        present=issuer.presentation,
        strips=strip_set(strip.headers, strip.cookies, strip.query, strip.keep),
        retry=RetryPolicy(
            attempts=retry.attempts,
            statuses=frozenset(retry.statuses),
            methods=frozenset(retry.methods),
            base=retry.base,
            cap=retry.cap,
            max_retry_after=retry.max_retry_after,
        ),
        total_timeout=upstream.timeout.total,
        replay_memory=upstream.replay.memory,
        replay_spool=upstream.replay.spool,
        read_only=upstream.read_only,
    )


def _all_strips(destinations: Mapping[str, Destination]) -> StripSet:
    """Return what any upstream strips; what one keeps may be another's credential."""
    strips = [destination.strips for destination in destinations.values()]
    return StripSet(
        CREDENTIALS.union(*(each.headers for each in strips)),
        frozenset().union(*(each.cookies for each in strips)),
        CREDENTIAL_PARAMETERS.union(*(each.query for each in strips)),
    )


def _as_it_is(request: Request) -> Request:
    """Return *request*: nobody looks at flows."""
    return request


def _source(
    settings: Settings, brokers: dict[str, Broker], addresses: dict[str, str], clock: Clock, stopping: asyncio.Event
) -> Source:
    async def renew(name: str) -> None:
        await brokers[name].renew()

    async def revoke(name: str) -> None:
        await brokers[name].revoke()

    return Source(
        status=lambda: status(brokers, addresses, __version__, clock),
        problems=lambda: {"sidecar": "shutting down"} if stopping.is_set() else problems(settings.upstreams, brokers),
        renew=renew,
        revoke=revoke,
        upstreams=lambda: brokers,
    )


async def _drain(listeners: tuple[Listener, ...], clock: Clock) -> None:
    """Take nothing new; let what is under way end."""
    for listener in listeners:
        listener.stop_accepting()
    give_up = clock.monotonic() + GRACE_SECONDS
    while any(listener.busy for listener in listeners) and clock.monotonic() < give_up:
        await clock.sleep(_POLL_SECONDS)
