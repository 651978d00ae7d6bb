"""What tests of the broker share: a clock that stands still, an issuer that does as it is told, and brokers of both.

The issuer and the clock are fakes at their ports; stores and seals are real.
"""

import asyncio
import heapq
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

import pytest

from sidecar.auth.grant import Anew, Grant, Values
from sidecar.clock import Clock
from sidecar.errors import Refusal, StoreError
from sidecar.events import Event, Renewal, Trouble
from sidecar.policy.seat import Seat
from sidecar.secret import Secret
from sidecar.settings import Renew
from sidecar.tokens.broker import Broker, Issuer
from sidecar.tokens.memory import MemoryStore
from sidecar.tokens.record import Presented, Record
from sidecar.tokens.seal import KeyRing, Keys, new_key
from sidecar.tokens.store import Stored, TokenStore, store_key
from sidecar.tokens.token import Token
from tests.canary import WORD, canary

IDENTITY = canary("client-id")
KEY = store_key(IDENTITY)
LIFETIME, DUE, USABLE = 100.0, 85.0, 95.0  # by a margin of 20 %, jitter 0.5, and min(5 s, 5 %)
WALL = 1_700_000_000.0
LEASE_SIGN = 3.0
TTL = 10.0
TURN = 1.0
FIRST = Secret(canary("first-refresh"))
"""The configured refresh token."""
REFRESH = Secret(canary("refresh"))
DEAD = Presented(by="test/dead")
"""The mark of an instance that was killed while it asked."""


async def settle() -> None:
    """Let every task run until it waits for the clock, the issuer or a thread."""
    for _ in range(30):
        await asyncio.sleep(0)


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
    """An issuer that grants `access-1`, `access-2`... unless told otherwise; waits while `gate` is shut.

    `calls`: what each call presented, None for what is configured alone. `given`: the seconds each call was given.
    `fetches`: what a refetch of a part brings, else nothing new; `refetched`: with which values it was asked.
    `released`: what was logged out.
    """

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.calls: list[str | None] = []
        self.at: list[float] = []
        self.given: list[float] = []
        self.answers: deque[Exception | dict[str, object]] = deque()
        self.default: Exception | dict[str, object] = {}
        self.gate = asyncio.Event()
        self.gate.set()
        self.anew = Anew.FREE
        self.secret = "secret-1"
        self.configured = FIRST
        self.looks = 0
        self.in_flight = 0
        self.most_in_flight = 0
        self.closed = 0
        self.refetched: list[Values] = []
        self.fetches: deque[Exception | Values] = deque()
        self.released: list[Values] = []
        self.releasing: Exception | None = None

    async def obtain(self, kept: Secret | None, seconds: float, *, values: Values | None = None) -> Grant:
        if values is not None:
            self.refetched.append(values)
            fetched = self.fetches.popleft() if self.fetches else {}
            await self.gate.wait()
            if isinstance(fetched, Exception):
                raise fetched
            return replace(granted_to(self.clock), values={**values, **fetched})
        self.calls.append(kept.reveal() if kept else None)
        self.at.append(self.clock.mono)
        self.given.append(seconds)
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
        grant = replace(granted_to(self.clock), values=access(number), requested_at=requested_at)
        return replace(grant, **answer)  # type: ignore[arg-type]

    async def release(self, values: Values, seconds: float) -> None:
        self.released.append(values)
        await self.gate.wait()
        if self.releasing is not None:
            raise self.releasing

    async def prime(self) -> None:
        pass

    def first(self) -> Secret | None:
        return self.configured if self.anew is Anew.ONCE else None

    def identity(self) -> str:
        return IDENTITY

    def fingerprint(self, salt: str) -> str:
        self.looks += 1
        return f"{salt} {self.secret}"

    async def aclose(self) -> None:
        self.closed += 1


class Shaky(MemoryStore):
    """A store that fails as it is told, shows how often it was asked, and can be emptied.

    *failing*: what every call raises; *reading* and *writing*: what these raise; *refusing*: nothing is written.
    """

    failing: Exception | None = None
    reading: Exception | None = None
    writing: Exception | None = None
    refusing = False
    ahead = 0.0

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.commands: list[str] = []

    @property
    def offset(self) -> float:
        return self.ahead

    def fail(self, *, silent: bool = False) -> None:
        """Let every call fail from now on."""
        self.failing = StoreError("the store is down", silent=silent)

    def wipe(self) -> None:
        """Lose everything, leases included."""
        self._records, self._leases = {}, {}

    def holder(self, key: str = KEY) -> str | None:
        """Return who has the lease of the record *key*."""
        over, owner = self._leases.get(key, (0.0, None))
        return owner if over > self._clock.monotonic() else None

    async def read(self, key: str) -> Stored:
        self.commands.append("read")
        _raise(self.reading)
        return await super().read(key)

    async def take(self, key: str, owner: str, ttl: float) -> tuple[bool, Stored]:
        self.commands.append("take")
        _raise(self.reading)
        return await super().take(key, owner, ttl)

    async def write(self, key: str, sealed: bytes, generation: int, *, after: int, release: str = "") -> bool:
        self.commands.append("write")
        _raise(self.writing)
        if self.refusing:
            return False
        written = await super().write(key, sealed, generation, after=after, release=release)
        if self.commands[-1] == "release":  # it is part of the write
            self.commands.pop()
        return written

    async def release(self, key: str, owner: str) -> None:
        if owner:
            self.commands.append("release")
        await super().release(key, owner)

    def _open(self) -> dict[str, Stored]:
        _raise(self.failing)
        return super()._open()


def _raise(error: Exception | None) -> None:
    if error is not None:
        raise error


@dataclass
class Rig:
    """A broker's neighbours, and the brokers made of them."""

    clock: FakeClock = field(default_factory=FakeClock)
    ring: KeyRing = field(default_factory=lambda: KeyRing([Secret(new_key())]))
    events: list[Event] = field(default_factory=list)
    brokers: list[Broker] = field(default_factory=list)
    tasks: set[asyncio.Task[object]] = field(default_factory=set)
    former: str | None = None
    marks: Path | None = None

    def __post_init__(self) -> None:
        self.issuer = FakeIssuer(self.clock)
        clock: Clock = self.clock
        self.shaky = Shaky(clock)
        self.store: TokenStore = self.shaky

    def broker(
        self,
        *,
        configured_lifetime: float | None = None,
        turns: asyncio.Semaphore | None = None,
        session: bool = False,
        seat: Seat | None = None,
        **settings: object,
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
            former=self.former,
            marks=self.marks,
            session=session,
            seat=seat,
        )
        self.brokers.append(made)
        return made

    async def begun(self, **settings: object) -> Broker:
        """Make a broker and start it, whatever comes of that."""
        made = self.broker(**settings)  # type: ignore[arg-type]
        await made.start()
        await settle()
        return made

    async def started(self, *, configured_lifetime: float | None = None, **settings: object) -> Broker:
        """Make a broker that has its first token."""
        made = await self.begun(configured_lifetime=configured_lifetime, **settings)
        assert made.current() is not None
        return made

    async def kill(self, broker: Broker) -> None:
        """End a broker as SIGKILL does: nothing is given back, nothing is written."""
        store, self.shaky.failing = self.shaky.failing, StoreError("killed")
        await broker._tasks.aclose()
        self.shaky.failing = store

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

    async def put(self, record: Record) -> Token:
        """Store *record* as another process would, and return its token."""
        await self.put_bytes(self.ring.seal(KEY, record.encode()), record.generation)
        return record.token or token()

    async def put_bytes(self, sealed: bytes, generation: int) -> None:
        """Store these bytes, whatever is there."""
        there = (await MemoryStore.read(self.shaky, KEY)).generation
        assert await MemoryStore.write(self.shaky, KEY, sealed, generation, after=there)

    async def stored(self) -> Record:
        """Return the record in the store."""
        found = await self.store.read(KEY)
        record = Record.decode(self.ring.open(KEY, found.sealed))
        assert record.generation == found.generation
        return record

    def renewals(self) -> list[Renewal]:
        return [event for event in self.events if isinstance(event, Renewal)]

    def troubles(self) -> list[Trouble]:
        return [event for event in self.events if isinstance(event, Trouble)]


@pytest.fixture(params=["stock", "eager"])
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    """A rig; with the stock task factory, and with the eager one, which runs a new task to its first await at once."""
    if request.param == "eager":
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
    async with _rigged() as made:
        yield made
    assert made.issuer.most_in_flight <= 1


@pytest.fixture
async def fleet_rig() -> AsyncIterator[Rig]:
    """A rig for many brokers; two of them may ask at once where that costs nothing."""
    async with _rigged() as made:
        yield made


@asynccontextmanager
async def _rigged() -> AsyncIterator[Rig]:
    made = Rig()
    yield made
    made.issuer.gate.set()
    made.clock.release()
    made.shaky.failing = made.shaky.reading = made.shaky.writing = None
    for broker in made.brokers:
        await broker.aclose()
        assert not broker._tasks._running
    for task in made.tasks:
        task.cancel()
    await asyncio.gather(*made.tasks, return_exceptions=True)
    await made.store.aclose()
    assert WORD not in repr(made.events)
    assert WORD not in repr([broker.status() for broker in made.brokers])


def access(number: int) -> Mapping[str, Secret]:
    """Return the values of the issuer's token of its call *number*."""
    return {"access_token": Secret(canary(f"access-{number}"))}


def granted_to(clock: FakeClock) -> Grant:
    """Return what the issuer grants where nothing else is said, asked for just now."""
    return Grant(
        values=access(0),
        kept=None,
        requested_at=clock.wall,
        lifetime=LIFETIME,
        source="expires_in",
        how="client_credentials",
    )


def token(granted: int = 1, **fields: object) -> Token:
    """Return a token as an earlier process was granted it, just now."""
    plain = Token(
        values={"access_token": Secret(canary(f"stored-{granted}"))},
        issued_at=WALL,
        expires_at=WALL + LIFETIME,
        granted=granted,
        source="expires_in",
        how="client_credentials",
        trigger="due",
    )
    return replace(plain, **fields)  # type: ignore[arg-type]


def record(generation: int = 1, *, left: float = LIFETIME, **fields: object) -> Record:
    """Return a record as an earlier process stored it, whose token has *left* seconds."""
    held = token(generation, issued_at=WALL - LIFETIME + left, expires_at=WALL + left)
    return replace(Record(generation=generation, token=held), **fields)  # type: ignore[arg-type]


def bare(granted: Token | None) -> Token:
    """Return what requests get; there must be one."""
    assert granted is not None
    return granted


async def refused(work: Awaitable[object]) -> Refusal:
    """Return the Refusal that *work* ends in."""
    with pytest.raises(Refusal) as caught:
        await work
    return caught.value
