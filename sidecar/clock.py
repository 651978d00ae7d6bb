"""Time and chance: the only module that imports them, so that a test can own both.

Two clocks, never mixed: `monotonic` for deadlines inside this process, `now` (wall time) for the expiry of
tokens, which other processes and restarts share.
"""

import asyncio
import random
import time
from typing import Protocol


class Clock(Protocol):
    """What the rest of the house knows of time and chance; seconds everywhere."""

    def monotonic(self) -> float:
        """Return seconds that never go back; only differences mean something."""
        ...

    def now(self) -> float:
        """Return seconds since the epoch; may jump when the machine's clock is set."""
        ...

    def jitter(self) -> float:
        """Return a random number in [0, 1)."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait; zero or less only yields to other tasks."""
        ...


class SystemClock:
    """The clock of the machine."""

    def monotonic(self) -> float:
        """Return the time of the event loop's own clock."""
        return time.monotonic()

    def now(self) -> float:
        """Return the wall time."""
        return time.time()

    def jitter(self) -> float:
        """Return a random number; not for secrets."""
        return random.random()  # noqa: S311  spreads load, guards nothing

    async def sleep(self, seconds: float) -> None:
        """Wait on the event loop."""
        await asyncio.sleep(max(0.0, seconds))


def span(seconds: float) -> str:
    """Return a duration in its two largest units: `4m 12s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = zip((*divmod(hours, 24), minutes, rest), "dhms", strict=True)
    return " ".join([f"{number}{unit}" for number, unit in parts if number][:2]) or "0s"
