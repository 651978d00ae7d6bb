"""What was measured: one sample per round, medians over rounds. Knows no process and no load."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

DIRECT = "direct"
STOCK = "stock mitmdump"
OURS = "auth-sidecar"
ENVOY = "Envoy"


@dataclass(frozen=True, slots=True)
class Sample:
    """One measured value: under which load and which case of it, of which contender, of what; the unit is in *what*."""

    load: str
    case: str
    who: str
    what: str
    value: float


@dataclass(frozen=True, slots=True)
class Figures:
    """The samples of a run. What was not measured is None, never zero."""

    samples: tuple[Sample, ...]

    def of(self, case: str, who: str, what: str) -> list[float]:
        """Return every value in order; *case* is unique over all loads."""
        return [s.value for s in self.samples if (s.case, s.who, s.what) == (case, who, what)]

    def median(self, case: str, who: str, what: str) -> float | None:
        """Return the median over the rounds."""
        values = self.of(case, who, what)
        return statistics.median(values) if values else None

    def highest(self, case: str, who: str, what: str) -> float | None:
        """Return the worst round, for what must hold in every one."""
        return max(self.of(case, who, what), default=None)

    def under(self, load: str) -> "Figures":
        """Return what was measured under one load."""
        return Figures(tuple(s for s in self.samples if s.load == load))


def ratio(value: float | None, reference: float | None) -> float | None:
    """Return how many times *reference* a value is; None when either is missing or the reference is zero."""
    return None if value is None or not reference else value / reference


def in_order(names: Iterable[str]) -> list[str]:
    """Return each name once, where it came first."""
    return list(dict.fromkeys(names))
