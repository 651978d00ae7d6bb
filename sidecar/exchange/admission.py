"""What stands between a request and one upstream: the pause it asked for, the breaker, a turn; and the budget.

The good case is `free` and `permit`, which wait for nothing and allocate nothing.
"""

import math
from collections.abc import Awaitable, Callable

from sidecar.clock import Clock
from sidecar.errors import Reason, Refusal
from sidecar.events import BreakerChanged, Emit
from sidecar.exchange.patience import Deadline
from sidecar.exchange.tally import Tally
from sidecar.exchange.turns import Turns
from sidecar.policy.breaker import Breaker, State
from sidecar.policy.budget import Budget
from sidecar.policy.decide import spread
from sidecar.tokens.shared_pause import SharedPause

Rest = Callable[[float], Awaitable[None]]
"""Waits so many seconds; raises Refusal when the sidecar stops meanwhile."""


class Admission:
    """The gates of the upstream *name*, for all its requests in this process.

    *turns* None: there is no cap. *patience*: seconds that a request waits for its turn. *longest*: seconds that it
    waits in pauses, all in all.
    """

    def __init__(
        self,
        name: str,
        *,
        budget: Budget,
        breaker: Breaker,
        pause: SharedPause,
        turns: Turns | None,
        patience: float,
        longest: float,
        clock: Clock,
        emit: Emit,
    ) -> None:
        self.budget = budget
        self.breaker = breaker
        self.pause = pause
        self._name = name
        self._turns = turns
        self._patience = patience
        self._longest = longest
        self._clock = clock
        self._emit = emit
        self._retired = False

    def free(self, now: float, tally: Tally) -> bool:
        """Tell whether the request of *tally* may go on at once, with a turn if there is a cap."""
        if self._blocked(now):
            return False
        if self._turns is not None and not tally.in_turn:
            tally.in_turn = self._turns.take_now()
            return tally.in_turn
        return True

    async def wait(self, deadline: Deadline, tally: Tally, rest: Rest) -> None:
        """Wait until the request of *tally* may go on, with a turn if there is a cap.

        Raises Refusal: circuit_open at once; quota_exhausted at once when the pause would be too long;
        too_many_connections when its turn did not come; and what *rest* raises.
        """
        limit = min(deadline.at, self._clock.monotonic() + self._longest)
        while not self.free(now := self._clock.monotonic(), tally):
            self._refuse_if_open(now)
            if (left := self.pause.until - now) > 0:
                if self.pause.until >= limit:
                    detail = "the upstream asked for a pause, which is too long to wait for"
                    raise Refusal(Reason.QUOTA_EXHAUSTED, detail, retry_after=math.ceil(left))
                await rest(min(spread(left, self._clock.jitter()), (left + limit - now) / 2))
            elif self._turns is not None and not tally.in_turn:
                tally.in_turn = await self._turns.take(min(self._patience, deadline.at - now))
                if not tally.in_turn:
                    detail = "too many requests to this upstream are under way (sessions.max_in_flight)"
                    raise Refusal(Reason.TOO_MANY_CONNECTIONS, detail)
                if self._blocked(self._clock.monotonic()):
                    self.leave(tally)

    def permit(self, now: float) -> int:
        """Return the breaker's permit for one attempt, for `succeeded`, `failed` or `abandoned`.

        Raises Refusal, circuit_open, when there is none.
        """
        before = self.breaker.state
        permit = self.breaker.ask(now, 0.0 if before is State.CLOSED else self._clock.jitter())
        if not permit:
            self._refuse_if_open(now)
        if self.breaker.state is not before:
            self._tell(now)
        return permit

    def succeeded(self, permit: int, now: float) -> None:
        """Count an answer of an upstream that can serve, whatever it says."""
        before = self.breaker.state
        self.breaker.record(permit, ok=True, now=now, jitter=0.0)
        if self.breaker.state is not before:
            self._tell(now)

    def failed(self, permit: int, now: float) -> None:
        """Count no answer, or that of an upstream that cannot serve."""
        before = self.breaker.state
        self.breaker.record(permit, ok=False, now=now, jitter=self._clock.jitter())
        if self.breaker.state is not before:
            self._tell(now)

    def abandoned(self, permit: int, now: float) -> None:
        """Give back the permit of an attempt that says nothing of the upstream."""
        before = self.breaker.state
        self.breaker.give_back(permit, now=now, jitter=self._clock.jitter())
        if self.breaker.state is not before:
            self._tell(now)

    def leave(self, tally: Tally) -> None:
        """Give back the turn that the request of *tally* has, if it has one."""
        if tally.in_turn and self._turns is not None:
            tally.in_turn = False
            self._turns.give_back()

    def retire(self) -> None:
        """Say that the breaker is closed, and then no more of it: another one takes its place, and begins anew."""
        self._retired = True
        if self.breaker.state is not State.CLOSED:
            self._emit(BreakerChanged(upstream=self._name, state="closed", attempts=0, failures=0, wait=0.0))

    def _blocked(self, now: float) -> bool:
        pause = self.pause
        if now >= pause.look_at:
            pause.look()
        if now < self.breaker.not_before:
            return True
        return now < pause.until

    def _refuse_if_open(self, now: float) -> None:
        """Raise Refusal while nothing may go because of the breaker; a probe that must wait out a pause is not due."""
        left = max(self.breaker.not_before, self.pause.until) - now
        if self.breaker.state is not State.CLOSED and left > 0:
            detail = "most requests to this upstream have failed of late; it is tried again now and then"
            raise Refusal(Reason.CIRCUIT_OPEN, detail, retry_after=math.ceil(left))

    def _tell(self, now: float) -> None:
        if self._retired:
            return
        breaker = self.breaker
        attempts, failures = breaker.counts(now)
        wait = max(0.0, breaker.not_before - now) if breaker.state is State.OPEN else 0.0
        self._emit(
            BreakerChanged(
                upstream=self._name,
                state=breaker.state.name.lower(),
                attempts=attempts,
                failures=failures,
                wait=round(wait, 3),
            )
        )
