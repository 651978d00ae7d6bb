"""The decision after an attempt: renew the token, back off and try again, or pass, and what the client is told then.

A pure function of plain values. Its branches are the R-table of docs/how-it-works.md, in its order; a test
holds the two together. What may never happen: a second renewal for one request, a request repeated after it may
have been applied unless that does no harm, and a client that is told something untrue of what became of it.
"""

from dataclasses import dataclass
from enum import StrEnum

from sidecar.policy.attempt import Attempt, RetryPolicy
from sidecar.policy.reading import Reading, Sign

SAFE = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
"""Methods that change nothing (RFC 9110 section 9.2.1): it does not matter how often one was applied."""
MISDIRECTED = frozenset({421, 425})
"""Answers of a server that should not have been asked, or not so early (RFC 9110 section 15.5.20, RFC 8470)."""
STALE = "stale"
"""Why a Backoff is no retry but the pool's own affair: it counts against no budget."""
STOPPING = "shutting_down"
NOT_RENEWED = "not_renewed"
"""Why the answer to a dead token is passed on when no newer one is to be had."""
_RENEWALS, _SESSIONS, _REPLAYS = 1, 2, 3
"""How often one request may have a token renewed, a session, and be sent again with a newer one that was here."""
_SPREAD_SECONDS = 0.5
_SPREAD_SHARE = 0.25
_ERRORS = 400
_SERVER_ERRORS = 500
_UNAVAILABLE = 503


@dataclass(frozen=True, slots=True)
class Past:
    """What the attempts before leave to be told.

    *answer*: the status of one that may stand in for a later failure, None: none may. *unknown*: one of them may have
    been applied, and no answer since has said that the request is done.
    """

    answer: int | None = None
    unknown: bool = False


class Told(StrEnum):
    """What the client is told."""

    THIS = "this"
    """What this attempt brought: its answer, or its failure as an answer of ours."""
    EARLIER = "earlier"
    """The answer of `Past`."""
    UNKNOWN = "unknown"
    """An answer of ours that says that nobody knows whether the request was applied."""
    REFUSAL = "refusal"
    """Why no other attempt could be made, as an answer of ours."""


@dataclass(frozen=True, slots=True)
class Pass:
    """Tell the client; *why* is a word for the log."""

    why: str
    told: Told = Told.THIS


@dataclass(frozen=True, slots=True)
class Renew:
    """Get a newer token, then replay; *held*: one is here already, and none is asked for."""

    held: bool = False


@dataclass(frozen=True, slots=True)
class Backoff:
    """Try again after *delay* seconds; *why* is a word for the log."""

    delay: float
    why: str
    fresh: bool = False
    """On a new connection: the pooled ones are stale too, or lead to the wrong server."""


Decision = Pass | Renew | Backoff


def decide(attempt: Attempt, past: Past, policy: RetryPolicy, jitter: float) -> Decision:
    """Return what to do after *attempt*, which followed *past*; *jitter* in [0, 1) spreads the waits."""
    found = _next(attempt, policy, jitter)
    return Pass(found, _told(attempt, past)) if isinstance(found, str) else found


def stop(attempt: Attempt, past: Past, why: str) -> Pass:
    """Return what is told when the attempt that was to follow cannot be made; *why* is a Reason, or a word."""
    return Pass(why, _told(attempt, past, why))


def after(past: Past, attempt: Attempt) -> Past:
    """Return what is left to be told once *attempt* has followed *past*, whatever was decided."""
    status = attempt.status
    # Between us and the upstream: once another attempt was made, nobody is told of it.
    absorbed = status in MISDIRECTED or attempt.sign is Sign.EXPIRED
    if attempt.method in SAFE:
        return past if status is None else Past(None if absorbed else status)
    if status is None:
        return Past(None, unknown=True) if attempt.sent else past
    if _denies(status, attempt.sign):
        return Past(None if absorbed or past.unknown else status, past.unknown)
    return Past(status, status >= _ERRORS)


def pauses(status: int, reading: Reading, policy: RetryPolicy) -> bool:
    """Tell whether the wait that an answer asks for is meant for all (RFC 6585 section 4, RFC 9110 section 15.6.4)."""
    wait = reading.wait
    if reading.sign is Sign.EXHAUSTED:  # which has a gate of its own
        return False
    if not wait or wait > policy.max_retry_after:
        return False
    if reading.sign is Sign.THROTTLED:
        return True
    return status in (429, _UNAVAILABLE) and status in policy.statuses | policy.unapplied


def spread(wait: float, jitter: float) -> float:
    """Return *wait*, longer by up to a quarter, at most half a second: many who wait must not go in one moment."""
    return wait + min(_SPREAD_SECONDS, wait * _SPREAD_SHARE) * jitter


def _denies(status: int, sign: Sign) -> bool:
    """Tell whether an answer says, in effect, that nothing was done; another 5xx leaves that open."""
    return sign is not Sign.FINE or _ERRORS <= status < _SERVER_ERRORS or status == _UNAVAILABLE


def _told(attempt: Attempt, past: Past, stopped: str = "") -> Told:
    """Return what may be told: nothing that denies what may have been done, no answer that a later attempt undid."""
    now, status = after(past, attempt), attempt.status
    if not now.unknown and (stopped == STOPPING or _hidden(attempt, stopped)):
        return Told.REFUSAL
    if status is not None and not (now.unknown and _denies(status, attempt.sign)):
        return Told.THIS
    if now.answer is not None:
        return Told.EARLIER
    if now.unknown:
        return Told.UNKNOWN
    return Told.REFUSAL if stopped else Told.THIS


def _hidden(attempt: Attempt, stopped: str) -> bool:
    """Tell whether an answer says that a session is dead, to a client that would take it for its own.

    A 401 is passed on when all was tried; not while there is a reason of ours, and never where the status says nothing.
    """
    if not attempt.session or attempt.sign is not Sign.EXPIRED or attempt.status is None:
        return False
    return attempt.status < _ERRORS or stopped not in ("", NOT_RENEWED)


def _next(attempt: Attempt, policy: RetryPolicy, jitter: float) -> str | Renew | Backoff:
    """Return the next step, or the word why there is none."""
    safe = attempt.method in SAFE
    wanted = attempt.keyed or (attempt.method in policy.methods if attempt.repeats is None else attempt.repeats)
    # Sent again after it was applied it would be told that its condition no longer holds (412).
    repeatable = wanted and (safe or not attempt.conditional)
    never = "conditional" if wanted and not repeatable else "method"
    match attempt.status:
        case None if attempt.prohibited:
            return "prohibited"
        case None if not attempt.sent:
            return _again(attempt, policy, jitter, "connect")
        case None if attempt.invalid:
            return "invalid"
        case None if attempt.timeout:
            return "timeout"
        case None if attempt.stale and attempt.attempts == 1 and repeatable and attempt.replayable:
            return Backoff(0.0, STALE, fresh=True)
        case None:
            return _again(attempt, policy, jitter, "failure") if repeatable else never
        case _ if attempt.sign is Sign.EXPIRED:
            return _renew(attempt)
        case status if attempt.sign is Sign.THROTTLED:
            return _again(attempt, policy, jitter, str(status))
        case _ if attempt.sign is not Sign.FINE:
            return "sign"
        case status if status in policy.unapplied & MISDIRECTED:
            first = attempt.attempts == 1
            return _again(attempt, policy, jitter, str(status), fresh=True) if first else "repeated"
        case status if status in policy.unapplied:
            return _again(attempt, policy, jitter, str(status))
        case status if status in policy.statuses:
            return _again(attempt, policy, jitter, str(status)) if repeatable else never
        case _:
            return "answer"


def _renew(attempt: Attempt) -> str | Renew:
    if attempt.session and attempt.newer and attempt.replays < _REPLAYS:
        return Renew(held=True) if attempt.replayable else "not_replayable"
    if attempt.renewals >= (_SESSIONS if attempt.session else _RENEWALS):
        return "renewed"
    return Renew() if attempt.replayable else "not_replayable"


def _again(attempt: Attempt, policy: RetryPolicy, jitter: float, why: str, *, fresh: bool = False) -> str | Backoff:
    """Back off if all that bounds retries allows it: full jitter, or what Retry-After asks and a little more."""
    if attempt.attempts >= policy.attempts:
        return "attempts"
    if attempt.sent and not attempt.replayable:
        return "not_replayable"
    wait = min(policy.cap, policy.base * 2**attempt.attempts) * jitter
    if attempt.retry_after is not None:
        if attempt.retry_after > policy.max_retry_after:
            return "retry_after"
        wait = spread(max(policy.base, attempt.retry_after), jitter)
    if not attempt.closed:
        return "circuit_open"
    return Backoff(wait, why, fresh) if attempt.budget else "budget"
