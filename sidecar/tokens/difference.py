"""Whether an issuer keeps to the lifetime that was configured, and if not, why it may be so. Pure."""

from sidecar.auth.grant import Grant
from sidecar.events import LifetimeDiffers

_TOLERANCE = 0.05


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
