"""When a token may be used, when the next is due, when one may be forced; and the clock that all of it reads."""

import asyncio
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.clock import Clock, SystemClock
from sidecar.policy.lifetime import due_at, forced_renewal_allowed, usable

MOMENTS = st.floats(0, 4e9)
SPANS = st.floats(0, 1e9)
JITTERS = st.floats(0, 1, exclude_max=True)


@pytest.mark.parametrize(
    ("lifetime", "ends"),
    [(3600.0, 3595.0), (100.0, 95.0), (60.0, 57.0), (5.0, 4.75), (1.0, 0.95), (0.0, 0.0)],
)
def test_token_is_used_until_shortly_before_its_end(lifetime: float, ends: float) -> None:
    """The last 5 s, or the last 5 % of a short life, are left for the way to the upstream."""
    issued = 1000.0

    assert usable(issued + ends - 0.001, issued, issued + lifetime)
    assert not usable(issued + ends, issued, issued + lifetime)
    assert not usable(issued + lifetime + 1, issued, issued + lifetime)


@given(MOMENTS, SPANS, SPANS)
def test_token_is_never_used_after_its_end(issued: float, lifetime: float, age: float) -> None:
    """And a fresh one of any length is used at once."""
    if usable(issued + age, issued, issued + lifetime):
        assert issued + age < issued + lifetime
    assert lifetime < 1.0 or usable(issued, issued, issued + lifetime)


@pytest.mark.parametrize(("jitter", "due"), [(0.0, 80.0), (0.5, 85.0), (0.999, 89.99)])
def test_renewal_is_spread_over_half_the_margin(jitter: float, due: float) -> None:
    """Never earlier than the margin, never later than half of it before the end."""
    assert due_at(100.0, 20.0, jitter) == pytest.approx(due)


@given(MOMENTS, SPANS, JITTERS)
def test_renewal_is_due_within_its_margin(expires: float, margin: float, jitter: float) -> None:
    """Whatever the chance, there is time left."""
    assert expires - margin <= due_at(expires, margin, jitter) <= expires - margin / 2


@pytest.mark.parametrize(
    ("since", "allowed"),
    [(None, True), (0.0, False), (59.9, False), (60.0, True), (1e6, True), (-0.1, True), (-1e6, True)],
)
def test_renewal_is_forced_once_per_interval(since: float | None, allowed: bool) -> None:
    """Over all instances; a clock that was set back does not lock it out."""
    last = None if since is None else 1000.0 - since

    assert forced_renewal_allowed(1000.0, last, 60.0, 3600.0) is allowed


@pytest.mark.parametrize(("lifetime", "wait"), [(3600.0, 60.0), (120.0, 60.0), (100.0, 50.0), (5.0, 2.5), (0.0, 0.0)])
def test_interval_is_at_most_half_a_lifetime(lifetime: float, wait: float) -> None:
    """A token that lives shorter than the interval could not be replaced otherwise."""
    assert forced_renewal_allowed(1000.0 + wait, 1000.0, 60.0, lifetime)
    assert wait == 0.0 or not forced_renewal_allowed(1000.0 + wait - 0.01, 1000.0, 60.0, lifetime)


def test_monotonic_time_never_goes_back_and_is_that_of_the_loop() -> None:
    """Deadlines are set with it and waited for by the event loop."""
    clock: Clock = SystemClock()
    times = [clock.monotonic() for _ in range(1000)]

    async def both() -> tuple[float, float, float]:
        return clock.monotonic(), asyncio.get_running_loop().time(), clock.monotonic()

    before, loop, after = asyncio.run(both())

    assert all(one <= other for one, other in itertools.pairwise(times))
    assert before - 0.1 <= loop <= after + 0.1


def test_wall_time_is_that_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """It jumps when the machine's clock is set; the other one does not."""
    clock = SystemClock()
    before = clock.monotonic()
    monkeypatch.setattr("time.time", lambda: 12345.0)

    assert clock.now() == 12345.0
    assert clock.monotonic() - before < 60


def test_chance_differs_and_stays_below_one() -> None:
    """A wait that is spread by it is never the whole of its bound."""
    chances = {SystemClock().jitter() for _ in range(1000)}

    assert len(chances) > 900
    assert min(chances) >= 0.0
    assert max(chances) < 1.0


@pytest.mark.parametrize("seconds", [-1.0, 0.0, 0.02])
async def test_sleep_waits_and_lets_others_run(seconds: float) -> None:
    """No time at all, or less, only lets others run."""
    ran = []
    task = asyncio.create_task(asyncio.to_thread(ran.append, 1) if seconds > 0 else _append(ran))
    loop = asyncio.get_running_loop()
    before = loop.time()
    await SystemClock().sleep(seconds)
    waited = loop.time() - before
    await task

    assert ran == [1]
    assert max(0.0, seconds) - 0.005 <= waited < 5.0


async def _append(ran: list[int]) -> None:
    ran.append(1)


async def test_sleep_of_nothing_yields() -> None:
    """A loop that sleeps for nothing does not starve the rest."""
    ran: list[int] = []
    task = asyncio.create_task(_append(ran))
    await SystemClock().sleep(-5)

    assert ran == [1]
    await task
