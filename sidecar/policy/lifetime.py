"""When a token may still be used and when the next one is due; wall time in seconds, read by the caller.

One whose end is math.inf has none.
"""

import math

SKEW_SECONDS = 5.0
SKEW_SHARE = 0.05


def usable(now: float, issued_at: float, expires_at: float) -> bool:
    """Tell whether a token lasts: not within min(5 s, 5 % of its life) of its end."""
    return now < expires_at - min(SKEW_SECONDS, SKEW_SHARE * (expires_at - issued_at))


def lapsed(unused: float, idle: float) -> bool:
    """Tell whether a session that ends when it is not used for *idle* is over after so long: a little early."""
    return unused >= idle - min(SKEW_SECONDS, SKEW_SHARE * idle)


def due_at(expires_at: float, margin: float, jitter: float) -> float:
    """Return when to renew: *margin* before the end, later by up to half of it, so that a fleet spreads."""
    if expires_at == math.inf:
        return math.inf
    return expires_at - margin * (1 - jitter / 2)


def forced_renewal_allowed(now: float, last_forced_at: float | None, min_interval: float, lifetime: float) -> bool:
    """Tell whether a 401 may force a renewal: not within min(*min_interval*, half a lifetime) of the last one.

    A clock that was set back does not lock renewals out: a *last_forced_at* in the future counts as long ago.
    """
    if last_forced_at is None or last_forced_at > now:
        return True
    return now - last_forced_at >= min(min_interval, lifetime / 2)
