"""Several instances of two users' credentials under random faults: what must hold after every step.

The invariants of the design, and where each is held, below tests/:

| | invariant | held by |
|---|---|---|
| I1 | a credential goes to its own upstream only | unit/test_routing.py; wire: integration/test_connect.py |
| I2 | the upstream sees one credential, ours | test_messages.py; wire: integration/test_wire.py |
| I3 | a non-idempotent request is executed at most once | here (every request); wire: long/soak.py |
| I4 | one call of the issuer per generation; with the store down, one per instance | here |
| I5 | no refresh token is presented again once the issuer gave another for it | here (see `holds`) |
| I6 | one final answer before the deadline | here (every request); wire: integration/test_outliving.py |
| I7 | retries are bounded over any window | test_budget.py; wire: long/test_burst.py |
| I8 | the body is the upstream's, byte for byte | wire: integration/test_streaming.py, long/soak.py |
| I9 | memory is bounded | processes: integration/test_streaming.py, long/soak.py |
| I10 | service is back soon after a fault has ended | here (`all_is_well_again`); processes: long/soak.py |
| I11 | no secret in any output | here (events and status); the `outputs` fixture for processes |
| I12 | the generation in the store never decreases | here (every write) |
| I13 | through the proxy as without it | wire: e2e/test_clients.py, integration/test_wire.py |
| I14 | an open breaker lets probes through only, and is never stuck | test_breaker.py; wire: long/test_burst.py |
| I15 | who may have one session logs in under the lease, not while the one in the record lives | here (every login) |
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Collection
from pathlib import Path

import pytest
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

from sidecar.auth.grant import Anew
from sidecar.errors import SidecarError
from sidecar.events import Trouble
from sidecar.tokens.memory import MemoryStore
from sidecar.tokens.sqlite import SqliteStore
from sidecar.tokens.store import Stored, TokenStore
from tests.canary import WORD
from tests.properties.issuers import FAULTS, LOST, UPSTREAM_FAULTS
from tests.properties.virtual import VirtualClock
from tests.properties.world import WHOSE, Done, Instance, Part, World

MOST = 3
LOOK = 6.0
"""Seconds until an instance has looked at the store again, and at a secret that was refused."""
BACK = 12.0
"""Seconds that the longest backoff takes where there is no token, and more than a dead holder's lease lasts."""
AGAIN = 400.0
"""Seconds after which what needed a person is looked at again."""
LONGEST_PAUSE = 2400.0
"""Seconds that an issuer is left alone after what cannot be used."""
MIN_INTERVAL = 60.0
LONG = 3600.0
"""Seconds that a token may last whose end is not waited for."""
GRANTS = st.sampled_from(["password", "refresh_token", "session"])
NAMES = st.sampled_from(sorted(WHOSE))
MOMENTS = st.sampled_from([0.0, 0.003, 0.011, 0.05, 0.4, 1.0])
SPANS = st.sampled_from([0.5, 3.0, 11.0, 31.0, 61.0, 200.0, 700.0, 850.0, 3600.0])
LATENCIES = (0.0, 0.0, 0.001, 0.004, 0.02, 0.09)


class FleetMachine(RuleBasedStateMachine):
    """Instances come and go, everything around them breaks and heals, clients ask and leave."""

    world: World
    loses_data = True

    def backend(self, clock: VirtualClock, _: Path) -> TokenStore:
        return MemoryStore(clock)

    @initialize(
        seed=st.integers(0, 2**32),
        alice=GRANTS,
        bob=GRANTS,
        rotates=st.sampled_from(["revokes", "revokes", "grace", "no"]),
        gives_refresh=st.booleans(),
        eager=st.booleans(),
        lifetime=st.sampled_from([40.0, 900.0, 3600.0]),
    )
    def begin(
        self, seed: int, alice: str, bob: str, rotates: str, gives_refresh: bool, eager: bool, lifetime: float
    ) -> None:
        grants = {"alice": alice, "bob": bob}
        world = self.world = World(
            seed, grants, backend=self.backend, eager=eager, rotates=rotates, min_interval=MIN_INTERVAL
        )
        world.authority.gives_refresh, world.authority.lifetime = gives_refresh, lifetime
        for part in (world.weather, world.authority, world.api):
            part.latency = lambda: world.chance.choice(LATENCIES)  # type: ignore[attr-defined]
        self.requests: list[asyncio.Task[Done]] = []
        self.backup: dict[str, Stored] = {}
        self.store_was_well = self.nobody_died = self.clocks_agreed = self.answers_came = True
        self.nobody_insisted = self.nothing_was_changed = self.issuer_was_well = True
        self.issuer_was_odd = False
        world.start()
        world.start()

    def teardown(self) -> None:
        if hasattr(self, "world") and self.world.instances:
            try:
                self.all_is_well_again()
                self.holds()
            finally:
                self.world.end()

    def instance(self, number: int) -> Instance:
        living = list(self.world.instances.values())
        return living[number % len(living)]

    # --- what happens -------------------------------------------------------------------------------------------

    @rule(span=SPANS)
    def time_passes(self, span: float) -> None:
        self.world.advance(span)

    @rule(
        number=st.integers(0, MOST),
        name=NAMES,
        how_many=st.integers(1, 5),
        method=st.sampled_from(["GET", "POST"]),
        patience=st.sampled_from([0.5, 5.0, 60.0]),
        leaving=st.integers(0, 5),
        after=MOMENTS,
    )
    def clients_ask(
        self, number: int, name: str, how_many: int, method: str, patience: float, leaving: int, after: float
    ) -> None:
        """Some of them leave after a moment."""
        instance = self.instance(number)
        made = [self.world.request(instance, method, patience, name) for _ in range(how_many)]
        self.world.advance(after)
        for task in made[:leaving]:
            task.cancel()
        self.requests += made[leaving:]

    @rule(fault=st.sampled_from(FAULTS))
    def issuer_changes(self, fault: str) -> None:
        self.world.authority.fault = fault
        self.answers_came &= fault not in LOST
        self.issuer_was_well &= fault in ("none", "slow")
        self.issuer_was_odd |= fault in ("misplaced", "over")

    @rule(fault=st.sampled_from(["none", "down", "silent", "slow", "half", "frozen"]))
    def store_changes(self, fault: str) -> None:
        self.world.set_weather(fault)
        self.store_was_well &= fault == "none"

    @rule(number=st.integers(0, MOST))
    def one_is_cut_off_from_the_store(self, number: int) -> None:
        view = self.instance(number).view
        view.cut = not view.cut
        self.store_was_well = False

    @precondition(lambda self: self.loses_data)
    @rule(how=st.sampled_from(["backup", "restore", "wipe", "damage", "renumber", "foreign"]))
    def store_loses_data(self, how: str) -> None:
        world = self.world
        if how == "backup":
            self.backup = world.snapshot()
            return
        self.store_was_well = False
        match how:
            case "restore":
                world.roll_back(self.backup)
            case "wipe":
                world.wipe()
            case "damage":
                world.damage(0)
            case "renumber":
                world.damage(1)
            case _:
                world.seal_with_a_foreign_key()

    @rule(fault=st.sampled_from(UPSTREAM_FAULTS), retry_after=st.sampled_from([None, 1.0, 60.0]))
    def upstream_changes(self, fault: str, retry_after: float | None) -> None:
        self.world.api.fault, self.world.api.retry_after = fault, retry_after
        self.world.may_evict |= fault == "always_401"

    @rule()
    def upstream_revokes_tokens(self) -> None:
        self.world.authority.revoke()

    @rule(number=st.integers(0, MOST), name=NAMES, revoke=st.booleans(), busy=st.booleans(), after=MOMENTS)
    def operator_acts(self, number: int, name: str, revoke: bool, busy: bool, after: float) -> None:
        """Here, *busy*: while another instance renews because a client asked for it."""
        instance = self.instance(number)
        part = instance.parts[name]
        if busy:
            self.world.authority.revoke()
            self.requests += [self.world.request(self.instance(number + 1), upstream=name)]
            self.world.advance(after)
        self.nobody_insisted = False
        work: Awaitable[object] = self.world.drop(part) if revoke else part.broker.renew()
        self.world.insisted |= not revoke
        self.world.may_evict = True
        self.world.spawn(instance, _quietly(work))
        self.world.advance(after)

    @precondition(lambda self: len(self.world.instances) > 1)
    @rule(number=st.integers(0, MOST), name=NAMES, after=MOMENTS, asks=st.booleans(), in_a_call=st.booleans())
    def one_is_killed(self, number: int, name: str, after: float, asks: bool, in_a_call: bool) -> None:
        """At any await: in the middle of whatever a request set off."""
        instance = self.instance(number)
        if in_a_call:
            self.world.authority.revoke()
        if asks or in_a_call:
            self.world.request(instance, upstream=name)
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
    @rule(again=st.booleans())
    def one_is_started(self, again: bool) -> None:
        """On a new machine, or *again* on one that had an instance before."""
        homeless = self.world.homeless
        self.world.start(homeless[0] if again and homeless else None)

    @rule(number=st.integers(0, MOST), jump=st.sampled_from([-3600.0, -90.0, 90.0, 3600.0]))
    def a_clock_jumps(self, number: int, jump: float) -> None:
        self.instance(number).clock.skew += jump
        self.clocks_agreed = False

    @rule(what=st.sampled_from(["client-secret", "alice-password", "bob-password", "client_auth", "scope"]))
    def settings_are_edited(self, what: str) -> None:
        """Who reads them, and when, is another matter."""
        self.nothing_was_changed = False
        self.world.may_evict = True  # another scope is another record, of the same account
        if what in ("client_auth", "scope"):
            self.world.change_settings(what)
        else:
            self.world.edit(what)

    @rule(user=st.sampled_from(["alice", "bob"]))
    def user_logs_in_anew(self, user: str) -> None:
        self.nothing_was_changed = False
        self.world.log_in(user)

    @rule(number=st.integers(0, MOST), after=MOMENTS)
    def one_reads_its_settings(self, number: int, after: float) -> None:
        self.world.reload(self.instance(number))
        self.world.advance(after)

    @rule(number=st.integers(0, MOST), lags=st.booleans())
    def a_store_key_is_added(self, number: int, lags: bool) -> None:
        """And comes to all; or to one, whose records are foreign to the others then."""
        self.world.add_key()
        self.store_was_well &= not lags
        for instance in [self.instance(number)] if lags else self.world.instances.values():
            self.world.bring_keys(instance)

    @rule(number=st.integers(0, MOST))
    def keys_come_to_one(self, number: int) -> None:
        self.world.bring_keys(self.instance(number))

    @rule()
    def all_is_well_again(self) -> None:
        """I10: when the last fault has ended, every instance serves again, and waits for nobody.

        A person is needed only for a refresh token that nobody knows to be unused: an instance ended while it
        presented one, or alone knew the newest; an operator had it dropped; or the issuer said no.
        """
        world = self.world
        world.authority.fault = world.api.fault = "none"
        world.set_weather("none")
        for instance in list(world.instances.values()):
            instance.view.cut = False
            world.bring_keys(instance)
        self.all_read_their_settings()
        world.advance(LOOK)
        done = self.all_go_on()
        if not _served(done) and self.nobody_died and self.store_was_well and self.issuer_was_well:
            assert not self.without_reason(done), f"I10: {done}"
        if not _served(done):
            self.nothing_was_changed = False
            world.edit("client-secret")  # a refusal may be on its way still
            self.all_read_their_settings()
            for pause in (BACK, AGAIN, LONGEST_PAUSE if self.issuer_was_odd else 0.0):
                world.advance(pause)
                if _served(done := self.all_go_on()):
                    break
        if not _served(done):
            assert not self.without_reason(done), f"I10: {done}"
            for user in world.users:
                world.log_in(user)
            self.all_read_their_settings()
            world.advance(LOOK)
            done = self.all_go_on()
        assert _served(done), f"I10: {done}"
        self.issuer_was_well, self.issuer_was_odd = True, False

    def all_read_their_settings(self) -> None:
        for instance in list(self.world.instances.values()):
            self.world.reload(instance)

    def all_go_on(self) -> dict[tuple[str, str], Done]:
        """Ask now, and when the token is another one; return those who are not served, or the answers at the end.

        A 401 may be passed on at first: of two tokens that were got apart both were revoked, or a renewal was forced
        just now.
        """
        done = self.all_ask(BACK)
        if _served(done, {200, 401}):
            lifetime = self.world.authority.lifetime
            self.world.advance(MIN_INTERVAL + (lifetime if lifetime < LONG else 0.0))
            done = self.all_ask(5.0)
        return done

    def without_reason(self, done: dict[tuple[str, str], Done]) -> list[tuple[str, str]]:
        """Return who is not served, by instance and upstream, and needs no person by what we know."""
        return [
            (owner, name)
            for (owner, name), each in done.items()
            if not _served({(owner, name): each}, {200, 401})
            and not self.needs_a_person(self.world.instances[owner].parts[name])
        ]

    def needs_a_person(self, part: Part) -> bool:
        world = self.world
        if part.port.anew is not Anew.ONCE:
            return False
        return part.key in world.in_doubt or part.key in world.was_dropped or part.port.user in world.authority.denied

    def all_ask(self, patience: float) -> dict[tuple[str, str], Done]:
        world = self.world
        tasks = {
            (owner, name): world.request(instance, patience=patience, upstream=name)
            for owner, instance in world.instances.items()
            for name in WHOSE
        }
        world.advance(patience + 1.0)
        return {which: task.result() for which, task in tasks.items()}

    # --- what holds ---------------------------------------------------------------------------------------------

    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "requests"):
            return
        world, authority = self.world, self.world.authority
        assert not world.broken, world.broken
        assert world.api.foreign == 0
        # I4
        parts = [part for instance in world.instances.values() for part in instance.each]
        assert all(part.port.most_in_flight <= 1 for part in parts)
        quiet = self.store_was_well and self.nobody_died and self.clocks_agreed
        if quiet and self.nothing_was_changed:
            assert authority.most_in_flight <= 1
            renewed = [(event.upstream, event.generation) for event in world.renewals("ok")]
            assert len(renewed) == len(set(renewed))
        self.no_reuse()
        if quiet and self.issuer_was_well and self.answers_came and self.nobody_insisted and self.nothing_was_changed:
            assert world.stuck() == []
        if self.clocks_agreed:
            assert world.api.expired == 0
        # I11
        assert WORD not in repr(world.events)
        assert WORD not in repr([part.broker.status() for part in parts])
        bugs = [event for event in world.events if isinstance(event, Trouble) and "internal error" in event.detail]
        assert bugs == []
        for task in [task for task in self.requests if task.done()]:
            self.requests.remove(task)
            if not task.cancelled():
                task.result()

    def no_reuse(self) -> None:
        """I5, and RFC 9700 section 4.14: an issuer that rotates sees each refresh token once.

        But for one whose answer was lost while the process that had asked lived: that is presented once more, at once
        (FAPI 2.0 has issuers take it), and, where it is all there is, again later. But for an operator who insists. And
        not where the store lost data: whoever had not seen the newest generation cannot know, who had never presents
        what it replaced (`World._presenting`).
        """
        world = self.world
        if not (world.insisted or world.lost_data):
            reuses = [reuse for reuse in world.authority.reuses if not reuse.lost]
            assert not reuses, reuses


class SqliteFleetMachine(FleetMachine):
    """The same on a file that the instances of one machine share; its calls run on a thread."""

    loses_data = False

    def backend(self, clock: VirtualClock, folder: Path) -> TokenStore:
        return SqliteStore(folder, clock=clock)


def _served(done: dict[tuple[str, str], Done], statuses: Collection[int] = (200,)) -> bool:
    return all(each.status in statuses for each in done.values())


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
    world = World(1)
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


def test_a_new_first_refresh_token_is_not_presented_for_the_login_before() -> None:
    """Its file is another when its instance asks, and the settings are read a moment later."""
    world = World(1, {"alice": "refresh_token"})
    world.authority.fault = "down"
    instance = world.start()
    try:
        world.log_in("alice")
        world.authority.fault = "none"
        world.advance(BACK)
        world.reload(instance)
        world.advance(BACK)
        assert (world.broken, world.authority.reuses) == ([], [])
        assert instance.broker.current() is not None
    finally:
        world.end()


def test_a_revocation_that_fails_does_not_lead_back_to_the_first_refresh_token() -> None:
    """The store could not be told: what is kept there still counts when it is back."""
    world = World(1, {"alice": "refresh_token"})
    instance = world.start()
    try:
        world.advance(1.0)
        world.set_weather("silent")
        world.run(_quietly(world.drop(instance.parts["plm"])))
        world.set_weather("none")
        world.advance(BACK)
        assert (world.broken, world.authority.reuses) == ([], [])
        assert instance.broker.current() is not None
    finally:
        world.end()


@pytest.mark.parametrize("renews", [True, False])
def test_a_machine_that_has_seen_a_successor_knows_it_after_a_restart(renews: bool) -> None:
    """Whether its instance renewed, or only looked; the store comes back empty, and who lives fills it again."""
    world = World(1, {"alice": "refresh_token"})
    first, second = world.start(), world.start()
    try:
        world.advance(LOOK)
        gone = first if renews else second
        world.kill(gone)
        world.wipe()
        world.start(gone.machine)
        world.advance(3 * BACK)
        assert (world.broken, world.authority.reuses) == ([], [])
        assert all(instance.broker.current() is not None for instance in world.instances.values())
    finally:
        world.end()


@pytest.mark.parametrize("fault", ["down", "broken"])
def test_a_record_that_was_begun_anew_is_not_taken_for_the_newest(fault: str) -> None:
    """An emptied store, a new machine that was told nothing of the login, and one that has its newest refresh token."""
    world = World(1, {"alice": "refresh_token"})
    world.authority.lifetime = 40.0
    first = world.start()
    try:
        world.advance(LOOK)
        first.view.cut = True
        world.wipe()
        world.authority.fault = fault
        world.start()
        world.advance(2 * AGAIN)
        world.authority.fault = "none"
        first.view.cut = False
        world.kill(list(world.instances.values())[1])
        world.advance(2 * BACK)
        assert (world.broken, world.authority.reuses) == ([], [])
        assert first.broker.current() is not None
    finally:
        world.end()


def test_a_token_whose_revocation_failed_is_not_handed_out_here_again() -> None:
    """Not even when the store comes back empty, and is told what else is known."""
    world = World(1, {"alice": "refresh_token"})
    instance = world.start()
    try:
        world.advance(1.0)
        dropped = instance.broker.current()
        world.set_weather("silent")
        world.run(_quietly(world.drop(instance.parts["plm"])))
        world.wipe()
        world.set_weather("none")
        world.authority.fault = "down"
        world.advance(LOOK)
        assert dropped is not None
        assert instance.broker.current() is None
    finally:
        world.end()
