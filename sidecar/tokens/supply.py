"""Handing the token out: at once where there is one, else when a renewal has brought it, or with why there is none."""

import math
from collections.abc import Callable

from sidecar.clock import Clock
from sidecar.errors import Reason, Refusal
from sidecar.tokens.governor import Governor
from sidecar.tokens.holding import Holding
from sidecar.tokens.protocols import BrokerStatus
from sidecar.tokens.renewal import Renewing
from sidecar.tokens.token import Token
from sidecar.tokens.verdicts import Verdicts
from sidecar.tokens.waiting import Changes


class Supply:
    """The tokens of one credential for those who need one; *closing*: whether the broker is."""

    def __init__(
        self,
        holding: Holding,
        renewing: Renewing,
        governor: Governor,
        verdicts: Verdicts,
        changes: Changes,
        *,
        clock: Clock,
        closing: Callable[[], bool],
    ) -> None:
        self._holding = holding
        self._renewing = renewing
        self._governor = governor
        self._verdicts = verdicts
        self._changes = changes
        self._clock = clock
        self._closing = closing

    def current(self) -> Token | None:
        """Return what `Broker.current` does."""
        token = self._holding.usable()
        if token is not None and not self._holding.fresh() and not self._holding.resting:
            self._renewing.start("due")
        return token

    async def token(self, deadline: float) -> Token:
        """Return what `Broker.token` does."""
        token = self.current()
        if token is None:
            await self._changes.until(lambda: self._supplied(deadline), deadline)
            token = self._holding.usable()
        if token is None:
            raise self.refusal()
        return token

    def refusal(self) -> Refusal:
        """Return why there is no token, or none that would do."""
        renewing = self._renewing
        if renewing.rejected:
            return Refusal(Reason.CREDENTIAL_REJECTED, f"{renewing.failure}")
        if self._closing() and not renewing.running:
            return Refusal(Reason.SHUTTING_DOWN, "the sidecar is stopping")
        if (wait := self._governor.left()) > 0:
            detail = "another login keeps taking the account's only session; none is begun for a while"
            return Refusal(Reason.SEAT_TAKEN, detail, retry_after=math.ceil(wait))
        detail = "the issuer gave no token in time"
        if renewing.failure is not None:
            detail += f": {renewing.failure}"
        elif self._verdicts.stopped:
            detail = "the upstream refuses every token that is obtained"
        wait = renewing.next_at - self._clock.monotonic()
        return Refusal(Reason.TOKEN_UNAVAILABLE, detail, retry_after=max(1, math.ceil(wait)))

    def status(self, place: tuple[int | None, str] | None) -> BrokerStatus:
        """Return where the credential stands; *place*: of the key that sealed its record."""
        holding, renewing = self._holding, self._renewing
        held, usable = holding.held, holding.usable() is not None
        state = "seat_taken" if self._governor.left() > 0 else holding.state()
        return BrokerStatus(
            state="rejected" if renewing.rejected else state,
            usable=usable,
            attempted=renewing.last is not None or usable,
            token=holding.token,
            expires_in=held.left(self._clock) if held else None,
            generation=holding.granted,
            last=renewing.last,
            sealed_with=place,
            forced_renewals="stopped" if self._verdicts.stopped else "allowed",
            kept=holding.record.kept is not None,
            taken=holding.record.taken,
        )

    def _supplied(self, deadline: float) -> bool:
        """Tell whether a token can be handed out; if not, see to it that one is got. Raises Refusal if none will be."""
        renewing = self._renewing
        if self._holding.usable() is None:
            if self._governor.left() == 0:
                renewing.start("demand")
            pointless = renewing.rejected or (self._closing() and not renewing.running)
            if pointless or self._governor.left() > 0 or renewing.hopeless(deadline):
                raise self.refusal()
        return self._holding.usable() is not None
