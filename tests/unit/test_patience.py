"""A limit is given anew with every step and passes once; its timer is set as seldom as can be."""

import math
from collections.abc import Callable

from sidecar.exchange.patience import Limit


class Timer:
    """What a loop hands out for a call at a time."""

    def __init__(self, at: float, call: Callable[[], None]) -> None:
        self.at = at
        self.call = call
        self.cancelled = False

    def when(self) -> float:
        return self.at

    def cancel(self) -> None:
        self.cancelled = True


class Loop:
    """An event loop's clock, moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[Timer] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, call: Callable[[], None]) -> Timer:
        self.timers.append(Timer(when, call))
        return self.timers[-1]

    def pending(self) -> list[float]:
        return [timer.at for timer in self.timers if not timer.cancelled]

    def move(self, seconds: float) -> None:
        """Let time go by, and call what is due, in order."""
        end = self.now + seconds
        while due := sorted(
            (timer for timer in self.timers if not timer.cancelled and timer.at <= end), key=Timer.when
        ):
            self.now = max(self.now, due[0].at)
            self.timers.remove(due[0])
            due[0].call()
        self.now = end


class Watched:
    """A limit, and when it passed."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.unsent = 0
        self.passed: list[float] = []
        self.limit = Limit(self.loop, lambda: self.passed.append(self.loop.now), lambda: self.unsent)  # type: ignore[arg-type]


def test_it_passes_when_its_time_is_over() -> None:
    """Once, and exactly then."""
    each = Watched()
    each.limit.give(5)
    each.loop.move(60)

    assert each.passed == [105]
    assert each.loop.pending() == []


def test_given_anew_it_passes_later() -> None:
    """The time counts from then, and one timer does for all."""
    each = Watched()
    for _ in range(100):
        each.limit.give(5)
        each.loop.move(1)
    assert len(each.loop.pending()) == 1
    each.loop.move(60)

    assert each.passed == [204]


def test_shorter_than_before_it_passes_earlier() -> None:
    """A timer that would ring too late is set anew."""
    each = Watched()
    each.limit.give(3600)
    each.limit.give(5)
    each.loop.move(7200)

    assert each.passed == [105]


def test_lifted_it_does_not_pass() -> None:
    """Nor when it is given for ever; the timer that is left looks once, and rings no more."""
    each = Watched()
    each.limit.give(5)
    each.limit.lift()
    each.loop.move(60)
    each.limit.give(5)
    each.limit.give(math.inf)
    each.loop.move(60)

    assert each.passed == []
    assert each.loop.pending() == []


def test_cancelled_it_leaves_no_timer() -> None:
    """And may be given anew."""
    each = Watched()
    each.limit.give(5)
    each.limit.cancel()
    each.limit.cancel()
    each.loop.move(60)
    assert (each.passed, each.loop.timers[1:]) == ([], [])
    each.limit.give(5)
    each.loop.move(60)

    assert each.passed == [165]


def test_progress_lets_it_begin_anew() -> None:
    """As long as there is less left to send than last time; what stays there, or grows, is none."""
    each = Watched()
    each.unsent = 300
    each.limit.give(5, 300)
    for left in (200, 199):
        each.unsent = left
        each.loop.move(5)
        assert each.passed == []
    each.loop.move(5)

    assert each.passed == [115]


def test_without_anything_to_send_there_is_no_progress() -> None:
    """An empty buffer prolongs nothing."""
    each = Watched()
    each.limit.give(5)
    each.loop.move(5)

    assert each.passed == [105]
