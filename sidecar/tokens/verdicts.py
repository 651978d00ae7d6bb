"""What upstreams say of the tokens they get, and what follows: when to stop forcing renewals, how long a token
lives without use. For one credential, as far as this process sees it; times are monotonic.
"""

import math

from sidecar.events import Emit, ForcedRenewals, IdleLimit
from sidecar.policy import idleness, refusals
from sidecar.policy.idleness import QUIET, Idleness
from sidecar.policy.refusals import Refusals
from sidecar.tokens.token import Token

_MINUTES = 120.0
"""From here on a time is told in minutes."""


class Verdicts:
    """The verdicts on the tokens of the credential *name*.

    *limit*: how many renewed tokens are refused in a row before renewals are no longer forced, but for a probe.
    `token`: the newest one that an upstream took. `used_at`: when it last took any, for a request.
    """

    def __init__(self, name: str, limit: int, min_interval: float, emit: Emit) -> None:
        self._name = name
        self._limit = limit
        self._min_interval = min_interval
        self._emit = emit
        self._row = Refusals()
        self._seen = Idleness()
        self._dead: tuple[int, float, float] | None = None
        self._told = False
        self._kept_at = -math.inf
        self.token: Token | None = None
        self.used_at = -math.inf

    @property
    def stopped(self) -> bool:
        """Whether renewals are forced no more, but for a probe."""
        return refusals.stopped(self._row, self._limit)

    @property
    def interval(self) -> float:
        """Seconds from one forced renewal to the next, at least."""
        return refusals.interval(self._row, self._limit, self._min_interval)

    def accepted(self, token: Token, now: float, *, own: bool) -> None:
        """Take note that an upstream took *token*, for a request or its *own* sake; cheap, on every request's way."""
        if own:
            self._took(token, now)
            self._kept_at = now
            return
        if token is not self.token or now - self.used_at > QUIET:
            self._took(token, now)
        self.used_at = now

    def _took(self, token: Token, now: float) -> None:
        """Take note of a token that is not `token`, or of one that was not used for a while."""
        if self.token is None or token.login > self.token.login:
            self._bury()
            self.token = token
            self._count(refusals.taken(self._row, token.login))
        elif token.login == self.token.login:
            self._seen = idleness.survived(self._seen, now - max(self.used_at, self._kept_at))
            self.token = token

    def refused(self, token: Token) -> None:
        """Take note that a renewed token was refused: whatever is wrong, it is not that the one before had died."""
        self._dead = None
        self._count(refusals.refused(self._row, token.login))

    def died(self, token: Token, now: float) -> None:
        """Take note that *token* got a 401 before its time; how long it was not used counts once a newer one is taken.

        Until then it may be the endpoint that refuses every token.
        """
        ours = self.token is not None and token.login == self.token.login
        if ours and (self._dead is None or self._dead[0] != token.login):
            self._dead = token.login, now, now - max(self.used_at, self._kept_at)

    def _bury(self) -> None:
        dead, self._dead = self._dead, None
        if dead is None or self.used_at > dead[1]:  # taken again since: it lived
            return
        self._seen = idleness.died(self._seen, dead[2])
        longest = idleness.limit(self._seen)
        if longest is not None and not self._told:
            self._told = True
            self._emit(_idle_limit(self._name, self._seen.survived, longest))

    def _count(self, row: Refusals) -> None:
        before, self._row = self.stopped, row
        if self.stopped != before:
            self._emit(ForcedRenewals(upstream=self._name, stopped=self.stopped, refused=row.count))


def _idle_limit(name: str, survived: float, died: float) -> IdleLimit:
    after = f"{died / 60:.0f} minutes" if died >= _MINUTES else f"{died:.0f} seconds"
    detail = (
        f"tokens of {name} die after about {after} without use, before their time;"
        f" set upstreams.{name}.keepalive, with every below that"
    )
    return IdleLimit(upstream=name, survived=survived, died=died, detail=detail)
