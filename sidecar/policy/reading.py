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
    REJECTED = "rejected"
    """It is wrong, and so is every other until a person changes it."""


REFUSED = frozenset({Sign.EXPIRED, Sign.SCOPE, Sign.FOREIGN, Sign.REJECTED})
"""Signs that the credential did not do."""


LOGIN = "login"
CSRF = "csrf"
"""The parts of a credential: the session or token, and a second value that lives and dies in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """What an answer says of a day's or window's allowance; *reset* is wall time; None: it does not say.

    *exhausts*: with nothing remaining, nothing more is to be sent before the reset.
    """

    remaining: float | None = None
    limit: float | None = None
    reset: float | None = None
    exhausts: bool = False


@dataclass(frozen=True, slots=True)
class Reading:
    """One answer's *sign*, and of which *part* of the credential it is.

    *wait*: the seconds that it asks to wait, until the reset where the allowance is used up; None: none. *quota* None:
    it says nothing of one.
    """

    sign: Sign
    wait: float | None = None
    part: str = LOGIN
    quota: Quota | None = None


FINE = Reading(Sign.FINE)
