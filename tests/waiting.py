"""How tests wait: for what they look at, and so long that only a hang makes it too long."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

PATIENCE = 60.0
"""Seconds for what takes a moment; a machine with other work may need ten times as long as an idle one."""


async def until(ready: Callable[[], Any], what: str, within: float = PATIENCE) -> None:
    """Wait until *ready* is true, which is asked every 10 ms; AssertionError if it takes too long."""
    end = time.monotonic() + within
    while not ready():
        assert time.monotonic() < end, f"{what}: not within {within} s"
        await asyncio.sleep(0.01)


async def eventually(ask: Callable[[], Awaitable[Any]], wanted: Any, within: float = PATIENCE) -> None:
    """Ask until the answer is *wanted*; AssertionError if it takes too long."""
    end, last = time.monotonic() + within, None
    while (last := await ask()) != wanted:
        assert time.monotonic() < end, f"{last} and not {wanted} within {within} s"
        await asyncio.sleep(0.05)
