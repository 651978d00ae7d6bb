"""What is counted of one request while it is under way, and told of it when it ends."""

from dataclasses import dataclass

from sidecar.events import RequestDone
from sidecar.policy.message import Request


@dataclass(slots=True)
class Tally:
    """The counts of one request; *started* is on the monotonic clock, *begun*: the client has the answer's head."""

    started: float
    upstream: str = ""
    status: int = 0
    outcome: str = "passed"
    attempts: int = 0
    renewals: int = 0
    retries: int = 0
    begun: bool = False

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
        )
