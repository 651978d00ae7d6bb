"""What one credential holds: its newest token in memory, kept at one with the record in the store.

While the store is in trouble memory goes on; what it holds is published when the store is back.
"""

import math
from dataclasses import dataclass, replace

from sidecar.clock import Clock
from sidecar.errors import StoreError
from sidecar.policy.lifetime import SKEW_SECONDS, SKEW_SHARE, due_at, forced_renewal_allowed, usable
from sidecar.settings.values import Margin
from sidecar.tokens.record import Found, Noted, Record
from sidecar.tokens.token import Token

_FORGOTTEN_SECONDS = 6.0
"""In this time every holder of a lease has shown a sign of life, twice."""
_LAST_SECONDS = 120.0
_LAST_SHARE = 0.1
_WRITES = 3
"""How often a write gives way to a newer record that is of no use, before memory alone must do."""


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


class Holding:
    """The newest token of a credential.

    `withheld`: the token was refused and its renewal is under way, so that it is not handed out for now.
    `unsaved`: the store does not have it yet.
    """

    def __init__(self, record: Record, margin: Margin, *, clock: Clock) -> None:
        self._record = record
        self._margin = margin
        self._clock = clock
        self._foreign = False
        self._lost_at = float("-inf")
        self._lost = False
        self.unsaved = False
        self.held: Held | None = None
        self.generation = 0
        self.withheld = False

    @property
    def token(self) -> Token | None:
        """The newest token, usable or not."""
        return self.held.token if self.held else None

    def lasts(self) -> bool:
        """Tell whether there is a token whose time is not yet over."""
        return self.held is not None and self.held.lasts(self._clock)

    def usable(self) -> Token | None:
        """Return the token if it can be handed out now."""
        return self.token if self.lasts() and not self.withheld else None

    def fresh(self) -> bool:
        """Tell whether nothing need be done: the token lasts, is not due and was not refused."""
        held = self.held
        return held is not None and held.now(self._clock) < held.due and not held.token.refused

    def until_last_minutes(self) -> float:
        """Return the seconds until the token has two minutes, or a tenth of its lifetime, left; 0 from then on.

        They are here for a token that was refused, and without one.
        """
        held = self.held
        if held is None or not self.lasts() or held.token.refused:
            return 0.0
        last = min(_LAST_SECONDS, _LAST_SHARE * held.token.lifetime)
        return max(0.0, held.token.expires_at - held.now(self._clock) - last)

    def newer_than(self, used: Token) -> Token | None:
        """Return the token if it can be handed out and its access token is a newer one than that of *used*."""
        token = self.usable()
        return token if token is not None and token.granted > used.granted else None

    def refuse(self, used: Token) -> None:
        """Note that an upstream refused *used*, and withhold it for now.

        Does nothing for one that is no longer the newest, nor the second time: it was withheld once, in vain.
        """
        if self.held is not None and self.held.token.granted == used.granted and not self.held.token.refused:
            self.held = replace(self.held, token=replace(self.held.token, refused=True))
            self.withheld = True

    def may_force(self, interval: float, *, probe: bool = False) -> bool:
        """Tell whether a 401 may force a renewal of the token now; False without one.

        *interval*: least seconds since the last one, of any instance; *probe*: however short the token's life is.
        """
        token = self.token
        return token is not None and forced_renewal_allowed(
            self._clock.now(), token.forced_at, interval, math.inf if probe else token.lifetime
        )

    def state(self) -> str:
        """Return where the token stands, in a word for status pages."""
        if self.held is None:
            return "none"
        if not self.lasts():
            return "expired"
        if self.held.token.refused:
            return "refused"
        return "valid" if self.fresh() else "due"

    async def reread(self) -> None:
        """Take over what is newer in the store; publish ours if the store lacks it.

        A store that came back empty, or older, gets the token in memory. A mark of revocation takes ours away.
        """
        found = await self._record.read()
        self._foreign = found.foreign
        self._note_loss(found)
        if found.generation > self.generation and (found.token is not None or found.revoked):
            self._follow(found)
        elif not (found.broken or found.foreign) and (found.generation < self.generation or self.unsaved):
            await self._publish(found)
        elif found.damaged and self.token is not None and self.lasts():
            await self._record.mend(self.token)

    async def save(self, token: Token, born: float) -> Token:
        """Store *token*, then announce it; return the one that holds now.

        That is the stored one if it is as new and lasts: another process was first. A stored one that is of no
        use is written over with a newer generation, but not a foreign one. If nothing can be written, memory
        alone goes on.
        """
        written: bool | None = None
        for _ in range(0 if self._foreign and token.trigger != "forced" else _WRITES):
            written = await self._record.write(token)
            if written is not False:
                break
            found = await self._record.read()
            if self._lasting(found):
                self._follow(found)
                return found.token or token
            token = replace(token, generation=max(token.generation, found.generation) + 1)
        else:
            self._record.report("write", StoreError("a foreign record, or ever newer ones, are in the way"))
        self.unsaved = not written
        self._adopt(token, born)
        return token

    async def drop(self) -> None:
        """Forget the token here and for all instances; raises StoreError when the store cannot be told."""
        self.held = None
        self.unsaved = False
        mark = await self._record.revoke(self.generation)
        if self.generation <= mark:  # what was read meanwhile is older than the mark
            self.held = None
            self.generation = mark

    def report(self, operation: str, error: Exception) -> None:
        """Tell of trouble with the store."""
        self._record.report(operation, error)

    def store_forgot(self) -> bool:
        """Tell whether the store came back empty or older a moment ago, perhaps without the lease of one who lives."""
        return self._clock.monotonic() - self._lost_at < _FORGOTTEN_SECONDS

    async def note(self, *, last: bool = False) -> Noted:
        """Note ahead that the refresh token is about to be used, *last*: for the last time. Raises StoreError."""
        return await self._record.note(self.generation, last=last)

    async def withdraw(self) -> None:
        """Take the note back."""
        await self._record.withdraw()

    def _note_loss(self, found: Found) -> None:
        """Note when the store came back empty or older: once, for what was looked at again is not lost again."""
        if found.broken or found.foreign:
            return
        lost = found.generation < self.generation and not self.unsaved
        if lost and not self._lost:
            self._lost_at = self._clock.monotonic()
        self._lost = lost

    async def _publish(self, found: Found) -> None:
        """Write ours; if another was first since with one as new, that one is for all."""
        ours = self.token
        if ours is None or not self.lasts():
            self.unsaved = False
            return
        written = await self._record.write(ours)
        if written is False:
            found = await self._record.read()
            if self._lasting(found) and self.token is ours:
                self._follow(found)
                return
        self.unsaved = not (written is not None and self.token is ours)

    def _lasting(self, found: Found) -> bool:
        token = found.token
        return token is not None and not token.refused and usable(self._clock.now(), token.issued_at, token.expires_at)

    def _follow(self, found: Found) -> None:
        """Adopt what the store has: a token of another process, as old as the wall clock says, or its revocation."""
        self.unsaved = False
        if found.token is not None:
            self._take_over(found.token)
        else:
            self.held = None
            self.generation = found.generation

    def _take_over(self, token: Token) -> None:
        """Adopt a token of another process, as old as the wall clock says; not younger than new."""
        self._adopt(token, born=self._clock.monotonic() - max(0.0, self._clock.now() - token.issued_at))

    def _adopt(self, token: Token, born: float) -> None:
        # Jitter takes up to half the margin; the rest must not be less than the time a token cannot be used.
        least = 2 * min(SKEW_SECONDS, SKEW_SHARE * token.lifetime)
        due = due_at(token.expires_at, max(least, self._margin.of(token.lifetime)), self._clock.jitter())
        self.held = Held(token, born, due)
        self.generation = token.generation
        self.withheld = token.refused
