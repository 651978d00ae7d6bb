"""When another login takes an account's only session again and again: who logs in at once each time never ends it.

Seconds everywhere.
"""

from dataclasses import dataclass

_FIRST = 30.0
LONGEST = 600.0
"""Seconds without a login: the first time, doubling up to the longest."""
_DOUBLINGS = 10


@dataclass(frozen=True, slots=True)
class Seat:
    """The only session of an account: one that dies younger than *within* was taken; more than *rounds* in a row pause
    logins.
    """

    within: float
    rounds: int


def after_death(taken: int, age: float, seat: Seat) -> int:
    """Return how many sessions were *taken* in a row, after one that was in use died at *age*."""
    return taken + 1 if age < seat.within else 0


def pause(taken: int, seat: Seat) -> float:
    """Return for how long there is to be no login after so many in a row were *taken*; 0.0: it may be at once."""
    over = taken - seat.rounds
    return min(LONGEST, _FIRST * 2.0 ** min(over - 1, _DOUBLINGS)) if over > 0 else 0.0


def left(now: float, free_at: float | None) -> float:
    """Return the seconds until a login may be, 0.0: now; one that is too far away comes of a clock that was wrong."""
    wait = 0.0 if free_at is None else free_at - now
    return wait if 0 < wait <= LONGEST else 0.0
