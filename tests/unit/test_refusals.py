"""When 401s stop forcing renewals: a row of renewed tokens that were all refused, and nothing else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.policy.refusals import LONGEST, Refusals, interval, refused, stopped, taken

LIMIT = 5


def row(*generations: int) -> Refusals:
    """Return the row after so many generations were refused."""
    found = Refusals()
    for generation in generations:
        found = refused(found, generation)
    return found


def test_as_many_refusals_as_the_limit_stop_forced_renewals() -> None:
    """Not one less."""
    assert not stopped(row(2, 3, 4, 5), LIMIT)
    assert stopped(row(2, 3, 4, 5, 6), LIMIT)


def test_each_generation_counts_once() -> None:
    """Two hundred requests with one token are one refusal."""
    assert row(2, 2, 2, 2, 2, 2) == row(2)


def test_a_late_refusal_of_an_older_token_does_not_count() -> None:
    """It says nothing of the newest."""
    assert row(7, 6, 5) == row(7)


def test_a_token_that_was_taken_ends_the_row() -> None:
    """It is the newest that decides, and a newer one all the more."""
    assert taken(row(2, 3, 4, 5, 6), 6).count == 0
    assert taken(row(2, 3, 4, 5, 6), 9).count == 0


def test_a_late_success_of_an_older_token_does_not_end_the_row() -> None:
    """That the upstream took an older one does not mean that it takes the renewed ones."""
    assert stopped(taken(row(2, 3, 4, 5, 6), 5), LIMIT)


def test_an_endpoint_that_refuses_what_others_take_never_stops_the_others() -> None:
    """Whichever of the two comes first with a generation."""
    found = Refusals()
    for generation in range(1, 100):
        found = (
            taken(refused(found, generation), generation)
            if generation % 2
            else refused(taken(found, generation), generation)
        )
        assert found.count == 0


def test_a_success_that_is_told_late_does_not_end_a_newer_row() -> None:
    """The newest success is older than what was refused since."""
    found = taken(Refusals(), 3)
    for generation in (4, 5, 6, 7, 8):
        found = refused(found, generation)
    assert stopped(taken(found, 2), LIMIT)


@pytest.mark.parametrize(
    ("refusals", "min_interval", "seconds"),
    [(5, 60, 60), (6, 60, 120), (7, 60, 240), (8, 60, LONGEST), (99, 60, LONGEST), (5, 0, 1), (6, 0, 2), (9, 600, 600)],
)
def test_probes_grow_apart(refusals: int, min_interval: float, seconds: float) -> None:
    """Twice as far with each that was refused, to five minutes, or as far as forced renewals are apart anyway."""
    assert interval(row(*range(2, 2 + refusals)), LIMIT, min_interval) == seconds


def test_without_a_stop_the_interval_is_the_configured_one() -> None:
    """Nothing changes before."""
    assert interval(row(2, 3), LIMIT, 60) == 60
    assert interval(row(2, 3), LIMIT, 0) == 0


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 40)), max_size=80), st.integers(1, 9))
def test_only_distinct_refusals_since_the_last_success_stop(told: list[tuple[bool, int]], limit: int) -> None:
    """Whatever comes in whatever order."""
    found, since, newest = Refusals(), set[int](), 0
    for was_taken, generation in told:
        found = taken(found, generation) if was_taken else refused(found, generation)
        if was_taken:
            since = since if since and generation < max(since) else set()
            newest = max(newest, generation)
        elif generation > newest:
            since.add(generation)
        assert found.count <= len(since)
        assert stopped(found, limit) == (found.count >= limit)
