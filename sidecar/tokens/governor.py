"""The account that has one session only, and another login that keeps taking it: logins pause, for all instances."""

import math

from sidecar.clock import Clock
from sidecar.errors import SeatTaken
from sidecar.events import Emit, SeatContested
from sidecar.policy import seat as policy
from sidecar.policy.seat import Seat
from sidecar.tokens.holding import Holding
from sidecar.tokens.record import Record
from sidecar.tokens.token import Token


class Governor:
    """Watches over the logins of the account of the upstream *name*; *seat* None: it has any number of sessions.

    `told`: that its session is taken again and again, and nothing since.
    """

    def __init__(self, name: str, seat: Seat | None, holding: Holding, clock: Clock, emit: Emit) -> None:
        self._name = name
        self._seat = seat
        self._holding = holding
        self._clock = clock
        self._emit = emit
        self.told = False

    def left(self) -> float:
        """Return the seconds until a login may be, by what is known here; 0.0: now."""
        return policy.left(self._clock.now(), self._holding.record.seat_free)

    def check(self) -> None:
        """Raise SeatTaken while no login may be."""
        if (left := self.left()) > 0:
            raise self._taken(self._holding.record.taken, left)

    def count(self, record: Record) -> int:
        """Return how many sessions were taken in a row by now, when that of *record* is dead; each death counts once.

        Raises SeatTaken, with the pause that begins then in `retry_after`: nobody may log in before.
        """
        held = self._holding.held
        if self._seat is None or held is None or record.seat_free is not None:
            return record.taken
        taken = policy.after_death(record.taken, held.now(self._clock) - held.token.issued_at, self._seat)
        if (wait := policy.pause(taken, self._seat)) > 0:
            raise self._taken(taken, wait)
        return taken

    def lived(self, token: Token) -> None:
        """Take note that *token* is alive: one that is old enough is nobody else's any more; of use while `told`."""
        held = self._holding.held
        if self._seat is None or held is None or not held.token.same_login(token):
            return
        if held.now(self._clock) - token.issued_at >= self._seat.within:
            self.told = False
            detail = f"no other login has taken the session of the account of {self._name} again"
            self._emit(SeatContested(upstream=self._name, taken=0, wait=0.0, detail=detail))

    def _taken(self, taken: int, wait: float) -> SeatTaken:
        detail = (
            f"another login keeps ending the only session that the account of {self._name} may have:"
            f" {taken} in a row, each soon after it began; give this sidecar an account of its own"
        )
        if not self.told:
            self.told = True
            self._emit(SeatContested(upstream=self._name, taken=taken, wait=math.ceil(wait), detail=detail))
        return SeatTaken(detail, retry_after=wait)
