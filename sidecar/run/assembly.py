"""What one configuration is made into: destinations and the ports that lead to them. A reload makes the next one.

What has not changed is carried over, so that its tokens, connections and counters live on; what is left behind
is closed when the requests that use it have ended.
"""

import asyncio
import dataclasses
import ssl
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from sidecar.ca.trust import Trust
from sidecar.exchange.destination import Destination
from sidecar.exchange.exchange import Exchange, Watch
from sidecar.exchange.keepalive import keep_alive
from sidecar.exchange.mask import Mask
from sidecar.exchange.passthrough import Own, Passthrough
from sidecar.exchange.spool import Spool
from sidecar.policy.headers import without_credentials
from sidecar.policy.hosts import EVERY_HOST
from sidecar.policy.idleness import Use
from sidecar.policy.message import Request
from sidecar.policy.routing import Origin
from sidecar.proxy.port import Dispatch, Port
from sidecar.run.credentials import AT_ONCE, Credential, Shared, credentials, identifying, make_brokers
from sidecar.run.destinations import all_strips, looked_at, make_destination, use_of
from sidecar.run.gates import proxy_gate, reverse_gate
from sidecar.settings import ListenAddress, Settings, Tls, files_of, prime
from sidecar.tokens.broker import Broker
from sidecar.tokens.seal import EphemeralSeal

_LOOK_SECONDS = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What lives longer than any configuration.

    *own* tells our listeners, *identity* is our value of Auth-Sidecar-Hop, *in_flight* counts requests by upstream,
    *mask* knows what flows must not show. *watch*: looks at requests, which then keep what they carry.
    """

    shared: Shared
    own: Own
    identity: str
    in_flight: Counter[str]
    dispatch: Dispatch | None
    for_exec: bool
    mask: Mask = field(default_factory=Mask)
    watch: Watch | None = None


@dataclass(slots=True, kw_only=True)
class Assembly:
    """The parts of one configuration; *proxy*: as configured, *every*: for commands, with all other hosts passed."""

    settings: Settings
    number: int
    destinations: dict[str, Destination]
    trust: Trust
    proxy: Port
    every: Port
    kept: set[str] = field(default_factory=set)

    @property
    def brokers(self) -> dict[str, Broker]:
        """By upstream, the broker of a session that is there, else the first."""
        return {name: destination.broker for name, destination in self.destinations.items()}

    @property
    def pools(self) -> dict[str, tuple[Broker, ...]]:
        """The brokers of all sessions, by upstream."""
        return {name: destination.brokers for name, destination in self.destinations.items()}

    @property
    def busy(self) -> int:
        """How many requests are under way."""
        return self.proxy.exchange.busy + self.every.exchange.busy

    def reverse(self, name: str, address: ListenAddress) -> Port:
        """Return the reverse port of an upstream at its bound *address*."""
        origin = self.settings.upstreams[name].origin
        return dataclasses.replace(self.proxy, upstream=name, origin=origin, gate=reverse_gate(address, origin))

    def stop(self) -> None:
        """Let no request wait to be tried again."""
        for port in (self.proxy, self.every):
            port.exchange.stop()

    async def retire(self) -> None:
        """Wait for the requests under way, then close what no later configuration has carried over."""
        while self.busy:
            await self.proxy.clock.sleep(_LOOK_SECONDS)
        await self.aclose()

    async def aclose(self) -> None:
        """Close brokers and pools side by side, but those that were carried over; twice does no harm."""
        ours = [each for name, each in self.destinations.items() if name not in self.kept]
        await asyncio.gather(*(each.admission.aclose() for each in ours))
        await asyncio.gather(*(broker.aclose() for broker in _brokers(ours)))
        await asyncio.gather(*(each.pool.aclose() for each in ours))


async def assemble(
    settings: Settings, around: Surroundings, before: Assembly | None = None, changed: Collection[Path] = ()
) -> Assembly:
    """Return the parts for *settings*, brokers started; those of *before* are used where nothing has changed.

    *changed*: files whose content is another now. Raises ConfigurationError; *before* is as it was then.
    """
    number = before.number + 1 if before else 0
    # A lease is its owner's: brokers of two configurations must not take each other's for their own.
    owner = f"{around.shared.owner}.{number}" if number else around.shared.owner
    shared = dataclasses.replace(around.shared, owner=owner)
    destinations: dict[str, Destination] = {}
    uses: dict[str, Use] = {}
    contexts: dict[Tls, ssl.SSLContext] = {}
    kept: set[str] = set()
    try:
        await prime(identifying(settings))
        for credential in credentials(settings, shared.clock, shared.contexts):
            if before is not None and _is_kept(credential, settings, before, set(changed)):
                kept |= set(credential.names)
                destinations |= {name: before.destinations[name] for name in credential.names}
                continue
            brokers = make_brokers(credential, settings, shared)
            for name in credential.names:
                upstream = settings.upstreams[name]
                if (context := contexts.get(upstream.tls)) is None:
                    context = contexts[upstream.tls] = await shared.contexts.of(upstream.tls)
                bare = make_destination(name, upstream, credential, brokers, context, around.own, shared)
                destinations[name] = looked_at(
                    bare, None if around.dispatch is None else around.mask, alone=around.watch is not None
                )
                if (use := use_of(upstream, credential.systems[name])) is not None:
                    uses[name] = use
        destinations = {name: destinations[name] for name in settings.upstreams}
        lent = {name: destination.dialect.lends for name, destination in destinations.items()}
        trust = await _trust(settings, lent, shared, before)
        gate = proxy_gate(settings.listen)
    except BaseException:
        await _close(destinations, kept)
        raise
    origins = {name: destination.pool.origin for name, destination in destinations.items()}
    patterns = (EVERY_HOST,) if around.for_exec else settings.passthrough

    def passing(patterns: Collection[str]) -> Port:
        beside = Passthrough(patterns, origins=origins, own=around.own, emit=shared.emit)
        exchange = Exchange(
            destinations,
            beside=beside,
            identity=around.identity,
            clock=shared.clock,
            emit=shared.emit,
            in_flight=around.in_flight,
            watch=around.watch,
        )
        return Port(
            exchange=exchange,
            beside=beside,
            gate=gate,
            server_context=trust.context,
            limits=settings.limits,
            clock=shared.clock,
            emit=shared.emit,
            open_spool=lambda: Spool(settings.state_dir / "spool", EphemeralSeal()),
            show=_shown(destinations, dispatch=around.dispatch),
            mask=around.mask,
            dispatch=around.dispatch,
        )

    made = Assembly(
        settings=settings,
        number=number,
        destinations=destinations,
        trust=trust,
        proxy=passing(patterns),
        every=passing((EVERY_HOST,)),
    )
    await _start(_brokers(each for name, each in destinations.items() if name not in kept))
    for name, use in uses.items():
        for broker in (pool := destinations[name].brokers):
            alone = dataclasses.replace(destinations[name], brokers=(broker,) * len(pool))  # whatever turn it gets
            work = keep_alive(name, use, alone, made.proxy.exchange.rounds, shared.clock, shared.emit)
            broker.beside(work, "keepalive")
    if before is not None:
        before.kept |= kept
        for name, gone in before.destinations.items():
            if name not in kept:
                gone.admission.retire()
    return made


def _brokers(destinations: Iterable[Destination]) -> list[Broker]:
    """Return the brokers of *destinations*, each once."""
    return list(dict.fromkeys(broker for each in destinations for broker in each.brokers))


def _is_kept(credential: Credential, settings: Settings, before: Assembly, changed: set[Path]) -> bool:
    """Tell whether nothing has changed for any upstream that has *credential*, nor which those are."""
    upstreams = [settings.upstreams[name] for name in credential.names]
    if any(files_of(upstream) & changed for upstream in upstreams):
        return False
    if [before.settings.upstreams.get(name) for name in credential.names] != upstreams:
        return False
    ours = before.pools[credential.names[0]]
    return tuple(name for name, each in before.pools.items() if each is ours) == credential.names


async def _start(brokers: Iterable[Broker]) -> None:
    """Start *brokers*, a few at a time: each reads its record in the store, which takes no more commands at once."""
    waiting = iter(brokers)

    async def some() -> None:
        for broker in waiting:
            await broker.start()

    await asyncio.gather(*(some() for _ in range(AT_ONCE)))


async def _trust(
    settings: Settings, lent: Mapping[str, Iterable[Origin]], shared: Shared, before: Assembly | None
) -> Trust:
    hosts = frozenset(upstream.origin.host for upstream in settings.upstreams.values())
    hosts |= {origin.host for origins in lent.values() for origin in origins}
    if before is not None and hosts == before.trust.hosts:
        return before.trust
    trust = Trust(settings.state_dir / "ca", hosts, shared.clock, shared.emit)
    await asyncio.to_thread(trust.prepare)
    return trust


async def _close(destinations: dict[str, Destination], kept: Collection[str]) -> None:
    ours = [destination for name, destination in destinations.items() if name not in kept]
    for broker in _brokers(ours):
        await broker.aclose()
    for destination in ours:
        await destination.pool.aclose()


def _shown(destinations: dict[str, Destination], *, dispatch: Dispatch | None) -> Callable[[Request], Request]:
    """Return what takes out of a request what flows must not hold; nothing when nobody looks at flows."""
    if dispatch is None:
        return lambda request: request
    return partial(without_credentials, strips=all_strips(destinations))
