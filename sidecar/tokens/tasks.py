"""The tasks of one broker: kept while they run, named, and ended together."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from sidecar.events import Emit, Trouble


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
