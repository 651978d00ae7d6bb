"""The broker: when tokens are renewed, who waits for what, and what a failure of any part means for the others.

The issuer and the clock are fakes at their ports; stores and seals are real. Every test runs with the stock task
factory and with the eager one, which runs a new task to its first await inside `create_task`.
"""

import asyncio
import heapq
import math
from collections import deque
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass, field, replace
from itertools import count, pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.auth.oauth2 import Grant
from sidecar.clock import Clock, SystemClock
from sidecar.errors import (
    ConfigurationError,
    CredentialRejected,
    IssuerUnavailable,
    Reason,
    Refusal,
    SidecarError,
    StoreError,
)
from sidecar.events import Event, LifetimeDiffers, Renewal, StoreTrouble, Trouble
from sidecar.secret import Secret
from sidecar.settings import Renew
from sidecar.tokens.broker import Broker, Issuer
from sidecar.tokens.difference import likely_cause
from sidecar.tokens.holding import Held
from sidecar.tokens.seal import Keys
from sidecar.tokens.renewal import backoff
from sidecar.tokens.seal import KeyRing, new_key
from sidecar.tokens.store import TokenStore, store_key
from sidecar.tokens.memory import MemoryStore
from sidecar.tokens.sqlite import SqliteStore
from sidecar.tokens.token import Revoked, Token
from tests.canary import WORD, canary, leaks

IDENTITY = canary("client-id")
KEY = store_key(IDENTITY)
LIFETIME, DUE, USABLE = 100.0, 85.0, 95.0  # by a margin of 20 %, jitter 0.5, and min(5 s, 5 %)
WALL = 1_700_000_000.0


async def settle() -> None:
    """Let every task run until it waits for the clock, the issuer or a thread."""
    for _ in range(30):
        await asyncio.sleep(0)


LEASE_SIGN = 3.0
TURN = 1.0


class FakeClock:
    """A clock that stands still until it is told to advance; wakes sleepers in their order."""

    def __init__(self) -> None:
        self.mono, self.wall = 1000.0, WALL
        self.jitters = 0
        self.chance = 0.5
        self._free = False
        self._order = count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def monotonic(self) -> float:
        return self.mono

    def now(self) -> float:
        return self.wall

    def jitter(self) -> float:
        self.jitters += 1
        return self.chance

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0 or self._free:
            await asyncio.sleep(0)
            return
        future = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.mono + seconds, next(self._order), future))
        await future

    def sleeping(self) -> list[float]:
        """Return how long each sleeper has still to sleep."""
        return sorted(when - self.mono for when, _, future in self._sleepers if not future.done())

    async def advance(self, seconds: float) -> None:
        await settle()
        end = self.mono + seconds
        while self._sleepers and self._sleepers[0][0] <= end:
            when, _, future = heapq.heappop(self._sleepers)
            self._pass(max(0.0, when - self.mono))
            if not future.done():
                future.set_result(None)
                await settle()
        self._pass(end - self.mono)
        await settle()

    def release(self) -> None:
        """Let nobody sleep any more, so that what ends after a failed test does not wait for ever."""
        self._free = True
        for _, _, future in self._sleepers:
            if not future.done():
                future.set_result(None)

    def _pass(self, seconds: float) -> None:
        self.mono += seconds
        self.wall += seconds


class FakeIssuer:
    """An issuer that grants `access-1`, `access-2`... unless told otherwise; waits while `gate` is shut."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.calls: list[str | None] = []
        self.at: list[float] = []
        self.answers: deque[Exception | dict[str, object]] = deque()
        self.default: Exception | dict[str, object] = {}
        self.gate = asyncio.Event()
        self.gate.set()
        self.secret = "secret-1"
        self.starts_anew = True
        self.unreadable = False
        self.looks = 0
        self.in_flight = 0
        self.most_in_flight = 0
        self.closed = 0

    async def obtain(self, refresh_token: Secret | None) -> Grant:
        self.calls.append(refresh_token.reveal() if refresh_token else None)
        self.at.append(self.clock.mono)
        number, requested_at = len(self.calls), self.clock.wall
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await self.gate.wait()
        finally:
            self.in_flight -= 1
        answer = self.answers.popleft() if self.answers else self.default
        if isinstance(answer, Exception):
            raise answer
        grant = Grant(
            access_token=Secret(canary(f"access-{number}")),
            lifetime=LIFETIME,
            requested_at=requested_at,
            lifetime_source="expires_in",
            grant="client_credentials",
            scope=None,
            refresh_token=None,
        )
        return replace(grant, **answer)  # type: ignore[arg-type]

    def identity(self) -> str:
        return IDENTITY

    def fingerprint(self) -> str:
        self.looks += 1
        if self.unreadable:
            raise ConfigurationError("secret file is missing")
        return self.secret

    def presentation(self, token: Secret) -> tuple[bytes, bytes]:
        return b"Authorization", b"Bearer " + token.reveal().encode()

    async def aclose(self) -> None:
        self.closed += 1


@dataclass
class Rig:
    """A broker's neighbours, and the brokers made of them."""

    clock: FakeClock = field(default_factory=FakeClock)
    ring: KeyRing = field(default_factory=lambda: KeyRing([Secret(new_key())]))
    store: TokenStore = field(default_factory=MemoryStore)
    events: list[Event] = field(default_factory=list)
    brokers: list[Broker] = field(default_factory=list)
    tasks: set[asyncio.Task[object]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.issuer = FakeIssuer(self.clock)
        clock: Clock = self.clock
        self.store = MemoryStore(clock)

    def broker(
        self, *, configured_lifetime: float | None = None, turns: asyncio.Semaphore | None = None, **settings: object
    ) -> Broker:
        """Make a broker; *settings* are keys of `renew`."""
        clock: Clock = self.clock
        issuer: Issuer = self.issuer
        made = Broker(
            "plm",
            issuer,
            self.store,
            Keys(lambda: self.ring, clock),
            Renew.model_validate(settings),
            owner=f"test/{len(self.brokers) + 1}",
            clock=clock,
            emit=self.events.append,
            configured_lifetime=configured_lifetime,
            turns=turns,
        )
        self.brokers.append(made)
        return made

    async def started(self, *, configured_lifetime: float | None = None, **settings: object) -> Broker:
        """Make a broker that has its first token."""
        made = self.broker(configured_lifetime=configured_lifetime, **settings)
        await made.start()
        await settle()
        assert made.current() is not None
        return made

    def later[T](self, work: Awaitable[T]) -> asyncio.Task[T]:
        """Do *work* in a task, as a request does."""

        async def run() -> T:
            return await work

        task = asyncio.create_task(run())
        self.tasks.add(task)
        return task

    def after(self, seconds: float) -> float:
        """Return the deadline so many seconds from now."""
        return self.clock.mono + seconds

    async def put(self, token: Token, *, generation: int | None = None) -> None:
        """Store *token* as another process would."""
        await self.store.write(KEY, generation or token.generation, self.ring.seal(KEY, token.encode()))

    async def stored(self) -> Token:
        """Return the token in the store."""
        record = await self.store.read(KEY)
        assert record is not None
        token = Token.decode(self.ring.open(KEY, record[1]))
        assert isinstance(token, Token)
        assert token.generation == record[0]
        return token

    async def revoked(self) -> int:
        """Return the generation of the mark in the store that says revoked."""
        record = await self.store.read(KEY)
        assert record is not None
        found = Token.decode(self.ring.open(KEY, record[1]))
        assert found == Revoked(record[0])
        return found.generation

    def renewals(self) -> list[Renewal]:
        return [event for event in self.events if isinstance(event, Renewal)]

    def troubles(self) -> list[Trouble]:
        return [event for event in self.events if isinstance(event, Trouble)]


@pytest.fixture(params=["stock", "eager"])
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    loop = asyncio.get_running_loop()
    if request.param == "eager":
        loop.set_task_factory(asyncio.eager_task_factory)
    made = Rig()
    yield made
    made.issuer.gate.set()
    made.clock.release()
    for broker in made.brokers:
        await broker.aclose()
        assert not broker._tasks._running
    for task in made.tasks:
        task.cancel()
    await asyncio.gather(*made.tasks, return_exceptions=True)
    await made.store.aclose()
    assert made.issuer.most_in_flight <= 1
    assert WORD not in repr(made.events)
    assert WORD not in repr([broker.status() for broker in made.brokers])


def token(generation: int = 1, **fields: object) -> Token:
    """Return a token as an earlier process stored it, granted just now."""
    plain = Token(
        access_token=Secret(canary(f"stored-{generation}")),
        issued_at=WALL,
        expires_at=WALL + LIFETIME,
        generation=generation,
        refresh_token=None,
        scope=None,
        lifetime_source="expires_in",
        grant="client_credentials",
        trigger="due",
        forced_at=None,
    )
    return replace(plain, **fields)  # type: ignore[arg-type]


def access(number: int) -> Secret:
    return Secret(canary(f"access-{number}"))


async def refused(work: Awaitable[object]) -> Refusal:
    """Return the Refusal that *work* ends in."""
    with pytest.raises(Refusal) as caught:
        await work
    return caught.value


# --- start ------------------------------------------------------------------------------------------------------


async def test_start_does_not_wait_for_the_first_token(rig: Rig) -> None:
    """Start begins the first renewal and returns; requests wait for it."""
    rig.issuer.gate.clear()
    broker = rig.broker()
    await asyncio.wait_for(broker.start(), 10)
    await settle()
    assert broker.current() is None
    assert (broker.status().state, broker.status().attempted, broker.status().usable) == ("none", False, False)
    waiter = rig.later(broker.token(rig.after(60)))
    await settle()
    rig.issuer.gate.set()
    assert (await waiter).access_token == access(1)
    assert [event.trigger for event in rig.renewals()] == ["start"]
    assert (broker.status().state, broker.status().attempted, broker.status().usable) == ("valid", True, True)


async def test_start_takes_up_a_stored_token(rig: Rig) -> None:
    """A restart asks the issuer for nothing while the stored token lasts, and counts as a first attempt."""
    await rig.put(token(7))
    broker = await rig.started()
    assert broker.current() == token(7)
    assert rig.issuer.calls == []
    status = broker.status()
    assert (status.state, status.attempted, status.generation) == ("valid", True, 7)
    assert (status.expires_at, status.lifetime, status.last) == (WALL + LIFETIME, LIFETIME, None)


async def test_start_renews_an_expired_stored_token_with_its_refresh_token(rig: Rig) -> None:
    """An expired record still has the newest refresh token, and the generation to go on from."""
    await rig.put(token(7, refresh_token=Secret(canary("refresh"))))
    rig.clock.wall += 96
    broker = await rig.started()
    assert rig.issuer.calls == [canary("refresh")]
    assert (await rig.stored()).generation == 8
    assert broker.current() == await rig.stored()
    assert [event.generation for event in rig.renewals()] == [8]


@pytest.mark.parametrize("record", ["garbage", "cut", "name", "generation", "empty"])
async def test_a_record_that_cannot_be_read_is_a_miss(rig: Rig, record: str) -> None:
    """Damaged, moved, rolled back: reported, never used, never deleted, written over."""
    plain = token(5).encode()
    sealed = {
        "garbage": b"garbage",
        "cut": rig.ring.seal(KEY, plain)[:-1],
        "name": rig.ring.seal(KEY + "x", plain),
        "generation": rig.ring.seal(KEY, token(4).encode()),
        "empty": b"",
    }[record]
    await rig.store.write(KEY, 5, sealed)
    rig.issuer.gate.clear()
    broker = rig.broker()
    await broker.start()
    await settle()
    assert broker.current() is None
    assert await rig.store.read(KEY) == (5, sealed)
    assert {event.where for event in rig.troubles()} == {"token store of plm"}
    rig.issuer.gate.set()
    await settle()
    assert (await rig.stored()).generation == 6
    assert broker.current() == await rig.stored()


async def test_a_stored_token_that_was_refused_is_renewed_first(rig: Rig) -> None:
    """A record that says an upstream refused it is not handed out before a renewal was tried."""
    await rig.put(token(5, refused=True))
    rig.issuer.gate.clear()
    broker = rig.broker()
    await broker.start()
    await settle()
    assert broker.current() is None
    rig.issuer.gate.set()
    await settle()
    assert broker.current() == await rig.stored()
    assert (await rig.stored()).generation == 6


# --- waiting ----------------------------------------------------------------------------------------------------


async def test_a_cold_start_asks_once(rig: Rig) -> None:
    """However many requests wait for the first token, the issuer is asked once and all get the same."""
    rig.issuer.gate.clear()
    broker = rig.broker()
    await broker.start()
    waiters = [rig.later(broker.token(rig.after(60))) for _ in range(200)]
    await settle()
    rig.issuer.gate.set()
    assert {got.generation for got in await asyncio.gather(*waiters)} == {1}
    assert len(rig.issuer.calls) == 1


async def test_requests_ask_for_what_nobody_asked_for(rig: Rig) -> None:
    """Without a start, the first request begins the renewal."""
    broker = rig.broker()
    assert broker.current() is None
    assert rig.issuer.calls == []
    assert (await broker.token(rig.after(60))).trigger == "demand"
    assert len(rig.issuer.calls) == 1


async def test_who_leaves_disturbs_nobody(rig: Rig) -> None:
    """Half of the waiters are cancelled: the renewal goes on and the others get its token."""
    rig.issuer.gate.clear()
    broker = rig.broker()
    waiters = [rig.later(broker.token(rig.after(60))) for _ in range(100)]
    await settle()
    for waiter in waiters[::2]:
        waiter.cancel()
    await settle()
    rig.issuer.gate.set()
    assert len({(await waiter).access_token for waiter in waiters[1::2]}) == 1
    assert all(waiter.cancelled() for waiter in waiters[::2])
    assert len(rig.issuer.calls) == 1
    assert [event.result for event in rig.renewals()] == ["ok"]


async def test_a_deadline_ends_the_wait_not_the_renewal(rig: Rig) -> None:
    """At its deadline a request is refused with a time to come back; who has more time gets the token."""
    rig.issuer.gate.clear()
    broker = rig.broker()
    patient = rig.later(broker.token(rig.after(60)))
    hasty = rig.later(refused(broker.token(rig.after(10))))
    await rig.clock.advance(9.9)
    assert not hasty.done()
    await rig.clock.advance(0.1)
    refusal = await hasty
    assert (refusal.reason, refusal.retry_after) == (Reason.TOKEN_UNAVAILABLE, 1)
    rig.issuer.gate.set()
    assert (await patient).generation == 1
    assert len(rig.issuer.calls) == 1


async def test_a_refusal_says_when_the_next_attempt_is(rig: Rig) -> None:
    """While a campaign waits, Retry-After is the time until it tries again."""
    rig.issuer.default = IssuerUnavailable("down", retry_after=42.5)
    broker = rig.broker()
    refusal = await refused(_with_time(rig, broker.token(rig.after(2)), 2))
    assert (refusal.reason, refusal.retry_after) == (Reason.TOKEN_UNAVAILABLE, 41)


async def test_a_deadline_that_is_over_does_not_wait(rig: Rig) -> None:
    """A request without time left gets its answer without the clock moving."""
    rig.issuer.gate.clear()
    broker = rig.broker()
    assert (await refused(broker.token(rig.after(-1)))).reason is Reason.TOKEN_UNAVAILABLE


async def test_a_usable_token_is_given_without_waiting(rig: Rig) -> None:
    """With a token in memory nothing is awaited, even past the deadline."""
    broker = await rig.started()
    with pytest.raises(StopIteration) as caught:
        broker.token(rig.after(-1)).send(None)
    assert caught.value.value is broker.current()


async def _with_time[T](rig: Rig, work: Awaitable[T], seconds: float) -> T:
    task = rig.later(work)
    await rig.clock.advance(seconds)
    assert task.done()
    return await task


# --- ahead of time ----------------------------------------------------------------------------------------------


async def test_the_timer_renews_when_due(rig: Rig) -> None:
    """A token is renewed at its end less the margin, with jitter, and not before; requests never see a gap."""
    broker = await rig.started()
    await rig.clock.advance(DUE - 0.1)
    assert len(rig.issuer.calls) == 1
    await rig.clock.advance(0.1)
    assert len(rig.issuer.calls) == 2
    assert broker.current() == await rig.stored()
    assert [event.trigger for event in rig.renewals()] == ["start", "due"]
    await rig.clock.advance(3 * DUE)
    assert len(rig.issuer.calls) == 5


async def test_a_shorter_successor_is_renewed_in_its_own_time(rig: Rig) -> None:
    """The timer goes by the newest token, whoever renewed it: an operator's shorter one is not slept through."""
    broker = await rig.started()
    await rig.clock.advance(10)
    rig.issuer.answers.append({"lifetime": 20.0})
    await broker.renew()
    await rig.clock.advance(16.9)
    assert len(rig.issuer.calls) == 2
    await rig.clock.advance(0.2)
    assert len(rig.issuer.calls) == 3


async def test_a_lifetime_that_changes_in_mid_run_is_followed(rig: Rig) -> None:
    """Each token is renewed in its own time, whatever the ones before it had and whatever is configured."""
    broker = await rig.started(configured_lifetime=100.0, check_every=3600)
    began, renewed = rig.clock.mono, [0.0]
    for lifetime in (1000.0, 20.0, 100.0, 400.0):
        rig.issuer.default = {"lifetime": lifetime}
        calls = len(rig.issuer.calls)
        while len(rig.issuer.calls) == calls:
            await rig.clock.advance(1)
        renewed.append(rig.issuer.at[-1] - began)
        assert broker.current() is not None

    assert renewed == [0.0, 85.0, 935.0, 952.0, 1037.0]
    told = [(event.configured, event.granted) for event in rig.events if isinstance(event, LifetimeDiffers)]
    assert told == [(100.0, 1000.0), (100.0, 20.0), (100.0, 400.0)]


@pytest.mark.parametrize("chance", [0.0, 0.999])
async def test_a_margin_too_small_leaves_no_gap(rig: Rig, chance: float) -> None:
    """Whatever margin is configured, a token is renewed before it can no longer be used."""
    rig.clock.chance = chance
    broker = await rig.started(margin="0s")
    for _ in range(3 * int(LIFETIME) * 2):
        await rig.clock.advance(0.5)
        assert broker.status().usable
    assert len(rig.issuer.calls) == 4


async def test_who_has_waited_leaves_nothing_behind(rig: Rig) -> None:
    """Neither one who got a token, nor one who left, nor an operator keeps a sleeper of the clock."""
    rig.issuer.gate.clear()
    broker = rig.broker(check_every=0)
    await broker.start()
    waiter, leaver = (rig.later(broker.token(rig.after(60))) for _ in range(2))
    operator = rig.later(broker.renew())
    await settle()
    assert rig.clock.sleeping() == [TURN, LEASE_SIGN, 60.0, 60.0]
    leaver.cancel()
    await settle()
    assert rig.clock.sleeping() == [TURN, LEASE_SIGN, 60.0]
    rig.issuer.gate.set()
    await asyncio.gather(waiter, operator)
    await settle()
    assert rig.clock.sleeping() == []


async def test_the_first_token_is_got_when_it_is_its_turn(rig: Rig) -> None:
    """Until then the credential counts as not asked for; the turn is given back when the token is there."""
    turns = asyncio.Semaphore(0)
    broker = rig.broker(turns=turns)
    await broker.start()
    await settle()
    assert (rig.issuer.calls, broker.status().attempted) == ([], False)
    turns.release()
    await settle()
    assert (len(rig.issuer.calls), broker.status().usable) == (1, True)
    assert not turns.locked()


async def test_who_needs_a_token_waits_for_no_turn(rig: Rig) -> None:
    """A request has its token at once; the turn that comes later asks for no second one."""
    turns = asyncio.Semaphore(0)
    broker = rig.broker(turns=turns)
    await broker.start()
    assert (await broker.token(rig.after(1))).access_token == access(1)
    turns.release()
    await settle()
    assert len(rig.issuer.calls) == 1
    assert rig.renewals()[0].trigger == "demand"


async def test_a_slow_issuer_keeps_its_turn_for_a_second(rig: Rig) -> None:
    """Then the next begins, while the slow one is still waited for; what is got in the end is kept."""
    rig.issuer.gate.clear()
    turns = asyncio.Semaphore(1)
    broker = rig.broker(turns=turns)
    await broker.start()
    await settle()
    assert turns.locked()
    await rig.clock.advance(TURN)
    assert not turns.locked()
    assert broker.status().attempted is False
    rig.issuer.gate.set()
    await settle()
    assert broker.status().usable


async def test_a_failed_first_renewal_gives_its_turn_back(rig: Rig) -> None:
    """It waits to try again without a turn."""
    rig.issuer.answers.append(IssuerUnavailable("down"))
    turns = asyncio.Semaphore(1)
    broker = rig.broker(turns=turns)
    await broker.start()
    await settle()
    assert (broker.status().attempted, broker.status().usable) == (True, False)
    assert not turns.locked()


async def test_looks_at_the_store_take_turns(rig: Rig) -> None:
    """A thousand timers that began together do not all read at once: a token of another process is found in turn."""
    turns = asyncio.Semaphore(1)
    broker = rig.broker(turns=turns, check_every=30)
    await broker.start()
    await settle()
    await turns.acquire()
    await rig.put(token(7))
    await rig.clock.advance(30)
    assert broker.status().generation == 1
    turns.release()
    await settle()
    assert broker.status().generation == 7


async def test_a_renewed_token_is_not_read_back(rig: Rig) -> None:
    """The timer goes on with the new token; it does not look at the store because of its own writing."""
    reads = 0

    class Counted(MemoryStore):
        async def read(self, key: str) -> tuple[int, bytes] | None:
            nonlocal reads
            reads += 1
            return await super().read(key)

    rig.store = Counted()
    await rig.started()
    await rig.clock.advance(DUE)
    assert len(rig.issuer.calls) == 2
    assert reads == 7  # at the start, and before and after each lease, and whether the credential was rejected


async def test_chance_is_drawn_once_per_token(rig: Rig) -> None:
    """The moment a token is due does not wander, however often it is looked at."""
    broker = await rig.started()
    for _ in range(100):
        broker.current()
    await rig.clock.advance(DUE / 2)
    assert rig.clock.jitters == 1


async def test_the_timer_looks_at_the_store(rig: Rig) -> None:
    """At least every check_every a newer token of another process is taken up, without asking the issuer."""
    broker = await rig.started(check_every=30)
    await rig.put(token(9))
    await rig.clock.advance(29.9)
    assert (broker.current() or token()).generation == 1
    await rig.clock.advance(0.2)
    assert broker.current() == token(9)
    assert len(rig.issuer.calls) == 1
    await rig.clock.advance(DUE - 30.2)
    assert len(rig.issuer.calls) == 1
    await rig.clock.advance(0.2)
    assert len(rig.issuer.calls) == 2


async def test_an_older_record_is_not_taken_up(rig: Rig) -> None:
    """A store that was set back does not bring back an old token."""
    await rig.put(token(9))
    broker = await rig.started(check_every=30)
    await rig.store.delete(KEY)
    await rig.put(token(8))
    await rig.clock.advance(31)
    assert broker.current() == token(9)


async def test_without_a_timer_requests_renew_and_do_not_wait(rig: Rig) -> None:
    """check_every 0: nothing happens by itself; a request that finds the token due has it renewed and goes on."""
    broker = await rig.started(check_every=0)
    rig.issuer.gate.clear()
    await rig.clock.advance(DUE - 0.1)
    assert broker.current() is not None
    assert len(rig.issuer.calls) == 1
    await rig.clock.advance(0.2)
    assert broker.status().state == "due"
    await settle()
    assert len(rig.issuer.calls) == 1
    old = [broker.current() for _ in range(100)]
    assert {got.generation for got in old if got} == {1}
    await settle()
    assert len(rig.issuer.calls) == 2
    rig.issuer.gate.set()
    await settle()
    assert (broker.current() or token()).trigger == "due"
    assert rig.clock.sleeping() == []


async def test_an_idle_timer_does_not_spin(rig: Rig) -> None:
    """With nothing to do but wait it sleeps; a rejected one looks at the store, since others may have a good secret."""
    await rig.started(check_every=30)
    assert rig.clock.sleeping() == [30.0]
    await rig.clock.advance(30)
    assert rig.clock.sleeping() == [30.0]
    await rig.brokers[0].revoke()
    rig.issuer.default = CredentialRejected("invalid_client", "no")
    broker = rig.broker(check_every=30)
    await broker.start()
    await settle()
    assert broker.status().state == "rejected"
    assert 5.0 in rig.clock.sleeping()


async def test_the_old_token_serves_to_its_last_moment(rig: Rig) -> None:
    """While the issuer is down the token is handed out until shortly before its end, then nobody gets it."""
    broker = await rig.started()
    rig.issuer.default = IssuerUnavailable("down")
    await rig.clock.advance(USABLE - 0.1)
    assert (broker.current() or token()).generation == 1
    assert broker.status().state == "due"
    await rig.clock.advance(0.2)
    assert broker.current() is None
    assert (broker.status().state, broker.status().usable) == ("expired", False)
    waiter = rig.later(broker.token(rig.after(60)))
    rig.issuer.default = {}
    await rig.clock.advance(40)
    assert (await waiter).generation == 2


# --- failures ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attempts", "retry_after", "jitter", "wait"),
    [
        (1, None, 0.5, 0.5),
        (2, None, 0.5, 1.0),
        (5, None, 0.5, 8.0),
        (6, None, 0.5, 15.0),
        (7, None, 0.5, 15.0),
        (5000, None, 0.99, 29.7),
        (3, None, 0.0, 0.0),
        (1, 20.0, 0.5, 20.0),
        (6, 2.0, 0.5, 15.0),
        (1, 0.0, 0.5, 0.5),
        (1, -5.0, 0.5, 0.5),
        (1, 1e9, 0.5, 3600.0),
    ],
)
def test_backoff_grows_to_its_cap(attempts: int, retry_after: float | None, jitter: float, wait: float) -> None:
    """Full jitter over 1, 2, 4... 30 s, at least what the issuer asks for, and that at most an hour."""
    assert backoff(attempts, retry_after, jitter) == pytest.approx(wait)


async def test_failures_are_spaced(rig: Rig) -> None:
    """Attempts of a campaign come after growing waits, and never before the issuer's Retry-After."""
    down = IssuerUnavailable("down")
    rig.issuer.answers.extend([down, down, down, IssuerUnavailable("slow down", retry_after=20.0)])
    broker = rig.broker()
    await broker.start()
    await rig.clock.advance(60)
    assert rig.issuer.at == [1000.0, 1000.5, 1001.5, 1003.5, 1023.5]
    assert broker.current() is not None
    assert [event.result for event in rig.renewals()] == ["unavailable"] * 4 + ["ok"]
    assert rig.renewals()[3].detail == "slow down"


async def test_failed_attempts_end_when_another_has_renewed(rig: Rig) -> None:
    """Before each attempt the store is looked at: a token of another process is taken, the issuer left alone."""
    rig.issuer.default = IssuerUnavailable("down")
    broker = rig.broker()
    waiter = rig.later(broker.token(rig.after(60)))
    await settle()
    await rig.put(token(3))
    await rig.clock.advance(1)
    assert await waiter == token(3)
    assert len(rig.issuer.calls) == 1
    await rig.clock.advance(10)
    assert len(rig.issuer.calls) == 1


async def test_a_rejected_credential_is_not_tried_again(rig: Rig) -> None:
    """Everybody who waits is told at once, who comes later too, and for minutes the issuer is left in peace."""
    rig.issuer.gate.clear()
    rig.issuer.default = CredentialRejected("invalid_client", "the issuer said invalid_client")
    broker = rig.broker()
    await broker.start()
    waiters = [rig.later(refused(broker.token(rig.after(60)))) for _ in range(10)]
    await settle()
    rig.issuer.gate.set()
    assert {refusal.reason for refusal in await asyncio.gather(*waiters)} == {Reason.CREDENTIAL_REJECTED}
    await rig.clock.advance(299)
    late = await refused(broker.token(rig.after(60)))
    assert late.reason is Reason.CREDENTIAL_REJECTED
    assert "invalid_client" not in late.detail
    assert len(rig.issuer.calls) == 1
    assert (broker.status().state, broker.status().attempted) == ("rejected", True)
    assert [(event.result, event.detail) for event in rig.renewals()] == [
        ("rejected", "the issuer said invalid_client")
    ]


async def test_a_rejected_credential_keeps_its_valid_token(rig: Rig) -> None:
    """The token that is there serves until its end; only then requests are refused."""
    broker = await rig.started()
    rig.issuer.default = CredentialRejected("invalid_grant", "no")
    await rig.clock.advance(USABLE - 1)
    assert broker.current() is not None
    assert (await broker.token(rig.after(60))).generation == 1
    assert (broker.status().state, broker.status().usable) == ("rejected", True)
    await rig.clock.advance(2)
    assert (await refused(broker.token(rig.after(60)))).reason is Reason.CREDENTIAL_REJECTED
    assert len(rig.issuer.calls) == 2


async def test_a_changed_secret_is_tried(rig: Rig) -> None:
    """A rejected credential is looked at when it is needed, at most once a second; a change is tried at once."""
    rig.issuer.answers.append(CredentialRejected("invalid_client", "no"))
    broker = rig.broker()
    await broker.start()
    await settle()
    looks = rig.issuer.looks
    for _ in range(10):
        await refused(broker.token(rig.after(60)))
    assert rig.issuer.looks == looks
    await rig.clock.advance(1)
    for _ in range(10):
        await refused(broker.token(rig.after(60)))
    assert rig.issuer.looks == looks + 1
    rig.issuer.secret = "secret-2"
    await refused(broker.token(rig.after(60)))
    await rig.clock.advance(1)
    assert (await broker.token(rig.after(60))).generation == 1
    assert broker.status().state == "valid"


async def test_the_timer_finds_a_changed_secret(rig: Rig) -> None:
    """Without any request a changed credential is found within check_every: readiness may depend on it."""
    rig.issuer.answers.append(CredentialRejected("invalid_client", "no"))
    broker = rig.broker(check_every=30)
    await broker.start()
    await settle()
    rig.issuer.secret = "secret-2"
    await rig.clock.advance(30)
    assert broker.current() is not None


async def test_a_secret_changed_during_the_call_is_tried(rig: Rig) -> None:
    """What was rejected is the secret as it was when the call began."""
    rig.issuer.gate.clear()
    rig.issuer.answers.append(CredentialRejected("invalid_client", "no"))
    broker = rig.broker()
    await broker.start()
    await settle()
    rig.issuer.secret = "secret-2"
    rig.issuer.gate.set()
    await rig.clock.advance(1)
    assert (await broker.token(rig.after(60))).generation == 1


async def test_an_unreadable_secret_counts_as_rejected(rig: Rig) -> None:
    """A secret file that is gone is the operator's to mend: his text in the event, no more calls until it is back."""
    rig.issuer.unreadable = True
    rig.issuer.answers.append(ConfigurationError("secret file is missing"))
    broker = rig.broker()
    await broker.start()
    await rig.clock.advance(299)
    assert (await refused(broker.token(rig.after(60)))).reason is Reason.CREDENTIAL_REJECTED
    assert [(event.result, event.detail) for event in rig.renewals()] == [("rejected", "secret file is missing")]
    rig.issuer.unreadable = False
    await rig.clock.advance(1)
    assert (await broker.token(rig.after(60))).generation == 1


async def test_a_bug_of_the_issuer_is_weather(rig: Rig) -> None:
    """An exception nobody thought of is reported by its type alone, tried again, and kills no timer."""
    rig.issuer.answers.append(ZeroDivisionError(canary("in a message")))
    broker = rig.broker()
    await broker.start()
    await rig.clock.advance(0.5)
    assert broker.current() is not None
    assert [event.detail for event in rig.renewals()] == ["internal error: ZeroDivisionError", ""]
    rig.issuer.answers.append(ZeroDivisionError())
    await rig.clock.advance(3 * DUE)
    assert len(rig.issuer.calls) == 5
    assert broker.current() is not None


async def test_a_token_that_is_over_already_is_weather(rig: Rig) -> None:
    """An issuer that grants no time at all is not asked again and again without a pause."""
    rig.issuer.default = {"requested_at": WALL - 1000}
    broker = rig.broker()
    waiter = rig.later(refused(broker.token(rig.after(3))))
    await rig.clock.advance(3)
    assert (await waiter).reason is Reason.TOKEN_UNAVAILABLE
    assert len(rig.issuer.calls) == 3
    assert {event.result for event in rig.renewals()} == {"unavailable"}


async def test_an_unexpected_end_of_a_task_is_told(rig: Rig) -> None:
    """A bug in the broker itself does not die in silence, and shows no value."""
    broker = await rig.started(check_every=30)

    async def broken() -> None:
        raise KeyError(canary("value"))

    broker._holding.reread = broken  # type: ignore[method-assign]
    await rig.clock.advance(30)
    assert rig.troubles() == [Trouble(where="timer of plm", detail="internal error: KeyError")]


# --- events -----------------------------------------------------------------------------------------------------


async def test_every_call_ends_in_an_event(rig: Rig) -> None:
    """A Renewal says why, how it ended, how long it took and what was granted; status repeats the last."""
    rig.issuer.answers.append(IssuerUnavailable("down"))
    rig.issuer.gate.clear()
    broker = rig.broker()
    await broker.start()
    await rig.clock.advance(2)
    rig.issuer.gate.set()
    await rig.clock.advance(1)
    assert rig.renewals() == [
        Renewal(upstream="plm", trigger="start", result="unavailable", seconds=2.0, detail="down"),
        Renewal(
            upstream="plm",
            trigger="start",
            result="ok",
            seconds=0.0,
            generation=1,
            lifetime=LIFETIME,
            grant="client_credentials",
        ),
    ]
    last = broker.status().last
    assert last is not None
    assert (last.time, last.trigger, last.result, last.seconds, last.detail) == (WALL + 2.5, "start", "ok", 0.0, "")


async def test_what_is_granted_is_recorded(rig: Rig) -> None:
    """The record holds what the issuer said, counted from the request on."""
    rig.issuer.gate.clear()
    rig.issuer.answers.append({"scope": "a b", "refresh_token": Secret(canary("refresh")), "lifetime_source": "jwt"})
    broker = rig.broker()
    await broker.start()
    await rig.clock.advance(3)
    rig.issuer.gate.set()
    await settle()
    assert await rig.stored() == Token(
        access_token=access(1),
        issued_at=WALL,
        expires_at=WALL + LIFETIME,
        generation=1,
        refresh_token=Secret(canary("refresh")),
        scope="a b",
        lifetime_source="jwt",
        grant="client_credentials",
        trigger="start",
        forced_at=None,
        by="test/1",
    )
    await rig.clock.advance(USABLE - 3)
    assert broker.current() != access(1)


async def test_another_lifetime_is_told_once(rig: Rig) -> None:
    """A lifetime more than 5 % off the configured one is told with a likely cause, once per pair of numbers."""
    rig.issuer.answers.extend(
        [{"lifetime": 60.0, "scope": "offline"}, {"lifetime": 60.4}, {"lifetime": 200.0}, {"lifetime": 60.0}]
    )
    broker = await rig.started(configured_lifetime=100.0)
    for _ in range(3):
        await broker.renew()
    differences = [event for event in rig.events if isinstance(event, LifetimeDiffers)]
    assert differences == [
        LifetimeDiffers(
            upstream="plm",
            configured=100.0,
            granted=60.0,
            source="expires_in",
            cause=likely_cause(100, 60, "offline"),
        ),
        LifetimeDiffers(
            upstream="plm", configured=100.0, granted=200.0, source="expires_in", cause=likely_cause(100, 200, None)
        ),
    ]


def test_the_likely_cause_names_the_scope() -> None:
    """A scope with a lifetime of its own is the usual cause, else the issuer's policy; longer or shorter is said."""
    assert "scope offline" in likely_cause(100, 60, "offline")
    assert "policy" in likely_cause(100, 60, None)
    assert "shorter" in likely_cause(100, 60, None)
    assert "longer" in likely_cause(100, 200, None)


@pytest.mark.parametrize(("configured", "granted"), [(100.0, 95.0), (100.0, 105.0), (None, 5.0)])
async def test_the_expected_lifetime_is_not_told(rig: Rig, configured: float | None, granted: float) -> None:
    """Within 5 %, or with nothing configured, there is nothing to tell."""
    rig.issuer.default = {"lifetime": granted}
    await rig.started(configured_lifetime=configured)
    assert not [event for event in rig.events if isinstance(event, LifetimeDiffers)]


# --- the store --------------------------------------------------------------------------------------------------


async def test_each_call_gets_the_newest_refresh_token(rig: Rig) -> None:
    """A rotated refresh token replaces the old one; none in the answer keeps it (RFC 6749 section 6)."""
    one, two = Secret(canary("refresh-1")), Secret(canary("refresh-2"))
    rig.issuer.answers.extend([{"refresh_token": one}, {}, {"refresh_token": two}, {}])
    broker = await rig.started()
    for _ in range(4):
        await broker.renew()
    assert rig.issuer.calls == [None, one.reveal(), one.reveal(), two.reveal(), two.reveal()]
    assert (await rig.stored()).refresh_token == two


async def test_a_token_is_stored_before_it_is_used(rig: Rig) -> None:
    """A crash right after the first use of a token must not lose the refresh token that came with it."""
    seen: list[Token | None] = []

    class Watched(MemoryStore):
        async def write(self, key: str, generation: int, sealed: bytes) -> bool:
            await asyncio.sleep(0)
            seen.append(broker.current())
            return await super().write(key, generation, sealed)

    rig.store = Watched()
    broker = rig.broker()
    waiter = rig.later(broker.token(rig.after(60)))
    assert (await waiter).generation == 1
    await broker.renew()
    assert [known.generation if known else None for known in seen] == [None, 1]


class Broken(MemoryStore):
    """A store whose reads or writes fail while it is told so."""

    def __init__(self) -> None:
        super().__init__()
        self.reading: Exception | None = None
        self.writing: Exception | None = None

    async def read(self, key: str) -> tuple[int, bytes] | None:
        if self.reading:
            raise self.reading
        return await super().read(key)

    async def write(self, key: str, generation: int, sealed: bytes) -> bool:
        if self.writing:
            raise self.writing
        return await super().write(key, generation, sealed)

    async def delete(self, key: str) -> None:
        if self.writing:
            raise self.writing
        await super().delete(key)


@pytest.mark.parametrize(
    ("error", "detail"), [(StoreError("disk full"), "disk full"), (KeyError(canary("x")), "internal error: KeyError")]
)
async def test_a_broken_store_fails_no_request(rig: Rig, error: Exception, detail: str) -> None:
    """Memory goes on without its store, which is reported; what could not be written is written later."""
    store = rig.store = Broken()
    store.reading = store.writing = error
    broker = await rig.started(check_every=10)
    about = {"where": "token store of plm", "upstream": "plm"}
    assert rig.troubles()[0] == StoreTrouble(**about, operation="read", detail=f"read: {detail}")
    assert rig.troubles()[-1] == StoreTrouble(**about, operation="write", detail=f"write: {detail}")
    await rig.clock.advance(11)
    store.reading = store.writing = None
    await rig.clock.advance(10)
    assert await rig.stored() == broker.current()
    assert len(rig.issuer.calls) == 1


async def test_a_store_that_came_back_empty_or_older_is_filled_again(rig: Rig) -> None:
    """What memory has is for all: the record is published at the next look, without a call to the issuer."""
    broker = await rig.started(check_every=10)
    await broker.renew()
    stored = await rig.stored()
    await rig.store.delete(KEY)
    await rig.clock.advance(11)
    assert await rig.stored() == stored
    await rig.store.delete(KEY)
    await rig.put(token(1))
    await rig.clock.advance(11)
    assert await rig.stored() == stored
    assert len(rig.issuer.calls) == 2


async def test_a_late_write_does_not_hide_a_newer_one(rig: Rig) -> None:
    """If the token changes while the old one is written again, the new one is still to be written."""
    store = rig.store = Broken()
    store.writing = StoreError("disk full")
    broker = await rig.started(check_every=30)
    held = broker._holding

    async def slow(key: str, generation: int, sealed: bytes) -> bool:
        store.write = type(store).write.__get__(store)  # type: ignore[method-assign]
        await broker.renew()
        return True

    store.write = slow  # type: ignore[method-assign]
    await rig.clock.advance(30)
    assert held.unsaved
    store.writing = None
    await rig.clock.advance(30)
    assert await rig.stored() == broker.current()
    assert (await rig.stored()).generation == 2


async def test_a_newer_record_of_another_process_is_adopted(rig: Rig) -> None:
    """Who comes second to the store uses what is there: one token for all."""
    rig.issuer.gate.clear()
    broker = rig.broker()
    waiter = rig.later(broker.token(rig.after(60)))
    await settle()
    await rig.put(token(4))
    rig.issuer.gate.set()
    assert await waiter == token(4)
    assert broker.current() == await rig.stored()
    assert [(event.result, event.generation) for event in rig.renewals()] == [("ok", 4)]
    await broker.renew()
    assert (await rig.stored()).generation == 5


async def test_an_adopted_token_keeps_its_age(rig: Rig) -> None:
    """What another process was granted a while ago does not start a new life here, whatever the wall clock does."""
    rig.issuer.gate.clear()
    broker = rig.broker(check_every=0)
    await broker.start()
    await settle()
    await rig.put(token(4, issued_at=WALL - 50, expires_at=WALL - 50 + LIFETIME))
    rig.issuer.gate.set()
    await settle()
    assert broker.status().generation == 4
    rig.clock.wall -= 3600
    await rig.clock.advance(USABLE - 50.1)
    assert broker.status().usable
    await rig.clock.advance(0.2)
    assert not broker.status().usable


@pytest.mark.parametrize("other", ["expired", "refused", "unreadable"])
async def test_a_useless_newer_record_is_written_over(rig: Rig, other: str) -> None:
    """A newer record that helps nobody does not cost the token just granted, nor its refresh token."""
    rig.issuer.gate.clear()
    broker = rig.broker()
    waiter = rig.later(broker.token(rig.after(60)))
    await settle()
    if other == "unreadable":
        await rig.store.write(KEY, 4, b"garbage")
    else:
        await rig.put(token(4, **({"issued_at": 0.0, "expires_at": 1.0} if other == "expired" else {"refused": True})))
    rig.issuer.gate.set()
    assert (await waiter).access_token == access(1)
    assert await rig.stored() == await waiter
    assert (await waiter).generation == 5
    assert len(rig.issuer.calls) == 1


async def test_a_store_that_always_has_a_newer_one_is_given_up(rig: Rig) -> None:
    """A store gone mad does not hold up the token: it is used from memory, and reported."""

    class Mad(MemoryStore):
        async def write(self, key: str, generation: int, sealed: bytes) -> bool:
            return False

    rig.store = Mad()
    broker = await rig.started()
    assert broker.current() is not None
    assert "in the way" in rig.troubles()[-1].detail


async def test_sqlite_from_end_to_end(rig: Rig, tmp_path: Path) -> None:
    """A token outlives its process in SQLite, sealed: nothing of it is in the files."""
    rig.store = SqliteStore(tmp_path)
    rig.issuer.default = {"refresh_token": Secret(canary("refresh"))}
    first = rig.broker()
    await first.start()
    got = await first.token(rig.after(60))
    await first.aclose()
    second = rig.broker()
    await second.start()
    assert second.current() == got
    assert len(rig.issuer.calls) == 1
    assert leaks(tmp_path) == []


async def test_a_corrupt_database_leaves_memory(rig: Rig, tmp_path: Path) -> None:
    """A damaged file is reported and left alone; tokens come from the issuer and live in memory."""
    (tmp_path / "store.db").write_bytes(b"no database" * 1000)
    rig.store = SqliteStore(tmp_path)
    broker = rig.broker()
    await broker.start()
    assert (await broker.token(rig.after(60))).generation == 1
    assert "file is not a database" in rig.troubles()[0].detail
    assert (tmp_path / "store.db").read_bytes() == b"no database" * 1000


# --- after a 401 ------------------------------------------------------------------------------------------------


async def test_a_401_is_answered_from_memory(rig: Rig) -> None:
    """A late 401 for a token that has a successor costs nothing: replay with the successor."""
    broker = await rig.started()
    old = broker.current()
    new = await broker.renew()
    assert old
    assert await broker.after(old, rig.after(60)) == new
    assert len(rig.issuer.calls) == 2
    assert broker.status().state == "valid"


async def test_a_401_is_answered_from_the_store(rig: Rig) -> None:
    """If another process has renewed already, its token is taken."""
    broker = await rig.started()
    old = broker.current()
    assert old
    await rig.put(token(5))
    assert await broker.after(old, rig.after(60)) == token(5)
    assert broker.current() == token(5)
    assert len(rig.issuer.calls) == 1


async def test_many_401s_look_at_the_store_once_a_second(rig: Rig) -> None:
    """A storm of 401s does not become a storm on the store."""
    reads = 0

    class Counted(MemoryStore):
        async def read(self, key: str) -> tuple[int, bytes] | None:
            nonlocal reads
            reads += 1
            await asyncio.sleep(0)
            return await super().read(key)

    rig.store = Counted()
    broker = await rig.started(check_every=0)
    used = await broker.after(await broker.token(0), rig.after(60))
    assert used
    before = reads
    await rig.clock.advance(1)
    assert set(await asyncio.gather(*(broker.after(used, rig.after(60)) for _ in range(50)))) == {None}
    assert reads == before + 1
    await rig.clock.advance(0.9)
    await broker.after(used, rig.after(60))
    assert reads == before + 1
    await rig.clock.advance(0.1)
    await broker.after(used, rig.after(60))
    assert reads == before + 2


async def test_many_401s_force_one_renewal(rig: Rig) -> None:
    """A revoked token: 200 requests at once cost one call, and each can replay with its token."""
    broker = await rig.started()
    used = await broker.token(0)
    rig.issuer.gate.clear()
    waiters = [rig.later(broker.after(used, rig.after(60))) for _ in range(200)]
    await settle()
    assert len(rig.issuer.calls) == 2
    rig.issuer.gate.set()
    got = await asyncio.gather(*waiters)
    assert set(got) == {broker.current()}
    new = await broker.token(0)
    assert (new.generation, new.trigger, new.forced_at, new.refused) == (2, "unauthorized", WALL, False)
    assert await rig.stored() == new
    assert [event.trigger for event in rig.renewals()] == ["start", "unauthorized"]


async def test_a_refused_token_is_withheld_while_it_is_renewed(rig: Rig) -> None:
    """Nobody runs into the same 401 while a better token is on its way."""
    broker = await rig.started()
    used = await broker.token(0)
    rig.issuer.gate.clear()
    unauthorized = rig.later(broker.after(used, rig.after(60)))
    await settle()
    assert broker.current() is None
    assert (broker.status().state, broker.status().usable) == ("refused", False)
    other = rig.later(broker.token(rig.after(60)))
    await settle()
    assert not other.done()
    rig.issuer.gate.set()
    assert (await other).generation == 2
    assert await unauthorized == await other


async def test_a_second_401_within_the_interval_is_passed_on(rig: Rig) -> None:
    """An endpoint that refuses good tokens costs one renewal per interval, and other requests keep the token."""
    broker = await rig.started(min_interval=30)
    used = await broker.after(await broker.token(0), rig.after(60))
    assert used
    await rig.clock.advance(29.9)
    assert await broker.after(used, rig.after(60)) is None
    assert broker.current() == used
    assert broker.status().state == "valid"
    assert len(rig.issuer.calls) == 2
    await rig.clock.advance(0.1)
    assert (await broker.after(used, rig.after(60)) or token()).generation == 3
    assert len(rig.issuer.calls) == 3


async def test_an_old_401_says_nothing_of_the_newest_token(rig: Rig) -> None:
    """Only the token that was refused is marked."""
    broker = await rig.started()
    old = await broker.token(0)
    await broker.renew()
    broker._holding.refuse(old)
    assert broker.status().state == "valid"


async def test_the_interval_outlives_renewals_and_restarts(rig: Rig) -> None:
    """When a 401 last forced a renewal is part of the record, and carried over by renewals for other reasons."""
    broker = await rig.started(min_interval=50)
    await broker.after(await broker.token(0), rig.after(60))
    await rig.clock.advance(10)
    await broker.renew()
    assert (await rig.stored()).forced_at == WALL
    restarted = await rig.started(min_interval=50)
    assert await restarted.after(await restarted.token(0), rig.after(60)) is None
    assert len(rig.issuer.calls) == 3


async def test_a_failed_forced_renewal_passes_the_401_on(rig: Rig) -> None:
    """The issuer stays down: others keep the token, the 401 goes on after `renew.timeout`, the campaign too."""
    broker = await rig.started()
    used = await broker.token(0)
    rig.issuer.default = IssuerUnavailable("down")
    waiter = rig.later(broker.after(used, rig.after(60)))
    await settle()
    assert broker.current() == replace(used, refused=True)
    assert (broker.status().state, broker.status().usable) == ("refused", True)
    await rig.clock.advance(9.9)
    assert not waiter.done()
    await rig.clock.advance(0.2)
    assert await waiter is None
    rig.issuer.default = {}
    await rig.clock.advance(30)
    assert (broker.current() or used).generation == 2
    assert broker.status().state == "valid"


async def test_a_moment_without_the_issuer_is_absorbed(rig: Rig) -> None:
    """One failed attempt does not pass the 401 on: who waits, and who comes meanwhile, gets the next one's token."""
    broker = await rig.started()
    used = await broker.token(0)
    rig.issuer.answers.append(IssuerUnavailable("down"))
    first = rig.later(broker.after(used, rig.after(60)))
    await settle()
    second = rig.later(broker.after(used, rig.after(60)))
    await rig.clock.advance(0.5)
    tokens = [await first, await second]
    assert [token and token.generation for token in tokens] == [2, 2]
    assert len(rig.issuer.calls) == 3


async def test_a_failed_forced_renewal_gives_up_at_the_deadline(rig: Rig) -> None:
    """Who has less time than `renew.timeout` waits no longer than that."""
    broker = await rig.started()
    used = await broker.token(0)
    rig.issuer.default = IssuerUnavailable("down")
    waiter = rig.later(broker.after(used, rig.after(2)))
    await rig.clock.advance(2.1)
    assert waiter.done()
    assert await waiter is None


async def test_a_refused_token_is_withheld_only_once(rig: Rig) -> None:
    """While the issuer hangs, one endpoint's 401s cannot hold up everybody again and again."""
    broker = await rig.started()
    used = await broker.token(0)
    rig.issuer.answers.append(IssuerUnavailable("down"))
    first = rig.later(broker.after(used, rig.after(60)))
    await settle()
    rig.issuer.gate.clear()
    await rig.clock.advance(0.5)
    again = rig.later(broker.after(used, rig.after(60)))
    await settle()
    assert not again.done()
    assert broker.current() == replace(used, refused=True)
    rig.issuer.gate.set()
    assert (await again or used).generation == 2
    assert (await first or used).generation == 2


async def test_a_401_joins_a_renewal_under_way(rig: Rig) -> None:
    """A renewal that has begun for another reason serves the 401 too, and does not count as forced."""
    broker = await rig.started()
    used = await broker.token(0)
    rig.issuer.gate.clear()
    await rig.clock.advance(DUE)
    waiter = rig.later(broker.after(used, rig.after(60)))
    await settle()
    assert broker.current() is None
    rig.issuer.gate.set()
    new = await waiter
    assert new
    assert (new.generation, new.trigger, new.forced_at) == (2, "due", None)
    assert len(rig.issuer.calls) == 2


async def test_a_401_joins_a_renewal_about_to_begin(rig: Rig) -> None:
    """A renewal that was started but has not run yet is under way."""
    broker = await rig.started(check_every=0)
    used = await broker.token(0)
    await broker.after(replace(used, generation=0), 0.0)  # the look of this second is done
    await rig.clock.advance(DUE)
    broker._look.at = rig.clock.mono
    assert broker.current() == used
    assert (await broker.after(used, rig.after(60)) or used).generation == 2


async def test_an_expired_token_is_renewed_within_the_interval(rig: Rig) -> None:
    """A token whose time is over gives no reason for patience, and its renewal does not count as forced."""
    broker = await rig.started(min_interval=60, check_every=0)
    used = await broker.after(await broker.token(0), rig.after(60))
    assert used
    rig.clock.wall += USABLE
    new = await broker.after(used, rig.after(60))
    assert new
    assert (new.generation, new.trigger, new.forced_at) == (3, "demand", WALL)


async def test_a_revoked_token_is_renewed_within_the_interval(rig: Rig) -> None:
    """With no token at all there is nothing to be patient for."""
    broker = await rig.started()
    used = await broker.after(await broker.token(0), rig.after(60))
    assert used
    await broker.revoke()
    assert (await broker.after(used, rig.after(60)) or used).generation == 4


async def test_a_401_without_a_token_waits_to_its_deadline(rig: Rig) -> None:
    """Without any token the issuer's recovery is waited for; at the deadline the 401 is passed on."""
    broker = await rig.started()
    used = await broker.token(0)
    rig.issuer.default = IssuerUnavailable("down")
    await rig.clock.advance(USABLE)
    waiter = rig.later(broker.after(used, rig.after(10)))
    await rig.clock.advance(9.9)
    assert not waiter.done()
    await rig.clock.advance(0.1)
    assert await waiter is None


async def test_a_401_of_a_rejected_credential_is_passed_on(rig: Rig) -> None:
    """A credential the issuer refused is not tried because of a 401; the token stays in use."""
    broker = await rig.started()
    used = await broker.token(0)
    rig.issuer.default = CredentialRejected("invalid_client", "no")
    assert await broker.after(used, rig.after(60)) is None
    assert await broker.after(used, rig.after(60)) is None
    assert broker.current() == replace(used, refused=True)
    assert len(rig.issuer.calls) == 2
    rig.issuer.default = {}
    rig.issuer.secret = "secret-2"
    await rig.clock.advance(1)
    assert (await broker.after(used, rig.after(60)) or used).generation == 2


async def test_a_401_waits_no_longer_than_its_deadline(rig: Rig) -> None:
    """At the deadline the 401 is passed on; the renewal goes on, and so it does when the client leaves."""
    broker = await rig.started()
    used = await broker.token(0)
    rig.issuer.gate.clear()
    waiter = rig.later(broker.after(used, rig.after(10)))
    leaver = rig.later(broker.after(used, rig.after(60)))
    await settle()
    leaver.cancel()
    await rig.clock.advance(10)
    assert waiter.done()
    assert await waiter is None
    rig.issuer.gate.set()
    await settle()
    assert (broker.current() or used).generation == 2


async def test_a_401_during_a_slow_look_keeps_its_deadline(rig: Rig) -> None:
    """A store that hangs does not hold a request; the look is not cut off with it."""
    stuck = asyncio.Event()

    class Slow(MemoryStore):
        async def read(self, key: str) -> tuple[int, bytes] | None:
            await stuck.wait()
            return await super().read(key)

    stuck.set()
    rig.store = Slow()
    broker = await rig.started(check_every=0)
    used = await broker.token(0)
    await broker.after(used, rig.after(60))
    used = await broker.token(0)
    await rig.clock.advance(2)
    stuck.clear()
    waiter = rig.later(broker.after(used, rig.after(5)))
    await rig.clock.advance(4.9)
    assert not waiter.done()
    await rig.clock.advance(0.1)
    assert waiter.done()
    await rig.put(token(9))
    stuck.set()
    await settle()
    assert broker.current() == token(9)


# --- the operator -----------------------------------------------------------------------------------------------


async def test_an_operator_renews_at_once(rig: Rig) -> None:
    """A forced renewal needs no reason, is bound by no interval and does not count as forced by a 401."""
    broker = await rig.started()
    rig.issuer.gate.clear()
    renewed = rig.later(broker.renew())
    await settle()
    assert broker.current() is not None
    rig.issuer.gate.set()
    new = await renewed
    assert (new.generation, new.trigger, new.forced_at) == (2, "forced", None)
    assert broker.current() == new == await rig.stored()


async def test_an_operator_renews_although_another_process_did(rig: Rig) -> None:
    """Forced means a call to the issuer, on top of the newest record."""
    broker = await rig.started()
    await rig.put(token(5))
    assert (await broker.renew()).access_token == access(2)
    assert (await rig.stored()).generation == 6


async def test_an_operator_joins_a_renewal_under_way(rig: Rig) -> None:
    """Two calls at once would be one too many."""
    rig.issuer.gate.clear()
    broker = rig.broker()
    await broker.start()
    renewed = [rig.later(broker.renew()) for _ in range(3)]
    await settle()
    rig.issuer.gate.set()
    assert {(await each).generation for each in renewed} == {1}
    assert len(rig.issuer.calls) == 1


async def test_an_operator_does_not_wait_out_a_backoff(rig: Rig) -> None:
    """A campaign that waits to try again tries at once, whatever the issuer asked for."""
    rig.issuer.answers.append(IssuerUnavailable("down", retry_after=600))
    broker = rig.broker()
    await broker.start()
    await rig.clock.advance(1)
    new = await broker.renew()
    assert (new.generation, new.trigger) == (1, "forced")
    assert rig.issuer.at == [1000.0, 1001.0]
    assert [event.trigger for event in rig.renewals()] == ["start", "forced"]


async def test_an_operator_forgets_a_rejection(rig: Rig) -> None:
    """What the issuer refused may have been mended on its side: the operator says so by renewing."""
    rig.issuer.answers.append(CredentialRejected("invalid_client", "no"))
    broker = rig.broker()
    await broker.start()
    await settle()
    assert (await broker.renew()).generation == 1
    assert broker.status().state == "valid"


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (CredentialRejected("invalid_client", "the issuer said no"), CredentialRejected),
        (IssuerUnavailable("the issuer said no"), IssuerUnavailable),
        (ConfigurationError("the issuer said no"), CredentialRejected),
    ],
)
async def test_an_operator_gets_the_cause(rig: Rig, answer: SidecarError, error: type[SidecarError]) -> None:
    """A forced renewal fails with the issuer's cause after one attempt; the good token stays, nothing is tried on."""
    broker = await rig.started()
    rig.issuer.default = answer
    for _ in range(2):
        with pytest.raises(error, match="the issuer said no"):
            await broker.renew()
    await rig.clock.advance(60)
    assert len(rig.issuer.calls) == 3
    assert (broker.current() or token()).generation == 1


async def test_a_forced_renewal_without_a_token_goes_on(rig: Rig) -> None:
    """If a token is needed anyway, the campaign goes on after it failed the operator."""
    rig.issuer.answers.append(IssuerUnavailable("down"))
    broker = rig.broker()
    with pytest.raises(IssuerUnavailable):
        await broker.renew()
    await rig.clock.advance(1)
    assert broker.current() is not None


async def test_revoking_forgets_everything(rig: Rig) -> None:
    """After a revocation neither token nor refresh token is left; who needs one gets a new one."""
    rig.issuer.answers.append({"refresh_token": Secret(canary("refresh"))})
    broker = await rig.started(check_every=0)
    await broker.revoke()
    assert broker.current() is None
    assert await rig.revoked() == 2
    assert broker.status().state == "none"
    await settle()
    assert len(rig.issuer.calls) == 1
    new = await broker.token(rig.after(60))
    assert (new.generation, new.refresh_token) == (3, None)
    assert rig.issuer.calls == [None, None]


async def test_the_timer_replaces_a_revoked_token(rig: Rig) -> None:
    """With background renewal a revoked token has its successor at once, so that readiness is not lost."""
    broker = await rig.started()
    await broker.revoke()
    await settle()
    assert (broker.current() or token()).generation == 3


async def test_a_revoked_token_does_not_come_back(rig: Rig) -> None:
    """An old record that turns up in the store again is not taken up."""
    broker = await rig.started(check_every=30)
    old = await rig.stored()
    await broker.revoke()
    await rig.put(old)
    rig.issuer.gate.clear()
    await rig.clock.advance(31)
    assert broker.current() is None


async def test_revoking_gives_up_a_renewal_under_way(rig: Rig) -> None:
    """What was about to be granted is not used; requests that wait get what is granted after it."""
    broker = await rig.started()
    used = await broker.token(0)
    rig.issuer.gate.clear()
    operator = rig.later(broker.renew())
    unauthorized = rig.later(broker.after(used, rig.after(60)))
    await settle()
    waiter = rig.later(broker.token(rig.after(60)))
    await settle()
    await broker.revoke()
    rig.issuer.gate.set()
    assert (await waiter).access_token == access(3)
    assert await rig.stored() == await waiter
    assert await unauthorized in (None, await waiter)
    with pytest.raises(IssuerUnavailable, match="cut off"):
        await operator
    assert [(event.result, event.detail) for event in rig.renewals()][1] == ("unavailable", "cut off")


async def test_revoking_takes_what_comes_at_the_same_moment(rig: Rig) -> None:
    """A renewal that ends while it is being given up leaves nothing behind either."""
    broker = await rig.started(check_every=0)
    rig.issuer.gate.clear()
    operator = rig.later(broker.renew())
    await settle()
    rig.issuer.gate.set()
    await broker.revoke()
    assert broker.current() is None
    assert await rig.revoked() == 3
    await asyncio.gather(operator, return_exceptions=True)


async def test_revoking_ends_a_backoff(rig: Rig) -> None:
    """A campaign that waits to try again ends; nothing is asked for until somebody needs it."""
    rig.issuer.answers.append(IssuerUnavailable("down"))
    broker = rig.broker(check_every=0)
    await broker.start()
    await settle()
    await broker.revoke()
    await rig.clock.advance(60)
    assert len(rig.issuer.calls) == 1


async def test_revoking_says_when_the_store_keeps_the_record(rig: Rig) -> None:
    """A revocation that was only half of one is an error; the token is gone from memory, and tokens can be had."""
    store = rig.store = Broken()
    broker = await rig.started()
    store.writing = StoreError("read-only")
    with pytest.raises(StoreError, match="read-only"):
        await broker.revoke()
    assert broker.current() is None
    assert (await broker.token(rig.after(60))).access_token == access(2)


# --- clocks -----------------------------------------------------------------------------------------------------


async def test_a_jump_forward_expires_early_at_worst(rig: Rig) -> None:
    """A wall clock set forward ends the token's life for us; one renewal, no more."""
    broker = await rig.started()
    rig.clock.wall += 3600
    assert broker.current() is None
    assert (await broker.token(rig.after(60))).generation == 2
    await rig.clock.advance(DUE - 1)
    assert len(rig.issuer.calls) == 2


@pytest.mark.parametrize("jump", [-3600.0, -60.0])
async def test_a_jump_back_does_not_prolong_a_life(rig: Rig, jump: float) -> None:
    """Set back, the wall clock cannot make a token live longer than it was granted, nor be due later."""
    broker = await rig.started(check_every=0)
    rig.clock.wall += jump
    await rig.clock.advance(DUE - 0.1)
    assert broker.status().state == "valid"
    await rig.clock.advance(0.2)
    assert broker.status().state == "due"
    await rig.clock.advance(USABLE - DUE)
    assert broker.current() is None


async def test_a_slow_answer_does_not_prolong_a_life(rig: Rig) -> None:
    """The lifetime counts from before the call, on both clocks."""
    rig.issuer.gate.clear()
    broker = rig.broker(check_every=0)
    await broker.start()
    await rig.clock.advance(20)
    rig.clock.wall -= 3600
    rig.issuer.gate.set()
    await rig.clock.advance(USABLE - 20.1)
    assert broker.status().usable
    await rig.clock.advance(0.2)
    assert not broker.status().usable


@pytest.mark.parametrize(("issued_before", "left"), [(50.0, USABLE - 50), (-50.0, USABLE)])
async def test_a_stored_token_lives_no_longer_than_granted(rig: Rig, issued_before: float, left: float) -> None:
    """A token of another process keeps its age; one that seems to come from the future is new at most."""
    await rig.put(token(3, issued_at=WALL - issued_before, expires_at=WALL - issued_before + LIFETIME))
    broker = await rig.started(check_every=0)
    rig.clock.wall -= 3600
    await rig.clock.advance(left - 0.1)
    assert broker.status().usable
    await rig.clock.advance(0.2)
    assert not broker.status().usable


@given(
    steps=st.lists(st.tuples(st.floats(0, 50), st.floats(-1e6, 1e6)), min_size=1, max_size=10),
    lifetime=st.floats(1, 100),
)
def test_no_clock_makes_a_token_outlive_its_lifetime(steps: list[tuple[float, float]], lifetime: float) -> None:
    """However the wall clock jumps, a token is over when its lifetime has passed on the monotonic one."""
    clock = FakeClock()
    held = Held(token(expires_at=WALL + lifetime), born=clock.mono, due=math.inf)
    for seconds, jump in steps:
        clock._pass(seconds)
        clock.wall += jump
        assert not held.lasts(clock) or clock.mono - 1000.0 < lifetime


# --- the end ----------------------------------------------------------------------------------------------------


async def test_closing_finishes_a_renewal_under_way(rig: Rig) -> None:
    """SIGTERM during a renewal: its token is stored, who waits for it gets it, the issuer is closed."""
    rig.issuer.gate.clear()
    broker = rig.broker()
    waiter = rig.later(broker.token(rig.after(60)))
    await settle()
    closing = rig.later(broker.aclose())
    await rig.clock.advance(9)
    assert not closing.done()
    assert rig.issuer.closed == 0
    rig.issuer.gate.set()
    await closing
    assert await rig.stored() == await waiter
    assert rig.issuer.closed == 1
    assert rig.clock.sleeping() == []


async def test_closing_waits_no_longer_than_a_call_may_take(rig: Rig) -> None:
    """An issuer that hangs does not hold up the stop longer than renew.timeout, and a second to store its answer."""
    rig.issuer.gate.clear()
    broker = rig.broker(timeout=7)
    waiter = rig.later(refused(broker.token(rig.after(60))))
    await settle()
    closing = rig.later(broker.aclose())
    await rig.clock.advance(7.9)
    assert not closing.done()
    await rig.clock.advance(0.1)
    await closing
    assert (await waiter).reason is Reason.SHUTTING_DOWN
    assert [event.detail for event in rig.renewals()] == ["cut off"]


async def test_closing_does_not_try_again(rig: Rig) -> None:
    """An attempt that fails during the stop is the last; who waits is told that we are stopping."""
    rig.issuer.gate.clear()
    rig.issuer.default = IssuerUnavailable("down")
    broker = rig.broker()
    waiter = rig.later(refused(broker.token(rig.after(60))))
    await settle()
    closing = rig.later(broker.aclose())
    await settle()
    rig.issuer.gate.set()
    await settle()
    assert closing.done()
    assert (await waiter).reason is Reason.SHUTTING_DOWN
    await rig.clock.advance(60)
    assert len(rig.issuer.calls) == 1


async def test_closing_cuts_a_backoff_short(rig: Rig) -> None:
    """Nobody waits for an attempt that will not be made."""
    rig.issuer.default = IssuerUnavailable("down", retry_after=600)
    broker = rig.broker()
    await broker.start()
    waiter = rig.later(refused(broker.token(rig.after(60))))
    await settle()
    await broker.aclose()
    assert (await waiter).reason is Reason.SHUTTING_DOWN
    assert rig.clock.sleeping() == []


async def test_closed_means_closed(rig: Rig) -> None:
    """Afterwards the token in memory serves requests in flight and nothing is renewed; a second close is none."""
    broker = await rig.started()
    await broker.aclose()
    await broker.aclose()
    used = await broker.token(rig.after(60))
    assert await broker.after(used, rig.after(60)) is None
    with pytest.raises(IssuerUnavailable, match="cut off"):
        await broker.renew()
    await rig.clock.advance(DUE)
    assert broker.current() == used
    await rig.clock.advance(USABLE - DUE)
    assert (await refused(broker.token(rig.after(60)))).reason is Reason.SHUTTING_DOWN
    await broker.revoke()
    assert (await refused(broker.token(rig.after(60)))).reason is Reason.SHUTTING_DOWN
    assert len(rig.issuer.calls) == 1


async def test_closing_right_after_the_start(rig: Rig) -> None:
    """A renewal that was started but has not run yet is no trap."""
    broker = rig.broker()
    await broker.start()
    await broker.aclose()
    other = rig.broker()
    rig.issuer.gate.clear()
    await other.start()
    await other.revoke()
    rig.issuer.gate.set()
    assert (await other.token(rig.after(60))).generation >= 1


async def test_on_the_machines_own_clock(rig: Rig) -> None:
    """The fake clock hides nothing: the same works with real time."""
    rig.issuer.clock = None  # type: ignore[assignment]
    clock = SystemClock()

    async def obtain(refresh_token: Secret | None) -> Grant:
        await asyncio.sleep(0.001)
        return Grant(
            access_token=access(1),
            lifetime=100,
            requested_at=clock.now(),
            lifetime_source="expires_in",
            grant="client_credentials",
            scope=None,
            refresh_token=None,
        )

    rig.issuer.obtain = obtain  # type: ignore[method-assign]
    broker = Broker(
        "plm",
        rig.issuer,
        rig.store,
        Keys(lambda: rig.ring, clock),
        Renew(),
        owner="test/1",
        clock=clock,
        emit=rig.events.append,
        configured_lifetime=None,
    )
    await broker.start()
    used = await broker.token(clock.monotonic() + 5)
    newer = await broker.after(used, clock.monotonic() + 5)
    assert (used.generation, (newer or used).generation) == (1, 2)
    await broker.aclose()


async def test_without_a_token_the_end_of_an_outage_is_noticed_soon(rig: Rig) -> None:
    """While nothing can serve, the issuer is asked every eight seconds at least."""
    rig.clock.chance = 1.0
    rig.issuer.default = IssuerUnavailable("down")
    broker = rig.broker()
    await broker.start()
    await rig.clock.advance(120)

    waits = [later - before for before, later in pairwise(rig.issuer.at)]
    assert waits[:5] == [1.0, 2.0, 4.0, 8.0, 8.0]
    assert set(waits[5:]) == {8.0}
