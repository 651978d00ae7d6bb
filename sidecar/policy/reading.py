"""What an answer says of the credential that it was asked with."""

from dataclasses import dataclass
from enum import Enum


class Sign(Enum):
    """What became of the credential. Every sign but FINE says as well that nothing was done."""

    FINE = "fine"
    """Nothing is said against it."""
    EXPIRED = "expired"
    """It is dead; a newer one may help."""
    SCOPE = "scope"
    """It lives, and is not enough for this."""
    FOREIGN = "foreign"
    """Something else is asked for than a newer one."""
    THROTTLED = "throttled"
    """It is used too much at once."""
    EXHAUSTED = "exhausted"
    """What may be done with it is used up."""


REFUSED = frozenset({Sign.EXPIRED, Sign.SCOPE, Sign.FOREIGN})
"""Signs that the credential did not do."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One answer's *sign*, and the seconds that it asks to *wait*, None: none."""

    sign: Sign
    wait: float | None = None


FINE = Reading(Sign.FINE)
