"""A day of two instances in bad weather, in seconds: the real broker and decision, with nothing of it waited for.

`python -m tests.properties.day` prints the table that belongs between the two markers of docs/operations.md.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from sidecar.policy.lifetime import SKEW_SECONDS, SKEW_SHARE
from sidecar.tokens.token import Token
from tests.properties.virtual import WALL
from tests.properties.world import Done, World

BEGIN = "<!-- simulated day -->"
END = "<!-- end of simulated day -->"

DAY = 86400.0
HOUR = 3600.0
SEED = 20
LIFETIMES = {"15 min": 900.0, "1 h": 3600.0, "8 h": 28800.0, "24 h": 86400.0}
ISSUER_OUTAGES = 96
LONGEST_OUTAGE = 75.0
"""Shorter than half the margin of the shortest token, less one backoff: longer ones are felt, whatever is done."""
STORE_OUTAGES = 12
LONGEST_STORE_OUTAGE = 600.0
REVOCATIONS = 6
RESTARTS = 8
CLIENTS = 4
WATCH = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What a day with tokens of one lifetime came to."""

    name: str
    requests: int
    due: int
    in_time: int
    forced: int
    failed_calls: int
    seen_401: int
    absorbed: int
    visible_401: int
    refused: int
    cut: int
    longest: float


def gap(hour: float) -> float:
    """Return the mean seconds between two requests of one client: a nightly run, office hours, and quiet between."""
    return 4.0 if 1 <= hour < 3 else 15.0 if 8 <= hour < 18 else 120.0


def simulate(name: str, lifetime: float, seed: int = SEED) -> Row:
    """Run one day and return its row; the same for the same seed."""
    world = World(seed, rotates="grace")
    world.authority.lifetime = lifetime
    world.authority.latency = lambda: 0.2
    world.api.latency = lambda: 0.03
    start = world.loop.time()
    world.start()
    world.start()
    done: list[Done] = []
    ends: Counter[str] = Counter()

    async def client(number: int) -> None:
        chance = random.Random(seed * 1000 + number)
        while True:
            await asyncio.sleep(chance.expovariate(1.0) * gap((world.loop.time() - start) / HOUR))
            living = list(world.instances.values())
            task = world.request(living[number % len(living)], "GET" if chance.random() < 0.7 else "POST")
            await asyncio.wait({task})
            if task.cancelled():
                ends["cut"] += 1
            else:
                done.append(task.result())

    renewals: Counter[str] = Counter()
    clients = [world.loop.create_task(watch(world, renewals))]
    clients += [world.loop.create_task(client(number)) for number in range(CLIENTS)]
    for at, act in plan(world, random.Random(seed)):
        world.advance(start + at - world.loop.time())
        act()
    world.advance(start + DAY - world.loop.time())
    for task in clients:
        task.cancel()
    failed_calls = len(world.renewals("unavailable"))
    seen, broken = world.api.unauthorized, list(world.broken)
    world.end()
    if broken:
        raise AssertionError(broken)

    return Row(
        name=name,
        requests=len(done),
        due=renewals["due"],
        in_time=renewals["in time"],
        forced=renewals["forced"],
        failed_calls=failed_calls,
        seen_401=seen,
        absorbed=sum(each.absorbed for each in done if each.status != 401),
        visible_401=sum(each.status == 401 for each in done),
        refused=sum(each.reason is not None for each in done),
        cut=ends["cut"],
        longest=max(each.waited for each in done),
    )


async def watch(world: World, renewals: Counter[str]) -> None:
    """Count the tokens that an instance replaced, and how; looks often enough to see every one."""
    held: dict[str, Token] = {}
    while True:
        await asyncio.sleep(WATCH)
        now = WALL + world.loop.time()
        for owner, instance in world.instances.items():
            token, old = instance.broker._holding.token, held.get(owner)
            if token is None:
                continue
            held[owner] = token
            if old is None or old.granted >= token.granted:
                continue
            if token.trigger == "unauthorized":
                renewals["forced"] += 1
            else:
                end = old.expires_at - min(SKEW_SECONDS, SKEW_SHARE * old.lifetime)
                renewals["due"] += 1
                renewals["in time"] += now - WATCH <= end


def plan(world: World, chance: random.Random) -> list[tuple[float, Callable[[], None]]]:
    """Return what happens when, in its order: outages begin and end, tokens are revoked, instances die and start."""
    events: list[tuple[float, Callable[[], None]]] = []
    for number in range(ISSUER_OUTAGES):
        at = chance.random() * DAY
        fault = ("down", "busy", "hangs", "lost")[number % 4]
        events += [(at, lambda fault=fault: setattr(world.authority, "fault", fault))]  # type: ignore[misc]
        events += [(at + chance.random() * LONGEST_OUTAGE, lambda: setattr(world.authority, "fault", "none"))]
    for number in range(STORE_OUTAGES):
        at = chance.random() * DAY
        fault = ("down", "silent", "slow")[number % 3]
        events += [(at, lambda fault=fault: world.set_weather(fault))]  # type: ignore[misc]
        events += [(at + chance.random() * LONGEST_STORE_OUTAGE, lambda: world.set_weather("none"))]
    events += [(chance.random() * DAY, world.authority.revoke) for _ in range(REVOCATIONS)]
    events += [(chance.random() * DAY, world.wipe)]
    for number in range(RESTARTS):
        at, killed = chance.random() * DAY, number % 2 == 0

        def restart(*, killed: bool = killed) -> None:
            instance = next(iter(world.instances.values()))
            (world.kill if killed else world.stop)(instance)
            world.start()

        events.append((at, restart))
    return sorted(((at, act) for at, act in events if at < DAY), key=lambda event: event[0])


HEADINGS = (
    "tokens of",
    "requests",
    "renewals due",
    "done in time",
    "forced by a 401",
    "failed calls to the issuer",
    "401s seen",
    "absorbed",
    "401s the script saw",
    "refused by us",
    "cut by a kill",
    "longest wait",
)


def cells(row: Row) -> list[str]:
    """Return a row as text."""
    numbers = (row.requests, row.due, row.in_time, row.forced, row.failed_calls, row.seen_401, row.absorbed)
    return [row.name, *map(str, numbers), str(row.visible_401), str(row.refused), str(row.cut), f"{row.longest:.1f} s"]


def markdown(rows: list[Row]) -> str:
    """Return the table for the page, with a line end."""
    lines = [list(HEADINGS), ["---"] * len(HEADINGS), *map(cells, rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def all_rows() -> list[Row]:
    """Simulate a day for each lifetime."""
    return [simulate(name, lifetime) for name, lifetime in LIFETIMES.items()]


if __name__ == "__main__":
    print(markdown(all_rows()), end="")
