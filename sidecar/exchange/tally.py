"""What is counted of one request while it is under way, and told of it when it ends."""

import types
from collections.abc import Callable, Coroutine, Generator
from dataclasses import dataclass
from typing import Any

from sidecar.events import RequestDone
from sidecar.policy.attempt import Attempt
from sidecar.policy.decide import Backoff, Decision, Pass, Renew, Told
from sidecar.policy.message import Request
from sidecar.policy.reading import REFUSED

_REFUSES_NOTHING = frozenset({"answer", "prohibited", "renewed", "sign"})
"""Why an outcome is passed on that calls for no other attempt."""


@dataclass(slots=True)
class Tally:
    """The counts of one request; *started* is on the monotonic clock, *begun*: the client has the answer's head.

    *overhead*, *verdicts*, *unauthorized*, *visible*, *refused* and *applied* as in the event RequestDone. *endpoint*:
    what evidence for the breaker is counted by. *replays*: how often it was sent again with a newer token that was
    here. *paused*: seconds that it has waited in pauses. *turn*: the number of the session in which it has one of the
    turns that `sessions` leaves, which is to be given back; None: it has none.
    """

    started: float
    upstream: str = ""
    status: int = 0
    outcome: str = "passed"
    attempts: int = 0
    renewals: int = 0
    replays: int = 0
    retries: int = 0
    begun: bool = False
    overhead: float | None = None
    verdicts: tuple[str, ...] = ()
    unauthorized: int = 0
    visible: bool = False
    refused: str = ""
    applied: str = ""
    endpoint: bytes = b""
    paused: float = 0.0
    turn: int | None = None

    def passed(self) -> None:
        """Note that an answer was passed on which no rule looks at."""
        self.verdicts += ("pass",)

    def decided(self, decision: Decision, attempt: Attempt) -> None:
        """Note what was decided after *attempt*, once it is clear that nothing stops it."""
        refused = attempt.sign in REFUSED
        self.unauthorized += refused
        match decision:
            case Pass(why, told):
                self.visible = refused and told is Told.THIS
                self.verdicts += ("pass" if attempt.status else "fail",)
                self.refused = "" if why in _REFUSES_NOTHING else why
            case Renew(held=held):
                self.renewals += not held
                self.replays += held
                self.verdicts += ("renew",)
            case Backoff(why=why):
                self.retries += 1
                self.verdicts += ("reset" if why == "failure" else why,)

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
            visible=self.visible,
            refused=self.refused,
            applied=self.applied,
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
