"""A burst of 503, in fake time: budget, breaker and decision together, as the exchange asks them.

I7: attempts stay near the requests. I14: an open breaker lets probes through only, and closes soon after the end.
Budget and breaker alone are tried in tests/unit; on real sockets the burst is in tests/long/test_burst.py.
"""

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field

from hypothesis import example, given, settings
from hypothesis import strategies as st

from sidecar.policy.attempt import Attempt, RetryPolicy
from sidecar.policy.breaker import FAILED, Breaker, BreakerPolicy, State
from sidecar.policy.budget import FLOOR, Budget
from sidecar.policy.decide import Backoff, Past, decide
from tests.properties.virtual import VirtualLoop

POLICY = RetryPolicy()
PAGE = b"/page"
BURST = 10.0
BACK = 10.0


@dataclass
class Load:
    """Clients that call one upstream through one breaker and one budget."""

    seed: int
    latency: float
    share: float = 0.2
    failing: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.loop = VirtualLoop()
        self.chance = random.Random(self.seed)
        self.breaker = Breaker(BreakerPolicy())
        self.budget = Budget(self.share)
        self.tasks: set[asyncio.Task[None]] = set()

    async def request(self, method: str) -> None:
        """One request of a client, from its first attempt to its end; some clients leave in the middle."""
        self.budget.deposit(self.loop.time())
        self.counts["requests"] += 1
        was, attempts = self.breaker.state, 0
        permit = self.breaker.ask(PAGE, self.loop.time(), self.chance.random())
        if not permit:
            self.counts["refused"] += 1
            return
        while True:
            attempts += 1
            self.counts["attempts"] += 1
            self.counts["probes"] += was is not State.CLOSED
            try:
                await asyncio.sleep(self.latency * (0.5 + self.chance.random()))
                status = 503 if self.chance.random() < self.failing else 200
                now, closed = self.loop.time(), self.breaker.closed
                left = self.budget.left(now)
                attempt = Attempt(method=method, status=status, attempts=attempts, closed=closed, budget=left)
                decision = decide(attempt, Past(), POLICY, self.chance.random())
                if not isinstance(decision, Backoff):
                    break
                self.budget.withdraw(now)
                await asyncio.sleep(decision.delay)
                if not self.breaker.closed:
                    break
            except asyncio.CancelledError:
                self.breaker.give_back(permit, PAGE, now=self.loop.time(), jitter=self.chance.random())
                raise
        ok = status not in FAILED
        self.breaker.record(permit, PAGE, ok=ok, now=self.loop.time(), jitter=self.chance.random())

    async def call(self, rate: float, seconds: float, leaving: float) -> None:
        """Send *rate* requests a second for so long; a share of them, *leaving*, is cut off by its client."""
        end = self.loop.time() + seconds
        while self.loop.time() < end:
            task = self.loop.create_task(self.request("POST" if self.chance.random() < 0.3 else "GET"))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
            if self.chance.random() < leaving:
                self.loop.call_later(self.chance.random() * self.latency, task.cancel)
            await asyncio.sleep(self.chance.expovariate(rate))

    async def end(self) -> None:
        if self.tasks:
            await asyncio.wait(self.tasks)


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**32),
    rate=st.sampled_from([3.0, 20.0, 100.0, 200.0]),
    latency=st.sampled_from([0.002, 0.05, 1.0]),
    leaving=st.sampled_from([0.0, 0.3]),
    failing=st.sampled_from([1.0, 0.4]),
)
@example(seed=1, rate=200.0, latency=0.002, leaving=0.0, failing=1.0)
@example(seed=2, rate=200.0, latency=1.0, leaving=0.3, failing=1.0)
@example(seed=3, rate=100.0, latency=0.05, leaving=0.0, failing=0.4)
def test_a_burst_of_503(seed: int, rate: float, latency: float, leaving: float, failing: float) -> None:
    """At most 1.2 attempts per request and ten more; when it is over the breaker closes within ten seconds."""
    load = Load(seed, latency)
    run = load.loop.run_until_complete
    try:
        run(load.call(rate, 5.0, leaving))
        run(load.end())
        assert load.breaker.state is State.CLOSED
        run(asyncio.sleep(12.0))  # what was deposited is good for ten seconds
        load.counts.clear()

        load.failing = failing
        run(load.call(rate, BURST, leaving))
        assert load.counts["attempts"] <= 1.2 * load.counts["requests"] + FLOOR
        if failing == 1.0 and rate >= 20.0 and leaving == 0.0 and latency < 1.0:
            assert load.breaker.state is not State.CLOSED
            assert load.counts["refused"] > load.counts["requests"] / 2
            assert 0 < load.counts["probes"] <= 12

        load.failing = 0.0
        run(load.call(rate, BACK, leaving))
        assert load.breaker.state is State.CLOSED
        run(load.end())
        load.counts.clear()
        run(load.call(rate, 2.0, 0.0))
        run(load.end())
        assert load.counts["refused"] == 0
        assert load.counts["attempts"] == load.counts["requests"]
    finally:
        for task in load.tasks:
            task.cancel()
        run(asyncio.sleep(0))
        load.loop.close()
