"""The budget of retries: its share, its floor, and that it holds over any ten seconds."""

from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.policy.budget import FLOOR, Budget


def drained(budget: Budget, now: float) -> int:
    """Return how many retries it still gives."""
    count = 0
    while budget.left(now):
        budget.withdraw(now)
        count += 1
    return count


def test_ten_retries_are_always_there() -> None:
    """Without any request, and with a share of nothing."""
    assert drained(Budget(0.2), 5.0) == FLOOR == 10
    assert drained(Budget(0.0), 5.0) == 10


def test_beyond_them_it_is_the_share_of_the_requests() -> None:
    """20 % of 100 requests are 20, and the floor is in them, not on top."""
    budget = Budget(0.2)
    for _ in range(100):
        budget.deposit(5.0)

    assert drained(budget, 5.0) == 20


def test_deposits_are_good_for_ten_seconds() -> None:
    """A calm day does not pay for a storm."""
    budget = Budget(0.5)
    for _ in range(1000):
        budget.deposit(5.0)

    assert drained(budget, 15.0) == 10


def test_what_was_withdrawn_comes_back_after_ten_seconds() -> None:
    """Not before: ten seconds that begin in the middle of one hold no more than the budget."""
    budget = Budget(0.0)
    assert drained(budget, 5.9) == 10

    assert drained(budget, 15.0) == 0
    assert drained(budget, 15.8) == 0
    assert drained(budget, 16.0) == 10


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 2), st.booleans()), max_size=300), st.sampled_from([0.0, 0.2, 1.0]))
def test_any_ten_seconds_hold_no_more_retries_than_the_budget(steps: list[tuple[float, bool]], share: float) -> None:
    """Whatever comes when: counted back from each retry, they are the floor or the share of the requests."""
    budget, now = Budget(share), 0.0
    requests: list[float] = []
    retries: list[float] = []
    for wait, is_request in steps:
        now += wait / 10
        if is_request:
            budget.deposit(now)
            requests.append(now)
        elif budget.left(now):
            budget.withdraw(now)
            retries.append(now)
            recent = sum(now - moment <= 10 for moment in requests)
            assert sum(now - moment <= 10 for moment in retries) <= max(FLOOR, share * recent)
