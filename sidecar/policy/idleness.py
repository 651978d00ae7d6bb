"""How long tokens live without use, by what was seen of them, and when to use one for that alone. Seconds everywhere.

Some systems end a session that is not used, long before its token's time: nothing says so but the 401.
"""

from dataclasses import dataclass, replace

from sidecar.policy.message import Fields

QUIET = 30.0
"""A shorter time without use tells nothing: no system ends a session so soon."""

_DEATHS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """The request that uses a token for its own sake; its *target* is the one at the upstream.

    *every*: seconds without another request after which it is sent. *within*: only so long after the last one.
    """

    target: bytes
    every: float
    within: float
    method: bytes = b"GET"
    fields: Fields = ()
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Idleness:
    """What was seen: the longest time without use that a token *survived*, and longer ones that ended in *deaths*."""

    survived: float = 0.0
    deaths: tuple[float, ...] = ()


def survived(seen: Idleness, idle: float) -> Idleness:
    """Return what is known after a token was taken that had not been used for *idle*.

    A death after less than that had another cause.
    """
    if idle <= seen.survived:
        return seen
    return Idleness(idle, tuple(death for death in seen.deaths if death > idle))


def died(seen: Idleness, idle: float) -> Idleness:
    """Return what is known after a token died before its time that had not been used for *idle*.

    Does nothing for less than what tokens have survived: that was a revocation.
    """
    if idle <= max(QUIET, seen.survived):
        return seen
    return replace(seen, deaths=(*seen.deaths, idle)[-_DEATHS:])


def limit(seen: Idleness) -> float | None:
    """Return a time without use after which tokens are dead; None before two deaths that nothing contradicts."""
    return min(seen.deaths) if len(seen.deaths) == _DEATHS else None


def next_use(now: float, used_at: float, kept_at: float, every: float, within: float) -> float | None:
    """Return in how many seconds to use the token for its own sake, 0: now; None: nobody used it *within* so long.

    *used_at*: when a request last did, *kept_at*: when we did; either saves the next use for *every*.
    """
    if now - used_at > within:
        return None
    return max(0.0, max(used_at, kept_at) + every - now)
