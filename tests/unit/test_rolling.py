"""The rolling sum: what falls out of the window, and that it never forgets too early by more than one part."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.policy.rolling import Rolling


@pytest.mark.parametrize(
    ("added", "asked", "total"),
    [
        ([], 0.0, 0),
        ([0.0], 0.0, 1),
        ([0.0, 0.9, 1.0], 9.9, 3),
        ([0.0, 0.9, 1.0], 10.0, 1),
        ([0.0, 0.9, 1.0], 11.0, 0),
        ([0.5, 5.5], 1e9, 0),
        ([1e9, 1e9 + 1], 1e9 + 9, 2),
        ([0.5, 10.5, 20.5], 20.9, 1),
    ],
)
def test_what_is_old_falls_out_by_parts(added: list[float], asked: float, total: int) -> None:
    """Ten parts of a second each: the oldest goes as a whole, and an idle time empties all."""
    rolling = Rolling(10.0)
    for moment in added:
        rolling.add(moment)

    assert rolling.total(asked) == total


@given(st.lists(st.floats(0, 40), max_size=60), st.floats(0, 20), st.integers(1, 12))
def test_sum_is_that_of_the_window_less_a_part(moments: list[float], later: float, parts: int) -> None:
    """Never more than the whole span holds, never less than the span without its oldest part."""
    moments.sort()
    rolling = Rolling(5.0, parts)
    for moment in moments:
        rolling.add(moment)
    now = (moments[-1] if moments else 0.0) + later

    least = sum(now - moment < 5.0 - 5.0 / parts - 1e-6 for moment in moments)
    most = sum(now - moment <= 5.0 + 1e-6 for moment in moments)
    assert least <= rolling.total(now) <= most
