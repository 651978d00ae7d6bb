"""A sum over the last seconds, in constant memory and time; *now* is the caller's monotonic clock."""

import math


class Rolling:
    """How much was added within the last *span* seconds, counted in so many *parts* of it.

    The oldest part goes as a whole, so that the sum covers the span less up to one part. Time must not go back.
    """

    __slots__ = ("_at", "_edge", "_parts", "_slot", "_sum", "_width")

    def __init__(self, span: float, parts: int = 10) -> None:
        self._width = span / parts
        self._parts = [0] * parts
        self._sum = self._at = self._slot = 0
        self._edge = self._width

    def add(self, now: float) -> None:
        """Count one."""
        if now >= self._edge:
            self._move(now)
        self._parts[self._slot] += 1
        self._sum += 1

    def total(self, now: float) -> int:
        """Return the sum."""
        if now >= self._edge:
            self._move(now)
        return self._sum

    def _move(self, now: float) -> None:
        parts, at = self._parts, math.floor(now / self._width)
        for gone in range(max(self._at + 1, at - len(parts) + 1), at + 1):
            self._sum -= parts[gone % len(parts)]
            parts[gone % len(parts)] = 0
        self._at = max(at, self._at)
        self._slot = self._at % len(parts)
        self._edge = (self._at + 1) * self._width
