"""How long the upstream side may take: the time-outs of an attempt, and the one deadline of a request."""

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long one attempt may take, in seconds: to connect, to the first byte of the answer, without progress."""

    connect: float
    first_byte: float
    idle: float


class Limit:
    """A time-out that is given anew often and seldom passes; *passed* is called when it does.

    *unsent* tells how many bytes have not been taken yet: when there are fewer of them than when it was given, it
    begins anew instead. A timer that is set for an earlier time is left as it is: when it rings, the time is looked at.
    """

    __slots__ = ("_due", "_left", "_loop", "_passed", "_seconds", "_timer", "_unsent")

    def __init__(self, loop: asyncio.AbstractEventLoop, passed: Callable[[], None], unsent: Callable[[], int]) -> None:
        self._loop = loop
        self._passed = passed
        self._unsent = unsent
        self._due = self._seconds = math.inf
        self._left = 0
        self._timer: asyncio.TimerHandle | None = None

    def give(self, seconds: float, left: int = 0) -> None:
        """Let it pass in *seconds*, infinity: never, whatever was given before; *left*: what is to be taken by then."""
        self._seconds, self._left = seconds, left
        self._due = self._loop.time() + seconds
        if seconds < math.inf and (self._timer is None or self._timer.when() > self._due):
            self.cancel()
            self._timer = self._loop.call_at(self._due, self._look)

    def lift(self) -> None:
        """Let it never pass."""
        self._due = math.inf

    def cancel(self) -> None:
        """Leave no timer behind; it does not pass until something is given anew."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        if self._loop.time() < self._due:
            if self._due < math.inf:
                self._timer = self._loop.call_at(self._due, self._look)
        elif (left := self._unsent()) < self._left:
            self.give(self._seconds, left)
        else:
            self._passed()
