"""A token in memory: how long it lasts, and when it is due, by two clocks."""

from dataclasses import dataclass

from sidecar.clock import Clock
from sidecar.policy.lifetime import SKEW_SECONDS, SKEW_SHARE, due_at, usable
from sidecar.settings.values import Margin
from sidecar.tokens.token import Token

_LAST_SECONDS = 120.0
_LAST_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Held:
    """A token in memory. *born*: the monotonic moment of its issued_at. *due*: when to renew it, wall time."""

    token: Token
    born: float
    due: float

    def now(self, clock: Clock) -> float:
        """Return the wall time as far as this token is concerned.

        A clock that jumped forward ends it early; one that was set back does not let it outlive its lifetime.
        """
        return max(clock.now(), self.token.issued_at + clock.monotonic() - self.born)

    def lasts(self, clock: Clock) -> bool:
        """Tell whether its time is not yet over."""
        return usable(self.now(clock), self.token.issued_at, self.token.expires_at)

    def until_due(self, clock: Clock) -> float:
        """Return the seconds until it is to be renewed, not above 0 when it is due."""
        return self.due - self.now(clock)

    def until_last_minutes(self, clock: Clock) -> float:
        """Return the seconds until two minutes, or a tenth of its lifetime, are left of it; 0 from then on."""
        last = min(_LAST_SECONDS, _LAST_SHARE * self.token.lifetime)
        return max(0.0, self.token.expires_at - self.now(clock) - last) if self.lasts(clock) else 0.0


def held(token: Token, margin: Margin, clock: Clock, born: float | None) -> Held:
    """Return *token* as it is held from now on; *born* None: as old as the wall clock says, not younger than new."""
    if born is None:
        born = clock.monotonic() - max(0.0, clock.now() - token.issued_at)
    # Jitter takes up to half the margin; the rest must not be less than the time a token cannot be used.
    least = 2 * min(SKEW_SECONDS, SKEW_SHARE * token.lifetime)
    return Held(token, born, due_at(token.expires_at, max(least, margin.of(token.lifetime)), clock.jitter()))
