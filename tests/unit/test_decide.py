"""The decision after an attempt: the table of docs/how-it-works.md, row by row, and what holds whatever happens."""

import math
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sidecar.policy.attempt import Attempt, RetryPolicy
from sidecar.policy.decide import SAFE, Backoff, Decision, Pass, Past, Renew, Told, after, decide, pauses, stop
from sidecar.policy.reading import Reading, Sign
from tests.unit.decision_table import (
    BEGIN,
    CONFIGURED,
    CUT_OFF,
    END,
    EXPIRED,
    JITTER,
    LIMITS,
    METHODS,
    MISDIRECTED,
    ROWS,
    TOLD,
    TOLD_BEGIN,
    TOLD_END,
    Row,
    ToldRow,
    markdown,
    told_markdown,
)

PAGE = Path(__file__).parents[2] / "docs" / "how-it-works.md"
POLICY = RetryPolicy()
NOTHING = Past()
ASKED = Reading(Sign.FINE, 1.0)
WORDS: dict[str, type] = {"pass": Pass, "renew": Renew, "back off": Backoff, "again at once": Backoff}


def shown(begin: str, end: str) -> str:
    return PAGE.read_text(encoding="utf-8").partition(begin)[2].partition(end)[0].strip()


def without_told(decision: Decision) -> Decision:
    return Pass(decision.why) if isinstance(decision, Pass) else decision


def test_the_page_shows_the_tables() -> None:
    """What an operator reads is what is tried here; `python -m tests.unit.decision_table` prints it."""
    assert shown(BEGIN, END) == markdown().strip()
    assert shown(TOLD_BEGIN, TOLD_END) == told_markdown().strip()


@pytest.mark.parametrize("row", [*ROWS, *LIMITS], ids=lambda row: f"{row.event} | {row.method}")
def test_row(row: Row) -> None:
    """Every attempt a row speaks of gets the decision the row names."""
    for attempt in row.cases():
        decision = without_told(decide(attempt, NOTHING, POLICY, JITTER))

        assert (attempt, decision) == (attempt, row.expected)
    assert row.cases()
    assert isinstance(row.expected, WORDS[row.decision])
    assert row.decision != "again at once" or row.expected.delay == 0.0


@pytest.mark.parametrize("row", TOLD, ids=lambda row: f"{row.brought} | {row.before} | {row.method}")
def test_told_row(row: ToldRow) -> None:
    """Whatever ends the attempts, the client is told what the row says."""
    for attempt, past, stopped in row.cases():
        ended = stop(attempt, past, stopped)

        assert (attempt, past, stopped, ended) == (attempt, past, stopped, Pass(stopped, row.expected))
        decision = decide(attempt, past, RetryPolicy(attempts=1, statuses=frozenset(), methods=frozenset()), JITTER)
        if isinstance(decision, Pass) and not stopped:
            assert decision.told is row.expected
    assert row.cases()


@pytest.mark.parametrize(
    ("method", "attempts", "left"),
    [
        ("GET", [{"status": 503}], Past(503)),
        ("GET", [{"status": 503}, CUT_OFF, CUT_OFF], Past(503)),
        ("GET", [{"status": 503}, EXPIRED], NOTHING),
        ("GET", [{"status": 503}, EXPIRED | {"status": 200}], NOTHING),
        ("PUT", [CUT_OFF, EXPIRED | {"status": 200}], Past(None, unknown=True)),
        ("PUT", [{"status": 200, "sign": Sign.THROTTLED}], Past(200)),
        ("POST", [EXPIRED | {"status": 500}], NOTHING),
        ("GET", [{"status": 504}], Past(504)),
        ("PUT", [CUT_OFF], Past(None, unknown=True)),
        ("PUT", [CUT_OFF, {"sent": False}], Past(None, unknown=True)),
        ("PUT", [CUT_OFF, {"status": 503}], Past(None, unknown=True)),
        ("PUT", [CUT_OFF, {"status": 200}], Past(200)),
        ("PUT", [{"status": 503}], Past(503)),
        ("PUT", [{"status": 503}, {"sent": False}], Past(503)),
        ("PUT", [{"status": 503}, CUT_OFF], Past(None, unknown=True)),
        ("PUT", [{"status": 502}], Past(502, unknown=True)),
        ("PUT", [{"status": 502}, {"status": 503}], Past(None, unknown=True)),
        ("POST", [{"status": 429}], Past(429)),
        ("POST", [EXPIRED], NOTHING),
        ("POST", [{"status": 421}], NOTHING),
        ("POST", [{"status": 425}, {"sent": False}], NOTHING),
    ],
)
def test_what_attempts_leave_to_be_told(method: str, attempts: list[dict], left: Past) -> None:
    """An answer that may stand in for a later failure, and whether anybody knows what became of the request."""
    past = NOTHING
    for facts in attempts:
        past = after(past, Attempt(**{"status": None} | facts, method=method))

    assert past == left


@pytest.mark.parametrize("answer", [*MISDIRECTED, {"status": 429}, *CONFIGURED])
@pytest.mark.parametrize("method", METHODS["repeatable"])
def test_every_status_of_a_row_backs_off(answer, method) -> None:
    """The log says which status it was; one that may come of the connection is tried again on a new one."""
    fresh = answer in MISDIRECTED

    assert decide(Attempt(**answer, **method), NOTHING, POLICY, JITTER) == Backoff(0.1, str(answer["status"]), fresh)


@pytest.mark.parametrize("attempt", [CUT_OFF, *CONFIGURED, CUT_OFF | {"stale": True}])
@pytest.mark.parametrize("method", METHODS["repeatable"])
def test_body_that_was_not_kept_is_not_repeated(attempt, method) -> None:
    """A request that may be repeated would be another one without its body."""
    made = Attempt(**{"status": None} | attempt | method, replayable=False)

    assert without_told(decide(made, NOTHING, POLICY, JITTER)) == Pass("not_replayable")


@pytest.mark.parametrize("method", METHODS["any"])
def test_body_does_not_matter_when_nothing_was_sent(method) -> None:
    """What has not begun can begin again."""
    made = Attempt(status=None, sent=False, replayable=False, **method)

    assert decide(made, NOTHING, POLICY, JITTER) == Backoff(0.1, "connect")


def test_stale_connection_does_not_cost_an_attempt_of_the_policy() -> None:
    """Not the upstream failed but the pool: who configured one attempt gets it on a connection that lives."""
    once = RetryPolicy(attempts=1)
    assert decide(Attempt(status=None, stale=True, method="GET"), NOTHING, once, 0.5) == Backoff(
        0.0, "stale", fresh=True
    )
    assert decide(Attempt(status=None, method="GET"), NOTHING, once, 0.5) == Pass("attempts")


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
    decision = decide(made, NOTHING, RetryPolicy(attempts=10), jitter)

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

    assert decide(made, NOTHING, POLICY, jitter) == Backoff(pytest.approx(delay), "429")


def test_answer_with_a_long_retry_after_is_passed_on_at_once() -> None:
    """The client can wait as well as we can, and can do something else meanwhile."""
    long = [
        Attempt(status=429, method="GET", retry_after=31.0),
        Attempt(status=503, method="GET", retry_after=math.inf),
    ]
    assert [decide(each, NOTHING, POLICY, JITTER) for each in long] == [Pass("retry_after")] * 2


def test_policy_is_the_operators() -> None:
    """Statuses and methods are configured, and a POST is repeated for who says so; a 401 is not asked."""
    policy = RetryPolicy(
        statuses=frozenset({500}), methods=frozenset({"POST"}), unapplied=frozenset({503}), base=1.0, cap=1.5
    )

    def decided(**facts) -> Decision:
        return without_told(decide(Attempt(**facts), NOTHING, policy, JITTER))

    assert decided(status=500, method="POST") == Backoff(0.75, "500")
    assert decided(status=504, method="POST") == Pass("answer")
    assert decided(status=500, method="GET") == Pass("method")
    assert decided(status=None, method="POST") == Backoff(0.75, "failure")
    assert decided(status=503, method="PATCH") == Backoff(0.75, "503")
    assert decided(status=503, method="PATCH", conditional=True) == Backoff(0.75, "503")
    assert decided(status=421, method="PATCH") == Pass("answer")
    everything = RetryPolicy(statuses=frozenset(range(400, 600)))
    scope = Attempt(status=401, sign=Sign.SCOPE, method="GET")
    assert decide(scope, NOTHING, everything, JITTER) == Pass("sign")
    assert decide(Attempt(status=425, method="GET", attempts=2), NOTHING, everything, JITTER) == Pass("repeated")


@pytest.mark.parametrize(
    ("status", "asked", "pause"),
    [(429, 1.0, True), (503, 30.0, True), (503, 30.1, False), (429, 0.0, False), (429, None, False), (502, 1.0, False)],
)
def test_some_answers_ask_everybody_to_wait(status: int, asked: float | None, pause: bool) -> None:
    """429 and 503 with a Retry-After that is respected."""
    assert pauses(status, Reading(Sign.FINE, asked), POLICY) is pause


def test_a_dialect_may_say_that_it_was_too_much() -> None:
    """Whatever the status; also then a wait that is too long is nobody's."""
    assert pauses(200, Reading(Sign.THROTTLED, 30.0), POLICY)
    assert not pauses(200, Reading(Sign.THROTTLED, 30.1), POLICY)
    assert not pauses(200, Reading(Sign.THROTTLED), POLICY)
    assert not pauses(200, Reading(Sign.EXPIRED, 1.0), POLICY)


def test_an_answer_that_is_not_retried_asks_nobody_to_wait() -> None:
    """Who wants 503 passed on wants to see it each time."""
    assert not pauses(503, ASKED, RetryPolicy(statuses=frozenset()))
    assert pauses(503, ASKED, RetryPolicy(statuses=frozenset(), unapplied=frozenset({503})))


def test_defaults_are_those_of_the_contract() -> None:
    """What is not configured is what docs/configuration.md says."""
    assert RetryPolicy() == RetryPolicy(
        attempts=3,
        statuses=frozenset({429, 502, 503, 504}),
        methods=frozenset({"GET", "HEAD", "OPTIONS", "PUT"}),
        unapplied=frozenset({421, 425, 429}),
        base=0.1,
        cap=20.0,
        max_retry_after=30.0,
    )


STATUSES = st.one_of(st.none(), st.integers(0, 999), st.sampled_from([401, 421, 425, 429, 502, 503, 504]))
OUTCOMES = st.fixed_dictionaries(
    {
        "status": STATUSES,
        "sign": st.sampled_from([*Sign, *[Sign.FINE] * 6]),
        "sent": st.booleans(),
        "stale": st.booleans(),
        "timeout": st.booleans(),
        "invalid": st.sampled_from([False, False, True]),
        "retry_after": st.one_of(st.none(), st.floats(0, 100), st.just(math.inf)),
        "replayable": st.sampled_from([True, True, True, False]),
        "closed": st.sampled_from([True, True, True, False]),
        "budget": st.sampled_from([True, True, True, False]),
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
    conditional=st.booleans(),
    jitter=JITTERS,
)
def test_one_request_from_its_first_attempt_to_its_end(
    outcomes, policy, method: str, keyed: bool, conditional: bool, jitter: float
) -> None:
    """It ends; at most one renewal; nothing that may have been applied is repeated where that does harm."""
    renewals, tries, past = 0, 0, NOTHING
    made: list[tuple[dict, Decision]] = []
    for facts in outcomes:
        tries += 1
        attempt = Attempt(
            **facts | {"sent": facts["sent"] or facts["status"] is not None},
            method=method,
            keyed=keyed,
            conditional=conditional,
            attempts=tries - renewals,
            renewals=renewals,
        )
        decision = decide(attempt, past, policy, jitter)
        made.append((facts, decision))
        if isinstance(decision, Pass):
            break
        past = after(past, attempt)
        renewals += isinstance(decision, Renew)

    assert isinstance(made[-1][1], Pass)
    assert renewals <= 1
    assert tries <= max(policy.attempts, 2) + renewals
    repeated = [facts for facts, decision in made if not isinstance(decision, Pass)]
    harmful = method not in SAFE and (conditional or not (keyed or method in policy.methods))
    if harmful:
        assert all(
            facts["status"] in (421, 425, 429)
            or facts["sign"] in (Sign.EXPIRED, Sign.THROTTLED)
            or not (facts["sent"] or facts["status"])
            for facts in repeated
        )
    assert all(facts["replayable"] or not (facts["sent"] or facts["status"]) for facts in repeated)
    assert not any(facts["timeout"] and facts["sent"] and facts["status"] is None for facts in repeated)


@settings(deadline=None)
@given(outcome=OUTCOMES, policy=POLICIES, attempts=st.integers(1, 20), renewals=st.integers(0, 3), jitter=JITTERS)
@example({"sign": Sign.FINE, "status": 503, "retry_after": 0.0}, POLICY, 1, 0, 0.0)
def test_every_attempt_yields_a_decision(outcome, policy, attempts: int, renewals: int, jitter: float) -> None:
    """Any status, known or not, and a wait that is within its bounds."""
    made = Attempt(**outcome, method="GET", attempts=attempts, renewals=renewals)
    decision = decide(made, NOTHING, policy, jitter)

    assert isinstance(decision, Pass | Renew | Backoff)
    assert not isinstance(decision, Renew) or (made.sign is Sign.EXPIRED and renewals == 0)
    if isinstance(decision, Backoff):
        assert decision.delay <= max(policy.cap, (made.retry_after or 0.0) + 0.5, policy.base + 0.5)
        assert decision.why == "stale" or decision.delay >= (made.retry_after or 0.0)
        assert decision.why == "stale" or (made.retry_after or 0.0) <= policy.max_retry_after


def test_every_status_yields_a_decision() -> None:
    """For a POST only four of them lead to another attempt."""
    made = [
        Attempt(status=status, sign=Sign.EXPIRED if status == 401 else Sign.FINE, method="POST")
        for status in range(1000)
    ]
    repeated = [each.status for each in made if not isinstance(decide(each, NOTHING, POLICY, JITTER), Pass)]

    assert repeated == [401, 421, 425, 429]


_NO_SIGN = st.just(Sign.FINE)
WORLD = st.one_of(
    st.tuples(st.just("connect"), st.just(False), _NO_SIGN),
    st.tuples(st.sampled_from(["reset", "stall", "garbage"]), st.booleans(), _NO_SIGN),
    st.tuples(st.sampled_from([200, 204, 302]), st.just(True), _NO_SIGN),
    st.tuples(st.sampled_from([400, 404, 409, 421, 425, 429, 503]), st.just(False), _NO_SIGN),
    st.tuples(st.sampled_from([500, 502, 504]), st.booleans(), _NO_SIGN),
    st.tuples(st.sampled_from([200, 302, 401, 403, 500]), st.just(False), st.sampled_from(list(Sign)[1:])),
)
"""What an upstream answers, or loses, whether it did the work, and what it says of the credential."""


@settings(deadline=None, max_examples=2000)
@given(
    world=st.lists(WORLD, min_size=12, max_size=12),
    stops=st.lists(
        st.sampled_from(["", "", "", "circuit_open", "not_renewed", "shutting_down"]), min_size=12, max_size=12
    ),
    method=st.sampled_from(["GET", "PUT", "POST", "DELETE"]),
    keyed=st.booleans(),
    conditional=st.booleans(),
    attempts=st.integers(1, 6),
)
def test_nothing_told_is_untrue(world, stops, method: str, keyed: bool, conditional: bool, attempts: int) -> None:
    """Whatever is lost and wherever, nobody is told that a write failed when it was done, nor the reverse."""
    policy, past, renewals, answers, applied = RetryPolicy(attempts=attempts), NOTHING, 0, [None], 0
    for number, ((what, done, sign), stopped) in enumerate(zip(world, stops, strict=True), 1):
        # The same write twice finds its own precondition gone, but is idempotent otherwise.
        applied += done
        failed = isinstance(what, str)
        attempt = Attempt(
            method=method,
            status=None if failed else what,
            sign=sign,
            sent=what != "connect",
            timeout=what == "stall",
            invalid=what == "garbage",
            keyed=keyed,
            conditional=conditional,
            attempts=number - renewals,
            renewals=renewals,
        )
        decision = decide(attempt, past, policy, JITTER)
        if not isinstance(decision, Pass) and stopped:
            decision = stop(attempt, past, stopped)
        if isinstance(decision, Pass):
            break
        past = after(past, attempt)
        renewals += isinstance(decision, Renew)
        answers.append(attempt.status)

    assert isinstance(decision, Pass)
    told = {Told.THIS: attempt.status, Told.EARLIER: past.answer, Told.UNKNOWN: None, Told.REFUSAL: 503}[decision.told]
    assert decision.told is not Told.EARLIER or past.answer in answers
    if method in SAFE:
        assert decision.told is not Told.UNKNOWN
        return
    refused = decision.told is Told.THIS and attempt.sign is not Sign.FINE
    if told is not None and told < 400 and not refused and decision.told is not Told.EARLIER:
        assert applied > 0
    if refused:
        assert applied == 0
    if told is not None and (400 <= told < 500 or told == 503):
        assert applied == 0
    if decision.told is Told.THIS and told is None:
        assert applied == 0, "502 without a word on the outcome: nothing was sent"
    if decision.told is Told.UNKNOWN:
        assert any(
            (isinstance(what, str) and what != "connect") or what in (500, 502, 504) for what, _, _ in world[:number]
        )
    may_be_repeated = not conditional and (keyed or method in policy.methods)
    assert applied <= 1 or may_be_repeated
