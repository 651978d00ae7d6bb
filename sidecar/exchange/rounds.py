"""The rounds of one request: attempt, read, decide, and Renew or Backoff go round until something is passed on.

Nothing has reached the client yet. What may be decided is in `policy`; here it is only carried out.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from sidecar.clock import Clock
from sidecar.errors import Reason, Refusal, UpstreamFailure
from sidecar.exchange.answer import Answer
from sidecar.exchange.brought import Brought
from sidecar.exchange.destination import Destination
from sidecar.exchange.dressing import dressed, looked_into
from sidecar.exchange.errand import Errand
from sidecar.exchange.peek import peek
from sidecar.policy import headers
from sidecar.policy.attempt import Attempt
from sidecar.policy.classify import retry_after
from sidecar.policy.decide import NOT_RENEWED, STALE, Backoff, Pass, Renew, Told, decide, pauses, stop
from sidecar.policy.message import value_of
from sidecar.policy.reading import FINE, LOGIN, Reading, Sign
from sidecar.tokens.token import Token

_ERRORS = 400
_UNTIL_RESET = 60.0
"""Seconds that a used up quota is taken to last when nobody says."""


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
        destination = errand.destination
        destination.admission.budget.deposit(self._clock.monotonic())
        if destination.dialect.alone_first and destination.broker.verdicts.token is None:
            async with _alone(destination):
                return await self._run(errand)
        return await self._run(errand)

    async def _run(self, errand: Errand) -> Answer:
        tally, admission, monotonic = errand.tally, errand.destination.admission, self._clock.monotonic
        token = await self._ready(errand)
        permit = admission.permit(tally, monotonic())
        brought = Brought()
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

    async def _go_round(self, errand: Errand, token: Token | None, brought: Brought) -> tuple[Told, Refusal | None]:
        """Make attempts until one is the last; return what the client is told, and what kept us from another one."""
        destination, tally, dialect = errand.destination, errand.tally, errand.destination.dialect
        renewed: Token | None = None
        fresh = False
        while True:
            outcome = brought.last = await self._attempt(errand, token, fresh=fresh)
            reading = FINE
            if token is None:
                if isinstance(outcome, Answer):
                    reading = Reading(Sign.FINE, retry_after(outcome.fields, self._clock.now()))
            elif isinstance(outcome, Answer):
                if dialect.hold_back is not None or outcome.status >= _ERRORS:
                    reading = await self._read(errand, outcome, token)
                errand.broker.heard(token, reading.sign, reading.part, again=token is renewed, own=errand.own)
                if outcome.status < _ERRORS and reading.sign is Sign.FINE:
                    tally.passed()
                    return Told.THIS, None
            attempt = self._described(errand, outcome, reading, token)
            decision = decide(attempt, brought.past, destination.retry, self._clock.jitter())
            refusal: Refusal | None = None
            if isinstance(decision, Backoff) and decision.why != STALE:
                destination.admission.budget.withdraw(self._clock.monotonic())
            if not isinstance(decision, Pass):
                if isinstance(outcome, Answer):
                    await outcome.settle()
                onward = False
                try:
                    onward, newer = await self._onward(errand, decision, token, reading.part)
                except Refusal as error:
                    refusal = error
                if onward:
                    token = newer
                    renewed = newer if isinstance(decision, Renew) else renewed
                    fresh = isinstance(decision, Backoff) and decision.fresh
                else:
                    decision = stop(attempt, brought.past, refusal.reason if refusal else NOT_RENEWED)
            tally.decided(decision, attempt)
            if isinstance(decision, Pass):
                return decision.told, refusal
            brought.go_on(attempt)

    async def _ready(self, errand: Errand, token: Token | None = None) -> Token | None:
        """Return *token*, or the usable one, once the gates are open; raises Refusal. None where none is to be sent."""
        destination = errand.destination
        if not destination.admission.free(self._clock.monotonic(), errand.tally):
            await destination.admission.wait(errand.tally, self._rest)
            token = None
        if errand.bare:
            return None
        if token is None:
            token = errand.broker.current()
        return token or await errand.broker.token(self._clock.monotonic() + destination.token_timeout)

    async def _onward(
        self, errand: Errand, decision: Renew | Backoff, used: Token | None, part: str
    ) -> tuple[bool, Token | None]:
        """Return whether another attempt may be made, and the token for it. Raises Refusal."""
        destination, tally, monotonic = errand.destination, errand.tally, self._clock.monotonic
        if isinstance(decision, Renew):
            if used is None:
                return False, None
            deadline = monotonic() + destination.token_timeout
            newer = errand.broker.newer(used) if decision.held else None
            newer = newer or await errand.broker.after(used, deadline, part)
            return newer is not None, await self._ready(errand, newer) if newer else None
        destination.admission.leave(tally)
        await self._rest(decision.delay)
        destination.admission.check_closed(tally, monotonic())
        return True, await self._ready(errand)

    async def _attempt(self, errand: Errand, token: Token | None, *, fresh: bool) -> Answer | UpstreamFailure:
        destination = errand.destination
        errand.tally.attempts += 1
        # A probe that went to a kept connection could meet one that ended with the outage.
        fresh = fresh or not destination.admission.breaker.closed
        whole = None if destination.dialect.edit is None else await looked_into(errand)
        sent = dressed(errand, token, self._hop, whole)
        try:
            return await destination.pool.send(errand.request.method, sent.head, sent.body, fresh=fresh)
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

    async def _read(self, errand: Errand, answer: Answer, token: Token) -> Reading:
        destination, dialect, asked, body = errand.destination, errand.destination.dialect, errand.request, None
        if dialect.hold_back is not None:
            asked = errand.asked
            if (limit := dialect.hold_back(asked, answer.status, answer.fields)) > 0:
                body = await peek(answer, limit, dialect.peek_seconds)
        reading = dialect.read(asked, answer.status, answer.fields, body, self._clock.now())
        roll = dialect.roll
        # The cookies of an answer that ends the session are those of nobody's.
        alive = reading.sign is not Sign.EXPIRED or reading.part != LOGIN
        if roll is not None and alive and value_of(answer.fields, b"set-cookie") is not None:
            errand.broker.roll(token, lambda values: roll(values, token.values, asked, answer.fields))
        if reading.quota is not None:
            destination.admission.learn(reading.quota, self._clock.now())
        if reading.sign is Sign.EXHAUSTED:
            destination.admission.use_up(reading.wait or _UNTIL_RESET)
        return reading

    def _described(
        self, errand: Errand, outcome: Answer | UpstreamFailure, reading: Reading, token: Token | None
    ) -> Attempt:
        """Return *outcome* as plain values; a pause that it asks for begins."""
        request, tally, admission = errand.request, errand.tally, errand.destination.admission
        dialect = errand.destination.dialect
        answer = outcome if isinstance(outcome, Answer) else None
        failure = outcome if isinstance(outcome, UpstreamFailure) else None
        if answer and reading.wait and pauses(answer.status, reading, errand.destination.retry):
            admission.pause.extend(reading.wait)
        newer = dialect.session and token is not None and reading.sign is Sign.EXPIRED and reading.part == LOGIN
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
            repeats=dialect.repeats(errand.asked, errand.body.whole()) if dialect.repeats else None,
            session=dialect.session,
            newer=newer and token is not None and errand.broker.newer(token) is not None,
            replays=tally.replays,
            attempts=tally.attempts - tally.renewals - tally.replays,
            renewals=tally.renewals,
            closed=admission.breaker.closed,
            budget=admission.budget.left(self._clock.monotonic()),
        )


@contextlib.asynccontextmanager
async def _alone(destination: Destination) -> AsyncIterator[None]:
    """Wait until nobody else shows the credential for the first time, as long as a credential may take."""
    try:
        async with asyncio.timeout(destination.token_timeout):
            await destination.first.acquire()
    except TimeoutError:
        yield
        return
    try:
        yield
    finally:
        destination.first.release()
