"""How what an issuer grants differs from what was asked for, and why that may be so."""

from sidecar.auth.grant import Grant
from sidecar.events import Emit, LifetimeDiffers, ScopeNarrower

_TOLERANCE = 0.05


class Differences:
    """Tells them for *upstream*, once each; *configured*: its lifetime, None if the user set none."""

    def __init__(self, upstream: str, configured: float | None, emit: Emit) -> None:
        self._upstream = upstream
        self._configured = configured
        self._emit = emit
        self._told: set[object] = set()

    def tell(self, grant: Grant, missing: str) -> None:
        """Tell what is new in *grant*, which lacks *missing* of the scope."""
        differs = difference(self._upstream, self._configured, grant)
        if differs is not None and (pair := (differs.configured, round(differs.granted))) not in self._told:
            self._told.add(pair)
            self._emit(differs)
        if missing and missing not in self._told:
            self._told.add(missing)
            self._emit(ScopeNarrower(upstream=self._upstream, granted=grant.scope or "", missing=missing))


def difference(upstream: str, configured: float | None, grant: Grant) -> LifetimeDiffers | None:
    """Return how the lifetime of *grant* differs from *configured*; None within 5 %, or if none was configured."""
    if configured is None or abs(grant.lifetime - configured) <= _TOLERANCE * configured:
        return None
    return LifetimeDiffers(
        upstream=upstream,
        configured=configured,
        granted=grant.lifetime,
        source=grant.source,
        cause=likely_cause(configured, grant.lifetime, grant.scope),
    )


def likely_cause(configured: float, granted: float, scope: str | None) -> str:
    """Return a sentence why an issuer grants another lifetime; *scope* None if it did not name one."""
    owner = (
        f"the scope {scope} probably has a lifetime of its own at the issuer"
        if scope
        else "probably the issuer's own policy for this client"
    )
    return f"{owner}; the granted one is {'longer' if granted > configured else 'shorter'}, and it is what counts"
