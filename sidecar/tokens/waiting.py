"""Work beside its caller, and waiting for a state to come about: many wait, none polls, each to its own deadline."""

import asyncio
import math
from collections.abc import Callable, Coroutine
from typing import Any

from sidecar.clock import Clock
from sidecar.events import Emit, Trouble
from sidecar.tokens.protocols import Spawn


class Changes:
    """Wakes all who wait whenever something has changed; each then looks whether it is what it waits for."""

    def __init__(self, clock: Clock, spawn: Spawn) -> None:
        self._clock = clock
        self._spawn = spawn
        self._next: asyncio.Future[None] | None = None

    def changed(self) -> None:
        """Let all who wait look again."""
        if self._next is not None:
            self._next.set_result(None)
            self._next = None

    async def until(self, ready: Callable[[], bool], deadline: float) -> bool:
        """Wait until *ready*, which is asked now and after every change; False at *deadline* (monotonic clock).

        What *ready* raises comes out. Cancelled, it disturbs nobody else.
        """
        nap: asyncio.Task[None] | None = None
        try:
            while True:
                # Taken before asking: what *ready* itself sets off may already be over when it returns.
                if self._next is None:
                    self._next = asyncio.get_running_loop().create_future()
                awaited: set[asyncio.Future[None]] = {self._next}
                if ready():
                    return True
                if nap is None and deadline < math.inf:
                    nap = self._spawn(self._clock.sleep(deadline - self._clock.monotonic()), "wait")
                elif nap is not None and nap.done():
                    return False
                await asyncio.wait(awaited | ({nap} if nap else set()), return_when=asyncio.FIRST_COMPLETED)
        finally:
            if nap is not None:
                nap.cancel()


class Tasks:
    """Runs work beside its caller for the credential *name*."""

    def __init__(self, name: str, emit: Emit) -> None:
        self._name = name
        self._emit = emit
        self._running: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run *work* in a task that is kept, named, and whose unexpected end is told."""
        task = asyncio.create_task(work, name=f"{name} of {self._name}")
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    async def aclose(self) -> None:
        """Cancel what still runs and wait until it has ended; twice does no harm."""
        if running := set(self._running):
            for task in running:
                task.cancel()
            await asyncio.wait(running)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._emit(Trouble(where=task.get_name(), detail=f"internal error: {type(error).__name__}"))
