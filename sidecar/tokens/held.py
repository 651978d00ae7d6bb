"""A credential in memory: its newest record, how long its token lasts, and when that is due, by two clocks."""

import math
from dataclasses import dataclass, replace

from sidecar.auth.grant import Values
from sidecar.clock import Clock
from sidecar.policy import lifetime
from sidecar.policy.lifetime import SKEW_SECONDS, SKEW_SHARE, due_at, forced_renewal_allowed, usable
from sidecar.settings.values import Margin
from sidecar.tokens.idle import LastUse
from sidecar.tokens.record import Record, Rejection
from sidecar.tokens.token import Token


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

    def left(self, clock: Clock) -> float | None:
        """Return the seconds until its end, None if none is known."""
        left = self.token.expires_at - self.now(clock)
        return left if left < math.inf else None

    def until_due(self, clock: Clock) -> float:
        """Return the seconds until it is to be renewed, not above 0 when it is due."""
        return self.due - self.now(clock)


class Memory:
    """The newest record of a credential, in memory.

    *use*: when it was last used, None where that is of no interest. `withheld`: the token was refused and is being
    renewed, so that it is not handed out for now.
    """

    def __init__(self, margin: Margin, clock: Clock, use: LastUse | None = None) -> None:
        self._margin = margin
        self._clock = clock
        self._use = use
        self._stored = 0
        self._refused = 0
        self.held: Held | None = None
        self.record = Record()
        self.withheld = False

    @property
    def token(self) -> Token | None:
        """The newest token, usable or not."""
        return self.held.token if self.held else None

    @property
    def granted(self) -> int:
        """The generation of the newest token, 0 without one."""
        return self.held.token.granted if self.held else 0

    @property
    def login(self) -> int:
        """The generation of the login of the newest token, 0 without one: what is rolled in it leaves it as it is."""
        return self.held.token.login if self.held else 0

    @property
    def refused(self) -> bool:
        """Whether an upstream said 401 to the newest token, and none of another login has come since."""
        return self.held is not None and self._refused == self.held.token.login

    @property
    def lapsed(self) -> bool:
        """Whether the newest token was not used for too long, as far as is known here."""
        held = self.held
        if held is None or held.token.idle is None:
            return False
        used = max(held.born, self._use.at) if self._use else held.born
        return lifetime.lapsed(self._clock.monotonic() - used, held.token.idle)

    @property
    def resting(self) -> bool:
        """Whether nothing is to be got before a request needs it: what lapsed, or was taken by another login."""
        return self.lapsed or (self.refused and self.record.taken > 0)

    def lasts(self) -> bool:
        """Tell whether there is a token whose time is not yet over."""
        held = self.held
        return held is not None and held.lasts(self._clock) and (held.token.idle is None or not self.lapsed)

    def usable(self) -> Token | None:
        """Return the token if it can be handed out now."""
        return self.token if self.lasts() and not self.withheld else None

    def fresh(self) -> bool:
        """Tell whether nothing need be done: the token lasts, is not due and was not refused."""
        held = self.held
        if held is None or held.until_due(self._clock) <= 0 or self._refused == held.token.login:
            return False
        return held.token.idle is None or not self.lapsed

    def newer_than(self, used: Token) -> Token | None:
        """Return the token if it can be handed out and is a newer one than *used*."""
        token = self.usable()
        return token if token is not None and token.granted > used.granted else None

    def refuse(self, used: Token) -> None:
        """Note that an upstream refused *used*, and withhold it for now.

        Does nothing for one that is no longer the newest, nor the second time: it was withheld once, in vain.
        """
        if self.granted == used.granted and not self.refused:
            self._refused = used.login
            self.withheld = True

    def may_force(self, interval: float, *, probe: bool = False) -> bool:
        """Tell whether a 401 may force a renewal of the token now; False without one.

        *interval*: least seconds since the last one, of any instance; *probe*: however short the token's life is.
        """
        token = self.token
        return token is not None and forced_renewal_allowed(
            self._clock.now(), self.record.forced_at, interval, math.inf if probe else token.lifetime
        )

    def state(self) -> str:
        """Return where the token stands, in a word for status pages."""
        if self.held is None:
            return "none"
        if not self.lasts():
            return "expired"
        if self.refused:
            return "refused"
        return "valid" if self.fresh() else "due"

    def reject(self, no: Rejection) -> None:
        """Drop the token, here and now: the credential that it came of was refused."""
        self.held, self.record = None, replace(self.record, token=None, rejection=no)

    def roll(self, values: Values) -> None:
        """Hold a newer token with other *values*, of the same login and with the same times; there must be one."""
        if self.held is not None:
            old = self.held.token
            granted = max(self.record.generation, self._stored, old.granted) + 1
            token = replace(old, values=values, granted=granted, since=old.login)
            self.held = replace(self.held, token=token)
            self.record = replace(self.record, token=token, generation=granted)

    def _hold(self, record: Record, born: float | None = None) -> None:
        """Hold *record*; nothing of the times of a token that is held already changes.

        Of two tokens of one login the newer stays, whatever else the record says.
        """
        token, ours = record.token, self.token
        self.record, self._stored = record, record.generation
        if token is None:
            self.held = None
        elif self.held is None or ours is None or not _same(token, ours):
            self.held = held(token, self._margin, self._clock, born)
            self.withheld = False
        elif token.granted < ours.granted:
            self.record = replace(record, token=ours)
        elif token.values != ours.values:
            rolled = replace(token, issued_at=ours.issued_at, expires_at=ours.expires_at)
            self.held = replace(self.held, token=rolled)


def _same(token: Token, ours: Token) -> bool:
    """Tell whether *token* is ours, or was rolled in the same login."""
    rolled = token.since is not None or ours.since is not None
    return token.same_login(ours) and (rolled or token.values == ours.values)


def held(token: Token, margin: Margin, clock: Clock, born: float | None) -> Held:
    """Return *token* as it is held from now on; *born* None: as old as the wall clock says, not younger than new."""
    if born is None:
        born = clock.monotonic() - max(0.0, clock.now() - token.issued_at)
    # Jitter takes up to half the margin; the rest must not be less than the time a token cannot be used.
    least = 2 * min(SKEW_SECONDS, SKEW_SHARE * token.lifetime)
    return Held(token, born, due_at(token.expires_at, max(least, margin.of(token.lifetime)), clock.jitter()))
