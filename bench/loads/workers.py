"""Two workers against one: what a request costs, whether both serve, and what dies with one that is killed."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncGenerator

from bench.contenders import Contender, ours
from bench.figures import Sample
from bench.measure import connections, resident, ticks, tree
from bench.plan import Plan
from bench.programs import free_port, output
from bench.upstream import nginx
from bench.wrk import wrk
from sidecar.errors import SidecarError

CASE = "workers, c=16"
KILL = "kill -9 under load"
ONE = "workers: 1"
TWO = "workers: 2"

LEAST = "least share of a worker"
MEMORY = "resident MB, each"
LOST = "requests lost"
HELD = "connections of the killed"
SERVED = "answers after the kill"

_CLIENTS = 40
_KILL_AFTER = 1.5
_MB = 1_000_000


async def workers(plan: Plan) -> AsyncGenerator[Sample]:
    """Rounds by turns, then one worker of two is killed."""
    plan.say(CASE)
    folder = plan.folder / "workers"
    async with (
        nginx(folder, free_port()) as upstream,
        ours(upstream, folder / "one", ONE) as one,
        ours(upstream, folder / "two", TWO, workers=2) as two,
    ):
        serving = _workers(two)
        for who in (one, two):
            await wrk(who, 16, 1)
        for _ in range(plan.effort.rounds):
            for who in (one, two):
                before = [ticks(pid) for pid in serving]
                for what, value in (await wrk(who, 16, plan.effort.seconds)).items():
                    yield Sample("workers", CASE, who.name, what, value)
                if who is two:
                    spent = [ticks(pid) - earlier for pid, earlier in zip(serving, before, strict=True)]
                    yield Sample("workers", CASE, TWO, LEAST, min(spent) / max(1, sum(spent)))
        yield Sample("workers", CASE, TWO, MEMORY, max(resident(pid) for pid in serving) / _MB)
        plan.say(KILL)
        for what, value in (await _kill(two, serving[0], plan.effort.seconds)).items():
            yield Sample("workers", KILL, TWO, what, value)


def _workers(who: Contender) -> list[int]:
    """Return the processes that serve, without their supervisor."""
    found = [pid for pid in tree(who.pid or 0) if pid != who.pid]
    if len(found) != len(("one", "the other")):
        raise SidecarError(f"expected two workers, found {len(found)}")
    return found


async def _kill(who: Contender, victim: int, seconds: int) -> dict[str, float]:
    """Kill *victim* while clients ask without a pause; count what they lost, and what they got later on."""
    loop, span = asyncio.get_running_loop(), 2 * _KILL_AFTER + seconds
    options = ("--connections", str(_CLIENTS), "--seconds", f"{span:g}", "--path", "/items")
    async with asyncio.TaskGroup() as group:
        command = (sys.executable, "-O", "-m", "bench.clients", str(who.port), *options)
        clients = group.create_task(output(*command, within=span + 60))
        await asyncio.sleep(_KILL_AFTER)
        while connections(victim, local=who.port) == 0 and not clients.done():  # noqa: ASYNC110  another process
            await asyncio.sleep(0.01)
        held = connections(victim, local=who.port)
        os.kill(victim, signal.SIGKILL)
        killed = loop.time()
    each, failed, refused = json.loads(clients.result())
    wrong = sum(status != 200 for _, _, status in each)  # noqa: PLR2004
    return {
        HELD: held,
        LOST: failed + refused + wrong,
        SERVED: sum(ended > killed for ended, _, _ in each),
    }
