"""The rounds of one request: attempt, read, decide, and Renew or Backoff go round until something is passed on.

Nothing has reached the client yet. What may be decided is in `policy`; here it is only carried out.
"""

import asyncio

from sidecar.auth.dialect import Dialect
from sidecar.clock import Clock
from sidecar.errors import Reason, Refusal, UpstreamFailure
from sidecar.exchange.answer import Answer
from sidecar.exchange.errand import Errand
from sidecar.exchange.peek import peek
from sidecar.policy import headers
from sidecar.policy.breaker import FAILED
from sidecar.policy.decide import STALE, Attempt, Backoff, Pass, Past, Renew, Told, after, decide, pauses, stop
from sidecar.policy.message import Request, value_of
from sidecar.policy.reading import FINE, Reading, Sign
from sidecar.tokens.token import Token

_ERRORS = 400
_NOT_RENEWED = "not_renewed"
_NOTHING = Past()


class Rounds:
    """Takes requests to their upstreams as often as it needs; *hop* is our value of Auth-Sidecar-Hop."""

    def __init__(self, hop: bytes, clock: Clock) -> None:
        self._hop = hop
        self._clock = clock
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Let no request wait to be tried again, or for the end of a pause: the sidecar is about to end."""
        self._stopping.set()

    async def run(self, errand: Errand) -> Answer:
        """Return the answer to pass on; raises Refusal when there is none that may be told.

        Whatever happens, the turn that the tally may have is for the caller to give back.
        """
        tally, admission, monotonic = errand.tally, errand.destination.admission, self._clock.monotonic
        admission.budget.deposit(monotonic())
        token = await self._ready(errand)
        permit = admission.permit(tally, monotonic())
        brought = _Brought()
        try:
            told, refusal = await self._go_round(errand, token, brought)
        except BaseException:
            brought.close()
            admission.abandoned(tally, permit, monotonic())
            raise
        if brought.serves is None:
            admission.abandoned(tally, permit, monotonic())
        else:
            admission.ended(tally, permit, ok=brought.serves, now=monotonic())
        return brought.tell(told, refusal)

    async def _go_round(self, errand: Errand, token: Token, brought: "_Brought") -> tuple[Told, Refusal | None]:
        """Make attempts until one is the last; return what the client is told, and what kept us from another one."""
        destination, tally, dialect = errand.destination, errand.tally, errand.destination.dialect
        renewed: Token | None = None
        fresh = False
        while True:
            outcome = brought.last = await self._attempt(errand, token, fresh=fresh)
            reading = FINE
            if isinstance(outcome, Answer):
                if dialect.hold_back is not None or outcome.status >= _ERRORS:
                    reading = await self._read(errand.request, dialect, outcome)
                destination.broker.heard(token, reading.sign, again=token is renewed, own=errand.own)
                if outcome.status < _ERRORS and reading.sign is Sign.FINE:
                    tally.passed()
                    return Told.THIS, None
            attempt = self._described(errand, outcome, reading)
            decision = decide(attempt, brought.past, destination.retry, self._clock.jitter())
            refusal: Refusal | None = None
            if isinstance(decision, Backoff) and decision.why != STALE:
                destination.admission.budget.withdraw(self._clock.monotonic())
            if not isinstance(decision, Pass):
                if isinstance(outcome, Answer):
                    await outcome.settle()
                try:
                    newer = await self._onward(errand, decision, token)
                except Refusal as error:
                    newer, refusal = None, error
                if newer is not None:
                    token = newer
                    renewed = newer if isinstance(decision, Renew) else renewed
                    fresh = isinstance(decision, Backoff) and decision.fresh
                else:
                    decision = stop(attempt, brought.past, refusal.reason if refusal else _NOT_RENEWED)
            tally.decided(decision, attempt)
            if isinstance(decision, Pass):
                return decision.told, refusal
            brought.go_on(attempt)

    async def _ready(self, errand: Errand, token: Token | None = None) -> Token:
        """Return *token*, or the usable one, once the gates are open; raises Refusal."""
        destination = errand.destination
        if not destination.admission.free(self._clock.monotonic(), errand.tally):
            await destination.admission.wait(errand.tally, self._rest)
            token = None
        if token is None:
            token = destination.broker.current()
        return token or await destination.broker.token(self._clock.monotonic() + destination.token_timeout)

    async def _onward(self, errand: Errand, decision: Renew | Backoff, used: Token) -> Token | None:
        """Return the token for the next attempt, when it may be made; None: there is no newer one. Raises Refusal."""
        destination, tally, monotonic = errand.destination, errand.tally, self._clock.monotonic
        if isinstance(decision, Renew):
            newer = await destination.broker.after(used, monotonic() + destination.token_timeout)
            return await self._ready(errand, newer) if newer else None
        destination.admission.leave(tally)
        await self._rest(decision.delay)
        destination.admission.check_closed(tally, monotonic())
        return await self._ready(errand)

    async def _attempt(self, errand: Errand, token: Token, *, fresh: bool) -> Answer | UpstreamFailure:
        destination = errand.destination
        errand.tally.attempts += 1
        # A probe that went to a kept connection could meet one that ended with the outage.
        fresh = fresh or not destination.admission.breaker.closed
        head = self._head(errand, token)
        try:
            return await destination.pool.send(errand.request.method, head, errand.body, fresh=fresh)
        except UpstreamFailure as failure:
            return failure

    async def _rest(self, seconds: float) -> None:
        """Sleep, but not into a shutdown."""
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return
        raise Refusal(Reason.SHUTTING_DOWN, "the sidecar is stopping; this request still waited to be sent")

    async def _read(self, request: Request, dialect: Dialect, answer: Answer) -> Reading:
        body = None
        if dialect.hold_back is not None and (limit := dialect.hold_back(request, answer.status, answer.fields)) > 0:
            body = await peek(answer, limit)
        return dialect.read(request, answer.status, answer.fields, body, self._clock.now())

    def _head(self, errand: Errand, token: Token) -> bytes:
        request, way, destination = errand.request, errand.way, errand.destination
        dialect = destination.dialect
        target = headers.strip_target(way.target, dialect.strips)
        fields = headers.outgoing(
            request.fields if dialect.hold_back is None else headers.readable(request.fields),
            dialect.strips,
            host=way.origin.authority.encode(),
            hop=self._hop,
            via=destination.via,
            credential=dialect.dress(token.values, request, target),
            chunked=request.length is None,
        )
        lines = [b"%b %b HTTP/1.1" % (request.method, target), *(b"%b: %b" % pair for pair in fields)]
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def _described(self, errand: Errand, outcome: Answer | UpstreamFailure, reading: Reading) -> Attempt:
        """Return *outcome* as plain values; a pause that it asks for begins."""
        request, tally, admission = errand.request, errand.tally, errand.destination.admission
        answer = outcome if isinstance(outcome, Answer) else None
        failure = outcome if isinstance(outcome, UpstreamFailure) else None
        if answer and reading.wait and pauses(answer.status, reading, errand.destination.retry):
            admission.pause.extend(reading.wait)
        return Attempt(
            method=request.method.decode("latin-1"),
            status=answer.status if answer else None,
            sign=reading.sign,
            sent=failure.sent if failure else True,
            stale=failure.reused if failure else False,
            timeout=failure.timeout if failure else False,
            invalid=failure.invalid if failure else False,
            prohibited=failure.prohibited if failure else False,
            retry_after=reading.wait,
            replayable=errand.body.replayable,
            keyed=value_of(request.fields, b"idempotency-key") is not None,
            conditional=headers.conditional(request.fields),
            attempts=tally.attempts - tally.renewals,
            renewals=tally.renewals,
            closed=admission.breaker.closed,
            budget=admission.budget.left(self._clock.monotonic()),
        )


class _Brought:
    """What the attempts of one request brought, as far as its client may still be told of it."""

    def __init__(self) -> None:
        self.past = _NOTHING
        self.last: Answer | UpstreamFailure | None = None
        self._kept: Answer | None = None

    @property
    def serves(self) -> bool | None:
        """Whether the upstream can serve, by what the last attempt brought; None: that says nothing of it."""
        if isinstance(self.last, Answer):
            return self.last.status not in FAILED
        # What is stale is the pool's affair, what is prohibited ours.
        return None if self.last is None or self.last.reused or self.last.prohibited else False

    def go_on(self, attempt: Attempt) -> None:
        """Make ready for another attempt after *attempt*: only an answer that may stand in for its failure is kept."""
        self.past = after(self.past, attempt)
        if isinstance(self.last, Answer):
            self._drop(self._kept)
            self._kept, self.last = self.last, None
        if self.past.answer is None:
            self._drop(self._kept)
            self._kept = None

    def tell(self, told: Told, refusal: Refusal | None) -> Answer:
        """Return the answer to pass on, or raise the Refusal that is told; nothing else stays open."""
        last, kept = self.last, self._kept
        if told is Told.THIS and isinstance(last, Answer):
            self._drop(kept)
            return last
        if told is Told.EARLIER and kept is not None:
            return kept
        self.close()
        if told is Told.REFUSAL and refusal is not None:
            raise refusal
        if isinstance(last, UpstreamFailure):
            reason = Reason.UPSTREAM_TIMEOUT if last.timeout else Reason.UPSTREAM_UNREACHABLE
            raise Refusal(reason, str(last), unknown=told is Told.UNKNOWN) from last
        said = last.status if last else 0
        detail = f"no answer says that this request was applied, and it may have been; the last one was {said}"
        raise Refusal(Reason.UPSTREAM_UNREACHABLE, detail, unknown=True)

    def close(self) -> None:
        """Give up what is still held; twice does no harm."""
        self._drop(self._kept)
        self._drop(self.last)

    @staticmethod
    def _drop(held: Answer | UpstreamFailure | None) -> None:
        if isinstance(held, Answer):
            held.close()
