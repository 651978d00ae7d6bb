"""What is learnt of how long tokens live without use, and when one is used for that alone."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.policy.idleness import QUIET, Idleness, died, limit, next_use, survived

MINUTE = 60.0


def test_two_deaths_make_a_limit() -> None:
    """The shorter one: after so long they are dead."""
    once = died(Idleness(), 45 * MINUTE)
    assert limit(once) is None
    assert limit(died(once, 40 * MINUTE)) == 40 * MINUTE


def test_the_last_two_deaths_count() -> None:
    """A system that ends sessions sooner than it did is believed."""
    seen = Idleness()
    for minutes in (60, 50, 20, 30):
        seen = died(seen, minutes * MINUTE)
    assert limit(seen) == 20 * MINUTE


def test_what_a_token_survived_contradicts_shorter_deaths() -> None:
    """Those were revocations."""
    seen = died(died(Idleness(), 40 * MINUTE), 50 * MINUTE)
    assert limit(survived(seen, 45 * MINUTE)) is None
    assert limit(survived(seen, 30 * MINUTE)) == 40 * MINUTE


def test_a_death_after_less_than_was_survived_is_none() -> None:
    """Nor does it count later."""
    seen = survived(Idleness(), 50 * MINUTE)
    assert died(seen, 40 * MINUTE) == seen


def test_a_shorter_survival_changes_nothing() -> None:
    """Only the longest says something."""
    seen = survived(Idleness(), 50 * MINUTE)
    assert survived(seen, 40 * MINUTE) is seen


def test_a_death_in_mid_use_is_a_revocation() -> None:
    """No system ends a session that was used a moment ago."""
    assert died(Idleness(), QUIET) == Idleness()


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1e6))))
def test_a_limit_is_never_below_what_was_survived(seen: list[tuple[bool, float]]) -> None:
    """Whatever comes in whatever order."""
    known = Idleness()
    for lived, idle in seen:
        known = survived(known, idle) if lived else died(known, idle)
        found = limit(known)
        assert found is None or found > max(QUIET, known.survived)


@pytest.mark.parametrize(
    ("now", "used_at", "kept_at", "wait"),
    [
        (1000.0, 1000.0, -math.inf, 600.0),  # a request was just made
        (1000.0, 700.0, -math.inf, 300.0),
        (1000.0, 400.0, -math.inf, 0.0),  # as long ago as `every`
        (1000.0, 100.0, -math.inf, 0.0),  # longer
        (1000.0, 100.0, 800.0, 400.0),  # we did since
        (5000.0, 1400.0, 4400.0, 0.0),  # the last moment of `only_if_used_within`
        (5000.0, 1399.0, 4400.0, None),  # nobody has used it for longer
        (1000.0, -math.inf, -math.inf, None),  # nobody ever has
    ],
)
def test_a_token_is_used_when_nobody_does(now: float, used_at: float, kept_at: float, wait: float | None) -> None:
    """Every 10 minutes, for an hour after the last request."""
    assert next_use(now, used_at, kept_at, 600.0, 3600.0) == wait
