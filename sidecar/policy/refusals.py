"""When 401s no longer force renewals: too many renewed tokens were refused in a row. Seconds everywhere.

A broken upstream, or one bad endpoint, must not make a renewal of every 401. Requests are never stopped by it.
"""

from dataclasses import dataclass, replace

LONGEST = 300.0
"""Seconds between two probes, at most, unless forced renewals are further apart anyway."""

_SHORTEST = 1.0
_DOUBLINGS = 20


@dataclass(frozen=True, slots=True)
class Refusals:
    """The renewed tokens that were refused in a row.

    *count*: how many. *newest*: the generation of the last one. *taken*: the newest that an upstream took.
    """

    count: int = 0
    newest: int = 0
    taken: int = 0


def refused(row: Refusals, generation: int) -> Refusals:
    """Return the row after a renewed token was refused: each generation counts once, and none that was ever taken."""
    if generation <= max(row.newest, row.taken):
        return row
    return replace(row, count=row.count + 1, newest=generation)


def taken(row: Refusals, generation: int) -> Refusals:
    """Return the row after an upstream took a token: it ends with one that is not older than the last refused."""
    if generation <= row.taken:
        return row
    return Refusals(0 if generation >= row.newest else row.count, row.newest, generation)


def stopped(row: Refusals, limit: int) -> bool:
    """Tell whether only probes may be forced any more."""
    return row.count >= limit


def interval(row: Refusals, limit: int, min_interval: float) -> float:
    """Return the least time from one forced renewal to the next.

    It is *min_interval*; from one probe to the next twice that for each probe that was refused.
    """
    if not stopped(row, limit):
        return min_interval
    doublings = min(row.count - limit, _DOUBLINGS)
    return min(max(LONGEST, min_interval), max(_SHORTEST, min_interval) * 2.0**doublings)
