"""The breaker of one upstream: when most attempts fail it opens, and only a probe now and then goes through.

    closed     every attempt may go; each result counts
    open       none may go until the next probe is due
    half-open  one probe is under way

A pure machine: the caller hands in *now*, on a clock that does not go back, and *jitter* in [0, 1).
"""

from dataclasses import dataclass
from enum import IntEnum

from sidecar.policy.rolling import Rolling

FAILED = frozenset({502, 503, 504})
"""Answers of an upstream that cannot serve. 500 is often the fault of one request, 429 is a working limit."""
_FIRST_SHARE = 1 / 16
_LONGEST_SHARE = 1 / 2


class State(IntEnum):
    """Where a breaker stands; the number is that of the metric."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerPolicy:
    """An upstream's `breaker` settings: *failures* is a share, durations are in seconds."""

    failures: float = 0.5
    min_requests: int = 20
    window: float = 10.0
    open_for: float = 15.0


class Breaker:
    """Counts results, and gives permits: numbers that grow, so that a result which comes late is known as such.

    Probes are due after a sixteenth of `open_for`, then an eighth, a quarter, and from then on a half; each wait is
    shortened by up to half of it at random. A probe that takes longer than that is not waited for: the next may go,
    though a success of any probe still closes. `not_before`: until then nothing may go; 0 while it is closed.
    """

    __slots__ = ("_attempts", "_failures", "_least", "_permit", "_policy", "_probes", "not_before", "state")

    def __init__(self, policy: BreakerPolicy) -> None:
        self._policy = policy
        self._attempts = Rolling(policy.window)
        self._failures = Rolling(policy.window)
        self._permit = self._least = 1
        self._probes = 0
        self.not_before = 0.0
        self.state = State.CLOSED

    def counts(self, now: float) -> tuple[int, int]:
        """Return attempts and failures of the window; both begin anew when it closes."""
        return self._attempts.total(now), self._failures.total(now)

    def ask(self, now: float, jitter: float) -> int:
        """Return a permit for one attempt, 0 if there is none now; each must come back by `record` or `give_back`."""
        if self.state is State.CLOSED:
            return self._permit
        if now < self.not_before:
            return 0
        self.state = State.HALF_OPEN
        self._permit += 1
        self._probes += 1
        self._wait(now, jitter)
        return self._permit

    def record(self, permit: int, *, ok: bool, now: float, jitter: float) -> None:
        """Count how the attempt with *permit* ended; one from before the last change says nothing and is ignored."""
        if permit < self._least:
            return
        if self.state is State.CLOSED:
            self._attempts.add(now)
            if not ok:
                self._failures.add(now)
                if self._fails_too_often(now):
                    self._least = self._permit + 1
                    self._probes = 0
                    self.state = State.OPEN
                    self._wait(now, jitter)
        elif ok:
            self._permit += 1
            self._least = self._permit
            self._attempts.clear()
            self._failures.clear()
            self.not_before = 0.0
            self.state = State.CLOSED
        elif permit == self._permit and self.state is State.HALF_OPEN:
            self.state = State.OPEN
            self._wait(now, jitter)

    def give_back(self, permit: int, *, now: float, jitter: float) -> None:
        """Take back a permit whose attempt came to no result: the client left, or nothing was tried.

        If it was the probe's, another one may go after the shortest of the waits, or when it was due anyway.
        """
        if self.state is State.HALF_OPEN and permit == self._permit:
            self.state = State.OPEN
            self.not_before = min(self.not_before, now + self._policy.open_for * _FIRST_SHARE * (1 - jitter / 2))

    def _fails_too_often(self, now: float) -> bool:
        attempts, failures = self.counts(now)
        return attempts >= self._policy.min_requests and failures >= self._policy.failures * attempts

    def _wait(self, now: float, jitter: float) -> None:
        share = min(_LONGEST_SHARE, _FIRST_SHARE * 2.0 ** min(self._probes, 10))
        self.not_before = now + self._policy.open_for * share * (1 - jitter / 2)
