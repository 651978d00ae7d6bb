"""Several instances of one credential under random faults: what must hold after every step, whatever came before.

The invariants of the design, and where each is held, below tests/:

| | invariant | held by |
|---|---|---|
| I1 | a credential goes to its own upstream only | unit/test_routing.py; wire: integration/test_connect.py |
| I2 | the upstream sees one credential, ours | test_messages.py; wire: integration/test_wire.py |
| I3 | a non-idempotent request is executed at most once | here (every request); wire: long/soak.py |
| I4 | one call of the issuer per generation; with the store down, one per instance | here |
| I5 | no refresh token is presented after its successor was stored | here |
| I6 | one final answer before the deadline | here (every request); wire: integration/test_outliving.py |
| I7 | retries are bounded over any window | test_budget.py; wire: long/test_burst.py |
| I8 | the body is the upstream's, byte for byte | wire: integration/test_streaming.py, long/soak.py |
| I9 | memory is bounded | processes: integration/test_streaming.py, long/soak.py |
| I10 | service is back soon after a fault has ended | here (`all_is_well_again`); processes: long/soak.py |
| I11 | no secret in any output | here (events and status); the `outputs` fixture for processes |
| I12 | the generation in the store never decreases | here (every write) |
| I13 | through the proxy as without it | wire: e2e/test_clients.py, integration/test_wire.py |
| I14 | an open breaker lets probes through only, and is never stuck | test_breaker.py; wire: long/test_burst.py |
"""

import asyncio
import contextlib
from collections.abc import Awaitable
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from sidecar.errors import SidecarError
from sidecar.events import Trouble
from sidecar.tokens.memory import MemoryStore
from sidecar.tokens.sqlite import SqliteStore
from sidecar.tokens.store import TokenStore
from tests.canary import WORD
from tests.properties.issuers import FAULTS, FIRST, UPSTREAM_FAULTS
from tests.properties.virtual import VirtualClock
from tests.properties.world import Done, Instance, World, upstream_settings

MOST = 3
LOOK = 6.0
"""Seconds until an instance has looked at the store again, and at a secret that was refused."""
BACK = 12.0
"""Seconds that the longest backoff takes where there is no token, and more than a dead holder's lease lasts."""
SETTINGS = upstream_settings(min_interval="60s")
MOMENTS = st.sampled_from([0.0, 0.003, 0.011, 0.05, 0.4, 1.0])
SPANS = st.sampled_from([0.5, 3.0, 11.0, 31.0, 61.0, 200.0, 700.0, 850.0, 3600.0])
LATENCIES = (0.0, 0.0, 0.001, 0.004, 0.02, 0.09)


class FleetMachine(RuleBasedStateMachine):
    """Instances come and go, everything around them breaks and heals, clients ask and leave."""

    world: World
    loses_data = True

    def backend(self, clock: VirtualClock) -> TokenStore:
        return MemoryStore(clock)

    @initialize(
        seed=st.integers(0, 2**32),
        anew=st.booleans(),
        rotates=st.booleans(),
        eager=st.booleans(),
        lifetime=st.sampled_from([40.0, 900.0, 3600.0]),
    )
    def begin(self, seed: int, anew: bool, rotates: bool, eager: bool, lifetime: float) -> None:
        self.folder = TemporaryDirectory(prefix="fleet-")
        world = self.world = World(seed, SETTINGS, backend=self.backend, eager=eager)
        world.authority.anew, world.authority.rotates, world.authority.lifetime = anew, rotates, lifetime
        for part in (world.weather, world.authority, world.api):
            part.latency = lambda: world.chance.choice(LATENCIES)  # type: ignore[attr-defined]
        self.requests: list[asyncio.Task[Done]] = []
        self.backup: dict[str, tuple[int, bytes]] = {}
        self.store_was_well = self.nobody_died = self.clocks_agreed = self.answers_came = True
        world.start()
        world.start()

    def teardown(self) -> None:
        if hasattr(self, "world") and self.world.instances:
            try:
                self.all_is_well_again()
                self.holds()
            finally:
                self.world.end()
                self.folder.cleanup()

    def instance(self, number: int) -> Instance:
        living = list(self.world.instances.values())
        return living[number % len(living)]

    # --- what happens -------------------------------------------------------------------------------------------

    @rule(span=SPANS)
    def time_passes(self, span: float) -> None:
        self.world.advance(span)

    @rule(
        number=st.integers(0, MOST),
        how_many=st.integers(1, 5),
        method=st.sampled_from(["GET", "POST"]),
        patience=st.sampled_from([0.5, 5.0, 60.0]),
        leaving=st.integers(0, 5),
        after=MOMENTS,
    )
    def clients_ask(self, number: int, how_many: int, method: str, patience: float, leaving: int, after: float) -> None:
        """Some of them leave after a moment."""
        instance = self.instance(number)
        made = [self.world.request(instance, method, patience) for _ in range(how_many)]
        self.world.advance(after)
        for task in made[:leaving]:
            task.cancel()
        self.requests += made[leaving:]

    @rule(fault=st.sampled_from(FAULTS))
    def issuer_changes(self, fault: str) -> None:
        self.world.authority.fault = fault
        self.answers_came &= fault not in ("lost", "broken", "hangs", "over", "crashes")

    @rule(fault=st.sampled_from(["none", "down", "silent", "slow", "half"]))
    def store_changes(self, fault: str) -> None:
        self.world.weather.fault = fault
        self.store_was_well &= fault == "none"

    @rule(number=st.integers(0, MOST))
    def one_is_cut_off_from_the_store(self, number: int) -> None:
        view = self.instance(number).view
        view.cut = not view.cut
        self.store_was_well = False

    @precondition(lambda self: self.loses_data)
    @rule(how=st.sampled_from(["backup", "restore", "wipe", "damage"]))
    def store_loses_data(self, how: str) -> None:
        if how == "backup":
            self.backup = self.world.snapshot()
            return
        self.store_was_well = False
        if how == "restore":
            self.world.roll_back(self.backup)
        elif how == "wipe":
            self.world.wipe()
        else:
            self.world.damage()

    @rule(fault=st.sampled_from(UPSTREAM_FAULTS), retry_after=st.sampled_from([None, 1.0, 60.0]))
    def upstream_changes(self, fault: str, retry_after: float | None) -> None:
        self.world.api.fault, self.world.api.retry_after = fault, retry_after

    @rule()
    def upstream_revokes_tokens(self) -> None:
        self.world.authority.revoke()

    @rule(number=st.integers(0, MOST), revoke=st.booleans(), after=MOMENTS)
    def operator_acts(self, number: int, revoke: bool, after: float) -> None:
        broker = self.instance(number).broker
        self.answers_came &= not revoke  # a renewal under way is given up
        work: Awaitable[object] = broker.revoke() if revoke else broker.renew()
        task = self.world.loop.create_task(_quietly(work))
        self.instance(number).requests.add(task)
        self.world.advance(after)

    @precondition(lambda self: len(self.world.instances) > 1)
    @rule(number=st.integers(0, MOST), after=MOMENTS, asks=st.booleans())
    def one_is_killed(self, number: int, after: float, asks: bool) -> None:
        """At any await: in the middle of whatever a request set off."""
        instance = self.instance(number)
        if asks:
            self.world.request(instance)
        self.world.advance(after)
        self.world.kill(instance)
        self.nobody_died = False

    @precondition(lambda self: len(self.world.instances) > 1)
    @rule(number=st.integers(0, MOST))
    def one_is_stopped(self, number: int) -> None:
        self.world.stop(self.instance(number))
        # A renewal that takes longer than an issuer may is given up.
        self.nobody_died = False

    @precondition(lambda self: len(self.world.instances) < MOST)
    @rule()
    def one_is_started(self) -> None:
        self.world.start()

    @rule(number=st.integers(0, MOST), jump=st.sampled_from([-3600.0, -90.0, 90.0, 3600.0]))
    def a_clock_jumps(self, number: int, jump: float) -> None:
        self.instance(number).clock.skew += jump
        self.clocks_agreed = False

    @rule()
    def all_is_well_again(self) -> None:
        """I10: when the last fault has ended, every instance serves again, and waits for nobody."""
        world = self.world
        world.authority.fault = world.weather.fault = world.api.fault = "none"
        for instance in world.instances.values():
            instance.view.cut = False
        self.owner_has_a_new_secret()  # a refusal may be on its way still
        done = self.all_ask_soon()
        if not world.authority.anew and not _served(done, {200, 401}):
            # What came after the owner's refresh token is lost, or in doubt: an operator has it dropped, where most
            # is known of it.
            self.owner_has_a_new_secret()
            newest = max(world.instances.values(), key=lambda one: one.broker.status().generation)
            world.run(newest.broker.revoke())
            done = self.all_ask_soon()
        # A 401 may be passed on: of two tokens that were got apart both were revoked, or a renewal was forced just now.
        assert _served(done, {200, 401}), f"I10: {done}"
        world.advance(SETTINGS.renew.min_interval)
        done = self.all_ask(5.0)
        assert _served(done, {200}), f"I10: {done}"

    def owner_has_a_new_secret(self) -> None:
        self.world.authority.secret += "x"
        self.world.authority.live_refresh.add(FIRST)

    def all_ask_soon(self) -> list[Done]:
        """Ask, and once more after the longest backoff: a credential that was refused is not waited for."""
        self.world.advance(LOOK)
        done = self.all_ask(BACK)
        return done if _served(done, {200, 401}) else self.all_ask(BACK)

    def all_ask(self, patience: float) -> list[Done]:
        tasks = [self.world.request(instance, patience=patience) for instance in self.world.instances.values()]
        self.world.advance(patience + 1.0)
        return [task.result() for task in tasks]

    # --- what holds ---------------------------------------------------------------------------------------------

    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "requests"):
            return
        world, authority = self.world, self.world.authority
        assert not world.broken
        # I4
        assert all(instance.port.most_in_flight <= 1 for instance in world.instances.values())
        if self.store_was_well and self.nobody_died and self.clocks_agreed:
            assert authority.most_in_flight <= 1
            generations = [event.generation for event in world.renewals("ok")]
            assert len(generations) == len(set(generations))
        # I5, and RFC 9700 section 4.14: an issuer that rotates sees each refresh token once.
        if authority.anew and not world.store_lost_data:
            assert authority.refused == 0
        if self.store_was_well and self.nobody_died and self.answers_came and self.clocks_agreed:
            assert authority.refused == 0
        if self.clocks_agreed:
            assert world.api.expired == 0
        # I11
        assert WORD not in repr(world.events)
        assert WORD not in repr([instance.broker.status() for instance in world.instances.values()])
        bugs = [event for event in world.events if isinstance(event, Trouble) and "internal error" in event.detail]
        assert bugs == []
        for task in [task for task in self.requests if task.done()]:
            self.requests.remove(task)
            if not task.cancelled():
                task.result()


class SqliteFleetMachine(FleetMachine):
    """The same on a file that the instances of one machine share; its calls run on a thread."""

    loses_data = False

    def backend(self, clock: VirtualClock) -> TokenStore:
        return SqliteStore(Path(self.folder.name), clock=clock)


def _served(done: list[Done], statuses: set[int]) -> bool:
    return all(each.status in statuses for each in done)


async def _quietly(work: Awaitable[object]) -> None:
    """Do what an operator asked for; that it fails in bad weather is no news."""
    with contextlib.suppress(SidecarError):
        await work


def check_machine(machine: type[FleetMachine], *, examples: int, steps: int, derandomize: bool = True) -> None:
    """Run *machine*, the same every time if *derandomize*.

    A failure prints its steps, which are Python. They are not made fewer, which would take minutes.
    """
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=derandomize,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.generate,),
            report_multiple_bugs=False,
        ),
    )


def test_invariants_hold_after_every_step() -> None:
    """Two or three instances on one store, in any order of faults and calls."""
    check_machine(FleetMachine, examples=60, steps=40)


def test_invariants_hold_on_a_file_too() -> None:
    """The embedded store, whose calls run on a thread and meet each other's locks."""
    check_machine(SqliteFleetMachine, examples=10, steps=25)


def test_an_empty_store_does_not_keep_a_token_that_is_over_from_being_renewed() -> None:
    """An issuer that was down for longer than a token lasts, and a store that came back empty meanwhile."""
    world = World(1, upstream_settings())
    world.authority.lifetime = 60.0
    instance = world.start()
    try:
        world.advance(10.0)
        world.authority.fault = "down"
        world.advance(120.0)
        world.wipe()
        world.authority.fault = "none"
        world.advance(60.0)
        assert instance.broker.current() is not None
    finally:
        world.end()
