"""What stands between a request and one upstream: the pause it asked for, the breaker, a turn; and the budget.

The good case is `free` and `permit`, which wait for nothing and allocate nothing.
"""

import math
from collections.abc import Awaitable, Callable

from sidecar.clock import Clock
from sidecar.errors import Reason, Refusal
from sidecar.events import BreakerChanged, Emit
from sidecar.exchange.tally import Tally
from sidecar.exchange.turns import Turns
from sidecar.policy.breaker import Breaker, State
from sidecar.policy.budget import Budget
from sidecar.policy.decide import spread
from sidecar.policy.reading import Quota
from sidecar.tokens.moment import SharedMoment

Rest = Callable[[float], Awaitable[None]]
"""Waits so many seconds; raises Refusal when the sidecar stops meanwhile."""


class Admission:
    """The gates of the upstream *name*, for all its requests in this process.

    *quota*: until when the upstream's allowance is used up, None: it has none. *turns* None: one session and no cap.
    *patience*: seconds that a request waits for its turn. *longest*: seconds that it waits in pauses, all in all.
    """

    def __init__(
        self,
        name: str,
        *,
        budget: Budget,
        breaker: Breaker,
        pause: SharedMoment,
        quota: SharedMoment | None = None,
        turns: Turns | None,
        patience: float,
        longest: float,
        clock: Clock,
        emit: Emit,
    ) -> None:
        self.budget = budget
        self.breaker = breaker
        self.pause = pause
        self.quota = quota
        self.quota_remaining: float | None = None
        self._name = name
        self._turns = turns
        self._patience = patience
        self._longest = longest
        self._clock = clock
        self._emit = emit
        self._retired = False

    def free(self, now: float, tally: Tally) -> bool:
        """Tell whether the request of *tally* may go on at once, with a turn if there is a cap."""
        if self._blocked(now, tally):
            return False
        if self._turns is not None and tally.turn is None:
            tally.turn = self._turns.take_now()
            return tally.turn is not None
        return True

    async def wait(self, tally: Tally, rest: Rest) -> None:
        """Wait until the request of *tally* may go on, with a turn if there is a cap.

        Raises Refusal: quota_exhausted and circuit_open at once; upstream_paused when the pause would be too long;
        too_many_connections when its turn did not come; and what *rest* raises.
        """
        began = self._clock.monotonic()
        limit = began + self._longest - tally.paused
        while not self.free(now := self._clock.monotonic(), tally):
            self._refuse_if_used_up(now)
            self._refuse_if_open(now, tally)
            if (left := self.pause.until - now) > 0:
                if self.pause.until >= limit:
                    detail = "the upstream asked for a pause, which is too long to wait for"
                    raise Refusal(Reason.UPSTREAM_PAUSED, detail, retry_after=math.ceil(left))
                await rest(min(spread(left, self._clock.jitter()), (left + limit - now) / 2))
                tally.paused += self._clock.monotonic() - now
            elif self._turns is not None and tally.turn is None:
                tally.turn = await self._turns.take(self._patience)
                if tally.turn is None:
                    detail = "too many requests to this upstream are under way (sessions.max_in_flight)"
                    raise Refusal(Reason.TOO_MANY_CONNECTIONS, detail)
                if self._blocked(self._clock.monotonic(), tally):
                    self.leave(tally)

    def permit(self, tally: Tally, now: float) -> int:
        """Return the breaker's permit for the request of *tally*, for `ended` or `abandoned`.

        Raises Refusal, circuit_open, when there is none.
        """
        breaker = self.breaker
        if breaker.closed:
            return breaker.ask(tally.endpoint, now, 0.0)
        before = breaker.state
        permit = breaker.ask(tally.endpoint, now, self._clock.jitter())
        if not permit:
            raise _open(breaker.not_before(tally.endpoint) - now)
        self._tell_change(before, now)
        return permit

    def ended(self, tally: Tally, permit: int, *, ok: bool, now: float) -> None:
        """Count how the request of *tally* ended, whatever the answer says; *ok*: at an upstream that can serve."""
        before = self.breaker.state
        jitter = 0.0 if ok else self._clock.jitter()
        self.breaker.record(permit, tally.endpoint, ok=ok, now=now, jitter=jitter)
        self._tell_change(before, now)

    def abandoned(self, tally: Tally, permit: int, now: float) -> None:
        """Give back the permit of a request that says nothing of the upstream."""
        before = self.breaker.state
        self.breaker.give_back(permit, tally.endpoint, now=now, jitter=self._clock.jitter())
        self._tell_change(before, now)

    def check_closed(self, tally: Tally, now: float) -> None:
        """Raise Refusal, circuit_open, when the breaker has opened: a request that failed already is no probe."""
        if not self.breaker.closed:
            raise _open(self.breaker.not_before(tally.endpoint) - now)

    def leave(self, tally: Tally) -> None:
        """Give back the turn that the request of *tally* has, if it has one."""
        if tally.turn is not None and self._turns is not None:
            turn, tally.turn = tally.turn, None
            self._turns.give_back(turn)

    def learn(self, quota: Quota, now: float) -> None:
        """Take note of what an answer said of the allowance; *now* is wall time."""
        if quota.remaining is not None:
            self.quota_remaining = quota.remaining
        if quota.exhausts and quota.remaining == 0 and quota.reset is not None and quota.reset > now:
            self.use_up(quota.reset - now)

    def use_up(self, seconds: float) -> None:
        """Send nothing for so long, on any instance: the allowance is used up."""
        self.quota_remaining = 0.0
        if self.quota is not None:
            self.quota.extend(seconds)

    def quota_left(self, now: float) -> float:
        """Return the seconds until the used up allowance is reset, not above 0 where it is not used up."""
        return 0.0 if self.quota is None else self.quota.until - now

    async def aclose(self) -> None:
        """End what is under way; twice does no harm."""
        await self.pause.aclose()
        if self.quota is not None:
            await self.quota.aclose()

    def retire(self) -> None:
        """Say that the breaker is closed, and then no more of it: another one takes its place, and begins anew."""
        self._retired = True
        if not self.breaker.closed:
            self._emit(BreakerChanged(upstream=self._name, state="closed", requests=0, failures=0, wait=0.0))

    def _blocked(self, now: float, tally: Tally) -> bool:
        pause = self.pause
        if now >= pause.look_at:
            pause.look()
        if self.quota is not None:
            if now >= self.quota.look_at:
                self.quota.look()
            if now < self.quota.until:
                return True
        if not self.breaker.closed and now < self.breaker.not_before(tally.endpoint):
            return True
        return now < pause.until

    def _refuse_if_used_up(self, now: float) -> None:
        """Raise Refusal while the allowance is used up: each further call may count."""
        if self.quota is not None and (left := self.quota.until - now) > 0:
            detail = "the quota of this upstream is used up; nothing is sent there before it is reset"
            raise Refusal(Reason.QUOTA_EXHAUSTED, detail, retry_after=math.ceil(left))

    def _refuse_if_open(self, now: float, tally: Tally) -> None:
        """Raise Refusal while nothing may go because of the breaker; a probe that must wait out a pause is not due."""
        left = max(self.breaker.not_before(tally.endpoint), self.pause.until) - now
        if not self.breaker.closed and left > 0:
            raise _open(left)

    def _tell_change(self, before: State, now: float) -> None:
        breaker = self.breaker
        if breaker.state is before or self._retired:
            return
        requests, failures = breaker.counts(now)
        self._emit(
            BreakerChanged(
                upstream=self._name,
                state=breaker.state.name.lower(),
                requests=requests,
                failures=failures,
                wait=round(max(0.0, breaker.next_at - now), 3) if breaker.state is State.OPEN else 0.0,
            )
        )


def _open(left: float) -> Refusal:
    detail = "most requests to this upstream have failed of late, and none got through; it is tried again now and then"
    return Refusal(Reason.CIRCUIT_OPEN, detail, retry_after=max(1, math.ceil(left)))
