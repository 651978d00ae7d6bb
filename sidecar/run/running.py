"""The composition root: settings in, a sidecar that serves out, and everything given back in the opposite order."""

import asyncio
import contextlib
import secrets
from collections import Counter
from collections.abc import AsyncIterator

from sidecar import __version__
from sidecar.clock import Clock
from sidecar.events import Emit, Event, Ready, Trouble, WorkerReplaced
from sidecar.exchange.exchange import Watch
from sidecar.observe.admin import Admin
from sidecar.observe.metrics import Metrics
from sidecar.proxy.listener import Listener
from sidecar.proxy.port import Dispatch
from sidecar.proxy.sockets import bind as bind_socket
from sidecar.run.app import App
from sidecar.run.assembly import Surroundings
from sidecar.run.commands import wait_for_commands
from sidecar.run.credentials import AT_ONCE, Shared
from sidecar.run.findings import Findings
from sidecar.run.listeners import FREE_PORT, bind
from sidecar.run.source import make_source
from sidecar.run.state import MARKS, RunFile, admin_token, prepare
from sidecar.run.stores import instance_name, keep_announcing, leave, open_store
from sidecar.run.supervisor import Inherited
from sidecar.settings import Settings, plain_secrets
from sidecar.settings.names import is_local
from sidecar.tokens.waiting import Tasks


@contextlib.asynccontextmanager
async def running(
    settings: Settings,
    *,
    clock: Clock,
    emit: Emit,
    dispatch: Dispatch | None = None,
    for_exec: bool = False,
    inherited: Inherited | None = None,
    watch: Watch | None = None,
) -> AsyncIterator[App]:
    """Serve while the context is open, in the running event loop.

    *dispatch*: where mitmproxy's hooks go; its flows then hold no credential of any upstream's. *for_exec*: for one
    command only, so on free ports, not to be found by others, and hosts that are no upstream's are passed through.
    *inherited*: what a worker has from its supervisor, which is found by others in its place. *watch*: looks at
    requests, which then keep the credentials that clients gave them. On leaving, readiness
    ends, nothing new is accepted, requests in flight get `grace`, a running renewal is finished and stored; unless
    *for_exec*, a session that no other instance uses is logged out. Raises ConfigurationError before it serves.
    """
    prepare(settings.state_dir)
    async with contextlib.AsyncExitStack() as stack:
        listeners = bind(settings, free=for_exec, inherited=inherited.sockets if inherited else None)
        stack.push_async_callback(listeners.aclose)
        admin_socket = inherited.sockets.get("admin") if inherited else None
        admin_address = FREE_PORT if for_exec else settings.listen.admin
        admin_listener = Listener(admin_socket or bind_socket(admin_address, "listen.admin"))
        stack.push_async_callback(admin_listener.aclose)
        await wait_for_commands(settings, clock, emit)
        store, keys = open_store(settings, clock)
        stack.push_async_callback(store.aclose)
        in_flight: Counter[str] = Counter()
        metrics = Metrics(
            status=lambda: {name: broker.status() for name, broker in app.brokers.items()},
            in_flight=lambda: in_flight,
            quota=lambda: {name: each.admission.quota_remaining for name, each in app.destinations.items()},
            clock=clock,
            slot=inherited.slot if inherited else None,
        )

        findings = Findings(lambda: app.destinations, clock)

        def tell(event: Event) -> None:
            emit(event)
            metrics.observe(event)
            findings.observe(event)

        owner, elsewhere = instance_name(), settings.store.shared
        turns = asyncio.Semaphore(0)
        shared = Shared(
            store=store,
            keys=keys,
            owner=owner,
            elsewhere=elsewhere,
            clock=clock,
            emit=tell,
            turns=turns,
            marks=settings.state_dir / MARKS,
        )
        tasks = Tasks(shared.owner, tell)
        stack.push_async_callback(tasks.aclose)
        app = App(listeners, admin_listener, tasks)
        if inherited is not None:
            app.inherit(inherited.sockets["exec"])
        around = Surroundings(
            shared=shared,
            own=app.own,
            identity=secrets.token_hex(4),
            in_flight=in_flight,
            dispatch=dispatch,
            for_exec=for_exec,
            watch=watch,
        )
        local = for_exec or is_local(settings.listen.admin)
        token = admin_token(settings) if local or settings.listen.admin_token else None
        admin = Admin(make_source(app, metrics, findings, inherited), token, local=local)
        stack.push_async_callback(admin.aclose)
        await app.start(settings, around)
        stack.push_async_callback(app.aclose)
        await admin.serve(admin_listener.socket)
        for _ in range(AT_ONCE):  # the ports come first
            turns.release()
        word = tasks.spawn(keep_announcing(shared, lambda: app.pools), "word")
        if inherited is not None:
            tasks.spawn(metrics.keep_publishing(), "metrics")
            if inherited.replaces is not None:  # told of by our supervisor already
                metrics.observe(WorkerReplaced(number=inherited.number, code=inherited.replaces, wait=0.0))
        stack.push_async_callback(_end, app, emit, shared, None if for_exec else word)
        if not for_exec and inherited is None:
            stack.enter_context(RunFile(settings, app.addresses))
        emit(Ready(addresses=app.addresses, version=__version__))
        for key in plain_secrets(settings):
            emit(Trouble(where=key, detail="the secret stands in the configuration; expected file or env"))
        yield app


async def _end(app: App, emit: Emit, shared: Shared, word: "asyncio.Task[None] | None") -> None:
    """Drain *app*; *word*: what leaves word of it, None: its sessions are others'."""
    await app.drain(app.settings.grace, shared.clock, emit)
    if word is not None:
        word.cancel()
        await asyncio.wait({word})
        await leave(shared, [broker for pool in app.pools.values() for broker in pool])
