"""A sidecar that serves: other settings in while it runs, drained when it stops, and closed in the right order."""

import asyncio
import socket
from collections.abc import Collection
from pathlib import Path

from sidecar.clock import Clock
from sidecar.errors import ConfigurationError
from sidecar.events import Drain, Emit
from sidecar.exchange.destination import Destination
from sidecar.proxy.listener import Listener
from sidecar.proxy.sockets import bind as bind_socket
from sidecar.run.assembly import Assembly, Surroundings, assemble
from sidecar.run.listeners import FREE_PORT, Listeners, bind
from sidecar.settings import HostPort, Settings
from sidecar.tokens.broker import Broker
from sidecar.tokens.waiting import Tasks

_POLL_SECONDS = 0.05


class App:
    """A sidecar that serves; made and closed by `running`."""

    def __init__(self, listeners: Listeners, admin: Listener, tasks: Tasks) -> None:
        self._listeners = listeners
        self._admin = admin
        self._exec: Listener | None = None
        self._tasks = tasks
        self._retired: asyncio.Task[None] | None = None
        self._reloading = asyncio.Lock()
        self._around: Surroundings
        self._assembly: Assembly
        self.stopping = False
        self.refused = ""

    @property
    def settings(self) -> Settings:
        """The settings in effect."""
        return self._assembly.settings

    @property
    def brokers(self) -> dict[str, Broker]:
        """By upstream, the broker of a session that is there, else the first."""
        return self._assembly.brokers

    @property
    def pools(self) -> dict[str, tuple[Broker, ...]]:
        """The brokers of all sessions, by upstream."""
        return self._assembly.pools

    @property
    def destinations(self) -> dict[str, Destination]:
        """The upstreams, ready for use, by name."""
        return self._assembly.destinations

    @property
    def addresses(self) -> dict[str, str]:
        """The bound addresses: `proxy`, `admin`, and those of upstreams with a reverse port."""
        return {"admin": str(self._admin.address)} | self._listeners.addresses

    @property
    def busy(self) -> int:
        """How many requests and tunnels are under way."""
        return sum(listener.busy for listener in self._all())

    def own(self) -> list[tuple[str, int]]:
        """Return the addresses of our listeners, which no credential and no tunnel may reach."""
        addresses = [each.address for each in (self._admin, *self._all())]
        return [address for address in addresses if isinstance(address, HostPort)]

    def inherit(self, bound: socket.socket) -> None:
        """Use *bound* as the port of `exec`, which is that of all workers."""
        self._exec = Listener(bound)

    async def start(self, settings: Settings, around: Surroundings) -> None:
        """Serve *settings*."""
        self._around = around
        self._assembly = await assemble(settings, around)
        await self._listeners.serve(self._assembly)
        if self._exec is not None:
            await self._exec.serve(self._assembly.every)

    async def reload(self, settings: Settings, changed: Collection[Path] = ()) -> None:
        """Serve *settings* from now on; requests under way end as they began. *changed*: files with new content.

        Raises ConfigurationError when that cannot be, and everything stays as it is.
        """
        async with self._reloading:
            _check_fixed(self.settings, settings)
            fresh = bind(settings, self._listeners)
            try:
                after = await assemble(settings, self._around, self._assembly, changed)
            except BaseException:
                await fresh.aclose(but=self._listeners)
                raise
            before, self._assembly = self._assembly, after
            gone, self._listeners = self._listeners, fresh
            await self._listeners.serve(after)
            if self._exec is not None:
                self._exec.port = after.every
            self._retired = self._tasks.spawn(self._retire(before, gone, self._retired), "retirement")

    async def exec_port(self) -> str:
        """Return where commands of `exec` are served, with other hosts passed through; opened when first asked for."""
        if self._exec is None:
            self._exec = Listener(bind_socket(FREE_PORT, "exec"))
            await self._exec.serve(self._assembly.every)
        return str(self._exec.address)

    async def look(self) -> None:
        """Look at the store at once: another process says that there is something new."""
        await asyncio.gather(*(broker.recall() for pool in set(self.pools.values()) for broker in pool))

    async def drain(self, grace: float, clock: Clock, emit: Emit) -> None:
        """Take nothing new, let what is under way end within *grace* seconds, and no request wait to be retried."""
        self.stopping = True
        began, in_flight = clock.monotonic(), self.busy
        emit(Drain(ended=False, in_flight=in_flight, cut=0, seconds=0.0))
        self._assembly.stop()
        for listener in self._all():
            listener.drain()
        while self.busy and clock.monotonic() - began < grace:
            await clock.sleep(_POLL_SECONDS)
        emit(Drain(ended=True, in_flight=in_flight, cut=self.busy, seconds=clock.monotonic() - began))

    async def aclose(self) -> None:
        """Close listeners, then brokers and pools; a renewal under way is finished and stored."""
        for listener in self._all():
            await listener.aclose()
        if self._retired is not None:
            self._retired.cancel()
            await asyncio.wait({self._retired})
        await self._assembly.aclose()

    def _all(self) -> list[Listener]:
        return [*self._listeners.by_name.values(), *([self._exec] if self._exec else [])]

    async def _retire(self, before: Assembly, gone: Listeners, earlier: "asyncio.Task[None] | None") -> None:
        """Let the requests of *before* end, and those of every configuration before it, which may share its parts."""
        await gone.drain(but=self._listeners)
        if earlier is not None:
            await asyncio.wait({earlier})
        try:
            await before.retire()
        finally:
            await before.aclose()


def _check_fixed(before: Settings, after: Settings) -> None:
    """Raise ConfigurationError when something changed that only a restart can change."""
    fixed: dict[str, tuple[object, object]] = {
        "state_dir": (before.state_dir, after.state_dir),
        "store": (before.store, after.store),
        "workers": (before.workers, after.workers),
        "listen.admin": (before.listen.admin, after.listen.admin),
        "listen.admin_token": (before.listen.admin_token, after.listen.admin_token),
        "log": (before.log, after.log),
    }
    if before.workers != 1:  # their sockets are bound by another process
        fixed["listen"] = (before.served, after.served)
    for key, (old, new) in fixed.items():
        if old != new:
            raise ConfigurationError(f"{key} takes effect with a restart only; expected it unchanged in a reload")
