"""The rounds of one request: attempt, classify, decide, and Renew or Backoff go round until an answer is passed on.

Nothing has reached the client yet. What may be decided is in `policy`; here it is only carried out.
"""

import asyncio

from sidecar.clock import Clock
from sidecar.errors import Reason, Refusal, UpstreamFailure
from sidecar.exchange.answer import Answer
from sidecar.exchange.body import RequestBody
from sidecar.exchange.patience import Deadline
from sidecar.exchange.ports import Destination
from sidecar.exchange.tally import Tally
from sidecar.policy import headers
from sidecar.policy.breaker import FAILED, State
from sidecar.policy.classify import Challenge, classify_unauthorized, retry_after
from sidecar.policy.decide import STALE, Attempt, Backoff, Decision, Pass, Renew, decide
from sidecar.policy.message import Request, value_of
from sidecar.policy.routing import Route
from sidecar.tokens.token import Token

_UNAUTHORIZED = 401
_ERRORS = 400
_PAUSING = frozenset({429, 503})
"""Answers whose Retry-After is meant for all requests, not for this one (RFC 6585 section 4, RFC 9110 15.6.4)."""


class Rounds:
    """Takes requests to their upstreams as often as it needs; *via* is our line in Via."""

    def __init__(self, via: bytes, clock: Clock) -> None:
        self._via = via
        self._clock = clock
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Let no request wait to be tried again, or for the end of a pause: the sidecar is about to end."""
        self._stopping.set()

    async def run(
        self,
        request: Request,
        way: Route,
        destination: Destination,
        body: RequestBody,
        deadline: Deadline,
        tally: Tally,
    ) -> Answer:
        """Return the answer to pass on; raises Refusal when there is none at all.

        Whatever happens, the turn that *tally* may have is for the caller to give back.
        """
        broker, admission, monotonic = destination.broker, destination.admission, self._clock.monotonic
        last: Answer | None = None
        token: Token | None = None
        renewed: Token | None = None
        fresh = False
        admission.budget.deposit(monotonic())
        try:
            while True:
                if not admission.free(monotonic(), tally):
                    await admission.wait(deadline, tally, self._rest)
                    token = None
                if token is None:
                    token = broker.current() or await broker.token(deadline.at)
                outcome = await self._attempt(request, way, destination, token, body, tally, fresh=fresh)
                if isinstance(outcome, Answer):
                    if last is not None:
                        last.close()
                    last = outcome
                    if outcome.status < _ERRORS:
                        broker.accepted(token)
                        tally.passed()
                        return outcome
                    _tell_broker(destination, token, outcome, again=token is renewed)
                decision = self._decide(request, outcome, destination, body, deadline, tally)
                tally.decided(decision, outcome)
                if isinstance(decision, Pass):
                    return _final(outcome, last)
                if last is not None:
                    await last.settle()
                if isinstance(decision, Renew):
                    token = renewed = await broker.after_unauthorized(token, deadline.at)
                    if token is None:
                        return _final(outcome, last)
                    tally.renewals += 1
                else:
                    admission.leave(tally)
                    tally.retries += 1
                    fresh = decision.fresh
                    await self._rest(decision.delay)
                    token = None
        except Refusal as refusal:
            if last is None:
                raise
            if refusal.reason is Reason.SHUTTING_DOWN:
                last.close()
                raise
            tally.not_retried(refusal.reason)
            return last
        except BaseException:
            if last is not None:
                last.close()
            raise

    async def _attempt(
        self,
        request: Request,
        way: Route,
        destination: Destination,
        token: Token,
        body: RequestBody,
        tally: Tally,
        *,
        fresh: bool,
    ) -> Answer | UpstreamFailure:
        """Make one attempt, with the breaker's leave, and let it know how that ended."""
        admission, monotonic = destination.admission, self._clock.monotonic
        permit = admission.permit(monotonic())
        tally.attempts += 1
        try:
            head = self._head(request, way, destination, token)
            # A probe that went to a kept connection could meet one that ended with the outage.
            fresh = fresh or admission.breaker.state is not State.CLOSED
            answer = await destination.pool.send(request.method, head, body, fresh=fresh)
        except UpstreamFailure as failure:
            if failure.reused or failure.prohibited:  # the pool's affair, and ours: neither says how the upstream is
                admission.abandoned(permit, monotonic())
            else:
                admission.failed(permit, monotonic())
            return failure
        except BaseException:
            admission.abandoned(permit, monotonic())
            raise
        if answer.status in FAILED:
            admission.failed(permit, monotonic())
        else:
            admission.succeeded(permit, monotonic())
        return answer

    async def _rest(self, seconds: float) -> None:
        """Sleep, but not into a shutdown."""
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return
        raise Refusal(Reason.SHUTTING_DOWN, "the sidecar is stopping; this request still waited to be sent")

    def _head(self, request: Request, way: Route, destination: Destination, token: Token) -> bytes:
        fields = headers.outgoing(
            request.fields,
            destination.strips,
            host=way.origin.authority.encode(),
            via=self._via,
            credential=destination.present(token.access_token),
            chunked=request.length is None,
        )
        target = headers.strip_target(way.target, destination.strips)
        lines = [b"%b %b HTTP/1.1" % (request.method, target), *(b"%b: %b" % pair for pair in fields)]
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def _decide(
        self,
        request: Request,
        outcome: Answer | UpstreamFailure,
        destination: Destination,
        body: RequestBody,
        deadline: Deadline,
        tally: Tally,
    ) -> Decision:
        """Return what to do after *outcome*, once breaker and budget were asked; a pause that it asks for begins."""
        answer = outcome if isinstance(outcome, Answer) else None
        failure = outcome if isinstance(outcome, UpstreamFailure) else None
        challenge = classify_unauthorized(answer.fields) if answer and answer.status == _UNAUTHORIZED else None
        asked = retry_after(answer.fields, self._clock.now()) if answer else None
        now, policy = self._clock.monotonic(), destination.retry
        attempt = Attempt(
            method=request.method.decode("latin-1"),
            status=answer.status if answer else None,
            challenge=challenge,
            sent=failure.sent if failure else True,
            stale=failure.reused if failure else False,
            prohibited=failure.prohibited if failure else False,
            retry_after=asked,
            replayable=body.replayable,
            keyed=value_of(request.fields, b"idempotency-key") is not None,
            attempts=tally.attempts - tally.renewals,
            renewals=tally.renewals,
            deadline_left=deadline.at - now,
        )
        decision = decide(attempt, policy, self._clock.jitter())
        if answer and asked and asked <= policy.max_retry_after and answer.status in _PAUSING & policy.statuses:
            destination.admission.pause.extend(asked)
        if isinstance(decision, Backoff) and decision.why != STALE:
            if destination.admission.breaker.state is not State.CLOSED:
                return Pass("circuit_open")
            if not destination.admission.budget.try_withdraw(now):
                return Pass("budget")
        return decision


def _tell_broker(destination: Destination, token: Token, answer: Answer, *, again: bool) -> None:
    """Let the broker know what the upstream made of *token*; *again*: it was already the newer one of this request."""
    if answer.status != _UNAUTHORIZED or classify_unauthorized(answer.fields) is not Challenge.TOKEN:
        destination.broker.accepted(token)
    elif again:
        destination.broker.refused(token)


def _final(outcome: Answer | UpstreamFailure, last: Answer | None) -> Answer:
    """Return the upstream's own last answer whenever there is one."""
    if last is not None:
        return last
    if isinstance(outcome, UpstreamFailure) and outcome.timeout:
        raise Refusal(Reason.UPSTREAM_TIMEOUT, str(outcome)) from outcome
    raise Refusal(Reason.UPSTREAM_UNREACHABLE, str(outcome))
