"""How much is measured: rounds, seconds and sizes of a whole run, and of a quick one that only shows that it works."""

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from pathlib import Path

from bench.figures import Sample
from bench.measure import MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """Seconds, rounds, requests and bytes of each load."""

    rounds: int = 5
    seconds: int = 3
    requests: int = 500
    far_rounds: int = 2
    far_requests: int = 500
    body_rounds: int = 3
    body_bytes: int = 2 << 30
    slow_bytes: int = 256 * MIB
    slow_rate: int = 16 * MIB
    storms: int = 3
    storm_seconds: int = 3
    starts: int = 5
    growths: int = 2
    idle_seconds: int = 10


FULL = Effort()
QUICK = Effort(
    rounds=2,
    seconds=1,
    requests=100,
    far_rounds=1,
    far_requests=50,
    body_rounds=1,
    body_bytes=192 * MIB,
    slow_bytes=64 * MIB,
    slow_rate=32 * MIB,
    storms=1,
    storm_seconds=2,
    starts=2,
    growths=1,
    idle_seconds=5,
)


@dataclass(frozen=True, slots=True)
class Plan:
    """One run: how much, where its files are, which Envoy takes part (None: none), what to say about the progress."""

    effort: Effort
    folder: Path
    envoy: Path | None
    say: Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A load: its name on the command line, what to know of it, whom ratios are to (empty: nobody), how to run it."""

    name: str
    title: str
    note: str
    reference: str
    run: Callable[[Plan], AsyncGenerator[Sample]]
