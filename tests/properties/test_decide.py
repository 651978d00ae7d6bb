"""How decisions relate to each other: what worsens a request's chances never gets it another attempt."""

from dataclasses import replace

from hypothesis import example, given
from hypothesis import strategies as st

from sidecar.policy.attempt import Attempt, RetryPolicy
from sidecar.policy.decide import SAFE, Backoff, Decision, Pass, Past, Renew, decide
from sidecar.policy.reading import Sign

NOTHING = Past()

STATUSES = st.one_of(st.none(), st.integers(100, 599), st.sampled_from([401, 421, 425, 429, 502, 503, 504]))
ATTEMPTS = st.builds(
    Attempt,
    method=st.sampled_from(["GET", "HEAD", "PUT", "DELETE", "POST", "PATCH"]),
    status=STATUSES,
    sign=st.sampled_from([*Sign, *[Sign.FINE] * 6]),
    sent=st.booleans(),
    stale=st.booleans(),
    prohibited=st.booleans(),
    timeout=st.booleans(),
    invalid=st.booleans(),
    conditional=st.booleans(),
    closed=st.booleans(),
    budget=st.booleans(),
    retry_after=st.one_of(st.none(), st.floats(0, 100)),
    replayable=st.booleans(),
    keyed=st.booleans(),
    attempts=st.integers(1, 6),
    renewals=st.integers(0, 2),
)
POLICIES = st.builds(
    RetryPolicy,
    attempts=st.integers(1, 6),
    statuses=st.frozensets(st.sampled_from([429, 500, 502, 503, 504]), max_size=5),
    methods=st.frozensets(st.sampled_from(["GET", "PUT", "POST"]), max_size=3),
    base=st.floats(0.01, 1),
    cap=st.floats(0.01, 30),
    max_retry_after=st.floats(0, 60),
)
JITTERS = st.floats(0, 1, exclude_max=True)


def again(decision: Decision) -> bool:
    """Tell whether the request is sent once more."""
    return not isinstance(decision, Pass)


@given(ATTEMPTS, POLICIES, JITTERS)
def test_what_worsens_a_request_gets_it_no_attempt(attempt: Attempt, policy: RetryPolicy, jitter: float) -> None:
    """Less time, more attempts made, a body that is gone, an address that is prohibited, a stricter policy."""
    if again(decide(attempt, NOTHING, policy, jitter)):
        return
    worse = (
        replace(attempt, budget=False),
        replace(attempt, conditional=True),
        replace(attempt, replayable=False),
        replace(attempt, renewals=attempt.renewals + 1),
        replace(attempt, prohibited=True),
        replace(attempt, keyed=False),
    )
    assert [each for each in worse if again(decide(each, NOTHING, policy, jitter))] == []
    stricter = (
        replace(policy, attempts=max(1, policy.attempts - 1)),
        replace(policy, max_retry_after=policy.max_retry_after / 2),
        replace(policy, statuses=frozenset()),
        replace(policy, methods=frozenset()),
        replace(policy, unapplied=frozenset()),
    )
    assert [each for each in stricter if again(decide(attempt, NOTHING, each, jitter))] == []


@given(ATTEMPTS, POLICIES, JITTERS)
@example(Attempt(method="POST", status=None, sent=True), RetryPolicy(), 0.5)
@example(Attempt(method="POST", status=503), RetryPolicy(), 0.5)
def test_what_may_have_been_applied_is_repeated_for_idempotent_requests_only(
    attempt: Attempt, policy: RetryPolicy, jitter: float
) -> None:
    """I3: without an answer after the first byte, or with one that does not say "not applied"."""
    unapplied = attempt.status in (421, 425, 429) or (attempt.status is None and not attempt.sent)
    unapplied = unapplied or attempt.sign in (Sign.EXPIRED, Sign.THROTTLED)
    if again(decide(attempt, NOTHING, policy, jitter)) and not unapplied:
        assert attempt.keyed or attempt.method in policy.methods
        assert attempt.method in SAFE or not attempt.conditional


@given(ATTEMPTS, POLICIES, JITTERS, JITTERS)
def test_chance_moves_the_wait_alone(attempt: Attempt, policy: RetryPolicy, one: float, other: float) -> None:
    """The same kind of decision for any jitter; a higher one never waits less."""
    low, high = (decide(attempt, NOTHING, policy, jitter) for jitter in sorted((one, other)))
    if isinstance(high, Backoff):
        assert isinstance(low, Backoff)
        assert (low.why, low.fresh) == (high.why, high.fresh)
        assert 0 <= low.delay <= high.delay
    else:
        assert low == high


@given(ATTEMPTS, POLICIES, JITTERS)
def test_an_idempotency_key_makes_any_method_repeatable(attempt: Attempt, policy: RetryPolicy, jitter: float) -> None:
    """With it the method is of no account any more, unless there is a precondition."""
    keyed = replace(attempt, keyed=True, conditional=False)
    decisions = [decide(replace(keyed, method=method), NOTHING, policy, jitter) for method in ("POST", "GET", "X")]
    assert len({again(each) and each for each in decisions}) == 1


@given(ATTEMPTS, POLICIES, JITTERS)
@example(Attempt(method="POST", status=401, sign=Sign.EXPIRED), RetryPolicy(), 0.5)
@example(Attempt(method="GET", status=401, sign=Sign.EXPIRED, renewals=1), RetryPolicy(), 0.5)
def test_a_renewal_is_for_one_answer_only(attempt: Attempt, policy: RetryPolicy, jitter: float) -> None:
    """An answer that says `expired`, the first time, with a body that is still there; whatever the policy."""
    renews = isinstance(decide(attempt, NOTHING, policy, jitter), Renew)
    assert renews == (
        attempt.status is not None and attempt.sign is Sign.EXPIRED and attempt.renewals == 0 and attempt.replayable
    )
