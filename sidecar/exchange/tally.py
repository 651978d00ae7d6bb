"""What is counted of one request while it is under way, and told of it when it ends."""

import types
from collections.abc import Callable, Coroutine, Generator
from dataclasses import dataclass
from typing import Any

from sidecar.errors import UpstreamFailure
from sidecar.events import RequestDone
from sidecar.exchange.answer import Answer
from sidecar.policy.decide import Backoff, Decision, Pass, Renew
from sidecar.policy.message import Request

_UNAUTHORIZED = 401

RETRY_REFUSED = frozenset(
    {
        *("attempts", "deadline", "not_idempotent", "not_replayable", "repeated", "retry_after"),
        *("budget", "circuit_open"),
    }
)
"""Why an outcome is passed on that could be tried again; the other reasons to pass refuse nothing.

Beside them a Reason, when the retry was on its way and was stopped.
"""


@dataclass(slots=True)
class Tally:
    """The counts of one request; *started* is on the monotonic clock, *begun*: the client has the answer's head.

    *overhead*, *verdicts*, *unauthorized* and *refused* as in the event RequestDone. *in_turn*: it has one of the turns
    that `sessions.max_in_flight` leaves, which is to be given back.
    """

    started: float
    upstream: str = ""
    status: int = 0
    outcome: str = "passed"
    attempts: int = 0
    renewals: int = 0
    retries: int = 0
    begun: bool = False
    overhead: float | None = None
    verdicts: tuple[str, ...] = ()
    unauthorized: int = 0
    refused: str = ""
    in_turn: bool = False

    def passed(self) -> None:
        """Note that an answer was passed on which no rule looks at."""
        self.verdicts += ("pass",)

    def not_retried(self, reason: str) -> None:
        """Note that after all nothing came of the retry or the replay decided last, because of *reason*."""
        if self.verdicts[-1] == "renew":
            self.renewals -= 1
        else:
            self.retries -= 1
        self.verdicts = (*self.verdicts[:-1], "pass")
        self.refused = reason

    def decided(self, decision: Decision, outcome: Answer | UpstreamFailure) -> None:
        """Note what was decided after the *outcome* of an attempt."""
        if isinstance(outcome, Answer) and outcome.status == _UNAUTHORIZED:
            self.unauthorized += 1
        match decision:
            case Pass(why):
                self.verdicts += ("pass",)
                self.refused = why if why in RETRY_REFUSED else ""
            case Renew():
                self.verdicts += ("renew",)
            case Backoff(why="failure"):
                timeout = isinstance(outcome, UpstreamFailure) and outcome.timeout
                self.verdicts += ("timeout" if timeout else "reset",)
            case Backoff(why=why):
                self.verdicts += (why,)

    def done(self, request: Request | None, now: float) -> RequestDone:
        """Return the event for the end of *request*, None: one whose head could not be read."""
        target = request.target.partition(b"?")[0] if request else b""
        return RequestDone(
            upstream=self.upstream,
            method=request.method.decode("latin-1") if request else "",
            path=target.decode("latin-1"),
            status=self.status,
            outcome=str(self.outcome),
            attempts=self.attempts,
            renewals=self.renewals,
            retries=self.retries,
            seconds=now - self.started,
            overhead=self.overhead,
            verdicts=self.verdicts,
            unauthorized=self.unauthorized,
            refused=self.refused,
        )


@types.coroutine
def measured(
    work: Coroutine[Any, Any, None], tally: Tally, monotonic: Callable[[], float]
) -> Generator[Any, Any, None]:
    """Run *work* as `await work` does, and add up in `tally.overhead` the time that its own steps take.

    What it waits for is left out, whatever that is: the upstream, the client, a token, a backoff. So is what the
    event loop does meanwhile, and the work of other tasks, such as an upload's. Cancelled or not, the sum is kept.
    """
    step, value = work.send, None
    tally.overhead = 0.0
    while True:
        begun = monotonic()
        try:
            awaited = step(value)
        except StopIteration:
            return
        finally:
            tally.overhead += monotonic() - begun
            value = None  # an exception here would keep its own frames alive
        try:
            step, value = work.send, (yield awaited)
        except BaseException as error:  # noqa: BLE001  whatever is thrown in is for the work to catch
            step, value = work.throw, error
