"""Nothing to do: how long a start takes, and what a proxy costs alone and with a thousand idle connections."""

import asyncio
import contextlib
import resource
from collections.abc import AsyncGenerator

from bench.clients import ask, connect
from bench.contenders import Contender, everybody, ours, stock
from bench.figures import Sample
from bench.measure import TICKS_PER_SECOND, connections, resident, ticks
from bench.plan import Plan
from bench.programs import free_port
from bench.upstream import nginx

START = "start"
ALONE = "idle"
HELD = "1000 idle connections"

READY = "ready s"
MEMORY = "resident MB"
CPU = "ticks in 5 s"
OPEN = "connections"

_HELD = 1000
_LIMITS = {"connections": _HELD + 100}
_AT_ONCE = 20
_SETTLE = 2.0
_MB = 1_000_000
_SPARE_DESCRIPTORS = 200


async def idle(plan: Plan) -> AsyncGenerator[Sample]:
    """Starts by turns; then each proxy at rest, without and with connections that have had one request each."""
    folder = plan.folder / "idle"
    async with nginx(folder, free_port()) as upstream:
        plan.say(START)
        for number in range(plan.effort.starts + 1):
            for start, name in ((stock, "stock"), (ours, "ours")):
                async with start(upstream, folder / name) as who:
                    if number:  # the very first start of each makes a CA
                        yield Sample("idle", START, who.name, READY, who.ready)
        async with everybody(upstream, folder / "rest", plan.envoy, limits=_LIMITS) as contenders:
            proxies = [(who, who.pid) for who in contenders if who.pid is not None]
            plan.say(ALONE)
            for who, _ in proxies:  # imports and pools that the first request brings belong to every idle proxy
                async with contextlib.AsyncExitStack() as stack:
                    await _hold(who, 1, stack)
            for sample in await _at_rest(ALONE, proxies, plan.effort.idle_seconds):
                yield sample
            plan.say(HELD)
            for who, pid in proxies:
                async with contextlib.AsyncExitStack() as stack:
                    await _hold(who, _HELD, stack)
                    for sample in await _at_rest(HELD, [(who, pid)], plan.effort.idle_seconds):
                        yield sample
                    yield Sample("idle", HELD, who.name, OPEN, connections(pid, local=who.port))


async def _at_rest(case: str, proxies: list[tuple[Contender, int]], seconds: int) -> list[Sample]:
    """Let them come to rest, then measure for a while, all at the same time."""
    await asyncio.sleep(_SETTLE)
    before = {pid: ticks(pid) for _, pid in proxies}
    await asyncio.sleep(seconds)
    found = []
    for who, pid in proxies:
        spent = (ticks(pid) - before[pid]) * 100 / TICKS_PER_SECOND / seconds * 5
        found.append(Sample("idle", case, who.name, CPU, spent))
        found.append(Sample("idle", case, who.name, MEMORY, resident(pid) / _MB))
    return found


async def _hold(who: Contender, count: int, stack: contextlib.AsyncExitStack) -> None:
    """Open so many connections and ask once on each; they close with *stack*."""
    _allow_descriptors(count + _SPARE_DESCRIPTORS)
    gate = asyncio.Semaphore(_AT_ONCE)

    async def one() -> None:
        async with gate:
            connection = await connect(who.port)
            stack.callback(connection[1].close)
            await ask(connection, who.port, "/items")

    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(one())


def _allow_descriptors(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(count, hard), hard))
