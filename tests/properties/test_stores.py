"""The stores: whatever two owners do in turn, and however long they wait, each store says what a plain model says."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import assert_never

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.clock import SystemClock
from sidecar.tokens.memory import MemoryStore
from sidecar.tokens.redis.store import RedisStore
from sidecar.tokens.sqlite import SqliteStore
from sidecar.tokens.store import Stored, TokenStore, lease_key, store_key
from tests.redis_servers import Server, redis_of_session, redis_server
from tests.waiting import PATIENCE

__all__ = ["redis_of_session", "redis_server"]


@dataclass
class SetClock(SystemClock):
    """Both clocks of the machine, which only move when told to."""

    at: float = 1.8e9

    def now(self) -> float:
        return self.at

    def monotonic(self) -> float:
        return self.at


@dataclass(frozen=True)
class Read:
    pass


@dataclass(frozen=True)
class Take:
    owner: str
    ttl: float


@dataclass(frozen=True)
class Write:
    """*after* None: what is there."""

    sealed: bytes
    generation: int
    after: int | None
    release: str


@dataclass(frozen=True)
class Release:
    owner: str


@dataclass(frozen=True)
class Wait:
    seconds: float


Step = Read | Take | Write | Release | Wait
Answer = Stored | tuple[bool, Stored] | bool | None

OWNERS = st.sampled_from("ab")
GENERATIONS = st.integers(1, 4)
STEPS: st.SearchStrategy[Step] = st.one_of(
    st.just(Read()),
    st.builds(Take, OWNERS, st.sampled_from([1000.0, 3000.0])),
    st.builds(Write, st.binary(max_size=4), GENERATIONS, st.none() | st.integers(0, 4), st.just("") | OWNERS),
    st.builds(Release, OWNERS),
    st.builds(Wait, st.sampled_from([900.0, 1100.0])),
)


@dataclass
class Model:
    """What is there, in the plainest words."""

    stored: Stored = field(default_factory=Stored)
    holder: str = ""
    left: float = 0.0

    def does(self, step: Step) -> Answer:
        """Do *step*, and return what a store has to answer."""
        match step:
            case Read():
                return self.stored
            case Take():
                if free := self.holder in {"", step.owner}:
                    self.holder, self.left = step.owner, step.ttl
                return free, self.stored
            case Write():
                if step.after != self.stored.generation:
                    return False
                self.stored = Stored(step.generation, step.sealed)
                self._freed(step.release)
                return True
            case Release():
                self._freed(step.owner)
            case Wait():
                self.left -= step.seconds
                if self.left <= 0:
                    self.holder = ""
            case _:
                assert_never(step)
        return None

    def _freed(self, owner: str) -> None:
        if self.holder == owner:
            self.holder = ""


async def done(store: TokenStore, key: str, step: Read | Take | Write | Release) -> Answer:
    """Have the store do *step*."""
    match step:
        case Read():
            return await store.read(key)
        case Take():
            return await store.take(key, step.owner, step.ttl)
        case Write():
            assert step.after is not None
            return await store.write(key, step.sealed, step.generation, after=step.after, release=step.release)
        case Release():
            await store.release(key, step.owner)
            return None


def agrees(store: TokenStore, wait: Callable[[str, Model, float], None]) -> Awaitable[None]:
    """Try many runs of steps, each under a name of its own, and compare every answer; then close the store."""
    numbers = count()
    loop = asyncio.get_running_loop()

    async def run(steps: list[Step]) -> None:
        model, key = Model(), store_key(f"run {next(numbers)}")
        for drawn in steps:
            step = drawn
            if isinstance(step, Write) and step.after is None:
                step = replace(step, after=model.stored.generation)
            expected = model.does(step)
            if isinstance(step, Wait):
                wait(key, model, step.seconds)
            else:
                assert await done(store, key, step) == expected, step
        assert await store.read(key) == model.stored

    @settings(max_examples=100)
    @given(st.lists(STEPS, max_size=20))
    def tried(steps: list[Step]) -> None:
        asyncio.run_coroutine_threadsafe(run(steps), loop).result(PATIENCE)

    return asyncio.to_thread(tried)


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_a_store_does_what_the_model_does(kind: str, tmp_path: Path) -> None:
    """One in memory and one on disk, whose clock is that of the machine."""
    clock = SetClock()

    def wait(key: str, model: Model, seconds: float) -> None:
        clock.at += seconds

    store: TokenStore = MemoryStore(clock) if kind == "memory" else SqliteStore(tmp_path, clock=clock)
    await agrees(store, wait)
    await store.aclose()


async def test_redis_does_what_the_model_does(redis_server: Server) -> None:
    """It counts by its own time: a lease that is over is gone, and one that is not has as long as the model says."""
    store = RedisStore(redis_server.url, timeout=PATIENCE)

    def wait(key: str, model: Model, seconds: float) -> None:
        left = redis_server.command("PTTL", lease_key(key))
        if left > 0:
            redis_server.command("PEXPIRE", lease_key(key), int(left - seconds * 1000))
        assert redis_server.command("EXISTS", lease_key(key)) == bool(model.holder)

    await agrees(store, wait)
    await store.aclose()
