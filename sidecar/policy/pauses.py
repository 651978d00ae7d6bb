"""How long to wait before an issuer is asked again, by what it said. Seconds everywhere; *jitter* is from 0 to 1."""

LONGEST = 3600.0
"""An issuer that asks for more silence than this is asked again anyway: a day off is a mistake of its."""

_BASE = 1.0
_DOUBLINGS = 20
_SPREAD = 0.2


def weather(attempts: int, jitter: float, cap: float) -> float:
    """Return the pause after so many *attempts* that found it unreachable or busy: full jitter up to *cap*."""
    return min(cap, _doubled(_BASE, attempts, cap)) * jitter


def rejected(times: int, jitter: float) -> float:
    """Return the pause after it said no to the same secrets so many *times* in a row: from 5 minutes to 6 hours.

    Who insists gets the account locked, or the address blocked.
    """
    return _spread(_doubled(300.0, times, 6 * 3600.0), jitter)


def misplaced(times: int, jitter: float) -> float:
    """Return the pause after so many answers of no issuer, in a roll-out say: from 30 seconds to 10 minutes."""
    return _spread(_doubled(30.0, times, 600.0), jitter)


def unusable(times: int, jitter: float) -> float:
    """Return the pause after so many tokens that cannot be used, which issuers count: from 2 to 30 minutes."""
    return _spread(_doubled(120.0, times, 1800.0), jitter)


def _doubled(first: float, times: int, longest: float) -> float:
    return min(longest, first * 2.0 ** min(max(times, 1) - 1, _DOUBLINGS))


def _spread(pause: float, jitter: float) -> float:
    return pause * (1 + _SPREAD * jitter)
