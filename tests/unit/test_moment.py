"""The shared pause: what one instance is told the others keep to, and what a store cannot make them do."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from sidecar.errors import StoreError
from sidecar.events import Event
from sidecar.secret import Secret
from sidecar.tokens.memory import MemoryStore
from sidecar.tokens.moment import SharedMoment
from sidecar.tokens.seal import KeyRing, Keys, new_key, parse_keys
from sidecar.tokens.store import Stored, store_key

IDENTITY = "https://plm.example.com/api sync"
KEY = store_key(IDENTITY, "pause-upstream")
WALL = 1_700_000_000.0


class Hands:
    """A clock that stands still until it is set; *ahead* of the store's by so much."""

    def __init__(self, ahead: float = 0.0) -> None:
        self.mono, self.ahead = 100.0, ahead

    def monotonic(self) -> float:
        return self.mono

    def now(self) -> float:
        return WALL + self.mono + self.ahead

    def jitter(self) -> float:
        return 0.5

    async def sleep(self, seconds: float) -> None:
        self.mono += seconds


class Store(MemoryStore):
    """A store whose reads and writes are counted, that may be down, and for which a clock is *ahead*."""

    def __init__(self) -> None:
        super().__init__(Hands())
        self.down = False
        self.reads = self.writes = 0

    async def read(self, key: str) -> Stored:
        self.reads += 1
        if self.down:
            raise StoreError("down")
        return await super().read(key)

    async def write(self, key: str, sealed: bytes, generation: int, *, after: int, release: str = "") -> bool:
        self.writes += 1
        if self.down:
            raise StoreError("down")
        await asyncio.sleep(0)
        return await super().write(key, sealed, generation, after=after, release=release)

    async def plant(self, sealed: bytes, generation: int) -> None:
        """Put a record there, whatever is there."""
        await super().write(KEY, sealed, generation, after=(await super().read(KEY)).generation)


class View:
    """The store as an instance sees it whose clock is *ahead*."""

    def __init__(self, store: Store, ahead: float) -> None:
        self._store = store
        self.offset = -ahead

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)


@dataclass
class House:
    """Instances on one store."""

    ring: KeyRing
    store: Store = field(default_factory=Store)
    events: list[Event] = field(default_factory=list)
    made: list[SharedMoment] = field(default_factory=list)

    def pause(
        self,
        clock: Hands | None = None,
        *,
        longest: float = 30.0,
        ring: KeyRing | None = None,
        identity: str = IDENTITY,
    ) -> SharedMoment:
        hands, keys = clock or Hands(), ring or self.ring
        view: object = View(self.store, hands.ahead)
        made = SharedMoment(
            "plm",
            identity,
            view,  # type: ignore[arg-type]
            Keys(lambda: keys, hands),
            longest=longest,
            clock=hands,
            emit=self.events.append,
        )
        self.made.append(made)
        return made


def fresh_ring() -> KeyRing:
    return parse_keys([Secret(new_key())])


@pytest.fixture
async def house() -> AsyncIterator[House]:
    made = House(fresh_ring())
    yield made
    for pause in made.made:
        await pause.aclose()
    assert made.events == []


async def settle() -> None:
    """Let what runs beside come to its end."""
    for _ in range(20):
        await asyncio.sleep(0)


async def looked(pause: SharedMoment) -> float:
    """Return until when it pauses after a look."""
    pause.look_at = 0.0
    pause.look()
    await settle()
    return pause.until


async def test_what_one_was_told_all_keep_to(house: House) -> None:
    """At once where it was told, elsewhere after the next look, to the same moment."""
    one, other = house.pause(), house.pause()
    one.extend(20)
    assert one.until == 120.0
    await settle()

    assert other.until == 0.0
    assert await looked(other) == pytest.approx(120.0, abs=0.01)


@pytest.mark.parametrize("ahead", [-3600.0, -1.0, 1.0, 3600.0])
async def test_clocks_that_differ_mean_the_same_moment(house: House, ahead: float) -> None:
    """The record's time is the store's."""
    house.pause(Hands(ahead)).extend(20)
    await settle()

    assert await looked(house.pause()) == pytest.approx(120.0, abs=0.01)
    assert await looked(house.pause(Hands(-ahead))) == pytest.approx(120.0, abs=0.01)


async def test_later_end_wins_whoever_tells_it(house: House) -> None:
    """A shorter pause never shortens a longer one, here or elsewhere."""
    one, other, third = house.pause(), house.pause(), house.pause()
    one.extend(20)
    await settle()
    other.extend(5)
    await settle()
    assert await looked(third) == pytest.approx(120.0, abs=0.01)
    other.extend(25)
    await settle()

    assert await looked(third) == pytest.approx(125.0, abs=0.01)
    one.extend(1)
    assert one.until == 120.0


async def test_who_has_another_credential_or_upstream_does_not_wait(house: House) -> None:
    """The limit is not theirs."""
    house.pause().extend(20)
    await settle()

    assert await looked(house.pause(identity=IDENTITY + "2")) == 0.0


async def test_none_is_believed_beyond_the_longest(house: House) -> None:
    """Each once: when it has been waited for, the same record does not hold anybody up again."""
    house.pause(longest=3600.0).extend(3000)
    await settle()
    clock = Hands()
    careful = house.pause(clock, longest=30.0)

    assert await looked(careful) == 130.0
    clock.mono = 131.0
    assert await looked(careful) == 130.0


@pytest.mark.parametrize("strange", ["not sealed", "sealed for another number", "empty", "days away", "soon"])
async def test_record_that_nobody_of_us_wrote_stops_nobody(house: House, strange: str) -> None:
    """Its number keeps no honest pause out: the next one is written over it, also by who has not looked before."""
    end = int((WALL + 100 + 20) * 1000)
    number, sealed = {
        "not sealed": (end + 10**9, b"x" * 60),
        "sealed for another number": (end + 10**9, house.ring.seal(KEY, b"%d" % end)),
        "empty": (end + 10**9, b""),
        "soon": (end + 5000, house.ring.seal(KEY, b"%d" % end)),
        "days away": (end + 10**9, house.ring.seal(KEY, b"%d" % (end + 10**9))),
    }[strange]
    await house.store.plant(sealed, number)
    one, other, third = house.pause(), house.pause(), house.pause()
    assert await looked(one) == 0.0
    for teller in (one, third):
        teller.extend(20)
        await settle()
        assert await looked(other) == pytest.approx(120.0, abs=0.01)
        await house.store.plant(sealed, number)
    assert await looked(other) == pytest.approx(120.0, abs=0.01)


async def test_record_of_a_key_that_we_lack_is_left_alone(house: House) -> None:
    """It may serve others, and a later end wins: one that is earlier is written over."""
    house.pause(ring=fresh_ring()).extend(20)
    await settle()
    there = await house.store.read(KEY)
    one, other = house.pause(), house.pause()
    assert await looked(one) == 0.0
    one.extend(10)
    await settle()
    assert await house.store.read(KEY) == there

    one.extend(30)
    await settle()
    assert await looked(other) == pytest.approx(130.0, abs=0.01)


async def test_store_that_comes_back_empty_is_told_again(house: House) -> None:
    """The next pause is written, though another was there before."""
    one, other = house.pause(), house.pause()
    one.extend(20)
    await settle()
    house.store._records = {}
    one.extend(30)
    await settle()

    assert await looked(other) == pytest.approx(130.0, abs=0.01)


async def test_pause_that_is_over_holds_nobody(house: House) -> None:
    """The record stays, and says nothing any more."""
    house.pause().extend(20)
    await settle()
    clock = Hands()
    clock.mono = 125.0
    late = house.pause(clock)

    assert await looked(late) <= 125.0


async def test_store_is_looked_at_once_a_second(house: House) -> None:
    """However many ask."""
    clock = Hands()
    pause = house.pause(clock)
    for _ in range(5):
        pause.look()
    await settle()
    assert house.store.reads == 1
    clock.mono += 0.9
    pause.look()
    await settle()
    assert house.store.reads == 1
    clock.mono += 0.2
    pause.look()
    await settle()
    assert house.store.reads == 2


async def test_burst_of_answers_is_told_of_once(house: House) -> None:
    """A hundred 429s within half a second are one pause for the others."""
    clock = Hands()
    pause = house.pause(clock)
    for _ in range(100):
        clock.mono += 0.004
        pause.extend(20)
    await settle()
    assert house.store.writes == 1
    clock.mono += 1
    pause.extend(20)
    await settle()
    assert house.store.writes == 2


async def test_what_grows_while_it_is_told_is_told_as_well(house: House) -> None:
    """The write under way has the earlier end; another follows."""
    one, other = house.pause(), house.pause()
    one.extend(5)
    one.extend(20)
    await settle()

    assert await looked(other) == pytest.approx(120.0, abs=0.01)


async def test_trouble_with_the_store_changes_nothing(house: House) -> None:
    """Who was told waits, nobody hears of an error, and when it is back the next pause is shared."""
    one, other = house.pause(), house.pause()
    house.store.down = True
    one.extend(5)
    await settle()
    assert (one.until, await looked(other)) == (105.0, 0.0)
    house.store.down = False
    one.extend(20)
    await settle()

    assert await looked(other) == pytest.approx(120.0, abs=0.01)
