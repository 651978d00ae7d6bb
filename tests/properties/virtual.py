"""Time that passes only when nobody has anything to do: a day takes seconds, and every run is the same.

An event loop of asyncio whose clock jumps to the next timer instead of waiting for it. Work on threads is waited for,
while time stands still. When everybody waits for ever, it says so instead of hanging.
"""

import asyncio
import random
import selectors
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from typing import Any

WALL = 1_700_000_000.0
_THREAD_SECONDS = 30.0


class Stuck(RuntimeError):
    """Nothing can ever happen again: all tasks wait, and no timer runs."""


class _Jumping(selectors.BaseSelector):
    """A selector that lets the loop's time jump where another would wait."""

    def __init__(self) -> None:
        self.inner = selectors.DefaultSelector()
        self.jump: Callable[[float], None] = lambda _: None
        self.threads = 0

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self.inner.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self.inner.unregister(fileobj)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self.inner.get_map()

    def close(self) -> None:
        self.inner.close()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if self.threads:
            return self.inner.select(_THREAD_SECONDS if timeout != 0 else 0)
        if timeout is None:
            raise Stuck("everybody waits, for nothing")
        self.jump(max(0.0, timeout))
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop on virtual time, which starts at 1000 s; *eager* as in the product."""

    def __init__(self, *, eager: bool = True) -> None:
        self._selector_ = _Jumping()
        self._now = 1000.0
        super().__init__(self._selector_)
        self._selector_.jump = self._pass
        if eager:
            self.set_task_factory(asyncio.eager_task_factory)

    def time(self) -> float:
        return self._now

    def run_in_executor[*Ts, T](  # type: ignore[override]
        self, executor: Executor | None, func: Callable[[*Ts], T], *args: *Ts
    ) -> asyncio.Future[T]:
        if executor is None:  # a file of ours: done at once, so that every run is the same
            return self._done_now(func, *args)
        future = super().run_in_executor(executor, func, *args)
        self._selector_.threads += 1
        future.add_done_callback(self._thread_done)
        return future

    def _done_now[*Ts, T](self, func: Callable[[*Ts], T], *args: *Ts) -> asyncio.Future[T]:
        future: asyncio.Future[T] = self.create_future()
        try:
            result = func(*args)
        except Exception as error:  # noqa: BLE001  it comes out where it is awaited
            future.set_exception(error)
        else:
            self.call_soon(_set, future, result)
        return future

    def _thread_done(self, _: object) -> None:
        self._selector_.threads -= 1

    def _pass(self, seconds: float) -> None:
        self._now += seconds


def _set[T](future: asyncio.Future[T], result: T) -> None:
    if not future.done():
        future.set_result(result)


class VirtualClock:
    """The clock of one machine on a VirtualLoop; *skew*: how far its wall time is ahead, which may be changed."""

    def __init__(self, loop: VirtualLoop, chance: random.Random) -> None:
        self._loop = loop
        self._chance = chance
        self.skew = 0.0

    def monotonic(self) -> float:
        return self._loop.time()

    def now(self) -> float:
        return WALL + self._loop.time() + self.skew

    def jitter(self) -> float:
        return self._chance.random()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds))
