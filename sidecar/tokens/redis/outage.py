"""A breaker around a store: a dead one costs its callers nothing until it is tried again."""

from sidecar.clock import Clock

_FAILURES = 2
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 30.0


class Outage:
    """Open after two failures in a row for 1 s, doubling to 30 s; then one call is the probe, the others wait.

    A call takes a ticket and hands it back with its end. What began before the last change says nothing about it.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._failures = 0
        self._pause = 0.0
        self._until = 0.0
        self._probing = False
        self._epoch = 0

    @property
    def open(self) -> bool:
        """Whether calls are refused, but for a probe."""
        return self._pause > 0

    @property
    def left(self) -> float:
        """Seconds until the next probe; 0 if one may go, or is under way, or if nothing is wrong."""
        return max(0.0, self._until - self._clock.monotonic()) if self.open else 0.0

    def enter(self) -> int | None:
        """Return the ticket of a call, None if none may be made now."""
        if self.open:
            if self._probing or self.left > 0:
                return None
            self._probing = True
        return self._epoch

    def succeeded(self, ticket: int) -> None:
        """Note that the store answered."""
        if ticket == self._epoch:
            self._failures, self._probing = 0, False
            if self.open:
                self._pause = 0.0
                self._epoch += 1

    def failed(self, ticket: int) -> None:
        """Note that the store gave no answer."""
        if ticket != self._epoch:
            return
        self._failures += 1
        if self.open or self._failures >= _FAILURES:
            self._pause = min(self._pause * 2, _LONGEST_PAUSE) or _FIRST_PAUSE
            self._until = self._clock.monotonic() + self._pause
            self._probing = False
            self._epoch += 1
