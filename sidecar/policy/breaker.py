"""The breaker of one upstream: when nothing gets through it opens, and only a probe now and then goes through.

    closed     every request may go; each result counts
    open       an endpoint that has failed waits until its next probe is due
    half-open  a probe is under way

Evidence is by request, whatever its attempts, and by endpoint: one that fails does not close the way to those that
answer, and one that was never seen to fail is probed at once. The first success of a probe closes the breaker.
A pure machine: the caller hands in *now*, on a clock that does not go back, and *jitter* in [0, 1).
"""

import math
import re
from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import IntEnum

FAILED = frozenset({502, 503, 504})
"""Answers of an upstream that cannot serve. 500 is often the fault of one request, 429 is a working limit."""
OTHERS = b"*"
"""What endpoints are counted as together when there are too many of them."""
_MOST = 64
_LONGEST_PATH = 200
_PARTS = 10
_FIRST_SHARE = 1 / 16
_LONGEST_SHARE = 1 / 2
_NAMES_ONE = re.compile(rb"(?<=/)[^/]*[^A-Za-z/._~-][^/]*")


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


def endpoint_of(target: bytes) -> bytes:
    """Return what *target* is one of: its path, with `*` for each segment that names one thing of many.

    Such a segment has a digit, an escape or another sign in it: `/parts/4711/files` is `/parts/*/files`. What is long
    is cut.
    """
    return _NAMES_ONE.sub(OTHERS, target.partition(b"?")[0][:_LONGEST_PATH])


class Breaker:
    """Counts results, and gives permits: numbers that grow, so that a result which comes late is known as such.

    Probes of an endpoint are due after a sixteenth of `open_for`, then an eighth, a quarter, and from then on a half;
    each wait is shortened by up to half of it at random. A probe that takes longer than that is not waited for: the
    next may go, though a success of any probe still closes.
    """

    __slots__ = ("_least", "_parts", "_permit", "_policy", "_probes", "_waits", "_width")

    def __init__(self, policy: BreakerPolicy) -> None:
        self._policy = policy
        self._width = policy.window / _PARTS
        self._parts: deque[_Part] = deque(maxlen=_PARTS)
        self._permit = self._least = 1
        self._waits: dict[bytes, _Wait] | None = None
        self._probes: dict[bytes, int] = {}

    @property
    def state(self) -> State:
        """Where it stands."""
        if self._waits is None:
            return State.CLOSED
        return State.HALF_OPEN if self._probes else State.OPEN

    @property
    def closed(self) -> bool:
        """Whether every request may go."""
        return self._waits is None

    @property
    def next_at(self) -> float:
        """When the next probe of an endpoint that has failed is due; 0 while it is closed."""
        return min((wait.until for wait in self._waits.values()), default=0.0) if self._waits else 0.0

    def not_before(self, endpoint: bytes) -> float:
        """Return until when *endpoint* is left alone; 0 while it may be asked."""
        if self._waits is None:
            return 0.0
        wait = self._waits.get(_known(endpoint, self._waits))
        return wait.until if wait else 0.0

    def counts(self, now: float) -> tuple[int, int]:
        """Return requests and failures of the window; both begin anew when it closes."""
        seen = [counts for part in self._recent(now) for counts in part.counts.values()]
        return sum(each.requests for each in seen), sum(each.failures for each in seen)

    def ask(self, endpoint: bytes, now: float, jitter: float) -> int:
        """Return a permit for one request, 0 if there is none now; each must come back by `record` or `give_back`."""
        if self._waits is None:
            return self._permit
        if now < self.not_before(endpoint):
            return 0
        endpoint = _known(endpoint, self._waits)
        wait = self._waits.setdefault(endpoint, _Wait())
        wait.probes += 1
        wait.until = now + self._share(wait.probes, jitter)
        self._permit += 1
        self._probes[endpoint] = self._permit
        return self._permit

    def record(self, permit: int, endpoint: bytes, *, ok: bool, now: float, jitter: float) -> None:
        """Count how the request with *permit* ended; one from before the last change says nothing and is ignored."""
        if permit < self._least:
            return
        if self._waits is None:
            self._count(endpoint, ok=ok, now=now)
            if not ok and (failing := self._failing(now)):
                self._least = self._permit + 1
                until = now + self._share(0, jitter)
                self._waits = {each: _Wait(until) for each in failing}
        elif ok:
            self._permit += 1
            self._least = self._permit
            self._parts.clear()
            self._probes.clear()
            self._waits = None
        elif wait := self._ended(permit, endpoint):
            wait.until = now + self._share(wait.probes, jitter)

    def give_back(self, permit: int, endpoint: bytes, *, now: float, jitter: float) -> None:
        """Take back a permit whose request came to no result: the client left, or nothing was tried.

        If it was a probe's, another one may go after the shortest of the waits, or when it was due anyway.
        """
        if wait := self._ended(permit, endpoint):
            wait.until = min(wait.until, now + self._share(0, jitter))

    def _ended(self, permit: int, endpoint: bytes) -> "_Wait | None":
        """Return the wait of the endpoint whose newest probe has *permit*, which is over; None: it is not a probe."""
        if self._waits is None:
            return None
        endpoint = _known(endpoint, self._waits)
        if self._probes.get(endpoint) != permit:
            return None
        del self._probes[endpoint]
        return self._waits[endpoint]

    def _count(self, endpoint: bytes, *, ok: bool, now: float) -> None:
        slot = math.floor(now / self._width)
        part = self._parts[-1] if self._parts else None
        if part is None or part.slot != slot:
            part = _Part(slot, {})
            self._parts.append(part)
        endpoint = _known(endpoint, part.counts)
        counts = part.counts.get(endpoint)
        if counts is None:
            counts = part.counts[endpoint] = _Counts()
        counts.requests += 1
        counts.failures += not ok

    def _failing(self, now: float) -> set[bytes]:
        """Return the endpoints that have failed if it is time to open: too many failures, and nobody answers.

        An endpoint answers if fewer of its requests fail than may, and one of them did not since failures began.
        """
        total: dict[bytes, _Counts] = {}
        answered: set[bytes] = set()
        for part in self._recent(now):
            for endpoint, counts in part.counts.items():
                sums = total.setdefault(endpoint, _Counts())
                sums.requests += counts.requests
                sums.failures += counts.failures
            if any(sums.failures for sums in total.values()):
                answered |= {each for each, counts in part.counts.items() if counts.failures < counts.requests}
        requests, failures = (sum(getattr(each, what) for each in total.values()) for what in ("requests", "failures"))
        share = self._policy.failures
        if requests < self._policy.min_requests or failures < share * requests:
            return set()
        if any(total[each].failures < share * total[each].requests for each in answered):
            return set()
        return {each for each, counts in total.items() if counts.failures}

    def _recent(self, now: float) -> "Iterator[_Part]":
        oldest = math.floor(now / self._width) - _PARTS
        return (part for part in self._parts if part.slot > oldest)

    def _share(self, probes: int, jitter: float) -> float:
        share = min(_LONGEST_SHARE, _FIRST_SHARE * 2.0 ** min(probes, 10))
        return self._policy.open_for * share * (1 - jitter / 2)


def _known(endpoint: bytes, among: Collection[bytes]) -> bytes:
    return endpoint if endpoint in among or len(among) < _MOST else OTHERS


@dataclass(slots=True)
class _Counts:
    requests: int = 0
    failures: int = 0


@dataclass(slots=True)
class _Wait:
    until: float = 0.0
    probes: int = 0


@dataclass(slots=True)
class _Part:
    slot: int
    counts: dict[bytes, _Counts]
