"""The decision after an attempt: the table of docs/how-it-works.md, row by row, and what holds whatever happens."""

import math
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sidecar.policy.classify import Challenge
from sidecar.policy.decide import Attempt, Backoff, Decision, Pass, Renew, RetryPolicy, decide
from tests.unit.decision_table import (
    BEGIN,
    CONFIGURED,
    CUT_OFF,
    END,
    JITTER,
    LIMITS,
    METHODS,
    ROWS,
    UNAPPLIED,
    Row,
    markdown,
)

PAGE = Path(__file__).parents[2] / "docs" / "how-it-works.md"
POLICY = RetryPolicy()
WORDS: dict[str, type] = {"pass": Pass, "renew": Renew, "back off": Backoff, "again at once": Backoff}


def test_the_page_shows_the_table() -> None:
    """What an operator reads is what is tried here; `python -m tests.unit.decision_table` prints it."""
    shown = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]

    assert shown.strip() == markdown().strip()


@pytest.mark.parametrize("row", [*ROWS, *LIMITS], ids=lambda row: f"{row.event} | {row.method}")
def test_row(row: Row) -> None:
    """Every attempt a row speaks of gets the decision the row names."""
    for attempt in row.cases():
        decision = decide(attempt, POLICY, JITTER)

        assert (attempt, decision) == (attempt, row.expected)
    assert row.cases()
    assert isinstance(row.expected, WORDS[row.decision])
    assert row.decision != "again at once" or row.expected.delay == 0.0


@pytest.mark.parametrize("answer", [*UNAPPLIED, *CONFIGURED])
@pytest.mark.parametrize("method", METHODS["idempotent"])
def test_every_status_of_a_row_backs_off(answer, method) -> None:
    """The log says which status it was; one that may come of the connection is tried again on a new one."""
    fresh = answer in UNAPPLIED

    assert decide(Attempt(**answer, **method), POLICY, JITTER) == Backoff(0.1, str(answer["status"]), fresh)


@pytest.mark.parametrize("attempt", [CUT_OFF, *CONFIGURED, CUT_OFF | {"stale": True}])
@pytest.mark.parametrize("method", METHODS["idempotent"])
def test_body_that_was_not_kept_is_not_repeated(attempt, method) -> None:
    """An idempotent request without its body would be another request."""
    made = Attempt(**{"status": None} | attempt | method, replayable=False)

    assert decide(made, POLICY, JITTER) == Pass("not_replayable")


@pytest.mark.parametrize("method", METHODS["any"])
def test_body_does_not_matter_when_nothing_was_sent(method) -> None:
    """What has not begun can begin again."""
    made = Attempt(status=None, sent=False, replayable=False, **method)

    assert decide(made, POLICY, JITTER) == Backoff(0.1, "connect")


def test_stale_connection_is_not_tried_again_too_late() -> None:
    """At once is still too late when the time is over."""
    stale = {"status": None, "stale": True, "method": "GET"}

    assert decide(Attempt(**stale, deadline_left=0.001), POLICY, JITTER) == Backoff(0.0, "stale", fresh=True)
    assert decide(Attempt(**stale, deadline_left=0.0), POLICY, JITTER) == Pass("deadline")
    assert decide(Attempt(**stale, deadline_left=-1.0), POLICY, JITTER) == Pass("deadline")


def test_stale_connection_does_not_cost_an_attempt_of_the_policy() -> None:
    """Not the upstream failed but the pool: who configured one attempt gets it on a connection that lives."""
    assert decide(Attempt(status=None, stale=True, method="GET"), RetryPolicy(attempts=1), 0.5) == Backoff(
        0.0, "stale", fresh=True
    )
    assert decide(Attempt(status=None, method="GET"), RetryPolicy(attempts=1), 0.5) == Pass("attempts")


@pytest.mark.parametrize(
    ("attempts", "jitter", "delay"),
    [
        (1, 0.0, 0.0),
        (1, 0.5, 0.1),
        (1, 0.999, 0.1998),
        (2, 0.5, 0.2),
        (3, 0.5, 0.4),
        (7, 0.5, 6.4),
        (8, 0.5, 10.0),
        (9, 0.5, 10.0),
    ],
)
def test_wait_grows_and_is_spread(attempts: int, jitter: float, delay: float) -> None:
    """Full jitter between nothing and the base doubled each time, up to the cap."""
    made = Attempt(status=503, method="GET", attempts=attempts)
    decision = decide(made, RetryPolicy(attempts=10), jitter)

    assert decision == Backoff(pytest.approx(delay), "503")


@pytest.mark.parametrize(
    ("asked", "jitter", "delay"),
    [
        (None, 0.5, 0.1),
        (0.0, 0.0, 0.1),
        (0.0, 0.5, 0.1125),
        (0.05, 0.0, 0.1),
        (1.0, 0.5, 1.125),
        (2.0, 0.0, 2.0),
        (2.0, 0.999, 2.4995),
        (29.9, 0.5, 30.15),
        (30.0, 0.0, 30.0),
    ],
)
def test_wait_is_what_the_upstream_asks_and_a_little_more(asked: float | None, jitter: float, delay: float) -> None:
    """At least Retry-After, at least the base, and spread by a quarter but no more than half a second."""
    made = Attempt(status=429, method="GET", retry_after=asked)

    assert decide(made, POLICY, jitter) == Backoff(pytest.approx(delay), "429")


def test_answer_with_a_long_retry_after_is_passed_on_at_once() -> None:
    """The client can wait as well as we can, and can do something else meanwhile."""
    assert decide(Attempt(status=429, method="GET", retry_after=31.0), POLICY, JITTER) == Pass("retry_after")
    assert decide(Attempt(status=503, method="GET", retry_after=math.inf), POLICY, JITTER) == Pass("retry_after")


def test_wait_must_end_before_the_deadline() -> None:
    """An attempt that could only begin at the deadline is none."""
    made = {"status": 503, "method": "GET", "retry_after": 2.0}

    assert decide(Attempt(**made, deadline_left=2.001), POLICY, 0.0) == Backoff(2.0, "503")
    assert decide(Attempt(**made, deadline_left=2.0), POLICY, 0.0) == Pass("deadline")


def test_policy_is_the_operators() -> None:
    """Statuses and methods are configured, and a POST is repeated for who says so; 401, 421 and 425 are not asked."""
    policy = RetryPolicy(statuses=frozenset({500}), methods=frozenset({"POST"}), base=1.0, cap=1.5)

    assert decide(Attempt(status=500, method="POST"), policy, JITTER) == Backoff(0.75, "500")
    assert decide(Attempt(status=503, method="POST"), policy, JITTER) == Pass("answer")
    assert decide(Attempt(status=500, method="GET"), policy, JITTER) == Pass("not_idempotent")
    assert decide(Attempt(status=None, method="POST"), policy, JITTER) == Backoff(0.75, "failure")
    assert decide(Attempt(status=421, method="PATCH"), policy, JITTER) == Backoff(0.75, "421", fresh=True)
    everything = RetryPolicy(statuses=frozenset(range(400, 600)))
    assert decide(Attempt(status=401, challenge=Challenge.SCOPE, method="GET"), everything, JITTER) == Pass("challenge")
    assert decide(Attempt(status=425, method="GET", attempts=2), everything, JITTER) == Pass("repeated")


def test_defaults_are_those_of_the_contract() -> None:
    """What is not configured is what docs/configuration.md says."""
    assert RetryPolicy() == RetryPolicy(
        attempts=3,
        statuses=frozenset({429, 502, 503, 504}),
        methods=frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"}),
        base=0.1,
        cap=20.0,
        max_retry_after=30.0,
    )


STATUSES = st.one_of(st.none(), st.integers(0, 999), st.sampled_from([401, 421, 425, 429, 502, 503, 504]))
OUTCOMES = st.fixed_dictionaries(
    {
        "status": STATUSES,
        "challenge": st.sampled_from([*Challenge, Challenge.TOKEN, None]),
        "sent": st.booleans(),
        "stale": st.booleans(),
        "retry_after": st.one_of(st.none(), st.floats(0, 100), st.just(math.inf)),
        "replayable": st.sampled_from([True, True, True, False]),
        "seconds": st.floats(0, 20),
    }
)
POLICIES = st.builds(
    RetryPolicy,
    attempts=st.integers(1, 10),
    statuses=st.frozensets(st.integers(400, 599), max_size=5),
    base=st.floats(0.001, 100),
    cap=st.floats(0, 100),
    max_retry_after=st.floats(0, 100),
)
JITTERS = st.floats(0, 1, exclude_max=True)


@settings(deadline=None, max_examples=150)
@given(
    outcomes=st.lists(OUTCOMES, min_size=14, max_size=14),
    policy=st.one_of(st.just(POLICY), POLICIES),
    method=st.sampled_from(["GET", "PUT", "POST", "PATCH"]),
    keyed=st.booleans(),
    total=st.floats(0.001, 100),
    jitter=JITTERS,
)
def test_one_request_from_its_first_attempt_to_its_end(
    outcomes, policy, method: str, keyed: bool, total: float, jitter: float
) -> None:
    """It ends; at most one renewal; waits end before the deadline; nothing that may have been applied is repeated."""
    left, renewals, tries = total, 0, 0
    made: list[tuple[dict, Decision]] = []
    for outcome in outcomes:
        facts = dict(outcome)
        tries += 1
        left -= facts.pop("seconds")
        attempt = Attempt(
            **facts | {"sent": facts["sent"] or facts["status"] is not None},
            method=method,
            keyed=keyed,
            attempts=tries - renewals,
            renewals=renewals,
            deadline_left=left,
        )
        decision = decide(attempt, policy, jitter)
        made.append((facts, decision))
        if isinstance(decision, Pass):
            break
        renewals += isinstance(decision, Renew)
        if isinstance(decision, Backoff):
            assert 0 <= decision.delay < left
            left -= decision.delay

    assert isinstance(made[-1][1], Pass)
    assert renewals <= 1
    assert tries <= max(policy.attempts, 2) + renewals
    repeated = [facts for facts, decision in made if not isinstance(decision, Pass)]
    if method not in policy.methods and not keyed:
        assert all(facts["status"] in (401, 421, 425) or not (facts["sent"] or facts["status"]) for facts in repeated)
    assert all(facts["replayable"] or not (facts["sent"] or facts["status"]) for facts in repeated)


@settings(deadline=None)
@given(
    outcome=OUTCOMES,
    policy=POLICIES,
    attempts=st.integers(1, 20),
    renewals=st.integers(0, 3),
    left=st.floats(-10, 100),
    jitter=JITTERS,
)
@example({"status": 503, "retry_after": 0.0}, POLICY, 1, 0, 60.0, 0.0)
def test_every_attempt_yields_a_decision(
    outcome, policy, attempts: int, renewals: int, left: float, jitter: float
) -> None:
    """Any status, known or not, and a wait that is within its bounds."""
    facts = {name: value for name, value in outcome.items() if name != "seconds"}
    made = Attempt(**facts, method="GET", attempts=attempts, renewals=renewals, deadline_left=left)
    decision = decide(made, policy, jitter)

    assert isinstance(decision, Pass | Renew | Backoff)
    assert not isinstance(decision, Renew) or (made.status == 401 and renewals == 0)
    if isinstance(decision, Backoff):
        assert decision.delay < left
        assert decision.delay <= max(policy.cap, made.retry_after or 0.0)
        assert decision.why == "stale" or decision.delay >= (made.retry_after or 0.0)
        assert decision.why == "stale" or (made.retry_after or 0.0) <= policy.max_retry_after


def test_every_status_yields_a_decision() -> None:
    """For a POST only three of them lead to another attempt."""
    made = [Attempt(status=status, challenge=Challenge.TOKEN, method="POST") for status in range(1000)]
    repeated = [attempt.status for attempt in made if not isinstance(decide(attempt, POLICY, JITTER), Pass)]

    assert repeated == [401, 421, 425]
