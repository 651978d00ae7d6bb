"""How long an issuer is left alone, by what it said."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.policy import pauses


@pytest.mark.parametrize(
    ("attempts", "jitter", "cap", "wait"),
    [
        (1, 0.5, 30.0, 0.5),
        (2, 0.5, 30.0, 1.0),
        (5, 0.5, 30.0, 8.0),
        (6, 0.5, 30.0, 15.0),
        (7, 0.5, 30.0, 15.0),
        (5000, 0.99, 30.0, 29.7),
        (3, 0.0, 30.0, 0.0),
        (5, 1.0, 8.0, 8.0),
        (0, 1.0, 8.0, 1.0),
    ],
)
def test_weather_grows_to_its_cap(attempts: int, jitter: float, cap: float, wait: float) -> None:
    """Full jitter over 1, 2, 4... seconds: many that failed together do not come back together."""
    assert pauses.weather(attempts, jitter, cap) == pytest.approx(wait)


@pytest.mark.parametrize(
    ("pause", "seconds"),
    [
        (pauses.rejected, [300, 600, 1200, 2400, 4800, 9600, 19200, 21600, 21600]),
        (pauses.misplaced, [30, 60, 120, 240, 480, 600, 600]),
        (pauses.unusable, [120, 240, 480, 960, 1800, 1800]),
    ],
    ids=["rejected", "misplaced", "unusable"],
)
def test_pauses_double_to_their_longest(pause: Callable[[int, float], float], seconds: list[float]) -> None:
    """Each with up to a fifth more by chance."""
    assert [pause(number, 0.0) for number in range(1, len(seconds) + 1)] == seconds
    assert pause(1, 1.0) == pytest.approx(seconds[0] * 1.2)
    assert pause(10**6, 0.0) == seconds[-1]
    assert pause(0, 0.0) == seconds[0]


@given(times=st.integers(1, 10**9), jitter=st.floats(0, 1))
def test_who_insists_waits_no_less(times: int, jitter: float) -> None:
    """No pause after a no is shorter than five minutes, nor longer than a quarter of a day and a fifth."""
    assert 300 <= pauses.rejected(times, jitter) <= 6 * 3600 * 1.2
