"""The breaker: when it opens, when a probe may go, and that nothing keeps it half-open."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.policy.breaker import OTHERS, Breaker, BreakerPolicy, State, endpoint_of

POLICY = BreakerPolicy()
PAGE = b"/page"
GOOD, BAD = b"/good", b"/bad"


def count(breaker: Breaker, now: float, *, good: int = 0, bad: int = 0) -> None:
    """Let so many requests begin and end at *now*, the good ones first."""
    for ok in [True] * good + [False] * bad:
        breaker.record(breaker.ask(PAGE, now, 0.0), PAGE, ok=ok, now=now, jitter=0.0)


def opened(now: float = 100.0, policy: BreakerPolicy = POLICY) -> Breaker:
    breaker = Breaker(policy)
    count(breaker, now, bad=20)
    assert breaker.state is State.OPEN
    return breaker


@pytest.mark.parametrize(
    ("good", "bad", "state"),
    [
        (0, 19, State.CLOSED),
        (0, 20, State.OPEN),
        (10, 9, State.CLOSED),
        (10, 10, State.OPEN),
        (20, 19, State.CLOSED),
        (20, 20, State.OPEN),
        (1000, 999, State.CLOSED),
        (1000, 1000, State.OPEN),
    ],
)
def test_opens_when_enough_of_enough_failed(good: int, bad: int, state: State) -> None:
    """Half of at least twenty, unless configured."""
    breaker = Breaker(POLICY)
    count(breaker, 100.0, good=good, bad=bad)

    assert breaker.state is state


def test_numbers_are_the_operators() -> None:
    """All of three within one second."""
    breaker = Breaker(BreakerPolicy(failures=1.0, min_requests=3, window=1.0, open_for=15.0))
    count(breaker, 100.0, bad=2)
    count(breaker, 101.5, bad=2)
    assert breaker.state is State.CLOSED
    count(breaker, 101.6, bad=1)
    assert breaker.state is State.OPEN


def test_defaults_are_those_of_the_contract() -> None:
    """What is not configured is what docs/configuration.md says."""
    assert BreakerPolicy() == BreakerPolicy(failures=0.5, min_requests=20, window=10.0, open_for=15.0)


def test_old_results_do_not_count() -> None:
    """Nineteen failures of ten seconds ago and one of now are one."""
    breaker = Breaker(POLICY)
    count(breaker, 100.0, bad=19)
    count(breaker, 110.0, bad=1)

    assert breaker.state is State.CLOSED
    assert breaker.counts(110.0) == (1, 1)


def test_open_lets_nothing_through_until_a_probe_is_due() -> None:
    """After a sixteenth of open_for, less at most half of it; then one alone may go."""
    breaker = opened()

    assert breaker.not_before(PAGE) == pytest.approx(100 + 15 / 16)
    assert breaker.ask(PAGE, 100.9, 0.0) == 0
    assert breaker.state is State.OPEN
    assert breaker.ask(PAGE, 101.0, 0.0) > 0
    assert breaker.state is State.HALF_OPEN
    assert breaker.ask(PAGE, 101.0, 0.0) == 0


def test_waits_between_probes_grow_to_half_of_open_for() -> None:
    """So that it closes within half of open_for after the upstream is back, and a dead one is hardly asked."""
    breaker, now, waits = opened(), 100.0, []
    for _ in range(6):
        waits.append(breaker.not_before(PAGE) - now)
        now = breaker.not_before(PAGE)
        breaker.record(breaker.ask(PAGE, now, 0.0), PAGE, ok=False, now=now, jitter=0.0)

    assert waits == pytest.approx([15 / 16, 15 / 8, 15 / 4, 7.5, 7.5, 7.5])


def test_jitter_shortens_a_wait_by_up_to_half() -> None:
    """Instances that opened together do not probe together."""
    breaker = Breaker(POLICY)
    for _ in range(20):
        breaker.record(breaker.ask(PAGE, 100.0, 0.0), PAGE, ok=False, now=100.0, jitter=0.999)

    assert breaker.not_before(PAGE) == pytest.approx(100 + 15 / 32, abs=0.001)


def test_a_good_probe_closes_and_all_begins_anew() -> None:
    """The failures that opened it are forgotten: one more does not open it again."""
    breaker = opened()
    breaker.record(breaker.ask(PAGE, 101.0, 0.0), PAGE, ok=True, now=101.5, jitter=0.0)

    assert (breaker.state, breaker.not_before(PAGE)) == (State.CLOSED, 0.0)
    assert breaker.counts(101.5) == (0, 0)
    count(breaker, 101.6, bad=19)
    assert breaker.state is State.CLOSED
    count(breaker, 101.7, bad=1)
    assert breaker.state is State.OPEN
    assert breaker.not_before(PAGE) == pytest.approx(101.7 + 15 / 16)


def test_a_bad_probe_opens_again() -> None:
    """The next one is due after the longer wait, counted from its end."""
    breaker = opened()
    breaker.record(breaker.ask(PAGE, 101.0, 0.0), PAGE, ok=False, now=102.0, jitter=0.0)

    assert breaker.state is State.OPEN
    assert breaker.not_before(PAGE) == pytest.approx(102 + 15 / 8)


def test_attempts_from_before_it_opened_say_nothing() -> None:
    """Neither a late success closes it, nor a late failure puts the probe off."""
    breaker = Breaker(POLICY)
    old = breaker.ask(PAGE, 99.0, 0.0)
    count(breaker, 100.0, bad=20)
    due = breaker.not_before(PAGE)
    breaker.record(old, PAGE, ok=True, now=100.5, jitter=0.0)
    breaker.record(old, PAGE, ok=False, now=100.5, jitter=0.0)
    breaker.give_back(old, PAGE, now=100.5, jitter=0.0)

    assert (breaker.state, breaker.not_before(PAGE)) == (State.OPEN, due)
    probe = breaker.ask(PAGE, 101.0, 0.0)
    breaker.record(old, PAGE, ok=True, now=101.0, jitter=0.0)
    assert breaker.state is State.HALF_OPEN
    breaker.record(probe, PAGE, ok=True, now=101.0, jitter=0.0)
    breaker.record(old, PAGE, ok=False, now=101.0, jitter=0.0)
    assert breaker.counts(101.0) == (0, 0)


def test_a_probe_that_never_ends_does_not_keep_others() -> None:
    """When the next would have been due had it failed, the next may go."""
    breaker = opened()
    first = breaker.ask(PAGE, 101.0, 0.0)

    assert breaker.ask(PAGE, 101.0 + 15 / 8 - 0.01, 0.0) == 0
    second = breaker.ask(PAGE, 101.0 + 15 / 8, 0.0)
    assert second > first
    breaker.record(first, PAGE, ok=False, now=104.0, jitter=0.0)
    assert breaker.state is State.HALF_OPEN, "the second is still under way"


def test_a_late_success_of_any_probe_closes() -> None:
    """A slow upstream answers after the next probe has gone: it works."""
    breaker = opened()
    first = breaker.ask(PAGE, 101.0, 0.0)
    second = breaker.ask(PAGE, 104.0, 0.0)
    breaker.record(first, PAGE, ok=True, now=105.0, jitter=0.0)
    assert breaker.state is State.CLOSED

    breaker.record(second, PAGE, ok=False, now=105.0, jitter=0.0)
    assert breaker.counts(105.0) == (0, 0)


def test_a_probe_whose_client_left_gives_its_permit_back() -> None:
    """The next may go after the shortest wait: soon, but not as fast as clients come and go."""
    breaker = opened()
    for _ in range(4):
        breaker.record(breaker.ask(PAGE, breaker.not_before(PAGE), 0.0), PAGE, ok=False, now=120.0, jitter=0.0)
    now = breaker.not_before(PAGE)
    breaker.give_back(breaker.ask(PAGE, now, 0.0), PAGE, now=now + 0.1, jitter=0.0)

    assert breaker.state is State.OPEN
    assert breaker.not_before(PAGE) == pytest.approx(now + 0.1 + 15 / 16)


def test_nothing_to_give_back_while_closed() -> None:
    """An attempt without a result does not count."""
    breaker = Breaker(POLICY)
    breaker.give_back(breaker.ask(PAGE, 1.0, 0.0), PAGE, now=1.0, jitter=0.0)

    assert breaker.counts(1.0) == (0, 0)
    assert breaker.state is State.CLOSED


def ask_and_record(breaker: Breaker, endpoint: bytes, now: float, *, ok: bool) -> bool:
    """Make a request if it may go; tell whether it went."""
    permit = breaker.ask(endpoint, now, 0.0)
    if permit:
        breaker.record(permit, endpoint, ok=ok, now=now, jitter=0.0)
    return bool(permit)


@pytest.mark.parametrize("bad_pages", [1, 2, 5])
def test_pages_that_fail_do_not_close_the_way_to_one_that_answers(bad_pages: int) -> None:
    """A page asked now and then among others that always fail is evidence that the upstream serves."""
    breaker, now = Breaker(POLICY), 100.0
    for turn in range(40):
        for page in range(bad_pages):
            now += 0.05
            assert ask_and_record(breaker, b"/bad/%c" % (97 + page), now, ok=False), f"turn {turn}"
        now += 0.05
        assert ask_and_record(breaker, GOOD, now, ok=True), f"turn {turn}"


def test_an_answer_from_before_the_trouble_does_not_keep_it_closed() -> None:
    """A page that answered just before everything went down says nothing of now."""
    breaker = Breaker(POLICY)
    assert ask_and_record(breaker, GOOD, 100.0, ok=True)
    for _ in range(20):
        ask_and_record(breaker, BAD, 102.0, ok=False)

    assert breaker.state is State.OPEN


def test_an_endpoint_that_fails_as_often_as_not_is_no_proof() -> None:
    """Half of its own requests, as half of all: nobody answers well."""
    breaker = Breaker(POLICY)
    for _ in range(10):
        ask_and_record(breaker, GOOD, 100.0, ok=True)
        ask_and_record(breaker, GOOD, 100.1, ok=False)
        ask_and_record(breaker, BAD, 100.2, ok=False)

    assert breaker.state is State.OPEN


def test_an_endpoint_that_was_not_seen_to_fail_is_probed_at_once() -> None:
    """It closes the breaker for all if it answers, and waits like the others if not."""
    breaker = opened()
    assert breaker.not_before(PAGE) > 100.0
    assert breaker.not_before(BAD) == 0.0

    assert ask_and_record(breaker, BAD, 100.1, ok=False)
    assert breaker.not_before(BAD) == pytest.approx(100.1 + 15 / 8)
    assert not ask_and_record(breaker, BAD, 100.2, ok=True)
    assert ask_and_record(breaker, GOOD, 100.3, ok=True)
    assert breaker.state is State.CLOSED
    assert breaker.not_before(PAGE) == 0.0


def test_the_probes_of_a_bad_page_do_not_take_the_place_of_a_good_one() -> None:
    """Both have failed in an outage; the bad one is asked for all the time, and the other has its own turn."""
    breaker = Breaker(POLICY)
    for _ in range(10):
        ask_and_record(breaker, GOOD, 100.0, ok=False)
        ask_and_record(breaker, BAD, 100.0, ok=False)
    assert breaker.state is State.OPEN
    now = 100.0
    while not ask_and_record(breaker, GOOD, now, ok=True):
        ask_and_record(breaker, BAD, now, ok=False)
        now += 0.01
        assert now < 107.6

    assert breaker.state is State.CLOSED


def test_the_next_probe_is_that_of_the_endpoint_that_waits_least() -> None:
    """What the log and an answer's Retry-After tell."""
    breaker = opened()
    ask_and_record(breaker, BAD, 100.1, ok=False)

    assert breaker.next_at == breaker.not_before(PAGE) < breaker.not_before(BAD)
    assert Breaker(POLICY).next_at == 0.0


def test_endpoints_beyond_sixty_four_are_one() -> None:
    """Memory has its bound, in the counts and among the waiting; evidence is still complete."""
    breaker = Breaker(BreakerPolicy(min_requests=500))
    names = [b"/" + bytes([97 + n // 26, 97 + n % 26]) for n in range(500)]
    for name in names:
        ask_and_record(breaker, name, 100.0, ok=False)

    assert breaker.counts(100.0) == (500, 500)
    assert breaker.state is State.OPEN
    assert breaker.not_before(names[0]) == breaker.not_before(names[499]) == breaker.not_before(OTHERS) > 100.0


@pytest.mark.parametrize(
    ("target", "endpoint"),
    [
        (b"/", b"/"),
        (b"*", b"*"),
        (b"/items", b"/items"),
        (b"/items?page=2", b"/items"),
        (b"/items/4711", b"/items/*"),
        (b"/items/4711/files/a1", b"/items/*/files/*"),
        (b"/api/v1/health", b"/api/*/health"),
        (b"/parts/2f1c3d4e-aa00-4b0c-9d9d-0123456789ab", b"/parts/*"),
        (b"/odata/Parts('A-1')/Lines", b"/odata/*/Lines"),
        (b"/odata/Parts('AB')", b"/odata/*"),
        (b"/files/M%C3%BCller.pdf", b"/files/*"),
        (b"/a//b/", b"/a//b/"),
        (b"/x" * 400, b"/x" * 100),
    ],
)
def test_what_names_one_thing_of_many_is_one_endpoint(target: bytes, endpoint: bytes) -> None:
    """A digit, an escape or a quote in a segment: the sync of five hundred suppliers is one endpoint or two."""
    assert endpoint_of(target) == endpoint


STEPS = st.lists(
    st.tuples(st.floats(0, 3), st.sampled_from(["ask", "ok", "bad", "leave", "forget"]), st.integers(0, 5)),
    min_size=20,
    max_size=200,
)


@settings(deadline=None)
@given(STEPS, st.floats(0, 1, exclude_max=True), st.integers(1, 5))
def test_it_is_never_stuck_and_lets_one_probe_through_at_a_time(
    steps: list[tuple[float, str, int]], jitter: float, least: int
) -> None:
    """Whatever ends, how, and in which order: in half of open_for the next may go, and one that works closes it."""
    breaker, now = Breaker(BreakerPolicy(min_requests=least)), 0.0
    out: list[int] = []
    probed = float("-inf")
    for wait, what, which in steps:
        now += wait
        if what == "ask":
            was = breaker.state
            permit = breaker.ask(PAGE, now, jitter)
            assert permit > 0 or was is not State.CLOSED
            if permit and was is not State.CLOSED:
                assert now - probed >= 15 / 32 - 1e-9
                probed = now
            out += [permit] * (permit > 0)
        elif out:
            permit = out.pop(which % len(out))
            if what == "leave":
                breaker.give_back(permit, PAGE, now=now, jitter=jitter)
            elif what != "forget":
                breaker.record(permit, PAGE, ok=what == "ok", now=now, jitter=jitter)
        assert (breaker.not_before(PAGE) == 0.0) == (breaker.state is State.CLOSED)
        assert breaker.not_before(PAGE) <= now + 7.5

    later = now + 7.5
    breaker.record(breaker.ask(PAGE, later, jitter), PAGE, ok=True, now=later, jitter=jitter)
    assert breaker.state is State.CLOSED
