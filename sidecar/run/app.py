"""The composition root: settings in, running parts out, and everything closed again in the right order."""

import asyncio
import contextlib
import dataclasses
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from sidecar import __version__
from sidecar.auth.tls import client_context, read_material
from sidecar.clock import Clock
from sidecar.events import Emit, Ready, Trouble
from sidecar.exchange.exchange import Exchange
from sidecar.exchange.passthrough import Own, Passthrough
from sidecar.exchange.ports import Destination
from sidecar.exchange.spool import Spool
from sidecar.observe.admin import Admin, Source
from sidecar.policy.headers import without_credentials
from sidecar.policy.message import Request
from sidecar.policy.passthrough import EVERY_HOST
from sidecar.proxy.listener import Listener, proxy_options
from sidecar.proxy.port import Dispatch, Port
from sidecar.run.credentials import Shared, make_broker, make_issuer
from sidecar.run.destinations import all_strips, make_destination
from sidecar.run.gates import proxy_gate, reverse_gate
from sidecar.run.state import RunFile, admin_token, prepare
from sidecar.run.status import problems, status
from sidecar.run.stores import instance_name, keep_announcing, open_store
from sidecar.run.trust import Trust
from sidecar.settings import HostPort, Settings, Tls, secret_references
from sidecar.settings.values import without_password
from sidecar.tokens.broker import Broker
from sidecar.tokens.seal import EphemeralSeal
from sidecar.tokens.tasks import Tasks

GRACE_SECONDS = 25.0
_POLL_SECONDS = 0.05
_EXEC = "the port of exec"  # no name of an upstream
_FREE_PORT = HostPort("127.0.0.1", 0)


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
    for_exec: bool = False,
) -> AsyncIterator[App]:
    """Serve while the context is open, in the running event loop.

    *dispatch*: where mitmproxy's hooks go; its flows then hold no credential of any upstream's. *for_exec*: for
    one command only, so on free ports, not to be found by others, and hosts that are no upstream's are passed
    through. On leaving, readiness ends, nothing new is accepted, requests in flight get `GRACE_SECONDS`, a
    running renewal is finished and stored. Raises ConfigurationError before anything is served.
    """
    prepare(settings.state_dir)
    async with contextlib.AsyncExitStack() as stack:
        listeners = _bind(settings, stack, free=for_exec)
        admin_listener = listeners.pop("admin")
        bound = [admin_listener, *listeners.values()]
        late = await stack.enter_async_context(contextlib.AsyncExitStack())
        addresses = {name: str(each.address) for name, each in {"admin": admin_listener, **listeners}.items()}

        def own() -> list[tuple[str, int]]:
            return [listener.address for listener in bound if isinstance(listener.address, HostPort)]

        store, keys = open_store(settings, clock)
        stack.push_async_callback(store.aclose)
        shared = Shared(store=store, keys=keys, owner=instance_name(), clock=clock, emit=emit)
        destinations = await _destinations(settings, stack, shared, own)
        brokers = {name: destination.broker for name, destination in destinations.items()}
        trust = Trust(settings.state_dir / "ca", _hosts(settings), clock, emit)
        await asyncio.to_thread(trust.prepare)
        identity = secrets.token_hex(4)

        async def passing(patterns: Collection[str]) -> Port:
            """Return a proxy port that passes the hosts of *patterns* through."""
            beside = await _beside(patterns, destinations, own, emit)
            return Port(
                exchange=Exchange(destinations, beside=beside, identity=identity, clock=clock, emit=emit),
                beside=beside,
                gate=proxy_gate(settings.listen),
                server_context=trust.context,
                options=proxy_options(),
                clock=clock,
                emit=emit,
                open_spool=lambda: Spool(settings.state_dir / "spool", EphemeralSeal()),
                show=partial(without_credentials, strips=all_strips(destinations)) if dispatch else _as_it_is,
                dispatch=dispatch,
            )

        proxy = await passing((EVERY_HOST,) if for_exec else settings.passthrough)

        async def exec_port() -> str:
            port = None if _EXEC in listeners else await passing((EVERY_HOST,))
            if port and _EXEC not in listeners:  # two may have asked at once
                listeners[_EXEC] = listener = Listener(_FREE_PORT, _EXEC)
                late.push_async_callback(listener.aclose)
                bound.append(listener)
                await listener.serve(port)
            return str(listeners[_EXEC].address)

        stopping = asyncio.Event()
        source = _source(settings, brokers, addresses, clock, stopping, exec_port)
        admin = Admin(source, admin_token(settings))
        stack.push_async_callback(admin.aclose)
        for broker in brokers.values():
            await broker.start()
        await admin.serve(admin_listener.socket)
        tasks = Tasks(shared.owner, emit)
        stack.push_async_callback(tasks.aclose)
        tasks.spawn(keep_announcing(shared, brokers), "word")
        stack.push_async_callback(_drain, listeners, clock)
        stack.callback(stopping.set)
        for name, listener in tuple(listeners.items()):
            port = proxy
            if name != "proxy":
                origin = settings.upstreams[name].origin
                gate = reverse_gate(listener.address, origin)
                port = dataclasses.replace(proxy, upstream=name, origin=origin, gate=gate)
            await listener.serve(port)
        if not for_exec:
            stack.enter_context(RunFile(settings, addresses))
        emit(Ready(addresses=addresses, version=__version__))
        for key in _plain_secrets(settings):
            emit(Trouble(where=key, detail="the secret stands in the configuration; expected file or env"))
        yield App(addresses, brokers)


def _plain_secrets(settings: Settings) -> Iterator[str]:
    """Yield the keys whose secrets stand in the configuration as they are."""
    yield from (key for key, reference in secret_references(settings) if reference.value is not None)
    if without_password(settings.store.url) != settings.store.url:
        yield "store.url"


def _bind(settings: Settings, stack: contextlib.AsyncExitStack, *, free: bool) -> dict[str, Listener]:
    """Bind every address first: a taken one is found before anything runs; *free*: any port instead."""
    wanted = {"proxy": ("listen.proxy", settings.listen.proxy), "admin": ("listen.admin", settings.listen.admin)}
    for name, upstream in settings.upstreams.items():
        if upstream.listen is not None:
            wanted[name] = (f"upstreams.{name}.listen", upstream.listen)
    listeners = {}
    for name, (key, address) in wanted.items():
        listeners[name] = Listener(_FREE_PORT if free else address, key)
        stack.push_async_callback(listeners[name].aclose)
    return listeners


async def _destinations(
    settings: Settings, stack: contextlib.AsyncExitStack, shared: Shared, own: Own
) -> dict[str, Destination]:
    destinations = {}
    for name, upstream in settings.upstreams.items():
        issuer = make_issuer(upstream, shared.clock)
        broker = make_broker(name, upstream, issuer, shared)
        stack.push_async_callback(broker.aclose)
        destinations[name] = await make_destination(upstream, issuer, broker, own)
        stack.push_async_callback(destinations[name].pool.aclose)
    return destinations


async def _beside(
    patterns: Collection[str], destinations: Mapping[str, Destination], own: Own, emit: Emit
) -> Passthrough:
    """Return the way to what is passed through; without patterns nothing is."""
    context = await asyncio.to_thread(lambda: client_context(read_material(Tls()))) if patterns else None
    origins = {name: destination.pool.origin for name, destination in destinations.items()}
    return Passthrough(patterns, origins=origins, context=context, own=own, emit=emit)


def _hosts(settings: Settings) -> frozenset[str]:
    return frozenset(upstream.origin.host for upstream in settings.upstreams.values())


def _as_it_is(request: Request) -> Request:
    """Return *request*: nobody looks at flows."""
    return request


def _source(
    settings: Settings,
    brokers: dict[str, Broker],
    addresses: dict[str, str],
    clock: Clock,
    stopping: asyncio.Event,
    exec_port: Callable[[], Awaitable[str]],
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
        exec_port=exec_port,
        upstreams=lambda: brokers,
    )


async def _drain(listeners: Mapping[str, Listener], clock: Clock) -> None:
    """Take nothing new; let what is under way end."""
    for listener in listeners.values():
        listener.stop_accepting()
    give_up = clock.monotonic() + GRACE_SECONDS
    while any(listener.busy for listener in listeners.values()) and clock.monotonic() < give_up:
        await clock.sleep(_POLL_SECONDS)
