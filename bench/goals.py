"""What the bench must show, as data: each goal has its limit and how its figure comes from the medians."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from bench.figures import DIRECT, ENVOY, OURS, STOCK, Figures, ratio
from bench.loads import bodies, idle, small, soak, storm, upstreams, workers
from bench.wrk import CPU, P50, RATE

Value = Callable[[Figures], float | None]


@dataclass(frozen=True, slots=True)
class Goal:
    """One line: under which load, what it is about, its limit and unit, and the figure (None: not measured)."""

    load: str
    about: str
    limit: float
    unit: str
    value: Value
    at_least: bool = False

    def reached(self, figures: Figures) -> bool | None:
        """Tell whether the figure keeps the limit; None when it was not measured."""
        value = self.value(figures)
        if value is None:
            return None
        return value >= self.limit if self.at_least else value <= self.limit


def against(case: str, what: str, other: str, who: str = OURS) -> Value:
    """Return the ratio of two medians: of ours, or *who*, to that of *other*."""
    return lambda figures: ratio(figures.median(case, who, what), figures.median(case, other, what))


def worst(case: str, what: str, who: str = OURS) -> Value:
    """Return the highest of all rounds."""
    return lambda figures: figures.highest(case, who, what)


def median(case: str, what: str, who: str = OURS) -> Value:
    """Return the median of the rounds."""
    return lambda figures: figures.median(case, who, what)


def thirds(values: list[float]) -> tuple[float, float] | None:
    """Return the medians of the middle and of the last third; None when there are too few for three."""
    third = len(values) // 3
    if not third:
        return None
    return statistics.median(values[third:-third]), statistics.median(values[-third:])


def _storm(figures: Figures) -> float | None:
    rounds = zip(
        figures.of(storm.CASE, OURS, storm.SLOWEST),
        figures.of(storm.CASE, OURS, storm.ENDPOINT),
        figures.of(storm.CASE, OURS, storm.CALM),
        strict=True,
    )
    beyond = [(slowest - endpoint) / calm for slowest, endpoint, calm in rounds]
    return statistics.median(beyond) if beyond else None


def _lost_beyond(figures: Figures) -> float | None:
    lost = figures.highest(workers.KILL, workers.TWO, workers.LOST)
    held = figures.highest(workers.KILL, workers.TWO, workers.HELD)
    return None if lost is None or held is None else max(0.0, lost - held)


def _memory_drift(figures: Figures) -> float | None:
    found = thirds(figures.of(soak.LOADED, OURS, soak.MEMORY))
    return found and abs(found[1] / found[0] - 1) * 100


def _change(what: str) -> Value:
    def change(figures: Figures) -> float | None:
        found = thirds(figures.of(soak.REST, OURS, what))
        return found and abs(found[1] - found[0])

    return change


def _more(what: str) -> Value:
    """Return by how much a thousand upstreams exceed one."""

    def more(figures: Figures) -> float | None:
        many = figures.median(upstreams.CASE, upstreams.MANY, what)
        one = figures.median(upstreams.CASE, upstreams.ONE, what)
        return None if many is None or one is None else many - one

    return more


def _kilobytes_each(figures: Figures) -> float | None:
    more = _more(upstreams.MEMORY)(figures)
    return None if more is None else more * 1000 / (upstreams.COUNTS[upstreams.MANY] - 1)


_C1, _C16, _C64 = small.KEEPALIVE.values()
_BODIES = (bodies.DOWN, bodies.UP, bodies.SLOW_CLIENT, bodies.SLOW_UPSTREAM)

GOALS = (
    Goal("keepalive", "CPU per request, c=1", 0.23, "x stock mitmdump", against(_C1, CPU, STOCK)),
    Goal("keepalive", "CPU per request, c=16", 0.20, "x stock mitmdump", against(_C16, CPU, STOCK)),
    Goal("keepalive", "CPU per request, c=64", 0.40, "x stock mitmdump", against(_C64, CPU, STOCK)),
    Goal("keepalive", "requests/s, c=16", 2.2, "x stock mitmdump", against(_C16, RATE, STOCK), at_least=True),
    Goal("keepalive", "p50, c=1", 0.45, "x stock mitmdump", against(_C1, P50, STOCK)),
    Goal("keepalive", "p50, c=1", 2.5, "x Envoy", against(_C1, P50, ENVOY)),
    Goal("far", "a script's wall time, 30 ms round trip", 0.40, "x direct", against(small.FAR, small.WALL, DIRECT)),
    Goal("far", "a script's wall time, 30 ms round trip", 1.05, "x Envoy", against(small.FAR, small.WALL, ENVOY)),
    *(
        Goal(
            "bodies", f"throughput, {case}", 1.0, "x stock mitmdump", against(case, bodies.SPEED, STOCK), at_least=True
        )
        for case in (bodies.DOWN, bodies.UP)
    ),
    *(Goal("bodies", f"peak memory over idle, {case}", 48, "MiB", worst(case, bodies.PEAK)) for case in _BODIES),
    Goal("storm", "slowest request less the token endpoint's time", 3, "x calm p99", _storm),
    Goal("storm", "token calls", 1, "", worst(storm.CASE, storm.CALLS)),
    Goal("storm", "401s that clients saw", 0, "", worst(storm.CASE, storm.SEEN)),
    Goal("storm", "other failures that clients saw", 0, "", worst(storm.CASE, storm.FAILED)),
    Goal("idle", "resident", 110, "MB", worst(idle.ALONE, idle.MEMORY)),
    Goal("idle", "processor time in 5 s", 1, "ticks", worst(idle.ALONE, idle.CPU)),
    Goal("idle", "from start to ready", 1.5, "x stock mitmdump", against(idle.START, idle.READY, STOCK)),
    Goal(
        *("workers", "CPU per request, two workers", 1.1, "x one worker"),
        against(workers.CASE, CPU, workers.ONE, workers.TWO),
    ),
    Goal(
        *("workers", "both serve: the least share of a worker", 0.1, "of the work"),
        median(workers.CASE, workers.LEAST, workers.TWO),
        at_least=True,
    ),
    Goal("workers", "resident, each of two", 110, "MB", worst(workers.CASE, workers.MEMORY, workers.TWO)),
    Goal("workers", "kill -9: requests lost beyond those of its connections", 0, "", _lost_beyond),
    Goal(
        *("workers", "kill -9: answers after it", 1, ""),
        worst(workers.KILL, workers.SERVED, workers.TWO),
        at_least=True,
    ),
    Goal("upstreams", "from start to ready, a thousand less one", 5, "s", _more(upstreams.READY)),
    Goal("upstreams", "resident, each beyond the first", 100, "KB", _kilobytes_each),
    Goal(
        *("upstreams", "CPU per request, one of a thousand", 1.15, "x the only one"),
        against(upstreams.CASE, CPU, upstreams.ONE, upstreams.MANY),
    ),
    Goal(
        "upstreams",
        "from SIGTERM to the end, a thousand",
        2,
        "s",
        worst(upstreams.CASE, upstreams.STOP, upstreams.MANY),
    ),
    Goal("soak", "memory, last third against the middle one", 3, "% of change", _memory_drift),
    Goal("soak", "descriptors at rest, last third less the middle one", 0, "", _change(soak.DESCRIPTORS)),
    Goal("soak", "threads at rest, last third less the middle one", 0, "", _change(soak.THREADS)),
    Goal("soak", "failed requests", 0, "", worst(soak.LOADED, soak.FAILED)),
)
