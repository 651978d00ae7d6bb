"""The decision after an attempt: pass its outcome on, renew the token, or back off and try again.

A pure function of plain values. Its branches are the R-table of docs/how-it-works.md, in its order; a test
holds the two together. What may never happen: a second renewal for one request, a non-idempotent request
repeated after it may have been applied, a wait that does not fit the deadline.
"""

from dataclasses import dataclass

from sidecar.policy.classify import Challenge

UNAPPLIED = frozenset({421, 425})
"""Answers that say the request was not applied (RFC 9110 section 15.5.20, RFC 8470): safe for any method."""
_SPREAD_SECONDS = 0.5
_SPREAD_SHARE = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """An upstream's `retry` settings; durations in seconds."""

    attempts: int = 3
    statuses: frozenset[int] = frozenset({429, 502, 503, 504})
    methods: frozenset[str] = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})
    base: float = 0.1
    cap: float = 20.0
    max_retry_after: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What happened; *status* None means a failure without an answer.

    *attempts* counts this one. *sent*: a byte left on an established connection. *stale*: the connection came
    from the pool and was closed before any byte of an answer. *prohibited*: we refused the address.
    *replayable*: the body can be sent again. *keyed*: the client gave an Idempotency-Key.
    """

    method: str
    status: int | None
    challenge: Challenge | None = None
    sent: bool = True
    stale: bool = False
    prohibited: bool = False
    retry_after: float | None = None
    replayable: bool = True
    keyed: bool = False
    attempts: int = 1
    renewals: int = 0
    deadline_left: float = 60.0


@dataclass(frozen=True, slots=True)
class Pass:
    """Give the client this outcome; *why* is a word for the log."""

    why: str


@dataclass(frozen=True, slots=True)
class Renew:
    """Get a newer token, then replay."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """Try again after *delay* seconds; *why* is a word for the log."""

    delay: float
    why: str
    fresh: bool = False
    """On a new connection: the pooled ones are stale too, or lead to the wrong server."""


Decision = Pass | Renew | Backoff
STALE = "stale"
"""Why a Backoff is no retry but the pool's own affair: it counts against no budget."""


def decide(attempt: Attempt, policy: RetryPolicy, jitter: float) -> Decision:
    """Return what to do after *attempt*; *jitter* in [0, 1) spreads the waits."""
    idempotent = attempt.method in policy.methods or attempt.keyed
    left = attempt.deadline_left > 0
    match attempt.status:
        case None if attempt.prohibited:
            return Pass("prohibited")
        case None if not attempt.sent:
            return _again(attempt, policy, jitter, "connect")
        case None if attempt.stale and attempt.attempts == 1 and idempotent and attempt.replayable and left:
            return Backoff(0.0, STALE, fresh=True)
        case None if idempotent:
            return _again(attempt, policy, jitter, "failure")
        case None:
            return Pass("not_idempotent")
        case 401 if attempt.challenge is not Challenge.TOKEN:
            return Pass("challenge")
        case 401 if attempt.renewals:
            return Pass("renewed")
        case 401:
            return Renew() if attempt.replayable else Pass("not_replayable")
        case status if status in UNAPPLIED:
            first = attempt.attempts == 1
            return _again(attempt, policy, jitter, str(status), fresh=True) if first else Pass("repeated")
        case status if status in policy.statuses:
            return _again(attempt, policy, jitter, str(status)) if idempotent else Pass("not_idempotent")
        case _:
            return Pass("answer")


def spread(wait: float, jitter: float) -> float:
    """Return *wait*, longer by up to a quarter, at most half a second: many who wait must not go in one moment."""
    return wait + min(_SPREAD_SECONDS, wait * _SPREAD_SHARE) * jitter


def _again(attempt: Attempt, policy: RetryPolicy, jitter: float, why: str, *, fresh: bool = False) -> Decision:
    """Back off if attempts, body and deadline allow it: full jitter, or what Retry-After asks and a little more."""
    if attempt.attempts >= policy.attempts:
        return Pass("attempts")
    if attempt.sent and not attempt.replayable:
        return Pass("not_replayable")
    wait = min(policy.cap, policy.base * 2**attempt.attempts) * jitter
    if attempt.retry_after is not None:
        if attempt.retry_after > policy.max_retry_after:
            return Pass("retry_after")
        wait = spread(max(policy.base, attempt.retry_after), jitter)
    return Backoff(wait, why, fresh) if wait < attempt.deadline_left else Pass("deadline")
