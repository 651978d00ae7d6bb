"""The breaker: when it opens, when a probe may go, and that nothing keeps it half-open."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.policy.breaker import Breaker, BreakerPolicy, State

POLICY = BreakerPolicy()


def count(breaker: Breaker, now: float, *, good: int = 0, bad: int = 0) -> None:
    """Let so many attempts begin and end at *now*, the good ones first."""
    for ok in [True] * good + [False] * bad:
        breaker.record(breaker.ask(now, 0.0), ok=ok, now=now, jitter=0.0)


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

    assert breaker.not_before == pytest.approx(100 + 15 / 16)
    assert breaker.ask(100.9, 0.0) == 0
    assert breaker.state is State.OPEN
    assert breaker.ask(101.0, 0.0) > 0
    assert breaker.state is State.HALF_OPEN
    assert breaker.ask(101.0, 0.0) == 0


def test_waits_between_probes_grow_to_half_of_open_for() -> None:
    """So that it closes within half of open_for after the upstream is back, and a dead one is hardly asked."""
    breaker, now, waits = opened(), 100.0, []
    for _ in range(6):
        waits.append(breaker.not_before - now)
        now = breaker.not_before
        breaker.record(breaker.ask(now, 0.0), ok=False, now=now, jitter=0.0)

    assert waits == pytest.approx([15 / 16, 15 / 8, 15 / 4, 7.5, 7.5, 7.5])


def test_jitter_shortens_a_wait_by_up_to_half() -> None:
    """Instances that opened together do not probe together."""
    breaker = Breaker(POLICY)
    for _ in range(20):
        breaker.record(breaker.ask(100.0, 0.0), ok=False, now=100.0, jitter=0.999)

    assert breaker.not_before == pytest.approx(100 + 15 / 32, abs=0.001)


def test_a_good_probe_closes_and_all_begins_anew() -> None:
    """The failures that opened it are forgotten: one more does not open it again."""
    breaker = opened()
    breaker.record(breaker.ask(101.0, 0.0), ok=True, now=101.5, jitter=0.0)

    assert (breaker.state, breaker.not_before) == (State.CLOSED, 0.0)
    assert breaker.counts(101.5) == (0, 0)
    count(breaker, 101.6, bad=19)
    assert breaker.state is State.CLOSED
    count(breaker, 101.7, bad=1)
    assert breaker.state is State.OPEN
    assert breaker.not_before == pytest.approx(101.7 + 15 / 16)


def test_a_bad_probe_opens_again() -> None:
    """The next one is due after the longer wait, counted from its end."""
    breaker = opened()
    breaker.record(breaker.ask(101.0, 0.0), ok=False, now=102.0, jitter=0.0)

    assert breaker.state is State.OPEN
    assert breaker.not_before == pytest.approx(102 + 15 / 8)


def test_attempts_from_before_it_opened_say_nothing() -> None:
    """Neither a late success closes it, nor a late failure puts the probe off."""
    breaker = Breaker(POLICY)
    old = breaker.ask(99.0, 0.0)
    count(breaker, 100.0, bad=20)
    due = breaker.not_before
    breaker.record(old, ok=True, now=100.5, jitter=0.0)
    breaker.record(old, ok=False, now=100.5, jitter=0.0)
    breaker.give_back(old, now=100.5, jitter=0.0)

    assert (breaker.state, breaker.not_before) == (State.OPEN, due)
    probe = breaker.ask(101.0, 0.0)
    breaker.record(old, ok=True, now=101.0, jitter=0.0)
    assert breaker.state is State.HALF_OPEN
    breaker.record(probe, ok=True, now=101.0, jitter=0.0)
    breaker.record(old, ok=False, now=101.0, jitter=0.0)
    assert breaker.counts(101.0) == (0, 0)


def test_a_probe_that_never_ends_does_not_keep_others() -> None:
    """When the next would have been due had it failed, the next may go."""
    breaker = opened()
    first = breaker.ask(101.0, 0.0)

    assert breaker.ask(101.0 + 15 / 8 - 0.01, 0.0) == 0
    second = breaker.ask(101.0 + 15 / 8, 0.0)
    assert second > first
    breaker.record(first, ok=False, now=104.0, jitter=0.0)
    assert breaker.state is State.HALF_OPEN, "the second is still under way"


def test_a_late_success_of_any_probe_closes() -> None:
    """A slow upstream answers after the next probe has gone: it works."""
    breaker = opened()
    first = breaker.ask(101.0, 0.0)
    second = breaker.ask(104.0, 0.0)
    breaker.record(first, ok=True, now=105.0, jitter=0.0)
    assert breaker.state is State.CLOSED

    breaker.record(second, ok=False, now=105.0, jitter=0.0)
    assert breaker.counts(105.0) == (0, 0)


def test_a_probe_whose_client_left_gives_its_permit_back() -> None:
    """The next may go after the shortest wait: soon, but not as fast as clients come and go."""
    breaker = opened()
    for _ in range(4):
        breaker.record(breaker.ask(breaker.not_before, 0.0), ok=False, now=120.0, jitter=0.0)
    now = breaker.not_before
    breaker.give_back(breaker.ask(now, 0.0), now=now + 0.1, jitter=0.0)

    assert breaker.state is State.OPEN
    assert breaker.not_before == pytest.approx(now + 0.1 + 15 / 16)


def test_nothing_to_give_back_while_closed() -> None:
    """An attempt without a result does not count."""
    breaker = Breaker(POLICY)
    breaker.give_back(breaker.ask(1.0, 0.0), now=1.0, jitter=0.0)

    assert breaker.counts(1.0) == (0, 0)
    assert breaker.state is State.CLOSED


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
            permit = breaker.ask(now, jitter)
            assert permit > 0 or was is not State.CLOSED
            if permit and was is not State.CLOSED:
                assert now - probed >= 15 / 32 - 1e-9
                probed = now
            out += [permit] * (permit > 0)
        elif out:
            permit = out.pop(which % len(out))
            if what == "leave":
                breaker.give_back(permit, now=now, jitter=jitter)
            elif what != "forget":
                breaker.record(permit, ok=what == "ok", now=now, jitter=jitter)
        assert (breaker.not_before == 0.0) == (breaker.state is State.CLOSED)
        assert breaker.not_before <= now + 7.5

    later = now + 7.5
    breaker.record(breaker.ask(later, jitter), ok=True, now=later, jitter=jitter)
    assert breaker.state is State.CLOSED
